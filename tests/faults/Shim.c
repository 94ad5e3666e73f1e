/* Preloaded into a test: stands between the program and the C library, and makes one call fail.
 *
 * Allocations go to glibc's own names (__libc_malloc), because asking for the next definition
 * allocates. Calls that the C library makes itself are not seen: only those of libnormforge, the
 * C++ library and the test. Counters are plain atomics, for any thread may call. */
#define _GNU_SOURCE
#include "Shim.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_int kind, error_number, forever;
static atomic_long fail_at, calls, failed, live, writable_code;

void shim_arm(int new_kind, long at, int new_forever, int error) {
  calls = failed = live = 0;
  fail_at = at;
  forever = new_forever;
  error_number = error;
  kind = new_kind;
}
long shim_disarm(void) {
  kind = 0;
  return failed;
}
long shim_calls(void) { return calls; }
long shim_live(void) { return live; }
long shim_writable_code(void) { return writable_code; }

/* Whether this call is one that fails; counts it. */
static int fails(int of_kind) {
  if (kind != of_kind)
    return 0;
  const long number = ++calls;
  if (fail_at == 0 || (forever ? number < fail_at : number != fail_at))
    return 0;
  ++failed;
  return 1;
}

/* ---- Memory --------------------------------------------------------------------------------- */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static void *given(void *memory) {
  if (memory && kind)
    ++live;
  return memory;
}
static void *none(void) {
  errno = ENOMEM;
  return NULL;
}

void *malloc(size_t bytes) { return fails(SHIM_ALLOCATION) ? none() : given(__libc_malloc(bytes)); }
void *calloc(size_t count, size_t bytes) {
  return fails(SHIM_ALLOCATION) ? none() : given(__libc_calloc(count, bytes));
}
void *realloc(void *old, size_t bytes) {
  if (fails(SHIM_ALLOCATION))
    return none();
  void *memory = __libc_realloc(old, bytes);
  return old ? memory : given(memory);
}
void *memalign(size_t alignment, size_t bytes) {
  return fails(SHIM_ALLOCATION) ? none() : given(__libc_memalign(alignment, bytes));
}
void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void **memory, size_t alignment, size_t bytes) {
  void *made = memalign(alignment, bytes);
  if (!made)
    return ENOMEM;
  *memory = made;
  return 0;
}
void free(void *memory) {
  if (memory && kind)
    --live;
  __libc_free(memory);
}

/* ---- The operating system ------------------------------------------------------------------- */

/* Whether this call fails, with errno set; may not come back. */
static int refused(void) {
  if (fails(SHIM_KILL))
    kill(getpid(), SIGKILL);
  if (!fails(SHIM_SYSTEM))
    return 0;
  errno = error_number;
  return 1;
}

#define NEXT(result, name, ...)                                                                    \
  static result (*next)(__VA_ARGS__);                                                              \
  if (!next)                                                                                       \
  next = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define MODE_OF(flags, mode)                                                                       \
  mode_t mode = 0;                                                                                 \
  if ((flags) & (O_CREAT | O_TMPFILE)) {                                                           \
    va_list list;                                                                                  \
    va_start(list, flags);                                                                         \
    mode = va_arg(list, mode_t);                                                                   \
    va_end(list);                                                                                  \
  }

