#include "compiler/machine/Machine.h"

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

constexpr int64_t KiB = 1024;

/// A machine that kernels are compiled for, and its names in triples.
struct Machine {
  const char *architecture, *triple, *llvmTarget;
  const char *genericCpu; ///< a CPU that LLVM's table of the machine is asked with
};
constexpr Machine kMachines[] = {
    {"x86_64", "x86_64-unknown-linux-gnu", "X86", "x86-64"},
    {"aarch64", "aarch64-unknown-linux-gnu", "AArch64", "generic"},
};

/// A CPU's data that LLVM's tables lack: caches of one core (L3: shared) and the length of
/// scalable vectors, from the vendors' manuals; and how many vectors are summed at once, the
/// latency of an addition times how many begin in a cycle, but not more than was seen to help.
struct Cpu {
  const char *name, *architecture;
  int64_t l1, l2, l3;
  int vectorsInFlight = 4;
  int sveBits = 0;
  /// Where non-temporal stores win, as a share of L3 that x and y fill together; 0: not measured.
  /// Zen 4, two cores of a server whose L3 others use, too: once from 12 to 18 MB of 32 on, by 1.3
  /// to 1.9 times in every layout; an hour later not before 26, losing as much below. Between them.
  double streamingShare = 0;
};
constexpr Cpu kCpus[] = {
    {"haswell", "x86_64", 32 * KiB, 256 * KiB, 8192 * KiB},
    {"broadwell", "x86_64", 32 * KiB, 256 * KiB, 8192 * KiB},
    {"skylake", "x86_64", 32 * KiB, 256 * KiB, 8192 * KiB},
    {"skylake-avx512", "x86_64", 32 * KiB, 1024 * KiB, 22528 * KiB},
    {"cascadelake", "x86_64", 32 * KiB, 1024 * KiB, 22528 * KiB},
    {"icelake-server", "x86_64", 48 * KiB, 1280 * KiB, 32768 * KiB},
    {"sapphirerapids", "x86_64", 48 * KiB, 2048 * KiB, 65536 * KiB},
    {"emeraldrapids", "x86_64", 48 * KiB, 2048 * KiB, 65536 * KiB},
    {"graniterapids", "x86_64", 48 * KiB, 2048 * KiB, 65536 * KiB},
    {"znver2", "x86_64", 32 * KiB, 512 * KiB, 16384 * KiB},
    {"znver3", "x86_64", 32 * KiB, 512 * KiB, 32768 * KiB},
    {"znver4", "x86_64", 32 * KiB, 1024 * KiB, 32768 * KiB, 4, 0, 0.75},
    {"znver5", "x86_64", 48 * KiB, 1024 * KiB, 32768 * KiB, 4, 0, 1},
    {"x86-64-v2", "x86_64", 32 * KiB, 256 * KiB, 8192 * KiB},
    {"x86-64-v3", "x86_64", 32 * KiB, 256 * KiB, 8192 * KiB},
    {"x86-64-v4", "x86_64", 32 * KiB, 1024 * KiB, 22528 * KiB},
    {"cortex-a72", "aarch64", 32 * KiB, 256 * KiB, 1024 * KiB},
    {"cortex-a76", "aarch64", 64 * KiB, 512 * KiB, 2048 * KiB},
    {"neoverse-n1", "aarch64", 64 * KiB, 1024 * KiB, 32768 * KiB},
    {"apple-m1", "aarch64", 128 * KiB, 3072 * KiB, 8192 * KiB, 8},
    {"neoverse-v1", "aarch64", 64 * KiB, 1024 * KiB, 32768 * KiB, 4, 256},
    {"neoverse-n2", "aarch64", 64 * KiB, 1024 * KiB, 32768 * KiB, 4, 128},
    {"neoverse-v2", "aarch64", 64 * KiB, 1024 * KiB, 65536 * KiB, 8, 128},
    {"a64fx", "aarch64", 64 * KiB, 640 * KiB, 8192 * KiB, 8, 512},
};
constexpr Cpu kSmallCpu = {"", "", 32 * KiB, 256 * KiB, 8192 * KiB};

