// Vectorizes the steps of one tile, one after the other.
//
// Enters: a block of linalg.generic steps on slices, as FormTasks leaves it. Leaves: scf loops and
// vector operations on memory, statistics in registers. What a loop is to a step (slots of the
// tile, lanes of a vector, or a loop) and where an array lies is in TileAccess.cpp; loops, tails
// and sums in TileLoops.cpp; the steps themselves in VectorizeSteps.cpp.
#pragma once

#include "compiler/lowering/Attributes.h"
#include "compiler/passes/BoundedSlice.h"
#include "compiler/passes/SizeArithmetic.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Utils/StaticValueUtils.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

namespace normforge::tile {

using namespace mlir;

/// Kept indices of a tile: one of the rows whose elements a step reads, or a vector of indices
/// (columns, and what rows have in registers).
struct Slot {
  int64_t offset = 0; ///< from the tile's beginning
  Width width;
  Value mask;        ///< of the lanes that exist, where not all do
  Value lanesBefore; ///< instead of `offset`, where vectors before this one are scalable
};

/// What a step's loop is to the vectorizer.
enum class Role { Slots, Lanes, Other };

struct StepLoop {
  Role role = Role::Other;
  bool kept = false;
  OpFoldResult extent;
  bool unit() const { return getConstantIntValue(extent) == 1; }
};

/// An array in memory as one step sees it: the position of element 0 of the slice, and the stride
/// of each of the step's loops.
struct Access {
  Value base; ///< rank-0 memref
  OpFoldResult offset;
  SmallVector<OpFoldResult> strides; ///< by loop of the step; null where the array does not use it
  /// Where the slice is padded: elements that exist from the current block on, the loop over the
  /// blocks (-1: one block) and the elements of a block.
  Value bound;
  int blockLoop = -1;
  int64_t block = 0;
  Value view; ///< rank-1 memref at `offset`, made before the innermost loop
};

class TileVectorizer {
public:
  /// `constants` are those of the function.
  TileVectorizer(func::FuncOp function, Block &block, Constants &constants)
      : function_(function), block_(block), constants_(constants), b_(function.getContext()),
        loc_(function.getLoc()) {
    auto integer = [&](const char *name) {
      return function->getAttrOfType<IntegerAttr>(name).getInt();
    };
    tiled_ = integer(attr::kTileLoop);
    vector_ = integer(attr::kVector);
    vectorsInTile_ = std::max<int64_t>(1, integer(attr::kTile) / vector_);
    if (auto scalable = function->getAttrOfType<IntegerAttr>(attr::kScalable))
      vector_ /= scalable.getInt();
    width_ = {vector_, function->hasAttr(attr::kScalable)};
    unroll_ = integer(attr::kUnroll);
    streaming_ = function->hasAttr(attr::kStreaming);
    prefetches_ = function->hasAttr(attr::kPrefetches);
    alternates_ = function->hasAttr(attr::kAlternates);
    masked_ = function->getAttrOfType<BoolAttr>(attr::kMaskedTails).getValue();
    masksLoads_ = function->getAttrOfType<BoolAttr>(attr::kMaskedLoads).getValue();
    auto kept = function->getAttrOfType<DenseBoolArrayAttr>(attr::kKept).asArrayRef();
    kept_.assign(kept.begin(), kept.end());
    last_ = static_cast<int64_t>(kept.size()) - 1;
    columns_ = tiled_ == last_;
  }

