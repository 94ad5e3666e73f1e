#include "runtime/measure/ThreadPool.h"

#include <algorithm>

namespace normforge {

namespace {

/// Looks at a value so often before the thread sleeps: some ten microseconds.
constexpr int kSpins = 4000;

/// Waits until it is no longer `old`.
uint64_t awaitChange(const std::atomic<uint64_t> &value, uint64_t old) {
  for (int i = 0; i < kSpins; ++i)
    if (const uint64_t now = value.load(std::memory_order_acquire); now != old)
      return now;
  uint64_t now;
  while ((now = value.load(std::memory_order_acquire)) == old)
    value.wait(old, std::memory_order_acquire);
  return now;
}

} // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i)
    threads_.emplace_back([this, i] { work(static_cast<uint64_t>(i)); });
}

ThreadPool::~ThreadPool() {
  isEnding_ = true;
  turn_.fetch_add(1, std::memory_order_release);
  turn_.notify_all();
  for (std::thread &thread : threads_)
    thread.join();
}

void ThreadPool::runRange(uint64_t index) const {
  const uint64_t each = tasks_ / ranges_, more = tasks_ % ranges_;
  const uint64_t first = index * each + std::min(index, more);
  const uint64_t last = first + each + (index < more ? 1 : 0);
  if (first < last)
    body_(data_, first, last);
}

void ThreadPool::work(uint64_t index) {
  for (uint64_t seen = 0;;) {
    seen = awaitChange(turn_, seen);
    if (isEnding_)
      return;
    if (index < ranges_)
      runRange(index);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1)
      running_.notify_all();
  }
}

nf_executor ThreadPool::executor() {
  nf_executor executor{};
  executor.struct_size = sizeof executor;
  executor.user = this;
  executor.parallel_for = [](void *user, uint64_t tasks, nf_body_fn *body, void *data) {
    ThreadPool &pool = *static_cast<ThreadPool *>(user);
    const uint64_t others = pool.threads_.size();
    pool.tasks_ = tasks;
    pool.ranges_ = std::min<uint64_t>(others + 1, std::max<uint64_t>(1, tasks));
    pool.body_ = body;
    pool.data_ = data;
    if (pool.ranges_ == 1) {
      pool.runRange(0);
      return;
    }
    pool.running_.store(others, std::memory_order_relaxed);
    pool.turn_.fetch_add(1, std::memory_order_release);
    pool.turn_.notify_all();
    pool.runRange(0);
    for (uint64_t left; (left = pool.running_.load(std::memory_order_acquire)) != 0;)
      awaitChange(pool.running_, left);
  };
  return executor;
}

} // namespace normforge
