#include "compiler/cli/TuneProgress.h"

#include "llvm/Support/JSON.h"
#include "llvm/Support/raw_ostream.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fmt/format.h>
#include <unistd.h>

namespace normforge::cli {

std::string ratioText(const Ratio &ratio) {
  return fmt::format("{:.2f} ({:.2f}-{:.2f})", ratio.value, ratio.low, ratio.high);
}
std::string noiseText(const Ratio &noise) {
  return fmt::format("+-{:.1f} %", 100 * noise.fromOne());
}

namespace {

std::string countsText(const std::map<CandidateState, int> &counts) {
  int all = 0;
  std::string text;
  for (const auto &[state, count] : counts)
    all += count;
  for (CandidateState state : kCandidateStates) {
    const auto found = counts.find(state);
    const int count = found == counts.end() ? 0 : found->second;
    const bool isBad = state == CandidateState::Wrong || state == CandidateState::Crashed;
    if (count > 0 || isBad)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, toString(state).str());
  }
  return fmt::format("{} candidates: {}", all, text);
}

class Text final : public TuneProgress {
public:
  explicit Text(std::span<const tune::Case> cases)
      : cases_(cases), isTerminal_(isatty(STDERR_FILENO) != 0) {
    for (const tune::Case &one : cases)
      width_ = std::max(width_, one.title().size());
  }

  void begin(const std::string &machine, size_t all, const Shard &shard,
             const std::string &path) override {
    fmt::print("{}\n", machine);
    if (shard.count > 1)
      fmt::print("{} cases, shard {} of {} ({}): {}\n", all, shard.index, shard.count, shard.source,
                 cases_.size());
    else
      fmt::print("{} cases\n", all);
    fmt::print(
        "records go to {}; gain: the default's time over the tuned schedule's, 95 % interval; "
        "noise: of two copies of the default\n\n",
        path);
    fmt::print("{:<{}} {:>10} {:>10}  {:<18} {:>9} {:>6}  {}\n", "case", width_, "default us",
               "tuned us", "gain", "noise", "tried", "");
    std::fflush(stdout);
  }

  void show(const tune::Event &event) override {
    const tune::Case &one = cases_[event.index];
    switch (event.kind) {
    case tune::Event::Kind::CaseBegins:
      line(event, one, "");
      return;
    case tune::Event::Kind::Candidate:
      line(event, one, fmt::format(": {} tried, best {:.2f}", event.tried, event.best));
      if (event.candidate->state == CandidateState::Wrong ||
          event.candidate->state == CandidateState::Crashed ||
          event.candidate->state == CandidateState::TimedOut) {
        clear();
        fmt::print("{:<{}} {}: {}\n    {}\n", one.title(), width_,
                   toString(event.candidate->state).str(), event.candidate->note,
                   event.candidate->schedule);
        std::fflush(stdout);
      }
      return;
    case tune::Event::Kind::CaseEnds: {
      clear();
      const ResultRecord &result = *event.result;
      int tried = 0;
      for (const auto &[state, count] : result.counts)
        tried += count;
      gains_.push_back(result.gain.value);
      worstNoise_ = std::max(worstNoise_, result.noise.fromOne());
      noisy_ += result.isNoisy();
      fmt::print("{:<{}} {:>10.1f} {:>10.1f}  {:<18} {:>9} {:>6}\n", one.title(), width_,
                 result.standardMicroseconds, result.microseconds,
                 result.isTuned() ? ratioText(result.gain) : "default stays",
                 noiseText(result.noise), tried);
      std::fflush(stdout);
      return;
    }
    case tune::Event::Kind::CaseFailed:
      clear();
      fmt::print("{:<{}} failed: {}\n", one.title(), width_, event.text);
      std::fflush(stdout);
      return;
    case tune::Event::Kind::CaseKnown:
      return;
    }
  }

  void clear() override {
    if (isTerminal_)
      fmt::print(stderr, "\r\033[K");
  }

