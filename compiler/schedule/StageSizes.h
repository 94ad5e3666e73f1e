// The heuristic's sizes of one stage: what is in flight, and how much a task takes.
//
//   rows: the innermost loop is not kept          columns: the innermost loop is kept
//
//        |<------- unroll ------->|                    |<----- tile ----->|
//        +--------+--------+------                     +--------+--------+----
//   tile | vector | vector | ...                unroll | vector | vector | ...
//        +--------+--------+------                     +--------+--------+----
//        | vector | vector | ...                       | vector | vector | ...
//        +--------+--------+------                     +--------+--------+----
//   a sum a row and vector in flight              a sum a column, and row in flight
//
//   a task takes `chunks`: of rows whole rows, several or one, or a part of one;
//   of columns a run of them, and as many rows as pay for its partials
//
// Rules that a change must keep: a size comes from the operator, the target's description or a
// constant here that says what was weighed; never from the machine that compiles.
#pragma once

#include "compiler/schedule/Schedule.h"

#include "llvm/ADT/STLFunctionalExtras.h"

namespace normforge {

/// Tasks that a problem whose named sizes are 1 is cut into at least, so that threads end together.
constexpr int64_t kLeastTasks = 16;

/// Where rows lie a multiple of this apart, all lines of a column want one set of L1.
constexpr int64_t kPageBytes = 4096;

/// a / b, rounded up; of sizes up to INT64_MAX.
constexpr int64_t ceilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// The sizes of stages whose steps keep the same loops.
struct StageSizes {
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
  int64_t packedRows = 0;  ///< in a tile, where a vector has several; 0: none has
  bool isRows;             ///< tiles are rows: the innermost loop is not kept; otherwise columns

  /// By loop of the data, whether the steps keep it.
  StageSizes(const Operator &op, const TargetDescription &target, std::vector<bool> keptLoops);

  /// The size of a loop where named sizes are 1.
  int64_t leastSize(int loop) const;
  /// The static size of a loop, or `otherwise` when it is named.
  int64_t sizeOr(int loop, int64_t otherwise) const;
  /// Whether a row is so long that the sums of its lanes are little beside it.
  bool hasLongRow() const;
  /// Whether so long that two rows at once have enough in flight.
  bool hasWideRow() const;
  /// Vectors of each of `tile` rows in flight.
  int64_t rowUnroll(int64_t tile) const;
  /// Whether something that elements are made of has one value for all rows of a tile.
  bool rowsShare() const;
  /// Vector, tile and unroll; a task has one index of each kept loop but the tiled one.
  StagePlan inFlight(bool reduces) const;
  /// The elements, in tiles of kept indices; `rowsOfColumns`: the kept loops are not what
  /// statistics are indexed by, but all around a row.
  StagePlan normalize(bool streams, bool rowsOfColumns = false) const;
  /// Bytes of the columns of one row; where their number is not known, as if they were few.
  int64_t rowBytes() const;
  /// A kept loop around the columns: what a fused task takes is contiguous without cutting them.
  bool outerKept() const;
  /// All that is done with the data of a tile, or of a run of columns.
  StagePlan fused() const;
  /// Rows in flight of a fused stage where x comes from memory, that is slower than the sums of
  /// lanes: few, for fewer are less code, and less to read from at a time.
  int64_t rowTileFromMemory() const;
  /// Partial sums of chunks; `past`: of data that no cache holds.
  StagePlan moments(bool past = false) const;
  /// Ends `schedule` with a stage of steps whose loops are fewer than the data's.
  void addSmall(Schedule &schedule, const std::string &name, std::vector<StepPlan> steps) const;

private:
  int arraysRead(const Step &step) const;
  /// Rows of a tile whose vectors are whole, where rows are shorter and lie one after the other; 0
  /// where they are not, or would need more registers than there are.
  int64_t findPackedRows() const;
  int innermostReduced() const;
  /// Vectors' worth of lanes in flight for columns: at most `most` vectors, in equal tiles.
  int64_t columnTile(int64_t most) const;
  int reducedLoops() const;
  int64_t rowVectors() const;
  /// Rows in flight: many where a row is so short that the sums of its lanes take longer than its
  /// elements, two where they still show, as far as the registers go: two sums a row.
  int64_t rowTile() const;
  /// Rows in flight of a tile of columns.
  int64_t columnUnroll(int64_t tile) const;
  /// Tasks of about `bytes` of x, from the innermost loop outwards: loops are taken whole as long
  /// as they fit; the first that does not is chunked, and those around it are counted one by one.
  /// `mayChunk` says which loops may be split at all; kept ones but the tiled one always may.
  void chunkFor(StagePlan &stage, int64_t bytes, llvm::function_ref<bool(int)> mayChunk) const;
  /// `vectors` slots, each with `unroll` bodies, as far as the cost of one allows.
  int64_t boundUnroll(int64_t unroll, int64_t vectors) const;
  /// Cuts rows that are too long for one task into runs.
  void cutColumns(StagePlan &stage) const;
  /// Whether a reduced loop may be chunked in the moments: a padded block's elements are no
  /// product.
  bool mayChunkReduced(int i) const;
  /// Vectors of columns whose sums go down the rows at once: what is in a line of each row, or in
  /// several, is read before the cache has lost it, where rows are a power of two apart. So as many
  /// as the registers hold beside what is summed.
  int64_t columnSums() const;
  /// The plan of a stage whose loops are fewer than the data's, or count chunks: `schedule` ends
  /// with it, and has its steps.
  StagePlan small(const Schedule &schedule) const;
};

} // namespace normforge
