#include "compiler/tune/Search.h"

#include "compiler/tune/Estimate.h"

#include <algorithm>

namespace normforge::tune {

namespace {

/// Around a candidate with this share of the best gain so far, neighbors join: two knobs may help
/// together where neither does alone.
constexpr double kNearBest = 0.97;
/// The model is not trusted beyond this.
constexpr double kMostCorrection = 4;

} // namespace

Search::Search(const Case &of, const TargetDescription &target, Effort effort)
    : case_(of), target_(target), isWide_(effort != Effort::Quick),
      isExhaustive_(effort == Effort::Exhaustive) {
  standard_ = estimateNanoseconds(of.standard, of.op, of.sizeValues, target, of.threads);
  known_.insert(canonical(of.standard));
  add(scheduleForms(of.op, target), 1, /*areForms=*/true);
  add(neighborSchedules(of.standard, of.op, target, isWide_), 1);
}

/// The text at the case's sizes: what takes more than there is takes all. Stages of partials stay
/// as they are: those that merge them have a loop for each that is cut.
std::string Search::canonical(const Schedule &schedule) const {
  Schedule same = schedule;
  for (size_t i = 0; i < same.stages.size(); ++i) {
    const std::vector<StageLoop> loops = stageLoops(case_.op, schedule, i);
    StagePlan &stage = same.stages[i];
    const bool isPartial = std::ranges::any_of(
        stage.steps, [](const StepPlan &plan) { return plan.part == Part::Partial; });
    for (size_t loop = 0; !isPartial && loop < loops.size(); ++loop) {
      const auto size = loops[loop].size.evaluate(case_.sizeValues);
      if (size && stage.chunks[loop] >= *size)
        stage.chunks[loop] = 0;
    }
  }
  return same.text(case_.op);
}

void Search::add(std::vector<Schedule> schedules, double correction, bool areForms) {
  for (Schedule &schedule : schedules) {
    if (case_.bits == BitsPolicy::Fixed && !haveSameBits(schedule, case_.standard, case_.op))
      continue;
    if (!known_.insert(canonical(schedule)).second)
      continue;
    const double estimate =
        estimateNanoseconds(schedule, case_.op, case_.sizeValues, target_, case_.threads);
    std::string text = schedule.text(case_.op);
    queue_.push({areForms, standard_ / estimate * correction, estimate, std::move(text),
                 std::move(schedule)});
  }
}

std::optional<std::string> Search::next() {
  if (queue_.empty())
    return std::nullopt;
  Candidate candidate = queue_.top();
  queue_.pop();
  std::string text = candidate.text;
  open_.emplace(text, std::move(candidate));
  return text;
}

void Search::tell(const std::string &schedule, double gain) {
  const auto found = open_.find(schedule);
  if (found == open_.end())
    return;
  const Candidate candidate = std::move(found->second);
  open_.erase(found);
  best_ = std::max(best_, gain);
  if (!isExhaustive_ && gain < kNearBest * best_)
    return;
  const double correction =
      std::clamp(gain * candidate.estimate / standard_, 1 / kMostCorrection, kMostCorrection);
  add(neighborSchedules(candidate.schedule, case_.op, target_, isWide_), correction);
}

} // namespace normforge::tune
