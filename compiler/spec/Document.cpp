#include "compiler/spec/Document.h"

#include "llvm/ADT/SmallString.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Casting.h"
#include "llvm/Support/ConvertUTF.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Support/YAMLParser.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace normforge::spec {
namespace {

namespace yaml = llvm::yaml;

/// A spec needs 4. The bound keeps the reader's recursion, and LLVM's, off the end of the stack.
constexpr int maxDepth = 16;
constexpr size_t maxBytes = 1 << 20;
/// Far above any spec; keeps the tree, and the errors about it, small beside the text.
constexpr size_t maxValues = 1 << 16;

/// Refuses bytes that no YAML has.
bool checkBytes(std::string_view text, Diagnostics &diagnostics) {
  if (text.size() > maxBytes) {
    diagnostics.error(0, fmt::format("the spec is larger than {} bytes", maxBytes));
    return false;
  }
  const auto *begin = reinterpret_cast<const llvm::UTF8 *>(text.data());
  const llvm::UTF8 *illegal = begin;
  if (!llvm::isLegalUTF8String(&illegal, begin + text.size())) {
    auto offset = static_cast<size_t>(illegal - begin);
    diagnostics.error(
        offset, fmt::format("the spec is not UTF-8: byte 0x{:02x} at offset {}", *illegal, offset));
    return false;
  }
  for (size_t i = 0; i < text.size(); ++i) {
    auto c = static_cast<unsigned char>(text[i]);
    if ((c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7f) {
      diagnostics.error(i, fmt::format("control character 0x{:02x} at offset {}", c, i));
      return false;
    }
  }
  return true;
}

/// LLVM's parser recurses over commas without values between them and over document markers: enough
/// of them, which no spec needs, would take it off the end of the stack.
bool checkRepetitions(std::string_view text, Diagnostics &diagnostics) {
  constexpr int maxRepetitions = 64;
  int commas = 0, markers = 0;
  bool lineBegin = true, spaceBefore = true;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (lineBegin && (text.substr(i, 3) == "..." || text.substr(i, 3) == "---") &&
        ++markers > maxRepetitions) {
      diagnostics.error(i, "a spec is one document, but here are many");
      return false;
    }
    if (c == '#' && spaceBefore) {
      i = std::min(text.find_first_of("\r\n", i), text.size());
      lineBegin = true;
      continue;
    }
    lineBegin = c == '\n' || c == '\r';
    spaceBefore = lineBegin || c == ' ' || c == '\t' || c == ',';
    if (c == ',' && ++commas > maxRepetitions) {
      diagnostics.error(i, "not YAML: commas without values between them");
      return false;
    }
    if (!spaceBefore)
      commas = 0;
  }
  return true;
}

/// LLVM's scanner looks through all that a folded scalar (>) has gathered at each of its lines, as
/// long as that is blank: quadratic in a run of blanks, of which no spec has many.
bool checkBlanks(std::string_view text, Diagnostics &diagnostics) {
  constexpr size_t maxBlanks = 1024;
  if (text.find('>') == std::string_view::npos)
    return true;
  constexpr std::string_view blanks = " \t\r\n";
  for (size_t begin = text.find_first_of(blanks); begin < text.size();) {
    const size_t end = std::min(text.find_first_not_of(blanks, begin), text.size());
    if (end - begin > maxBlanks) {
      diagnostics.error(begin, fmt::format("more than {} blanks in a row", maxBlanks));
      return false;
    }
    begin = text.find_first_of(blanks, end);
  }
  return true;
}

class DocumentReader {
public:
  DocumentReader(std::string_view text, Diagnostics &diagnostics)
      : text_(text), diagnostics_(diagnostics) {
    sourceManager_.setDiagHandler(
        [](const llvm::SMDiagnostic &diagnostic, void *self) {
          static_cast<DocumentReader *>(self)->onDiagnostic(diagnostic);
        },
        this);
  }

