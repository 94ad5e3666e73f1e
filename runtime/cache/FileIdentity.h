// Which version of a file something was made from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace normforge {

/// A file as it was: rebuilt, it is another. An ELF file is known by its build ID, because file
/// times are no proof: reproducible images set them all to one instant, and a copy has a new one.
/// A file without a build ID is known by the time of its last change.
struct FileIdentity {
  std::string path;
  uint64_t bytes = 0;
  std::string version; ///< "build-id 3f9c..."; else "modified 1764090000000000000", ns since 1970
  bool operator==(const FileIdentity &) const = default;

  /// The identity of the file at `path` now; empty where there is none.
  static std::optional<FileIdentity> of(const std::string &path);
  bool isCurrent() const { return of(path) == *this; }
  /// One line without its end.
  std::string text() const { return path + " " + std::to_string(bytes) + " " + version; }
};

} // namespace normforge
