// A YAML text as a tree of plain values, with the place of each.
//
// Enters: any bytes. Leaves: the tree, or errors; beyond what YAML forbids, anchors, aliases, tags
// and a second document are errors here, so that the rest of the room sees mappings, lists and
// scalars alone.
#pragma once

#include "compiler/spec/Diagnostics.h"

#include <cstdint>
#include <string>
#include <vector>

namespace normforge::spec {

struct Entry;

struct Value {
  enum class Kind : uint8_t { Null, Scalar, Mapping, List };
  Kind kind = Kind::Null;
  size_t offset = 0;  ///< of the first byte; a missing value has its key's
  std::string text;   ///< of a scalar, quotes and escapes resolved
  bool plain = false; ///< a scalar without quotes: it alone can be a number, true, false or null
  std::vector<Entry> entries;
  std::vector<Value> items;

  bool isScalar() const { return kind == Kind::Scalar; }
  bool isMapping() const { return kind == Kind::Mapping; }
  bool isList() const { return kind == Kind::List; }
};

struct Entry {
  std::string key;
  size_t offset = 0;
  Value value;
};

/// Reads the single mapping in `text`. False after an error; what can be reported together is.
bool readDocument(std::string_view text, Diagnostics &diagnostics, Value &root);

} // namespace normforge::spec
