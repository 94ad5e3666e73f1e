// The machine that a kernel is compiled for.
//
// Enters: a CPU's name, and the machine it is in where the name is not enough. Leaves: a
// description that schedules and code generation read; no constant of a machine stands anywhere
// else.
#pragma once

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace normforge {

/// A GPU's limits, where a kernel's tasks are groups of threads.
struct Device {
  int64_t blockThreads = 0;        ///< of a block at most
  int64_t accessBytes = 0;         ///< of the widest load of a thread
  int64_t subgroup = 0;            ///< threads that run together and exchange values
  int64_t threadRegisterBytes = 0; ///< of a thread at most
  int64_t registerBytes = 0;       ///< of a multiprocessor
  /// Of a multiprocessor at once, of this and of later ones, which run its code, too.
  int64_t threads = 0, blocks = 0;
  int64_t sharedBytes = 0;     ///< of a block at most
  int64_t multiprocessors = 0; ///< of the largest of the kind; small ones have fewer
};

struct TargetDescription {
  std::string triple;                ///< "x86_64-unknown-linux-gnu"
  std::string cpu;                   ///< LLVM's name, for scheduling models
  std::vector<std::string> features; ///< enabled ones, LLVM's names without a sign
  /// Those that the CPU's name stands for and this one lacks, as a virtual machine may.
  std::vector<std::string> disabled;
  /// Width of the vectors that kernels use. Of scalable ones, the width that schedules are made
  /// for; the code runs with any power of two from 128 to 2048.
  int vectorBits = 0;
  bool scalableVectors = false; ///< SVE: the code learns the width when it runs
  int vectorRegisters = 0;
  /// Sums of vectors that are made at once, so that an addition does not wait for the one before.
  int vectorsInFlight = 4;
  bool fusedMultiplyAdd = true;
  /// Loads and stores under a mask cost what whole ones do (AVX-512, SVE). Without it, elementwise
  /// tails are made of narrower vectors and only loads of reductions are masked.
  bool maskedTails = false;
  /// There are loads under a mask at all; without them a reduction's last elements are loaded one
  /// by one.
  bool maskedLoads = false;
  int64_t l1Bytes = 0, l2Bytes = 0; ///< of one core
  int64_t l3Bytes = 0;              ///< shared, as reported
  /// Non-temporal stores win where x and y together are larger than this: beyond L3 or a share of
  /// it on Zen, beyond the L2 caches of two cores on Intel's servers (L3 is slow there). None:
  /// never used.
  std::optional<int64_t> streamingBytes;
  /// Where the caches' sizes and streamingBytes are from, in words; documentation alone.
  std::string cachesBasis, streamingBasis;
  bool cachesAreAssumed = false; ///< nobody knows or has said them
  std::optional<Device> device;  ///< a GPU's; none: this is a CPU

  bool isX86() const { return llvm::StringRef(triple).starts_with("x86_64"); }
  bool has(llvm::StringRef feature) const;
  /// The features whose instructions a kernel may contain: vectors, bit manipulation, and what goes
  /// with them; not those that only an operating system or another kind of program uses.
  std::vector<std::string> instructionSets() const;
  /// Those of them that only arithmetic in these types has use for, where kernels have none of it:
  /// f16 and bf16 are computed in f32, and what narrows them is among these.
  std::vector<std::string> uselessSets(bool hasF16, bool hasBf16) const;
  /// How many times the least length of scalable vectors, 128 bits, schedules are made for; 0 for
  /// others.
  int64_t vectorScale() const { return scalableVectors ? vectorBits / 128 : 0; }
  /// The same machine without vectors whose length is known only when the code runs: bits of them
  /// are no words.
  TargetDescription withFixedVectors() const;
  /// Vector lanes of an element of this many bytes.
  int lanes(size_t elementBytes) const { return vectorBits / 8 / static_cast<int>(elementBytes); }
  /// Every field, for keys of caches.
  std::string text() const;
  /// "sapphirerapids, 512-bit vectors, masked tails, L1 48 KiB, L2 2 MiB, L3 260 MiB"
  std::string summary() const;
  /// "512-bit", "scalable, made for 256-bit".
  std::string vectorsInWords() const;
  const char *tailsInWords() const { return maskedTails ? "masked" : "narrower"; }
};

/// Bytes of caches, where they are said rather than known.
struct GivenCaches {
  std::optional<int64_t> l1, l2, l3;
};

/// Describes a CPU by LLVM's name ("haswell", "znver5", "x86-64-v4", "neoverse-n1"), or the host as
/// "native" or "", or a GPU ("sm_90"). `machine` is a triple such as "aarch64-linux-gnu", or empty:
/// the one that the CPU's name belongs to. Code is ELF for Linux. An unknown name, a CPU of another
/// machine, or one without vectors that kernels can be made of (SSE4.2, NEON) is an error that says
/// what can be compiled for. `caches` win over what is known of the CPU.
llvm::Expected<TargetDescription> describeTarget(llvm::StringRef cpu, llvm::StringRef machine = "",
                                                 const GivenCaches &caches = {});

/// Names of CPUs that kernels can be compiled for and whose caches are known here. Others that LLVM
/// knows work too, with the caches of a small one.
std::vector<std::string> compilableCpus();
/// The same for one machine, "x86_64" or "aarch64".
std::vector<std::string> compilableCpus(llvm::StringRef architecture);
/// Names of GPUs that kernels can be compiled for.
std::vector<std::string> compilableGpus();

/// The CPU that the code of GPU kernels is made for where this machine emulates them: an old one,
/// with fused multiply-adds, of this machine's kind.
llvm::Expected<TargetDescription> emulatingTarget();

} // namespace normforge
