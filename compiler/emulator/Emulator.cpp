// Jumps between stacks are what a fortified C library takes for a mistake.
#undef _FORTIFY_SOURCE

#include "compiler/emulator/Emulator.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <ucontext.h>

namespace normforge::emulator {

namespace {

/// Some times what abi.h lets a kernel take.
constexpr size_t kStackBytes = 64 * 1024;
/// Threads that may exchange values: NVIDIA's subgroup.
constexpr uint64_t kSubgroup = 32;

// Where a stack of its own goes on. Jumps take no call of the system, for they leave the mask of
// signals alone; AddressSanitizer knows contexts alone.
#if defined(__SANITIZE_ADDRESS__)
#define NORMFORGE_USES_CONTEXTS
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NORMFORGE_USES_CONTEXTS
#endif
#endif
#ifdef NORMFORGE_USES_CONTEXTS
using Place = ucontext_t;
void go(Place &from, Place &to) { swapcontext(&from, &to); }
void begin(Place &from, Place &first) { swapcontext(&from, &first); }
#else
using Place = sigjmp_buf;
void go(Place &from, Place &to) {
  if (sigsetjmp(from, /*savemask=*/0) == 0)
    siglongjmp(to, 1);
}
void begin(Place &from, ucontext_t &first) {
  if (sigsetjmp(from, /*savemask=*/0) == 0)
    setcontext(&first);
}
#endif

struct Fiber {
  Place place; ///< where it goes on
  std::unique_ptr<char[]> stack;
  uint64_t given[2] = {}; ///< bits for the others, by the parity of the exchange
  uint64_t exchanges = 0;
  bool ended = true;
};

struct Group {
  Place caller;
  std::deque<Fiber> fibers; ///< more of them than a group has, perhaps; they stay where they are
  uint64_t threads = 0, running = 0;
  ThreadFunction *function = nullptr;
  const nf_call *call = nullptr;
  uint64_t task = 0;
};

/// Kept by a thread of the host, whose fibers never move to another.
Group &ownGroup() {
  thread_local Group group;
  return group;
}

[[noreturn]] void fail(const char *what) {
  std::fprintf(stderr, "normforge: emulated GPU: %s\n", what);
  std::abort();
}

/// The body of a fiber: runs its thread of every task, for ever.
void threadMain() {
  Group &group = ownGroup();
  Fiber &own = group.fibers[group.running];
  while (true) {
    go(own.place, group.caller);
    group.function(group.call, group.task, group.running);
    own.ended = true;
  }
}

/// A fiber that has been to its first place.
void addFiber(Group &group) {
  group.running = group.fibers.size();
  Fiber &fiber = group.fibers.emplace_back();
  fiber.stack = std::make_unique<char[]>(kStackBytes);
  ucontext_t first{};
  getcontext(&first);
  first.uc_stack.ss_sp = fiber.stack.get();
  first.uc_stack.ss_size = kStackBytes;
  makecontext(&first, threadMain, 0);
  begin(group.caller, first);
}

} // namespace

void runTasks(ThreadFunction *function, const nf_call *call, uint64_t first, uint64_t last,
              uint64_t threads) {
  Group &group = ownGroup();
  while (group.fibers.size() < threads)
    addFiber(group);
  group.function = function;
  group.call = call;
  group.threads = threads;
  for (uint64_t task = first; task < last; ++task) {
    group.task = task;
    for (uint64_t thread = 0; thread < threads; ++thread) {
      group.fibers[thread].exchanges = 0;
      group.fibers[thread].ended = false;
    }
    uint64_t ended = 0;
    while (ended < threads) {
      // To its next exchange each, or to its end.
      ended = 0;
      for (uint64_t i = 0; i < threads; ++i) {
        group.running = task % 2 ? threads - 1 - i : i;
        Fiber &fiber = group.fibers[group.running];
        go(group.caller, fiber.place);
        ended += group.fibers[group.running].ended;
      }
      if (ended != 0 && ended != threads)
        fail("a value is exchanged by some threads of a group only");
    }
  }
}

uint64_t exchange(uint64_t bits, uint64_t distance) {
  Group &group = ownGroup();
  const uint64_t own = group.running, other = own ^ distance;
  Fiber &fiber = group.fibers[own];
  const uint64_t parity = fiber.exchanges++ % 2;
  fiber.given[parity] = bits;
  if (other >= group.threads || group.threads > kSubgroup)
    fail("a value is asked of a thread that is not of the group, or not of its subgroup");
  go(fiber.place, group.caller);
  // Who comes first may have begun the next exchange, but not the one after it.
  return group.fibers[other].given[parity];
}

} // namespace normforge::emulator
