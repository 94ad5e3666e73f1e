// The heuristic: which form a schedule has, and for which sizes.
//
//   statistics given        single      every element on its own: few of them, or short rows
//                           split       long rows of columns: what columns need, then row by row
//   statistics of the data  fused       a task has all of some statistics: its data stays in L2
//                           split       a slab is too long: partials of chunks, their merge,
//                                       elements from the last to the first
//   each                    streaming   the same where x and y exceed the caches
//
// For sizes that are named, guards ask in this order: are they few, does a task's slab fit, do x
// and y fit. There are four variants at most.
#include "compiler/schedule/StageSizes.h"

#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace normforge {

namespace {

/// Rows whose sums a task carries, at most and at least: its partial results are little beside
/// them, and no accumulator takes so many terms that their roundings show.
constexpr int64_t kCarriedRows = 256, kLeastCarriedRows = 8;
/// Carried rows of a task where a named size counts them: a few hundred rows are tasks for some
/// threads still. (128 rows of 4096 elements, RMS norm backward, two threads: 1.9 times as fast as
/// 256 a task.)
constexpr int64_t kNamedCarriedRows = 32;
/// The same of columns, where nothing else cuts them.
constexpr int64_t kCarriedColumns = 1024;
/// Up to this many bytes of x it is one stage that makes what columns need and goes down them,
/// where rows lie a multiple of a page apart.
constexpr int64_t kOneStageBytes = 16 * 1024;
/// Up to this many rows, what the columns need is as much work as the elements: one stage makes
/// both. (49 rows of 2048 columns: 2.2 to 2.6 times as fast as in two stages, Zen 4; 196 rows of
/// 1024 are slower.)
constexpr int64_t kFewRows = 64;
/// The divisor of L3 and the multiple of L2 that bound a fused task's data, where all of the data
/// is in neither: its second pass finds there what two passes over everything would read from
/// memory again. Zen 4, two threads: 1.2 to 1.7 times as fast up to 13 MB a task, level at 25 and
/// 50. Two tasks at once are as many as was measured; a quarter leaves room for more.
constexpr int64_t kShareOfL3 = 4, kMostL2s = 8;
/// Up to this many L2s of x and y, rows that a task reads one after the other are not fetched
/// ahead: threads have them near. (Layer norm of 768 features, Zen 4, two threads: of 0.6 MB 0.86
/// times as fast if they are.)
constexpr int64_t kNearL2s = 4;
/// Below this many bytes of x one task does it all: a barrier costs more than a second core brings.
constexpr int64_t kSingleTaskBytes = 32 * 1024;

/// The forms of a schedule.
struct Selection : StageSizes {
  using StageSizes::StageSizes;

  /// By loop of the data, whether a step keeps it.
  std::vector<bool> keptBy(uint32_t step) const {
    std::vector<bool> own = op.kept(std::span(&step, 1));
    own.resize(kept.size());
    return own;
  }
  bool isCarriedBy(uint32_t step) const {
    return op.isWhole(op.steps[step]) && op.steps[step].reduce != Reduce::None &&
           keptBy(step) != kept;
  }
  /// Whether a step reads results of these.
  bool reads(uint32_t step, std::span<const StepPlan> makers) const {
    for (Expr expr : op.exprs.nodesOf(op.steps[step].values()))
      for (const StepPlan &maker : makers)
        if (op.exprs[expr].op == ExprOp::Result &&
            &op.stepOf(op.exprs[expr].index) == &op.steps[maker.step])
          return true;
    return false;
  }

