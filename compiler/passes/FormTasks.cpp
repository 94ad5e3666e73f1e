// The pass that cuts a stage into tasks and tiles.
//
// A stage's function on tensors, each step a linalg.generic over the whole of its loops, becomes
// one on memory that runs a range of tasks: loops over the tasks, over what a task has of the kept
// loops, and over tiles of the tiled one. Inside them each step works on the slices of one tile:
//   func.func @stage(%x: tensor<8x64xf32> {nf.argument = 0, ...}) -> tensor<8xf32> {...}
//     %sum = linalg.generic ins(%x : tensor<8x64xf32>) outs(%zero : tensor<8xf32>)
// becomes, with tiles of 4 rows and 8 rows a task,
//   func.func @stage(%x: memref<f32>, %to: memref<f32>, %first: index, %last: index)
//     scf.for %task = %first to %last
//       scf.for %row = ... step 4
//         %slice = memref.subview %x[%row, 0] [4, 64]
//         %sum = linalg.generic ins(to_tensor %slice : tensor<4x64xf32>) outs(tensor<4xf32>)
//         bufferization.materialize_in_destination %sum in (memref.subview %to[%row] [4])
//
// On a GPU a group of threads has one task, %first, where there is one, and all of its threads take
// all of this; they differ in an argument more, %thread: index {nf.thread}, and in nothing before
// VectorizeSteps.
//
// A sum that is carried keeps what the tile reduces over: its tiles add to one array of the task,
// in memory. What a tile writes to it goes through a cast with whether it is the first to do so:
//         %to = builtin.unrealized_conversion_cast %slice, %first {nf.carried}
//         bufferization.materialize_in_destination %sum in %to
//
// Rules that a change must keep: no task reads what another task of the stage writes; which task
// does what depends on sizes and the schedule alone, never on the range or on threads; a task's
// chunk of the tiled loop is a multiple of the tile.
#include "compiler/passes/Passes.h"

#include "compiler/lowering/Attributes.h"
#include "compiler/passes/BoundedSlice.h"
#include "compiler/passes/SizeArithmetic.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Utils/StaticValueUtils.h"
#include "mlir/IR/IRMapping.h"

namespace normforge {

#define GEN_PASS_DEF_FORMTASKS
#include "compiler/passes/Passes.h.inc"

using namespace mlir;

namespace {

/// The part of a loop that a task or a tile takes.
struct Range {
  OpFoldResult offset, size;
  OpFoldResult chunk; ///< index of the chunk of a chunked loop
};

/// An array in memory with the axes by which a step's maps index it.
struct MemoryView {
  Value memref;
  DenseI64ArrayAttr padding; ///< attr::kPadding, or null
  OpFoldResult limit;
};

class StageRewriter {
public:
  explicit StageRewriter(func::FuncOp source)
      : source_(source), b_(source), loc_(source.getLoc()) {}

  LogicalResult run();

private:
  SizeArithmetic sizes() { return {b_, loc_, *constants_}; }
  LogicalResult makeFunction();
  MemoryView makeView(Value base, DictionaryAttr attributes);
  void bindArguments();
  void emitTasks();
  void emitKept(SmallVector<Range> ranges, size_t from);
  void emitTiles(SmallVector<Range> ranges);
  void emitSteps(ArrayRef<Range> ranges);
  Range rangeOf(AffineExpr expr, ArrayRef<AffineExpr> domain, ArrayRef<Range> ranges);
  Value slice(const MemoryView &view, ArrayRef<Range> axes);
  Value readSlice(const MemoryView &view, ArrayRef<Range> axes);
  Value tensorOf(Value memory);
  /// Whether a step runs over a loop that the tile does not keep.
  bool hasElements(ArrayRef<AffineExpr> domain);
  /// Where a step's result is written to; with `first`, that it is carried there.
  Value writtenSlice(const MemoryView &view, ArrayRef<Range> axes, Value first);
  /// Whether these ranges are the task's first in all loops but those that `map` keeps.
  Value isFirst(AffineMap map, ArrayRef<AffineExpr> domain, ArrayRef<Range> ranges);

