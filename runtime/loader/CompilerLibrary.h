// The compiler library, opened in this process when something must be compiled.
#pragma once

#include "runtime/loader/Compiler.h"

#include <mutex>

namespace normforge {

class CompilerLibrary : public Compiler {
public:
  /// `path` is for compilerCandidates.
  explicit CompilerLibrary(std::string path) : path_(std::move(path)) {}
  CompilerLibrary(const CompilerLibrary &) = delete;
  CompilerLibrary &operator=(const CompilerLibrary &) = delete;

  std::string path() const override;
  std::optional<Identity> identify(const nf_compiler_request &request, Failure &failure) override;
  std::optional<std::vector<std::byte>> compile(const nf_compiler_request &request,
                                                Failure &failure) override;

private:
  struct Reply;
  bool open(Failure &failure);

  const std::string path_;
  std::mutex mutex_; ///< held while opening, never while compiling
  nf_compiler_fn *identify_ = nullptr, *compile_ = nullptr;
  nf_compiler_release_fn *release_ = nullptr;
  std::optional<std::vector<FileIdentity>> files_; ///< of the library that is open
};

/// The first file among the places where the library may lie; empty where there is none, or the
/// loader looks for it.
std::string findCompilerFile(const std::string &given);

} // namespace normforge
