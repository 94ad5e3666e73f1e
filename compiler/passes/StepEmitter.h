// Emits the loops and vectors of one step.
//
// Enters: a StepContext and the registers of the tile. Leaves: scf loops and vector operations, and
// the values of accumulators. StepPoints.cpp emits the step at one place; Access.cpp
// loads and stores single vectors, Bits.cpp those of bits, PairedHalves.cpp two of bf16 at once;
// StepLoops.cpp emits loops, tails and sums in blocks; GroupSums.cpp what a GPU's threads sum up;
// StreamRows.cpp rows that are written past the caches; PackedRows.cpp rows shorter than a vector.
#pragma once

#include "compiler/passes/StepContext.h"

#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

namespace normforge::tile {

/// Tensors whose elements are in registers: a value a slot of the step that made them. What rows
/// have is one vector over them.
using Registers = DenseMap<Value, SmallVector<Value>>;

/// What a GPU's group has of shared memory so far: each sum has bytes of its own.
struct SharedMemory {
  int64_t bytes = 0;
};

/// Sums that the tiles of a task carry, where a thread has them in registers from tile to tile: the
/// loop over the tiles takes them along, and its last iteration stores them.
struct CarriedSums {
  scf::ForOp loop; ///< null: there is none, and they are carried in memory
  struct Sum {
    Value begin;  ///< of the first iteration
    Value before; ///< stands for what the loop takes along
    Value after;
  };
  SmallVector<Sum> sums{};
};

/// Where an access stands in the loops emitted so far.
struct Place {
  OpFoldResult offset; ///< position of element 0
  Value bound;         ///< elements that exist from the current block on
  /// Rank-1 memref at `offset`, made before the innermost loop; of bits, of the words from the
  /// array's beginning.
  Value view;
};

/// The part of a step that code is being emitted for. Passed by value: what an inner loop changes
/// is gone when it ends.
struct Cursor {
  SmallVector<Place> inputs, outputs;
  SmallVector<OpFoldResult> position; ///< index of each loop; null where it is not running
  SmallVector<Slot> slots;
  /// By input in registers: a value a slot, or one for all; for rows those as wide as a vector,
  /// too.
  SmallVector<SmallVector<Value>> arguments, wideArguments;
  /// Where a thread holds vectors: by loop, the number of its iteration here; how many iterations
  /// may be held from here on; the number of this one among those; whether it exists, an i1 (null:
  /// it does).
  SmallVector<int64_t> iterations;
  int64_t held = 0, ordinal = 0;
  Value exists;
  int64_t unroll = 1;   ///< iterations of the innermost loop in flight
  bool streams = false; ///< vectors of elements are aligned here, and go past the caches
  bool shifted = false; ///< rows' vectors do not begin at multiples of their lanes
};

class StepEmitter {
public:
  StepEmitter(const Knobs &knobs, const StepContext &context, OpBuilder &b, Constants &constants,
              Registers &registers, HeldVectors &held, CarriedSums &carried, SharedMemory &shared)
      : knobs_(knobs), context_(context), step_(context.step), b_(b), constants_(constants),
        registers_(registers), held_(held), carried_(carried), shared_(shared),
        loc_(step_.getLoc()), pairs_(pairsVectors()) {}

  /// Emits the whole step; results that are no elements are in the registers then.
  LogicalResult emit();
  /// Stores results that are in registers.
  void storeRegisters(const Access &access, ArrayRef<Value> values);
  /// Waits for all threads of a GPU's group, and for what they have read and written.
  void awaitThreads();

private:
  using Sums = SmallVector<Value>; ///< by result, slot and number in flight
  using RangeBody = llvm::function_ref<Sums(OpFoldResult, Sums)>;

  enum class InPair : uint8_t { Alone, First, Second };
  /// A single vector, at position `index + plus` of loop `loop` (-1: none is running) in a slot.
  struct Spot {
    int loop;
    OpFoldResult index, plus;
    Slot slot;
    Width width;
    Value mask;
    bool shifted = false; ///< as Cursor's
    InPair pair = InPair::Alone;
    size_t second = 0; ///< of a first one: the number of the other in Points::spots
  };
  /// The step at several positions of a loop, for all slots.
  struct Points {
    const Cursor &at;
    int loop;
    size_t iterations;
    SmallVector<Spot> spots{};    ///< by slot and iteration
    SmallVector<Value> seconds{}; ///< by spot and input: what was loaded with the first of its pair
    SmallVector<Value> results{}; ///< by spot and result: to be stored or carried
  };

