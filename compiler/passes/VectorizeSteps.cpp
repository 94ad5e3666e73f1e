#include "compiler/passes/Passes.h"

#include "compiler/lowering/Attributes.h"
#include "compiler/passes/SizeArithmetic.h"
#include "compiler/passes/StepBody.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Utils/StaticValueUtils.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

namespace normforge {

#define GEN_PASS_DEF_VECTORIZESTEPS
#include "compiler/passes/Passes.h.inc"

using namespace mlir;

namespace {

/// One kept index (rows) or one vector of kept indices (columns) of a tile.
struct Slot {
  int64_t offset = 0; ///< from the tile's beginning
  int64_t lanes = 1;  ///< 1: a scalar
  Value mask;         ///< of the lanes that exist, where not all do
  size_t number = 0;  ///< of its tile's
};

/// Terms that an accumulator takes before it is added to another: few enough for the rounding
/// errors of a long sum, many enough to cost nothing.
constexpr int64_t kBlock = 256;

/// What a step's loop is to the vectorizer.
enum class Role { Slots, Lanes, Other };

struct StepLoop {
  Role role = Role::Other;
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
  TileVectorizer(func::FuncOp function, Block &block)
      : function_(function), block_(block), b_(function.getContext()), loc_(function.getLoc()) {
    auto integer = [&](const char *name) {
      return function->getAttrOfType<IntegerAttr>(name).getInt();
    };
    tiled_ = integer(attr::kTileLoop);
    vector_ = integer(attr::kVector);
    unroll_ = integer(attr::kUnroll);
    streaming_ = function->hasAttr(attr::kStreaming);
    masked_ = function->getAttrOfType<BoolAttr>(attr::kMaskedTails).getValue();
    auto kept = function->getAttrOfType<DenseBoolArrayAttr>(attr::kKept).asArrayRef();
    last_ = static_cast<int64_t>(kept.size()) - 1;
    columns_ = tiled_ == last_;
  }

  LogicalResult run();

private:
  // A step.
  LogicalResult vectorize(linalg::GenericOp step);
  LogicalResult findLoops(linalg::GenericOp step);
  void makeSlots();
  Access accessOf(Value tensor, AffineMap map);
  Access accessOfMemory(Value memory, AffineMap map, int splitAxis = -1, int64_t block = 0);
  static std::pair<int, int64_t> splitOf(ArrayRef<ReassociationIndices> groups,
                                         RankedTensorType type);
  void advance(int loop, Value index);
  void makeViews();
  SmallVector<Value> emitLoops(unsigned next, SmallVector<Value> accumulators);
  SmallVector<Value> emitInnermost(int loop, SmallVector<Value> accumulators);
  SmallVector<Value> emitLanes(SmallVector<Value> accumulators);
  SmallVector<Value> emitLanesFrom(OpFoldResult begin, SmallVector<Value> accumulators);
  /// Whether y, written in vectors along `lanes`, may go past the caches from an aligned address
  /// on.
  bool mayStream() const;
  /// Elements that y's first one in a slot is past an aligned address.
  Value misalignment(const Slot &slot);
  using RangeBody = llvm::function_ref<SmallVector<Value>(OpFoldResult, SmallVector<Value>)>;
  SmallVector<Value> emitRange(OpFoldResult begin, OpFoldResult end, int64_t step,
                               SmallVector<Value> accumulators, RangeBody body, int64_t terms = 1);
  /// Terms that one accumulator takes in the loops after order_[next], as far as kBlock.
  int64_t termsAfter(unsigned next) const;
  SmallVector<Value> emitLoop(OpFoldResult begin, OpFoldResult end, int64_t step,
                              SmallVector<Value> accumulators, RangeBody body);
  /// The step at `count` positions from `index` of loop `loop`, `distance` apart, for all slots.
  SmallVector<Value> emitPoint(int loop, OpFoldResult index, int64_t count, int64_t distance,
                               int64_t lanes, Value mask, SmallVector<Value> accumulators);
  Value load(Access &access, int loop, OpFoldResult index, int64_t plus, const Slot &slot,
             int64_t lanes, Value mask);
  void store(Access &access, int loop, OpFoldResult index, int64_t plus, const Slot &slot,
             int64_t lanes, Value mask, Value value);
  Value combine(Value x, Value y) { return arith::AddFOp::create(b_, loc_, x, y); }
  LogicalResult writeRegisters(bufferization::MaterializeInDestinationOp write);

  // Values.
  Value constant(int64_t v) { return arith::ConstantIndexOp::create(b_, loc_, v); }
  Value indexValue(OpFoldResult v) { return getValueOrCreateConstantIndexOp(b_, loc_, v); }
  SizeArithmetic sizes() { return {b_, loc_}; }
  OpFoldResult add(OpFoldResult x, OpFoldResult y) { return sizes().add(x, y); }
  OpFoldResult add(OpFoldResult x, int64_t y) { return sizes().add(x, b_.getIndexAttr(y)); }
  OpFoldResult scaled(OpFoldResult x, OpFoldResult y) { return sizes().mul(x, y); }
  /// Position of an element relative to an access' view.
  Value elementIndex(const Access &access, int loop, OpFoldResult index, int64_t plus,
                     const Slot &slot);
  /// The lanes of a padded slice that exist from here on, joined with `mask`.
  Value existing(const Access &access, OpFoldResult index, int64_t plus, const Slot &slot,
                 int64_t lanes, Value mask);
  Value maskBelow(Value count, int64_t lanes);
  Value constantMask(int64_t count, int64_t lanes);
  Value intersect(Value x, Value y);
  OpFoldResult laneStride(const Access &access) const;
  int64_t vectorBytes(const Access &access) const {
    return vector_ * cast<MemRefType>(access.base.getType()).getElementTypeBitWidth() / 8;
  }

