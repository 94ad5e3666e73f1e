#include "compiler/passes/StepContext.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

namespace normforge::tile {

Knobs Knobs::of(func::FuncOp function, int64_t subgroup) {
  auto integer = [&](const char *name) {
    return function->getAttrOfType<IntegerAttr>(name).getInt();
  };
  Knobs knobs;
  knobs.tiled = integer(attr::kTileLoop);
  int64_t vector = integer(attr::kVector);
  knobs.vectorsInTile = std::max<int64_t>(1, integer(attr::kTile) / vector);
  if (auto scalable = function->getAttrOfType<IntegerAttr>(attr::kScalable))
    vector /= scalable.getInt();
  knobs.width = {vector, function->hasAttr(attr::kScalable)};
  knobs.unroll = integer(attr::kUnroll);
  knobs.streams = function->hasAttr(attr::kStreaming);
  knobs.prefetch = integer(attr::kPrefetch);
  knobs.rows = static_cast<Rows>(integer(attr::kRows));
  knobs.alternates = function->hasAttr(attr::kAlternates);
  knobs.pairsHalves = function->hasAttr(attr::kPairsHalves);
  knobs.masksTails = function->getAttrOfType<BoolAttr>(attr::kMaskedTails).getValue();
  knobs.masksLoads = function->getAttrOfType<BoolAttr>(attr::kMaskedLoads).getValue();
  if (function->hasAttr(attr::kThreads)) {
    knobs.threads = integer(attr::kThreads);
    knobs.down = integer(attr::kDown);
    knobs.held = integer(attr::kHeld);
    knobs.subgroup = subgroup;
    knobs.width.lanes /= knobs.threads;
    const Location loc = function.getLoc();
    OpBuilder b(&function.getBody().front(), function.getBody().front().begin());
    auto constant = [&](int64_t n) { return arith::ConstantIndexOp::create(b, loc, n); };
    for (BlockArgument argument : function.getArguments())
      if (function.getArgAttr(argument.getArgNumber(), attr::kThread)) {
        Value across = knobs.thread = argument;
        if (knobs.down > 1) {
          across = arith::RemUIOp::create(b, loc, argument, constant(knobs.threads));
          knobs.firstRow = arith::DivUIOp::create(b, loc, argument, constant(knobs.threads));
        }
        knobs.firstLane = arith::MulIOp::create(b, loc, across, constant(knobs.width.lanes));
      }
  }
  auto kept = function->getAttrOfType<DenseBoolArrayAttr>(attr::kKept).asArrayRef();
  knobs.kept.assign(kept.begin(), kept.end());
  return knobs;
}

Knobs Knobs::anew(OpBuilder &b, Location loc) const {
  Knobs knobs = *this;
  Value lane = arith::IndexCastOp::create(b, loc, b.getI32Type(), firstLane);
  knobs.firstLane =
      arith::IndexCastUIOp::create(b, loc, b.getIndexType(), opaque(b, loc, {lane})[0]);
  return knobs;
}

Value constantMask(OpBuilder &b, Location loc, int64_t count, Width width) {
  return vector::ConstantMaskOp::create(b, loc, width.vector(b.getI1Type()),
                                        ArrayRef<int64_t>{count});
}

Value threadsBelow(OpBuilder &b, Location loc, const Knobs &knobs, Value count) {
  return arith::CmpIOp::create(b, loc, arith::CmpIPredicate::slt, knobs.firstLane, count);
}

Value maskBelow(OpBuilder &b, Location loc, Value count, Width width) {
  if (auto known = getConstantIntValue(count); known && !width.scalable)
    return constantMask(b, loc, std::clamp<int64_t>(*known, 0, width.lanes), width);
  return vector::CreateMaskOp::create(b, loc, width.vector(b.getI1Type()), ValueRange{count});
}

LogicalResult StepAnalysis::findLoops(StepContext &context) {
  linalg::GenericOp step = context.step;
  auto domain = step->getAttrOfType<AffineMapAttr>(attr::kDomain).getValue();
  context.columns = knobs_.columns();
  context.loops.assign(step.getNumLoops(), StepLoop());
  for (auto [i, expr] : llvm::enumerate(domain.getResults())) {
    auto dim = dyn_cast<AffineDimExpr>(expr);
    StepLoop &loop = context.loops[i];
    loop.kept = dim && knobs_.kept[dim.getPosition()];
    if (dim && dim.getPosition() == knobs_.tiled) {
      loop.role = LoopRole::Slots;
      context.slotLoop = static_cast<int>(i);
    } else if (dim && dim.getPosition() == knobs_.lastLoop() && !context.columns) {
      loop.role = LoopRole::Lanes;
      context.laneLoop = static_cast<int>(i);
    }
  }
  auto sizesOf = [&](Value tensor) -> SmallVector<OpFoldResult> {
    if (auto fill = tensor.getDefiningOp<linalg::FillOp>())
      tensor = fill.getOutputs()[0];
    if (auto empty = tensor.getDefiningOp<tensor::EmptyOp>())
      return empty.getMixedSizes();
    if (auto memory = tensor.getDefiningOp<bufferization::ToTensorOp>())
      return BoundedSlice::of(memory.getBuffer()).part.getMixedSizes();
    return {};
  };
  for (OpOperand &operand : step->getOpOperands()) {
    SmallVector<OpFoldResult> sizes = sizesOf(operand.get());
    AffineMap map = step.getMatchingIndexingMap(&operand);
    for (size_t i = 0; i < sizes.size(); ++i)
      if (auto dim = dyn_cast<AffineDimExpr>(map.getResult(i))) {
        OpFoldResult &extent = context.loops[dim.getPosition()].extent;
        if (!extent || getConstantIntValue(sizes[i]))
          extent = sizes[i];
      }
  }
  for (const StepLoop &loop : context.loops)
    if (!loop.extent)
      return step.emitError("a loop of the step has no extent");
  for (size_t i = 0; i < context.loops.size(); ++i)
    if (context.loops[i].role == LoopRole::Outer && !context.loops[i].unit())
      context.order.push_back(static_cast<int>(i));
  return success();
}

FailureOr<StepContext> StepAnalysis::analyze(linalg::GenericOp step) {
  StepContext context;
  context.step = step;
  if (failed(findLoops(context)))
    return failure();
  const bool fills = llvm::any_of(step.getDpsInits(), [](Value init) {
    return init.getDefiningOp<linalg::FillOp>() != nullptr;
  });
  if (step->hasAttr(attr::kCarried))
    context.kind = Kind::Carried;
  else if (step.getNumReductionLoops() > 0 || fills)
    context.kind = Kind::Reductions;
  else if (context.laneLoop >= 0 || !context.order.empty())
    context.kind = Kind::Elements;
  if (context.reduces() || context.carries()) {
    const FailureOr<Combiner> combiner = combinerOf(step);
    if (failed(combiner))
      return failure();
    context.combiner = *combiner;
  }
  makeSlots(context);
  return context;
}

FailureOr<StepContext> StepAnalysis::analyzeRegisters(linalg::GenericOp step) {
  StepContext context;
  context.step = step;
  if (failed(findLoops(context)))
    return failure();
  makeSlots(context);
  return context;
}

/// Makes the tile's slots: rows one by one where the step goes over their elements, columns and
/// packed rows by the vector.
void StepAnalysis::makeSlots(StepContext &context) {
  const Location loc = context.step.getLoc();
  if (knobs_.rows == Rows::Packed && context.isRows() && context.slotLoop >= 0 &&
      context.laneLoop >= 0) {
    context.rows = *getConstantIntValue(context.loops[context.slotLoop].extent);
    context.rowLength = *getConstantIntValue(context.loops[context.laneLoop].extent);
    // Slots that are summed have masks, so that all are as wide.
    appendVectors(context, context.rows * context.rowLength,
                  knobs_.masksTails || context.reduces() || context.carries());
    return;
  }
  auto append = [&](int64_t offset, int64_t lanes, Value mask = Value()) {
    context.slots.push_back({offset, Width{lanes}, mask, Value()});
  };
  if (context.slotLoop < 0) {
    append(0, 1);
    return;
  }
  const OpFoldResult slots = context.loops[context.slotLoop].extent;
  auto extent = getConstantIntValue(slots);
  if (!context.columns) {
    if (!context.isRows())
      append(0, *extent);
    else
      for (int64_t i = 0; i < *extent; ++i)
        append(i, 1);
    return;
  }
  const Width width = knobs_.width;
  if (width.scalable) {
    for (int64_t i = 0; i < knobs_.vectorsInTile; ++i) {
      Slot slot;
      slot.width = width;
      OpFoldResult left = slots;
      if (i > 0) {
        slot.lanesBefore = constants_.lanes(loc, width * i);
        left = sizes().sub(left, OpFoldResult(slot.lanesBefore));
      }
      slot.mask = maskBelow(b_, loc, sizes().value(left), width);
      context.slots.push_back(slot);
    }
    return;
  }
  if (knobs_.threads > 0) {
    const int64_t shared = knobs_.shared().lanes;
    for (int64_t i = 0; i < knobs_.vectorsInTile; ++i) {
      const int64_t first = i * shared;
      if (extent && first >= *extent)
        break;
      Slot slot{first, width, Value(), Value()};
      if (!extent || *extent - first < shared)
        slot.mask = threadsBelow(b_, loc, knobs_,
                                 sizes().value(sizes().sub(slots, b_.getIndexAttr(first))));
      context.slots.push_back(slot);
    }
    return;
  }
  if (!extent) {
    append(0, width.lanes,
           width.isScalar() ? Value() : maskBelow(b_, loc, sizes().value(slots), width));
    return;
  }
  appendVectors(context, *extent, knobs_.masksTails);
}

void StepAnalysis::appendVectors(StepContext &context, int64_t lanes, bool masksTail) {
  const Width width = knobs_.width;
  int64_t offset = 0;
  for (; offset + width.lanes <= lanes; offset += width.lanes)
    context.slots.push_back({offset, width, Value(), Value()});
  if (offset < lanes && masksTail && width.lanes > 1) {
    Value mask = constantMask(b_, context.step.getLoc(), lanes - offset, width);
    context.slots.push_back({offset, width, mask, Value()});
    return;
  }
  for (int64_t left = width.lanes / 2; offset < lanes; left /= 2)
    if (offset + left <= lanes) {
      context.slots.push_back({offset, Width{left}, Value(), Value()});
      offset += left;
    }
}

Access StepAnalysis::accessOf(Value memory, AffineMap map, const StepContext &context) {
  const BoundedSlice slice = BoundedSlice::of(memory);
  memref::SubViewOp part = slice.part;
  auto whole = part.getSource().getDefiningOp<memref::ReinterpretCastOp>();
  SmallVector<OpFoldResult> offsets = part.getMixedOffsets(), strides = whole.getMixedStrides();
  Access access;
  access.base = whole.getSource();
  access.strides.assign(context.loops.size(), OpFoldResult());
  access.first = b_.getIndexAttr(0);
  access.bound = slice.bound;
  access.block = slice.block;
  access.fresh = slice.fresh;
  access.slice.push_back(reinterpret_cast<uintptr_t>(part.getSource().getAsOpaquePointer()));
  for (OpFoldResult offset : offsets)
    access.slice.push_back(reinterpret_cast<uintptr_t>(offset.getOpaqueValue()));
  access.loopOfAxis.assign(offsets.size(), -1);
  for (int i = 0; i < static_cast<int>(offsets.size()); ++i) {
    access.first = sizes().add(access.first, sizes().mul(offsets[i], strides[i]));
    auto dim = dyn_cast<AffineDimExpr>(map.getResult(static_cast<unsigned>(i)));
    if (!dim)
      continue;
    access.strides[dim.getPosition()] = strides[i];
    access.loopOfAxis[i] = static_cast<int>(dim.getPosition());
    if (i == slice.outer)
      access.blockLoop = static_cast<int>(dim.getPosition());
  }
  return access;
}

} // namespace normforge::tile