/// A GPU, and the least version of PTX that LLVM 22 has it in: a lower one ends the process.
/// Limits: CUDA C++ Programming Guide, "Compute Capabilities".
struct Gpu {
  const char *name, *ptx;
  Device device;
};
constexpr Gpu gpu(const char *name, const char *ptx, int64_t sharedBytes, int64_t multiprocessors,
                  int64_t threads, int64_t blocks) {
  constexpr int64_t kRegister = 4;
  return {name,
          ptx,
          {.blockThreads = 1024,
           .accessBytes = 16,
           .subgroup = 32,
           .threadRegisterBytes = 255 * kRegister,
           .registerBytes = 64 * KiB * kRegister,
           .threads = threads,
           .blocks = blocks,
           .sharedBytes = sharedBytes,
           .multiprocessors = multiprocessors}};
}
constexpr Gpu kGpus[] = {
    gpu("sm_80", "ptx70", 99 * KiB, 108, 1536, 16),
    gpu("sm_86", "ptx71", 99 * KiB, 84, 1536, 16),
    gpu("sm_89", "ptx78", 99 * KiB, 142, 1536, 24),
    gpu("sm_90", "ptx78", 227 * KiB, 132, 2048, 32),
    gpu("sm_100", "ptx86", 227 * KiB, 148, 2048, 32),
};

/// The bits that a scalable vector has at least; its length is this times a power of two.
constexpr int kSveBits = 128, kNeonBits = 128;

const Cpu *findCpu(llvm::StringRef name) {
  const auto *found = llvm::find_if(kCpus, [&](const Cpu &cpu) { return name == cpu.name; });
  return found == std::end(kCpus) ? nullptr : found;
}

const llvm::Target *targetOf(const Machine &machine) {
  static const bool initialized = [] {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    LLVMInitializeAArch64TargetInfo();
    LLVMInitializeAArch64Target();
    LLVMInitializeAArch64TargetMC();
    LLVMInitializeAArch64AsmPrinter();
    LLVMInitializeX86AsmParser(); // of the assembly in what chooses a CPU
    LLVMInitializeAArch64AsmParser();
    return true;
  }();
  (void)initialized;
  std::string error;
  return llvm::TargetRegistry::lookupTarget(llvm::Triple(machine.triple), error);
}

llvm::Error unknownCpu(llvm::StringRef cpu, const Machine *machine) {
  if (!machine && cpu.starts_with_insensitive("sm_"))
    return llvm::createStringError(fmt::format("unknown GPU '{}'; expected one of: {}", cpu.str(),
                                               llvm::join(compilableGpus(), ", ")));
  return llvm::createStringError(fmt::format(
      "unknown CPU '{}'{}; expected native or one of: {}", cpu.str(),
      machine ? fmt::format(" of {}", machine->architecture) : "",
      llvm::join(machine ? compilableCpus(machine->architecture) : compilableCpus(), ", ")));
}

std::string bytesText(int64_t bytes) {
  if (bytes >= 1024 * KiB && bytes % (1024 * KiB) == 0)
    return fmt::format("{} MiB", bytes / (1024 * KiB));
  return fmt::format("{} KiB", bytes / KiB);
}

/// LLVM answers an unknown name with a warning on stderr: it is asked about it first.
bool knows(const Machine &machine, llvm::StringRef cpu) {
  const llvm::Target *target = targetOf(machine);
  if (!target)
    return false;
  std::unique_ptr<llvm::MCSubtargetInfo> generic(
      target->createMCSubtargetInfo(llvm::Triple(machine.triple), machine.genericCpu, ""));
  return generic->isCPUStringValid(cpu);
}

/// The machine that a triple, or its first word, names.
llvm::Expected<const Machine *> findMachine(llvm::StringRef text) {
  const llvm::Triple triple{llvm::Triple::normalize(text)};
  // x32 and ILP32 have other pointers, other systems other files.
  const bool isElf =
      (triple.getOS() == llvm::Triple::UnknownOS || triple.getOS() == llvm::Triple::Linux) &&
      (triple.getEnvironment() == llvm::Triple::UnknownEnvironment ||
       triple.getEnvironment() == llvm::Triple::GNU);
  for (const Machine &machine : kMachines)
    if (isElf && triple.getArch() == llvm::Triple(machine.triple).getArch())
      return &machine;
  return llvm::createStringError(fmt::format(
      "unknown machine '{}'; expected x86_64-linux-gnu, aarch64-linux-gnu or aarch64-none-elf",
      text.str()));
}

