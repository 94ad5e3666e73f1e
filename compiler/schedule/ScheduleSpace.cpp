// The schedules to choose from.
#include "compiler/schedule/Schedule.h"

#include <algorithm>
#include <set>

namespace normforge {

namespace {

/// Neighbors of a schedule in one knob of one stage.
class Neighbors {
public:
  Neighbors(const Operator &op, const TargetDescription &target) : op_(op), target_(target) {}

  void add(const Schedule &schedule) {
    if (llvm::Error error = checkSchedule(schedule, op_, target_)) {
      llvm::consumeError(std::move(error));
      return;
    }
    if (known_.insert(schedule.text(op_)).second)
      schedules_.push_back(schedule);
  }
  void addAround(const Schedule &schedule);
  std::vector<Schedule> take() { return std::move(schedules_); }

private:
  template <typename Change> void vary(const Schedule &schedule, size_t stage, Change change) {
    Schedule other = schedule;
    change(other.stages[stage]);
    add(other);
  }

  const Operator &op_;
  const TargetDescription &target_;
  std::vector<Schedule> schedules_;
  std::set<std::string> known_;
};

void Neighbors::addAround(const Schedule &schedule) {
  add(schedule);
  for (size_t i = 0; i < schedule.stages.size(); ++i) {
    const StagePlan &stage = schedule.stages[i];
    const bool columns = stage.tiled == static_cast<int>(stage.chunks.size()) - 1;
    // A task takes whole tiles.
    auto setTile = [](StagePlan &s, int64_t tile) {
      s.tile = tile;
      if (s.tiled >= 0 && s.chunks[s.tiled] > 0)
        s.chunks[s.tiled] = std::max(tile, s.chunks[s.tiled] / tile * tile);
    };
    for (int64_t vector = stage.vector / 2; vector >= 4; vector /= 2)
      vary(schedule, i, [&](StagePlan &s) { s.vector = vector; });
    const int64_t unit = columns ? stage.vector : 1;
    for (int64_t tile : {1, 2, 4, 8, 16})
      vary(schedule, i, [&](StagePlan &s) { setTile(s, tile * unit); });
    // Rows instead of columns and back, where the stage makes elements alone; else it is not legal.
    if (stage.chunks.size() > 1)
      vary(schedule, i, [&](StagePlan &s) {
        s.tiled = static_cast<int>(s.chunks.size()) - (columns ? 2 : 1);
        setTile(s, columns ? 1 : 4 * s.vector);
      });
    for (int64_t unroll : {1, 2, 4, 8})
      vary(schedule, i, [&](StagePlan &s) { s.unroll = unroll; });
    for (size_t loop = 0; loop < stage.chunks.size(); ++loop) {
      const int64_t taken = stage.chunks[loop];
      vary(schedule, i, [&](StagePlan &s) { s.chunks[loop] = 0; });
      for (int64_t factor : {2, 4}) {
        vary(schedule, i, [&](StagePlan &s) { s.chunks[loop] = taken * factor; });
        vary(schedule, i, [&](StagePlan &s) { s.chunks[loop] = taken / factor; });
      }
    }
    for (bool StagePlan::*flag : {&StagePlan::alternates, &StagePlan::prefetches,
                                  &StagePlan::reversed, &StagePlan::streams})
      vary(schedule, i, [&](StagePlan &s) { s.*flag = !(s.*flag); });
  }
}

} // namespace

std::vector<Schedule> scheduleSpace(const Operator &op, const TargetDescription &target) {
  Neighbors neighbors(op, target);
  for (const Schedule &form : scheduleForms(op, target))
    neighbors.addAround(form);
  return neighbors.take();
}

llvm::Expected<std::vector<ScheduleVariant>>
chooseSchedules(const Operator &op, const TargetDescription &target, llvm::StringRef forced) {
  if (forced.empty())
    return selectSchedules(op, target);
  llvm::Expected<Schedule> schedule = parseSchedule(forced, op);
  if (!schedule)
    return schedule.takeError();
  if (llvm::Error error = checkSchedule(*schedule, op, target))
    return error;
  return std::vector<ScheduleVariant>{{std::move(*schedule), Guard{}, "given"}};
}

} // namespace normforge
