// Threads that the library lends (nf_threads_*).
#include "runtime/api/Guard.h"
#include "runtime/fork/ForkGate.h"
#include "runtime/threads/Processors.h"
#include "runtime/threads/ThreadPool.h"

using namespace normforge;
using namespace normforge::api;

struct nf_threads : Counted {
  explicit nf_threads(unsigned threads) : pool(threads) {}
  ThreadPool pool;
};

extern "C" {

nf_status *nf_threads_create(uint32_t count, nf_threads **threads) {
  return guarded([&](Failure &failure) {
    if (!threads)
      return failNull("threads", failure);
    *threads = nullptr;
    constexpr uint32_t most = 4096;
    if (count > most)
      return failure.set(NF_INVALID_ARGUMENT, std::to_string(count) +
                                                  " threads; expected at most " +
                                                  std::to_string(most));
    requireForkHandlers();
    *threads = new nf_threads(count ? count : std::min(most, processorsToUse()));
    return true;
  });
}
void nf_threads_retain(nf_threads *threads) { retain(threads); }
void nf_threads_release(nf_threads *threads) { release(threads); }
uint32_t nf_threads_count(const nf_threads *threads) { return threads->pool.threads(); }
const nf_executor *nf_threads_executor(const nf_threads *threads) {
  return &threads->pool.executor();
}

} // extern "C"
