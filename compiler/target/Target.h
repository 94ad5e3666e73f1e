// What a kernel is compiled for.
//
// Enters: a CPU's name. Leaves: a description that schedules and code generation read; no constant
// of a machine stands anywhere else.
#pragma once

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <string>
#include <vector>

namespace normforge {

struct TargetDescription {
  std::string triple;                ///< "x86_64-unknown-linux-gnu"
  std::string cpu;                   ///< LLVM's name, for scheduling models
  std::vector<std::string> features; ///< enabled ones, LLVM's names without a sign
  /// Those that the CPU's name stands for and this one lacks, as a virtual machine may.
  std::vector<std::string> disabled;
  int vectorBits = 0; ///< width of the vectors that kernels use
  int vectorRegisters = 0;
  /// Loads and stores under a mask cost what whole ones do (AVX-512). Without it, elementwise tails
  /// are made of narrower vectors and only loads of reductions are masked.
  bool maskedTails = false;
  int64_t l1Bytes = 0, l2Bytes = 0; ///< of one core
  int64_t l3Bytes = 0;              ///< shared, as reported
  /// Non-temporal stores win where x and y together are larger than this: beyond L3 on Zen, beyond
  /// the L2 caches of two cores on Intel's servers (L3 is slow there).
  int64_t streamingBytes = 0;

  bool has(llvm::StringRef feature) const;
  /// The features whose instructions a kernel may contain: vectors, bit manipulation, and what goes
  /// with them; not those that only an operating system or another kind of program uses.
  std::vector<std::string> instructionSets() const;
  /// Vector lanes of an element of this many bytes.
  int lanes(size_t elementBytes) const { return vectorBits / 8 / static_cast<int>(elementBytes); }
  /// Every field, for keys of caches.
  std::string text() const;
  /// "sapphirerapids, 512-bit vectors, masked tails, L1 48 KiB, L2 2 MiB, L3 260 MiB"
  std::string summary() const;
};

/// Describes a CPU by LLVM's name ("haswell", "znver5", "x86-64-v4"), or the host as "native" or
/// "". An unknown name, or one without AVX2 and FMA, is an error that says what can be compiled
/// for.
llvm::Expected<TargetDescription> describeTarget(llvm::StringRef cpu);

/// Names of CPUs that kernels can be compiled for and whose caches are known here. Others that LLVM
/// knows work too, with the caches of a small one.
std::vector<std::string> compilableCpus();

} // namespace normforge
