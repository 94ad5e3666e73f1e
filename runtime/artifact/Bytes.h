// Fields of files: little-endian, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace normforge {

// Far above what any kernel needs, and low enough that counts can be trusted with memory.
inline constexpr size_t maxText = 1 << 16;
inline constexpr size_t maxList = 256;

class Writer {
public:
  std::vector<std::byte> bytes;

  template <typename T> void integer(T value) {
    for (size_t i = 0; i < sizeof(T); ++i)
      bytes.push_back(static_cast<std::byte>(static_cast<uint64_t>(value) >> (8 * i)));
  }
  void count(size_t n) { integer(static_cast<uint32_t>(n)); }
  void text(std::string_view text) {
    count(text.size());
    auto *data = reinterpret_cast<const std::byte *>(text.data());
    bytes.insert(bytes.end(), data, data + text.size());
  }
  void texts(const std::vector<std::string> &list) {
    count(list.size());
    for (const std::string &item : list)
      text(item);
  }
};

/// Reads fields in the order they were written. After the first error every read gives a neutral
/// value and `error` says what was wrong.
class Reader {
public:
  /// `what` is read, in errors: "artifact".
  Reader(std::span<const std::byte> bytes, const char *what, std::string &error)
      : rest_(bytes), what_(what), error_(error) {}

  bool failed() const { return failed_; }
  bool atEnd() const { return rest_.empty(); }
  void fail(std::string message) {
    if (!std::exchange(failed_, true))
      error_ = std::move(message);
  }

  template <typename T> T integer() {
    std::span<const std::byte> raw = take(sizeof(T));
    uint64_t value = 0;
    for (size_t i = 0; i < raw.size(); ++i)
      value |= static_cast<uint64_t>(raw[i]) << (8 * i);
    return static_cast<T>(value);
  }
  size_t count(size_t most, const char *what) {
    size_t n = integer<uint32_t>();
    if (n <= most)
      return failed_ ? 0 : n;
    fail(std::string(what_) + " has " + std::to_string(n) + " " + what + "; at most " +
         std::to_string(most) + " are allowed");
    return 0;
  }
  std::string text() {
    std::span<const std::byte> raw = take(count(maxText, "characters in a text"));
    return std::string(reinterpret_cast<const char *>(raw.data()), raw.size());
  }
  std::vector<std::string> texts(const char *what) {
    std::vector<std::string> list;
    for (size_t n = count(maxList, what); n > 0 && !failed_; --n)
      list.push_back(text());
    return list;
  }
  /// An enumerator of `values` of them.
  template <typename E> E enumerator(unsigned values, const char *what) {
    unsigned value = integer<uint8_t>();
    if (value >= values)
      fail(std::string(what_) + " has an unknown " + what);
    return failed_ ? E() : static_cast<E>(value);
  }
  bool boolean() { return enumerator<uint8_t>(2, "truth value") != 0; }
  std::span<const std::byte> take(size_t n) {
    if (n > rest_.size())
      fail(std::string(what_) + " is truncated");
    if (failed_)
      return {};
    std::span<const std::byte> taken = rest_.first(n);
    rest_ = rest_.subspan(n);
    return taken;
  }

private:
  std::span<const std::byte> rest_;
  const char *what_;
  std::string &error_;
  bool failed_ = false;
};

} // namespace normforge
