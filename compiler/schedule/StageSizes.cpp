#include "compiler/schedule/StageSizes.h"

#include <algorithm>
#include <bit>

namespace normforge {

namespace {

/// Bytes of x that an elementwise task takes at most and at least: long enough to hide the cost of
/// a task; within these, some tasks of a problem whose named sizes are 1, so that threads end
/// together.
constexpr int64_t kElementwiseTaskBytes = 64 * 1024, kLeastTaskBytes = 8 * 1024;
/// Bytes of x whose moments one task takes where a slab is too long: read twice, so at most a
/// quarter of the L2 cache, and short for the same reason as above.
constexpr int64_t kMomentsTaskBytes = 64 * 1024;
/// Rows whose moments a task takes at least: each costs three partials a column.
constexpr int64_t kMomentsTaskRows = 32;
/// Columns that a task takes of rows too long for one: runs that the prefetchers follow.
constexpr int64_t kColumnRunBytes = 2 * 1024;
/// Rows that a task takes of columns that it reads run after run.
constexpr int64_t kColumnRows = 16;
/// So few rows it takes whole: what the columns need is made once for them.
constexpr int64_t kFewColumnRows = 64;
/// Tasks that the columns are cut into where that is what cuts the work.
constexpr int64_t kColumnTasks = 8;
/// Rows of fewer vectors than the first have as many in flight as registers allow, of fewer than
/// the second four, of fewer than the third two. (49 vectors: four rows are 1.05 to 1.15 times as
/// fast as two, Zen 4.)
constexpr int64_t kShortRowVectors = 16, kLongRowVectors = 512;
/// The second, in lanes of a vector: the longer it is, the more its sum at the end takes.
constexpr int64_t kMediumRowLanes = 4;
/// Rows that are written as one run where they share lines.
constexpr int64_t kJoinedRows = 16;
/// Bytes of neighboring rows that a task takes the moments of, so that it reads runs.
constexpr int64_t kRowRunBytes = 8 * 1024;
/// Instructions of elements' formulas that are in flight at once: what costs much fills the machine
/// by itself, and is code each time.
constexpr int64_t kInstructionsInFlight = 96;
/// Rows in flight for each formula of sums that may be: the sums of their lanes wait, too. (16 rows
/// behind a prologue with log, erf, silu and tanh took 17 KB of stack. No schedule of specs/
/// changes by it.)
constexpr int64_t kDearRows = 2;
/// Bytes that a task takes where all of the data is past the caches, and tasks are many: fewer
/// partials, and longer runs.
constexpr int64_t kPastMomentsTaskBytes = 256 * 1024, kPastElementwiseTaskBytes = 128 * 1024;
/// Vectors of columns that a task merges: to share out so little costs more.
constexpr int64_t kMergedVectors = 4;
/// Rows of one vector that are made at once. (512 rows of 4 elements: 1.8 to 2 times as fast,
/// Zen 4.)
constexpr int64_t kRowsOfOneVector = 8;
/// No CPU here has narrower vectors.
constexpr int64_t kLeastVectorBytes = 16;
/// Values of one result that a task of a stage of maps alone makes at most, if not a tile's.
constexpr int64_t kMapsOfTask = 4096;

/// As far as sizes are worth telling apart.
int64_t boundedProduct(int64_t a, int64_t b) {
  constexpr int64_t most = int64_t(1) << 40;
  return b != 0 && a > most / b ? most : a * b;
}

int lastKept(const std::vector<bool> &kept) {
  const auto found = std::find(kept.rbegin(), kept.rend(), true);
  return static_cast<int>(kept.rend() - found) - 1;
}

} // namespace

StageSizes::StageSizes(const Operator &op, const TargetDescription &target,
                       std::vector<bool> keptLoops)
    : op(op), target(target), kept(std::move(keptLoops)),
      element(static_cast<int64_t>(byteSize(op.dtype))),
      vector(target.lanes(byteSize(op.compute))) {
  kept.resize(static_cast<size_t>(op.rank()));
  tiled = lastKept(kept);
  isRows = !kept.back();
  int64_t cost = 1, ofSums = 1; // of the formulas of elements, and of what is summed
  for (const Step &step : op.steps) {
    if (!op.isWhole(step))
      continue;
    int64_t &own = step.reduce == Reduce::None ? cost : ofSums;
    own = std::max(own, op.exprs.cost(step.values()));
    if (step.reduce == Reduce::None)
      continue;
    sums =
        std::max(sums, static_cast<int>(step.reduce == Reduce::Moments ? 2 : step.results.size()));
    read = std::max(read, arraysRead(step));
  }
  mostBodies = std::max<int64_t>(1, kInstructionsInFlight / cost);
  vectorsInFlight = target.vectorsInFlight;
  if (sums > 2) // as many accumulators as two sums would have
    vectorsInFlight = static_cast<int64_t>(
        std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(1, 2 * vectorsInFlight / sums))));
  mostSums = std::max<int64_t>(1, kInstructionsInFlight / ofSums);
  vectorsInFlight = std::min(vectorsInFlight, mostSums);
  packedRows = findPackedRows();
  if (packedRows > 0)
    return;
  // Lanes that a row does not fill cost what full ones do, and more where they are stored under a
  // mask (Zen 4: 2x2 images and 3 channels 1.6 to 2.5 times as fast with 4 lanes as with 16).
  if (const auto row = op.loops[op.rank() - 1].size.constant(); row && !target.scalableVectors)
    vector = std::min(vector,
                      std::max(kLeastVectorBytes / static_cast<int64_t>(byteSize(op.compute)),
                               static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(*row)))));
  // A block's lanes are all that is contiguous in a blocked layout; of scalable vectors, no one
  // knows yet whether they are longer.
  if (op.blocked && !target.scalableVectors)
    vector = std::min(vector, op.blocked->block);
}

