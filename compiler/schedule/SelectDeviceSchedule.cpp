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
// Threads are beside each other, and where sums have further loops, `down` of them below each
// other.
//
// A thread's part of a vector is one access of the widest kind, where sizes and strides are known
// to be multiples of it; otherwise one element. Of a vector that the loop does not fill, only the
// threads that it reaches have a part.
//
//   statistics of the data  fused       a group has all of some statistics: its data is in
//                                       registers, or in L2, when it goes through it again
//                           split       a slab is too long, or there are few: partials of chunks,
//                                       their merge, elements
#include "compiler/schedule/Schedule.h"

#include <algorithm>
#include <bit>
#include <fmt/format.h>
#include <numeric>
#include <utility>

namespace normforge {

namespace {

/// Threads of a block, where tasks are small: some blocks of it fill a multiprocessor.
constexpr int64_t kBlockThreads = 128;
/// Threads that share a task, at most: enough for what has a few vectors each. Of those that go
/// through a task's data several times or have it alone, more may.
constexpr int64_t kMostThreads = 256;
/// Blocks that a multiprocessor shall have at once, at most.
constexpr int64_t kMostResident = 8;
/// Vectors that a thread has in flight, and that it has of a task at most before there are more
/// threads, or tasks.
constexpr int64_t kVectorsInFlight = 4, kVectorsOfThread = 16;
/// Columns' vectors beside each other where they are summed: 256 bytes, a few lines of memory.
constexpr int64_t kColumnThreads = 16;
/// Rows of columns that a task takes at least, so that what columns need is made for some.
constexpr int64_t kColumnRows = 32;
/// A named size is taken for this.
constexpr int64_t kNamedSize = 1024;
/// Groups for each multiprocessor below which a kernel's statistics are few: each gets as many
/// threads as have a vector then; and where there are not half as many groups as multiprocessors,
/// slabs are cut from an eighth of their length on.
constexpr int64_t kFewGroups = 2, kIdle = 2, kShareOfSlab = 8;
/// Bytes of registers that a thread needs for addresses and what bodies make, beside what it holds
/// and has in flight: where all that it goes through is held, and where there are loops. (By ptxas
/// 13.0 few of the networks' kernels spill then, and those a few bytes.)
constexpr int64_t kOtherRegisterBytes = 64, kLoopRegisterBytes = 208;

/// Vectors that a thread has of rows that carry sums, which it holds beside them.
constexpr int64_t kCarried = 2;
/// Values of a column that are in registers from step to step, about.
constexpr int64_t kColumnValues = 8;

/// The largest power of two that is not beyond n, which is 1 at least.
int64_t powerUpTo(int64_t n) {
  return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(1, n))));
}

