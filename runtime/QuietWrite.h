// Writing to files without signals.
#pragma once

#include <cerrno>
#include <csignal>
#include <ctime>
#include <unistd.h>

namespace normforge {

/// write(), but where a file would grow beyond the process' limit (RLIMIT_FSIZE) it gives EFBIG
/// alone: the system sends the thread SIGXFSZ too, which ends a host that has not thought of it.
inline ssize_t writeQuietly(int file, const void *bytes, size_t size) {
  sigset_t limit, before, pending;
  sigemptyset(&limit);
  sigaddset(&limit, SIGXFSZ);
  sigpending(&pending);
  pthread_sigmask(SIG_BLOCK, &limit, &before);
  const ssize_t written = ::write(file, bytes, size);
  const int error = errno;
  if (written < 0 && error == EFBIG && !sigismember(&pending, SIGXFSZ)) {
    const timespec now = {0, 0};
    while (sigtimedwait(&limit, nullptr, &now) < 0 && errno == EINTR)
      ;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return written;
}

} // namespace normforge
