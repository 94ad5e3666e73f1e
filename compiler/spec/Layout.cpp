#include "compiler/spec/Layout.h"

#include "compiler/spec/Values.h"

#include "llvm/ADT/StringRef.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace normforge::spec {
namespace {

constexpr std::string_view letters = "nbctldhwuvpqr"; // samples, channels, positions, others
constexpr std::string_view expectedLetters = "n, b, c, t, l, d, h, w, or u, v, p, q, r of others";
constexpr int64_t minBlock = 2, maxBlock = 64;

bool isUpper(char c) { return c >= 'A' && c <= 'Z'; }
char lower(char c) { return isUpper(c) ? static_cast<char>(c - 'A' + 'a') : c; }

/// Fills `layout`; gives what is wrong with the text, or empty.
std::string parse(std::string_view text, Layout &layout) {
  layout.text = text;
  size_t axesEnd = std::min(text.find_first_of("0123456789"), text.size());
  std::string_view axes = text.substr(0, axesEnd), suffix = text.substr(axesEnd);
  if (axes.empty())
    return "has no axes";
  bool allUpper = std::all_of(axes.begin(), axes.end(), isUpper);
  std::string lowered = llvm::StringRef(axes).lower();
  if (allUpper && suffix.empty() && axes.size() > 1 && axes.size() <= letters.size() &&
      lowered.find_first_not_of(letters) == std::string::npos)
    return fmt::format("is in upper case; did you mean '{}'?", lowered);
  for (size_t i = 0; i < axes.size(); ++i) {
    char letter = lower(axes[i]);
    if (letters.find(letter) == std::string_view::npos)
      return fmt::format("has the unknown axis {}; expected {}",
                         quoted(text.substr(i, axes[i] & 0x80 ? axesEnd - i : 1)), expectedLetters);
    if (layout.axes.find(letter) != std::string::npos)
      return fmt::format("has axis '{}' twice", letter);
    layout.axes += letter;
    if (!isUpper(axes[i]))
      continue;
    if (layout.isBlocked())
      return fmt::format("blocks axis '{}' and axis '{}'; expected one blocked axis",
                         layout.axes[static_cast<size_t>(layout.blockedAxis)], letter);
    layout.blockedAxis = static_cast<int>(i);
  }
  if (!layout.isBlocked() && suffix.empty())
    return {};
  if (suffix.empty()) {
    char letter = axes[static_cast<size_t>(layout.blockedAxis)];
    return fmt::format("blocks axis '{0}' without a block size; expected '{1}' or '{2}16{3}'",
                       letter, lowered, axes, lower(letter));
  }
  size_t digits = std::min(suffix.find_first_not_of("0123456789"), suffix.size());
  std::string_view rest = suffix.substr(digits);
  if (rest.size() != 1 || letters.find(rest[0]) == std::string_view::npos)
    return fmt::format("ends in {}; expected one block such as '16c'", quoted(suffix));
  if (!layout.isBlocked() || layout.axes[static_cast<size_t>(layout.blockedAxis)] != rest[0]) {
    if (layout.axes.find(rest[0]) == std::string::npos)
      return fmt::format("blocks axis '{}', which it has not", rest[0]);
    return fmt::format("has a block of axis '{0}', which must then be the one in upper case: '{1}'",
                       rest[0], static_cast<char>(std::toupper(rest[0])));
  }
  std::string_view number = suffix.substr(0, digits);
  for (char c : number)
    layout.block = layout.block > maxBlock ? layout.block : layout.block * 10 + (c - '0');
  if (layout.block < minBlock || layout.block > maxBlock ||
      (layout.block & (layout.block - 1)) != 0 || number[0] == '0')
    return fmt::format("has the block {}; expected a power of two from {} to {}", quoted(number),
                       minBlock, maxBlock);
  return {};
}

/// The layout of MATLAB's labels, or what is wrong with them. S becomes w, h, d in their order, C
/// c, B n, T t, U one of the letters of others.
std::string parseLabels(std::string_view labels, Layout &layout) {
  constexpr std::string_view spatial = "whd", others = "uvpqr";
  size_t spatials = 0, free = 0;
  for (char label : labels) {
    char letter = 0;
    if (label == 'S' && spatials < spatial.size())
      letter = spatial[spatials++];
    else if (label == 'U' && free < others.size())
      letter = others[free++];
    else if (label == 'S' || label == 'U')
      return fmt::format("has more than {} labels {}",
                         label == 'S' ? spatial.size() : others.size(), label);
    else
      letter = label == 'C' ? 'c' : label == 'B' ? 'n' : 't';
    if (layout.axes.find(letter) != std::string::npos)
      return fmt::format("has label {} twice", label);
    layout.axes.insert(layout.axes.begin(), letter);
  }
  layout.text = layout.axes;
  return {};
}

} // namespace

std::optional<Layout> readLayout(const Value &value, std::string_view key, Diagnostics &diagnostics,
                                 std::string &labels) {
  if (std::optional<std::string_view> word = asWord(value)) {
    if (*word == "channels_first" || *word == "channels_last") {
      diagnostics.error(value.offset,
                        fmt::format("unknown {} {}; did you mean '{}'?", key, quoted(*word),
                                    *word == "channels_first" ? "nchw" : "nhwc"));
      return std::nullopt;
    }
    Layout layout;
    const bool isLabels = word->find_first_not_of("SCBTU") == std::string_view::npos;
    std::string problem = isLabels ? parseLabels(*word, layout) : parse(*word, layout);
    if (isLabels)
      labels = *word;
    if (problem.empty())
      return layout;
    diagnostics.error(value.offset, fmt::format("{} {} {}", key, quoted(*word), problem));
    return std::nullopt;
  }
  diagnostics.error(
      value.offset,
      fmt::format("{} must be a layout such as 'nchw' or 'nChw16c'; found {}", key, found(value)));
  return std::nullopt;
}

std::optional<Layout> defaultLayout(int rank) {
  Layout layout;
  if (rank == 1)
    layout.text = layout.axes = "c";
  else if (rank == 2)
    layout.text = layout.axes = "nc";
  else
    return std::nullopt;
  return layout;
}

} // namespace normforge::spec
