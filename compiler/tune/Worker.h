// Compiles, checks and times candidates, within a process of its own.
//
// Enters: cases, and schedules one after the other. Leaves: what is wrong with each, or how its
// time compares with the default's. The default and a candidate run in turn, in blocks of calls, on
// the same buffers.
#pragma once

#include "compiler/session/Session.h"
#include "compiler/tune/Case.h"
#include "runtime/measure/Finals.h"

namespace normforge::tune {

/// The outcome of a candidate.
struct Trial {
  CandidateState state = CandidateState::Measured;
  Ratio gain{};
  int pairs = 0;
  double microseconds = 0;
  std::string note{};
};

using Limits = Race::Limits;

class Worker {
public:
  Worker(const TargetDescription &target, bool verify, std::vector<Fault> faults);
  ~Worker();

  /// Draws data and computes what is expected of it; the microseconds of the default. The worker
  /// keeps nothing of the case before.
  llvm::Expected<double> begin(const Case &problem, uint64_t seed);
  Trial attempt(const std::string &schedule, const Limits &limits);
  /// The last measurements: the default, and these schedules.
  llvm::Expected<Finals> finish(const std::vector<std::string> &schedules,
                                const Finals::Limits &limits);

private:
  struct State;
  std::unique_ptr<Session> session_;
  const std::vector<Fault> faults_;
  std::unique_ptr<State> state_;
};

/// Elements of the data up to which candidates are checked at the case's own sizes. Larger ones are
/// checked at smaller named sizes, by the same code, and, if they are not behind, at their own
/// compared with the default.
constexpr int64_t kCheckedElements = 1 << 18;
oracle::Sizes checkedSizes(const Case &problem);

} // namespace normforge::tune
