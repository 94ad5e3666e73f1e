#include "runtime/cache/TrustedDirectory.h"

#include <array>
#include <cerrno>
#include <fcntl.h>
#include <string_view>
#include <sys/stat.h>
#include <system_error>
#include <utility>
#include <vector>

// Each component is opened within the one before it, which was checked: what is used is what was
// looked at, whoever renames what meanwhile.

namespace normforge {
namespace {

constexpr int mostLinks = 40; ///< as Linux follows them

/// Appends the components of a path in reverse, so that the first is taken from the back.
void pushComponents(std::string_view path, std::vector<std::string> &pending) {
  std::vector<std::string> forward;
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view name = path.substr(begin, end - begin);
    if (!name.empty() && name != ".")
      forward.emplace_back(name);
    begin = end + 1;
  }
  pending.insert(pending.end(), forward.rbegin(), forward.rend());
}

bool isOurs(const struct stat &status) { return status.st_uid == 0 || status.st_uid == geteuid(); }

/// The reason why a directory is not safe, or empty; the text calls the directory `name`.
std::string problemOf(const struct stat &status, bool isLast, const std::string &name) {
  if (isLast ? status.st_uid != geteuid() : !isOurs(status))
    return name + " belongs to another user, so it is not used";
  const bool isShared = status.st_mode & (S_IWGRP | S_IWOTH);
  if (isShared && isLast && (status.st_mode & S_ISVTX)) // such as /tmp, which has to stay so
    return name + " is shared by users, so it is not used; name a directory within it";
  if (isShared && (isLast || !(status.st_mode & S_ISVTX)))
    return "its group or others can write to " + name +
           ", so it is not used; chmod go-w makes it safe";
  return {};
}

std::string systemError() { return std::generic_category().message(errno); }

} // namespace

FileDescriptor openTrustedDirectory(const std::string &path, bool create, std::string &problem) {
  auto fail = [&](std::string text) {
    problem = std::move(text);
    return FileDescriptor();
  };
  if (path.empty() || path.front() != '/')
    return fail("expected an absolute path, so it is not used");
  FileDescriptor folder(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  std::vector<std::string> pending;
  pushComponents(path, pending);
  std::string at = "/"; // of `folder`, for texts
  int links = 0;
  struct stat status;
  if (!folder || fstat(folder.get(), &status) != 0)
    return fail(systemError());
  while (true) {
    const bool isLast = pending.empty();
    if (std::string text = problemOf(status, isLast, isLast ? "it" : at + " above it");
        !text.empty())
      return fail(std::move(text));
    if (isLast)
      break;
    const std::string name = std::move(pending.back());
    pending.pop_back();
    const std::string here = at == "/" ? at + name : at + "/" + name;
    auto openNext = [&] {
      // As a directory first, for what is to be mounted when it is entered is then.
      constexpr int flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
      FileDescriptor opened(openat(folder.get(), name.c_str(), flags | O_DIRECTORY));
      return opened || errno != ENOTDIR ? std::move(opened)
                                        : FileDescriptor(openat(folder.get(), name.c_str(), flags));
    };
    FileDescriptor next = openNext();
    if (!next && errno == ENOENT && create) {
      const bool isMade = mkdirat(folder.get(), name.c_str(), 0700) == 0;
      if (!isMade && errno != EEXIST)
        return fail(here + " cannot be made: " + systemError());
      if (isMade) // whatever the umask
        fchmodat(folder.get(), name.c_str(), 0700, 0);
      next = openNext();
    }
    if (!next && errno == ENOENT && !create)
      return {};
    if (!next || fstat(next.get(), &status) != 0)
      return fail(here + ": " + systemError());
    if (S_ISLNK(status.st_mode)) {
      if (pending.empty())
        return fail("it is a symbolic link, which is not followed; name the directory itself");
      if (!isOurs(status))
        return fail("the link " + here + " belongs to another user, so it is not used");
      std::array<char, 4096> target;
      const ssize_t length = readlinkat(next.get(), "", target.data(), target.size());
      if (length <= 0 || ++links > mostLinks)
        return fail(here + ": too many or too long symbolic links");
      const std::string_view text(target.data(), static_cast<size_t>(length));
      pushComponents(text, pending);
      if (text.front() == '/') {
        folder = FileDescriptor(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
        at = "/";
      }
      if (!folder || fstat(folder.get(), &status) != 0)
        return fail(systemError());
      continue;
    }
    if (!S_ISDIR(status.st_mode)) {
      errno = ENOTDIR;
      return fail(here + ": " + systemError());
    }
    folder = std::move(next);
    at = here;
  }
  FileDescriptor opened(openat(folder.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!opened)
    return fail(systemError());
  return awayFromStandard(std::move(opened));
}

} // namespace normforge
