// A step as one tile sees it: the roles of its loops, its slots, and where its arrays lie.
//
// A tile holds some indices of the stage's kept loops in registers. To a step of the tile each of
// its loops is one of three things:
//
//   rows (the innermost loop is not kept)       columns (the innermost loop is kept)
//
//           lanes ->                                    slots = vectors of lanes ->
//          +-----------------------------+              +---------+---------+---------+
//   slot 0 | x x x x x x x x x x x x x x |       loop | | x x x x | x x x x | x x x x |
//   slot 1 | x x x x x x x x x x x x x x |            v | x x x x | x x x x | x x x x |
//          +-----------------------------+              +---------+---------+---------+
//   a statistic a slot; the lanes are                   a statistic a lane; nothing is
//   summed at the end                                   summed across lanes
//
// Rows that lie one after the other and are shorter than a vector may be packed: slots are vectors
// of the run that they are together.
//
//          +---------+---------+
//          | x x x y | y y z z |      rows of 3 elements, vectors of 4 lanes: slot 0, 1, ...
//          +---------+---------+
//
// A context is made once a step and then only read; what moves while loops are emitted is in a
// Cursor (StepEmitter.h).
#pragma once

#include "compiler/passes/BoundedSlice.h"
#include "compiler/passes/Held.h"
#include "compiler/passes/SizeArithmetic.h"
#include "compiler/passes/StepBody.h"
#include "compiler/schedule/Schedule.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"

namespace normforge::tile {

using namespace mlir;

/// The knobs of the schedule for a stage's tiles.
struct Knobs {
  SmallVector<bool> kept; ///< by loop of the stage
  int64_t tiled = -1;     ///< the loop whose indices a tile covers
  Width width;            ///< of the machine's vectors
  int64_t vectorsInTile = 1, unroll = 1, prefetch = 0;
  bool masksTails = false, masksLoads = false, streams = false, alternates = false;
  bool pairsHalves = false;
  Rows rows = Rows::OneByOne;
  int64_t threads = 0;  ///< that share the lanes of a tile's vectors, `width` each; 0: a CPU's
  int64_t down = 1;     ///< StagePlan::down
  int64_t held = 0;     ///< StagePlan::held
  int64_t subgroup = 0; ///< Device::subgroup
  Value thread;         ///< the number of the thread at hand in its group, an index
  Value firstLane;      ///< of the thread at hand, an index
  Value firstRow;       ///< of the thread at hand, an index; null where `down` is 1

  static Knobs of(func::FuncOp function, int64_t subgroup);
  /// The same for a step that comes after others whose vectors are held: what it loads beside those
  /// it loads itself. (In straight code LLVM would hold all of what they share.)
  Knobs anew(OpBuilder &b, Location loc) const;
  int64_t lastLoop() const { return static_cast<int64_t>(kept.size()) - 1; }
  bool columns() const { return tiled == lastLoop(); }
  int64_t vector() const { return width.lanes; }
  /// The lanes of a vector of all threads.
  Width shared() const { return width * std::max<int64_t>(1, threads); }
};

/// Kept indices of a tile: one of the rows whose elements a step reads, or a vector of indices
/// (columns, and what rows have in registers).
struct Slot {
  int64_t offset = 0; ///< from the tile's beginning; of packed rows in elements of the run
  Width width;
  Value mask; ///< which lanes exist, where not all do; on a GPU an i1: whether this thread's do
  Value lanesBefore; ///< instead of `offset`, where vectors before this one are scalable
};

enum class LoopRole : uint8_t { Slots, Lanes, Outer };

struct StepLoop {
  LoopRole role = LoopRole::Outer;
  bool kept = false;
  OpFoldResult extent;
  bool unit() const { return getConstantIntValue(extent) == 1; }
};

/// An array in memory as one step indexes it.
struct Access {
  Value base;                        ///< rank-0 memref; null where the elements are in registers
  OpFoldResult first;                ///< position of element 0 of the slice
  SmallVector<OpFoldResult> strides; ///< by loop of the step; null where the array does not use it
  /// Where not every element exists: how many do from the slice's first block on, the loop over
  /// the blocks (-1: one block) and the elements of a block.
  Value bound;
  int blockLoop = -1;
  int64_t block = 0;
  Value fresh;                 ///< of carried sums: whether what is in memory does not count yet
  HeldPlace slice;             ///< the array and the slice's offsets in it
  SmallVector<int> loopOfAxis; ///< by axis of the slice, the step's loop; -1: none

