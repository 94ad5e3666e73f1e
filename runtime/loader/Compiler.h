// Who compiles: the library in this process, or a process of its own.
#pragma once

#include "runtime/Failure.h"
#include "runtime/artifact/Artifact.h"
#include "runtime/cache/FileIdentity.h"
#include "runtime/loader/CompilerInterface.h"

#include <optional>
#include <string>
#include <vector>

namespace normforge {

/// The compiler as an engine knows it. All functions may be called from several threads.
class Compiler {
public:
  virtual ~Compiler() = default;

  /// The library's file, absolute; empty where there is none, or the loader looks for it.
  virtual std::string path() const = 0;

  /// Which kernel a request is for: texts as CompilerInterface.h has them.
  struct Identity {
    std::string name, key;
    std::vector<FileIdentity> madeFrom; ///< the compiler's files as they were when it was opened
    bool isCurrent = true; ///< they still are: what it compiles is what a new process would
  };
  /// These open the library, or start a process, when they are first called; what could not be
  /// opened is looked for again at the next call.
  virtual std::optional<Identity> identify(const nf_compiler_request &request,
                                           Failure &failure) = 0;
  /// A serialized Artifact.
  virtual std::optional<std::vector<std::byte>> compile(const nf_compiler_request &request,
                                                        Failure &failure) = 0;
};

} // namespace normforge