  func::FuncOp source_, target_;
  OpBuilder b_;
  Location loc_;
  std::optional<Constants> constants_;
  Value first_, last_; ///< the range of tasks
  SmallVector<Value> sizeValues_;
  SmallVector<OpFoldResult> loopSizes_;
  SmallVector<Range> task_;            ///< what the task at hand takes of each loop
  IRMapping mapping_;                  ///< values of the source that are not tensors
  DenseMap<Value, MemoryView> inputs_; ///< tensors of the source that lie in memory
  SmallVector<MemoryView> outputs_;    ///< by result
  SmallVector<Value> produced_;        ///< by result, the step's result behind it
  LogicalResult result_ = success();
};

/// The function that takes memory for tensors, and a range of tasks.
LogicalResult StageRewriter::makeFunction() {
  SmallVector<Type> types;
  SmallVector<DictionaryAttr> attributes;
  LogicalResult result = success();
  auto add = [&](Type type, DictionaryAttr attribute) {
    if (auto tensor = dyn_cast<RankedTensorType>(type)) {
      type = MemRefType::get({}, tensor.getElementType());
      if (!attribute || !attribute.get(attr::kShape) || !attribute.get(attr::kStrides))
        result = source_.emitError("an array has no ") << attr::kShape << " or " << attr::kStrides;
    }
    // The attributes that an array keeps say only where to find it.
    NamedAttrList kept;
    for (const char *name : {attr::kArgument, attr::kKnown, attr::kWorkspace, attr::kSize,
                             attr::kScalar, attr::kFirst, attr::kLast, attr::kThread})
      if (Attribute value = attribute ? attribute.get(name) : Attribute())
        kept.append(name, value);
    types.push_back(type);
    attributes.push_back(kept.getDictionary(b_.getContext()));
  };
  const unsigned arguments = source_.getNumArguments(), results = source_.getNumResults();
  for (unsigned i = 0; i < arguments; ++i)
    add(source_.getArgumentTypes()[i], source_.getArgAttrDict(i));
  for (unsigned i = 0; i < results; ++i)
    add(source_.getResultTypes()[i], source_.getResultAttrDict(i));
  SmallVector<const char *> last{attr::kFirst, attr::kLast};
  if (source_->hasAttr(attr::kThreads))
    last.push_back(attr::kThread);
  for (const char *name : last)
    add(b_.getIndexType(), b_.getDictionaryAttr(b_.getNamedAttr(name, b_.getUnitAttr())));
  target_ = func::FuncOp::create(b_, loc_, source_.getName(), b_.getFunctionType(types, {}));
  target_.setAllArgAttrs(attributes);
  for (const char *name : attr::kOfTiles)
    if (Attribute value = source_->getAttr(name))
      target_->setAttr(name, value);
  for (const char *name : attr::kOfGroups)
    if (Attribute value = source_->getAttr(name); value && source_->hasAttr(attr::kThreads))
      target_->setAttr(name, value);
  b_.setInsertionPointToStart(target_.addEntryBlock());
  constants_.emplace(target_.getBody().front());
  first_ = target_.getArgument(arguments + results);
  last_ = target_.getArgument(arguments + results + 1);
  return result;
}

MemoryView StageRewriter::makeView(Value base, DictionaryAttr attributes) {
  const Type element = cast<MemRefType>(base.getType()).getElementType();
  MemoryView view;
  auto evaluate = [&](const char *name) {
    SmallVector<OpFoldResult> values;
    AffineMap map = attributes.getAs<AffineMapAttr>(name).getValue();
    for (AffineExpr expr : map.getResults())
      values.push_back(sizes().evaluate(expr, sizeValues_));
    return values;
  };
  const SmallVector<OpFoldResult> shape = evaluate(attr::kShape),
                                  strides = evaluate(attr::kStrides);
  if (attributes.get(attr::kPadding)) {
    view.padding = attributes.getAs<DenseI64ArrayAttr>(attr::kPadding);
    view.limit = evaluate(attr::kLimit)[0];
  }
  SmallVector<int64_t> staticShape, staticStrides;
  SmallVector<Value> dynamic;
  dispatchIndexOpFoldResults(shape, dynamic, staticShape);
  dispatchIndexOpFoldResults(strides, dynamic, staticStrides);
  auto type = MemRefType::get(staticShape, element,
                              StridedLayoutAttr::get(b_.getContext(), 0, staticStrides));
  view.memref = memref::ReinterpretCastOp::create(b_, loc_, type, base,
                                                  OpFoldResult(b_.getIndexAttr(0)), shape, strides);
  return view;
}

/// Finds which tensors lie in memory.
void StageRewriter::bindArguments() {
  Block &body = source_.getBody().front();
  for (BlockArgument argument : body.getArguments()) {
    if (isa<RankedTensorType>(argument.getType()))
      continue;
    Value value = target_.getArgument(argument.getArgNumber());
    mapping_.map(argument, value);
    if (source_.getArgAttr(argument.getArgNumber(), attr::kSize))
      sizeValues_.push_back(value);
  }
  // The values of sizes and scalars that steps use are computed once, before the tasks.
  for (Operation &op : body.without_terminator())
    if (!isa<linalg::LinalgDialect, tensor::TensorDialect>(op.getDialect()))
      b_.clone(op, mapping_);
  for (BlockArgument argument : body.getArguments())
    if (const unsigned i = argument.getArgNumber(); isa<RankedTensorType>(argument.getType()))
      inputs_[argument] = makeView(target_.getArgument(i), source_.getArgAttrDict(i));
  for (OpOperand &result : body.getTerminator()->getOpOperands()) {
    const unsigned i = result.getOperandNumber();
    produced_.push_back(result.get());
    outputs_.push_back(
        makeView(target_.getArgument(source_.getNumArguments() + i), source_.getResultAttrDict(i)));
  }
}

/// The loop over the tasks: which chunk of every loop is this task's.
void StageRewriter::emitTasks() {
  auto chunks = source_->getAttrOfType<DenseI64ArrayAttr>(attr::kChunks).asArrayRef();
  AffineMap map = source_->getAttrOfType<AffineMapAttr>(attr::kLoops).getValue();
  for (AffineExpr expr : map.getResults())
    loopSizes_.push_back(sizes().evaluate(expr, sizeValues_));
  SmallVector<OpFoldResult> counts;
  for (size_t i = 0; i < chunks.size(); ++i)
    counts.push_back(chunks[i] > 0 ? sizes().ceilDiv(loopSizes_[i], chunks[i])
                                   : sizes().constant(1));

  const bool isOfDevice = source_->hasAttr(attr::kThreads);
  const bool isReversed = source_->hasAttr(attr::kReversed) && !isOfDevice; // BindKernel
  Value lastTask;
  if (isReversed)
    lastTask = sizes().value(
        sizes().sub(sizes().add(OpFoldResult(first_), OpFoldResult(last_)), sizes().constant(1)));
  OpBuilder::InsertionGuard guard(b_);
  OpFoldResult rest = first_;
  if (isOfDevice) {
    Value exists = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::ult, first_, last_);
    b_.setInsertionPointToStart(scf::IfOp::create(b_, loc_, exists, false).thenBlock());
  } else {
    auto loop = scf::ForOp::create(b_, loc_, first_, last_, sizes().value(sizes().constant(1)));
    b_.setInsertionPointToStart(loop.getBody());
    rest = loop.getInductionVar();
  }
  SmallVector<Range> ranges(chunks.size());
  if (isReversed) // first + (last - 1 - task)
    rest = sizes().sub(OpFoldResult(lastTask), rest);
  for (int i = static_cast<int>(chunks.size()) - 1; i >= 0; --i) {
    Range &range = ranges[i];
    if (chunks[i] == 0) {
      range = {sizes().constant(0), loopSizes_[i], sizes().constant(0)};
      continue;
    }
    bool outermost = true;
    for (int j = 0; j < i; ++j)
      outermost = outermost && (chunks[j] == 0 || getConstantIntValue(counts[j]) == 1);
    if (getConstantIntValue(counts[i]) == 1) {
      range.chunk = sizes().constant(0);
    } else if (outermost) {
      range.chunk = rest;
    } else {
      Value count = sizes().value(counts[i]), linear = sizes().value(rest);
      range.chunk = arith::RemUIOp::create(b_, loc_, linear, count).getResult();
      rest = arith::DivUIOp::create(b_, loc_, linear, count).getResult();
    }
    range.offset = sizes().mul(range.chunk, sizes().constant(chunks[i]));
    auto size = getConstantIntValue(loopSizes_[i]);
    if (chunks[i] == 1 || (size && *size % chunks[i] == 0))
      range.size = sizes().constant(chunks[i]);
    else
      range.size =
          sizes().min(sizes().constant(chunks[i]), sizes().sub(loopSizes_[i], range.offset));
  }
  task_ = ranges;
  emitKept(ranges, 0);
}

/// Loops over what a task has of the kept loops but the tiled one: a tile is within one iteration
/// of each.
void StageRewriter::emitKept(SmallVector<Range> ranges, size_t from) {
  const auto kept = source_->getAttrOfType<DenseBoolArrayAttr>(attr::kKept).asArrayRef();
  const auto tiled = source_->getAttrOfType<IntegerAttr>(attr::kTileLoop).getInt();
  for (size_t i = from; i < ranges.size(); ++i) {
    if (!kept[i] || static_cast<int64_t>(i) == tiled || getConstantIntValue(ranges[i].size) == 1)
      continue;
    const Range task = ranges[i];
    Value end = sizes().value(sizes().add(task.offset, task.size));
    auto loop = scf::ForOp::create(b_, loc_, sizes().value(task.offset), end,
                                   sizes().value(sizes().constant(1)));
    OpBuilder::InsertionGuard guard(b_);
    b_.setInsertionPointToStart(loop.getBody());
    ranges[i].offset = loop.getInductionVar();
    ranges[i].size = sizes().constant(1);
    emitKept(ranges, i + 1);
    return;
  }
  emitTiles(ranges);
}

/// The loops over whole tiles of the tiled loop and over what they leave.
void StageRewriter::emitTiles(SmallVector<Range> ranges) {
  const auto tiled = source_->getAttrOfType<IntegerAttr>(attr::kTileLoop).getInt();
  const auto tile = source_->getAttrOfType<IntegerAttr>(attr::kTile).getInt();
  const auto vector = source_->getAttrOfType<IntegerAttr>(attr::kVector).getInt();
  const bool masked = source_->getAttrOfType<BoolAttr>(attr::kMaskedTails).getValue();
  if (tiled < 0) {
    emitSteps(ranges);
    return;
  }
  const bool columns = tiled == static_cast<int64_t>(ranges.size()) - 1;
  const Range task = ranges[tiled];
  auto scalable = source_->getAttrOfType<IntegerAttr>(attr::kScalable);
  if (columns && scalable) {
    // How many columns the tile's vectors hold is known only when the code runs: one loop, in which
    // every tile is as long as they, or what is left.
    const Width width{vector / scalable.getInt() * std::max<int64_t>(1, tile / vector), true};
    Value end = sizes().value(sizes().add(task.offset, task.size));
    auto loop = scf::ForOp::create(b_, loc_, sizes().value(task.offset), end,
                                   constants_->lanes(loc_, width));
    OpBuilder::InsertionGuard guard(b_);
    b_.setInsertionPointToStart(loop.getBody());
    ranges[tiled].offset = loop.getInductionVar();
    ranges[tiled].size = sizes().min(sizes().lanes(width), sizes().sub(end, ranges[tiled].offset));
    emitSteps(ranges);
    return;
  }
  auto loopOver = [&](OpFoldResult begin, OpFoldResult end, int64_t step, OpFoldResult size) {
    auto from = getConstantIntValue(begin), to = getConstantIntValue(end);
    if (from && to && *from >= *to)
      return;
    OpBuilder::InsertionGuard guard(b_);
    const bool once = from && to && *to - *from <= step;
    auto taken = getConstantIntValue(task.size);
    if (once || (taken && *taken == step)) {
      ranges[tiled].offset = begin;
    } else {
      Value stepValue = sizes().value(sizes().constant(step));
      auto loop = scf::ForOp::create(b_, loc_, sizes().value(begin), sizes().value(end), stepValue);
      b_.setInsertionPointToStart(loop.getBody());
      ranges[tiled].offset = loop.getInductionVar();
    }
    // How many lanes a named size leaves of a vector is known only here.
    if (!size)
      size = sizes().min(sizes().constant(step), sizes().sub(end, ranges[tiled].offset));
    ranges[tiled].size = size;
    emitSteps(ranges);
  };
  OpFoldResult end = sizes().add(task.offset, task.size);
  OpFoldResult whole = sizes().mul(sizes().div(task.size, tile), sizes().constant(tile));
  OpFoldResult wholeEnd = sizes().add(task.offset, whole);
  loopOver(task.offset, wholeEnd, tile, sizes().constant(tile));
  if (auto taken = getConstantIntValue(task.size); taken && *taken % tile == 0)
    return;
  if (auto size = getConstantIntValue(loopSizes_[tiled])) {
    // A task's chunk is a multiple of the tile, so only the loop's own end leaves something.
    if (const int64_t left = *size % tile)
      loopOver(wholeEnd, end, left, sizes().constant(left));
  } else if (columns && masked) {
    loopOver(wholeEnd, end, vector, OpFoldResult());
  } else if (tile > 1) {
    loopOver(wholeEnd, end, 1, sizes().constant(1));
  }
}

Range StageRewriter::rangeOf(AffineExpr expr, ArrayRef<AffineExpr> domain, ArrayRef<Range> ranges) {
  if (auto dim = dyn_cast<AffineDimExpr>(expr)) {
    if (domain.empty())
      return ranges[dim.getPosition()];
    return rangeOf(domain[dim.getPosition()], {}, ranges);
  }
  // `d floordiv chunk`: the one chunk that the task has.
  AffineExpr dim = cast<AffineBinaryOpExpr>(expr).getLHS();
  if (!domain.empty())
    dim = domain[cast<AffineDimExpr>(dim).getPosition()];
  return {ranges[cast<AffineDimExpr>(dim).getPosition()].chunk, sizes().constant(1),
          OpFoldResult()};
}

Value StageRewriter::slice(const MemoryView &view, ArrayRef<Range> axes) {
  SmallVector<OpFoldResult> offsets, extents, strides(axes.size(), b_.getIndexAttr(1));
  for (const Range &axis : axes) {
    offsets.push_back(axis.offset);
    extents.push_back(axis.size);
  }
  Value bound;
  if (view.padding) {
    // Blocks and lanes as one axis. Where a tile takes a part of a block's lanes, its loop ends
    // before those that follow.
    const int64_t outer = view.padding[0], inner = view.padding[1], block = view.padding[2];
    OpFoldResult first =
        sizes().add(sizes().mul(offsets[outer], sizes().constant(block)), offsets[inner]);
    OpFoldResult whole = sizes().mul(extents[outer], sizes().constant(block));
    bound = sizes().value(sizes().min(whole, sizes().sub(view.limit, first)));
  }
  Value part = memref::SubViewOp::create(b_, loc_, view.memref, offsets, extents, strides);
  return view.padding ? BoundedSlice::make(b_, loc_, part, bound, view.padding) : part;
}

Value StageRewriter::readSlice(const MemoryView &view, ArrayRef<Range> axes) {
  return tensorOf(slice(view, axes));
}

Value StageRewriter::tensorOf(Value memory) {
  auto memoryType = cast<MemRefType>(memory.getType());
  auto type = RankedTensorType::get(memoryType.getShape(), memoryType.getElementType());
  return bufferization::ToTensorOp::create(b_, loc_, type, memory, /*restrict=*/true);
}

bool StageRewriter::hasElements(ArrayRef<AffineExpr> domain) {
  const auto kept = source_->getAttrOfType<DenseBoolArrayAttr>(attr::kKept).asArrayRef();
  return llvm::any_of(domain, [&](AffineExpr expr) {
    auto dim = dyn_cast<AffineDimExpr>(expr);
    return dim && !kept[dim.getPosition()];
  });
}

Value StageRewriter::writtenSlice(const MemoryView &view, ArrayRef<Range> axes, Value first) {
  Value memory = slice(view, axes);
  if (!first)
    return memory;
  auto cast =
      UnrealizedConversionCastOp::create(b_, loc_, memory.getType(), ValueRange{memory, first});
  cast->setAttr(attr::kCarried, b_.getUnitAttr());
  return cast.getResult(0);
}

Value StageRewriter::isFirst(AffineMap map, ArrayRef<AffineExpr> domain, ArrayRef<Range> ranges) {
  SmallVector<bool> keeps(ranges.size());
  for (AffineExpr expr : map.getResults())
    if (auto dim = dyn_cast<AffineDimExpr>(expr))
      keeps[cast<AffineDimExpr>(domain[dim.getPosition()]).getPosition()] = true;
  Value first;
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (keeps[i] || ranges[i].offset == task_[i].offset)
      continue;
    Value is =
        arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::eq, sizes().value(ranges[i].offset),
                              sizes().value(task_[i].offset));
    first = first ? Value(arith::AndIOp::create(b_, loc_, first, is)) : is;
  }
  return first ? first : constants_->get(loc_, b_.getBoolAttr(true));
}

