#include "runtime/cpu_info/CpuInfo.h"

#include "runtime/cpu_info/CpuFeatures.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sched.h>
#include <thread>
#include <unistd.h>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#include <sys/prctl.h>
#endif

namespace normforge {
namespace {

#if defined(__x86_64__)

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

/// All zeros where the CPU does not have the leaf. In a virtual machine each takes microseconds, so
/// that each is asked for once.
Leaf cpuid(unsigned leaf, unsigned subleaf = 0) {
  static const unsigned most = __get_cpuid_max(0, nullptr);
  static const unsigned mostExtended = __get_cpuid_max(0x80000000, nullptr);
  if (leaf > (leaf < 0x80000000 ? most : mostExtended))
    return {};
  Leaf r;
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
  return r;
}
const Leaf &leaf1() {
  static const Leaf one = cpuid(1);
  return one;
}

/// Which register states the operating system saves.
uint64_t enabledStates() {
  if (!(leaf1().ecx >> 27 & 1)) // osxsave
    return 0;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

std::vector<std::string_view> readFeatures() {
  using namespace x86;
  unsigned words[static_cast<size_t>(Word::Count)] = {};
  Leaf leaf;
  unsigned subleavesOf7 = 0;
  for (size_t i = 0; i < std::size(sources); ++i) {
    const Source &source = sources[i];
    if (i == 0 || source.leaf != sources[i - 1].leaf || source.subleaf != sources[i - 1].subleaf) {
      if (source.leaf == 1)
        leaf = leaf1();
      else if (source.leaf == 7 && source.subleaf > subleavesOf7)
        leaf = {};
      else
        leaf = cpuid(source.leaf, source.subleaf);
      if (source.leaf == 7 && source.subleaf == 0)
        subleavesOf7 = leaf.eax;
    }
    const unsigned results[] = {leaf.eax, leaf.ebx, leaf.ecx, leaf.edx};
    words[i] = results[source.result];
  }
  constexpr unsigned avx10 = 1u << 19;
  if (words[static_cast<size_t>(Word::Leaf7s1Edx)] & avx10)
    words[static_cast<size_t>(Word::Avx10)] = (1u << (cpuid(0x24).ebx & 0xF)) - 1;

  uint64_t states = enabledStates();
  std::vector<std::string_view> names;
  for (const Feature &feature : features) {
    const uint64_t needed = stateBits[static_cast<size_t>(feature.state)];
    if ((states & needed) == needed &&
        (words[static_cast<size_t>(feature.word)] >> feature.bit & 1))
      names.push_back(feature.name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// Leaf 4 (Intel) and 0x8000001D (AMD) list the caches in one form.
bool readCachesFromCpu(CacheSizes &caches) {
  bool found = false;
  for (unsigned leaf : {4u, 0x8000001Du}) {
    if (leaf == 0x8000001Du && !(cpuid(0x80000001).ecx >> 22 & 1)) // topology extensions
      continue;
    for (unsigned i = 0; i < 16; ++i) {
      Leaf r = cpuid(leaf, i);
      unsigned type = r.eax & 31, level = r.eax >> 5 & 7;
      if (type == 0)
        break;
      if (type == 2) // instructions
        continue;
      int64_t bytes = int64_t((r.ebx >> 22) + 1) * ((r.ebx >> 12 & 1023) + 1) *
                      ((r.ebx & 4095) + 1) * (int64_t(r.ecx) + 1);
      found = true;
      if (level == 1)
        caches.l1 = bytes;
      else if (level == 2)
        caches.l2 = bytes;
      else if (level == 3) {
        caches.l3 = bytes;
        caches.l3Threads = static_cast<int>((r.eax >> 14 & 4095) + 1);
      }
    }
    if (found)
      break;
  }
  return found;
}

unsigned readSignature() { return leaf1().eax; }

std::string readCpuName() {
  char text[49] = {};
  for (unsigned i = 0; i < 3; ++i) {
    Leaf r = cpuid(0x80000002 + i);
    std::memcpy(text + 16 * i, &r, 16);
  }
  std::string name(text);
  size_t first = name.find_first_not_of(' '), last = name.find_last_not_of(' ');
  return first == std::string::npos ? "unknown CPU" : name.substr(first, last - first + 1);
}

#else

#if defined(__aarch64__)
std::vector<std::string_view> readFeatures() {
  const unsigned long words[] = {0, getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
  std::vector<std::string_view> names;
  for (const aarch64::Feature &feature : aarch64::features)
    if ((words[feature.word] >> feature.bit & 1) &&
        (!feature.name.starts_with("sve") || std::has_single_bit(unsigned(hostSveBits()))))
      names.push_back(feature.name);
  std::sort(names.begin(), names.end());
  return names;
}
#else
std::vector<std::string_view> readFeatures() { return {}; }
#endif
bool readCachesFromCpu(CacheSizes &) { return false; }
std::string readCpuName() { return "unknown CPU"; }
unsigned readSignature() { return 0; }

#endif

void readCachesFromSystem(CacheSizes &caches) {
  for (int i = 0; i < 8; ++i) {
    std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/";
    std::ifstream levelFile(folder + "level"), typeFile(folder + "type"), sizeFile(folder + "size");
    int level = 0;
    std::string type;
    int64_t size = 0; // "48K"
    char unit = 'K';
    if (!(levelFile >> level) || !(typeFile >> type) || !(sizeFile >> size) || size <= 0)
      continue;
    sizeFile >> unit;
    if (type == "Instruction")
      continue;
    int64_t bytes = size << (unit == 'M' ? 20 : 10);
    if (level == 1)
      caches.l1 = bytes;
    else if (level == 2)
      caches.l2 = bytes;
    else if (level == 3)
      caches.l3 = bytes;
  }
}

} // namespace

bool isMaskedFeature(std::string_view name) {
  static const std::string masked = [] {
    const char *text = secure_getenv("NORMFORGE_WITHOUT_FEATURES");
    return "," + std::string(text ? text : "") + ",";
  }();
  if (masked.size() <= 2)
    return false;
  // Features that are built on a masked one are masked with it.
  constexpr std::pair<std::string_view, std::string_view> builtOn[] = {
      {"avx2", "avx"},      {"fma", "avx"},     {"f16c", "avx"},     {"avxvnni", "avx2"},
      {"avx512f", "avx2"},  {"avx512f", "fma"}, {"avx512f", "f16c"}, {"avx512", "avx512f"},
      {"avx10", "avx512f"}, {"sve", "sve"},     {"f32mm", "sve"},    {"f64mm", "sve"}};
  if (masked.find("," + std::string(name) + ",") != std::string::npos)
    return true;
  for (auto [above, base] : builtOn)
    if (name.starts_with(above) && name != base && isMaskedFeature(base))
      return true;
  return false;
}

std::span<const std::string_view> hostFeatures() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> all = readFeatures();
    std::erase_if(all, isMaskedFeature);
    return all;
  }();
  return names;
}

bool hostHasFeature(std::string_view name) {
  std::span<const std::string_view> names = hostFeatures();
  return std::binary_search(names.begin(), names.end(), name);
}

std::string hostLacks(std::span<const std::string> features) {
  std::string text;
  for (const std::string &feature : features) {
    if (hostHasFeature(feature))
      continue;
    text += (text.empty() ? "" : ", ") + feature;
    if (feature == "sve" && hostSveBits() != 0)
      text += " with vectors of a power of two of bits (they have " +
              std::to_string(hostSveBits()) + " here)";
  }
  return text;
}

int hostSveBits() {
#if defined(__aarch64__)
  constexpr unsigned long hwcapSve = 1ul << 22; // asm/hwcap.h
  if (!(getauxval(AT_HWCAP) & hwcapSve))
    return 0;
  const int answer = prctl(PR_SVE_GET_VL);
  return answer < 0 ? 0 : (answer & PR_SVE_VL_LEN_MASK) * 8;
#else
  return 0;
#endif
}

namespace {

/// The least quota of time, in processors, of this process' control group and those above it
/// (cgroup v2, file cpu.max: "QUOTA PERIOD" in microseconds, or "max PERIOD"); 0: none.
double quotaOfTime() {
  std::ifstream membership("/proc/self/cgroup");
  std::string group;
  for (std::string line; std::getline(membership, line);)
    if (line.starts_with("0::/"))
      group = line.substr(3);
  double least = 0;
  while (true) {
    std::ifstream file("/sys/fs/cgroup" + group + "/cpu.max");
    double quota, period;
    if (file >> quota >> period && quota > 0 && period > 0)
      least = least > 0 ? std::min(least, quota / period) : quota / period;
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos)
      return least;
    group.resize(slash);
  }
}

} // namespace

int usableProcessors() {
  int processors = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  // The system refuses a set that is smaller than its own.
  for (int most = CPU_SETSIZE; most <= 1 << 20; most *= 2) {
    std::vector<cpu_set_t> allowed(CPU_ALLOC_SIZE(most) / sizeof(cpu_set_t));
    const size_t bytes = allowed.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, allowed.data()) == 0) {
      processors = std::max(1, CPU_COUNT_S(bytes, allowed.data()));
      break;
    }
    if (errno != EINVAL)
      break;
  }
  if (const double quota = quotaOfTime(); quota > 0)
    processors = std::min(processors, std::max(1, static_cast<int>(std::ceil(quota))));
  return processors;
}

CacheSizes hostCaches() {
  static const CacheSizes caches = [] {
    CacheSizes sizes;
    if (!readCachesFromCpu(sizes))
      readCachesFromSystem(sizes);
    return sizes;
  }();
  return caches;
}

const std::string &hostCpuName() {
  static const std::string name = readCpuName();
  return name;
}

const std::string &hostIdentity() {
  static const std::string identity = [] {
    std::string text = std::string(hostArchitecture()) + " " + std::to_string(readSignature());
    // The C library has read these already.
    for (int size : {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE})
      text += " " + std::to_string(sysconf(size));
    for (std::string_view feature : hostFeatures())
      text += " " + std::string(feature);
    return text;
  }();
  return identity;
}

std::string_view hostArchitecture() {
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "unknown";
#endif
}

} // namespace normforge