  bool read(Value &root) {
    yaml::Stream stream(llvm::StringRef(text_), sourceManager_, /*ShowColors=*/false);
    yaml::document_iterator document = stream.begin();
    if (document == stream.end() || stream.failed())
      return reportEmpty();
    yaml::Node *node = document->getRoot();
    if (!node || !readValue(*node, root, 0) || stream.failed())
      return reportEmpty();
    if (root.kind == Value::Kind::Null)
      return reportEmpty();
    size_t rootEnd = cursor_;
    ++document;
    if (document != stream.end() && !stream.failed())
      diagnostics_.error(findSeparator(rootEnd),
                         "a spec is one document, but a second one starts here");
    if (!root.isMapping())
      diagnostics_.error(root.offset, fmt::format("a spec is a mapping of keys to values; found {}",
                                                  root.isList() ? "a list" : quoted(root.text)));
    return diagnostics_.empty();
  }

private:
  void onDiagnostic(const llvm::SMDiagnostic &diagnostic) {
    if (diagnostic.getKind() != llvm::SourceMgr::DK_Error || malformed_)
      return;
    malformed_ = true;
    std::string message = diagnostic.getMessage().rtrim(".!").str();
    if (size_t stop = message.find(". E"); stop != std::string::npos)
      message.replace(stop, 3, "; e");
    if (!message.empty())
      message[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(message[0])));
    const size_t offset = offsetOf(diagnostic.getLoc().getPointer());
    diagnostics_.error(offset, "not YAML: " + message +
                                   (beginsWithTab(offset) ? "; a tab is no indentation" : ""));
  }

  bool beginsWithTab(size_t offset) const {
    const size_t newline = offset == 0 ? std::string_view::npos : text_.rfind('\n', offset - 1);
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    const size_t word = text_.find_first_not_of(" \t", line);
    return text_.substr(line, word - line).find('\t') != std::string_view::npos;
  }

  bool reportEmpty() {
    if (diagnostics_.empty())
      diagnostics_.error(0, "the spec is empty; expected a mapping with the key 'input'");
    return false;
  }

  /// Tokens that LLVM makes up (an empty value's) lie outside of the text.
  size_t offsetOf(const char *pointer) const {
    auto address = reinterpret_cast<uintptr_t>(pointer);
    auto begin = reinterpret_cast<uintptr_t>(text_.data());
    return address >= begin && address <= begin + text_.size() ? address - begin : cursor_;
  }

  /// LLVM's collections have no place: theirs is the next character that means something.
  size_t findStart(size_t from) const {
    for (size_t i = from; i < text_.size(); ++i) {
      char c = text_[i];
      if (c == '#') {
        i = text_.find_first_of("\r\n", i);
        if (i == std::string_view::npos)
          return from;
        continue;
      }
      bool indicator =
          (c == '-' || c == '?' || c == ':') &&
          (i + 1 == text_.size() || std::isspace(static_cast<unsigned char>(text_[i + 1])));
      bool afterKey = c == ':' && i == from; // {a:[1]}
      bool marker = text_.substr(i, 3) == "---";
      if (marker)
        i += 2;
      if (!std::isspace(static_cast<unsigned char>(c)) && !indicator && !afterKey && !marker &&
          c != ',' && c != ']' && c != '}')
        return i;
    }
    return from;
  }

  size_t findSeparator(size_t from) const {
    for (size_t i = from; i < text_.size(); ++i)
      if ((i == 0 || text_[i - 1] == '\n' || text_[i - 1] == '\r') &&
          (text_.substr(i, 3) == "---" || text_.substr(i, 3) == "..."))
        return text_[i] == '-' ? i : findStart(i + 3);
    return findStart(from);
  }

