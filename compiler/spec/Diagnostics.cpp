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
  Place place = findPlace(text_, line.offset);
  std::string shown, indent;
  std::vector<size_t> characters; // where each character up to the place begins in `shown`
  size_t column = 1;
  std::string_view rest =
      text_.substr(place.lineBegin, std::max(place.lineEnd, line.offset) - place.lineBegin);
  size_t at = place.lineBegin, caret = 0, shownFrom = 0;
  while (!rest.empty()) {
    if (at <= line.offset) {
      characters.push_back(shown.size());
      caret = characters.size() - 1;
    }
    size_t length = characterLength(rest);
    auto first = static_cast<unsigned char>(rest.front());
    bool printable = length > 1 || first == '\t' || (first >= 0x20 && first < 0x7f);
    shown += printable ? rest.substr(0, length) : std::string_view("?");
    at += length;
    rest.remove_prefix(length);
  }
  if (line.offset >= at && line.offset > place.lineBegin) { // the end of the line
    characters.push_back(shown.size());
    caret = characters.size() - 1;
  }
  column = caret + 1;
  if (shown.size() > maxShownColumns) {
    size_t firstCharacter = caret > columnsBeforePlace ? caret - columnsBeforePlace : 0;
    shownFrom = characters.empty() ? 0 : characters[firstCharacter];
    characters.erase(characters.begin(),
                     characters.begin() + std::min(firstCharacter, characters.size()));
    caret -= firstCharacter;
    shown = shown.substr(shownFrom);
    size_t end = std::min(maxShownColumns, shown.size());
    while (end < shown.size() && isContinuation(shown[end]))
      --end;
    shown.resize(end);
    for (size_t &character : characters)
      character -= shownFrom;
  }
  out += fmt::format("{}:{}:{}: {}: {}\n", sourceName_, place.line, column, kind, line.message);
  if (shown.find_first_not_of(" \t") == std::string::npos)
    return;
  for (size_t i = 0; i < caret; ++i)
    indent += shown[characters[i]] == '\t' ? '\t' : ' ';
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
    out += fmt::format("{}: {} more errors\n", sourceName_, order.size() - maxShownErrors);
  if (!out.empty())
    out.pop_back();
  return out;
}

std::string quoted(std::string_view text) {
  constexpr size_t maxCharacters = 40;
  std::string out = "'";
  for (size_t shown = 0; !text.empty(); ++shown) {
    if (shown == maxCharacters) {
      out += "...";
      break;
    }
    size_t length = characterLength(text);
    auto first = static_cast<unsigned char>(text.front());
    if (text.front() == '\n')
      out += "\\n";
    else if (length == 1 && (first < 0x20 || first >= 0x7f))
      out += fmt::format("\\x{:02x}", first);
    else
      out += text.substr(0, length);
    text.remove_prefix(length);
  }
  return out + "'";
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