/// The steps on the slices of one tile.
void StageRewriter::emitSteps(ArrayRef<Range> ranges) {
  IRMapping tiles;
  Block &body = source_.getBody().front();
  for (auto step : body.getOps<linalg::GenericOp>()) {
    SmallVector<AffineExpr> domain(
        step->getAttrOfType<AffineMapAttr>(attr::kDomain).getValue().getResults());
    SmallVector<Value> ins, outs;
    SmallVector<AffineMap> maps;
    for (OpOperand &operand : step->getOpOperands()) {
      AffineMap map = step.getMatchingIndexingMap(&operand);
      SmallVector<Range> axes;
      SmallVector<AffineExpr> exprs;
      for (AffineExpr expr : map.getResults()) {
        axes.push_back(rangeOf(expr, domain, ranges));
        exprs.push_back(isa<AffineDimExpr>(expr) ? expr : b_.getAffineConstantExpr(0));
      }
      maps.push_back(AffineMap::get(map.getNumDims(), 0, exprs, b_.getContext()));
      if (step.isDpsInit(&operand)) {
        SmallVector<OpFoldResult> extents;
        for (const Range &axis : axes)
          extents.push_back(axis.size);
        Value empty = tensor::EmptyOp::create(b_, loc_, extents,
                                              getElementTypeOrSelf(operand.get().getType()));
        if (auto fill = operand.get().getDefiningOp<linalg::FillOp>())
          empty = linalg::FillOp::create(b_, loc_, ValueRange{mapping_.lookup(fill.getInputs()[0])},
                                         ValueRange{empty})
                      .getResult(0);
        outs.push_back(empty);
        continue;
      }
      if (Value tile = tiles.lookupOrNull(operand.get())) {
        ins.push_back(tile);
        continue;
      }
      const auto view = inputs_.find(operand.get());
      if (view == inputs_.end()) {
        step.emitError("an operand is neither in memory nor made by a step");
        result_ = failure();
        return;
      }
      ins.push_back(readSlice(view->second, axes));
    }
    SmallVector<Type> types;
    for (Value out : outs)
      types.push_back(out.getType());
    Value first;
    if (step->hasAttr(attr::kCarried))
      first = isFirst(step.getIndexingMapMatchingResult(step->getResult(0)), domain, ranges);
    // The slices that a step stores to as it goes are made before the step.
    SmallVector<std::pair<unsigned, Value>> written; // by result
    for (OpResult from : step->getResults())
      for (size_t r = 0; r < produced_.size(); ++r) {
        if (produced_[r] != from)
          continue;
        SmallVector<Range> axes;
        for (AffineExpr expr : step.getIndexingMapMatchingResult(from).getResults())
          axes.push_back(rangeOf(expr, domain, ranges));
        written.emplace_back(from.getResultNumber(), writtenSlice(outputs_[r], axes, first));
      }
    auto tiled = linalg::GenericOp::create(b_, step.getLoc(), types, ins, outs, maps,
                                           step.getIteratorTypesArray());
    tiled->setAttr(attr::kDomain, step->getAttr(attr::kDomain));
    if (step == *body.getOps<linalg::GenericOp>().begin())
      tiled->setAttr(attr::kTileBegins, b_.getUnitAttr());
    if (Attribute carried = step->getAttr(attr::kCarried))
      tiled->setAttr(attr::kCarried, carried);
    IRMapping inner(mapping_);
    step.getRegion().cloneInto(&tiled.getRegion(), inner);
    // An index counts from the loop's beginning, not the tile's.
    SmallVector<linalg::IndexOp> indices;
    tiled.getRegion().walk([&](linalg::IndexOp index) { indices.push_back(index); });
    for (linalg::IndexOp index : indices) {
      OpFoldResult offset = rangeOf(domain[index.getDim()], {}, ranges).offset;
      if (getConstantIntValue(offset) == 0)
        continue;
      Value begin = sizes().value(offset);
      OpBuilder::InsertionGuard guard(b_);
      b_.setInsertionPointAfter(index);
      auto sum = arith::AddIOp::create(b_, loc_, index.getResult(), begin);
      index.getResult().replaceAllUsesExcept(sum.getResult(), sum);
    }
    for (auto [from, to] : llvm::zip(step.getResults(), tiled.getResults()))
      tiles.map(from, to);
    for (auto [result, memory] : written) {
      bufferization::MaterializeInDestinationOp::create(b_, loc_, Type(), tiled->getResult(result),
                                                        memory, /*restrict=*/true,
                                                        /*writable=*/true);
      // Values of elements are not kept in registers: later steps read them back.
      if (hasElements(domain) && !step->getResult(result).hasOneUse())
        tiles.map(step->getResult(result), tensorOf(memory));
    }
  }
}

LogicalResult StageRewriter::run() {
  for (const char *name : attr::kOfStages)
    if (!source_->hasAttr(name))
      return source_.emitError("a stage has no ") << name;
  if (failed(makeFunction()))
    return failure();
  bindArguments();
  emitTasks();
  func::ReturnOp::create(b_, loc_);
  source_.erase();
  return result_;
}

struct FormTasks : impl::FormTasksBase<FormTasks> {
  void runOnOperation() override {
    SmallVector<func::FuncOp> stages;
    getOperation().walk([&](func::FuncOp function) {
      if (function->hasAttr(attr::kLoops))
        stages.push_back(function);
    });
    for (func::FuncOp stage : stages)
      if (failed(StageRewriter(stage).run()))
        return signalPassFailure();
  }
};

} // namespace

} // namespace normforge
