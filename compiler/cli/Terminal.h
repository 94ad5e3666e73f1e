// Text as a terminal shows it: lines folded at its width, tables without the columns that do not
// fit.
//
// Where standard output is no terminal and $COLUMNS is not set, lines are as long as they get:
// other programs read them.
#pragma once

#include <cstddef>
#include <fmt/format.h>
#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
}

namespace normforge::cli {

/// Columns that a line may have: $COLUMNS, or the terminal's that standard output is. SIZE_MAX
/// where it is none, and after --wide.
size_t lineWidth();
/// The option --wide, by which lines are as long as they get.
void addWideOption(CLI::App &command);

/// `text`, lines of more than `width` columns broken at spaces. A line goes on indented as it
/// began, and by `further` columns.
std::string folded(std::string_view text, size_t width, size_t further = 2);

/// Formats, and prints what there is of whole lines, folded at lineWidth().
void writeFolded(std::string_view text);
template <typename... Args> void printFolded(fmt::format_string<Args...> format, Args &&...args) {
  writeFolded(fmt::format(format, std::forward<Args>(args)...));
}

/// Whether a stream is a terminal that moves its cursor and has colours.
bool isTerminal(FILE *stream);

struct Column {
  std::string title; ///< in several lines where it has '\n'
  size_t width = 0;  ///< of the widest cell
  bool isNumber = false;
  /// Where a line is too long, columns go in the order of this, the least first; kStays never does.
  int importance = kStays;
  static constexpr int kStays = 100;
};

/// Lays out rows one by one, as they come to be known. Two spaces are between columns. Where too
/// few columns can go, the first one has a line of its own, where it is another than the row's
/// before.
class Columns {
public:
  explicit Columns(std::vector<Column> columns, size_t width = lineWidth());

  std::string titles();
  /// A line, or two; as many cells as there are columns.
  std::string row(const std::vector<std::string> &cells);
  /// "not shown in 80 columns, but with --wide: target, compile\n"; empty where all is shown.
  std::string leftOut() const;

private:
  size_t widthFrom(size_t first) const;
  void leaveOut(size_t first);

  std::vector<Column> columns_;
  std::vector<bool> shown_;
  size_t width_;
  bool isFolded_ = false;
  std::string last_; ///< the first cell of the row before
};

} // namespace normforge::cli
