#include "compiler/tune/Sweep.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fmt/chrono.h>
#include <fmt/format.h>

namespace normforge::tune {

namespace {

using Clock = std::chrono::steady_clock;
double secondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The time that an effort may take.
struct Allowance {
  double search;    ///< seconds a case, without its beginning
  double candidate; ///< seconds of pairs
  int mostPairs;
  double finals;   ///< seconds of each of the two last measurements
  size_t patience; ///< candidates in a row that are no better than the best
};
Allowance allowanceOf(Effort effort) {
  switch (effort) {
  case Effort::Quick:
    return {2.0, 0.05, 9, 0.25, 60};
  case Effort::Full:
    return {50, 0.2, 21, 2, 400};
  case Effort::Exhaustive:
    return {1e9, 0.2, 21, 3, SIZE_MAX};
  }
  return {};
}

/// Candidates of a case that are known before it begins, by their schedules.
using Known = std::map<std::string, CandidateRecord>;

class CaseSweep {
public:
  CaseSweep(const Case &of, size_t index, const SweepOptions &options, WorkerProcess &worker,
            RecordWriter &writer, const std::function<void(const Event &)> &show)
      : case_(of), index_(index), options_(options), worker_(worker), writer_(writer), show_(show),
        allowance_(allowanceOf(options.effort)) {}

  /// The result; nothing where it was stopped. `failed` says why there can be none.
  llvm::Expected<std::optional<ResultRecord>> run(const Known &known, double secondsLeft,
                                                  const std::function<bool()> &isStopped,
                                                  std::string &failed);
  std::map<CandidateState, int> counts() const { return counts_; }

private:
  llvm::Error search(const Known &known, double secondsLeft,
                     const std::function<bool()> &isStopped);
  bool decide(ResultRecord &result, std::string &failed);

