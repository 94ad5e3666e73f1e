#include "runtime/cache/DiskCache.h"

#include "runtime/artifact/Checksum.h"

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
#include <unistd.h>
#include <utility>

namespace normforge {
namespace {

// An entry: magic, checksum of what follows, then texts as a length and their bytes: the key, the
// number of files and for each its path, bytes and time, the payload.
constexpr std::array<char, 8> magic = {'N', 'F', 'C', 'A', 'C', 'H', 'E', '1'};
constexpr size_t headerBytes = magic.size() + 8;
constexpr uint64_t mostEntryBytes = uint64_t(64) << 20; ///< far above any kernel
constexpr uint64_t mostFiles = 64;
constexpr int64_t secondsBetweenTouches = 3600;
constexpr std::string_view kernelPrefix = "kernel-", requestPrefix = "request-",
                           temporaryPrefix = ".writing-";

/// Closes a descriptor at the end of its life.
struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0)
      ::close(fd);
  }
};

void put(std::vector<std::byte> &bytes, uint64_t value) {
  for (int shift = 0; shift < 64; shift += 8)
    bytes.push_back(static_cast<std::byte>(value >> shift));
}
void put(std::vector<std::byte> &bytes, std::span<const std::byte> data) {
  put(bytes, data.size());
  bytes.insert(bytes.end(), data.begin(), data.end());
}
void put(std::vector<std::byte> &bytes, std::string_view text) {
  put(bytes, std::as_bytes(std::span(text)));
}

/// Takes fields from the front; `ok` is false once one is cut short.
struct Fields {
  std::span<const std::byte> rest;
  bool ok = true;

  uint64_t number() {
    uint64_t value = 0;
    if (rest.size() < 8) {
      ok = false;
      return 0;
    }
    for (size_t i = 0; i < 8; ++i)
      value |= static_cast<uint64_t>(rest[i]) << (8 * i);
    rest = rest.subspan(8);
    return value;
  }
  std::span<const std::byte> data() {
    const uint64_t size = number();
    if (!ok || size > rest.size()) {
      ok = false;
      return {};
    }
    auto taken = rest.first(size);
    rest = rest.subspan(size);
    return taken;
  }
  std::string text() {
    auto raw = data();
    return {reinterpret_cast<const char *>(raw.data()), raw.size()};
  }
};

std::vector<std::byte> pack(const CacheEntry &entry) {
  std::vector<std::byte> body;
  put(body, entry.key);
  put(body, entry.madeFrom.size());
  for (const FileIdentity &file : entry.madeFrom) {
    put(body, file.path);
    put(body, file.bytes);
    put(body, static_cast<uint64_t>(file.modified));
  }
  put(body, entry.payload);
  std::vector<std::byte> bytes;
  for (char c : magic)
    bytes.push_back(static_cast<std::byte>(c));
  put(bytes, checksum(body));
  bytes.insert(bytes.end(), body.begin(), body.end());
  return bytes;
}

std::optional<CacheEntry> unpack(std::span<const std::byte> bytes, std::string &problem) {
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
    file.modified = static_cast<int64_t>(fields.number());
    entry.madeFrom.push_back(std::move(file));
  }
  auto payload = fields.data();
  entry.payload.assign(payload.begin(), payload.end());
  if (!fields.ok || files > mostFiles || !fields.rest.empty())
    return fail("damaged: its fields do not add up");
  return entry;
}

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

std::string systemError() { return std::strerror(errno); }

/// Makes a directory and those around it, for this user alone.
bool makeDirectories(const std::string &path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1))
    if (mkdir(path.substr(0, slash).c_str(), 0700) != 0 && errno != EEXIST)
      return false;
  return mkdir(path.c_str(), 0700) == 0 || errno == EEXIST;
}

