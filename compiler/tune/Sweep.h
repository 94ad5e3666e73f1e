// A sweep: case after case, each tuned and recorded.
//
//   for each case that has no result yet:
//     the default is compiled, checked and timed
//     candidates, the most promising first: each checked, then timed beside the default; recorded
//     the best few, measured afresh beside two copies of the default
//     the best of those, once more: this is what is told of its gain
//     a result, recorded: the default stays unless the gain's interval is wholly above 1 and the
//     gain above what two copies of the default differ by
#pragma once

#include "compiler/tune/RecordFile.h"
#include "compiler/tune/Search.h"
#include "compiler/tune/WorkerProcess.h"

#include <functional>

namespace normforge::tune {

struct SweepOptions {
  Effort effort = Effort::Quick;
  double seconds = 0; ///< for all; 0: no limit
  bool again = false; ///< measures what is there and noisy once more
  uint64_t seed = 0;
  WorkerOptions worker;
};

/// An event of a sweep, for whoever shows it.
struct Event {
  enum class Kind : uint8_t {
    CaseBegins,
    Candidate,  ///< one more was tried
    CaseEnds,   ///< with `result`
    CaseFailed, ///< `text` says why
    CaseKnown,  ///< a result was there
  };
  Kind kind;
  size_t index = 0;       ///< of the case
  size_t tried = 0;       ///< of its candidates
  double best = 1;        ///< gain so far
  double secondsLeft = 0; ///< of the whole, about
  const ResultRecord *result = nullptr;
  const CandidateRecord *candidate = nullptr;
  std::string text{};
};

struct SweepOutcome {
  size_t done = 0, known = 0, failed = 0;
  size_t left = 0; ///< for lack of time, or because it was asked to stop
  std::map<CandidateState, int> counts{};
};

/// Errors are of the file. `isStopped` is asked between candidates.
llvm::Expected<SweepOutcome> sweep(std::span<const Case> cases, const SweepOptions &options,
                                   RecordWriter &writer, const Records &held,
                                   const std::function<void(const Event &)> &show,
                                   const std::function<bool()> &isStopped);

/// About how long a case is searched.
double secondsOf(Effort effort);

/// The cases of one shard of several, by turns: `index` from 1. Cases that are one for records are
/// taken once.
std::vector<Case> distinctCases(std::vector<Case> cases);
std::vector<Case> shardOf(std::vector<Case> cases, size_t index, size_t count);

} // namespace normforge::tune
