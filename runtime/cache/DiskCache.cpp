#include "runtime/cache/DiskCache.h"

#include "runtime/QuietWrite.h"
#include "runtime/artifact/Checksum.h"
#include "runtime/artifact/Fields.h"
#include "runtime/cache/TrustedDirectory.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

namespace normforge {
namespace {

// An entry: magic, checksum of what follows, then texts as a length and their bytes: the key, the
// number of files and for each its path, bytes and version, the payload.
constexpr std::array<char, 8> magic = {'N', 'F', 'C', 'A', 'C', 'H', 'E', '2'};
constexpr size_t headerBytes = magic.size() + 8;
constexpr uint64_t mostEntryBytes = uint64_t(64) << 20; ///< far above any kernel
constexpr uint64_t mostFiles = 64;
constexpr int64_t secondsBetweenTouches = 3600;
constexpr int64_t secondsOfWriting = 600; ///< far more than any write takes
constexpr std::string_view kernelPrefix = "kernel-", requestPrefix = "request-",
                           temporaryPrefix = ".writing-";

/// 128 bits of a key, as 32 digits. A collision is seen, for entries carry their keys.
std::string fileName(CacheKind kind, const std::string &key) {
  const auto bytes = std::as_bytes(std::span(key));
  std::vector<std::byte> salted(8, std::byte{0x5A});
  salted.insert(salted.end(), bytes.begin(), bytes.end());
  char digits[33];
  std::snprintf(digits, sizeof digits, "%016llx%016llx",
                static_cast<unsigned long long>(checksum(bytes)),
                static_cast<unsigned long long>(checksum(salted)));
  return std::string(kind == CacheKind::Kernel ? kernelPrefix : requestPrefix) + digits;
}

std::optional<CacheKind> kindOf(std::string_view name) {
  if (name.size() == kernelPrefix.size() + 32 && name.starts_with(kernelPrefix))
    return CacheKind::Kernel;
  if (name.size() == requestPrefix.size() + 32 && name.starts_with(requestPrefix))
    return CacheKind::Request;
  return std::nullopt;
}

/// A file that a write left behind which did not come to its end.
bool isAbandoned(std::string_view name, const struct stat &status) {
  return name.starts_with(temporaryPrefix) &&
         std::time(nullptr) - status.st_mtim.tv_sec > secondsOfWriting;
}

std::string systemError() { return std::generic_category().message(errno); }

/// Names in a directory; another position than that of `folder` itself.
std::vector<std::string> namesIn(int folder) {
  struct Close {
    void operator()(DIR *stream) const { closedir(stream); }
  };
  std::vector<std::string> names;
  FileDescriptor copy(openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const std::unique_ptr<DIR, Close> stream(copy ? fdopendir(copy.get()) : nullptr);
  if (!stream)
    return names;
  copy.release(); // the stream's
  while (const dirent *entry = readdir(stream.get()))
    names.emplace_back(entry->d_name);
  std::sort(names.begin(), names.end());
  return names;
}

} // namespace

std::vector<std::byte> DiskCache::toBytes(const CacheEntry &entry) {
  std::vector<std::byte> body;
  putField(body, entry.key);
  putField(body, entry.madeFrom.size());
  for (const FileIdentity &file : entry.madeFrom) {
    putField(body, file.path);
    putField(body, file.bytes);
    putField(body, file.version);
  }
  putField(body, entry.payload);
  std::vector<std::byte> bytes;
  for (char c : magic)
    bytes.push_back(static_cast<std::byte>(c));
  putField(bytes, checksum(body));
  bytes.insert(bytes.end(), body.begin(), body.end());
  return bytes;
}

std::optional<CacheEntry> DiskCache::fromBytes(std::span<const std::byte> bytes,
                                               std::string &problem) {
  auto fail = [&](const char *why) {
    problem = why;
    return std::nullopt;
  };
  if (bytes.size() < headerBytes || std::memcmp(bytes.data(), magic.data(), magic.size()) != 0)
    return fail("not an entry of this version");
  Fields header{bytes.subspan(magic.size()), true};
  if (header.number() != checksum(bytes.subspan(headerBytes)))
    return fail("damaged: its checksum is wrong");
  Fields fields{bytes.subspan(headerBytes), true};
  CacheEntry entry;
  entry.key = fields.text();
  const uint64_t files = fields.number();
  for (uint64_t i = 0; i < std::min(files, mostFiles) && fields.ok; ++i) {
    FileIdentity file;
    file.path = fields.text();
    file.bytes = fields.number();
    file.version = fields.text();
    entry.madeFrom.push_back(std::move(file));
  }
  auto payload = fields.data();
  entry.payload.assign(payload.begin(), payload.end());
  if (!fields.ok || files > mostFiles || !fields.rest.empty())
    return fail("damaged: its fields do not add up");
  return entry;
}

DiskCache::DiskCache(std::string directory, uint64_t mostBytes)
    : path_(std::move(directory)), mostBytes_(mostBytes) {}

DiskCache::~DiskCache() = default;

std::string DiskCache::defaultDirectory(std::string &ignored) {
  // A program with more rights than its caller does not let the caller say where it writes.
  if (const char *own = secure_getenv("NORMFORGE_CACHE_DIR"); own && *own) {
    if (*own == '/')
      return own;
    ignored = "NORMFORGE_CACHE_DIR: expected an absolute path, found '" + std::string(own) +
              "', which is ignored";
  }
  if (const char *cache = secure_getenv("XDG_CACHE_HOME"); cache && *cache == '/')
    return std::string(cache) + "/normforge";
  if (const char *home = secure_getenv("HOME"); home && *home == '/')
    return std::string(home) + "/.cache/normforge";
  return {};
}

void DiskCache::warn(const std::string &text) {
  std::lock_guard lock(mutex_);
  if (warned_)
    return;
  warning_ = "kernel cache " + path_ + ": " + text;
  warned_ = true;
}

std::string DiskCache::takeWarning() {
  std::lock_guard lock(mutex_);
  return std::exchange(warning_, {});
}

std::shared_ptr<const FileDescriptor> DiskCache::open(bool create, std::string &problem) {
  std::lock_guard lock(mutex_);
  // A fork's child may have closed all descriptors, and the number be another file's by now: it is
  // looked at again, and what is not ours is not closed.
  struct stat status;
  if (folder_) {
    const bool isRead = fstat(folder_->get(), &status) == 0;
    if (!isRead && errno != EBADF) {
      problem = systemError();
      return nullptr;
    }
    if (!isRead || status.st_dev != device_ || status.st_ino != inode_) {
      folder_->release();
      folder_ = nullptr;
    }
  }
  if (folder_ || path_.empty())
    return folder_;
  FileDescriptor folder = openTrustedDirectory(path_, create, problem);
  if (!folder)
    return nullptr;
  if (fstat(folder.get(), &status) != 0) {
    problem = systemError();
    return nullptr;
  }
  folder_ = std::make_shared<FileDescriptor>(std::move(folder));
  device_ = status.st_dev;
  inode_ = status.st_ino;
  return folder_;
}

std::optional<CacheEntry> DiskCache::readFile(int folder, const std::string &name,
                                              std::string &problem, bool touch) {
  auto fail = [&](std::string why) {
    problem = std::move(why);
    return std::nullopt;
  };
  // No link is followed, and a pipe does not make us wait.
  const FileDescriptor file{
      openat(folder, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
  if (!file)
    return fail(systemError());
  struct stat status;
  if (fstat(file.get(), &status) != 0)
    return fail(systemError());
  if (!S_ISREG(status.st_mode))
    return fail(S_ISDIR(status.st_mode) ? "a directory, not an entry" : "not a file");
  if (status.st_uid != geteuid())
    return fail("belongs to another user");
  if (status.st_mode & (S_IWGRP | S_IWOTH))
    return fail("others can write to it");
  if (static_cast<uint64_t>(status.st_size) > mostEntryBytes)
    return fail("too large for an entry");
  std::vector<std::byte> bytes(static_cast<size_t>(status.st_size));
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return fail("damaged: it is cut short");
    done += static_cast<size_t>(got);
  }
  auto entry = fromBytes(bytes, problem);
  if (entry && touch && std::time(nullptr) - status.st_mtim.tv_sec > secondsBetweenTouches)
    futimens(file.get(), nullptr); // used now; without it, only the order of leaving is worse
  return entry;
}

std::optional<CacheEntry> DiskCache::read(CacheKind kind, const std::string &key) {
  std::string problem;
  const auto folder = open(/*create=*/false, problem);
  if (!folder) {
    if (!problem.empty())
      warn(problem);
    return std::nullopt;
  }
  auto entry = readFile(folder->get(), fileName(kind, key), problem, /*touch=*/true);
  if (!entry || entry->key != key)
    return std::nullopt;
  for (const FileIdentity &file : entry->madeFrom)
    if (!file.isCurrent())
      return std::nullopt;
  return entry;
}

bool DiskCache::writeFile(int folder, const std::string &name,
                          const std::vector<std::byte> &bytes) {
  static std::atomic<uint64_t> counter{0};
  // Names of other processes may be the same where these have a world of their own.
  std::string temporary;
  int fd = -1;
  for (int attempt = 0; fd < 0 && attempt < 100; ++attempt) {
    temporary = std::string(temporaryPrefix) + std::to_string(getpid()) + "-" +
                std::to_string(counter.fetch_add(1));
    fd = openat(folder, temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
                0600);
    if (fd < 0 && errno != EEXIST)
      return false;
  }
  if (fd < 0)
    return false;
  size_t done = 0;
  bool written = true;
  while (written && done < bytes.size()) {
    const ssize_t put = writeQuietly(fd, bytes.data() + done, bytes.size() - done);
    if (put < 0 && errno == EINTR)
      continue;
    written = put > 0;
    done += written ? static_cast<size_t>(put) : 0;
  }
  // A file system over its quota may say so only when the file is closed.
  written = ::close(fd) == 0 && written;
  written = written && renameat(folder, temporary.c_str(), folder, name.c_str()) == 0;
  if (!written) {
    const int error = errno;
    unlinkat(folder, temporary.c_str(), 0);
    errno = error;
  }
  return written;
}

bool DiskCache::write(CacheKind kind, const CacheEntry &entry) {
  const std::vector<std::byte> bytes = toBytes(entry);
  // Twice where the directory was removed since it was opened.
  for (int attempt = 0; attempt < 2; ++attempt) {
    std::string problem;
    const auto folder = open(/*create=*/true, problem);
    if (!folder) {
      if (!problem.empty())
        warn(problem);
      return false;
    }
    const std::string name = fileName(kind, entry.key);
    if (writeFile(folder->get(), name, bytes)) {
      trim(folder->get(), bytes.size());
      return true;
    }
    if (errno == EISDIR) {
      warn(name + " in it is a directory where an entry belongs, so that this kernel is compiled "
                  "by every process; remove it");
      return false;
    }
    if (errno != ENOENT || attempt > 0) {
      warn("it takes no more kernels: " + systemError());
      return false;
    }
    std::lock_guard lock(mutex_);
    if (folder_ == folder)
      folder_ = nullptr;
  }
  return false;
}

/// Keeps the entries within their bound, and drops what interrupted writes have left. Looks at the
/// directory when it may be full alone: `written` bytes have come.
void DiskCache::trim(int folder, uint64_t written) {
  {
    std::lock_guard lock(mutex_);
    // Other processes write too: what they wrote is looked for from time to time.
    unlooked_ += written;
    if (seen_ && *seen_ + written <= mostBytes_ && unlooked_ <= mostBytes_ / 16) {
      *seen_ += written;
      return;
    }
    unlooked_ = 0;
  }
  struct Used {
    int64_t when;
    uint64_t bytes;
    std::string name;
  };
  std::vector<Used> files;
  uint64_t total = 0;
  for (const std::string &name : namesIn(folder)) {
    struct stat status;
    if (fstatat(folder, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0)
      continue;
    if (isAbandoned(name, status))
      unlinkat(folder, name.c_str(), 0);
    if (!kindOf(name))
      continue;
    files.push_back({int64_t(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec,
                     static_cast<uint64_t>(status.st_size), name});
    total += files.back().bytes;
  }
  std::sort(files.begin(), files.end(),
            [](const Used &a, const Used &b) { return a.when < b.when; });
  // A tenth below the bound, so that not every write has to make room.
  const uint64_t aim = total <= mostBytes_ ? total : mostBytes_ - mostBytes_ / 10;
  for (const Used &file : files)
    if (total > aim && unlinkat(folder, file.name.c_str(), 0) == 0)
      total -= file.bytes;
  std::lock_guard lock(mutex_);
  seen_ = total;
}

std::vector<DiskCache::File> DiskCache::list(std::string &problem) {
  std::vector<File> files;
  const auto folder = open(/*create=*/false, problem);
  if (!folder)
    return files;
  for (const std::string &name : namesIn(folder->get())) {
    const auto kind = kindOf(name);
    struct stat status;
    if (!kind || fstatat(folder->get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0)
      continue;
    File file{name, *kind, static_cast<uint64_t>(status.st_size), status.st_mtim.tv_sec, {}, {}};
    file.entry = readFile(folder->get(), name, file.problem, /*touch=*/false);
    if (file.entry) {
      if (fileName(*kind, file.entry->key) != name)
        file.problem = "named by another key than its own";
      for (const FileIdentity &from : file.entry->madeFrom)
        if (!from.isCurrent())
          file.problem = "stale: made by another version of " + from.path;
    }
    files.push_back(std::move(file));
  }
  return files;
}

size_t DiskCache::clear(std::string &problem) {
  size_t removed = 0;
  const auto folder = open(/*create=*/false, problem);
  if (!folder)
    return removed;
  for (const std::string &name : namesIn(folder->get())) {
    struct stat status;
    if (fstatat(folder->get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0 ||
        !(kindOf(name) || isAbandoned(name, status)))
      continue;
    if (unlinkat(folder->get(), name.c_str(), S_ISDIR(status.st_mode) ? AT_REMOVEDIR : 0) == 0)
      ++removed;
    else
      problem = name + ": " + systemError();
  }
  return removed;
}

} // namespace normforge
