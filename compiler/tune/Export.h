// Sweeps for machines without a compiler, and records of what they have measured.
#pragma once

#include "compiler/tune/Case.h"
#include "runtime/measure/SweepFile.h"

#include <functional>

namespace normforge::tune {

struct ExportOptions {
  TargetDescription target;
  bool verify = false;
  uint64_t seed = 0;
  size_t candidates = 40; ///< of each case, besides the default
  bool isNative = false;  ///< for this machine and no other
};

/// Compiles each case's default and its most promising candidates, and computes what is expected of
/// them. `show` is told of each case before it begins. Errors are of the compiler.
llvm::Expected<SweepFile> exportSweep(std::span<const Case> cases, const ExportOptions &options,
                                      const std::function<void(const Case &)> &show);

/// The records of a line that normforge-tune-run has written: its text as records have it. The
/// error says what was expected and found.
llvm::Expected<std::string> importLine(llvm::StringRef line);

} // namespace normforge::tune