  // Steps.
  FailureOr<Sums> identities();
  void finishSums(const Sums &sums);
  Value reduceRows(ArrayRef<Value> rows);

  // Sums of a GPU's threads.
  /// Adds up what the threads have of each row or column; all that have a part in it get the sums.
  void combineThreads(MutableArrayRef<Value> sums);
  /// The same of single numbers: thread i has a part in what thread i modulo `apart` has.
  void combineAcross(MutableArrayRef<Value> sums, int64_t apart);
  /// What thread (own number) xor `distance` has, of `width` neighbors, who all come to it.
  Value exchanged(Value value, int64_t distance, int64_t width);
  /// Memory of the group's for `count` numbers; where the code at hand may run again, all threads
  /// have read by then what is there.
  Value sharedMemory(int64_t count, Type type);

  Value halve(ArrayRef<Value> sums, int64_t width);
  Value combine(Value x, Value y) {
    return context_.combiner == Combiner::Sum ? Value(arith::AddFOp::create(b_, loc_, x, y))
                                              : Value(arith::MaximumFOp::create(b_, loc_, x, y));
  }
  /// The identity element of combine.
  Value identity(Type type) {
    return context_.combiner == Combiner::Sum ? constants_.zero(loc_, type)
                                              : constants_.lowest(loc_, type);
  }

  // Cursors.
  Cursor start();
  /// Makes ready what the step takes from registers: for rows, each row's own value out of the
  /// vector over them, and a vector of copies of it; of row `row` alone where one is given.
  void bindRegisters(Cursor &at, int64_t row = -1);
  /// Moves the accesses to iteration `index` of a loop.
  void advance(Cursor &at, int loop, OpFoldResult index);
  void makeViews(Cursor &at);
  /// As Place::view.
  Value viewOf(const Access &access, OpFoldResult offset);

  // Loops.
  Sums emitLoops(unsigned next, Cursor at, Sums sums);
  /// The innermost loop where columns have the lanes: several iterations in flight.
  Sums emitInnermost(int loop, Cursor at, Sums sums);
  /// The loop that has the lanes of rows.
  Sums emitLanes(Cursor at, Sums sums);
  /// From `begin` on: whole vectors in flight, whole vectors, and a tail.
  Sums emitLanesFrom(const Cursor &at, OpFoldResult begin, Sums sums);
  /// A loop over the rows of a tile, in which the row at hand is row 0 of what rows have in
  /// registers, and the next row 1: the vectors over the rows turn by a lane an iteration. (To pick
  /// a lane by its number, a vector would go through memory.)
  void emitRowLoop(int64_t rows, llvm::function_ref<void(OpFoldResult)> body);
  Sums emitRange(OpFoldResult begin, OpFoldResult end, Width step, Sums sums, RangeBody body,
                 int64_t terms = 1);
  Sums emitLoop(OpFoldResult begin, OpFoldResult end, Width step, Sums sums, RangeBody body);
  /// The first of a thread's iterations of a loop, `step` apart from `first` on, one after the
  /// other: as many as may be held, where one has `each`. Where the rest begins, but for `first`;
  /// nothing: there is none. `body` takes the cursor there and the loop's index.
  std::optional<int64_t> emitHeld(int loop, int64_t step, OpFoldResult first, int64_t each,
                                  const Cursor &at, Sums &sums,
                                  llvm::function_ref<Sums(Cursor, OpFoldResult, Sums)> body);
  /// Iterations that a thread has of the loops after order[next], as far as that is known.
  int64_t heldAfter(unsigned next) const;
  /// Terms that one accumulator takes in the loops after order[next], as far as a block of sums.
  int64_t termsAfter(unsigned next) const;
  /// The step at `count` positions from `index` of loop `loop`, `distance` apart, for all slots.
  Sums emitPoint(const Cursor &at, int loop, OpFoldResult index, int64_t count, Width distance,
                 Width width, Value mask, Sums sums);