  /// Whether tasks take parts of what a step reduces over.
  bool cutsReduced(const StagePlan &stage, uint32_t step) const {
    const std::vector<bool> own = keptBy(step);
    for (size_t i = 0; i < own.size(); ++i)
      if (!own[i] && stage.chunks[i] > 0)
        return true;
    return false;
  }
  /// Whether one stage can do all that is done with the data: reductions keep what its tiles keep,
  /// or are carried, and nothing that elements are made of is summed from other sums.
  bool fuses() const {
    std::vector<StepPlan> sumsOfSums; // and what is made of them
    for (uint32_t i = 0; i < op.steps.size(); ++i) {
      const bool dependsOn = reads(i, sumsOfSums);
      if (op.isWhole(op.steps[i]) && dependsOn)
        return false;
      if (!op.isWhole(op.steps[i]) && (dependsOn || op.steps[i].reduce != Reduce::None))
        sumsOfSums.push_back({i, Part::Whole});
      if (!isCarriedBy(i))
        continue;
      const std::vector<bool> own = keptBy(i);
      for (size_t loop = 0; loop < kept.size(); ++loop)
        if (own[loop] == kept[loop] && (!kept[loop] || static_cast<int>(loop) == tiled))
          return false;
    }
    return true;
  }

  /// Whether such a map over statistics writes some of the host's: one task does then, not each
  /// that has elements of theirs.
  bool writesStatistics(uint32_t step) const {
    return !op.isWhole(op.steps[step]) && op.steps[step].reduce == Reduce::None &&
           llvm::any_of(op.steps[step].results,
                        [](const Result &result) { return result.operand >= 0; });
  }
  bool writesStatistics() const {
    for (uint32_t i = 0; i < op.steps.size(); ++i)
      if (writesStatistics(i))
        return true;
    return false;
  }

  // The forms of a schedule.

  /// By step: whether elements are made of its results, or of what is made of them.
  std::vector<bool> awaitedByElements() const {
    std::vector<bool> awaited(op.steps.size());
    for (size_t i = op.steps.size(); i-- > 0;) {
      if (!awaited[i] && !op.isWhole(op.steps[i]))
        continue;
      for (Expr expr : op.exprs.nodesOf(op.steps[i].values()))
        if (op.exprs[expr].op == ExprOp::Result)
          awaited[static_cast<size_t>(&op.stepOf(op.exprs[expr].index) - op.steps.data())] = true;
    }
    return awaited;
  }

