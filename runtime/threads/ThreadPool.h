// Threads for hosts that have none of their own: an nf_executor.
#pragma once

#include "normforge/normforge.h"

#include <atomic>

namespace normforge {

/// Its threads begin at the first call that has work for them; what the system refuses to begin,
/// the others do. May be used from several threads at once, of which one has the pool's threads and
/// the others run their own tasks. A child after fork begins threads of its own.
///
/// Ranges are contiguous, one a thread, so that a thread finds in its cache what it wrote in the
/// stage before.
class ThreadPool {
public:
  /// `threads`, at least 1, with the caller.
  explicit ThreadPool(unsigned threads);
  /// Nothing of it runs any more.
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  unsigned threads() const { return threads_; }
  /// Lives as long as the pool.
  const nf_executor &executor() const { return executor_; }

private:
  struct Crew;

  void run(uint64_t tasks, nf_body_fn *body, void *data);
  Crew *crewOfThisProcess();

  const unsigned threads_;
  nf_executor executor_{};
  std::atomic<Crew *> crew_{nullptr};
};

} // namespace normforge
