// Threads of an OpenMP library that is in the process already, PyTorch's: two sets of threads that
// look for work would take the processors from each other.
#pragma once

#include "normforge/normforge.h"

#include <string>
#include <sys/types.h>

namespace normforge::python {

/// An executor; lives as long as what computes with it.
class OpenMp {
public:
  /// Throws std::runtime_error where `library` is not loaded or has not GCC's entries, which LLVM's
  /// and Intel's have too.
  explicit OpenMp(const std::string &library);

  OpenMp(const OpenMp &) = delete;
  OpenMp &operator=(const OpenMp &) = delete;

  const nf_executor &executor() const { return executor_; }
  /// As many as this thread's next region would have.
  int threads() const { return maxThreads_(); }

private:
  void run(uint64_t tasks, nf_body_fn *body, void *data) const;

  void (*parallel_)(void (*body)(void *), void *data, unsigned threads, unsigned flags) = nullptr;
  int (*maxThreads_)() = nullptr;
  int (*threadNumber_)() = nullptr;
  int (*threadCount_)() = nullptr;
  int (*isParallel_)() = nullptr;
  pid_t process_ = 0; ///< its threads are not in a child
  nf_executor executor_{};
};

} // namespace normforge::python
