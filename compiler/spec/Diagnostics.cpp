#include "compiler/spec/Diagnostics.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/ConvertUTF.h"

#include <fmt/format.h>

#include <algorithm>

namespace normforge::spec {
namespace {

/// A file of nothing but errors would bury the first ones, which are the ones worth reading.
constexpr size_t maxShownErrors = 20;
/// Lines wider than this are cut to a window around the place.
constexpr size_t maxShownColumns = 160;
constexpr size_t columnsBeforePlace = 60;

bool isContinuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

struct Place {
  size_t line = 1, lineBegin = 0, lineEnd = 0;
};

/// Lines end as YAML's do: \n, \r\n or \r.
Place findPlace(std::string_view text, size_t offset) {
  Place place;
  for (size_t i = 0; i < offset; ++i) {
    if (text[i] == '\n' || (text[i] == '\r' && (i + 1 == text.size() || text[i + 1] != '\n'))) {
      ++place.line;
      place.lineBegin = i + 1;
    }
  }
  place.lineEnd = std::min(text.find_first_of("\r\n", place.lineBegin), text.size());
  return place;
}

/// Length of the UTF-8 character at the front, 1 for a byte that starts none.
size_t characterLength(std::string_view text) {
  const auto *begin = reinterpret_cast<const llvm::UTF8 *>(text.data());
  size_t length = std::min<size_t>(llvm::getNumBytesForUTF8(*begin), text.size());
  return llvm::isLegalUTF8Sequence(begin, begin + length) ? length : 1;
}

/// Whether a terminal shows a character: no control character (C0, DEL, C1), and none that turns
/// the direction of what follows, so that what is read is what is there.
bool isPrintable(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1)
    return byte(0) >= 0x20 && byte(0) < 0x7f;
  if (character.size() == 2) // U+0080 to U+009F; U+061C
    return !(byte(0) == 0xC2 && byte(1) < 0xA0) && !(byte(0) == 0xD8 && byte(1) == 0x9C);
  if (character.size() != 3 || byte(0) != 0xE2)
    return true;
  const unsigned code = (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu); // U+2000 and this
  return !(code == 0x0E || code == 0x0F || (code >= 0x28 && code <= 0x2E) ||
           (code >= 0x66 && code <= 0x69));
}

/// Text with what cannot be shown replaced.
std::string shownText(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t length = characterLength(text);
    out += isPrintable(text.substr(0, length)) ? text.substr(0, length) : std::string_view("?");
    text.remove_prefix(length);
  }
  return out;
}

} // namespace

void Diagnostics::error(size_t offset, std::string message) {
  entries_.push_back({{std::min(offset, text_.size()), std::move(message)}, {}, false});
}

void Diagnostics::unbuilt(size_t offset, std::string message) {
  error(offset, std::move(message));
  entries_.back().unbuilt = true;
}

void Diagnostics::note(size_t offset, std::string message) {
  if (!entries_.empty())
    entries_.back().notes.push_back({std::min(offset, text_.size()), std::move(message)});
}

void Diagnostics::render(const Line &line, std::string_view kind, std::string &out) const {
  const Place place = findPlace(text_, line.offset);
  const size_t end = std::max(place.lineEnd, line.offset);
  // Columns count characters. A line may be as long as a spec: no more of it is read than is shown.
  size_t column = 1;
  for (size_t i = place.lineBegin; i < line.offset; ++i)
    column += !isContinuation(text_[i]);
  size_t begin = place.lineBegin;
  if (end - begin > maxShownColumns && column > columnsBeforePlace + 1) {
    begin = line.offset;
    for (size_t characters = 0; characters < columnsBeforePlace;
         characters += !isContinuation(text_[begin]))
      --begin;
  }
  std::string shown, indent;
  size_t at = begin;
  for (size_t characters = 0; at < end && characters < maxShownColumns; ++characters) {
    const std::string_view rest = text_.substr(at, end - at);
    const size_t length = characterLength(rest);
    const bool isShown = rest.front() == '\t' || isPrintable(rest.substr(0, length));
    shown += isShown ? rest.substr(0, length) : std::string_view("?");
    if (at < line.offset)
      indent += rest.front() == '\t' ? '\t' : ' ';
    at += length;
  }
  out += fmt::format("{}:{}:{}: {}: {}\n", shownText(sourceName_), place.line, column, kind,
                     line.message);
  if (shown.find_first_not_of(" \t") == std::string::npos)
    return;
  out += fmt::format("{}\n{}^\n", shown, indent);
}

std::string Diagnostics::render() const {
  std::vector<const Entry *> order;
  for (const Entry &entry : entries_)
    order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](const Entry *a, const Entry *b) {
    return std::pair(a->unbuilt, a->error.offset) < std::pair(b->unbuilt, b->error.offset);
  });
  std::string out;
  for (size_t i = 0; i < std::min(order.size(), maxShownErrors); ++i) {
    render(order[i]->error, "error", out);
    for (const Line &note : order[i]->notes)
      render(note, "note", out);
  }
  if (order.size() > maxShownErrors)
    out +=
        fmt::format("{}: {} more errors\n", shownText(sourceName_), order.size() - maxShownErrors);
  if (!out.empty())
    out.pop_back();
  return out;
}

std::string quoted(std::string_view text) { return "'" + shortened(text) + "'"; }

std::string shortened(std::string_view text) {
  constexpr size_t maxCharacters = 40;
  std::string out;
  for (size_t shown = 0; !text.empty(); ++shown) {
    if (shown == maxCharacters) {
      out += "...";
      break;
    }
    size_t length = characterLength(text);
    if (text.front() == '\n')
      out += "\\n";
    else if (isPrintable(text.substr(0, length)))
      out += text.substr(0, length);
    else
      for (char byte : text.substr(0, length))
        out += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
    text.remove_prefix(length);
  }
  return out;
}

std::string listed(std::span<const std::string_view> words, std::string_view last) {
  std::string out;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0)
      out += i + 1 == words.size() ? fmt::format(" {} ", last) : ", ";
    out += words[i];
  }
  return out;
}

std::optional<std::string_view> nearest(std::string_view text,
                                        std::span<const std::string_view> words) {
  constexpr size_t maxLength = 64; // the distance takes quadratic time
  if (text.empty() || text.size() > maxLength)
    return std::nullopt;
  std::string lower = llvm::StringRef(text).lower();
  unsigned limit = std::max<unsigned>(1, static_cast<unsigned>(text.size() / 3));
  std::optional<std::string_view> best;
  for (std::string_view word : words) {
    unsigned distance =
        llvm::StringRef(lower).edit_distance(llvm::StringRef(word).lower(), true, limit);
    if (distance <= limit && distance < word.size()) {
      best = word;
      if (distance == 0)
        break;
      limit = distance - 1;
    }
  }
  return best;
}

} // namespace normforge::spec
