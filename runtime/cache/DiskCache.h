// Kernels in files, so that a process that needs one again neither compiles nor loads LLVM.
//
// A directory of entries, each one file named by a hash of its key. An entry carries its key, what
// it was made from and a checksum, and is used only when all three are right: a truncated, altered,
// stale or foreign file is as if it were not there, and is written anew. Files appear whole or not
// at all. Nothing here fails: a cache that cannot be used is told of once, and done without.
#pragma once

#include "runtime/FileDescriptor.h"
#include "runtime/cache/FileIdentity.h"

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace normforge {

/// The kinds of entries: a kernel under the key of all that its code depends on; or which kernel a
/// spec's text stands for, under that text.
enum class CacheKind : uint8_t { Kernel, Request };

struct CacheEntry {
  std::string key;
  /// The compiler's files. Where one has changed, the entry is stale.
  std::vector<FileIdentity> madeFrom;
  std::vector<std::byte> payload;
};

/// All functions may be called from several threads, and several processes may share a directory.
class DiskCache {
public:
  /// `directory` is made, readable by this user alone, when the first entry is written; it is used
  /// where openTrustedDirectory opens it. `mostBytes` bounds the entries together: those not used
  /// for longest go first.
  DiskCache(std::string directory, uint64_t mostBytes);
  ~DiskCache();
  DiskCache(const DiskCache &) = delete;
  DiskCache &operator=(const DiskCache &) = delete;

  /// $NORMFORGE_CACHE_DIR, else $XDG_CACHE_HOME/normforge, else $HOME/.cache/normforge, of those
  /// that are absolute paths; empty where none is. `ignored` tells of a NORMFORGE_CACHE_DIR that is
  /// relative.
  static std::string defaultDirectory(std::string &ignored);
  static constexpr uint64_t defaultBytes = uint64_t(256) << 20;

  const std::string &directory() const { return path_; }

  /// The warning that the user should hear, once: of a directory that cannot be used. Empty
  /// otherwise.
  std::string takeWarning();

  /// A whole, current entry of this user's with this key. One that cannot be trusted is passed over
  /// in silence: list() tells of it.
  std::optional<CacheEntry> read(CacheKind kind, const std::string &key);
  /// Whether the entry was written.
  bool write(CacheKind kind, const CacheEntry &entry);

  /// An entry as its file holds it, and back; `problem` says why bytes are none.
  static std::vector<std::byte> toBytes(const CacheEntry &entry);
  static std::optional<CacheEntry> fromBytes(std::span<const std::byte> bytes,
                                             std::string &problem);

  struct File {
    std::string name;
    CacheKind kind = CacheKind::Kernel;
    uint64_t bytes = 0;
    int64_t lastUsed = 0;            ///< seconds since 1970, to about an hour
    std::string problem;             ///< why it would not be used; empty: it would
    std::optional<CacheEntry> entry; ///< where it can be read
  };
  /// Every entry, by name. Empty with `problem` set where the directory cannot be read; empty
  /// without where there is none.
  std::vector<File> list(std::string &problem);
  /// Removes all entries, and what interrupted writes have left; other files stay. Gives their
  /// number.
  size_t clear(std::string &problem);

private:
  /// The directory; null with `problem` set where it must not or cannot be used, without where
  /// there is none.
  std::shared_ptr<const FileDescriptor> open(bool create, std::string &problem);
  static std::optional<CacheEntry> readFile(int folder, const std::string &name,
                                            std::string &problem, bool touch);
  /// errno tells why not.
  static bool writeFile(int folder, const std::string &name, const std::vector<std::byte> &bytes);
  void trim(int folder, uint64_t written);
  void warn(const std::string &text);

  const std::string path_;
  const uint64_t mostBytes_;
  std::mutex mutex_; ///< of the following
  std::shared_ptr<FileDescriptor> folder_;
  uint64_t device_ = 0, inode_ = 0; ///< of folder_
  std::optional<uint64_t> seen_;    ///< bytes of all entries as far as this process knows
  uint64_t unlooked_ = 0;           ///< bytes that it wrote since it looked
  std::string warning_;             ///< that nobody has taken yet
  bool warned_ = false;
};

} // namespace normforge
