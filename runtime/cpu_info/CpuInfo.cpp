#include "runtime/cpu_info/CpuInfo.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <unistd.h>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
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

enum class Word : uint8_t {
  Leaf1Ecx,
  Leaf1Edx,
  Leaf7Ebx,
  Leaf7Ecx,
  Leaf7Edx,
  Leaf7s1Eax,
  Leaf7s1Edx,
  LeafDs1Eax,
  Ext1Ecx,
  Ext1Edx,
  Avx10,
  Count
};
/// The registers that a feature needs saved.
enum class State : uint8_t { None, Avx, Avx512, Amx };
struct Feature {
  std::string_view name;
  Word word;
  uint8_t bit;
  State state;
};

// Names as in LLVM's X86.td, bits as in Intel's manual, volume 2A, CPUID.
// clang-format off
constexpr Feature features[] = {
    {"x87", Word::Leaf1Edx, 0, State::None},
    {"sse3", Word::Leaf1Ecx, 0, State::None},        {"pclmul", Word::Leaf1Ecx, 1, State::None},
    {"ssse3", Word::Leaf1Ecx, 9, State::None},       {"fma", Word::Leaf1Ecx, 12, State::Avx},
    {"cx16", Word::Leaf1Ecx, 13, State::None},       {"sse4.1", Word::Leaf1Ecx, 19, State::None},
    {"sse4.2", Word::Leaf1Ecx, 20, State::None},     {"crc32", Word::Leaf1Ecx, 20, State::None},
    {"movbe", Word::Leaf1Ecx, 22, State::None},      {"popcnt", Word::Leaf1Ecx, 23, State::None},
    {"aes", Word::Leaf1Ecx, 25, State::None},        {"xsave", Word::Leaf1Ecx, 27, State::None},
    {"avx", Word::Leaf1Ecx, 28, State::Avx},         {"f16c", Word::Leaf1Ecx, 29, State::Avx},
    {"rdrnd", Word::Leaf1Ecx, 30, State::None},      {"cx8", Word::Leaf1Edx, 8, State::None},
    {"cmov", Word::Leaf1Edx, 15, State::None},       {"mmx", Word::Leaf1Edx, 23, State::None},
    {"fxsr", Word::Leaf1Edx, 24, State::None},       {"sse", Word::Leaf1Edx, 25, State::None},
    {"sse2", Word::Leaf1Edx, 26, State::None},       {"fsgsbase", Word::Leaf7Ebx, 0, State::None},
    {"bmi", Word::Leaf7Ebx, 3, State::None},         {"avx2", Word::Leaf7Ebx, 5, State::Avx},
    {"bmi2", Word::Leaf7Ebx, 8, State::None},        {"invpcid", Word::Leaf7Ebx, 10, State::None},
    {"avx512f", Word::Leaf7Ebx, 16, State::Avx512},
    {"avx512dq", Word::Leaf7Ebx, 17, State::Avx512},
    {"rdseed", Word::Leaf7Ebx, 18, State::None},     {"adx", Word::Leaf7Ebx, 19, State::None},
    {"avx512ifma", Word::Leaf7Ebx, 21, State::Avx512},
    {"clflushopt", Word::Leaf7Ebx, 23, State::None}, {"clwb", Word::Leaf7Ebx, 24, State::None},
    {"avx512cd", Word::Leaf7Ebx, 28, State::Avx512}, {"sha", Word::Leaf7Ebx, 29, State::None},
    {"avx512bw", Word::Leaf7Ebx, 30, State::Avx512},
    {"avx512vl", Word::Leaf7Ebx, 31, State::Avx512},
    {"avx512vbmi", Word::Leaf7Ecx, 1, State::Avx512},
    {"avx512vbmi2", Word::Leaf7Ecx, 6, State::Avx512},
    {"gfni", Word::Leaf7Ecx, 8, State::None},        {"vaes", Word::Leaf7Ecx, 9, State::Avx},
    {"vpclmulqdq", Word::Leaf7Ecx, 10, State::Avx},
    {"avx512vnni", Word::Leaf7Ecx, 11, State::Avx512},
    {"avx512bitalg", Word::Leaf7Ecx, 12, State::Avx512},
    {"avx512vpopcntdq", Word::Leaf7Ecx, 14, State::Avx512},
    {"rdpid", Word::Leaf7Ecx, 22, State::None},      {"cldemote", Word::Leaf7Ecx, 25, State::None},
    {"movdiri", Word::Leaf7Ecx, 27, State::None},    {"movdir64b", Word::Leaf7Ecx, 28, State::None},
    {"avx512vp2intersect", Word::Leaf7Edx, 8, State::Avx512},
    {"serialize", Word::Leaf7Edx, 14, State::None},  {"tsxldtrk", Word::Leaf7Edx, 16, State::None},
    {"amx-bf16", Word::Leaf7Edx, 22, State::Amx},
    {"avx512fp16", Word::Leaf7Edx, 23, State::Avx512},
    {"amx-tile", Word::Leaf7Edx, 24, State::Amx},    {"amx-int8", Word::Leaf7Edx, 25, State::Amx},
    {"avxvnni", Word::Leaf7s1Eax, 4, State::Avx},
    {"avx512bf16", Word::Leaf7s1Eax, 5, State::Avx512},
    {"amx-fp16", Word::Leaf7s1Eax, 21, State::Amx},  {"avxifma", Word::Leaf7s1Eax, 23, State::Avx},
    {"avxvnniint8", Word::Leaf7s1Edx, 4, State::Avx},
    {"avxneconvert", Word::Leaf7s1Edx, 5, State::Avx},
    {"avxvnniint16", Word::Leaf7s1Edx, 10, State::Avx},
    {"prefetchi", Word::Leaf7s1Edx, 14, State::None},
    {"xsaveopt", Word::LeafDs1Eax, 0, State::None},  {"xsavec", Word::LeafDs1Eax, 1, State::None},
    {"xsaves", Word::LeafDs1Eax, 3, State::None},    {"sahf", Word::Ext1Ecx, 0, State::None},
    {"avx10.1", Word::Avx10, 0, State::Avx512},      {"avx10.2", Word::Avx10, 1, State::Avx512},
    {"fma4", Word::Ext1Ecx, 16, State::Avx},
    {"lzcnt", Word::Ext1Ecx, 5, State::None},        {"sse4a", Word::Ext1Ecx, 6, State::None},
    {"prfchw", Word::Ext1Ecx, 8, State::None},       {"64bit", Word::Ext1Edx, 29, State::None},
};
// clang-format on