  LogicalResult run();

private:
  // A step.
  LogicalResult vectorize(linalg::GenericOp step);
  LogicalResult findLoops(linalg::GenericOp step);
  void makeSlots();
  /// Whether the step at hand reads or writes rows: their lanes are elements of a row. All other
  /// steps have lanes of kept indices.
  bool isRows() const { return !columns_ && (reduces_ || element_); }
  void bindRegisters(int64_t row = -1);
  void emitRowLoop(int64_t rows, llvm::function_ref<void(OpFoldResult)> body);
  Value reduceRows(ArrayRef<Value> rows);
  Value halve(ArrayRef<Value> sums, int64_t width);
  Access accessOf(Value tensor, AffineMap map);
  Access accessOfMemory(Value memory, AffineMap map);
  void advance(int loop, Value index);
  void makeViews();
  SmallVector<Value> emitLoops(unsigned next, SmallVector<Value> accumulators);
  SmallVector<Value> emitInnermost(int loop, SmallVector<Value> accumulators);
  SmallVector<Value> emitLanes(SmallVector<Value> accumulators);
  void emitAlignedRow();
  void emitJoinedRows();
  /// Whether the rows of a tile are one run of memory to everything that the step reads and writes.
  bool joinsRows();
  SmallVector<Value> emitLanesFrom(OpFoldResult begin, SmallVector<Value> accumulators);
  /// Whether y, written in vectors along `lanes`, may go past the caches from an aligned address
  /// on.
  bool mayStream() const;
  /// Elements that y's first one in a slot is past an aligned address.
  Value misalignment(const Slot &slot);
  using RangeBody = llvm::function_ref<SmallVector<Value>(OpFoldResult, SmallVector<Value>)>;
  SmallVector<Value> emitRange(OpFoldResult begin, OpFoldResult end, Width step,
                               SmallVector<Value> accumulators, RangeBody body, int64_t terms = 1);
  /// Terms that one accumulator takes in the loops after order_[next], as far as kBlock.
  int64_t termsAfter(unsigned next) const;
  SmallVector<Value> emitLoop(OpFoldResult begin, OpFoldResult end, Width step,
                              SmallVector<Value> accumulators, RangeBody body);
  /// The step at `count` positions from `index` of loop `loop`, `distance` apart, for all slots.
  SmallVector<Value> emitPoint(int loop, OpFoldResult index, int64_t count, Width distance,
                               Width width, Value mask, SmallVector<Value> accumulators);
  Value load(Access &access, int loop, OpFoldResult index, OpFoldResult plus, const Slot &slot,
             Width width, Value mask);
  /// The first `count` elements, one by one, and zeros.
  Value loadElements(Access &access, Value at, Width width, int64_t count);
  /// Fetches what the next tile will load at the same place: of rows, the one after these; of
  /// columns, that of the next index of the kept loop around them.
  void prefetch(const Access &access, int loop, OpFoldResult index, OpFoldResult plus,
                const Slot &slot);
  void store(Access &access, int loop, OpFoldResult index, OpFoldResult plus, const Slot &slot,
             Width width, Value mask, Value value);
  /// The distances of the lanes of a vector from its first, in elements.
  Value laneOffsets(Width width, OpFoldResult stride);
  OpFoldResult offsetOf(const Slot &slot) {
    return slot.lanesBefore ? OpFoldResult(slot.lanesBefore) : b_.getIndexAttr(slot.offset);
  }
  Value combine(Value x, Value y) { return arith::AddFOp::create(b_, loc_, x, y); }
  LogicalResult writeRegisters(bufferization::MaterializeInDestinationOp write);

  // Values.
  Value constant(int64_t v) { return constants_.index(loc_, v); }
  Value indexValue(OpFoldResult v) { return sizes().value(v); }
  SizeArithmetic sizes() { return {b_, loc_, constants_}; }
  OpFoldResult add(OpFoldResult x, OpFoldResult y) { return sizes().add(x, y); }
  OpFoldResult add(OpFoldResult x, int64_t y) { return sizes().add(x, b_.getIndexAttr(y)); }
  OpFoldResult scaled(OpFoldResult x, OpFoldResult y) { return sizes().mul(x, y); }
  /// Position of an element relative to an access' view.
  Value elementIndex(const Access &access, int loop, OpFoldResult index, OpFoldResult plus,
                     const Slot &slot);
  /// The lanes of a padded slice that exist from here on, joined with `mask`.
  Value existing(const Access &access, OpFoldResult index, OpFoldResult plus, const Slot &slot,
                 Width width, Value mask);
  Value maskBelow(Value count, Width width);
  Value constantMask(int64_t count, Width width);
  Value wholeMask(Width width);
  Value intersect(Value x, Value y);
  OpFoldResult laneStride(const Access &access) const;
  int lanesLoop() const { return isRows() ? laneLoop_ : slotLoop_; }
  int64_t vectorBytes(const Access &access) const {
    return vector_ * cast<MemRefType>(access.base.getType()).getElementTypeBitWidth() / 8;
  }

  func::FuncOp function_;
  Block &block_;
  Constants &constants_;
  OpBuilder b_;
  Location loc_;
  int64_t tiled_, last_;
  int64_t vector_; ///< width_.lanes
  Width width_;    ///< of the machine's vectors
  int64_t vectorsInTile_, unroll_;
  SmallVector<bool> kept_; ///< by loop of the stage
  bool masked_, masksLoads_, columns_, streaming_, alternates_, prefetches_;
  int passes_ = 0;            ///< over the tile's data so far
  int64_t tile_ = 1;          ///< slots of the step at hand's whole tile
  bool storesStream_ = false; ///< in code where vectors of y are aligned

  /// Tensors whose elements are in registers: a value a slot of the step that made them. What rows
  /// have is one vector over them.
  DenseMap<Value, SmallVector<Value>> registers_;

  // The step at hand.
  linalg::GenericOp step_;
  SmallVector<StepLoop> loops_;
  SmallVector<Slot> slots_;
  int slotLoop_ = -1, laneLoop_ = -1;
  SmallVector<int> order_; ///< the loops to emit, outermost first, without slots and lanes
  bool reduces_ = false, element_ = false;
  bool blocks_ = false;        ///< long sums are sums of blocks
  bool backwards_ = false;     ///< through the outermost loop
  SmallVector<Access> inputs_; ///< by input; base is null for registers
  /// By input in registers: a value a slot, or one for all; for rows those `vector_` wide, too.
  SmallVector<SmallVector<Value>> arguments_, wideArguments_;
  SmallVector<Access> outputs_;
  SmallVector<OpFoldResult> position_; ///< by loop
  int64_t inFlight_ = 1;
};

} // namespace normforge::tile
