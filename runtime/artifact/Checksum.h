// A checksum against damage, not against an attacker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace normforge {

/// 64 bits over bytes, equal on every machine. Each step is a bijection of the state for a given
/// word and of the word for a given state, so that a change within one word is always seen.
inline uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr uint64_t prime = 0x9E3779B185EBCA87u; // of xxHash
  auto mix = [](uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * prime;
    return hash ^ (hash >> 29);
  };
  uint64_t hash = mix(0x6E6F726D666F7267u, bytes.size());
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    if constexpr (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)
      word = __builtin_bswap64(word);
    hash = mix(hash, word);
  }
  uint64_t tail = 0;
  for (size_t shift = 0; i < bytes.size(); ++i, shift += 8)
    tail |= static_cast<uint64_t>(bytes[i]) << shift;
  return mix(mix(hash, tail), prime);
}

} // namespace normforge