int64_t StageSizes::findPackedRows() const {
  const int inner = op.rank() - 1;
  const auto length = op.loops[inner].size.constant();
  if (!isRows || tiled < 0 || op.takesBits() || target.scalableVectors ||
      (op.blocked && op.blocked->padded) || !length || *length < 2 || *length >= vector)
    return 0;
  for (const Step &step : op.steps)
    if (op.isWhole(step) && apartRows(op, step, tiled, inner))
      return 0;
  const int64_t held = target.vectorRegisters / sums;
  for (int64_t rows = vector; rows * *length % vector == 0; rows /= 2) {
    const int64_t vectors = rows * *length / vector;
    if (rows <= sizeOr(tiled, rows) && vectors <= held && vectors <= mostBodies)
      return rows;
  }
  return 0;
}

int StageSizes::arraysRead(const Step &step) const {
  int count = 0;
  for (Expr expr : op.exprs.nodesOf(step.values()))
    if (const Operand *array = op.arrayOf(expr))
      count += op.isWhole(*array) && !array->isBits();
  return count;
}

int64_t StageSizes::sizeOr(int loop, int64_t otherwise) const {
  return op.loops[loop].size.constant().value_or(otherwise);
}

int64_t StageSizes::leastSize(int loop) const {
  const std::vector<int64_t> ones(op.sizes.size(), 1);
  return op.loops[loop].size.evaluate(ones).value_or(1);
}

int StageSizes::innermostReduced() const {
  for (int i = op.rank() - 1; i >= 0; --i)
    if (!kept[i])
      return i;
  return -1;
}

int64_t StageSizes::columnTile(int64_t most) const {
  const int64_t columns = sizeOr(tiled, vector * most);
  const int64_t vectors = ceilDiv(columns, vector);
  const int64_t tiles = ceilDiv(vectors, most);
  return ceilDiv(vectors, tiles) * vector;
}

int StageSizes::reducedLoops() const {
  return static_cast<int>(std::count(kept.begin(), kept.end(), false));
}

int64_t StageSizes::rowVectors() const { return ceilDiv(sizeOr(op.rank() - 1, 1 << 20), vector); }

