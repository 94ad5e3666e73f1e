// The compiler library, opened when something must be compiled.
#pragma once

#include "runtime/Failure.h"
#include "runtime/artifact/Artifact.h"
#include "runtime/cache/FileIdentity.h"
#include "runtime/loader/CompilerInterface.h"

#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace normforge {

/// What an engine knows of the compiler. All functions may be called from several threads.
class CompilerLibrary {
public:
  /// `path` names the library; empty: beside this code's own file, in ../lib of that folder, or
  /// wherever the loader finds it.
  explicit CompilerLibrary(std::string path) : path_(std::move(path)) {}
  CompilerLibrary(const CompilerLibrary &) = delete;
  CompilerLibrary &operator=(const CompilerLibrary &) = delete;

  /// The file that would be opened, absolute; empty where there is none, or the loader looks for
  /// it.
  std::string path() const;

  /// Which kernel a request is for: texts as CompilerInterface.h has them.
  struct Identity {
    std::string name, key;
    std::vector<FileIdentity> madeFrom; ///< the compiler's files as they were when it was opened
    bool isCurrent = true; ///< they still are: what it compiles is what a new process would
  };
  /// These open the library when they are first called. A library that could not be opened is
  /// looked for again at the next call.
  std::optional<Identity> identify(const nf_compiler_request &request, Failure &failure);
  std::optional<Artifact> compile(const nf_compiler_request &request, Failure &failure);

private:
  struct Reply;
  bool open(Failure &failure);
  std::vector<std::string> candidates() const;

  const std::string path_;
  std::mutex mutex_; ///< held while opening, never while compiling
  nf_compiler_fn *identify_ = nullptr, *compile_ = nullptr;
  nf_compiler_release_fn *release_ = nullptr;
  std::optional<std::vector<FileIdentity>> files_; ///< of the library that is open
};

} // namespace normforge
