// The host's CPU: its vector features, caches and name.
//
// Asked of the CPU and the operating system once, then constant.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace normforge {

/// The host has this feature and the operating system saves its registers. Names are LLVM's:
/// "avx2", "avx512f". Unknown names give false; so does every name on a CPU other than x86-64 and
/// aarch64.
bool hostHasFeature(std::string_view name);

/// Those of `features` that the host lacks, in words: "avx512f, avx512bw". Empty: it has them all.
std::string hostLacks(std::span<const std::string> features);

/// Whether NORMFORGE_WITHOUT_FEATURES, names with commas between them, says to do without a
/// feature: by its name, or by that of one that it is built on. Tests of lesser machines set it.
bool isMaskedFeature(std::string_view name);

/// The bits of an SVE vector, which the system may set for each process; 0 without SVE.
int hostSveBits();

/// The processors that this process may use: those that its affinity names, and no more than its
/// control group's quota of time pays for. At least 1. Asked of the system at each call.
int usableProcessors();

/// Every feature that the host has, ascending. SVE only where its vectors are of a length that
/// kernels are right for, a power of two of bits: LLVM 22 computes remainders by the length with
/// masks.
std::span<const std::string_view> hostFeatures();

/// Data caches that one core uses. Where neither the CPU nor the system tells, a size that every
/// CPU of the last ten years has.
struct CacheSizes {
  int64_t l1 = 32 << 10;  ///< bytes, of one core
  int64_t l2 = 256 << 10; ///< bytes, of one core on most CPUs
  int64_t l3 = 2 << 20;   ///< bytes, shared
  int l3Threads = 1;      ///< hardware threads that share one L3, as the CPU reports them
};
CacheSizes hostCaches();

/// The brand string: "Intel(R) Xeon(R) Processor"; "unknown CPU" where there is none.
const std::string &hostCpuName();

/// Text that differs between machines whose own kernels may differ: family, model and stepping,
/// caches, features. Cheaper than what it stands for.
const std::string &hostIdentity();

/// The architecture as a triple begins: "x86_64", "aarch64"; "unknown" elsewhere.
std::string_view hostArchitecture();

} // namespace normforge
