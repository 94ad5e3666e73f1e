// The heuristic: which form, how much a task takes, what is in flight.
#include "compiler/schedule/Schedule.h"

#include <algorithm>
#include <bit>
#include <fmt/format.h>
#include <numeric>

namespace normforge {

namespace {

/// Bytes of x that an elementwise task takes at most and at least: long enough to hide the cost of
/// a task; within these, some tasks of a problem whose named sizes are 1, so that threads end
/// together.
constexpr int64_t kElementwiseTaskBytes = 64 * 1024, kLeastTaskBytes = 8 * 1024;
constexpr int64_t kLeastTasks = 16;
/// Bytes of x whose moments one task takes where a slab is too long: read twice, so at most a
/// quarter of the L2 cache, and short for the same reason as above.
constexpr int64_t kMomentsTaskBytes = 64 * 1024;
/// Rows whose moments a task takes at least: each costs three partials a column.
constexpr int64_t kMomentsTaskRows = 32;
/// Columns that a task takes of rows too long for one: runs that the prefetchers follow.
constexpr int64_t kColumnRunBytes = 2 * 1024;
/// Rows that a task takes of columns that it reads run after run.
constexpr int64_t kColumnRows = 16;
/// Tasks that the columns are cut into where that is what cuts the work.
constexpr int64_t kColumnTasks = 4;
/// Rows of fewer vectors than the one have as many in flight as there are registers, of fewer than
/// the other two.
constexpr int64_t kShortRowVectors = 16, kLongRowVectors = 512;
/// Rows that are written as one run where they share lines.
constexpr int64_t kJoinedRows = 16;
/// Bytes of neighboring rows that a task takes the moments of, so that it reads runs.
constexpr int64_t kRowRunBytes = 8 * 1024;
/// Rows whose sums a task carries, at most and at least: its partial results are little beside
/// them, and no accumulator takes so many terms that their roundings show.
constexpr int64_t kCarriedRows = 256, kLeastCarriedRows = 8;
/// The same of columns, where nothing else cuts them.
constexpr int64_t kCarriedColumns = 1024;
/// Instructions of elements' formulas that are in flight at once: what costs much fills the machine
/// by itself, and is code each time.
constexpr int64_t kInstructionsInFlight = 96;
/// Values of one result that a stage of maps alone makes a task.
constexpr int64_t kMapsOfTask = 4096;
/// Below this many bytes of x it is one stage that makes what columns need and goes down them.
constexpr int64_t kOneStageBytes = 16 * 1024;
/// Below this many bytes of x one task does it all: a barrier costs more than a second core brings.
constexpr int64_t kSingleTaskBytes = 32 * 1024;

/// Of a size up to INT64_MAX: a + b - 1 could overflow.
int64_t ceilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }

int lastKept(const std::vector<bool> &kept) {
  const auto found = std::find(kept.rbegin(), kept.rend(), true);
  return static_cast<int>(kept.rend() - found) - 1;
}

/// The stages of steps that keep the same loops.
struct Selection {
  const Operator &op;
  const TargetDescription &target;
  std::vector<bool> kept; ///< by loop of the data
  int64_t element;
  int64_t vector;
  int64_t mostBodies;      ///< of elements' formulas in flight
  int64_t mostSums;        ///< of what is summed
  int64_t vectorsInFlight; ///< of each sum
  int sums = 2;            ///< that a reduction has in flight at once; moments two
  int read = 1;            ///< arrays of the data that a reduction reads
  int tiled;               ///< tileLoop
  bool lanesReduced;       ///< the innermost loop is reduced: rows; otherwise columns