  /// One stage goes through the data and does all that is done with it; what it carries is merged
  /// after it, and what is smaller than the statistics follows.
  Schedule single(const Schedule &base, StagePlan stage, const std::string &name) const {
    stage.name = name;
    std::vector<std::vector<StepPlan>> after;
    std::vector<StepPlan> staying; // sums that the stage alone has
    const std::vector<bool> awaited = awaitedByElements();
    for (uint32_t i = 0; i < op.steps.size(); ++i) {
      const Step &step = op.steps[i];
      if (op.isWhole(step)) {
        stage.steps.push_back({i, isCarriedBy(i) ? Part::Partial : Part::Whole});
        if (isCarriedBy(i))
          after.push_back({{i, Part::Merge}});
        else if (step.reduce != Reduce::None)
          staying.push_back(stage.steps.back());
        continue;
      }
      const auto maker = std::find_if(after.begin(), after.end(),
                                      [&](const auto &steps) { return reads(i, steps); });
      if (step.reduce != Reduce::None)
        after.push_back({{i, Part::Whole}});
      else if (!after.empty() && !awaited[i] && !reads(i, staying)) { // it may write over inputs
        // Behind all others, but where it has the loops of the sums that it is made of alone.
        const bool isApart =
            maker != after.end() && keptBy(i) != keptBy(after.back().front().step) &&
            std::none_of(maker + 1, after.end(), [&](const auto &steps) {
              return llvm::any_of(steps,
                                  [&](const StepPlan &of) { return reads(of.step, *maker); });
            });
        if (isApart)
          std::rotate(maker, maker + 1, after.end());
        after.back().push_back({i, Part::Whole});
      } else if (maker != after.end())
        maker->push_back({i, Part::Whole});
      else
        stage.steps.push_back({i, Part::Whole});
    }
    // A task's partials are little beside its rows, and there is one at least.
    const bool carries = !after.empty() && after.front().front().part == Part::Merge;
    if (carries && tiled >= 0 && isRows)
      stage.chunks[tiled] =
          std::clamp(sizeOr(tiled, kNamedCarriedRows * kLeastTasks) / kLeastTasks / stage.tile,
                     ceilDiv(kLeastCarriedRows, stage.tile), ceilDiv(kCarriedRows, stage.tile)) *
          stage.tile;
    else if (carries && tiled >= 0 && stage.chunks[tiled] == 0)
      stage.chunks[tiled] =
          ceilDiv(std::min(sizeOr(tiled, kCarriedColumns), kCarriedColumns), stage.tile) *
          stage.tile;
    Schedule schedule = base;
    schedule.stages = {std::move(stage)};
    for (std::vector<StepPlan> &steps : after) {
      const std::string &first = op.steps[steps.front().step].name;
      const std::string stageName = steps.front().part == Part::Merge ? "merge_" + first : first;
      addSmall(schedule, stageName, std::move(steps));
    }
    return inWords(std::move(schedule));
  }
  /// Whether a stage over statistics may reduce them once more: to what it keeps, over its loops.
  bool takesReduction(const StagePlan &stage, uint32_t step) const {
    const uint32_t first = stage.steps.front().step;
    return !stage.merges() && !op.isWhole(op.steps[first]) &&
           op.steps[first].reduce != Reduce::None &&
           op.steps[first].loops == op.steps[step].loops &&
           op.kept(std::span(&first, 1)) == op.kept(std::span(&step, 1));
  }
  /// Every reduction has a stage of partial results and one that merges them, with the maps that
  /// follow; the elements come last.
  /// `past`: for data that no cache holds.
  Schedule split(const Schedule &base, bool past = false) const {
    Schedule schedule = base;
    std::vector<StepPlan> pending; // maps, of what follows
    bool follows = false;          // the last stage may take maps
    auto addPending = [&] {
      if (pending.empty())
        return;
      const std::string &first = op.steps[pending.front().step].name;
      addSmall(schedule, first, std::move(pending));
      pending.clear();
    };
    for (uint32_t i = 0; i < op.steps.size(); ++i) {
      const Step &step = op.steps[i];
      if (!op.isWhole(step) && step.reduce == Reduce::None) {
        (follows ? schedule.stages.back().steps : pending).push_back({i, Part::Whole});
        continue;
      }
      if (!op.isWhole(step)) {
        addPending();
        if (follows && takesReduction(schedule.stages.back(), i))
          schedule.stages.back().steps.push_back({i, Part::Whole});
        else
          addSmall(schedule, step.name, {{i, Part::Whole}});
        follows = true;
        continue;
      }
      follows = step.reduce != Reduce::None;
      if (follows) {
        addPending();
        StagePlan partials = Selection(op, target, op.kept(std::span(&i, 1))).moments(past);
        partials.name = step.name;
        partials.steps = {{i, Part::Partial}};
        if (!cutsReduced(partials, i)) { // one task has it whole, and the maps that follow
          partials.steps = {{i, Part::Whole}};
          schedule.stages.push_back(std::move(partials));
          continue;
        }
        const bool isFirst = schedule.stages.empty() ||
                             std::none_of(schedule.stages.begin(), schedule.stages.end(),
                                          [](const StagePlan &stage) { return stage.merges(); });
        schedule.stages.push_back(std::move(partials));
        addSmall(schedule, isFirst ? "merge" : "merge_" + step.name, {{i, Part::Merge}});
        continue;
      }
      if (hasLongRows(i) ||
          llvm::any_of(pending, [&](const StepPlan &plan) { return writesStatistics(plan.step); }))
        addPending();
      pending.push_back({i, Part::Whole});
      StagePlan elements{.name = step.name, .steps = std::move(pending)};
      elements = ofElements(elements, /*streams=*/false);
      elements.reversed = readsElements(schedule.stages);
      pending.clear();
      schedule.stages.push_back(std::move(elements));
    }
    addPending();
    return inWords(std::move(schedule));
  }
  /// Whether a row of a step's elements is columns of more vectors than a tile has: tiles that go
  /// down the rows would read and write a bit of each.
  bool hasLongRows(uint32_t step) const {
    const Selection own(op, target, op.kept(std::span(&step, 1)));
    return op.rank() > 1 && !own.isRows && !op.blocked &&
           own.normalize(/*streams=*/false).tile < own.sizeOr(own.tiled, 1 << 20);
  }
  /// A stage of elements that does the steps of this one: row by row where that has them alone and
  /// rows are long.
  StagePlan ofElements(const StagePlan &of, bool streams) const {
    std::vector<bool> own = op.kept(of.stepNumbers());
    const bool byRows = of.steps.size() == 1 && hasLongRows(of.steps[0].step);
    if (byRows) {
      own.assign(static_cast<size_t>(op.rank()), true);
      own.back() = false;
    }
    StagePlan stage = Selection(op, target, own).normalize(streams, byRows);
    stage.name = of.name;
    stage.steps = of.steps;
    stage.reversed = of.reversed;
    stage.streams = streams;
    return stage;
  }
  /// Whether one of these stages goes over the data.
  bool readsElements(std::span<const StagePlan> stages) const {
    return std::any_of(stages.begin(), stages.end(), [&](const StagePlan &stage) {
      return std::any_of(stage.steps.begin(), stage.steps.end(), [&](const StepPlan &plan) {
        return plan.part != Part::Merge && op.isWhole(op.steps[plan.step]);
      });
    });
  }
  bool writesElements(const StagePlan &stage) const {
    return std::any_of(stage.steps.begin(), stage.steps.end(), [&](const StepPlan &plan) {
      return op.isWhole(op.steps[plan.step]) && op.steps[plan.step].reduce == Reduce::None;
    });
  }
  /// Arrays of elements that are written and not read again.
  int64_t written() const {
    int64_t count = 0;
    for (const Step &step : op.steps)
      for (size_t i = 0; i < step.results.size(); ++i)
        count += op.isWhole(step) && step.reduce == Reduce::None &&
                 !op.operands[step.results[i].operand].isBits() &&
                 !isRead(step.firstResult + static_cast<uint32_t>(i));
    return count;
  }
  bool isRead(uint32_t result) const {
    const auto leaf = op.exprs.find(ExprOp::Result, result);
    return leaf && std::any_of(op.steps.begin(), op.steps.end(), [&](const Step &step) {
             const std::vector<Expr> nodes = op.exprs.nodesOf(step.values());
             return std::find(nodes.begin(), nodes.end(), *leaf) != nodes.end();
           });
  }
  /// With tasks that take whole words of bits.
  Schedule inWords(Schedule schedule) const {
    for (StagePlan &stage : schedule.stages) {
      const bool takesBits =
          std::any_of(stage.steps.begin(), stage.steps.end(), [&](const StepPlan &plan) {
            return plan.part != Part::Merge && op.takesBits(op.steps[plan.step]);
          });
      int64_t unit = elementsPerWord(DType::Bit);
      if (stage.tiled == op.rank() - 1)
        unit = std::lcm(unit, stage.tile);
      if (takesBits)
        stage.chunks.back() = ceilDiv(stage.chunks.back(), unit) * unit;
    }
    return schedule;
  }
  /// Whether a schedule has partials of sums that the form of one stage has whole.
  bool cutsSums(const Schedule &schedule) const {
    return llvm::any_of(schedule.stages, [&](const StagePlan &stage) {
      const StepPlan &first = stage.steps.front();
      return first.part == Part::Partial && !isCarriedBy(first.step);
    });
  }
  bool hasLongRows() const { return hasLongRows(static_cast<uint32_t>(op.steps.size() - 1)); }
  /// Nothing is reduced: one stage does it all.
  Schedule oneStage(const Schedule &base) const {
    return single(base, normalize(/*streams=*/false), op.steps.back().name);
  }
  /// Whether the next tile may be fetched while this one's elements are written: of rows that are
  /// all that a statistic is taken of, for nothing else begins to read them.
  bool mayPrefetch() const {
    return isRows && tiled >= 0 && packedRows == 0 &&
           std::count(kept.begin(), kept.end(), false) == 1;
  }
  Schedule prefetching(Schedule schedule) const {
    StagePlan &stage = schedule.stages.front();
    stage.prefetch = 1;
    // One run to read from, where sums of lanes are little beside it. (Rows of 384 and 768: 1.1 to
    // 1.4 times as fast as four at once out of memory, Zen 4; of 4096 together they are level, and
    // 1.15 times as fast out of L3.)
    if (hasLongRow() && !hasWideRow()) {
      stage.tile = 1;
      stage.unroll = rowUnroll(1);
      stage.rows = Rows::OneByOne;
    }
    return schedule;
  }
  bool mayStream() const { return target.streamingBytes && written() > 0; }
  /// The same with elements written past the caches.
  Schedule streaming(Schedule schedule) const {
    StagePlan &last = *std::find_if(schedule.stages.rbegin(), schedule.stages.rend(),
                                    [&](const StagePlan &stage) { return writesElements(stage); });
    last.streams = true;
    const bool isFused = &last == &schedule.stages.front() && op.reduces();
    if (!isFused) {
      last = ofElements(last, /*streams=*/true);
      return inWords(std::move(schedule));
    }
    last.prefetch = (isRows ? tiled >= 0 : outerKept()) ? 1 : 0;
    if (!isRows)
      return inWords(std::move(schedule));
    last.rows = packedRows > 0 ? Rows::Packed : Rows::OneByOne;
    const int64_t before = last.tile;
    last.tile = rowTileFromMemory();
    last.unroll = rowUnroll(last.tile);
    if (tiled >= 0)
      last.chunks[tiled] = last.chunks[tiled] == before
                               ? last.tile
                               : ceilDiv(last.chunks[tiled], last.tile) * last.tile;
    return inWords(std::move(schedule));
  }
};

/// The settings that all schedules for a target share.
Schedule baseFor(const Selection &selection) {
  const TargetDescription &target = selection.target;
  Schedule base;
  base.maskedTails = target.maskedTails;
  // AVX2 has none of 16-bit elements.
  base.maskedLoads =
      target.maskedTails || (target.maskedLoads && selection.op.leastElementBytes() > 2);
  base.scalable = target.vectorScale();
  base.pairsHalves = mayPairHalves(selection.op, target);
  return base;
}

std::vector<ScheduleVariant> candidates(const Operator &op, const TargetDescription &of) {
  const TargetDescription target = targetFor(op, of);
  const Selection selection(op, target, op.kept());
  const Schedule base = baseFor(selection);

  // The arrays that reductions read, and those that are written.
  const int64_t arrays = selection.read + std::max<int64_t>(1, selection.written());
  const SizeExpr moved = op.elements * SizeExpr(arrays * selection.element);
  const std::optional<int64_t> streamingBytes =
      selection.mayStream() ? target.streamingBytes : std::nullopt;
  /// Plain stores where x and y stay in cache, streaming ones beyond. `mayFetch`: where x and y are
  /// some L2s, tiles are fetched ahead.
  auto byStores = [&](const Schedule &plain, const Schedule &beyond, const std::string &why,
                      bool mayFetch = false) {
    const std::string past = why + "; x and y exceed the caches: streaming stores";
    std::vector<ScheduleVariant> variants;
    const auto bytes = moved.constant();
    auto add = [&](const Schedule &schedule, int64_t most, const std::string &reason) {
      if (!bytes || (variants.empty() && *bytes <= most))
        variants.push_back(
            {schedule, bytes || most == INT64_MAX ? Guard{} : Guard{moved, most}, reason});
    };
    const int64_t most = streamingBytes ? *streamingBytes - 1 : INT64_MAX;
    const int64_t near = mayFetch && selection.mayPrefetch() ? kNearL2s * target.l2Bytes : most;
    add(plain, std::min(near, most), why);
    if (near < most)
      add(selection.prefetching(plain), most, why + "; far from L2, the next is fetched ahead");
    if (streamingBytes)
      add(selection.streaming(beyond), INT64_MAX, past);
    return variants;
  };

  if (!op.reduces()) {
    const std::string given = "statistics are given: every element on its own";
    if (selection.writesStatistics())
      return byStores(selection.split(base), selection.split(base, true),
                      "statistics are given, and written once");
    const Schedule columns = selection.oneStage(base);
    if (!selection.hasLongRows())
      return byStores(columns, columns, given);
    const SizeExpr size = op.elements * SizeExpr(selection.element);
    const auto bytes = size.constant();
    // Else as long as it is in L2: one more stage is one more barrier.
    const int64_t most =
        std::max(selection.rowBytes() % kPageBytes == 0 ? kOneStageBytes : target.l2Bytes / 2,
                 kFewRows * selection.rowBytes());
    std::vector<ScheduleVariant> variants;
    if (bytes.value_or(0) <= most)
      variants.push_back({columns, bytes ? Guard{} : Guard{size, most}, given});
    if (bytes && !variants.empty())
      return variants;
    for (ScheduleVariant &variant :
         byStores(selection.split(base), selection.split(base, true), given + ", row by row"))
      variants.push_back(std::move(variant));
    return variants;
  }

  const Schedule split = selection.split(base), splitPast = selection.split(base, /*past=*/true);
  if (!selection.fuses())
    return byStores(split, splitPast,
                    "sums that wait for others: a pass for each, merged in a fixed order");
  const Schedule fused = selection.single(base, selection.fused(), "fused");
  const StagePlan &whole = fused.stages[0];

  // A fused task's data, read three times, stays in L2 beside the y that it writes.
  const bool splits = selection.cutsSums(split);
  // `slab` is op.slabBytes(), of one statistic, times those that a task has.
  int64_t perTask = whole.tile, limit = target.l2Bytes / 2;
  const auto statistics = op.statistics().constant();
  // A few blocks of lanes make few tasks: the fused form is taken only where it brings more.
  if (!selection.isRows && statistics.value_or(INT64_MAX) / whole.tile < kLeastTasks)
    limit /= 2;
  std::string what = "a task's slab stays in L2";
  // Columns of rows from everywhere: not those of one sample, nor whole rows.
  const int64_t columns = selection.tiled >= 0 ? whole.chunks[selection.tiled] : 0; // 0: all
  const bool cutsRows = columns > 0 && columns < selection.sizeOr(selection.tiled, INT64_MAX);
  const bool isSpread =
      !selection.isRows && (!selection.outerKept() || (!selection.kept.front() && cutsRows));
  if (isSpread) {
    // Read in runs with gaps, three times: wins over two passes in order as long as it is short;
    // where sums read more than one array, longer. (196 rows of 128 columns: 0.8 of the time of
    // three stages in backward, 1.2 in training, Zen 4. 1568 rows of 64 of 256 columns in training:
    // 1.0 to 1.3 of every fourth sample, 1.6 of every eighth.)
    perTask = whole.chunks[selection.tiled];
    limit = target.l2Bytes / (selection.read > 1 ? 4 : 16);
    what = "a task's columns stay near in L2";
  }
  const int64_t read = selection.read;
  SizeExpr slab = op.slabBytes() * SizeExpr(perTask * read);
  if (perTask == 0) {
    slab = op.slabBytes() * op.loops[selection.tiled].size * SizeExpr(read);
    limit = std::min(kSingleTaskBytes, limit);
    what = "the whole problem is small";
  }
  const std::string exceeds =
      "a slab exceeds its share of L2: moments of chunks, merged in a fixed order";

  // A streaming kernel may have fewer rows of a tile in L2 at once; `slab` is of the other's tile.
  int64_t streamingLimit = limit;
  const bool inTasks = !isSpread && (selection.isRows || selection.outerKept());
  const int64_t rows = selection.isRows && selection.mayStream()
                           ? selection.streaming(fused).stages[0].tile
                           : perTask;
  if (selection.isRows)
    streamingLimit = limit / rows * perTask;
  // As long as threads have enough of them.
  std::string whatPast = what;
  if (inTasks && perTask > 0 && statistics.value_or(INT64_MAX) / rows >= kLeastTasks) {
    whatPast = "a task's slab stays in L2 or its share of L3";
    streamingLimit =
        std::max(streamingLimit,
                 std::min(target.l3Bytes / kShareOfL3, kMostL2s * target.l2Bytes) / rows * perTask);
  }

  // Without a loop to chunk, the split form is the fused one in three stages: never better.
  const auto bytes = slab.constant();
  const bool streams = streamingBytes && moved.constant().value_or(0) >= *streamingBytes;
  if (!splits || (bytes && *bytes <= (streams ? streamingLimit : limit)))
    return byStores(fused, fused, streams ? whatPast : what, /*mayFetch=*/true);
  if (bytes)
    return byStores(split, splitPast, exceeds);

  // The slab has a named size in it. When the kept loops have none, x and y are a multiple of the
  // slab, and one guard on the slab tells both what fits and where streaming stores begin.
  if (!statistics || !streamingBytes)
    return {{fused, {slab, limit}, what}, {split, Guard{}, exceeds}};
  const int64_t groups = std::max<int64_t>(1, *statistics);
  // moved = arrays * groups * slabBytes, and `slab` is slabBytes times its own factor.
  const int64_t factor = (perTask ? perTask : groups) * read;
  const int64_t plainLimit = (*streamingBytes - 1) / (arrays * groups) * factor;
  std::vector<ScheduleVariant> variants;
  variants.push_back({fused, {slab, std::min(limit, plainLimit)}, what});
  // As for static sizes: first by what fits in L2, then by where streaming stores begin.
  if (plainLimit > limit)
    variants.push_back({split, {slab, plainLimit}, exceeds});
  if (plainLimit < streamingLimit)
    variants.push_back({selection.streaming(fused),
                        {slab, streamingLimit},
                        whatPast + "; x and y exceed the caches: streaming stores"});
  variants.push_back({selection.streaming(splitPast), Guard{},
                      exceeds + "; x and y exceed the caches: streaming stores"});
  return variants;
}

} // namespace

