// Threads for programs that have none of their own: an nf_executor.
#pragma once

#include "normforge/normforge.h"

#include <atomic>
#include <thread>
#include <vector>

namespace normforge {

/// `threads` with the caller. Ranges are contiguous, one a thread, so that a thread finds in its
/// cache what it wrote in the stage before. One call at a time.
class ThreadPool {
public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  nf_executor executor();

private:
  void work(uint64_t index);
  void runRange(uint64_t index) const;

  std::vector<std::thread> threads_;
  std::atomic<uint64_t> turn_{0}, running_{0};
  std::atomic<bool> isEnding_{false};
  // Of the current turn.
  uint64_t tasks_ = 0, ranges_ = 0;
  nf_body_fn *body_ = nullptr;
  void *data_ = nullptr;
};

} // namespace normforge