/// So many threads, or as many as have the lanes of a word where a stage has bits.
int64_t leastThreads(const Operator &op, const StagePlan &stage, int64_t threads, int64_t lanes) {
  const bool takesBits = std::ranges::any_of(stage.steps, [&](const StepPlan &plan) {
    return plan.part != Part::Merge && op.takesBits(op.steps[plan.step]);
  });
  return takesBits ? std::max(threads, elementsPerWord(DType::Bit) / lanes) : threads;
}

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

  /// How a stage gets its sums.
  enum class Sums : uint8_t { None, Whole, Partial, Merged };
  Sums sumsOf(const StagePlan &stage) const {
    if (stage.merges())
      return Sums::Merged;
    Sums sums = Sums::None;
    for (const StepPlan &plan : stage.steps)
      if (op.steps[plan.step].reduce != Reduce::None && !isCarried(op, stage, plan))
        sums = plan.part == Part::Partial ? Sums::Partial : Sums::Whole;
    return sums;
  }
  /// Whether a loop's elements are no product of sizes: it is not cut where moments are taken.
  bool isPadded(const StageLoop &loop) const {
    return op.blocked && op.blocked->padded &&
           (loop.loop == op.blocked->outer || loop.loop == op.blocked->inner);
  }
  bool carries(const StagePlan &stage) const {
    return std::ranges::any_of(stage.steps,
                               [&](const StepPlan &plan) { return isCarried(op, stage, plan); });
  }
  static int64_t sizeOf(const StageLoop &loop) { return loop.size.constant().value_or(kNamedSize); }

  /// Threads for so many vectors, `each` for one of them: the most up to `most` of which at least
  /// four fifths have work.
  static int64_t threadsFor(int64_t vectors, int64_t each, int64_t most) {
    const auto wanted = static_cast<uint64_t>((vectors + each - 1) / each);
    int64_t threads = std::min(most, static_cast<int64_t>(std::bit_ceil(wanted)));
    while (threads > 1 && (vectors + threads - 1) / threads * threads * 4 > vectors * 5)
      threads /= 2;
    return threads;
  }

  /// Threads of a group that has all that sums are taken over: as many as a block has where each
  /// has a few vectors, else half of them, of which each has twice the registers.
  int64_t threadsOfAll(const StagePlan &stage, std::span<const StageLoop> loops) const {
    int64_t elements = hasColumns(stage, loops) ? kColumnThreads * lanesOf(loops) : 1;
    for (const StageLoop &loop : loops)
      if (!loop.kept)
        elements *= sizeOf(loop);
    const int64_t most = target.device->blockThreads;
    return elements / lanesOf(loops) <= most * kVectorsInFlight ? most : most / 2;
  }

  /// Takes of the loops that `mayTake` says, from the innermost outwards, about so many iterations
  /// in all: loops whole as long as they fit, and a part of the next one.
  template <typename MayTake>
  static void take(StagePlan &stage, std::span<const StageLoop> loops, int first, int64_t most,
                   MayTake mayTake) {
    int64_t taken = 1;
    for (int i = first; i >= 0 && taken < most; --i) {
      if (!mayTake(i))
        continue;
      const int64_t left = (most + taken - 1) / taken;
      const auto size = loops[i].size.constant();
      stage.chunks[i] = size && *size <= 2 * left ? 0 : left;
      taken *= stage.chunks[i] == 0 ? std::max<int64_t>(1, *size) : left;
    }
  }

  /// The plan of a stage that does the steps of `of`, at the end of `schedule`; `isFew`: there are
  /// few tasks.
  StagePlan plan(Schedule &schedule, const StagePlan &of, bool isFew) const {
    schedule.stages.push_back({.name = of.name, .steps = of.steps});
    StagePlan &stage = schedule.stages.back();
    const std::vector<StageLoop> loops = stageLoops(op, schedule, schedule.stages.size() - 1);
    stage.tiled = tileLoop(loops);
    stage.chunks.assign(loops.size(), 1);
    if (loops.empty()) {
      stage.threads = stage.vector = 1;
      return stage;
    }
    if (hasColumns(stage, loops))
      planColumns(stage, loops);
    else
      planRows(stage, loops, isFew);
    if (carries(stage) && stage.tiled >= 0) // rows that carry sums
      stage.chunks[stage.tiled] = std::max<int64_t>(1, of.chunks[stage.tiled]);
    fit(stage, loops);
    stage.groups = std::max<int64_t>(1, kBlockThreads / stage.groupThreads());
    const int64_t bytes = hold(stage, loops) * (carries(stage) ? 4 : 3) / 2;
    const int64_t threads = stage.groupThreads() * stage.groups;
    stage.resident = std::clamp<int64_t>(
        target.device->registerBytes / (threads * bytes), 1,
        std::min(kMostResident, mostResident(stage, op, loops, *target.device)));
    return stage;
  }

  /// What several passes over a task's data read is held, as far as registers go.
  /// Returns the bytes of registers that a thread needs, about.
  int64_t hold(StagePlan &stage, std::span<const StageLoop> loops) const {
    const bool columns = hasColumns(stage, loops);
    if (heldArrays(op, stage).empty() || (!columns && stage.tile > 1))
      return bytesOfLoops(stage, loops);
    const int64_t slots = slotsOf(stage, loops);
    StagePlan one = stage;
    one.held = slots;
    // Of columns a thread has statistics, and parameters, of each.
    const int64_t perLane = columns ? kColumnValues : 0;
    const int64_t each = bytesHeld(one, op);
    const int64_t most =
        mostRegisterBytes(stage, *target.device) -
        perLane * slots * stage.vector / stage.threads * static_cast<int64_t>(byteSize(op.compute));
    // What is held is in flight already: sums of a few lanes do not wait for each other.
    one.unroll = std::min(stage.unroll,
                          std::max<int64_t>(1, kVectorsInFlight * stage.threads / stage.vector));
    const int64_t others = kOtherRegisterBytes + bytesInFlight(one, op, loops);
    const auto vectors = vectorsOfThread(stage, loops);
    if (vectors && *vectors <= std::min((most - others) / each * slots, kMostHeld)) {
      stage.unroll = one.unroll;
      stage.held = *vectors;
      return others + bytesHeld(stage, op);
    }
    // The rest is read again, with half as much in flight; a small part is not worth its code.
    one.unroll = std::max<int64_t>(1, stage.unroll / 2);
    const int64_t rest = std::max<int64_t>(0, most - bytesOfLoops(one, loops));
    const int64_t part = std::min(rest / each, kVectorsOfThread / slots) * slots;
    if (vectors ? *vectors <= 2 * part : part >= kVectorsInFlight) {
      stage.unroll = one.unroll;
      stage.held = part;
    }
    return bytesHeld(stage, op) + bytesOfLoops(stage, loops);
  }

  /// Bytes of registers that a thread needs about where it goes through a task's data in loops:
  /// what it has loaded, and sums of blocks beside those of all.
  int64_t bytesOfLoops(const StagePlan &stage, std::span<const StageLoop> loops) const {
    const int64_t arrays = static_cast<int64_t>(std::max<size_t>(1, heldArrays(op, stage).size()));
    const int64_t loaded = arrays * stage.unroll * slotsOf(stage, loops) * stage.vector /
                           stage.threads * static_cast<int64_t>(byteSize(op.compute));
    return loaded + 2 * bytesInFlight(stage, op, loops) + kLoopRegisterBytes;
  }

  /// Less in flight, then fewer threads, where registers (sums of blocks are beside those of all)
  /// or half of shared memory would not do.
  void fit(StagePlan &stage, std::span<const StageLoop> loops) const {
    const Device &device = *target.device;
    auto exceeds = [&] { return bytesOfLoops(stage, loops) > mostRegisterBytes(stage, device); };
    while (stage.unroll > 1 && exceeds())
      stage.unroll /= 2;
    while (stage.down > 1 &&
           (exceeds() || 2 * sharedBytes(stage, op, loops, device) > device.sharedBytes))
      stage.down /= 2;
  }

  void planColumns(StagePlan &stage, std::span<const StageLoop> loops) const {
    const int last = static_cast<int>(loops.size()) - 1;
    const Sums sums = sumsOf(stage);
    // Merges are of numbers of their own, in f64.
    const int64_t lanes = sums == Sums::Merged ? 1 : lanesOf(loops);
    const int64_t vectors = std::max<int64_t>(1, sizeOf(loops[last]) / lanes);
    stage.threads = leastThreads(
        op, stage, threadsFor(vectors, 1, sums == Sums::None ? kMostThreads : kColumnThreads),
        lanes);
    stage.vector = stage.tile = stage.chunks[last] = stage.threads * lanes;
    stage.unroll = last > 0 ? kVectorsInFlight : 1;
    auto isReduced = [&](int i) { return !loops[i].kept; };
    if (sums == Sums::None) {
      take(stage, loops, last - 1, kColumnRows, [](int) { return true; });
      return;
    }
    if (sums == Sums::Merged)
      stage.unroll = kVectorsInFlight / 2;
    const int64_t most = sums == Sums::Partial  ? kMostThreads
                         : sums == Sums::Merged ? target.device->blockThreads / 2
                                                : threadsOfAll(stage, loops);
    int64_t rows = 1; // of the innermost loop around the columns
    for (int i = last - 1; i >= 0 && rows == 1; --i)
      rows = loops[i].kept ? 1 : sizeOf(loops[i]);
    stage.down = powerUpTo(std::min(rows, most / stage.threads));
    if (sums != Sums::Partial) {
      for (int i = 0; i < last; ++i)
        if (isReduced(i))
          stage.chunks[i] = 0;
      return;
    }
    cut(stage, loops, last - 1, stage.down * kVectorsOfThread);
  }

  void planRows(StagePlan &stage, std::span<const StageLoop> loops, bool isFew) const {
    const int last = static_cast<int>(loops.size()) - 1;
    const Sums sums = sumsOf(stage);
    const int64_t lanes = sums == Sums::Merged ? 1 : lanesOf(loops);
    const int64_t vectors = std::max<int64_t>(1, sizeOf(loops[last]) / lanes);
    auto isReduced = [&](int i) { return !loops[i].kept; };
    // The loop around the lanes that threads share, too.
    int around = last - 1;
    while (around >= 0 && !isReduced(around))
      --around;
    const bool isDown = sums != Sums::None && around >= 0 && !carries(stage);
    const bool isLong = isFew || vectors > kMostThreads * kVectorsOfThread;
    const int64_t most = sums != Sums::None && isLong ? threadsOfAll(stage, loops) : kMostThreads;
    stage.threads = leastThreads(op, stage,
                                 threadsFor(vectors,
                                            isFew || isDown  ? 1
                                            : carries(stage) ? kCarried
                                                             : kVectorsInFlight,
                                            most),
                                 lanes);
    stage.vector = stage.threads * lanes;
    stage.unroll = std::clamp<int64_t>(vectors / stage.threads, 1, kVectorsInFlight);
    if (isDown)
      stage.down = powerUpTo(std::min(sizeOf(loops[around]), most / stage.threads));
    if (sums == Sums::Whole || sums == Sums::Merged) {
      for (int i = 0; i <= last; ++i)
        if (isReduced(i))
          stage.chunks[i] = 0;
      return;
    }
    if (sums == Sums::None) {
      const auto size = loops[last].size.constant();
      const int64_t part = stage.vector * kVectorsInFlight;
      stage.chunks[last] = size && *size <= 2 * part ? 0 : part;
      return;
    }
    cut(stage, loops, last, stage.vector * stage.down * kVectorsOfThread);
    if (stage.chunks[last] % stage.vector != 0)
      stage.chunks[last] += stage.vector - stage.chunks[last] % stage.vector;
    if (isDown && stage.chunks[around] > 0)
      stage.down = powerUpTo(std::min(stage.down, stage.chunks[around]));
  }

  /// What a task has of the loops that partials are taken over, from `first` outwards: about so
  /// many iterations, and not all of all.
  void cut(StagePlan &stage, std::span<const StageLoop> loops, int first, int64_t most) const {
    auto mayCut = [&](int i) { return !loops[i].kept && !isPadded(loops[i]); };
    take(stage, loops, first, most, mayCut);
    bool isCut = false;
    for (int i = 0; i < static_cast<int>(loops.size()); ++i) {
      if (!loops[i].kept && isPadded(loops[i]))
        stage.chunks[i] = 0;
      isCut |= mayCut(i) && stage.chunks[i] > 0;
    }
    for (int i = 0; i < static_cast<int>(loops.size()) && !isCut; ++i)
      if (mayCut(i)) {
        const bool hasLanes = i + 1 == static_cast<int>(loops.size());
        stage.chunks[i] = hasLanes ? stage.vector * kVectorsOfThread : 1;
        isCut = true;
      }
  }

  Schedule withSums(const Schedule &of, bool isFew = false) const {
    Schedule schedule;
    for (const StagePlan &stage : of.stages) {
      StagePlan made = plan(schedule, stage, isFew);
      made.reversed = stage.reversed; // begins with what L2 has of the stage before
      schedule.stages.back() = std::move(made);
    }
    return schedule;
  }

  std::vector<ScheduleVariant> variants() const {
    const StageForms forms = formsOfStages(op);
    const std::string wait = "sums that wait for others, or of columns besides rows: a pass for "
                             "each, merged in a fixed order";
    if (!forms.fused)
      return {{withSums(forms.split), Guard{}, wait}};
    const Schedule fused = withSums(*forms.fused);
    const std::string whole = "a group has all of some statistics";
    const std::string few = whole + "; they are few: as many threads as have a vector";
    const StagePlan &first = fused.stages.front();
    const bool columns = first.tiled == op.rank() - 1;
    const Device &device = *target.device;
    const SizeExpr statistics = op.statistics(), slab = op.slabBytes();
    const int64_t perGroup = first.tiled >= 0 ? first.tile : 1;
    const int64_t mostFew = kFewGroups * device.multiprocessors * perGroup;
    // Few statistics of one length are as short as threads can take them.
    auto byCount = [&]() -> std::vector<ScheduleVariant> {
      const auto count = statistics.constant();
      const Schedule wide = columns || carries(first) ? fused : withSums(*forms.fused, true);
      if (wide == fused || (count && *count > mostFew))
        return {{fused, Guard{}, whole}};
      if (count)
        return {{wide, Guard{}, few}};
      return {{wide, Guard{statistics, mostFew}, few}, {fused, Guard{}, whole}};
    };
    if (!forms.splits)
      return byCount();
    const int64_t groups = statistics.constant().value_or(INT64_MAX) / perGroup;
    const int64_t most = device.registerBytes /
                         (groups < device.multiprocessors / kIdle ? kShareOfSlab : 1) / perGroup;
    const ScheduleVariant split{withSums(forms.split), Guard{},
                                "a slab is more than a group goes through, or there are few: "
                                "moments of chunks, merged in a fixed order"};
    const auto bytes = slab.constant();
    if (bytes && *bytes > most)
      return {split};
    std::vector<ScheduleVariant> variants = byCount();
    if (bytes)
      return variants;
    // A guard asks for one thing: of those that are as long as they are many, for how long.
    return {{variants.back().schedule, Guard{slab, most}, variants.back().reason}, split};
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
      StagePlan stage = plan(schedule, {.name = name, .steps = std::move(steps)}, /*isFew=*/false);
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

ScheduleVariant withScalarLanes(ScheduleVariant variant, const Operator &op) {
  for (size_t i = 0; i < variant.schedule.stages.size(); ++i) {
    StagePlan &stage = variant.schedule.stages[i];
    if (stage.vector == stage.threads)
      continue;
    const auto last = static_cast<int>(stageLoops(op, variant.schedule, i).size()) - 1;
    const int64_t threads = leastThreads(op, stage, stage.threads, /*lanes=*/1);
    stage.down = std::max<int64_t>(1, stage.down * stage.threads / threads);
    stage.groups = std::max<int64_t>(1, stage.groups * stage.threads / threads);
    const int64_t factor = stage.vector / threads;
    stage.vector = stage.threads = threads;
    stage.held = 0; // single elements are too much code
    stage.unroll = std::max(stage.unroll, kVectorsInFlight);
    stage.resident = 1;
    if (stage.tiled != last)
      continue;
    // A task has the threads' columns, one each for what were vectors.
    stage.tile /= factor;
    stage.chunks[last] = stage.chunks[last] == 0 ? 0 : stage.chunks[last] / factor;
  }
  variant.guard = Guard{};
  variant.reason += "; for arrays that are not aligned to vectors";
  return variant;
}

std::vector<ScheduleVariant> selectDeviceSchedules(const Operator &op,
                                                   const TargetDescription &target) {
  const DeviceSelection selection{op, target};
  if (!op.reduces())
    return {{selection.elementwise(), Guard{}, "statistics are given: every element on its own"}};
  return selection.variants();
}

} // namespace normforge