  /// False when reading cannot go on.
  bool readValue(yaml::Node &node, Value &value, int depth) {
    value.offset = findStart(cursor_);
    if (++values_ > maxValues) {
      diagnostics_.error(value.offset, fmt::format("more than {} values in a spec", maxValues));
      return false;
    }
    if (depth > maxDepth) {
      diagnostics_.error(value.offset, fmt::format("more than {} levels of nesting", maxDepth));
      return false;
    }
    if (!node.getAnchor().empty() || llvm::isa<yaml::AliasNode>(node)) {
      diagnostics_.error(value.offset, "anchors and aliases are not part of the spec language");
      return false;
    }
    if (!node.getRawTag().empty()) {
      diagnostics_.error(value.offset, "tags are not part of the spec language");
      return false;
    }
    if (auto *scalar = llvm::dyn_cast<yaml::ScalarNode>(&node)) {
      llvm::SmallString<64> storage;
      value.kind = Value::Kind::Scalar;
      value.offset = offsetOf(scalar->getSourceRange().Start.getPointer());
      value.text = scalar->getValue(storage).str();
      llvm::StringRef raw = scalar->getRawValue();
      value.plain = !raw.starts_with("'") && !raw.starts_with("\"");
      cursor_ = std::max(cursor_, value.offset + raw.size());
      return !malformed_;
    }
    if (auto *scalar = llvm::dyn_cast<yaml::BlockScalarNode>(&node)) {
      value.kind = Value::Kind::Scalar;
      value.text = scalar->getValue().str();
      cursor_ = std::max(cursor_, offsetOf(scalar->getSourceRange().End.getPointer()));
      return !malformed_;
    }
    if (auto *mapping = llvm::dyn_cast<yaml::MappingNode>(&node)) {
      value.kind = Value::Kind::Mapping;
      enter(value.offset);
      for (yaml::KeyValueNode &entry : *mapping)
        if (!readEntry(entry, value, depth))
          return false;
      return !malformed_;
    }
    if (auto *sequence = llvm::dyn_cast<yaml::SequenceNode>(&node)) {
      value.kind = Value::Kind::List;
      enter(value.offset);
      for (yaml::Node &item : *sequence)
        if (!readValue(item, value.items.emplace_back(), depth + 1))
          return false;
      return !malformed_;
    }
    return !malformed_;
  }

  bool readEntry(yaml::KeyValueNode &node, Value &mapping, int depth) {
    yaml::Node *keyNode = node.getKey();
    Value key;
    if (!keyNode || !readValue(*keyNode, key, depth + 1) || !checkIndentation(mapping, key))
      return false;
    yaml::Node *valueNode = node.getValue();
    Entry &entry = mapping.entries.emplace_back();
    if (!valueNode || !readValue(*valueNode, entry.value, depth + 1))
      return false;
    if (!key.isScalar()) {
      diagnostics_.error(key.offset,
                         fmt::format("a key is a word; found {}", key.isList()      ? "a list"
                                                                  : key.isMapping() ? "a mapping"
                                                                                    : "nothing"));
      return false;
    }
    entry.key = std::move(key.text);
    entry.offset = key.offset;
    if (entry.value.kind == Value::Kind::Null)
      entry.value.offset = key.offset;
    return true;
  }

  /// Tabs indent nothing in YAML, and what LLVM's reader makes of them is another mapping.
  bool checkIndentation(const Value &mapping, const Value &key) {
    const bool isFlow = mapping.offset < text_.size() && text_[mapping.offset] == '{';
    const size_t end = text_.substr(0, key.offset).rfind('\n');
    const size_t line = end == std::string_view::npos ? 0 : end + 1;
    const std::string_view indentation = text_.substr(line, key.offset - line);
    const size_t tab = indentation.find('\t');
    if (isFlow || tab == std::string_view::npos ||
        indentation.find_first_not_of(" \t") != std::string_view::npos)
      return true;
    diagnostics_.error(line + tab, "a tab indents this line; YAML takes spaces");
    return false;
  }

  void enter(size_t offset) {
    bool bracket = offset < text_.size() && (text_[offset] == '[' || text_[offset] == '{');
    cursor_ = std::max(cursor_, bracket ? offset + 1 : offset);
  }

  std::string_view text_;
  Diagnostics &diagnostics_;
  llvm::SourceMgr sourceManager_;
  size_t cursor_ = 0; ///< the end of what has been read
  size_t values_ = 0;
  bool malformed_ = false;
};

} // namespace

bool readDocument(std::string_view text, Diagnostics &diagnostics, Value &root) {
  return checkBytes(text, diagnostics) && checkRepetitions(text, diagnostics) &&
         checkBlanks(text, diagnostics) && DocumentReader(text, diagnostics).read(root);
}

} // namespace normforge::spec