/// Names in a directory; another position than that of `folder` itself.
std::vector<std::string> namesIn(int folder) {
  std::vector<std::string> names;
  const int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *stream = copy < 0 ? nullptr : fdopendir(copy);
  if (!stream) {
    if (copy >= 0)
      ::close(copy);
    return names;
  }
  while (const dirent *entry = readdir(stream))
    names.emplace_back(entry->d_name);
  closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

} // namespace

std::optional<FileIdentity> FileIdentity::of(const std::string &path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0)
    return std::nullopt;
  return FileIdentity{path, static_cast<uint64_t>(status.st_size),
                      int64_t(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec};
}

DiskCache::DiskCache(std::string directory, uint64_t mostBytes, Log log)
    : path_(std::move(directory)), mostBytes_(mostBytes), log_(std::move(log)) {}

DiskCache::~DiskCache() {
  if (folder_ >= 0)
    ::close(folder_);
}

std::string DiskCache::defaultDirectory() {
  if (const char *own = std::getenv("NORMFORGE_CACHE_DIR"); own && *own)
    return own;
  if (const char *cache = std::getenv("XDG_CACHE_HOME"); cache && *cache == '/')
    return std::string(cache) + "/normforge";
  if (const char *home = std::getenv("HOME"); home && *home == '/')
    return std::string(home) + "/.cache/normforge";
  return {};
}

void DiskCache::warn(const std::string &text) {
  {
    std::lock_guard lock(mutex_);
    if (warned_)
      return;
    warned_ = true;
  }
  if (log_)
    log_("the kernel cache in " + path_ + " is not used: " + text);
}