StageForms formsOfStages(const Operator &op) {
  TargetDescription any; // sizes are chosen anew
  any.vectorBits = 256;
  any.vectorRegisters = 16;
  any.l1Bytes = any.l2Bytes = any.l3Bytes = 1 << 20;
  const Selection selection(op, any, op.kept());
  const Schedule base = baseFor(selection);
  StageForms forms;
  forms.split = selection.split(base);
  forms.splits = selection.cutsSums(forms.split);
  if (!selection.fuses())
    return forms;
  forms.fused = selection.single(base, selection.fused(), "fused");
  const StagePlan &first = forms.fused->stages.front();
  if (first.tiled == op.rank() - 1 &&
      llvm::any_of(first.steps, [&](const StepPlan &plan) { return isCarried(op, first, plan); }))
    forms.fused.reset();
  return forms;
}

std::vector<Schedule> scheduleForms(const Operator &op, const TargetDescription &of) {
  if (of.device) {
    std::vector<Schedule> forms;
    for (ScheduleVariant &variant : selectDeviceSchedules(op, of))
      forms.push_back(std::move(variant.schedule));
    return forms;
  }
  const TargetDescription target = targetFor(op, of);
  const Selection selection(op, target, op.kept());
  const Schedule base = baseFor(selection);
  std::vector<Schedule> forms;
  auto addBoth = [&](const Schedule &schedule, const Schedule &past) {
    forms.push_back(schedule);
    if (selection.mayStream())
      forms.push_back(selection.streaming(past));
  };
  auto add = [&](const Schedule &schedule) { addBoth(schedule, schedule); };
  auto addSplit = [&] { addBoth(selection.split(base), selection.split(base, /*past=*/true)); };
  if (!op.reduces()) {
    const bool writes = selection.writesStatistics();
    if (!writes)
      add(selection.oneStage(base));
    if (writes || selection.hasLongRows())
      addSplit();
    return forms;
  }
  if (selection.fuses())
    add(selection.single(base, selection.fused(), "fused"));
  addSplit();
  return forms;
}

std::vector<ScheduleVariant> selectSchedules(const Operator &op, const TargetDescription &target) {
  std::vector<ScheduleVariant> variants =
      target.device ? selectDeviceSchedules(op, target) : candidates(op, target);
  // Without those that not even sizes of 1 would take.
  const std::vector<int64_t> least(op.sizes.size(), 1);
  std::erase_if(variants,
                [&](const ScheduleVariant &variant) { return !variant.guard.holds(least); });
  return variants;
}

} // namespace normforge