/// The machine that a CPU belongs to.
llvm::Expected<const Machine *> machineOf(llvm::StringRef cpu, bool native) {
  if (native) {
    auto host = findMachine(hostArchitecture());
    return host;
  }
  for (const Machine &machine : kMachines) // generic is a word of both
    if (cpu != "generic" && knows(machine, cpu))
      return &machine;
  return unknownCpu(cpu, nullptr);
}

} // namespace

bool TargetDescription::has(llvm::StringRef feature) const {
  return llvm::is_contained(features, feature.str());
}

std::vector<std::string> TargetDescription::instructionSets() const {
  // Those that code of normalizations can be made of: scalar minima are an extension (cssc).
  constexpr llvm::StringRef kOfArm[] = {"bf16", "cssc",       "fp-armv8", "fullfp16", "neon",
                                        "sve",  "sve-b16b16", "sve2",     "sve2p1"};
  constexpr llvm::StringRef kFamilies[] = {"avx", "sse",  "ssse",   "fma",   "f16c",
                                           "bmi", "gfni", "popcnt", "lzcnt", "movbe"};
  // In the families, but of no use to a kernel: some machines of a kind lack them.
  // AVX10.1 is a name for sets that are listed by their own.
  constexpr llvm::StringRef kUnused[] = {"sse4a", "avx512vp2intersect", "avx10.1"};
  std::vector<std::string> sets;
  for (const std::string &feature : features) {
    const bool isUsed =
        isX86() ? !llvm::is_contained(kUnused, feature) &&
                      llvm::any_of(kFamilies,
                                   [&](llvm::StringRef family) {
                                     return llvm::StringRef(feature).starts_with(family);
                                   })
                : llvm::is_contained(kOfArm, feature);
    if (isUsed)
      sets.push_back(feature);
  }
  return sets;
}

std::vector<std::string> TargetDescription::uselessSets(bool hasF16, bool hasBf16) const {
  // SVE is built on fullfp16, and every CPU with AVX2 on f16c.
  std::vector<std::string> useless;
  auto drop = [&](bool isUsed, std::initializer_list<llvm::StringRef> names) {
    for (llvm::StringRef name : names)
      if (!isUsed && has(name) && !(name == "fullfp16" && has("sve")))
        useless.push_back(name.str());
  };
  drop(hasF16, {"fullfp16", "avx512fp16"});
  drop(hasBf16, {"bf16", "avx512bf16", "sve-b16b16"});
  return useless;
}

std::string TargetDescription::text() const {
  if (device)
    return fmt::format("{} {} blocks {} accesses {} subgroups {} registers {} of {} threads {} "
                       "blocks {} shared {} "
                       "multiprocessors {} +{}",
                       triple, cpu, device->blockThreads, device->accessBytes, device->subgroup,
                       device->threadRegisterBytes, device->registerBytes, device->threads,
                       device->blocks, device->sharedBytes, device->multiprocessors,
                       llvm::join(features, ",+"));
  return fmt::format("{} {} vectors {}{} x {} flight {} fma {} masked {} {} caches {} {} {} beyond "
                     "{} +{} -{}",
                     triple, cpu, vectorBits, scalableVectors ? "s" : "", vectorRegisters,
                     vectorsInFlight, fusedMultiplyAdd, maskedTails, maskedLoads, l1Bytes, l2Bytes,
                     l3Bytes, streamingBytes.value_or(-1), llvm::join(features, ",+"),
                     llvm::join(disabled, ",-"));
}

TargetDescription TargetDescription::withFixedVectors() const {
  TargetDescription fixed = *this;
  if (scalableVectors) { // those of NEON
    fixed.scalableVectors = fixed.maskedTails = fixed.maskedLoads = false;
    fixed.vectorBits = kNeonBits;
  }
  return fixed;
}

std::string TargetDescription::vectorsInWords() const {
  return fmt::format("{}{}-bit", scalableVectors ? "scalable, made for " : "", vectorBits);
}

std::string TargetDescription::summary() const {
  if (device)
    return fmt::format("{}, blocks of up to {} threads and {} of shared memory, loads of up to {} "
                       "bytes",
                       cpu, device->blockThreads, bytesText(device->sharedBytes),
                       device->accessBytes);
  return fmt::format("{}, {} vectors, {} tails, L1 {}, L2 {}, L3 {}, {}", cpu, vectorsInWords(),
                     tailsInWords(), bytesText(l1Bytes), bytesText(l2Bytes), bytesText(l3Bytes),
                     streamingBytes
                         ? fmt::format("non-temporal stores beyond {}", bytesText(*streamingBytes))
                         : "no non-temporal stores");
}

