// The heuristic for GPUs: how a group of threads takes a task.
//
//   rows: the innermost loop is not kept          columns: the innermost loop is kept
//
//        |<- vector ->|                                |<- vector ->|
//        +--+--+--+---+--+--                           +--+--+--+---+
//        |t0|t1|..|   |t0|t1 ...              unroll   |t0|t1|..|   |   down the rows of the task
//        +--+--+--+---+--+--                           +--+--+--+---+
//   a task is a row, or a part of a long one      a task is a vector of columns, and some rows
//
// A thread's part of a vector is one access of the widest kind, where sizes and strides are known
// to be multiples of it; otherwise one element. Of a vector that the loop does not fill, only the
// threads that it reaches have a part.
#include "compiler/schedule/Schedule.h"

#include <algorithm>
#include <bit>
#include <fmt/format.h>
#include <numeric>

namespace normforge {

namespace {

/// Threads of a block, where tasks are small: some blocks of it fill a multiprocessor.
constexpr int64_t kBlockThreads = 128;
/// Threads that exchange what they have summed, at most: a subgroup's.
constexpr int64_t kSubgroup = 32;
/// Threads that share a task at most, and vectors that each of them has in flight.
constexpr int64_t kMostThreads = 256, kVectorsInFlight = 4;
/// Rows of columns that a task takes at least, so that what columns need is made for some.
constexpr int64_t kColumnRows = 32;
/// A named size is taken for this.
constexpr int64_t kNamedSize = 1024;

struct DeviceSelection {
  const Operator &op;
  const TargetDescription &target;

  /// Lanes of a thread: of the last loop, and of a padded block's real size.
  int64_t lanesOf(std::span<const StageLoop> loops) const {
    const auto size = loops.empty() ? std::optional<int64_t>() : loops.back().size.constant();
    const auto limit = op.blocked && op.blocked->padded ? op.blocked->size.constant() : 0;
    if (!size || !limit)
      return 1;
    return std::gcd(std::gcd(*size, *limit), int64_t(target.lanes(byteSize(op.dtype))));
  }

  /// The plan of a stage that does these steps, at the end of `schedule`; `cut` is what tasks have
  /// of loops where they have partial sums, else empty.
  StagePlan plan(Schedule &schedule, std::string name, std::vector<StepPlan> steps,
                 const std::vector<int64_t> &cut = {}) const {
    schedule.stages.push_back({.name = std::move(name), .steps = std::move(steps)});
    StagePlan &stage = schedule.stages.back();
    const std::vector<StageLoop> loops = stageLoops(op, schedule, schedule.stages.size() - 1);
    stage.tiled = tileLoop(loops);
    stage.chunks.assign(loops.size(), 1);
    const int64_t lanes = lanesOf(loops);
    if (loops.empty()) {
      stage.threads = stage.vector = 1;
      return stage;
    }
    const int last = static_cast<int>(loops.size()) - 1;
    const bool columns = stage.tiled == last;
    const int64_t vectors =
        std::max<int64_t>(1, loops.back().size.constant().value_or(kNamedSize) / lanes);
    const bool sums = std::ranges::any_of(stage.steps, [&](const StepPlan &plan) {
      return op.steps[plan.step].reduce != Reduce::None;
    });
    // The most threads of which at least four fifths have work.
    const int64_t wanted = columns ? vectors : (vectors + kVectorsInFlight - 1) / kVectorsInFlight;
    int64_t threads =
        std::min<int64_t>(sums && !columns ? kSubgroup : kMostThreads,
                          static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(wanted))));
    while (threads > 1 && (vectors + threads - 1) / threads * threads * 4 > vectors * 5)
      threads /= 2;
    stage.threads = threads;
    stage.groups = std::max<int64_t>(1, kBlockThreads / threads);
    stage.vector = threads * lanes;
    stage.tile = columns ? stage.vector : 1;
    if (sums) { // all of what is reduced over, or parts of it
      for (int i = 0; i <= last; ++i)
        if (!loops[i].kept)
          stage.chunks[i] = cut.empty() ? 0 : cut[i];
      if (!columns && stage.chunks[last] % stage.vector != 0)
        stage.chunks[last] += stage.vector - stage.chunks[last] % stage.vector;
      if (!columns && stage.tiled >= 0 && !cut.empty())
        stage.chunks[stage.tiled] = std::max<int64_t>(1, cut[stage.tiled]); // rows that carry sums
    }
    if (columns && sums) {
      stage.chunks[last] = stage.tile;
      stage.unroll = last > 0 ? kVectorsInFlight : 1;
      return stage;
    }
    if (columns) {
      stage.chunks[last] = stage.tile;
      stage.unroll = last > 0 ? kVectorsInFlight : 1;
      // Whole loops from the innermost outwards, as long as rows are few.
      int64_t rows = 1;
      for (int i = last - 1; i >= 0 && rows < kColumnRows; --i) {
        const int64_t most = kColumnRows / rows;
        const auto size = loops[i].size.constant();
        stage.chunks[i] = size && *size <= 2 * most ? 0 : most;
        rows *= stage.chunks[i] == 0 ? *size : most;
      }
      return stage;
    }
    stage.unroll = std::clamp<int64_t>(vectors / threads, 1, kVectorsInFlight);
    if (sums)
      return stage;
    const auto size = loops.back().size.constant();
    const int64_t part = stage.vector * kVectorsInFlight;
    stage.chunks[last] = size && *size <= 2 * part ? 0 : part;
    return stage;
  }

