// Jumps between stacks are what a fortified C library takes for a mistake.
#undef _FORTIFY_SOURCE

#include "compiler/emulator/Emulator.h"

#include "compiler/emulator/WatchedMemory.h"

#include <algorithm>
#include <cinttypes>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <ucontext.h>
#include <vector>

namespace normforge::emulator {

namespace {

/// Some times what abi.h lets a kernel take.
constexpr size_t kStackBytes = 64 * 1024;

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

/// Where a thread is, when it does not run.
enum class At : uint8_t { Exchange, Barrier, End };

struct Fiber {
  Place place; ///< where it goes on
  std::unique_ptr<char[]> stack;
  At at = At::End;
  // Of an exchange: bits for the others, who they are, and bits from one of them.
  uint64_t given = 0, distance = 0, width = 0, taken = 0;
};

struct Group {
  Place caller;
  std::deque<Fiber> fibers; ///< more of them than a group has, perhaps; they stay where they are
  uint64_t threads = 0, subgroup = 0, running = 0;
  ThreadFunction *function = nullptr;
  const nf_call *call = nullptr;
  uint64_t task = 0;
  uint64_t epoch = 0; ///< barriers passed since the first task, and tasks begun
  WatchedMemory shared;
  uint64_t sharedBytes = 0;
};

/// Kept by a thread of the host, whose fibers never move to another.
Group &ownGroup() {
  thread_local Group group;
  return group;
}

[[noreturn]] void fail(const char *what) {
  const Group &group = ownGroup();
  std::fprintf(stderr,
               "normforge: emulated GPU: task %" PRIu64 ", thread %" PRIu64 " of %" PRIu64 ": %s\n",
               group.task, group.running, group.threads, what);
  std::abort();
}

/// The thread that runs stops here until it is let go on.
void stop(At at) {
  Group &group = ownGroup();
  Fiber &own = group.fibers[group.running];
  own.at = at;
  go(own.place, group.caller);
}

/// The body of a fiber: runs its thread of every task, for ever.
void threadMain() {
  Group &group = ownGroup();
  while (true) {
    stop(At::End);
    group.function(group.call, group.task, group.running);
  }
}

/// A fiber that has been to its first place.
void addFiber(Group &group) {
  group.running = group.fibers.size();
  Fiber &fiber = group.fibers.emplace_back();
  fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  ucontext_t first{};
  getcontext(&first);
  first.uc_stack.ss_sp = fiber.stack.get();
  first.uc_stack.ss_size = kStackBytes;
  makecontext(&first, threadMain, 0);
  begin(group.caller, first);
}

/// The `i`th of so many, a power of two, in an order that depends on the task.
uint64_t inTurn(uint64_t task, uint64_t i, uint64_t count) {
  switch (task % 3) {
  case 0:
    return i;
  case 1:
    return count - 1 - i;
  default:
    return (i * 5 + 3) % count; // shuffled: 5 has no factor with it
  }
}

/// Gives the threads from `first` on that wait for each other what they exchange; false: none do.
bool exchangeAmong(Group &group, uint64_t first, uint64_t count, std::vector<bool> &isReady) {
  bool isDone = false;
  for (uint64_t begin = first; begin < first + count;) {
    const Fiber &leader = group.fibers[begin];
    const uint64_t width = leader.at == At::Exchange ? std::max<uint64_t>(1, leader.width) : 1;
    bool isThere = leader.at == At::Exchange && begin % width == 0;
    for (uint64_t i = begin; i < begin + width && isThere; ++i)
      isThere = i < first + count && group.fibers[i].at == At::Exchange &&
                group.fibers[i].width == width && group.fibers[i].distance == leader.distance;
    if (!isThere) {
      ++begin;
      continue;
    }
    for (uint64_t i = begin; i < begin + width; ++i) {
      group.fibers[i].taken = group.fibers[i ^ leader.distance].given;
      isReady[i - first] = true;
    }
    begin += width;
    isDone = true;
  }
  return isDone;
}

/// Lets the threads from `first` on go on, to a barrier or to their ends.
At runSubgroup(Group &group, uint64_t first, uint64_t count) {
  std::vector<bool> isReady(count, true);
  while (true) {
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t thread = inTurn(group.task, i, count);
      if (!isReady[thread])
        continue;
      isReady[thread] = false;
      group.running = first + thread;
      go(group.caller, group.fibers[group.running].place);
    }
    if (exchangeAmong(group, first, count, isReady))
      continue;
    const At at = group.fibers[first].at;
    for (uint64_t thread = first; thread < first + count; ++thread) {
      group.running = thread;
      if (group.fibers[thread].at != at || at == At::Exchange)
        fail("only some threads of its subgroup come to an exchange or barrier");
    }
    return at;
  }
}

void runTask(Group &group) {
  group.shared.reset(group.sharedBytes);
  const uint64_t width = std::min(group.subgroup, group.threads), count = group.threads / width;
  for (At at = At::Barrier; at != At::End;) {
    ++group.epoch;
    for (uint64_t i = 0; i < count; ++i) {
      const At reached = runSubgroup(group, inTurn(group.task, i, count) * width, width);
      if (i > 0 && reached != at)
        fail("only some threads of the group come to a barrier");
      at = reached;
    }
  }
}

} // namespace

void runTasks(ThreadFunction *function, const nf_call *call, uint64_t first, uint64_t last,
              uint64_t threads, uint64_t subgroup, uint64_t sharedBytes) {
  Group &group = ownGroup();
  while (group.fibers.size() < threads)
    addFiber(group);
  group.function = function;
  group.call = call;
  group.threads = threads;
  group.subgroup = subgroup;
  group.sharedBytes = sharedBytes;
  for (group.task = first; group.task < last; ++group.task)
    runTask(group);
}

uint64_t exchange(uint64_t bits, uint64_t distance, uint64_t width) {
  Group &group = ownGroup();
  if (distance >= width || width > std::min(group.threads, group.subgroup))
    fail("a value is asked of a thread that is not of the group, or not of its subgroup");
  Fiber &fiber = group.fibers[group.running];
  fiber.given = bits;
  fiber.distance = distance;
  fiber.width = width;
  stop(At::Exchange);
  return fiber.taken;
}

void barrier() { stop(At::Barrier); }

void *sharedMemory() { return ownGroup().shared.data(); }

void access(const void *at, uint64_t bytes, uint64_t isStore) {
  Group &group = ownGroup();
  const auto offset = static_cast<uint64_t>(static_cast<const char *>(at) - group.shared.data());
  if (const char *what =
          group.shared.access(offset, bytes, isStore != 0, group.running, group.epoch))
    fail(what);
}

} // namespace normforge::emulator