bool DiskCache::open(bool create, std::string &problem) {
  std::lock_guard lock(mutex_);
  if (folder_ >= 0)
    return true;
  if (refused_ || path_.empty())
    return false;
  if (create && !makeDirectories(path_)) {
    problem = "it cannot be made: " + systemError();
    return false;
  }
  Descriptor folder{::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (folder.fd < 0) {
    if (errno != ENOENT)
      problem = systemError();
    return false;
  }
  struct stat status;
  if (fstat(folder.fd, &status) != 0) {
    problem = systemError();
    return false;
  }
  if (status.st_uid != geteuid())
    problem = "it belongs to another user";
  else if (status.st_mode & (S_IWGRP | S_IWOTH))
    problem = "others can write to it; chmod go-w makes it safe";
  if (!problem.empty()) {
    refused_ = true;
    return false;
  }
  folder_ = std::exchange(folder.fd, -1);
  return true;
}

std::optional<CacheEntry> DiskCache::readFile(const std::string &name, std::string &problem,
                                              bool touch) {
  auto fail = [&](std::string why) {
    problem = std::move(why);
    return std::nullopt;
  };
  // No link is followed, and a pipe does not make us wait.
  Descriptor file{openat(folder_, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
  if (file.fd < 0)
    return fail(systemError());
  struct stat status;
  if (fstat(file.fd, &status) != 0)
    return fail(systemError());
  if (!S_ISREG(status.st_mode))
    return fail("not a file");
  if (status.st_uid != geteuid())
    return fail("belongs to another user");
  if (status.st_mode & (S_IWGRP | S_IWOTH))
    return fail("others can write to it");
  if (static_cast<uint64_t>(status.st_size) > mostEntryBytes)
    return fail("too large for an entry");
  std::vector<std::byte> bytes(static_cast<size_t>(status.st_size));
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::read(file.fd, bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return fail("damaged: it is cut short");
    done += static_cast<size_t>(got);
  }
  auto entry = unpack(bytes, problem);
  if (entry && touch && std::time(nullptr) - status.st_mtim.tv_sec > secondsBetweenTouches)
    futimens(file.fd, nullptr); // used now; without it, only the order of leaving is worse
  return entry;
}

std::optional<CacheEntry> DiskCache::read(CacheKind kind, const std::string &key) {
  std::string problem;
  if (!open(/*create=*/false, problem)) {
    if (!problem.empty())
      warn(problem);
    return std::nullopt;
  }
  auto entry = readFile(fileName(kind, key), problem, /*touch=*/true);
  if (!entry || entry->key != key)
    return std::nullopt;
  for (const FileIdentity &file : entry->madeFrom)
    if (!file.isCurrent())
      return std::nullopt;
  return entry;
}

bool DiskCache::writeFile(const std::string &name, const std::vector<std::byte> &bytes,
                          std::string &problem) {
  static std::atomic<uint64_t> counter{0};
  const std::string temporary = std::string(temporaryPrefix) + std::to_string(getpid()) + "-" +
                                std::to_string(counter.fetch_add(1));
  Descriptor file{openat(folder_, temporary.c_str(),
                         O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)};
  if (file.fd < 0) {
    problem = systemError();
    return false;
  }
  size_t done = 0;
  bool written = true;
  while (written && done < bytes.size()) {
    const ssize_t put = ::write(file.fd, bytes.data() + done, bytes.size() - done);
    if (put < 0 && errno == EINTR)
      continue;
    written = put > 0;
    done += written ? static_cast<size_t>(put) : 0;
  }
  // A file system over its quota may say so only now.
  written = written && ::close(std::exchange(file.fd, -1)) == 0 &&
            renameat(folder_, temporary.c_str(), folder_, name.c_str()) == 0;
  if (!written) {
    problem = systemError();
    unlinkat(folder_, temporary.c_str(), 0);
  }
  return written;
}

void DiskCache::write(CacheKind kind, const CacheEntry &entry) {
  std::string problem;
  if (!open(/*create=*/true, problem) ||
      !writeFile(fileName(kind, entry.key), pack(entry), problem)) {
    if (!problem.empty())
      warn(problem);
    return;
  }
  trim();
}

/// Keeps the entries within their bound, and drops what interrupted writes have left.
void DiskCache::trim() {
  struct Used {
    int64_t when;
    uint64_t bytes;
    std::string name;
  };
  std::vector<Used> files;
  uint64_t total = 0;
  for (const std::string &name : namesIn(folder_)) {
    struct stat status;
    if (fstatat(folder_, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0)
      continue;
    if (name.starts_with(temporaryPrefix) &&
        std::time(nullptr) - status.st_mtim.tv_sec > secondsBetweenTouches)
      unlinkat(folder_, name.c_str(), 0);
    if (!kindOf(name))
      continue;
    files.push_back({int64_t(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec,
                     static_cast<uint64_t>(status.st_size), name});
    total += files.back().bytes;
  }
  if (total <= mostBytes_)
    return;
  std::sort(files.begin(), files.end(),
            [](const Used &a, const Used &b) { return a.when < b.when; });
  // A tenth below the bound, so that not every write has to make room.
  for (const Used &file : files) {
    if (total <= mostBytes_ - mostBytes_ / 10)
      return;
    if (unlinkat(folder_, file.name.c_str(), 0) == 0)
      total -= file.bytes;
  }
}

std::vector<DiskCache::File> DiskCache::list(std::string &problem) {
  std::vector<File> files;
  if (!open(/*create=*/false, problem))
    return files;
  for (const std::string &name : namesIn(folder_)) {
    const auto kind = kindOf(name);
    struct stat status;
    if (!kind || fstatat(folder_, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0)
      continue;
    File file{name, *kind, static_cast<uint64_t>(status.st_size), status.st_mtim.tv_sec, {}, {}};
    file.entry = readFile(name, file.problem, /*touch=*/false);
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
  if (!open(/*create=*/false, problem))
    return removed;
  for (const std::string &name : namesIn(folder_))
    if (kindOf(name) || name.starts_with(temporaryPrefix)) {
      if (unlinkat(folder_, name.c_str(), 0) == 0)
        ++removed;
      else
        problem = name + ": " + systemError();
    }
  return removed;
}

} // namespace normforge
