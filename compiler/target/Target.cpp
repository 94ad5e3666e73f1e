#include "compiler/target/Target.h"

#include "runtime/cpu_info/CpuInfo.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/MC/MCSubtargetInfo.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/TargetParser/Host.h"
#include "llvm/TargetParser/Triple.h"

#include <fmt/format.h>
#include <memory>

namespace normforge {

namespace {

constexpr const char *kTriple = "x86_64-unknown-linux-gnu";
constexpr int64_t KiB = 1024;

/// Caches of one core, by microarchitecture; from the vendors' optimization manuals.
struct CpuCaches {
  const char *cpu;
  int64_t l1, l2, l3;
};
constexpr CpuCaches kCaches[] = {
    {"haswell", 32 * KiB, 256 * KiB, 8192 * KiB},
    {"broadwell", 32 * KiB, 256 * KiB, 8192 * KiB},
    {"skylake", 32 * KiB, 256 * KiB, 8192 * KiB},
    {"skylake-avx512", 32 * KiB, 1024 * KiB, 22528 * KiB},
    {"cascadelake", 32 * KiB, 1024 * KiB, 22528 * KiB},
    {"icelake-server", 48 * KiB, 1280 * KiB, 32768 * KiB},
    {"sapphirerapids", 48 * KiB, 2048 * KiB, 65536 * KiB},
    {"emeraldrapids", 48 * KiB, 2048 * KiB, 65536 * KiB},
    {"graniterapids", 48 * KiB, 2048 * KiB, 65536 * KiB},
    {"znver2", 32 * KiB, 512 * KiB, 16384 * KiB},
    {"znver3", 32 * KiB, 512 * KiB, 32768 * KiB},
    {"znver4", 32 * KiB, 1024 * KiB, 32768 * KiB},
    {"znver5", 48 * KiB, 1024 * KiB, 32768 * KiB},
    {"x86-64-v3", 32 * KiB, 256 * KiB, 8192 * KiB},
    {"x86-64-v4", 32 * KiB, 1024 * KiB, 22528 * KiB},
};

const llvm::Target *x86Target() {
  static const llvm::Target *target = [] {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    std::string error;
    return llvm::TargetRegistry::lookupTarget(llvm::Triple(kTriple), error);
  }();
  return target;
}

llvm::Error unknownCpu(llvm::StringRef cpu) {
  return llvm::createStringError(fmt::format("unknown CPU '{}'; expected native or one of: {}",
                                             cpu.str(), llvm::join(compilableCpus(), ", ")));
}

std::string bytesText(int64_t bytes) {
  if (bytes >= 1024 * KiB && bytes % (1024 * KiB) == 0)
    return fmt::format("{} MiB", bytes / (1024 * KiB));
  return fmt::format("{} KiB", bytes / KiB);
}

} // namespace

bool TargetDescription::has(llvm::StringRef feature) const {
  return llvm::is_contained(features, feature.str());
}

std::vector<std::string> TargetDescription::instructionSets() const {
  constexpr llvm::StringRef kFamilies[] = {"avx", "sse",  "ssse",   "fma",   "f16c",
                                           "bmi", "gfni", "popcnt", "lzcnt", "movbe"};
  std::vector<std::string> sets;
  // In the families, but of no use to a kernel: some machines of a kind lack them.
  constexpr llvm::StringRef kUnused[] = {"sse4a", "avx512vp2intersect"};
  for (const std::string &feature : features)
    if (!llvm::is_contained(kUnused, feature) &&
        llvm::any_of(kFamilies, [&](llvm::StringRef family) {
          return llvm::StringRef(feature).starts_with(family);
        }))
      sets.push_back(feature);
  return sets;
}

std::string TargetDescription::text() const {
  return fmt::format("{} {} vectors {} x {} masked {} caches {} {} {} beyond {} +{} -{}", triple,
                     cpu, vectorBits, vectorRegisters, maskedTails, l1Bytes, l2Bytes, l3Bytes,
                     streamingBytes, llvm::join(features, ",+"), llvm::join(disabled, ",-"));
}

std::string TargetDescription::summary() const {
  return fmt::format("{}, {}-bit vectors, {} tails, L1 {}, L2 {}, L3 {}, non-temporal stores "
                     "beyond {}",
                     cpu, vectorBits, maskedTails ? "masked" : "narrower", bytesText(l1Bytes),
                     bytesText(l2Bytes), bytesText(l3Bytes), bytesText(streamingBytes));
}

std::vector<std::string> compilableCpus() {
  std::vector<std::string> names;
  for (const CpuCaches &entry : kCaches)
    names.push_back(entry.cpu);
  return names;
}

llvm::Expected<TargetDescription> describeTarget(llvm::StringRef cpu) {
  const llvm::Target *target = x86Target();
  if (!target)
    return llvm::createStringError("LLVM was built without its X86 target");
  const bool native = cpu.empty() || cpu == "native";

  TargetDescription description;
  description.triple = kTriple;
  description.cpu = native ? llvm::sys::getHostCPUName().str() : cpu.str();

  // The host's features win over its name: LLVM may know the name of an older CPU only.
  std::string features;
  if (native)
    for (const auto &feature : llvm::sys::getHostCPUFeatures())
      features += (features.empty() ? "" : ",") + std::string(feature.second ? "+" : "-") +
                  feature.first().str();

  // LLVM answers an unknown name with a warning on stderr: ask about it first.
  std::unique_ptr<llvm::MCSubtargetInfo> generic(
      target->createMCSubtargetInfo(llvm::Triple(kTriple), "x86-64", ""));
  if (!native && !generic->isCPUStringValid(description.cpu))
    return unknownCpu(cpu);
  std::unique_ptr<llvm::MCSubtargetInfo> subtarget(
      target->createMCSubtargetInfo(llvm::Triple(kTriple), description.cpu, features));
  std::unique_ptr<llvm::MCSubtargetInfo> named(
      target->createMCSubtargetInfo(llvm::Triple(kTriple), description.cpu, ""));
  for (const llvm::SubtargetFeatureKV &feature : subtarget->getAllProcessorFeatures()) {
    const std::string enabled = "+" + std::string(feature.Key);
    if (subtarget->checkFeatures(enabled))
      description.features.push_back(feature.Key);
    else if (named->checkFeatures(enabled))
      description.disabled.push_back(feature.Key);
  }

  if (!description.has("avx2") || !description.has("fma"))
    return llvm::createStringError(fmt::format(
        "CPU '{}' has no AVX2 and FMA, and kernels for it are not built yet; expected native or "
        "one of: {}",
        description.cpu, llvm::join(compilableCpus(), ", ")));
  const bool avx512 = description.has("avx512f") && description.has("avx512vl") &&
                      description.has("avx512bw") && description.has("avx512dq");
  description.vectorBits = avx512 ? 512 : 256;
  description.vectorRegisters = avx512 ? 32 : 16;
  description.maskedTails = avx512;

  description.l1Bytes = 32 * KiB;
  description.l2Bytes = 256 * KiB;
  description.l3Bytes = 8192 * KiB;
  for (const CpuCaches &entry : kCaches)
    if (description.cpu == entry.cpu) {
      description.l1Bytes = entry.l1;
      description.l2Bytes = entry.l2;
      description.l3Bytes = entry.l3;
    }
  if (native) {
    const CacheSizes host = hostCaches();
    description.l1Bytes = host.l1;
    description.l2Bytes = host.l2;
    description.l3Bytes = host.l3;
  }
  const bool zen = llvm::StringRef(description.cpu).starts_with("znver");
  description.streamingBytes = zen ? description.l3Bytes : 2 * description.l2Bytes;
  // Desktop parts share a fast L3 that is larger than that.
  if (!zen && !avx512)
    description.streamingBytes = description.l3Bytes;
  return description;
}

} // namespace normforge