  /// Whether the lanes of the step's vectors are shared by threads. What has no lanes of elements
  /// or columns is every thread's.
  bool isShared() const {
    return knobs_.threads > 0 && (context_.columns ? context_.slotLoop >= 0
                                                   : context_.isRows() && context_.laneLoop >= 0);
  }
  /// Whether threads one under the other take different iterations of the step's innermost loop
  /// but that of the lanes: each every `down()`th, from `firstRow()` on.
  bool isDown() const {
    return knobs_.down > 1 && isShared() && context_.kind != Kind::Registers &&
           !context_.order.empty();
  }
  int64_t down() const { return isDown() ? knobs_.down : 1; }
  OpFoldResult firstRow() { return isDown() ? OpFoldResult(knobs_.firstRow) : number(0); }
  /// Whether the thread at hand has what it loads or stores, an i1; null: all have.
  Value isActive(const Place &place, const Spot &spot);

  // What threads hold.
  /// Where a vector stands of an array of the data that a step goes through; nothing: it is not
  /// held.
  std::optional<HeldPlace> heldPlace(const Access &access, const Cursor &at,
                                     const Spot &spot) const;
  /// The vector, out of registers where the thread holds it.
  Value loadHeld(const Access &access, const Place &place, const Cursor &at, const Spot &spot);
  /// As it lies in memory.
  Value bitsOf(Value value);
  /// A vector of halves' bits as it is: what steps before have made of it is not kept for those
  /// after.
  Value unextended(Value vector);

  // Points.
  /// The values of the inputs that the body takes at spot `point`.
  SmallVector<Value> loadInputs(Points &points, size_t point);
  /// The index of the step's loop `dim`, of all lanes where it has them.
  Value loopIndex(const Points &points, const Spot &spot, int dim);
  void storeElements(const Points &points);
  /// Adds the sums of the slots to what is in memory.
  void carry(const Points &points);

  // Packed rows.
  /// The whole tile, at once.
  Sums emitPacked(Cursor at, Sums sums);
  /// The values of an input for the lanes of a slot: elements of the run, or of those of a row, or
  /// of the rows themselves, each at its lanes.
  Value loadPacked(const Access &access, const Place &place, const Slot &slot);
  /// A vector over the rows, or over a row's elements: each lane of a slot takes its own.
  Value spread(Value values, const Slot &slot, bool isOverRows);
  Value pick(Value values, ArrayRef<int64_t> lanes);
  /// The index of a slot's lanes in the loop over rows, or in that of a row's elements.
  Value packedIndex(const Slot &slot, bool isOverRows);
  /// As reduceRows, of the sums of the run's vectors.
  Value reducePacked(SmallVector<Value> sums);
  /// The sum over the rows, for each element of a row; of the run's vectors.
  Value sumPackedRows(SmallVector<Value> run);
  /// In a fixed order, pairwise.
  Value combineAll(SmallVector<Value> values);

  // Rows past the caches.
  /// Whether elements, written in vectors along the lanes, may go past the caches from an aligned
  /// address on.
  bool mayStream() const;
  /// Elements that an output's first one in a slot is past an aligned address.
  Value misalignment(const Cursor &at, const Slot &slot, size_t output = 0);
  /// Emits both: what runs where the first elements that are written are aligned, and what does
  /// where they are not.
  void emitByAlignment(const Cursor &at, llvm::function_ref<void(bool isAligned)> emit);
  /// Whether all rows of a tile are aligned where the first is.
  bool rowsAlignAlike() const;
  /// Whether all outputs are as far past one as the first is, or null: there is one output.
  Value alignsAlike(const Cursor &at, const Slot &slot);
  void emitAlignedRow(Cursor at);
  void emitJoinedRows(const Cursor &at);
  /// Whether the rows of a tile are one run of memory to everything that the step reads and writes.
  bool joinsRows() const;