std::vector<std::string> compilableCpus() {
  std::vector<std::string> names;
  for (const Cpu &cpu : kCpus)
    names.push_back(cpu.name);
  return names;
}

std::vector<std::string> compilableGpus() {
  std::vector<std::string> names;
  for (const Gpu &gpu : kGpus)
    names.push_back(gpu.name);
  return names;
}

llvm::Expected<TargetDescription> emulatingTarget() {
  return describeTarget(hostArchitecture() == std::string_view("x86_64") ? "x86-64-v3"
                                                                         : "cortex-a72");
}

std::vector<std::string> compilableCpus(llvm::StringRef architecture) {
  std::vector<std::string> names;
  for (const Cpu &cpu : kCpus)
    if (architecture == cpu.architecture)
      names.push_back(cpu.name);
  return names;
}

/// Vectors of x86-64: AVX-512, AVX2 with FMA, or SSE4.2 with what else there is.
static bool describeX86(TargetDescription &description, double streamingShare) {
  const bool avx512 = description.has("avx512f") && description.has("avx512vl") &&
                      description.has("avx512bw") && description.has("avx512dq");
  description.fusedMultiplyAdd = description.has("fma");
  const bool avx2 = description.has("avx2") && description.fusedMultiplyAdd;
  description.vectorBits = avx512 ? 512 : avx2 ? 256 : 128;
  description.vectorRegisters = avx512 ? 32 : 16;
  description.maskedTails = avx512;
  description.maskedLoads = description.has("avx");
  const bool zen = llvm::StringRef(description.cpu).starts_with("znver");
  // Desktop parts share a fast L3 that is larger than two L2.
  description.streamingBasis = streamingShare > 0 ? "measured on this kind"
                               : zen || !avx512   ? "assumed: beyond L3, as on Zen 5"
                               : description.cpu == "emeraldrapids"
                                   ? "measured on this kind"
                                   : "assumed: beyond two L2, as on Emerald Rapids";
  description.streamingBytes =
      streamingShare > 0
          ? static_cast<int64_t>(streamingShare * static_cast<double>(description.l3Bytes))
      : zen || !avx512 ? description.l3Bytes
                       : 2 * description.l2Bytes;
  return description.has("sse4.2");
}

/// NEON, or SVE where there is any. Whether non-temporal stores win has not been measured: none are
/// used.
static bool describeAarch64(TargetDescription &description, int sveBits) {
  description.streamingBasis = "not measured: none are used";
  description.scalableVectors = description.has("sve");
  description.vectorBits = description.scalableVectors ? std::max(sveBits, kSveBits) : kSveBits;
  description.vectorRegisters = 32;
  description.maskedTails = description.maskedLoads = description.scalableVectors;
  return description.has("neon");
}

static llvm::Expected<TargetDescription> describeGpu(const Gpu &gpu) {
  static const bool initialized = [] {
    LLVMInitializeNVPTXTargetInfo();
    LLVMInitializeNVPTXTarget();
    LLVMInitializeNVPTXTargetMC();
    LLVMInitializeNVPTXAsmPrinter();
    return true;
  }();
  (void)initialized;
  TargetDescription description;
  description.triple = "nvptx64-nvidia-cuda";
  description.cpu = gpu.name;
  description.features = {gpu.ptx};
  description.device = gpu.device;
  description.vectorBits = static_cast<int>(8 * gpu.device.accessBytes);
  description.maskedTails = description.maskedLoads = true; // a thread has a vector, or has none
  return description;
}