std::vector<std::string_view> readFeatures() {
  unsigned words[static_cast<size_t>(Word::Count)] = {};
  auto word = [&](Word w) -> unsigned & { return words[static_cast<size_t>(w)]; };
  Leaf one = leaf1(), seven = cpuid(7), extended = cpuid(0x80000001);
  word(Word::Leaf1Ecx) = one.ecx;
  word(Word::Leaf1Edx) = one.edx;
  word(Word::Leaf7Ebx) = seven.ebx;
  word(Word::Leaf7Ecx) = seven.ecx;
  word(Word::Leaf7Edx) = seven.edx;
  if (seven.eax >= 1) { // its number of subleaves
    Leaf more = cpuid(7, 1);
    word(Word::Leaf7s1Eax) = more.eax;
    word(Word::Leaf7s1Edx) = more.edx;
    // AVX10 is a version, not bits: bit v - 1 here stands for version v or later.
    constexpr unsigned avx10 = 1u << 19;
    if (more.edx & avx10)
      word(Word::Avx10) = (1u << (cpuid(0x24).ebx & 0xF)) - 1;
  }
  word(Word::LeafDs1Eax) = cpuid(0xD, 1).eax;
  word(Word::Ext1Ecx) = extended.ecx;
  word(Word::Ext1Edx) = extended.edx;

  uint64_t states = enabledStates();
  auto saved = [&](uint64_t mask) { return (states & mask) == mask; };
  std::vector<std::string_view> names;
  for (const Feature &feature : features) {
    bool usable = feature.state == State::None || (feature.state == State::Avx && saved(0x6)) ||
                  (feature.state == State::Avx512 && saved(0xE6)) ||
                  (feature.state == State::Amx && saved(0x60000));
    if (usable && (word(feature.word) >> feature.bit & 1))
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

std::vector<std::string_view> readFeatures() { return {}; }
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

std::span<const std::string_view> hostFeatures() {
  static const std::vector<std::string_view> names = readFeatures();
  return names;
}

bool hostHasFeature(std::string_view name) {
  std::span<const std::string_view> names = hostFeatures();
  return std::binary_search(names.begin(), names.end(), name);
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
    // What the C library has read already.
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