  Selection(const Operator &op, const TargetDescription &target, std::vector<bool> keptLoops)
      : op(op), target(target), kept(std::move(keptLoops)),
        element(static_cast<int64_t>(byteSize(op.dtype))),
        vector(target.lanes(byteSize(op.compute))) {
    kept.resize(static_cast<size_t>(op.rank()));
    tiled = lastKept(kept);
    lanesReduced = !kept.back();
    int64_t cost = 1, ofSums = 1; // of the formulas of elements, and of what is summed
    for (const Step &step : op.steps) {
      if (!op.isWhole(step))
        continue;
      int64_t &own = step.reduce == Reduce::None ? cost : ofSums;
      own = std::max(own, op.exprs.cost(step.values()));
      if (step.reduce == Reduce::None)
        continue;
      sums = std::max(sums, static_cast<int>(step.reduce == Reduce::Sum ? step.results.size() : 2));
      read = std::max(read, arraysRead(step));
    }
    mostBodies = std::max<int64_t>(1, kInstructionsInFlight / cost);
    vectorsInFlight = target.vectorsInFlight;
    if (sums > 2) // as many accumulators as two sums would have
      vectorsInFlight = static_cast<int64_t>(
          std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(1, 2 * vectorsInFlight / sums))));
    mostSums = std::max<int64_t>(1, kInstructionsInFlight / ofSums);
    vectorsInFlight = std::min(vectorsInFlight, mostSums);
    // A block's lanes are all that is contiguous in a blocked layout; of scalable vectors, no one
    // knows yet whether they are longer.
    if (op.blocked && !target.scalableVectors)
      vector = std::min(vector, op.blocked->block);
  }

  int arraysRead(const Step &step) const {
    int count = 0;
    for (Expr expr : op.exprs.nodesOf(step.values()))
      if (op.exprs[expr].op == ExprOp::Operand) {
        const Operand &operand = op.operands[op.exprs[expr].index];
        count += op.isWhole(operand) && !operand.isBits();
      }
    return count;
  }

  /// The static size of a loop, or `otherwise` when it is named.
  int64_t sizeOr(int loop, int64_t otherwise) const {
    return op.loops[loop].size.constant().value_or(otherwise);
  }
  int innermostReduced() const {
    for (int i = op.rank() - 1; i >= 0; --i)
      if (!kept[i])
        return i;
    return -1;
  }

  /// Vectors' worth of lanes in flight for columns: at most `most` vectors, in equal tiles.
  int64_t columnTile(int64_t most) const {
    const int64_t columns = sizeOr(tiled, vector * most);
    const int64_t vectors = ceilDiv(columns, vector);
    const int64_t tiles = ceilDiv(vectors, most);
    return ceilDiv(vectors, tiles) * vector;
  }

  int reducedLoops() const { return static_cast<int>(std::count(kept.begin(), kept.end(), false)); }

  int64_t rowVectors() const { return ceilDiv(sizeOr(op.rank() - 1, 1 << 20), vector); }

  /// Rows in flight: many where a row is so short that the sums of its lanes take longer than its
  /// elements, two where they still show, as far as the registers go: two sums a row.
  int64_t rowTile() const {
    if (tiled < 0)
      return 1;
    const int64_t vectors = rowVectors();
    const int64_t most = vectors < kShortRowVectors
                             ? std::min<int64_t>(target.vectorRegisters / 4, vector)
                         : vectors < kLongRowVectors ? 2
                                                     : 1;
    const int64_t rows = sizeOr(tiled, most);
    for (int64_t tile = most; tile > 1; tile /= 2)
      if (rows % tile == 0)
        return tile;
    // What is left of the tiles is code of its own.
    return rows >= 8 ? std::min<int64_t>(most, 4) : 1;
  }

  /// Vectors of each of `tile` rows in flight.
  int64_t rowUnroll(int64_t tile) const {
    const int64_t vectors = std::max<int64_t>(1, sizeOr(op.rank() - 1, 1 << 20) / vector);
    return std::min<int64_t>(std::max<int64_t>(1, vectorsInFlight / tile), vectors);
  }

  /// Rows in flight of a tile of columns.
  int64_t columnUnroll(int64_t tile) const {
    const int64_t unroll = std::max<int64_t>(1, vectorsInFlight / ceilDiv(tile, vector));
    const int loop = innermostReduced();
    return loop < 0 ? unroll : std::min(unroll, sizeOr(loop, unroll));
  }

  StagePlan inFlight(bool reduces) const {
    StagePlan stage;
    stage.vector = vector;
    stage.tiled = tiled;
    stage.chunks.assign(kept.size(), 0);
    if (lanesReduced) {
      stage.tile = reduces ? rowTile() : 1;
      stage.unroll = rowUnroll(stage.tile);
    } else {
      // A row that the registers hold, with three values a column, is written in one go.
      const int64_t whole = ceilDiv(sizeOr(tiled, 1 << 20), vector);
      stage.tile =
          columnTile(!reduces && whole <= target.vectorRegisters / 4 ? whole : vectorsInFlight);
      stage.unroll = columnUnroll(stage.tile);
    }
    // A loop around that of the lanes, or of the columns' rows in flight, can go backwards.
    stage.alternates = reduces && reducedLoops() > 1;
    // Every kept loop but the tiled one is a matter of tasks.
    for (int i = 0; i < op.rank(); ++i)
      if (kept[i] && i != tiled)
        stage.chunks[i] = 1;
    return stage;
  }

  /// Tasks of about `bytes` of x, from the innermost loop outwards: loops are taken whole as long
  /// as they fit; the first that does not is chunked, and those around it are counted one by one.
  /// `mayChunk` says which loops may be split at all; kept ones but the tiled one always may.
  template <typename MayChunk>
  void chunkFor(StagePlan &stage, int64_t bytes, MayChunk mayChunk) const {
    int64_t inner = element;
    bool full = false;
    for (int i = op.rank() - 1; i >= 0; --i) {
      const auto size = op.loops[i].size.constant();
      const bool outerKept = kept[i] && i != tiled;
      if (!outerKept && stage.chunks[i] > 0) {
        inner *= stage.chunks[i];
        continue;
      }
      if (!outerKept && !mayChunk(i)) {
        inner *= size.value_or(i == tiled && !lanesReduced ? 4 * vector : 1);
        continue;
      }
      const int64_t wanted = full ? 1 : std::max<int64_t>(1, bytes / inner);
      if (size && *size <= wanted + wanted / 2) {
        inner *= *size;
        stage.chunks[i] = 0;
        continue;
      }
      int64_t chunk = wanted;
      if (i == tiled)
        chunk = std::max(stage.tile, chunk / stage.tile * stage.tile);
      else if (i == op.rank() - 1)
        chunk = std::max(vector, chunk / (vector * stage.unroll) * (vector * stage.unroll));
      stage.chunks[i] = chunk;
      inner *= chunk;
      full = true;
    }
  }

  /// `vectors` slots, each with `unroll` bodies, as far as the cost of one allows.
  int64_t boundUnroll(int64_t unroll, int64_t vectors) const {
    return std::clamp<int64_t>(mostBodies / std::max<int64_t>(1, vectors), 1, unroll);
  }

  /// The elements, in tiles of kept indices; `rowsOfColumns`: the kept loops are not what
  /// statistics are indexed by, but all around a row.
  StagePlan normalize(bool streams, bool rowsOfColumns = false) const {
    StagePlan stage = inFlight(false);
    if (!lanesReduced && ceilDiv(stage.tile, vector) > mostBodies)
      stage.tile = columnTile(mostBodies);
    stage.unroll = boundUnroll(stage.unroll, lanesReduced ? 1 : ceilDiv(stage.tile, vector));
    if (streams && lanesReduced) {
      stage.unroll = 1; // memory sets the pace
      // Rows that no vector divides share lines of y: together they are written whole.
      if (tiled >= 0 && !op.takesBits() && rowVectors() < kShortRowVectors &&
          sizeOr(op.rank() - 1, 0) % vector != 0)
        stage.tile = std::min(kJoinedRows, sizeOr(tiled, 1));
    }
    int64_t bytes = kElementwiseTaskBytes;
    if (lanesReduced || sizeOr(tiled, 1 << 20) <= stage.tile) {
      int64_t least = element; // bytes of x where named sizes are 1
      for (int i = 0; i < op.rank(); ++i)
        least = std::min<int64_t>(int64_t(1) << 40, least * sizeOr(i, 1));
      bytes = std::clamp(least / kLeastTasks, kLeastTaskBytes, kElementwiseTaskBytes);
      if (rowsOfColumns)
        bytes = std::clamp(kColumnRows * element * sizeOr(op.rank() - 1, 1), bytes,
                           kElementwiseTaskBytes);
    } else if (sizeOr(tiled, 0) > stage.tile) {
      // Tiles go down the rows of a task one after the other: no more rows than the prefetchers
      // follow and the ways of a cache hold, and not so many columns that tasks are few.
      cutColumns(stage);
      const int64_t columns = stage.chunks[tiled] ? stage.chunks[tiled] : sizeOr(tiled, 0);
      bytes = std::min(bytes, kColumnRows * columns * element);
    }
    chunkFor(stage, bytes, [&](int i) { return lanesReduced || !kept[i]; });
    return stage;
  }

  /// Cuts rows that are too long for one task into runs.
  void cutColumns(StagePlan &stage) const {
    if (rowBytes() > kColumnRunBytes)
      stage.chunks[tiled] =
          std::max(stage.tile, kColumnRunBytes / element / stage.tile * stage.tile);
  }

  /// Bytes of the columns of one row; where their number is not known, as if they were few.
  int64_t rowBytes() const {
    return lanesReduced ? 0 : std::min<int64_t>(sizeOr(tiled, vector), 1 << 30) * element;
  }

  /// Whether a reduced loop may be chunked in the moments: a padded block's elements are no
  /// product.
  bool mayChunkReduced(int i) const {
    return !kept[i] && !(op.blocked && op.blocked->padded &&
                         (i == op.blocked->outer || i == op.blocked->inner));
  }

  /// A kept loop around the columns: what a fused task takes is contiguous without cutting them.
  bool outerKept() const {
    for (int i = 0; i < op.rank(); ++i)
      if (kept[i] && i != tiled)
        return true;
    return false;
  }

  StagePlan fused() const {
    StagePlan stage = inFlight(true);
    if (tiled >= 0)
      stage.chunks[tiled] = stage.tile;
    if (lanesReduced || outerKept())
      return stage;
    // The columns are all that there is to cut: into runs not longer than the prefetchers need, and
    // not shorter than four vectors.
    const int64_t least = 4 * vector, most = std::max(least, kColumnRunBytes / element);
    const int64_t columns = sizeOr(tiled, most);
    const int64_t run = std::clamp(ceilDiv(columns, kColumnTasks), least, most);
    if (run < columns) {
      stage.tile = std::min(stage.tile, ceilDiv(run, vector) * vector);
      stage.unroll = columnUnroll(stage.tile);
      stage.chunks[tiled] = run / stage.tile * stage.tile;
    } else {
      stage.chunks[tiled] = 0;
    }
    return stage;
  }

  /// Rows in flight of a fused stage where x comes from memory, that is slower than the sums of
  /// lanes: few, for fewer are less code, and less to read from at a time.
  int64_t rowTileFromMemory() const {
    const int64_t tile = rowTile();
    if (reducedLoops() < 2) // a row is all that a statistic is taken over
      return std::min<int64_t>(tile, 4);
    return rowVectors() < kShortRowVectors / 2 ? tile : 1;
  }

  /// Vectors of columns whose sums go down the rows at once: what is in a line of each row, or in
  /// several, is read before the cache has lost it, where rows are a power of two apart. So as many
  /// as the registers hold beside what is summed.
  int64_t columnSums() const {
    const int64_t held = std::max<int64_t>(1, target.vectorRegisters * 3 / 4 / sums);
    return std::max(
        vectorsInFlight,
        std::min(static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(held))), mostSums));
  }

  StagePlan moments() const {
    StagePlan stage = inFlight(true);
    if (lanesReduced && tiled >= 0) {
      stage.tile = 1; // memory is slower than the sums of lanes
      stage.unroll = rowUnroll(1);
      const int64_t rowBytes = sizeOr(op.rank() - 1, kRowRunBytes) * element;
      stage.chunks[tiled] = std::min(ceilDiv(kRowRunBytes, rowBytes), sizeOr(tiled, 1 << 20));
    }
    int64_t bytes = std::min(kMomentsTaskBytes, target.l2Bytes / 4);
    // Rows of columns: enough of them to be worth their partials.
    if (!lanesReduced) {
      stage.tile = columnTile(columnSums());
      stage.unroll = columnUnroll(stage.tile);
      cutColumns(stage);
      const int64_t columns = stage.chunks[tiled] ? stage.chunks[tiled] : sizeOr(tiled, 64);
      bytes = std::max(bytes, kMomentsTaskRows * element * columns);
    }
    chunkFor(stage, bytes, [&](int i) { return mayChunkReduced(i); });
    return stage;
  }

  /// Of a stage whose loops are fewer than the data's, or count chunks: `schedule` ends with it,
  /// and has its steps.
  StagePlan small(const Schedule &schedule) const {
    const StagePlan &made = schedule.stages.back();
    const std::vector<StageLoop> loops = stageLoops(op, schedule, schedule.stages.size() - 1);
    StagePlan stage;
    stage.name = made.name;
    stage.steps = made.steps;
    // Sums of partials are in f64: the vectors are the machine's of these.
    stage.vector =
        stage.merges() ? std::min<int64_t>(vector, target.lanes(sizeof(double))) : vector;
    stage.chunks.assign(loops.size(), 0);
    stage.tiled = tileLoop(loops);
    for (size_t i = 0; i < loops.size(); ++i)
      if (loops[i].kept)
        stage.chunks[i] = 1;
    if (stage.tiled >= 0) {
      stage.tile = loops.back().kept ? stage.vector : 1;
      // Where nothing is reduced, a task has all that it may: to share out so little costs more.
      const bool maps =
          std::all_of(loops.begin(), loops.end(), [](auto &loop) { return loop.kept; });
      stage.chunks[stage.tiled] = maps ? std::max(stage.tile, kMapsOfTask) : stage.tile;
    }
    return stage;
  }
  void addSmall(Schedule &schedule, const std::string &name, std::vector<StepPlan> steps) const {
    schedule.stages.push_back({.name = name, .steps = std::move(steps)});
    schedule.stages.back() = small(schedule);
  }

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

  // The forms of a schedule.

  /// One stage goes through the data and does all that is done with it; what it carries is merged
  /// after it, and what is smaller than the statistics follows.
  Schedule single(const Schedule &base, StagePlan stage, const std::string &name) const {
    stage.name = name;
    std::vector<std::vector<StepPlan>> after;
    for (uint32_t i = 0; i < op.steps.size(); ++i) {
      const Step &step = op.steps[i];
      if (op.isWhole(step)) {
        stage.steps.push_back({i, isCarriedBy(i) ? Part::Partial : Part::Whole});
        if (isCarriedBy(i))
          after.push_back({{i, Part::Merge}});
        continue;
      }
      const auto maker = std::find_if(after.begin(), after.end(),
                                      [&](const auto &steps) { return reads(i, steps); });
      if (step.reduce != Reduce::None)
        after.push_back({{i, Part::Whole}});
      else if (maker != after.end())
        maker->push_back({i, Part::Whole});
      else
        stage.steps.push_back({i, Part::Whole});
    }
    // A task's partials are little beside its rows, and there is one at least.
    const bool carries = !after.empty() && after.front().front().part == Part::Merge;
    if (carries && tiled >= 0 && lanesReduced)
      stage.chunks[tiled] =
          std::clamp(sizeOr(tiled, kCarriedRows * kLeastTasks) / kLeastTasks / stage.tile,
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
  Schedule split(const Schedule &base) const {
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
        StagePlan partials = Selection(op, target, op.kept(std::span(&i, 1))).moments();
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
      if (hasLongRows(i))
        addPending();
      pending.push_back({i, Part::Whole});
      StagePlan elements{.name = step.name, .steps = std::move(pending)};
      elements = ofElements(elements, /*streams=*/false);
      elements.reversed = readsElements(schedule.stages);
      pending.clear();
      schedule.stages.push_back(std::move(elements));
    }
    return inWords(std::move(schedule));
  }
  /// Whether a row of a step's elements is columns of more vectors than a tile has: tiles that go
  /// down the rows would read and write a bit of each.
  bool hasLongRows(uint32_t step) const {
    const Selection own(op, target, op.kept(std::span(&step, 1)));
    return op.rank() > 1 && !own.lanesReduced && !op.blocked &&
           own.inFlight(false).tile < own.sizeOr(own.tiled, 1 << 20);
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
  bool hasLongRows() const { return hasLongRows(static_cast<uint32_t>(op.steps.size() - 1)); }
  /// Nothing is reduced: one stage does it all.
  Schedule oneStage(const Schedule &base) const {
    return single(base, normalize(/*streams=*/false), op.steps.back().name);
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
    last.prefetches = lanesReduced ? tiled >= 0 : outerKept();
    if (!lanesReduced)
      return inWords(std::move(schedule));
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

/// What all schedules for a target have.
Schedule baseFor(const Selection &selection) {
  const TargetDescription &target = selection.target;
  Schedule base;
  base.maskedTails = target.maskedTails;
  // AVX2 has none of 16-bit elements.
  base.maskedLoads =
      target.maskedTails || (target.maskedLoads && selection.op.leastElementBytes() > 2);
  base.scalable = target.vectorScale();
  return base;
}

std::vector<ScheduleVariant> candidates(const Operator &op, const TargetDescription &of) {
  const TargetDescription target = targetFor(op, of);
  const Selection selection(op, target, op.kept());
  const Schedule base = baseFor(selection);

  // What reductions read, and what is written.
  const int64_t arrays = selection.read + std::max<int64_t>(1, selection.written());
  const SizeExpr moved = op.elements * SizeExpr(arrays * selection.element);
  const std::optional<int64_t> streamingBytes =
      selection.mayStream() ? target.streamingBytes : std::nullopt;
  /// Plain stores where x and y stay in cache, streaming ones beyond.
  auto byStores = [&](const Schedule &plain, const std::string &why) {
    const std::string past = why + "; x and y exceed the caches: streaming stores";
    std::vector<ScheduleVariant> variants;
    const auto bytes = moved.constant();
    const int64_t most = streamingBytes.value_or(INT64_MAX);
    if (!bytes || *bytes <= most)
      variants.push_back({plain, bytes ? Guard{} : Guard{moved, most}, why});
    if (streamingBytes && (!bytes || *bytes > most))
      variants.push_back({selection.streaming(plain), Guard{}, past});
    return variants;
  };

  if (!op.reduces()) {
    const std::string given = "statistics are given: every element on its own";
    const Schedule columns = selection.oneStage(base);
    if (!selection.hasLongRows())
      return byStores(columns, given);
    const SizeExpr size = op.elements * SizeExpr(selection.element);
    const auto bytes = size.constant();
    std::vector<ScheduleVariant> variants;
    if (bytes.value_or(0) <= kOneStageBytes)
      variants.push_back({columns, bytes ? Guard{} : Guard{size, kOneStageBytes}, given});
    if (bytes && !variants.empty())
      return variants;
    for (ScheduleVariant &variant : byStores(selection.split(base), given + ", row by row"))
      variants.push_back(std::move(variant));
    return variants;
  }

  const Schedule split = selection.split(base);
  if (!selection.fuses())
    return byStores(split, "sums that wait for others: a pass for each, merged in a fixed order");
  const Schedule fused = selection.single(base, selection.fused(), "fused");
  const StagePlan &whole = fused.stages[0];

  // A fused task's data, read three times, stays in L2 beside the y that it writes.
  const bool splits =
      std::any_of(split.stages.begin(), split.stages.end(), [&](const StagePlan &stage) {
        const StepPlan &first = stage.steps.front();
        return first.part == Part::Partial && !selection.isCarriedBy(first.step);
      });
  // `slab` is op.slabBytes(), of one statistic, times those that a task has.
  int64_t perTask = whole.tile, limit = target.l2Bytes / (selection.lanesReduced ? 2 : 4);
  std::string what = "a task's slab stays in L2";
  if (!selection.lanesReduced && !selection.outerKept()) {
    // Read in runs with gaps, three times: wins over two passes in order as long as it is short.
    perTask = whole.chunks[selection.tiled];
    limit = target.l2Bytes / 16;
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
  if (selection.lanesReduced)
    streamingLimit = limit / selection.streaming(fused).stages[0].tile * perTask;

  // Without a loop to chunk, the split form is the fused one in three stages: never better.
  const auto bytes = slab.constant();
  const bool streams = streamingBytes && moved.constant().value_or(0) > *streamingBytes;
  if (!splits || (bytes && *bytes <= (streams ? streamingLimit : limit)))
    return byStores(fused, what);
  if (bytes)
    return byStores(split, exceeds);

  // The slab has a named size in it. When the kept loops have none, x and y are a multiple of the
  // slab, and one guard on the slab tells both what fits and where streaming stores begin.
  const auto statistics = op.statistics().constant();
  if (!statistics || !streamingBytes)
    return {{fused, {slab, limit}, what}, {split, Guard{}, exceeds}};
  const int64_t groups = std::max<int64_t>(1, *statistics);
  // moved = arrays * groups * slabBytes, and `slab` is slabBytes times its own factor.
  const int64_t factor = (perTask ? perTask : groups) * read;
  const int64_t plainLimit = *streamingBytes / (arrays * groups) * factor;
  std::vector<ScheduleVariant> variants;
  variants.push_back({fused, {slab, std::min(limit, plainLimit)}, what});
  // As for static sizes: first by what fits in L2, then by where streaming stores begin. Where both
  // of these could follow, the one for the smaller sizes does: there are three variants at most.
  if (plainLimit > limit)
    variants.push_back({split, {slab, plainLimit}, exceeds});
  else if (plainLimit < streamingLimit)
    variants.push_back({selection.streaming(fused),
                        {slab, streamingLimit},
                        what + "; x and y exceed the caches: streaming stores"});
  variants.push_back({selection.streaming(split), Guard{},
                      exceeds + "; x and y exceed the caches: streaming stores"});
  return variants;
}

} // namespace

std::vector<Schedule> scheduleForms(const Operator &op, const TargetDescription &of) {
  const TargetDescription target = targetFor(op, of);
  const Selection selection(op, target, op.kept());
  const Schedule base = baseFor(selection);
  std::vector<Schedule> forms;
  auto add = [&](const Schedule &schedule) {
    forms.push_back(schedule);
    if (selection.mayStream())
      forms.push_back(selection.streaming(schedule));
  };
  if (!op.reduces()) {
    add(selection.oneStage(base));
    if (selection.hasLongRows())
      add(selection.split(base));
    return forms;
  }
  if (selection.fuses())
    add(selection.single(base, selection.fused(), "fused"));
  add(selection.split(base));
  return forms;
}

std::vector<ScheduleVariant> selectSchedules(const Operator &op, const TargetDescription &target) {
  std::vector<ScheduleVariant> variants = candidates(op, target);
  // Without those that not even sizes of 1 would take.
  const std::vector<int64_t> least(op.sizes.size(), 1);
  std::erase_if(variants,
                [&](const ScheduleVariant &variant) { return !variant.guard.holds(least); });
  return variants;
}

} // namespace normforge