  Schedule withSums() const {
    Schedule schedule;
    for (const StagePlan &of : stepsOfStages(op).stages) {
      const bool isPartial = std::ranges::any_of(
          of.steps, [](const StepPlan &plan) { return plan.part == Part::Partial; });
      StagePlan stage =
          plan(schedule, of.name, of.steps, isPartial ? of.chunks : std::vector<int64_t>());
      schedule.stages.back() = std::move(stage);
    }
    return schedule;
  }

  Schedule elementwise() const {
    Schedule schedule; // tails and loads as of any target with masks
    std::vector<StepPlan> statistics, elements;
    bool writes = false;
    for (uint32_t i = 0; i < op.steps.size(); ++i) {
      (op.isWhole(op.steps[i]) ? elements : statistics).push_back({i, Part::Whole});
      writes |= !op.isWhole(op.steps[i]) &&
                std::ranges::any_of(op.steps[i].results,
                                    [](const Result &result) { return result.operand >= 0; });
    }
    // What is written once is made by a stage of its own; the rest each task makes for itself.
    if (!elements.empty() && !writes)
      elements.insert(elements.begin(), statistics.begin(), statistics.end());
    auto add = [&](std::vector<StepPlan> steps) {
      const std::string name = op.steps[steps.back().step].name;
      StagePlan stage = plan(schedule, name, std::move(steps));
      schedule.stages.back() = std::move(stage);
    };
    if (elements.empty() || writes)
      add(std::move(statistics));
    if (!elements.empty())
      add(std::move(elements));
    return schedule;
  }
};

} // namespace

llvm::Error checkIsBuilt(const Operator &op, const TargetDescription &target) {
  if (!target.device)
    return llvm::Error::success();
  if (!op.takesBits())
    return llvm::Error::success();
  return llvm::createStringError(fmt::format("phase {} has bits of a mask, which kernels for {} do "
                                             "not yet (not built)",
                                             toString(op.phase), target.cpu));
}

std::vector<ScheduleVariant> selectDeviceSchedules(const Operator &op,
                                                   const TargetDescription &target) {
  const DeviceSelection selection{op, target};
  if (!op.reduces())
    return {{selection.elementwise(), Guard{}, "statistics are given: every element on its own"}};
  return {{selection.withSums(), Guard{}, "a group has all of some statistics, or parts of them"}};
}

} // namespace normforge