  Type element() const { return cast<MemRefType>(base.getType()).getElementType(); }
  bool isBits() const { return base && element().isInteger(1); }
};

/// Where the results of a step go.
enum class Kind : uint8_t {
  Elements,   ///< a value for every element, each result stored as it is made
  Registers,  ///< a value a slot, kept in registers
  Reductions, ///< a sum (or what else Combiner says) a slot, kept in registers
  /// A sum of the slots, and of the lanes of columns, for every index of the other loops, added to
  /// what is in memory.
  Carried,
};

struct StepContext {
  linalg::GenericOp step;
  Kind kind = Kind::Registers;
  Combiner combiner = Combiner::Sum; ///< of Reductions and Carried
  bool columns = false;              ///< the tile's, not rows
  SmallVector<StepLoop> loops;
  int slotLoop = -1, laneLoop = -1;
  SmallVector<int> order; ///< the outer loops to emit, outermost first
  SmallVector<Slot> slots;
  SmallVector<Access> inputs;  ///< by input
  SmallVector<Access> outputs; ///< by result, of Elements and Carried
  int64_t inFlight = 1;        ///< partial sums of one result and slot
  bool blocks = false;         ///< long sums are sums of blocks
  bool backwards = false;      ///< through the outermost loop
  bool holds = false;   ///< its threads' first iterations are emitted one after the other (Held.h)
  bool streams = false; ///< what it stores goes past the caches; no step of the tile reads it
  /// The number of packed rows and the elements of one; 0: rows are not packed.
  int64_t rows = 0, rowLength = 0;

  bool reduces() const { return kind == Kind::Reductions; }
  bool storesElements() const { return kind == Kind::Elements; }
  bool carries() const { return kind == Kind::Carried; }
  bool packs() const { return rowLength > 0; }
  /// Whether the step reads or writes rows: their lanes are elements of a row. All other steps have
  /// lanes of kept indices.
  bool isRows() const { return !columns && kind != Kind::Registers; }
  int lanesLoop() const { return isRows() ? laneLoop : slotLoop; }
  /// The stride of the lanes of a vector, or null.
  OpFoldResult laneStride(const Access &access) const {
    return lanesLoop() < 0 ? OpFoldResult() : access.strides[lanesLoop()];
  }
};

/// Makes contexts; emits what slots need (masks).
class StepAnalysis {
public:
  /// `constants` are those of the function.
  StepAnalysis(const Knobs &knobs, OpBuilder &b, Constants &constants)
      : knobs_(knobs), b_(b), constants_(constants) {}

  /// The loops of a step, their roles and extents; the kind, the slots.
  FailureOr<StepContext> analyze(linalg::GenericOp step);
  /// The slots alone of a step's results in registers, to be stored.
  FailureOr<StepContext> analyzeRegisters(linalg::GenericOp step);
  /// A slice of an array, indexed by `map`.
  Access accessOf(Value memory, AffineMap map, const StepContext &context);

private:
  LogicalResult findLoops(StepContext &context);
  void makeSlots(StepContext &context);
  /// Vectors of `lanes` indices, or elements. The last, partial one is masked, or made of narrower
  /// vectors.
  void appendVectors(StepContext &context, int64_t lanes, bool masksTail);
  SizeArithmetic sizes() { return {b_, b_.getUnknownLoc(), constants_}; }

  const Knobs &knobs_;
  OpBuilder &b_;
  Constants &constants_;
};

/// Whether the thread at hand has lanes among the first `count` of a vector of all threads.
Value threadsBelow(OpBuilder &b, Location loc, const Knobs &knobs, Value count);

/// Masks of vectors.
Value maskBelow(OpBuilder &b, Location loc, Value count, Width width);
Value constantMask(OpBuilder &b, Location loc, int64_t count, Width width);

} // namespace normforge::tile
