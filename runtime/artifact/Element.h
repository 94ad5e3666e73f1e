// Elements of arrays as numbers, whatever their dtype.
#pragma once

#include "runtime/artifact/Artifact.h"

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>

namespace normforge {

inline double decodeF16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                           : exponent == 0 ? mantissa * 0x1p-24
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

/// Element i of a dense array; of bits 0 or 1.
inline double elementOf(DType dtype, std::span<const std::byte> bytes, uint64_t i) {
  auto as = [&](auto value) {
    std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
    return value;
  };
  switch (dtype) {
  case DType::F32:
    return as(float());
  case DType::F64:
    return as(double());
  case DType::BF16:
    return std::bit_cast<float>(static_cast<uint32_t>(as(uint16_t())) << 16);
  case DType::F16:
    return decodeF16(as(uint16_t()));
  case DType::Bit:
    return static_cast<uint8_t>(bytes[i / 8]) >> (i % 8) & 1;
  }
  return 0;
}

} // namespace normforge