  void end(const tune::SweepOutcome &outcome, const std::string &path, bool wasStopped) override {
    clear();
    fmt::print("\n{} tuned, {} were there, {} failed, {} left{}; {}\n", outcome.done, outcome.known,
               outcome.failed, outcome.left,
               wasStopped         ? " (stopped: start again to go on)"
               : outcome.left > 0 ? " for lack of time: start again to go on"
                                  : "",
               countsText(outcome.counts));
    if (gains_.empty())
      return;
    if (noisy_ > 0)
      fmt::print(
          "{} of them {} too noisy to choose by: two copies of the default differ by more than "
          "{:.0f} %.\nIs the machine doing something else? --again measures them again\n",
          noisy_, noisy_ == 1 ? "is" : "are", 100 * ResultRecord::kMostNoise);
    fmt::print("gain {:.3f} in the geometric mean; noise at most {:.1f} %\nuse it: normforge "
               "check SPEC --tuned {}\n",
               geometricMean(gains_), 100 * worstNoise_, shellWord(path));
  }

private:
  void line(const tune::Event &event, const tune::Case &one, const std::string &what) {
    if (!isTerminal_)
      return;
    fmt::print(stderr, "\r\033[K[{}/{}] {}{}; {} left", event.index + 1, cases_.size(), one.title(),
               what, durationInWords(event.secondsLeft));
    std::fflush(stderr);
  }

  const std::span<const tune::Case> cases_;
  const bool isTerminal_;
  size_t width_ = 4;
  std::vector<double> gains_;
  int noisy_ = 0;
  double worstNoise_ = 0;
};

class Json final : public TuneProgress {
public:
  explicit Json(std::span<const tune::Case> cases) : cases_(cases) {}

  void begin(const std::string &machine, size_t all, const Shard &shard,
             const std::string &path) override {
    print(llvm::json::Object{{"event", "begin"},
                             {"machine", machine},
                             {"cases", static_cast<int64_t>(all)},
                             {"shard", static_cast<int64_t>(shard.index)},
                             {"shards", static_cast<int64_t>(shard.count)},
                             {"own_cases", static_cast<int64_t>(cases_.size())},
                             {"records", llvm::json::fixUTF8(path)}});
  }
  void show(const tune::Event &event) override {
    constexpr const char *names[] = {"case_begins", "candidate", "case_ends", "case_failed",
                                     "case_known"};
    llvm::json::Object object{{"event", names[static_cast<size_t>(event.kind)]},
                              {"case", llvm::json::fixUTF8(cases_[event.index].title())},
                              {"index", static_cast<int64_t>(event.index)}};
    if (event.kind != tune::Event::Kind::CaseKnown)
      object["seconds_left"] = std::round(event.secondsLeft);
    if (event.kind == tune::Event::Kind::Candidate)
      object["tried"] = static_cast<int64_t>(event.tried), object["best"] = event.best;
    for (const std::string &line : {event.candidate ? toLine(*event.candidate) : std::string(),
                                    event.result ? toLine(*event.result) : std::string()})
      if (!line.empty())
        object["record"] = llvm::cantFail(llvm::json::parse(line));
    if (!event.text.empty())
      object["error"] = llvm::json::fixUTF8(event.text);
    print(std::move(object));
  }
  void end(const tune::SweepOutcome &outcome, const std::string &path, bool wasStopped) override {
    llvm::json::Object counts;
    for (const auto &[state, count] : outcome.counts)
      counts[toString(state).str()] = count;
    print(llvm::json::Object{{"event", "end"},
                             {"tuned", static_cast<int64_t>(outcome.done)},
                             {"known", static_cast<int64_t>(outcome.known)},
                             {"failed", static_cast<int64_t>(outcome.failed)},
                             {"left", static_cast<int64_t>(outcome.left)},
                             {"stopped", wasStopped},
                             {"candidates", std::move(counts)},
                             {"records", llvm::json::fixUTF8(path)}});
  }

private:
  static void print(llvm::json::Object object) {
    std::string text;
    llvm::raw_string_ostream(text) << llvm::json::Value(std::move(object));
    fmt::print("{}\n", text);
    std::fflush(stdout);
  }
  const std::span<const tune::Case> cases_;
};

} // namespace

std::unique_ptr<TuneProgress> makeTextProgress(std::span<const tune::Case> cases) {
  return std::make_unique<Text>(cases);
}
std::unique_ptr<TuneProgress> makeJsonProgress(std::span<const tune::Case> cases) {
  return std::make_unique<Json>(cases);
}

} // namespace normforge::cli
