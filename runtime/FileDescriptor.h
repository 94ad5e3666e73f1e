// An open file, closed at the end of its owner's life.
#pragma once

#include <fcntl.h>
#include <unistd.h>
#include <utility>

namespace normforge {

class FileDescriptor {
public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor &&other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor &operator=(FileDescriptor &&other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() {
    if (fd_ >= 0)
      ::close(fd_);
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  /// Gives the descriptor up, for its new owner to close.
  int release() { return std::exchange(fd_, -1); }

private:
  int fd_ = -1;
};

/// The same file under a number that is none of 0, 1 and 2, which a host may have closed, and which
/// it or others read and write by number. Empty where the system has no more.
inline FileDescriptor awayFromStandard(FileDescriptor given) {
  if (given.get() < 0 || given.get() > 2)
    return given;
  return FileDescriptor(fcntl(given.get(), F_DUPFD_CLOEXEC, 3));
}

} // namespace normforge