int64_t StageSizes::rowTile() const {
  if (tiled < 0)
    return 1;
  if (packedRows > 0)
    return packedRows;
  const int64_t vectors = rowVectors();
  // In rows of four vectors or fewer, the sums of lanes are as much work as the rest: as many rows
  // as lanes.
  const bool isTiny = vectors <= 4 && target.vectorRegisters >= 32;
  const int64_t wanted = isTiny ? std::min<int64_t>(target.vectorRegisters / 2, vector)
                         : vectors < kShortRowVectors
                             ? std::min<int64_t>(target.vectorRegisters / 4, vector)
                         : vectors < kMediumRowLanes * vector ? 4
                         : vectors < kLongRowVectors          ? 2
                                                              : 1;
  // Costly terms hide the sums of lanes by themselves, and the registers hold few of them.
  const int64_t most = std::min(wanted, kDearRows * mostSums);
  const int64_t rows = sizeOr(tiled, most);
  for (int64_t tile = most; tile > 1; tile /= 2)
    if (rows % tile == 0)
      return tile;
  // Rows that whole tiles leave over are code of their own.
  return rows >= 8 ? std::min<int64_t>(most, 4) : 1;
}

bool StageSizes::hasLongRow() const { return rowVectors() >= kShortRowVectors; }

bool StageSizes::hasWideRow() const { return rowVectors() >= kMediumRowLanes * vector; }

int64_t StageSizes::rowUnroll(int64_t tile) const {
  const int64_t vectors = std::max<int64_t>(1, sizeOr(op.rank() - 1, 1 << 20) / vector);
  // Two are paired, where the registers hold their sums.
  const int64_t least =
      mayPairHalves(op, target) && 2 * tile * sums <= target.vectorRegisters && mostSums > 1 ? 2
                                                                                             : 1;
  return std::min<int64_t>(std::max(least, vectorsInFlight / tile), vectors);
}

int64_t StageSizes::columnUnroll(int64_t tile) const {
  const int64_t unroll = std::max<int64_t>(1, vectorsInFlight / ceilDiv(tile, vector));
  const int loop = innermostReduced();
  return loop < 0 ? unroll : std::min(unroll, sizeOr(loop, unroll));
}

