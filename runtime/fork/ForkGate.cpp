#include "runtime/fork/ForkGate.h"

#include <atomic>
#include <new>
#include <pthread.h>

namespace normforge {
namespace {

#if defined(PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP)
// A fork that waits goes before those that come after it, so that it is not starved.
#define NORMFORGE_GATE PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
#else
#define NORMFORGE_GATE PTHREAD_RWLOCK_INITIALIZER
#endif
pthread_rwlock_t gate = NORMFORGE_GATE;
std::atomic<unsigned> generation{0};
bool isWatching = false;

/// How often this thread holds the gate. Initial-exec: other thread-local storage is allocated when
/// a thread first touches it, and glibc ends the process where there is no memory for it.
[[gnu::tls_model("initial-exec")]] thread_local unsigned held = 0;

void beforeFork() {
  if (held ==
      0) // else this thread forks from within, by a hook of malloc's: it cannot wait for itself
    pthread_rwlock_wrlock(&gate);
}
void afterForkInParent() {
  if (held == 0)
    pthread_rwlock_unlock(&gate);
}
void afterForkInChild() {
  generation.fetch_add(1, std::memory_order_relaxed);
  // A new one: glibc tells who unlocks by the thread's number, which is another here, and the
  // threads that held the old one, or waited for it, are not here.
  gate = NORMFORGE_GATE;
  held = 0;
}

/// When the library is loaded: no thread is in it before, and handlers that are registered later
/// run, before a fork, sooner than these.
[[gnu::constructor]] void watch() {
  isWatching = pthread_atfork(beforeFork, afterForkInParent, afterForkInChild) == 0;
}

} // namespace

void requireForkHandlers() {
  if (!isWatching)
    throw std::bad_alloc();
}

unsigned forkGeneration() { return generation.load(std::memory_order_relaxed); }

ForkGate::ForkGate() {
  if (held++ == 0)
    pthread_rwlock_rdlock(&gate);
}
ForkGate::~ForkGate() {
  if (held > 0 && --held == 0) // 0: a fork's child leaves what its parent entered
    pthread_rwlock_unlock(&gate);
}

} // namespace normforge
