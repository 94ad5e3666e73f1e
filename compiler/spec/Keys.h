// The keys of a mapping: known, unknown, repeated.
#pragma once

#include "compiler/spec/Document.h"

#include <span>
#include <string_view>
#include <vector>

namespace normforge::spec {

/// The known keys of a mapping.
class Keys {
public:
  /// Reports unknown and repeated keys; a repeated key's first value counts. `path` is the mapping
  /// within the spec, "" for the spec itself.
  Keys(const Value &mapping, std::string_view path, std::span<const std::string_view> known,
       Diagnostics &diagnostics);
  const Entry *find(std::string_view key) const;
  std::span<const Entry *const> entries() const { return entries_; }

private:
  std::vector<const Entry *> entries_;
};

/// Every key of a spec, those that are not built yet included.
std::span<const std::string_view> specKeys();
std::span<const std::string_view> inputKeys();
std::span<const std::string_view> outputKeys();

} // namespace normforge::spec