  const Case &case_;
  const size_t index_;
  const SweepOptions &options_;
  WorkerProcess &worker_;
  RecordWriter &writer_;
  const std::function<void(const Event &)> &show_;
  const Allowance allowance_;
  std::vector<CandidateRecord> tried_;
  std::map<CandidateState, int> counts_;
  bool isStopped_ = false; ///< by whom it is for, or for lack of time
  std::string failed_;
};

llvm::Error CaseSweep::search(const Known &known, double secondsLeft,
                              const std::function<bool()> &isStopped) {
  Search search(case_, options_.worker.target, options_.effort);
  const Clock::time_point start = Clock::now();
  double best = 1;
  size_t since = 0; // candidates since the best
  while (secondsSince(start) < allowance_.search && since < allowance_.patience) {
    // A case that is not searched to its end has no result: the next start goes on.
    if (isStopped() || secondsSince(start) > secondsLeft) {
      isStopped_ = true;
      break;
    }
    const auto text = search.next();
    if (!text)
      break;
    CandidateRecord record;
    if (const auto found = known.find(*text); found != known.end()) {
      record = found->second;
    } else {
      auto trial = worker_.attempt(
          *text, {Race::Limits().leastPairs, allowance_.mostPairs, allowance_.candidate});
      if (!trial) { // no fault of the candidate's
        failed_ = llvm::toString(trial.takeError());
        break;
      }
      record = {case_.key.id(),      *text,      trial->state, trial->gain, trial->pairs,
                trial->microseconds, trial->note};
      if (llvm::Error error = writer_.write(toLine(record)))
        return error;
    }
    ++counts_[record.state];
    // One that was dropped early may still be near.
    const double gain = record.pairs > 0 ? record.gain.value : 0;
    search.tell(*text, gain);
    ++since;
    if (record.state == CandidateState::Measured && gain > best * 1.005) {
      best = gain;
      since = 0;
    }
    tried_.push_back(std::move(record));
    Event event{Event::Kind::Candidate, index_, tried_.size(), best};
    event.candidate = &tried_.back();
    show_(event);
  }
  return llvm::Error::success();
}

/// By the last measurements.
bool CaseSweep::decide(ResultRecord &result, std::string &failed) {
  std::vector<std::pair<double, std::string>> gains;
  for (const CandidateRecord &record : tried_)
    if (record.state == CandidateState::Measured)
      gains.emplace_back(record.gain.value, record.schedule);
  const std::vector<std::string> schedules = finalistsOf(std::move(gains));
  Finals::Limits limits;
  limits.seconds = allowance_.finals;
  auto found = worker_.finish(schedules, limits);
  if (!found) {
    failed = "the last measurements: " + llvm::toString(found.takeError());
    return false;
  }
  result.schedule = found->best ? schedules[*found->best] : case_.key.standard;
  result.gain = found->result.gain;
  result.pairs = found->result.pairs;
  result.microseconds = found->result.seconds * 1e6;
  result.noise = found->noise;
  result.standardMicroseconds = found->standardSeconds * 1e6;
  result.copyMicroseconds = found->copySeconds * 1e6;
  return true;
}

llvm::Expected<std::optional<ResultRecord>> CaseSweep::run(const Known &known, double secondsLeft,
                                                           const std::function<bool()> &isStopped,
                                                           std::string &failed) {
  const Clock::time_point start = Clock::now();
  if (auto us = worker_.begin(index_); !us) {
    failed = llvm::toString(us.takeError());
    return std::nullopt;
  }
  if (llvm::Error error =
          search(known, secondsLeft - secondsSince(start) - 2 * allowance_.finals, isStopped))
    return error;
  failed = failed_;
  if (!failed.empty())
    return std::nullopt;
  if (isStopped_)
    return std::nullopt;
  ResultRecord result;
  result.key = case_.key;
  describe(result, case_);
  result.effort = options_.effort;
  result.counts = counts_;
  if (!decide(result, failed))
    return std::nullopt;
  result.seconds = secondsSince(start);
  result.date = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  if (llvm::Error error = writer_.write(toLine(result)))
    return error;
  return result;
}

} // namespace

double secondsOf(Effort effort) {
  const Allowance allowance = allowanceOf(effort);
  return allowance.search + 2 * allowance.finals;
}

llvm::Expected<SweepOutcome> sweep(std::span<const Case> cases, const SweepOptions &options,
                                   RecordWriter &writer, const Records &held,
                                   const std::function<void(const Event &)> &show,
                                   const std::function<bool()> &isStopped) {
  const Clock::time_point start = Clock::now();
  std::multimap<std::string, const ResultRecord *> results; // by case
  for (const ResultRecord &record : held.results)
    results.emplace(record.key.id(), &record);
  // A result that would not be used now was measured for nothing.
  auto isUsable = [&](const ResultRecord &record, const Operator &op) {
    auto schedule = parseSchedule(record.schedule, op);
    llvm::Error error =
        schedule ? checkSchedule(*schedule, op, options.worker.target) : schedule.takeError();
    const bool isLegal = !error;
    llvm::consumeError(std::move(error));
    return isLegal && record.effort >= options.effort && !(options.again && record.isNoisy());
  };
  auto isKnown = [&](const Case &one) {
    const auto [begin, end] = results.equal_range(one.key.id());
    return std::any_of(begin, end, [&](const auto &of) { return isUsable(*of.second, one.op); });
  };
  std::map<std::string, Known> known;
  for (const CandidateRecord &record : held.candidates)
    known[record.caseId].emplace(record.schedule, record);
  if (options.again) // they were measured beside the same noise
    for (const ResultRecord &record : held.results)
      if (record.isNoisy())
        known.erase(record.key.id());

  SweepOutcome outcome;
  std::vector<size_t> open;
  for (size_t i = 0; i < cases.size(); ++i) {
    if (!isKnown(cases[i])) {
      open.push_back(i);
      continue;
    }
    ++outcome.known;
    show({Event::Kind::CaseKnown, i});
  }
  WorkerProcess worker(options.worker, cases, options.seed);
  double spent = 0; // on cases that ended
  for (size_t n = 0; n < open.size(); ++n) {
    const double secondsLeft =
        options.seconds > 0 ? options.seconds - secondsSince(start) : HUGE_VAL;
    if (secondsLeft <= 0 || isStopped()) {
      outcome.left = open.size() - n;
      break;
    }
    const size_t i = open[n];
    const Clock::time_point begun = Clock::now();
    auto forward = [&](const Event &event) {
      Event with = event;
      const double each =
          n > 0 ? spent / static_cast<double>(n) : std::min(secondsOf(options.effort), 60.0);
      with.secondsLeft =
          std::max(0.0, each * static_cast<double>(open.size() - n) - secondsSince(begun));
      if (options.seconds > 0)
        with.secondsLeft = std::min(with.secondsLeft, options.seconds - secondsSince(start));
      show(with);
    };
    forward({Event::Kind::CaseBegins, i});
    const std::function<void(const Event &)> showing = forward;
    CaseSweep one(cases[i], i, options, worker, writer, showing);
    std::string failed;
    auto result = one.run(known[cases[i].key.id()], secondsLeft, isStopped, failed);
    if (!result)
      return result.takeError();
    for (const auto &[state, count] : one.counts())
      outcome.counts[state] += count;
    if (!failed.empty()) {
      ++outcome.failed;
      Event event{Event::Kind::CaseFailed, i};
      event.text = failed;
      forward(event);
    } else if (!*result) { // stopped
      outcome.left = open.size() - n;
      break;
    } else {
      ++outcome.done;
      Event event{Event::Kind::CaseEnds, i};
      event.result = &**result;
      event.best = (*result)->gain.value;
      forward(event);
    }
    spent += secondsSince(begun);
  }
  return outcome;
}

std::vector<Case> distinctCases(std::vector<Case> cases) {
  std::set<std::string> seen;
  std::erase_if(cases, [&](const Case &one) { return !seen.insert(one.key.id()).second; });
  return cases;
}

std::vector<Case> shardOf(std::vector<Case> cases, size_t index, size_t count) {
  std::vector<Case> own;
  for (size_t i = index - 1; i < cases.size(); i += count)
    own.push_back(std::move(cases[i]));
  return own;
}

} // namespace normforge::tune
