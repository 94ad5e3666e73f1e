// The schedules to choose from.
#include "compiler/schedule/Schedule.h"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <set>

namespace normforge {

namespace {

/// A task takes whole tiles.
void setTile(StagePlan &stage, int64_t tile) {
  stage.tile = tile;
  if (stage.tiled >= 0 && stage.chunks[stage.tiled] > 0)
    stage.chunks[stage.tiled] = std::max(tile, stage.chunks[stage.tiled] / tile * tile);
}

/// Neighbors of a schedule in one knob, of one stage or of all.
class Neighbors {
public:
  Neighbors(const Operator &op, const TargetDescription &target, bool isWide = false)
      : op_(op), target_(target), isWide_(isWide) {}

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
  std::vector<int64_t> values(std::vector<int64_t> few, const std::vector<int64_t> &more) const {
    if (isWide_)
      few.insert(few.end(), more.begin(), more.end());
    return few;
  }
  template <typename Change> void vary(const Schedule &schedule, size_t stage, Change change) {
    Schedule other = schedule;
    change(other.stages[stage]);
    add(other);
  }

  const Operator &op_;
  const TargetDescription &target_;
  const bool isWide_;
  std::vector<Schedule> schedules_;
  std::set<std::string> known_;
};

void Neighbors::addAround(const Schedule &schedule) {
  add(schedule);
  Schedule paired = schedule;
  paired.pairsHalves = !schedule.pairsHalves;
  add(paired);
  for (size_t i = 0; i < schedule.stages.size(); ++i) {
    const StagePlan &stage = schedule.stages[i];
    const bool columns = stage.tiled == static_cast<int>(stage.chunks.size()) - 1;
    for (int64_t vector = stage.vector / 2; vector >= 4; vector /= 2)
      vary(schedule, i, [&](StagePlan &s) { s.vector = vector; });
    if (isWide_) // and back
      vary(schedule, i, [&](StagePlan &s) { s.vector *= 2; });
    const int64_t unit = columns ? stage.vector : 1;
    for (int64_t tile : values({1, 2, 4, 8, 16}, {3, 5, 6, 10, 12, 20, 24, 32}))
      vary(schedule, i, [&](StagePlan &s) { setTile(s, tile * unit); });
    // Rows instead of columns and back, where the stage makes elements alone; else it is not legal.
    if (stage.chunks.size() > 1)
      vary(schedule, i, [&](StagePlan &s) {
        s.tiled = static_cast<int>(s.chunks.size()) - (columns ? 2 : 1);
        setTile(s, columns ? 1 : 4 * s.vector);
      });
    for (int64_t unroll : values({1, 2, 4, 8}, {3, 6, 12, 16}))
      vary(schedule, i, [&](StagePlan &s) { s.unroll = unroll; });
    for (size_t loop = 0; loop < stage.chunks.size(); ++loop) {
      const int64_t taken = stage.chunks[loop];
      vary(schedule, i, [&](StagePlan &s) { s.chunks[loop] = 0; });
      if (isWide_ && taken == 0) // cut what is taken whole
        for (int64_t wanted = 1; wanted <= 4096; wanted *= 4)
          vary(schedule, i, [&](StagePlan &s) {
            const int64_t tile = static_cast<int>(loop) == s.tiled ? s.tile : 1;
            s.chunks[loop] = (wanted + tile - 1) / tile * tile;
          });
      for (int64_t factor : values({2, 4}, {8, 16})) {
        vary(schedule, i, [&](StagePlan &s) { s.chunks[loop] = taken * factor; });
        vary(schedule, i, [&](StagePlan &s) { s.chunks[loop] = taken / factor; });
      }
    }
    for (int64_t tiles : values({0, 1, 2, 4}, {8, 16}))
      vary(schedule, i, [&](StagePlan &s) { s.prefetch = tiles; });
    // Short rows several in a vector, as many as make whole ones, and back.
    const int64_t lanes = target_.lanes(byteSize(op_.compute));
    const int64_t row = op_.loops[op_.rank() - 1].size.constant().value_or(lanes + 1);
    for (int64_t factor : {1, 2, 4})
      if (row > 1 && row <= lanes)
        vary(schedule, i, [&](StagePlan &s) {
          s.rows = Rows::Packed;
          s.vector = lanes;
          setTile(s, factor * std::lcm(lanes, row) / row);
        });
    for (Rows rows : {Rows::OneByOne, Rows::Together})
      vary(schedule, i, [&](StagePlan &s) { s.rows = rows; });
    if (stage.tile == 1 && !columns)
      for (int64_t tile : {2, 4})
        vary(schedule, i, [&](StagePlan &s) {
          s.rows = Rows::Together;
          setTile(s, tile);
        });
    for (bool StagePlan::*flag :
         {&StagePlan::alternates, &StagePlan::reversed, &StagePlan::streams})
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

std::vector<Schedule> neighborSchedules(const Schedule &schedule, const Operator &op,
                                        const TargetDescription &target, bool isWide) {
  Neighbors neighbors(op, target, isWide);
  neighbors.addAround(schedule);
  return neighbors.take();
}

std::optional<Schedule> withLessInFlight(const Schedule &schedule, const Operator &op,
                                         const TargetDescription &target) {
  Schedule less = schedule;
  for (size_t i = 0; i < less.stages.size(); ++i) {
    StagePlan &stage = less.stages[i];
    const StagePlan before = stage;
    const int64_t unit =
        stage.tiled == static_cast<int>(stage.chunks.size()) - 1 ? stage.vector : 1;
    const std::array<std::function<void()>, 4> ways = {
        [&] { stage.unroll = std::max<int64_t>(1, stage.unroll / 2); },
        [&] { setTile(stage, std::max(unit, stage.tile / 2 / unit * unit)); },
        [&] {
          stage.rows = Rows::OneByOne;
          setTile(stage, unit);
        },
        [&] {
          stage.vector = std::max<int64_t>(1, stage.vector / 2);
          if (unit > 1)
            setTile(stage, stage.vector);
        }};
    for (const auto &way : ways) {
      way();
      if (llvm::Error error = checkSchedule(less, op, target)) {
        llvm::consumeError(std::move(error));
        stage = before;
      }
      if (!(stage == before))
        break;
    }
  }
  return less == schedule ? std::nullopt : std::optional(less);
}

bool haveSameBits(const Schedule &a, const Schedule &b, const Operator &op) {
  if (a.maskedTails != b.maskedTails || a.maskedLoads != b.maskedLoads ||
      a.scalable != b.scalable || a.stages.size() != b.stages.size())
    return false;
  for (size_t i = 0; i < a.stages.size(); ++i) {
    const StagePlan &one = a.stages[i], &other = b.stages[i];
    if (one.steps != other.steps)
      return false;
    const bool reduces = std::any_of(one.steps.begin(), one.steps.end(), [&](const StepPlan &plan) {
      return op.steps[plan.step].reduce != Reduce::None;
    });
    if (!reduces)
      continue;
    const std::vector<StageLoop> loops = stageLoops(op, a, i), others = stageLoops(op, b, i);
    if (a.pairsHalves != b.pairsHalves || one.vector != other.vector ||
        one.threads != other.threads || one.down != other.down || one.held != other.held ||
        one.unroll != other.unroll || (one.rows == Rows::Packed) != (other.rows == Rows::Packed) ||
        one.alternates != other.alternates || one.tiled != other.tiled ||
        loops.size() != others.size())
      return false;
    // A stage that carries sums takes them row by row, as far as a task has rows.
    const bool carries = std::any_of(one.steps.begin(), one.steps.end(), [&](const StepPlan &plan) {
      return isCarried(op, one, plan);
    });
    for (size_t loop = 0; loop < loops.size(); ++loop)
      if ((!loops[loop].kept || carries) && one.chunks[loop] != other.chunks[loop])
        return false;
    if (carries && one.tile != other.tile)
      return false;
  }
  return true;
}

} // namespace normforge
