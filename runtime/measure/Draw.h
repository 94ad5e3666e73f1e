// Numbers by their index, the same on every machine: what inputs are drawn from.
#pragma once

#include <cstdint>
#include <string_view>

namespace normforge {

/// The purpose that numbers are drawn for: each stream is independent of the others.
using Stream = uint64_t;
/// FNV-1a, of an argument's name or another word.
constexpr Stream streamOf(std::string_view name) {
  Stream hash = 0xcbf29ce484222325;
  for (char c : name)
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

/// A value depends on nothing but the seed, the stream and its index. No function of the C library
/// is involved.
class Draw {
public:
  explicit Draw(uint64_t seed) : seed_(seed) {}

  uint64_t bits(Stream stream, uint64_t index) const {
    return mix(mix(mix(seed_) + stream) + index);
  }
  /// 0 to 1, without 1.
  double uniform(Stream stream, uint64_t index) const {
    return static_cast<double>(bits(stream, index) >> 11) * 0x1p-53;
  }
  /// Mean 0, deviation 1, between -6 and 6: the sum of twelve uniform 16-bit numbers, exact in f64.
  double normal(Stream stream, uint64_t index) const {
    double sum = 0;
    for (uint64_t part = 0; part < 3; ++part)
      for (uint64_t word = bits(stream, 3 * index + part), i = 0; i < 4; ++i, word >>= 16)
        sum += static_cast<double>(word & 0xffff) + 0.5;
    return sum * 0x1p-16 - 6;
  }

private:
  // The finalizer of splitmix64 (Steele, Lea, Flood 2014).
  static uint64_t mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t seed_;
};

} // namespace normforge
