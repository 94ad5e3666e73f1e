#include "compiler/cli/Terminal.h"

#include <CLI/CLI.hpp>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/ioctl.h>
#include <unistd.h>

namespace normforge::cli {

namespace {

/// Whether --wide was given: one for the process, as standard output is.
bool isWide = false;

/// Columns of a text in UTF-8.
size_t columnsOf(std::string_view text) {
  return static_cast<size_t>(
      std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

/// Lines of a title, the first of which may be empty.
std::vector<std::string_view> linesOf(std::string_view text) {
  std::vector<std::string_view> lines;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

std::string padded(std::string_view text, const Column &column) {
  const size_t columns = columnsOf(text);
  const std::string space(column.width > columns ? column.width - columns : 0, ' ');
  return column.isNumber ? space + std::string(text) : std::string(text) + space;
}

/// Spaces between words stay, but for those where the line is broken.
void foldLine(std::string_view line, size_t width, size_t further, std::string &out) {
  size_t at = std::min(line.find_first_not_of(' '), line.size());
  const std::string indent(std::min(at + further, width / 2), ' ');
  std::string current(line.substr(0, at));
  for (bool hasWord = false; at < line.size(); hasWord = true) {
    const size_t begin = std::min(line.find_first_not_of(' ', at), line.size());
    const size_t end = std::min(line.find(' ', begin), line.size());
    std::string_view space = line.substr(at, begin - at);
    const std::string_view word = line.substr(begin, end - begin);
    if (hasWord && columnsOf(current) + space.size() + columnsOf(word) > width) {
      out += current + '\n';
      current = indent;
      space = {};
    }
    current.append(space).append(word);
    at = end;
  }
  out += current;
}

} // namespace

bool isTerminal(FILE *stream) {
  const char *kind = std::getenv("TERM");
  return isatty(fileno(stream)) && !(kind && std::string_view(kind) == "dumb");
}

size_t lineWidth() {
  constexpr size_t least = 40; // a terminal of less folds as it likes
  if (isWide)
    return SIZE_MAX;
  if (const char *word = std::getenv("COLUMNS"); word && *word) {
    char *end;
    const unsigned long columns = std::strtoul(word, &end, 10);
    if (*end == '\0' && columns > 0)
      return std::max<size_t>(columns, least);
  }
  winsize size{};
  if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    return std::max<size_t>(size.ws_col, least);
  return SIZE_MAX;
}

void addWideOption(CLI::App &command) {
  command.add_flag_function(
      "--wide", [](int64_t) { isWide = true; },
      "Print lines as long as they get, with all columns, on any terminal");
}

std::string folded(std::string_view text, size_t width, size_t further) {
  std::string all;
  while (!text.empty()) {
    const size_t length = std::min(text.find('\n'), text.size());
    const bool isWhole = length < text.size();
    foldLine(text.substr(0, length), width, further, all);
    if (isWhole)
      all += '\n';
    text.remove_prefix(length + isWhole);
  }
  return all;
}

void writeFolded(std::string_view text) {
  static std::string begun; // a line whose end is to come
  begun += text;
  const size_t whole = begun.rfind('\n');
  if (whole == std::string::npos)
    return;
  const std::string lines = begun.substr(0, whole + 1);
  begun.erase(0, whole + 1);
  const size_t width = lineWidth();
  const std::string out = width == SIZE_MAX ? lines : folded(lines, width);
  std::fwrite(out.data(), 1, out.size(), stdout);
}

Columns::Columns(std::vector<Column> columns, size_t width)
    : columns_(std::move(columns)), shown_(columns_.size(), true), width_(width) {
  for (Column &column : columns_)
    for (std::string_view line : linesOf(column.title))
      column.width = std::max(column.width, columnsOf(line));
  leaveOut(0);
  isFolded_ = widthFrom(0) > width_ && columns_.size() > 1;
  if (!isFolded_)
    return;
  shown_.assign(columns_.size(), true); // the first one is beside no other now
  leaveOut(1);
}

size_t Columns::widthFrom(size_t first) const {
  size_t sum = 0;
  for (size_t i = first; i < columns_.size(); ++i)
    if (shown_[i])
      sum += columns_[i].width + (sum > 0 || first > 0 ? 2 : 0);
  return sum;
}

/// Columns from the `first` on, until the others fit beside each other.
void Columns::leaveOut(size_t first) {
  while (widthFrom(first) > width_) {
    size_t least = columns_.size();
    for (size_t i = first; i < columns_.size(); ++i)
      if (shown_[i] && columns_[i].importance < Column::kStays &&
          (least == columns_.size() || columns_[i].importance < columns_[least].importance))
        least = i;
    if (least == columns_.size())
      return;
    shown_[least] = false;
  }
}

std::string Columns::row(const std::vector<std::string> &cells) {
  std::string text;
  for (size_t i = 0; i < columns_.size() && i < cells.size(); ++i) {
    if (!shown_[i])
      continue;
    if (i == 0 && isFolded_)
      text = cells[0].empty() || cells[0] == last_ ? "" : cells[0] + "\n";
    else
      text += (i == 0 ? "" : "  ") + padded(cells[i], columns_[i]);
  }
  while (text.ends_with(' '))
    text.pop_back();
  last_ = cells.front();
  return text + "\n";
}

std::string Columns::titles() {
  size_t count = 0;
  for (const Column &column : columns_)
    count = std::max(count, linesOf(column.title).size());
  std::string text;
  for (size_t line = 0; line < count; ++line) {
    std::vector<std::string> cells;
    for (const Column &column : columns_) {
      const auto lines = linesOf(column.title);
      cells.emplace_back(line < lines.size() ? lines[line] : "");
    }
    text += row(cells);
  }
  return text;
}

std::string Columns::leftOut() const {
  std::vector<std::string> names;
  for (size_t i = 0; i < columns_.size(); ++i)
    if (!shown_[i]) {
      std::string name = columns_[i].title;
      std::ranges::replace(name, '\n', ' ');
      names.push_back(name);
    }
  return names.empty() ? ""
                       : folded(fmt::format("not shown in {} columns, but with --wide: {}\n",
                                            width_, fmt::join(names, ", ")),
                                width_);
}

} // namespace normforge::cli
