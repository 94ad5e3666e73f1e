#include "runtime/threads/ThreadPool.h"

#include "runtime/fork/ForkGate.h"

#include <algorithm>
#include <csignal>
#include <memory>
#include <new>
#include <pthread.h>
#include <vector>

namespace normforge {
namespace {

/// Looks at a value so often before the thread sleeps: some ten microseconds.
constexpr int kSpins = 4000;

/// A number whose change the system itself waits for, without a lock.
using Number = std::atomic<int>;

/// Waits until it is no longer `old`.
int awaitChange(const Number &value, int old) {
  for (int i = 0; i < kSpins; ++i)
    if (const int now = value.load(std::memory_order_acquire); now != old)
      return now;
  int now;
  while ((now = value.load(std::memory_order_acquire)) == old)
    value.wait(old, std::memory_order_acquire);
  return now;
}

} // namespace

/// The threads of one process, and what they are at.
struct ThreadPool::Crew {
  explicit Crew(unsigned generation) : generation(generation) {}

  const unsigned generation; ///< of forks: threads of another are not here
  std::atomic<bool> isTaken{false};
  // These belong to whoever has taken it.
  bool hasBegun = false;
  std::vector<pthread_t> threads{};
  uint64_t tasks = 0, ranges = 0;
  nf_body_fn *body = nullptr;
  void *data = nullptr;

  Number turn{0}, running{0};
  std::atomic<bool> isEnding{false};

  struct Member {
    Crew *crew;
    uint64_t index;
  };

  /// As many as the system gives, of `others` beside the caller.
  void begin(unsigned others) {
    hasBegun = true;
    sigset_t all, before; // signals are for the host's threads
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    try {
      threads.reserve(others);
      for (uint64_t index = 1; index <= others; ++index) {
        auto member = std::make_unique<Member>(Member{this, index});
        pthread_t thread;
        if (pthread_create(&thread, nullptr, work, member.get()) != 0)
          break;
        (void)member.release(); // the thread's
        pthread_setname_np(thread, "normforge");
        threads.push_back(thread);
      }
    } catch (const std::bad_alloc &) { // those that there are
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void end() {
    isEnding = true;
    turn.fetch_add(1, std::memory_order_release);
    turn.notify_all();
    for (const pthread_t thread : threads)
      pthread_join(thread, nullptr);
  }

  void runRange(uint64_t index) const {
    const uint64_t each = tasks / ranges, more = tasks % ranges;
    const uint64_t first = index * each + std::min(index, more);
    const uint64_t last = first + each + (index < more ? 1 : 0);
    if (first < last)
      body(data, first, last);
  }

  static void *work(void *given) {
    const std::unique_ptr<Member> member(static_cast<Member *>(given));
    Crew &crew = *member->crew;
    for (int seen = 0;;) {
      seen = awaitChange(crew.turn, seen);
      if (crew.isEnding)
        return nullptr;
      if (member->index < crew.ranges)
        crew.runRange(member->index);
      if (crew.running.fetch_sub(1, std::memory_order_acq_rel) == 1)
        crew.running.notify_all();
    }
  }

  void runAll(uint64_t count, nf_body_fn *of, void *with) {
    tasks = count;
    ranges = std::min<uint64_t>(threads.size() + 1, count);
    body = of;
    data = with;
    running.store(static_cast<int>(threads.size()), std::memory_order_relaxed);
    turn.fetch_add(1, std::memory_order_release);
    turn.notify_all();
    runRange(0);
    for (int left; (left = running.load(std::memory_order_acquire)) != 0;)
      awaitChange(running, left);
  }
};

ThreadPool::ThreadPool(unsigned threads) : threads_(std::max(1U, threads)) {
  executor_.struct_size = sizeof executor_;
  executor_.user = this;
  executor_.parallel_for = [](void *user, uint64_t tasks, nf_body_fn *body, void *data) {
    static_cast<ThreadPool *>(user)->run(tasks, body, data);
  };
}

ThreadPool::~ThreadPool() {
  const std::unique_ptr<Crew> crew(crew_.load());
  if (crew && crew->generation == forkGeneration())
    crew->end();
}

/// Null where there is no memory for it.
ThreadPool::Crew *ThreadPool::crewOfThisProcess() {
  const unsigned now = forkGeneration();
  Crew *crew = crew_.load(std::memory_order_acquire);
  while (!crew || crew->generation != now) {
    std::unique_ptr<Crew> made(new (std::nothrow) Crew(now));
    if (!made)
      return nullptr;
    // A parent's is left as it is: another of its threads may have been at it.
    if (crew_.compare_exchange_weak(crew, made.get(), std::memory_order_acq_rel))
      crew = made.release();
  }
  return crew;
}

void ThreadPool::run(uint64_t tasks, nf_body_fn *body, void *data) {
  Crew *crew = tasks > 1 && threads_ > 1 ? crewOfThisProcess() : nullptr;
  if (!crew || crew->isTaken.exchange(true, std::memory_order_acquire)) {
    body(data, 0, tasks);
    return;
  }
  if (!crew->hasBegun)
    crew->begin(threads_ - 1);
  crew->runAll(tasks, body, data);
  crew->isTaken.store(false, std::memory_order_release);
}

} // namespace normforge
