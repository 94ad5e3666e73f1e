// Which version of a file something was made from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace normforge {

/// A file as it was: replaced or rebuilt, it is another.
struct FileIdentity {
  std::string path;
  uint64_t bytes = 0;
  int64_t modified = 0; ///< nanoseconds since 1970
  bool operator==(const FileIdentity &) const = default;

  /// Of the file at `path` now; empty where there is none.
  static std::optional<FileIdentity> of(const std::string &path);
  bool isCurrent() const { return of(path) == *this; }
};

} // namespace normforge
