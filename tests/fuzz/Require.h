// Conditions that must hold whatever an input is. Where one does not, the fuzzer's report begins
// with why.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace normforge {

/// Ends the run where `holds` is false: libFuzzer keeps the input.
inline void require(bool holds, const char *what, std::string_view text = {}) {
  if (holds)
    return;
  std::fprintf(stderr, "FUZZ: not so: %s\n", what);
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fputc('\n', stderr);
  std::abort();
}

/// An error is there to be read on a terminal: it says something, its lines are not the size of the
/// input, and nothing of a stranger's file moves the cursor.
inline void requireReadable(std::string_view error, size_t maxLines, size_t maxLineBytes) {
  require(!error.empty(), "an error has a text");
  size_t lines = 1, lineBytes = 0;
  for (char c : error) {
    const auto byte = static_cast<unsigned char>(c);
    lines += c == '\n';
    lineBytes = c == '\n' ? 0 : lineBytes + 1;
    require((byte >= 0x20 && byte != 0x7f) || c == '\n' || c == '\t',
            "an error's text has no control characters", error);
    require(lineBytes <= maxLineBytes, "a line of an error is short", error);
  }
  require(lines <= maxLines, "an error has few lines", error);
}

} // namespace normforge
