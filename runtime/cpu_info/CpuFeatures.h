// Where a CPU says which features it has.
//
// The names are LLVM's. Read by this library on its host, and by the compiler, which writes code
// that asks the same.
#pragma once

#include <cstdint>
#include <string_view>

namespace normforge {

namespace x86 {

/// A register of a CPUID leaf. Avx10 is a word of its own making: bit v - 1 stands for version v or
/// later.
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
struct Source {
  uint32_t leaf, subleaf;
  unsigned result; ///< 0 to 3: eax, ebx, ecx, edx
};
/// Where the words but Avx10 come from.
inline constexpr Source sources[] = {{1, 0, 2},          {1, 0, 3},         {7, 0, 1}, {7, 0, 2},
                                     {7, 0, 3},          {7, 1, 0},         {7, 1, 3}, {0xD, 1, 0},
                                     {0x80000001, 0, 2}, {0x80000001, 0, 3}};

/// The registers that the operating system must save for a feature, and their bits in XCR0.
enum class State : uint8_t { None, Avx, Avx512, Amx };
inline constexpr uint64_t stateBits[] = {0, 0x6, 0xE6, 0x60000};

struct Feature {
  std::string_view name;
  Word word;
  uint8_t bit;
  State state;
};

// Names as in LLVM's X86.td, bits as in Intel's manual, volume 2A, CPUID.
// clang-format off
inline constexpr Feature features[] = {
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

} // namespace x86

namespace aarch64 {

/// A bit of the auxiliary vector's AT_HWCAP (word 1) or AT_HWCAP2 (word 2), as Linux' asm/hwcap.h
/// has them.
struct Feature {
  std::string_view name;
  uint8_t word, bit;
};
inline constexpr Feature features[] = {
    {"fp-armv8", 1, 0},    {"neon", 1, 1},  {"fullfp16", 1, 10},
    {"sve", 1, 22},        {"sve2", 2, 1},  {"bf16", 2, 14},
    {"sve-b16b16", 2, 45}, {"cssc", 2, 34}, {"sve2p1", 2, 36},
};

} // namespace aarch64

} // namespace normforge
