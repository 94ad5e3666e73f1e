// Kernels of one problem, timed in turn: blocks of calls of one, then of the other.
#pragma once

#include "runtime/measure/KernelCall.h"
#include "runtime/measure/Ratio.h"

namespace normforge {

class Race {
public:
  /// `isCold`: before each call its arrays are taken out of the caches.
  Race(const nf_executor &executor, bool isCold) : executor_(executor), isCold_(isCold) {}

  struct Limits {
    int leastPairs = 5; ///< before one is dropped that is not far behind
    int mostPairs = 15;
    double seconds = 0.3; ///< that one has, if it is not dropped
  };
  struct Result {
    Ratio gain{};          ///< the standard's time over the candidate's
    int pairs = 0;         ///< of blocks
    double seconds = 0;    ///< of a call of the candidate
    bool isBehind = false; ///< it was dropped: the interval was wholly below 1
  };
  /// Until the candidate is wholly behind or its time is over.
  Result against(KernelCall &standard, KernelCall &candidate, const Limits &limits);

  /// Whether a gain is one: its interval is wholly above 1, and it is more than two copies of one
  /// kernel were apart.
  static bool isSure(const Ratio &gain, const Ratio &noise) {
    return gain.low > 1 && gain.value > noise.high && gain.value * noise.low > 1;
  }

  struct Final {
    Ratio noise{1, 1, 1};        ///< of the standard over the second contender, another copy of it
    std::vector<Result> results; ///< of the others, over the standard
    double standardSeconds = 0, copySeconds = 0;
  };
  /// All in turn, each first in some rounds: the standard, another copy of it, and others. A copy
  /// of `read` and `written` bytes runs beside them where data stay in the caches.
  Final finish(std::span<KernelCall *const> contenders, uint64_t read, uint64_t written,
               double seconds);

  /// The time of a call, roughly.
  double seconds(KernelCall &call);

private:
  double block(KernelCall &call, int calls, bool isFirstCounted);

  const nf_executor executor_;
  const bool isCold_;
};

} // namespace normforge