llvm::Expected<TargetDescription> describeTarget(llvm::StringRef cpu, llvm::StringRef machineText,
                                                 const GivenCaches &caches) {
  if (const auto *gpu = llvm::find_if(kGpus, [&](const Gpu &g) { return cpu == g.name; });
      gpu != std::end(kGpus)) {
    if (!machineText.empty() || caches.l1 || caches.l2 || caches.l3)
      return llvm::createStringError(fmt::format(
          "{} is a GPU, and neither a machine nor caches are chosen for it", gpu->name));
    return describeGpu(*gpu);
  }
  const bool native = cpu.empty() || cpu == "native";
  auto machine = machineText.empty() ? machineOf(cpu, native) : findMachine(machineText);
  if (!machine)
    return machine.takeError();
  if (native && (*machine)->architecture != hostArchitecture())
    return llvm::createStringError(fmt::format(
        "the native CPU is of {}, not of {}; expected one of: {}", hostArchitecture(),
        (*machine)->architecture, llvm::join(compilableCpus((*machine)->architecture), ", ")));
  const llvm::Target *target = targetOf(**machine);
  if (!target)
    return llvm::createStringError(
        fmt::format("LLVM was built without its {} target", (*machine)->llvmTarget));
  const llvm::Triple triple((*machine)->triple);

  TargetDescription description;
  description.triple = (*machine)->triple;
  description.cpu = native ? llvm::sys::getHostCPUName().str() : cpu.str();

  // The host's features win over its name: LLVM may know the name of an older CPU only.
  std::string features, without;
  if (native)
    for (const auto &feature : llvm::sys::getHostCPUFeatures()) {
      // SVE may be there in a length that kernels are not right for (see hostFeatures), under names
      // of what is built on it, too.
      constexpr llvm::StringRef ofSve[] = {"sve", "sme", "f32mm", "f64mm"};
      const llvm::StringRef name = feature.first();
      const bool isUsable =
          !isMaskedFeature(std::string_view(name.data(), name.size())) &&
          (llvm::none_of(ofSve, [&](llvm::StringRef n) { return name.starts_with(n); }) ||
           (*machine)->architecture != llvm::StringRef("aarch64") || hostHasFeature("sve"));
      std::string &list = feature.second && isUsable ? features : without;
      list += (feature.second && isUsable ? "+" : "-") + name.str() + ",";
    }
  features += without; // last: what is there may be built on what is not to be
  features.resize(features.size() - !features.empty());

  if (!native && !knows(**machine, description.cpu))
    return unknownCpu(cpu, *machine);
  std::unique_ptr<llvm::MCSubtargetInfo> subtarget(
      target->createMCSubtargetInfo(triple, description.cpu, features));
  std::unique_ptr<llvm::MCSubtargetInfo> named(
      target->createMCSubtargetInfo(triple, description.cpu, ""));
  for (const llvm::SubtargetFeatureKV &feature : subtarget->getAllProcessorFeatures()) {
    const std::string enabled = "+" + std::string(feature.Key);
    if (subtarget->checkFeatures(enabled))
      description.features.push_back(feature.Key);
    else if (named->checkFeatures(enabled))
      description.disabled.push_back(feature.Key);
  }

  const Cpu *known = findCpu(description.cpu);
  const Cpu &entry = known ? *known : kSmallCpu;
  description.l1Bytes = entry.l1;
  description.l2Bytes = entry.l2;
  description.l3Bytes = entry.l3;
  description.vectorsInFlight = entry.vectorsInFlight;
  description.cachesBasis = known ? "the vendor's manual" : "assumed: those of haswell";
  if (native) {
    description.cachesBasis = "asked of the machine";
    const CacheSizes host = hostCaches();
    description.l1Bytes = host.l1;
    description.l2Bytes = host.l2;
    description.l3Bytes = host.l3;
  }
  description.cachesAreAssumed = !native && !known;
  if (caches.l1 || caches.l2 || caches.l3) {
    description.cachesBasis =
        (caches.l1 && caches.l2 && caches.l3 ? "" : description.cachesBasis + ", but ") +
        std::string("given");
    description.cachesAreAssumed &= !(caches.l1 && caches.l2 && caches.l3);
    description.l1Bytes = caches.l1.value_or(description.l1Bytes);
    description.l2Bytes = caches.l2.value_or(description.l2Bytes);
    description.l3Bytes = caches.l3.value_or(description.l3Bytes);
  }
  const bool hasVectors = description.isX86() ? describeX86(description, entry.streamingShare)
                                              : describeAarch64(description, entry.sveBits);
  if (!hasVectors)
    return llvm::createStringError(fmt::format(
        "CPU '{}' has no {}, and kernels for it are not built; expected native or one of: {}",
        description.cpu, description.isX86() ? "SSE4.2" : "NEON",
        llvm::join(compilableCpus((*machine)->architecture), ", ")));
  return description;
}

} // namespace normforge