  Value load(const Access &access, const Place &place, const Spot &spot);
  /// The first `count` elements, one by one, and zeros.
  Value loadElements(const Access &access, const Place &place, Value at, Width width,
                     int64_t count);
  /// Fetches what a tile ahead (Knobs::prefetch) will load at the same place: of rows, one after
  /// these; of columns, that of a later index of the kept loop around them.
  void prefetch(const Access &access, const Place &place, const Spot &spot);
  void store(const Access &access, const Place &place, const Spot &spot, Value value, bool streams);
  /// The same, by whoever is to store it.
  void storeElements(const Access &access, const Place &place, const Spot &spot, Value value,
                     bool streams);
  Value loadBits(const Access &access, const Place &place, const Spot &spot);
  void storeBits(const Access &access, const Place &place, const Spot &spot, Value value);
  /// The same of threads that share the words.
  void storeSharedBits(const Access &access, const Place &place, const Spot &spot, Value value);
  /// Where a vector of bits lies: the word of its first lane and of its last one that exists, and
  /// the first's number in its word, an i32.
  struct Words {
    Value first, last, shift;
    bool crosses; ///< whether the two may differ
  };
  Words wordsOf(const Access &access, const Place &place, const Spot &spot);
  Value word(Value view, Value at);
  /// The sum of the terms of all slots at one place; neighbors are slots of one width.
  Value sumOf(ArrayRef<std::pair<Spot, Value>> terms);
  /// Adds to what is in memory, where that counts yet.
  void addTo(const Cursor &at, const Access &access, const Place &place, const Spot &spot,
             Value sum);
  /// Whether a thread may have carried sums in registers: it holds all that it has of them, and the
  /// loop over tiles begins them.
  bool carriesInRegisters(const Cursor &at, const Access &access) const;
  /// Position of an element relative to an access' view.
  Value elementIndex(const Access &access, const Spot &spot);
  /// The lanes that exist, joined with the spot's mask.
  Value existing(const Access &access, const Place &place, const Spot &spot);
  /// The distances of the lanes of a vector from its first, in elements.
  Value laneOffsets(Width width, OpFoldResult stride);
  OpFoldResult offsetOf(const Slot &slot) {
    return slot.lanesBefore ? OpFoldResult(slot.lanesBefore) : b_.getIndexAttr(slot.offset);
  }

  // Paired vectors: what is next to each other in memory, by even and odd elements.
  struct Pair {
    Value even, odd;
  };
  /// Whether the step's vectors are paired where two are whole.
  bool pairsVectors() const;
  template <typename Vector> bool isWhole(const Vector &vector) const {
    return !vector.mask && vector.width == knobs_.width;
  }
  /// Slots of columns that are paired, by the first of each two.
  void forSlotPairs(llvm::function_ref<void(size_t)> take) const;
  /// Pairs two slots of columns, or two iterations of rows.
  void pairUp(Points &points) const;
  Pair loadPair(const Access &access, const Place &place, const Spot &first, const Spot &second);
  void storePair(const Access &access, const Place &place, const Spot &first, const Spot &second,
                 Pair values, bool streams);
  /// Two vectors in the order of memory as a pair, and back.
  Pair deinterleaved(Value first, Value second);
  std::pair<Value, Value> interleaved(Pair pair);

  // Values.
  Value constant(int64_t v) { return constants_.index(loc_, v); }
  Value i32(int32_t v) { return constants_.get(loc_, b_.getI32IntegerAttr(v)); }
  OpFoldResult number(int64_t v) { return b_.getIndexAttr(v); }
  Value indexValue(OpFoldResult v) { return sizes().value(v); }
  SizeArithmetic sizes() { return {b_, loc_, constants_}; }
  OpFoldResult add(OpFoldResult x, OpFoldResult y) { return sizes().add(x, y); }
  OpFoldResult add(OpFoldResult x, int64_t y) { return sizes().add(x, number(y)); }
  OpFoldResult scaled(OpFoldResult x, OpFoldResult y) { return sizes().mul(x, y); }
  Value maskBelow(Value count, Width width) { return tile::maskBelow(b_, loc_, count, width); }
  Value constantMask(int64_t count, Width width) {
    return tile::constantMask(b_, loc_, count, width);
  }
  const StepLoop &laneLoop() const { return context_.loops[context_.laneLoop]; }
  int64_t vectorBytes(const Access &access) const {
    return knobs_.vector() * access.element().getIntOrFloatBitWidth() / 8;
  }

  const Knobs &knobs_;
  const StepContext &context_;
  linalg::GenericOp step_;
  OpBuilder &b_;
  Constants &constants_;
  Registers &registers_;
  HeldVectors &held_;
  CarriedSums &carried_;
  SharedMemory &shared_;
  Location loc_;
  bool pairs_; ///< pairsVectors()
};

} // namespace normforge::tile