  func::FuncOp function_;
  Block &block_;
  OpBuilder b_;
  Location loc_;
  int64_t tiled_, last_, vector_, unroll_;
  bool masked_, columns_, streaming_;
  bool storesStream_ = false; ///< in code where vectors of y are aligned

  DenseMap<Value, SmallVector<Value>> registers_; ///< tensors whose elements are in registers

  // The step at hand.
  linalg::GenericOp step_;
  SmallVector<StepLoop> loops_;
  SmallVector<Slot> slots_;
  int slotLoop_ = -1, laneLoop_ = -1;
  SmallVector<int> order_; ///< the loops to emit, outermost first, without slots and lanes
  bool reduces_ = false, element_ = false;
  SmallVector<Access> inputs_; ///< by input; base is null for registers
  SmallVector<Access> outputs_;
  SmallVector<OpFoldResult> position_; ///< by loop
  int64_t inFlight_ = 1;
};

Value TileVectorizer::elementIndex(const Access &access, int loop, OpFoldResult index, int64_t plus,
                                   const Slot &slot) {
  OpFoldResult at = b_.getIndexAttr(0);
  // What varies comes first: constants become displacements.
  OpFoldResult fixed = at;
  if (loop >= 0 && access.strides[loop]) {
    at = scaled(index, access.strides[loop]);
    fixed = scaled(b_.getIndexAttr(plus), access.strides[loop]);
  }
  if (slotLoop_ >= 0 && access.strides[slotLoop_])
    fixed = add(fixed, scaled(b_.getIndexAttr(slot.offset), access.strides[slotLoop_]));
  return indexValue(add(at, fixed));
}

Value TileVectorizer::existing(const Access &access, OpFoldResult index, int64_t plus,
                               const Slot &slot, int64_t lanes, Value mask) {
  if (!access.bound)
    return mask;
  OpFoldResult first = columns_ ? b_.getIndexAttr(slot.offset) : add(index, plus);
  return intersect(mask, maskBelow(indexValue(sizes().sub(access.bound, first)), lanes));
}

Value TileVectorizer::maskBelow(Value count, int64_t lanes) {
  return vector::CreateMaskOp::create(b_, loc_, VectorType::get({lanes}, b_.getI1Type()),
                                      ValueRange{count});
}

Value TileVectorizer::constantMask(int64_t count, int64_t lanes) {
  return vector::ConstantMaskOp::create(b_, loc_, VectorType::get({lanes}, b_.getI1Type()),
                                        ArrayRef<int64_t>{count});
}

Value TileVectorizer::intersect(Value x, Value y) {
  if (!x || !y)
    return x ? x : y;
  return arith::AndIOp::create(b_, loc_, x, y);
}

/// Roles and extents of the step's loops.
LogicalResult TileVectorizer::findLoops(linalg::GenericOp step) {
  auto domain = step->getAttrOfType<AffineMapAttr>(attr::kDomain).getValue();
  loops_.assign(step.getNumLoops(), StepLoop());
  slotLoop_ = laneLoop_ = -1;
  for (auto [i, expr] : llvm::enumerate(domain.getResults())) {
    auto dim = dyn_cast<AffineDimExpr>(expr);
    if (dim && dim.getPosition() == tiled_) {
      loops_[i].role = Role::Slots;
      slotLoop_ = static_cast<int>(i);
    } else if (dim && dim.getPosition() == last_ && !columns_) {
      loops_[i].role = Role::Lanes;
      laneLoop_ = static_cast<int>(i);
    }
  }
  auto sizesOf = [&](Value tensor) -> SmallVector<OpFoldResult> {
    if (auto fill = tensor.getDefiningOp<linalg::FillOp>())
      tensor = fill.getOutputs()[0];
    if (auto empty = tensor.getDefiningOp<tensor::EmptyOp>())
      return empty.getMixedSizes();
    if (auto memory = tensor.getDefiningOp<bufferization::ToTensorOp>())
      if (auto slice = memory.getBuffer().getDefiningOp<memref::SubViewOp>())
        return slice.getMixedSizes();
    return {};
  };
  for (OpOperand &operand : step->getOpOperands()) {
    SmallVector<OpFoldResult> sizes = sizesOf(operand.get());
    AffineMap map = step.getMatchingIndexingMap(&operand);
    for (size_t i = 0; i < sizes.size(); ++i)
      if (auto dim = dyn_cast<AffineDimExpr>(map.getResult(i)))
        if (!loops_[dim.getPosition()].extent || getConstantIntValue(sizes[i]))
          loops_[dim.getPosition()].extent = sizes[i];
  }
  for (const StepLoop &loop : loops_)
    if (!loop.extent)
      return step.emitError("a loop of the step has no extent");
  order_.clear();
  for (size_t i = 0; i < loops_.size(); ++i)
    if (loops_[i].role == Role::Other && !loops_[i].unit())
      order_.push_back(static_cast<int>(i));
  reduces_ = step.getNumReductionLoops() > 0 || llvm::any_of(step.getDpsInits(), [](Value init) {
               return init.getDefiningOp<linalg::FillOp>() != nullptr;
             });
  element_ = !reduces_ && (laneLoop_ >= 0 || !order_.empty());
  return success();
}

/// What of the tile is in registers: rows one by one, columns by the vector. The last, partial
/// vector is masked, or made of narrower vectors.
void TileVectorizer::makeSlots() {
  slots_.clear();
  auto append = [&](int64_t offset, int64_t lanes, Value mask = Value()) {
    slots_.push_back({offset, lanes, mask, slots_.size()});
  };
  if (slotLoop_ < 0) {
    append(0, 1);
    return;
  }
  auto extent = getConstantIntValue(loops_[slotLoop_].extent);
  if (!columns_) {
    for (int64_t i = 0; i < *extent; ++i)
      append(i, 1);
    return;
  }
  if (!extent) {
    append(0, vector_, maskBelow(indexValue(loops_[slotLoop_].extent), vector_));
    return;
  }
  int64_t offset = 0;
  for (; offset + vector_ <= *extent; offset += vector_)
    append(offset, vector_);
  if (offset < *extent && masked_ && vector_ > 1) {
    append(offset, vector_, constantMask(*extent - offset, vector_));
    return;
  }
  for (int64_t lanes = vector_ / 2; offset < *extent; lanes /= 2)
    if (offset + lanes <= *extent) {
      append(offset, lanes);
      offset += lanes;
    }
}

/// `splitAxis` of the slice, if not negative, is two axes to the step.
Access TileVectorizer::accessOfMemory(Value memory, AffineMap map, int splitAxis, int64_t block) {
  auto slice = memory.getDefiningOp<memref::SubViewOp>();
  auto whole = slice.getSource().getDefiningOp<memref::ReinterpretCastOp>();
  SmallVector<OpFoldResult> offsets = slice.getMixedOffsets(), strides = whole.getMixedStrides();
  Access access;
  access.base = whole.getSource();
  access.strides.assign(loops_.size(), OpFoldResult());
  access.offset = b_.getIndexAttr(0);
  auto setStride = [&](unsigned result, OpFoldResult stride) {
    auto dim = dyn_cast<AffineDimExpr>(map.getResult(result));
    if (dim)
      access.strides[dim.getPosition()] = stride;
    return dim ? static_cast<int>(dim.getPosition()) : -1;
  };
  unsigned result = 0;
  for (int i = 0; i < static_cast<int>(offsets.size()); ++i, ++result) {
    access.offset = add(access.offset, scaled(offsets[i], strides[i]));
    if (i != splitAxis) {
      setStride(result, strides[i]);
      continue;
    }
    access.blockLoop = setStride(result, scaled(b_.getIndexAttr(block), strides[i]));
    setStride(++result, strides[i]);
    access.bound = indexValue(slice.getMixedSizes()[i]);
    access.block = block;
  }
  return access;
}

Access TileVectorizer::accessOf(Value tensor, AffineMap map) {
  auto expand = tensor.getDefiningOp<tensor::ExpandShapeOp>();
  if (!expand)
    return accessOfMemory(tensor.getDefiningOp<bufferization::ToTensorOp>().getBuffer(), map);
  auto pad = expand.getSrc().getDefiningOp<tensor::PadOp>();
  auto [axis, block] = splitOf(expand.getReassociationIndices(), expand.getResultType());
  return accessOfMemory(pad.getSource().getDefiningOp<bufferization::ToTensorOp>().getBuffer(), map,
                        axis, block);
}

/// Which axis is split in two, and the lanes of the second.
std::pair<int, int64_t> TileVectorizer::splitOf(ArrayRef<ReassociationIndices> groups,
                                                RankedTensorType type) {
  for (auto [i, group] : llvm::enumerate(groups))
    if (group.size() == 2)
      return {static_cast<int>(i), type.getDimSize(group[1])};
  return {-1, 0};
}

OpFoldResult TileVectorizer::laneStride(const Access &access) const {
  const int loop = columns_ ? slotLoop_ : laneLoop_;
  return loop < 0 ? OpFoldResult() : access.strides[loop];
}

/// Moves the accesses to iteration `index` of a loop.
void TileVectorizer::advance(int loop, Value index) {
  for (SmallVector<Access> *list : {&inputs_, &outputs_})
    for (Access &access : *list)
      if (access.base && access.strides[loop]) {
        access.offset = add(access.offset, scaled(OpFoldResult(index), access.strides[loop]));
        if (access.bound && loop == access.blockLoop)
          access.bound = indexValue(sizes().sub(
              access.bound, scaled(OpFoldResult(index), b_.getIndexAttr(access.block))));
      }
}

void TileVectorizer::makeViews() {
  for (SmallVector<Access> *list : {&inputs_, &outputs_})
    for (Access &access : *list) {
      if (!access.base)
        continue;
      auto element = cast<MemRefType>(access.base.getType()).getElementType();
      auto layout = StridedLayoutAttr::get(b_.getContext(), ShapedType::kDynamic, {1});
      auto type = MemRefType::get({ShapedType::kDynamic}, element, layout);
      OpFoldResult size = constant(1);
      access.view = memref::ReinterpretCastOp::create(
          b_, loc_, type, access.base, OpFoldResult(indexValue(access.offset)),
          ArrayRef<OpFoldResult>{size}, ArrayRef<OpFoldResult>{b_.getIndexAttr(1)});
    }
}

/// Element(s) at position `index + plus` of loop `loop` (-1: none is running) in a slot.
Value TileVectorizer::load(Access &access, int loop, OpFoldResult index, int64_t plus,
                           const Slot &slot, int64_t lanes, Value mask) {
  auto element = cast<MemRefType>(access.base.getType()).getElementType();
  Value at = elementIndex(access, loop, index, plus, slot);
  OpFoldResult stride = laneStride(access);
  if (!stride || lanes == 1)
    return memref::LoadOp::create(b_, loc_, access.view, at);
  auto type = VectorType::get({lanes}, element);
  Value zero;
  mask = existing(access, index, plus, slot, lanes, mask);
  if (mask)
    zero = arith::ConstantOp::create(b_, loc_, b_.getZeroAttr(type));
  if (getConstantIntValue(stride) == 1) {
    if (mask)
      return vector::MaskedLoadOp::create(b_, loc_, type, access.view, at, mask, zero);
    return vector::LoadOp::create(b_, loc_, type, access.view, at);
  }
  Value steps = vector::StepOp::create(b_, loc_, VectorType::get({lanes}, b_.getIndexType()));
  Value distance = vector::BroadcastOp::create(b_, loc_, steps.getType(), indexValue(stride));
  Value indices = arith::MulIOp::create(b_, loc_, steps, distance);
  if (!mask)
    mask = constantMask(lanes, lanes);
  if (!zero)
    zero = arith::ConstantOp::create(b_, loc_, b_.getZeroAttr(type));
  return vector::GatherOp::create(b_, loc_, type, access.view, ValueRange{at}, indices, mask, zero);
}

void TileVectorizer::store(Access &access, int loop, OpFoldResult index, int64_t plus,
                           const Slot &slot, int64_t lanes, Value mask, Value value) {
  Value at = elementIndex(access, loop, index, plus, slot);
  OpFoldResult stride = laneStride(access);
  if (!stride || lanes == 1) {
    memref::StoreOp::create(b_, loc_, value, access.view, at);
    return;
  }
  mask = existing(access, index, plus, slot, lanes, mask);
  if (getConstantIntValue(stride) == 1) {
    if (mask)
      vector::MaskedStoreOp::create(b_, loc_, access.view, at, mask, value);
    else
      vector::StoreOp::create(b_, loc_, value, access.view, at,
                              /*nontemporal=*/storesStream_ && lanes == vector_,
                              storesStream_ && lanes == vector_
                                  ? llvm::MaybeAlign(static_cast<uint64_t>(vectorBytes(access)))
                                  : llvm::MaybeAlign());
    return;
  }
  Value steps = vector::StepOp::create(b_, loc_, VectorType::get({lanes}, b_.getIndexType()));
  Value distance = vector::BroadcastOp::create(b_, loc_, steps.getType(), indexValue(stride));
  Value indices = arith::MulIOp::create(b_, loc_, steps, distance);
  if (!mask)
    mask = constantMask(lanes, lanes);
  vector::ScatterOp::create(b_, loc_, Type(), access.view, ValueRange{at}, indices, mask, value);
}

SmallVector<Value> TileVectorizer::emitPoint(int loop, OpFoldResult index, int64_t count,
                                             int64_t distance, int64_t lanes, Value mask,
                                             SmallVector<Value> accumulators) {
  const size_t results = step_.getNumDpsInits();
  const bool rows = !columns_;
  struct Pending {
    Value value;
    size_t slot;
    int64_t plus, lanes;
    Value mask;
  };
  SmallVector<Pending> pending;
  for (size_t s = 0; s < slots_.size(); ++s) {
    const Slot &slot = slots_[s];
    const int64_t width = rows ? lanes : slot.lanes;
    Value active = rows ? mask : slot.mask;
    for (int64_t u = 0; u < count; ++u) {
      const int64_t plus = u * distance;
      SmallVector<Value> arguments;
      for (auto [i, input] : llvm::enumerate(step_.getInputs())) {
        if (!inputs_[i].base) {
          const SmallVector<Value> &values = registers_[input];
          arguments.push_back(values[values.size() == 1 ? 0 : slot.number]);
          continue;
        }
        arguments.push_back(load(inputs_[i], loop, index, plus, slot, width, active));
      }
      auto slotOf = [&](size_t r) {
        return (r * slots_.size() + s) * static_cast<size_t>(inFlight_) + static_cast<size_t>(u);
      };
      for (size_t r = 0; reduces_ && r < results; ++r)
        arguments.push_back(accumulators[slotOf(r)]);
      auto loopIndex = [&](unsigned i) -> Value {
        if (static_cast<int>(i) == slotLoop_ || static_cast<int>(i) == laneLoop_) {
          const bool isLanes = static_cast<int>(i) == (columns_ ? slotLoop_ : laneLoop_);
          Value first = static_cast<int>(i) == slotLoop_ ? constant(slot.offset)
                                                         : indexValue(add(index, plus));
          if (!isLanes || width == 1)
            return first;
          auto type = VectorType::get({width}, b_.getIndexType());
          Value steps = vector::StepOp::create(b_, loc_, type);
          return arith::AddIOp::create(b_, loc_, steps,
                                       vector::BroadcastOp::create(b_, loc_, type, first));
        }
        if (static_cast<int>(i) == loop)
          return indexValue(add(index, plus));
        return position_[i] ? indexValue(position_[i]) : constant(0);
      };
      SmallVector<Value> values =
          emitStepBody(b_, *step_.getBlock(), arguments,
                       element_ || reduces_ || columns_ ? width : 1, loopIndex);
      for (size_t r = 0; r < results; ++r) {
        if (reduces_) {
          Value &accumulator = accumulators[slotOf(r)];
          // Lanes past the end keep what they have.
          accumulator = rows && mask
                            ? Value(arith::SelectOp::create(b_, loc_, mask, values[r], accumulator))
                            : values[r];
        } else if (element_) {
          pending.push_back({values[r], s, plus, width, active});
        } else {
          registers_[step_.getResult(static_cast<unsigned>(r))].push_back(values[r]);
        }
      }
    }
  }
  // Stores come after all loads: an output may be an input's buffer.
  for (const Pending &p : pending)
    store(outputs_[0], loop, index, p.plus, slots_[p.slot], p.lanes, p.mask, p.value);
  return accumulators;
}

/// What a size is at most, where its computation shows it.
std::optional<int64_t> upperBound(OpFoldResult size) {
  if (auto constant = getConstantIntValue(size))
    return constant;
  Operation *op = cast<Value>(size).getDefiningOp();
  if (isa_and_nonnull<arith::SubIOp>(op)) // of something that is not negative
    return upperBound(op->getOperand(0));
  if (!isa_and_nonnull<arith::MinSIOp>(op))
    return std::nullopt;
  auto x = upperBound(op->getOperand(0)), y = upperBound(op->getOperand(1));
  return x && y ? std::min(*x, *y) : x ? x : y;
}

/// A loop from `begin` to `end` carrying the accumulators; straight code where it runs once,
/// nothing where it never does. A long sum is one of the sums of blocks, so that its rounding
/// errors do not grow with its length but with that of a block. `terms` are those of an iteration.
SmallVector<Value> TileVectorizer::emitRange(OpFoldResult begin, OpFoldResult end, int64_t step,
                                             SmallVector<Value> accumulators, RangeBody body,
                                             int64_t terms) {
  auto from = getConstantIntValue(begin), to = getConstantIntValue(end);
  if (from && to && *from >= *to)
    return accumulators;
  if (from && to && *to - *from <= step)
    return body(begin, accumulators);
  const int64_t iterations = std::max<int64_t>(1, kBlock / terms), length = iterations * step;
  auto bound = upperBound(end);
  if (accumulators.empty() || (bound && *bound <= length))
    return emitLoop(begin, end, step, accumulators, body);
  return emitLoop(
      begin, end, length, accumulators, [&](OpFoldResult first, SmallVector<Value> sums) {
        SmallVector<Value> block;
        for (Value sum : sums)
          block.push_back(arith::ConstantOp::create(b_, loc_, b_.getZeroAttr(sum.getType())));
        block = iterations == 1
                    ? body(first, block)
                    : emitLoop(first, sizes().min(add(first, length), end), step, block, body);
        for (auto [sum, of] : llvm::zip(sums, block))
          sum = combine(sum, of);
        return sums;
      });
}

int64_t TileVectorizer::termsAfter(unsigned next) const {
  int64_t terms = 1;
  auto count = [&](int loop, int64_t step) {
    const int64_t bound = upperBound(loops_[loop].extent).value_or(kBlock * step);
    terms = std::min(kBlock, terms * std::min(kBlock, (bound + step - 1) / step));
  };
  for (unsigned i = next + 1; i < order_.size(); ++i)
    count(order_[i], laneLoop_ < 0 && i + 1 == order_.size() ? unroll_ : 1);
  if (laneLoop_ >= 0)
    count(laneLoop_, vector_ * unroll_);
  return terms;
}

SmallVector<Value> TileVectorizer::emitLoop(OpFoldResult begin, OpFoldResult end, int64_t step,
                                            SmallVector<Value> accumulators, RangeBody body) {
  auto loop = scf::ForOp::create(b_, loc_, indexValue(begin), indexValue(end), constant(step),
                                 accumulators);
  OpBuilder::InsertionGuard guard(b_);
  b_.setInsertionPointToStart(loop.getBody());
  SmallVector<Value> results =
      body(loop.getInductionVar(), SmallVector<Value>(loop.getRegionIterArgs()));
  if (!accumulators.empty() || loop.getBody()->empty() ||
      !loop.getBody()->back().hasTrait<OpTrait::IsTerminator>())
    scf::YieldOp::create(b_, loc_, results);
  return SmallVector<Value>(loop.getResults());
}

bool TileVectorizer::mayStream() const {
  if (!streaming_ || !element_ || vector_ == 1)
    return false;
  OpFoldResult lanes = laneStride(outputs_[0]);
  return lanes && getConstantIntValue(lanes) == 1;
}

Value TileVectorizer::misalignment(const Slot &slot) {
  const Access &y = outputs_[0];
  Value base = memref::ExtractAlignedPointerAsIndexOp::create(b_, loc_, y.base);
  const int64_t bytes = vectorBytes(y) / vector_;
  OpFoldResult first = y.offset;
  if (slotLoop_ >= 0)
    first = add(first, scaled(b_.getIndexAttr(slot.offset), y.strides[slotLoop_]));
  OpFoldResult address = add(OpFoldResult(base), scaled(first, b_.getIndexAttr(bytes)));
  Value rest = arith::AndIOp::create(b_, loc_, indexValue(address), constant(vectorBytes(y) - 1));
  return arith::DivUIOp::create(b_, loc_, rest, constant(bytes));
}

/// The innermost loop where columns have the lanes: several iterations in flight. Vectors of y go
/// past the caches where all of them are aligned, which is seen when its first one is: a second
/// copy of the loop is for the other case.
SmallVector<Value> TileVectorizer::emitInnermost(int loop, SmallVector<Value> accumulators) {
  const OpFoldResult extent = loops_[loop].extent;
  makeViews();
  auto emit = [&](SmallVector<Value> carried) {
    OpFoldResult whole = sizes().roundDown(extent, unroll_);
    carried = emitRange(b_.getIndexAttr(0), whole, unroll_, carried,
                        [&](OpFoldResult index, SmallVector<Value> sums) {
                          return emitPoint(loop, index, unroll_, 1, vector_, Value(), sums);
                        });
    if (unroll_ == 1)
      return carried;
    return emitRange(whole, extent, 1, carried, [&](OpFoldResult index, SmallVector<Value> sums) {
      return emitPoint(loop, index, 1, 1, vector_, Value(), sums);
    });
  };
  auto staysAligned = [&] {
    OpFoldResult stride = outputs_[0].strides[loop];
    auto step = stride ? getConstantIntValue(stride) : 0;
    return step && *step % vector_ == 0;
  };
  if (!mayStream() || !staysAligned())
    return emit(accumulators);
  Value aligned = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::eq, misalignment(slots_[0]),
                                        constant(0));
  auto branch = scf::IfOp::create(b_, loc_, aligned, /*withElseRegion=*/true);
  OpBuilder::InsertionGuard guard(b_);
  b_.setInsertionPointToStart(&branch.getThenRegion().front());
  storesStream_ = true;
  emit(accumulators);
  storesStream_ = false;
  b_.setInsertionPointToStart(&branch.getElseRegion().front());
  emit(accumulators);
  return accumulators;
}

/// The loop that has the lanes of rows. Where y goes past the caches, rows come one after the
/// other, and in each the elements up to its first aligned one come before.
SmallVector<Value> TileVectorizer::emitLanes(SmallVector<Value> accumulators) {
  makeViews();
  if (!mayStream())
    return emitLanesFrom(b_.getIndexAttr(0), accumulators);
  const SmallVector<Slot> tile = slots_;
  for (const Slot &row : tile) {
    slots_ = {row};
    Value head = arith::AndIOp::create(
        b_, loc_, arith::SubIOp::create(b_, loc_, constant(0), misalignment(row)),
        constant(vector_ - 1));
    head = arith::MinUIOp::create(b_, loc_, head, indexValue(loops_[laneLoop_].extent));
    emitRange(b_.getIndexAttr(0), head, masked_ ? vector_ : 1, {},
              [&](OpFoldResult index, SmallVector<Value> none) {
                return masked_ ? emitPoint(laneLoop_, index, 1, vector_, vector_,
                                           maskBelow(head, vector_), none)
                               : emitPoint(laneLoop_, index, 1, 1, 1, Value(), none);
              });
    storesStream_ = true;
    emitLanesFrom(head, {});
    storesStream_ = false;
  }
  slots_ = tile;
  return accumulators;
}

/// From `begin` on: whole vectors in flight, whole vectors, and a tail.
SmallVector<Value> TileVectorizer::emitLanesFrom(OpFoldResult begin,
                                                 SmallVector<Value> accumulators) {
  const OpFoldResult extent = loops_[laneLoop_].extent;
  const int64_t stride = vector_ * unroll_;
  // Where the last of the vectors in flight end, and the last whole vector.
  OpFoldResult count = sizes().sub(extent, begin);
  const OpFoldResult inFlight = add(begin, sizes().roundDown(count, stride));
  accumulators = emitRange(
      begin, inFlight, stride, accumulators, [&](OpFoldResult index, SmallVector<Value> carried) {
        return emitPoint(laneLoop_, index, unroll_, vector_, vector_, Value(), carried);
      });
  if (auto end = getConstantIntValue(extent), at = getConstantIntValue(inFlight); end && at) {
    const int64_t vectors = (*end - *at) / vector_;
    if (vectors > 0)
      accumulators =
          emitPoint(laneLoop_, inFlight, vectors, vector_, vector_, Value(), accumulators);
    *at += vectors * vector_;
    if (*at < *end && vector_ > 1 && (masked_ || reduces_))
      return emitPoint(laneLoop_, b_.getIndexAttr(*at), 1, vector_, vector_,
                       constantMask(*end - *at, vector_), accumulators);
    for (int64_t lanes = vector_ > 1 ? vector_ / 2 : 1; *at < *end; lanes /= 2)
      if (*at + lanes <= *end) {
        accumulators =
            emitPoint(laneLoop_, b_.getIndexAttr(*at), 1, lanes, lanes, Value(), accumulators);
        *at += lanes;
      }
    return accumulators;
  }
  // A masked store is never past the caches, a whole vector is.
  const bool splits = !(masked_ || reduces_) || storesStream_;
  OpFoldResult whole = splits ? add(begin, sizes().roundDown(count, vector_)) : inFlight;
  accumulators = emitRange(
      inFlight, whole, vector_, accumulators, [&](OpFoldResult index, SmallVector<Value> carried) {
        return emitPoint(laneLoop_, index, 1, vector_, vector_, Value(), carried);
      });
  if (masked_ || reduces_)
    return emitRange(whole, extent, vector_, accumulators,
                     [&](OpFoldResult index, SmallVector<Value> carried) {
                       Value left = indexValue(sizes().sub(extent, index));
                       return emitPoint(laneLoop_, index, 1, vector_, vector_,
                                        maskBelow(left, vector_), carried);
                     });
  return emitRange(whole, extent, 1, accumulators,
                   [&](OpFoldResult index, SmallVector<Value> carried) {
                     return emitPoint(laneLoop_, index, 1, 1, 1, Value(), carried);
                   });
}

SmallVector<Value> TileVectorizer::emitLoops(unsigned next, SmallVector<Value> accumulators) {
  if (laneLoop_ >= 0 && next == order_.size())
    return emitLanes(accumulators);
  if (next == order_.size()) {
    makeViews();
    return emitPoint(-1, b_.getIndexAttr(0), 1, 1, columns_ ? vector_ : 1, Value(), accumulators);
  }
  const int loop = order_[next];
  if (laneLoop_ < 0 && next + 1 == order_.size())
    return emitInnermost(loop, accumulators);
  return emitRange(
      b_.getIndexAttr(0), loops_[loop].extent, 1, accumulators,
      [&](OpFoldResult index, SmallVector<Value> carried) {
        SmallVector<Access> inputs = inputs_, outputs = outputs_;
        position_[loop] = index;
        advance(loop, indexValue(index));
        carried = emitLoops(next + 1, carried);
        inputs_ = inputs;
        outputs_ = outputs;
        return carried;
      },
      termsAfter(next));
}

LogicalResult TileVectorizer::vectorize(linalg::GenericOp step) {
  step_ = step;
  b_.setInsertionPoint(step);
  if (failed(findLoops(step)))
    return failure();
  makeSlots();
  position_.assign(loops_.size(), OpFoldResult());
  inputs_.clear();
  outputs_.clear();
  for (OpOperand *operand : step.getDpsInputOperands())
    inputs_.push_back(registers_.contains(operand->get())
                          ? Access()
                          : accessOf(operand->get(), step.getMatchingIndexingMap(operand)));
  if (element_) {
    if (step.getNumResults() != 1 || !step.getResult(0).hasOneUse())
      return step.emitError("an elementwise step has one result, and it is stored");
    auto write =
        dyn_cast<bufferization::MaterializeInDestinationOp>(*step.getResult(0).getUsers().begin());
    if (!write)
      return step.emitError("the result of an elementwise step is not stored");
    outputs_.push_back(
        accessOfMemory(write.getDest(), step.getIndexingMapMatchingResult(step->getResult(0))));
  }
  const bool loops = laneLoop_ >= 0 || !order_.empty();
  inFlight_ = loops ? unroll_ : 1;
  SmallVector<Value> accumulators;
  if (reduces_) {
    for (Value init : step.getDpsInits()) {
      auto fill = init.getDefiningOp<linalg::FillOp>();
      if (!fill || !matchPattern(fill.getInputs()[0], m_AnyZeroFloat()))
        return step.emitError("a sum starts at zero");
      for (const Slot &slot : slots_) {
        const int64_t lanes = columns_ ? slot.lanes : (laneLoop_ >= 0 ? vector_ : 1);
        Value zero = fill.getInputs()[0];
        if (lanes > 1)
          zero = arith::ConstantOp::create(
              b_, loc_, b_.getZeroAttr(VectorType::get({lanes}, zero.getType())));
        accumulators.append(static_cast<size_t>(inFlight_), zero);
      }
    }
    if (failed(checkSums(step)))
      return failure();
  }
  accumulators = emitLoops(0, accumulators);
  if (!reduces_)
    return success();
  // Sums in flight, then lanes, pairwise: a fixed order.
  size_t next = 0;
  for (OpResult result : step->getResults())
    for (size_t s = 0; s < slots_.size(); ++s) {
      SmallVector<Value> sums(accumulators.begin() + next,
                              accumulators.begin() + next + static_cast<size_t>(inFlight_));
      next += static_cast<size_t>(inFlight_);
      while (sums.size() > 1) {
        SmallVector<Value> halved;
        for (size_t i = 0; i + 1 < sums.size(); i += 2)
          halved.push_back(combine(sums[i], sums[i + 1]));
        if (sums.size() % 2)
          halved.push_back(sums.back());
        sums = halved;
      }
      Value sum = sums[0];
      if (!columns_)
        while (auto type = dyn_cast<VectorType>(sum.getType())) {
          const int64_t lanes = type.getNumElements();
          if (lanes == 1) {
            sum = vector::ExtractOp::create(b_, loc_, sum, ArrayRef<int64_t>{0});
            break;
          }
          SmallVector<int64_t> first, second;
          for (int64_t i = 0; i < lanes / 2; ++i) {
            first.push_back(i);
            second.push_back(lanes / 2 + i);
          }
          Value low = vector::ShuffleOp::create(b_, loc_, sum, sum, first);
          Value high = vector::ShuffleOp::create(b_, loc_, sum, sum, second);
          sum = combine(low, high);
        }
      registers_[result].push_back(sum);
    }
  return success();
}

/// Stores statistics that are in registers.
LogicalResult TileVectorizer::writeRegisters(bufferization::MaterializeInDestinationOp write) {
  Value tensor = write.getSource();
  int splitAxis = -1;
  int64_t block = 0;
  if (auto slice = tensor.getDefiningOp<tensor::ExtractSliceOp>()) {
    auto collapse = slice.getSource().getDefiningOp<tensor::CollapseShapeOp>();
    tensor = collapse.getSrc();
    std::tie(splitAxis, block) = splitOf(collapse.getReassociationIndices(), collapse.getSrcType());
  }
  auto values = registers_.find(tensor);
  if (values == registers_.end())
    return success(); // an elementwise step has stored it
  auto step = tensor.getDefiningOp<linalg::GenericOp>();
  b_.setInsertionPoint(write);
  if (failed(findLoops(step)))
    return failure();
  makeSlots();
  AffineMap map = step.getIndexingMapMatchingResult(cast<OpResult>(tensor));
  outputs_.assign(1, accessOfMemory(write.getDest(), map, splitAxis, block));
  inputs_.clear();
  makeViews();
  for (size_t s = 0; s < slots_.size(); ++s)
    store(outputs_[0], -1, b_.getIndexAttr(0), 0, slots_[s], columns_ ? slots_[s].lanes : 1,
          slots_[s].mask, values->second[values->second.size() == 1 ? 0 : s]);
  return success();
}

LogicalResult TileVectorizer::run() {
  SmallVector<Operation *> operations;
  for (Operation &op : block_)
    operations.push_back(&op);
  for (Operation *op : operations) {
    LogicalResult result = success();
    if (auto step = dyn_cast<linalg::GenericOp>(op))
      result = vectorize(step);
    else if (auto write = dyn_cast<bufferization::MaterializeInDestinationOp>(op))
      result = writeRegisters(write);
    if (failed(result))
      return failure();
  }
  for (Operation *op : llvm::reverse(operations))
    if (isa<linalg::GenericOp, bufferization::MaterializeInDestinationOp>(op) ||
        (op->use_empty() &&
         isa<linalg::FillOp, tensor::EmptyOp, tensor::PadOp, tensor::ExtractSliceOp,
             tensor::ExpandShapeOp, tensor::CollapseShapeOp, bufferization::ToTensorOp,
             memref::DimOp, memref::SubViewOp>(op)))
      op->erase();
  // Sizes that fed only those.
  SmallVector<Operation *> left(llvm::make_pointer_range(block_));
  for (Operation *op : llvm::reverse(left))
    if (isOpTriviallyDead(op))
      op->erase();
  return success();
}

struct VectorizeSteps : impl::VectorizeStepsBase<VectorizeSteps> {
  void runOnOperation() override {
    for (auto function : getOperation().getOps<func::FuncOp>()) {
      if (!function->hasAttr(attr::kTileLoop))
        continue;
      SetVector<Block *> blocks;
      function.walk([&](linalg::GenericOp step) { blocks.insert(step->getBlock()); });
      for (Block *block : blocks)
        if (failed(TileVectorizer(function, *block).run()))
          return signalPassFailure();
      // Stores past the caches are ordered with what follows the stage by a fence alone.
      if (function->hasAttr(attr::kStreaming)) {
        OpBuilder b(function.getBody().back().getTerminator());
        LLVM::CallIntrinsicOp::create(b, function.getLoc(), b.getStringAttr("llvm.x86.sse.sfence"),
                                      ValueRange());
      }
      for (const char *name : {attr::kTileLoop, attr::kUnroll, attr::kVector, attr::kMaskedTails,
                               attr::kKept, attr::kStreaming})
        function->removeAttr(name);
      SmallVector<Operation *> casts;
      function.walk([&](memref::ReinterpretCastOp cast) {
        if (cast->use_empty())
          casts.push_back(cast);
      });
      for (Operation *cast : casts)
        cast->erase();
    }
  }
};

} // namespace

} // namespace normforge
