// Numbers and byte strings of any length, one after the other: what cache entries and the talk with
// a compiler's process are made of. Numbers have 8 bytes, little-endian; a byte string is its
// length and its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace normforge {

inline void putField(std::vector<std::byte> &bytes, uint64_t value) {
  for (int shift = 0; shift < 64; shift += 8)
    bytes.push_back(static_cast<std::byte>(value >> shift));
}
inline void putField(std::vector<std::byte> &bytes, std::span<const std::byte> data) {
  putField(bytes, data.size());
  bytes.insert(bytes.end(), data.begin(), data.end());
}
inline void putField(std::vector<std::byte> &bytes, std::string_view text) {
  putField(bytes, std::as_bytes(std::span(text)));
}

/// Takes fields from the front; `ok` is false once one is cut short.
struct Fields {
  std::span<const std::byte> rest;
  bool ok = true;

  uint64_t number() {
    uint64_t value = 0;
    if (rest.size() < 8) {
      ok = false;
      return 0;
    }
    for (size_t i = 0; i < 8; ++i)
      value |= static_cast<uint64_t>(rest[i]) << (8 * i);
    rest = rest.subspan(8);
    return value;
  }
  std::span<const std::byte> data() {
    const uint64_t size = number();
    if (!ok || size > rest.size()) {
      ok = false;
      return {};
    }
    auto taken = rest.first(size);
    rest = rest.subspan(size);
    return taken;
  }
  std::string text() {
    auto raw = data();
    return {reinterpret_cast<const char *>(raw.data()), raw.size()};
  }
};

} // namespace normforge