StagePlan StageSizes::inFlight(bool reduces) const {
  StagePlan stage;
  stage.vector = vector;
  stage.tiled = tiled;
  stage.chunks.assign(kept.size(), 0);
  if (isRows) {
    stage.tile = reduces || packedRows > 0 ? rowTile() : 1;
    stage.unroll = rowUnroll(stage.tile);
    stage.rows = packedRows > 0 ? Rows::Packed : Rows::OneByOne;
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

void StageSizes::chunkFor(StagePlan &stage, int64_t bytes,
                          llvm::function_ref<bool(int)> mayChunk) const {
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
      inner *= size.value_or(i == tiled && !isRows ? 4 * vector : 1);
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

int64_t StageSizes::boundUnroll(int64_t unroll, int64_t vectors) const {
  return std::clamp<int64_t>(mostBodies / std::max<int64_t>(1, vectors), 1, unroll);
}

StagePlan StageSizes::normalize(bool streams, bool rowsOfColumns) const {
  StagePlan stage = inFlight(false);
  int64_t rows = 1; // of columns, where named sizes are 1
  for (int i = 0; i < op.rank(); ++i)
    rows = kept[i] ? rows : boundedProduct(rows, leastSize(i));
  const bool areFew = !isRows && rows <= kFewColumnRows;
  if (areFew && sizeOr(tiled, 0) > stage.tile)
    stage.tile = columnTile(target.vectorRegisters / 2);
  if (!isRows && ceilDiv(stage.tile, vector) > mostBodies)
    stage.tile = columnTile(mostBodies);
  // Rows of one vector: the loop over rows is as much work as they are.
  if (isRows && tiled >= 0 && !rowsOfColumns && rowVectors() == 1 && !op.takesBits() &&
      packedRows == 0)
    stage.tile = std::min({kRowsOfOneVector, mostBodies, sizeOr(tiled, 1)});
  stage.unroll = boundUnroll(stage.unroll, isRows ? 1 : ceilDiv(stage.tile, vector));
  if (streams && isRows) {
    stage.unroll = 1; // memory sets the pace
    // Rows that no vector divides share lines of y: together they are written whole.
    if (tiled >= 0 && !rowsOfColumns && !op.takesBits() && packedRows == 0 &&
        rowVectors() < kShortRowVectors && sizeOr(op.rank() - 1, 0) % vector != 0)
      stage.tile = std::min(kJoinedRows, sizeOr(tiled, 1));
  }
  const int64_t most = streams ? kPastElementwiseTaskBytes : kElementwiseTaskBytes;
  int64_t bytes = most;
  if (isRows || sizeOr(tiled, 1 << 20) <= stage.tile) {
    int64_t least = element; // bytes of x where named sizes are 1
    for (int i = 0; i < op.rank(); ++i)
      least = boundedProduct(least, leastSize(i));
    bytes = streams ? most : std::clamp(least / kLeastTasks, kLeastTaskBytes, most);
    if (rowsOfColumns && !op.elements.constant())
      bytes =
          std::clamp(boundedProduct(kColumnRows * element, sizeOr(op.rank() - 1, 1)), bytes, most);
  } else if (sizeOr(tiled, 0) > stage.tile) {
    // Tiles go down the rows of a task one after the other: no more rows than the prefetchers
    // follow and the ways of a cache hold, and not so many columns that tasks are few.
    cutColumns(stage);
    const int64_t columns = stage.chunks[tiled] ? stage.chunks[tiled] : sizeOr(tiled, 0);
    bytes = areFew ? kFewColumnRows * columns * element
                   : std::min(bytes, kColumnRows * columns * element);
  }
  chunkFor(stage, bytes, [&](int i) { return isRows || !kept[i]; });
  return stage;
}

void StageSizes::cutColumns(StagePlan &stage) const {
  if (rowBytes() > kColumnRunBytes)
    stage.chunks[tiled] = std::max(stage.tile, kColumnRunBytes / element / stage.tile * stage.tile);
}

int64_t StageSizes::rowBytes() const {
  return isRows ? 0 : std::min<int64_t>(sizeOr(tiled, vector), 1 << 30) * element;
}

bool StageSizes::mayChunkReduced(int i) const {
  return !kept[i] &&
         !(op.blocked && op.blocked->padded && (i == op.blocked->outer || i == op.blocked->inner));
}

bool StageSizes::outerKept() const {
  for (int i = 0; i < op.rank(); ++i)
    if (kept[i] && i != tiled)
      return true;
  return false;
}

bool StageSizes::rowsShare() const {
  const int inner = op.rank() - 1;
  return tiled >= 0 && std::any_of(op.steps.begin(), op.steps.end(), [&](const Step &step) {
           if (!op.isWhole(step) || step.reduce != Reduce::None)
             return false;
           const std::vector<Expr> nodes = op.exprs.nodesOf(step.values());
           return std::any_of(nodes.begin(), nodes.end(), [&](Expr expr) {
             const Operand *array = op.arrayOf(expr);
             return array && array->strides[tiled].constant() == 0 &&
                    array->strides[inner].constant() != 0;
           });
         });
}

StagePlan StageSizes::fused() const {
  StagePlan stage = inFlight(true);
  // Values that rows share are read once for all of them. (Rows of 4096 elements, layer norm: 1.2
  // times as fast with more in flight, Zen 4; of 1000, which end under a mask, 0.9.)
  if (isRows && stage.tile > 1 && packedRows == 0 && sizeOr(op.rank() - 1, 1) % vector == 0 &&
      rowsShare()) {
    stage.rows = Rows::Together;
    if (hasWideRow())
      stage.unroll = std::clamp<int64_t>(target.vectorRegisters / 2 / (stage.tile * sums),
                                         stage.unroll, std::max(stage.unroll, vectorsInFlight));
  }
  if (tiled >= 0)
    stage.chunks[tiled] = stage.tile;
  if (isRows || outerKept())
    return stage;
  // Rows a multiple of a page apart want one set of L1 for each line of a tile: as many columns as
  // registers hold go down the rows once. (64 rows of 1024 columns: 1.6 to 1.8 times as fast,
  // Zen 4.)
  if (rowBytes() > 0 && rowBytes() % kPageBytes == 0) {
    const int64_t held = std::min<int64_t>({target.vectorRegisters / sums, mostSums, mostBodies});
    stage.tile = columnTile(std::max(vectorsInFlight, held));
    stage.unroll = columnUnroll(stage.tile);
  }
  // The columns are all that there is to cut: into runs not longer than the prefetchers need, and
  // not shorter than a tile, or four vectors.
  const int64_t least = std::max(4 * vector, stage.tile),
                most = std::max(least, kColumnRunBytes / element);
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

int64_t StageSizes::rowTileFromMemory() const {
  const int64_t tile = rowTile();
  if (packedRows > 0)
    return tile;
  if (reducedLoops() < 2) // a row is all that a statistic is taken over
    return std::min<int64_t>(tile, 4);
  return rowVectors() < kShortRowVectors / 2 ? tile : 1;
}

int64_t StageSizes::columnSums() const {
  const int64_t held = std::max<int64_t>(1, target.vectorRegisters * 3 / 4 / sums);
  return std::max(
      vectorsInFlight,
      std::min(static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(held))), mostSums));
}

StagePlan StageSizes::moments(bool past) const {
  StagePlan stage = inFlight(true);
  if (isRows && tiled >= 0) {
    stage.tile = std::max<int64_t>(1, packedRows); // memory is slower than the sums of lanes
    stage.unroll = rowUnroll(stage.tile);
    const int64_t rowBytes = sizeOr(op.rank() - 1, kRowRunBytes) * element;
    const int64_t rows = std::min(ceilDiv(kRowRunBytes, rowBytes), sizeOr(tiled, 1 << 20));
    stage.chunks[tiled] = ceilDiv(rows, stage.tile) * stage.tile;
  }
  int64_t bytes = std::min(past ? kPastMomentsTaskBytes : kMomentsTaskBytes, target.l2Bytes / 4);
  // Rows of columns: enough of them to be worth their partials.
  if (!isRows) {
    stage.tile = columnTile(columnSums());
    stage.unroll = columnUnroll(stage.tile);
    cutColumns(stage);
    const int64_t columns = stage.chunks[tiled] ? stage.chunks[tiled] : sizeOr(tiled, 64);
    bytes = std::max(bytes, kMomentsTaskRows * element * columns);
  }
  chunkFor(stage, bytes, [&](int i) { return mayChunkReduced(i); });
  return stage;
}

StagePlan StageSizes::small(const Schedule &schedule) const {
  const StagePlan &made = schedule.stages.back();
  const std::vector<StageLoop> loops = stageLoops(op, schedule, schedule.stages.size() - 1);
  StagePlan stage;
  stage.name = made.name;
  stage.steps = made.steps;
  // Sums of partials are in f64: the vectors are the machine's of these.
  stage.vector = stage.merges() ? std::min<int64_t>(vector, target.lanes(sizeof(double))) : vector;
  stage.chunks.assign(loops.size(), 0);
  stage.tiled = tileLoop(loops);
  for (size_t i = 0; i < loops.size(); ++i)
    if (loops[i].kept)
      stage.chunks[i] = 1;
  if (stage.tiled < 0)
    return stage;
  stage.tile = loops.back().kept ? stage.vector : 1;
  if (stage.merges() && loops.back().kept)
    if (const auto columns = loops.back().size.constant())
      stage.tile *= std::min(kMergedVectors, ceilDiv(*columns, stage.vector));
  stage.chunks[stage.tiled] = stage.tile;
  // Where nothing is reduced a task has many values: to share out so little costs more.
  int64_t inner = 1;
  if (std::all_of(loops.begin(), loops.end(), [](const StageLoop &loop) { return loop.kept; }))
    for (size_t i = loops.size(); i-- > 0 && inner < kMapsOfTask;) {
      const int64_t unit = static_cast<int>(i) == stage.tiled ? stage.tile : 1;
      const int64_t wanted = std::max(unit, kMapsOfTask / inner / unit * unit);
      const auto size = loops[i].size.constant();
      stage.chunks[i] = size && *size <= wanted ? 0 : wanted;
      inner = stage.chunks[i] ? kMapsOfTask : inner * std::max<int64_t>(1, *size);
    }
  return stage;
}

void StageSizes::addSmall(Schedule &schedule, const std::string &name,
                          std::vector<StepPlan> steps) const {
  schedule.stages.push_back({.name = name, .steps = std::move(steps)});
  schedule.stages.back() = small(schedule);
}

} // namespace normforge
