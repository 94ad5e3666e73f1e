#include "compiler/spec/HostArray.h"

#include "runtime/artifact/Element.h"

#include <bit>
#include <cassert>
#include <cmath>

namespace normforge {

namespace {

/// The nearest number with `digits` binary digits and no place below 2^`least`, ties to even.
double roundTo(double value, int digits, int least) {
  int exponent;
  std::frexp(value, &exponent);
  const double place = std::ldexp(1.0, std::max(exponent - digits, least));
  return std::nearbyint(value / place) * place;
}

uint16_t encodeBf16(double value) {
  if (!std::isnan(value) && !std::isinf(value))
    value = roundTo(value, 8, -133);
  auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  if (std::isnan(value))
    bits |= 0x400000; // quiet: a NaN whose upper half is not one of infinity
  return static_cast<uint16_t>(bits >> 16);
}

uint16_t encodeF16(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value))
    return sign | 0x7E00;
  const double magnitude = std::isinf(value) ? 0x1p16 : std::abs(roundTo(value, 11, -24));
  if (magnitude >= 0x1p16)
    return sign | 0x7C00;
  if (magnitude < 0x1p-14)
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(magnitude * 0x1p24));
  int exponent; // magnitude is in [0.5, 1) times 2^exponent
  const double fraction = std::frexp(magnitude, &exponent);
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 |
                               static_cast<int>((2 * fraction - 1) * 0x1p10));
}

} // namespace

HostArray::HostArray(DType dtype, std::vector<int64_t> shape)
    : dtype(dtype), shape(std::move(shape)) {
  bytes.resize(static_cast<size_t>(count() / elementsPerWord(dtype)) * byteSize(dtype));
}

int64_t HostArray::count() const {
  int64_t product = 1;
  for (int64_t size : shape)
    product *= size;
  return product;
}

double HostArray::get(int64_t i) const {
  assert(i >= 0 && i < count());
  return elementOf(dtype, bytes, static_cast<uint64_t>(i));
}

void HostArray::set(int64_t i, double value) {
  assert(i >= 0 && i < count());
  switch (dtype) {
  case DType::F32:
    data<float>()[i] = static_cast<float>(value);
    return;
  case DType::F64:
    data<double>()[i] = value;
    return;
  case DType::BF16:
    data<uint16_t>()[i] = encodeBf16(value);
    return;
  case DType::F16:
    data<uint16_t>()[i] = encodeF16(value);
    return;
  case DType::Bit: {
    uint8_t &byte = data<uint8_t>()[i / 8];
    const int bit = 1 << (i % 8);
    byte = static_cast<uint8_t>(value != 0 ? byte | bit : byte & ~bit);
    return;
  }
  }
}

} // namespace normforge
