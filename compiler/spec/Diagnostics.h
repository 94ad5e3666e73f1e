// Errors in a text, with file, line, column and a caret.
//
// Enters: byte offsets into a text and messages. Leaves: one text, the errors in order of position.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace normforge::spec {

class Diagnostics {
public:
  /// Both must outlive this. Errors in `text` are shown as errors in the file `sourceName`.
  Diagnostics(std::string_view text, std::string_view sourceName)
      : text_(text), sourceName_(sourceName) {}

  void error(size_t offset, std::string message);
  /// Right, but not built yet: shown after the errors, because what is wrong matters whatever is
  /// built.
  void unbuilt(size_t offset, std::string message);
  /// Belongs to the latest error.
  void note(size_t offset, std::string message);
  bool empty() const { return entries_.empty(); }
  /// Changes with every error: equal marks say that none came between them.
  using Mark = size_t;
  Mark mark() const { return entries_.size(); }
  /// Every error as `file:line:col: error: ...`, its line and a caret; columns count characters.
  /// Without a newline at the end.
  std::string render() const;

private:
  struct Line {
    size_t offset;
    std::string message;
  };
  struct Entry {
    Line error;
    std::vector<Line> notes;
    bool unbuilt;
  };
  void render(const Line &line, std::string_view kind, std::string &out) const;

  std::string_view text_, sourceName_;
  std::vector<Entry> entries_;
};

/// Text shortened as in quotes, without them.
std::string shortened(std::string_view text);
/// 'text' in quotes, shortened, what cannot be printed escaped.
std::string quoted(std::string_view text);
/// "a, b or c".
std::string listed(std::span<const std::string_view> words, std::string_view last = "or");
/// The word nearest to `text` in letters, whatever their case, if one is near.
std::optional<std::string_view> nearest(std::string_view text,
                                        std::span<const std::string_view> words);

} // namespace normforge::spec