int open(const char *path, int flags, ...) {
  NEXT(int, open, const char *, int, ...);
  MODE_OF(flags, mode)
  return refused() ? -1 : next(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  NEXT(int, open64, const char *, int, ...);
  MODE_OF(flags, mode)
  return refused() ? -1 : next(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
  NEXT(int, openat, int, const char *, int, ...);
  MODE_OF(flags, mode)
  return refused() ? -1 : next(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
  NEXT(int, openat64, int, const char *, int, ...);
  MODE_OF(flags, mode)
  return refused() ? -1 : next(folder, path, flags, mode);
}
ssize_t read(int file, void *bytes, size_t size) {
  NEXT(ssize_t, read, int, void *, size_t);
  if (refused())
    return -1;
  return next(file, bytes, size > 1 && fails(SHIM_SHORT) ? size / 2 : size);
}
ssize_t pread(int file, void *bytes, size_t size, off_t at) {
  NEXT(ssize_t, pread, int, void *, size_t, off_t);
  if (refused())
    return -1;
  return next(file, bytes, size > 1 && fails(SHIM_SHORT) ? size / 2 : size, at);
}
ssize_t write(int file, const void *bytes, size_t size) {
  NEXT(ssize_t, write, int, const void *, size_t);
  if (refused())
    return -1;
  return next(file, bytes, size > 1 && fails(SHIM_SHORT) ? size / 2 : size);
}
ssize_t send(int file, const void *bytes, size_t size, int flags) {
  NEXT(ssize_t, send, int, const void *, size_t, int);
  if (refused())
    return -1;
  return next(file, bytes, size > 1 && fails(SHIM_SHORT) ? size / 2 : size, flags);
}
ssize_t recv(int file, void *bytes, size_t size, int flags) {
  NEXT(ssize_t, recv, int, void *, size_t, int);
  if (refused())
    return -1;
  return next(file, bytes, size > 1 && fails(SHIM_SHORT) ? size / 2 : size, flags);
}
int close(int file) { /* closed all the same, as Linux does */
  NEXT(int, close, int);
  const int result = next(file);
  return refused() ? -1 : result;
}
int fstat(int file, struct stat *status) {
  NEXT(int, fstat, int, struct stat *);
  return refused() ? -1 : next(file, status);
}
int fstatat(int folder, const char *path, struct stat *status, int flags) {
  NEXT(int, fstatat, int, const char *, struct stat *, int);
  return refused() ? -1 : next(folder, path, status, flags);
}
int mkdirat(int folder, const char *path, mode_t mode) {
  NEXT(int, mkdirat, int, const char *, mode_t);
  return refused() ? -1 : next(folder, path, mode);
}
ssize_t readlinkat(int folder, const char *path, char *bytes, size_t size) {
  NEXT(ssize_t, readlinkat, int, const char *, char *, size_t);
  return refused() ? -1 : next(folder, path, bytes, size);
}
int renameat(int from, const char *old, int to, const char *path) {
  NEXT(int, renameat, int, const char *, int, const char *);
  return refused() ? -1 : next(from, old, to, path);
}
int unlinkat(int folder, const char *path, int flags) {
  NEXT(int, unlinkat, int, const char *, int);
  return refused() ? -1 : next(folder, path, flags);
}
int futimens(int file, const struct timespec times[2]) {
  NEXT(int, futimens, int, const struct timespec *);
  return refused() ? -1 : next(file, times);
}
int fsync(int file) {
  NEXT(int, fsync, int);
  return refused() ? -1 : next(file);
}
int flock(int file, int operation) {
  NEXT(int, flock, int, int);
  return refused() ? -1 : next(file, operation);
}
DIR *fdopendir(int file) {
  NEXT(DIR *, fdopendir, int);
  return refused() ? NULL : next(file);
}
char *realpath(const char *path, char *resolved) {
  NEXT(char *, realpath, const char *, char *);
  return refused() ? NULL : next(path, resolved);
}
int socketpair(int domain, int type, int protocol, int pair[2]) {
  NEXT(int, socketpair, int, int, int, int *);
  return refused() ? -1 : next(domain, type, protocol, pair);
}
int memfd_create(const char *name, unsigned flags) {
  NEXT(int, memfd_create, const char *, unsigned);
  return refused() ? -1 : next(name, flags);
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
  NEXT(void *, mmap, void *, size_t, int, int, int, off_t);
  if ((protection & PROT_WRITE) && (protection & PROT_EXEC))
    ++writable_code;
  return refused() ? MAP_FAILED : next(at, size, protection, flags, file, offset);
}
int mprotect(void *at, size_t size, int protection) {
  NEXT(int, mprotect, void *, size_t, int);
  if ((protection & PROT_WRITE) && (protection & PROT_EXEC))
    ++writable_code;
  return refused() ? -1 : next(at, size, protection);
}
