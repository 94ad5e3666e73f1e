// A step as a whole: cursors at its beginning, accumulators before its loops and after them.
#include "compiler/passes/StepEmitter.h"

#include "compiler/passes/StepBody.h"

#include "mlir/IR/Matchers.h"

namespace normforge::tile {

Cursor StepEmitter::start() {
  Cursor at;
  for (const Access &access : context_.inputs)
    at.inputs.push_back({access.first, access.bound, Value()});
  for (const Access &access : context_.outputs)
    at.outputs.push_back({access.first, access.bound, Value()});
  at.position.assign(context_.loops.size(), OpFoldResult());
  at.slots = context_.slots;
  at.unroll = knobs_.unroll;
  at.iterations.assign(context_.loops.size(), 0);
  if (context_.holds)
    at.held = std::max<int64_t>(1, knobs_.held / static_cast<int64_t>(at.slots.size()));
  return at;
}

void StepEmitter::bindRegisters(Cursor &at, int64_t row) {
  at.arguments.assign(context_.inputs.size(), {});
  at.wideArguments.assign(context_.inputs.size(), {});
  for (auto [i, input] : llvm::enumerate(step_.getInputs())) {
    if (context_.inputs[i].base)
      continue;
    at.arguments[i] = registers_[input];
    if (at.arguments[i].size() > 1) // not one for all
      forSlotPairs([&, &values = at.arguments[i]](size_t s) {
        const Pair pair = deinterleaved(values[s], values[s + 1]);
        values[s] = pair.even;
        values[s + 1] = pair.odd;
      });
    if (!context_.isRows())
      continue;
    Value packed = registers_[input][0];
    if (context_.packs()) {
      at.arguments[i].clear();
      for (const Slot &slot : at.slots)
        at.arguments[i].push_back(spread(packed, slot, /*isOverRows=*/true));
      continue;
    }
    if (isa<VectorType>(packed.getType())) {
      at.arguments[i].clear();
      if (row >= 0)
        at.arguments[i].push_back(
            vector::ExtractOp::create(b_, loc_, packed, ArrayRef<int64_t>{row}));
      else
        for (const Slot &slot : at.slots)
          at.arguments[i].push_back(
              vector::ExtractOp::create(b_, loc_, packed, ArrayRef<int64_t>{slot.offset}));
    }
    at.wideArguments[i] = at.arguments[i];
    if (!knobs_.width.isScalar())
      for (Value &value : at.wideArguments[i])
        value = vector::BroadcastOp::create(b_, loc_, knobs_.width.vector(value.getType()), value);
  }
}

void StepEmitter::advance(Cursor &at, int loop, OpFoldResult index) {
  at.position[loop] = index;
  Value value = indexValue(index);
  auto move = [&](ArrayRef<Access> accesses, SmallVector<Place> &places) {
    for (auto [access, place] : llvm::zip(accesses, places)) {
      if (!access.base || !access.strides[loop])
        continue;
      place.offset = add(place.offset, scaled(OpFoldResult(value), access.strides[loop]));
      if (place.bound && loop == access.blockLoop)
        place.bound =
            indexValue(sizes().sub(place.bound, scaled(OpFoldResult(value), number(access.block))));
    }
  };
  move(context_.inputs, at.inputs);
  move(context_.outputs, at.outputs);
}

Value StepEmitter::viewOf(const Access &access, OpFoldResult offset) {
  Value base = access.base;
  if (access.isBits()) {
    auto words = MemRefType::get({}, b_.getI16Type());
    base = UnrealizedConversionCastOp::create(b_, loc_, words, base).getResult(0);
    offset = number(0);
  }
  auto layout = StridedLayoutAttr::get(b_.getContext(), ShapedType::kDynamic, {1});
  auto type = MemRefType::get({ShapedType::kDynamic},
                              cast<MemRefType>(base.getType()).getElementType(), layout);
  OpFoldResult size = constant(1);
  return memref::ReinterpretCastOp::create(b_, loc_, type, base, OpFoldResult(indexValue(offset)),
                                           ArrayRef<OpFoldResult>{size},
                                           ArrayRef<OpFoldResult>{number(1)});
}

void StepEmitter::makeViews(Cursor &at) {
  auto make = [&](ArrayRef<Access> accesses, SmallVector<Place> &places) {
    for (auto [access, place] : llvm::zip(accesses, places))
      if (access.base)
        place.view = viewOf(access, place.offset);
  };
  make(context_.inputs, at.inputs);
  make(context_.outputs, at.outputs);
}

FailureOr<StepEmitter::Sums> StepEmitter::identities() {
  Sums sums;
  const bool isSum = context_.combiner == Combiner::Sum;
  for (Value init : step_.getDpsInits()) {
    auto fill = init.getDefiningOp<linalg::FillOp>();
    if (!fill || !(isSum ? matchPattern(fill.getInputs()[0], m_AnyZeroFloat())
                         : matchPattern(fill.getInputs()[0], m_NegInfFloat())))
      return step_.emitError(isSum ? "a sum starts at zero" : "a maximum starts at -inf");
    for (const Slot &slot : context_.slots) {
      const Width width = context_.columns || context_.packs() ? slot.width
                          : context_.laneLoop >= 0             ? knobs_.width
                                                               : Width{1};
      Type type = width.type(fill.getInputs()[0].getType());
      sums.append(static_cast<size_t>(context_.inFlight), identity(type));
    }
  }
  return sums;
}

LogicalResult StepEmitter::emit() {
  FailureOr<Sums> sums = Sums();
  if (context_.reduces())
    sums = identities();
  if (failed(sums))
    return failure();
  Cursor at = start();
  // Rows that are written bind them one by one.
  if (!context_.isRows() || at.slots.size() == 1 || context_.reduces() || context_.carries() ||
      context_.packs())
    bindRegisters(at);
  const Sums results = emitLoops(0, at, *sums);
  if (context_.reduces())
    finishSums(results);
  return success();
}

Value StepEmitter::combineAll(SmallVector<Value> values) {
  while (values.size() > 1) {
    SmallVector<Value> halved;
    for (size_t i = 0; i + 1 < values.size(); i += 2)
      halved.push_back(combine(values[i], values[i + 1]));
    if (values.size() % 2)
      halved.push_back(values.back());
    values = std::move(halved);
  }
  return values[0];
}

/// Sums in flight, then lanes, pairwise: a fixed order.
void StepEmitter::finishSums(const Sums &all) {
  const auto inFlight = static_cast<size_t>(context_.inFlight);
  size_t next = 0;
  SmallVector<Value> sums; // of all results
  SmallVector<size_t> counts;
  for (size_t result = 0; result < step_->getNumResults(); ++result) {
    SmallVector<Value> bySlot;
    for (size_t s = 0; s < context_.slots.size(); ++s) {
      bySlot.push_back(
          combineAll(SmallVector<Value>(all.begin() + next, all.begin() + next + inFlight)));
      next += inFlight;
    }
    forSlotPairs([&](size_t s) {
      std::tie(bySlot[s], bySlot[s + 1]) = interleaved({bySlot[s], bySlot[s + 1]});
    });
    if (!context_.columns)
      bySlot = {context_.packs() ? reducePacked(std::move(bySlot)) : reduceRows(bySlot)};
    counts.push_back(bySlot.size());
    sums.append(bySlot);
  }
  combineThreads(sums);
  ArrayRef<Value> left = sums;
  for (auto [result, count] : llvm::zip(step_->getResults(), counts)) {
    registers_[result] = SmallVector<Value>(left.take_front(count));
    left = left.drop_front(count);
  }
}

/// `sums` are one vector, or two of which each holds as many sums, in groups of `width` lanes. The
/// halves of each group are added: groups of half the width, those of the first vector before those
/// of the second.
Value StepEmitter::halve(ArrayRef<Value> sums, int64_t width) {
  const int64_t lanes = cast<VectorType>(sums[0].getType()).getNumElements();
  SmallVector<int64_t> low, high;
  for (int64_t group = 0; group < lanes * static_cast<int64_t>(sums.size()); group += width)
    for (int64_t i = 0; i < width / 2; ++i) {
      low.push_back(group + i);
      high.push_back(group + width / 2 + i);
    }
  Value first = vector::ShuffleOp::create(b_, loc_, sums.front(), sums.back(), low);
  Value second = vector::ShuffleOp::create(b_, loc_, sums.front(), sums.back(), high);
  return combine(first, second);
}

/// The sums of the lanes of each row, as a vector over the rows; a scalar for one row. Each is
/// added up pairwise; rows are packed into one vector as they shrink, which takes far fewer
/// operations than one after the other:
///   a b c d   e f g h   ->   a+c b+d e+g f+h   ->   a+c+b+d e+g+f+h
Value StepEmitter::reduceRows(ArrayRef<Value> rows) {
  SmallVector<Value> sums(rows);
  const auto count = static_cast<int64_t>(rows.size());
  auto type = dyn_cast<VectorType>(rows[0].getType());
  if (type && type.isScalable()) { // an instruction does it, pairwise, whatever the length
    for (Value &sum : sums)
      sum = context_.combiner == Combiner::Sum
                ? vector::ReductionOp::create(b_, loc_, vector::CombiningKind::ADD, sum,
                                              arith::FastMathFlags::reassoc)
                : vector::ReductionOp::create(b_, loc_, vector::CombiningKind::MAXIMUMF, sum);
    type = {};
  }
  int64_t width = type ? type.getNumElements() : 1;
  if (llvm::isPowerOf2_64(static_cast<uint64_t>(count)) && count <= width)
    for (; sums.size() > 1; width /= 2) {
      SmallVector<Value> halved;
      for (size_t i = 0; i < sums.size(); i += 2)
        halved.push_back(halve(ArrayRef(sums).slice(i, 2), width));
      sums = halved;
    }
  for (; width > 1; width /= 2)
    for (Value &sum : sums)
      sum = halve({sum}, width);
  if (count == 1 && type)
    return vector::ExtractOp::create(b_, loc_, sums[0], ArrayRef<int64_t>{0});
  if (static_cast<int64_t>(sums.size()) < count || count == 1)
    return sums[0];
  for (Value &sum : sums)
    if (type)
      sum = vector::ExtractOp::create(b_, loc_, sum, ArrayRef<int64_t>{0});
  Type element = sums[0].getType();
  return vector::FromElementsOp::create(b_, loc_, VectorType::get({count}, element), sums);
}

void StepEmitter::storeRegisters(const Access &access, ArrayRef<Value> values) {
  const Place place{access.first, access.bound, viewOf(access, access.first)};
  for (size_t s = 0; s < context_.slots.size(); ++s) {
    const Slot &slot = context_.slots[s];
    store(access, place, {-1, number(0), number(0), slot, slot.width, slot.mask},
          values[values.size() == 1 ? 0 : s], /*streams=*/false);
  }
}

} // namespace normforge::tile
