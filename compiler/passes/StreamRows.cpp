// Rows of elements that are written past the caches: whole lines, from an aligned address on.
#include "compiler/passes/StepEmitter.h"

namespace normforge::tile {

bool StepEmitter::mayStream() const {
  return context_.streams && knobs_.vector() > 1 &&
         llvm::all_of(context_.outputs, [&](const Access &output) {
           if (output.isBits())
             return true;
           OpFoldResult lanes = context_.laneStride(output);
           return lanes && getConstantIntValue(lanes) == 1;
         });
}

Value StepEmitter::alignsAlike(const Cursor &at, const Slot &slot) {
  Value alike;
  for (size_t i = 1; i < context_.outputs.size(); ++i) {
    if (context_.outputs[i].isBits())
      continue;
    Value is = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::eq, misalignment(at, slot, i),
                                     misalignment(at, slot));
    alike = alike ? Value(arith::AndIOp::create(b_, loc_, alike, is)) : is;
  }
  return alike;
}

Value StepEmitter::misalignment(const Cursor &at, const Slot &slot, size_t output) {
  const Access &y = context_.outputs[output];
  Value base = memref::ExtractAlignedPointerAsIndexOp::create(b_, loc_, y.base);
  const int64_t bytes = vectorBytes(y) / knobs_.vector();
  OpFoldResult first = at.outputs[output].offset;
  if (context_.slotLoop >= 0)
    first = add(first, scaled(number(slot.offset), y.strides[context_.slotLoop]));
  OpFoldResult address = add(OpFoldResult(base), scaled(first, number(bytes)));
  Value rest = arith::AndIOp::create(b_, loc_, indexValue(address), constant(vectorBytes(y) - 1));
  return arith::DivUIOp::create(b_, loc_, rest, constant(bytes));
}

/// The elements before the row's first aligned one, then vectors from there. Several outputs whose
/// rows are not aligned alike are written as others are.
void StepEmitter::emitAlignedRow(Cursor at) {
  makeViews(at);
  OpBuilder::InsertionGuard guard(b_);
  if (Value alike = alignsAlike(at, at.slots[0])) {
    auto branch = scf::IfOp::create(b_, loc_, alike, /*withElseRegion=*/true);
    b_.setInsertionPointToStart(&branch.getElseRegion().front());
    Cursor plain = at;
    plain.unroll = 1;
    emitLanesFrom(plain, number(0), {});
    b_.setInsertionPointToStart(&branch.getThenRegion().front());
  }
  const Width width = knobs_.width;
  const bool masks = knobs_.masksTails;
  Value head = arith::AndIOp::create(
      b_, loc_, arith::SubIOp::create(b_, loc_, constant(0), misalignment(at, at.slots[0])),
      constant(width.lanes - 1));
  head = arith::MinUIOp::create(b_, loc_, head, indexValue(laneLoop().extent));
  emitRange(number(0), head, masks ? width : Width{1}, {}, [&](OpFoldResult index, Sums none) {
    return masks ? emitPoint(at, context_.laneLoop, index, 1, width, width, maskBelow(head, width),
                             none)
                 : emitPoint(at, context_.laneLoop, index, 1, Width{1}, Width{1}, Value(), none);
  });
  at.streams = at.shifted = true;
  emitLanesFrom(at, head, {});
}

bool StepEmitter::joinsRows() const {
  auto length = getConstantIntValue(laneLoop().extent);
  if (!length || *length < knobs_.vector() || *length % knobs_.vector() == 0)
    return false;
  auto isRun = [&](const Access &access) {
    const auto &lane = access.strides[context_.laneLoop], &slot = access.strides[context_.slotLoop];
    return !access.bound && lane && slot && getConstantIntValue(lane) == 1 &&
           getConstantIntValue(slot) == length;
  };
  for (const Access &input : context_.inputs)
    if (input.base && !isRun(input))
      return false;
  // Lanes of a vector that two rows share have no one index.
  linalg::GenericOp step = step_;
  return context_.outputs.size() == 1 && isRun(context_.outputs[0]) &&
         step.getBlock()->getOps<linalg::IndexOp>().empty();
}

/// Rows that lie one after the other: a vector in which one row ends and the next begins takes each
/// lane's values from its own row, so that every line but the tile's first and last is written
/// whole.
void StepEmitter::emitJoinedRows(const Cursor &tile) {
  const auto rows = static_cast<int64_t>(tile.slots.size());
  const int lane = context_.laneLoop;
  const int64_t length = *getConstantIntValue(laneLoop().extent);
  const Width width = knobs_.width;
  const bool masks = knobs_.masksTails;
  const int64_t vector = width.lanes;
  Value skew = misalignment(tile, tile.slots[0]);
  auto goTo = [&](OpFoldResult row, int64_t inRegisters) {
    Cursor at = tile;
    at.slots = {Slot()};
    bindRegisters(at, inRegisters);
    advance(at, context_.slotLoop, row);
    makeViews(at);
    return at;
  };
  auto emitMasked = [&](const Cursor &at, OpFoldResult begin, OpFoldResult end) {
    emitRange(begin, end, masks ? width : Width{1}, {}, [&](OpFoldResult index, Sums none) {
      Value left = masks ? indexValue(sizes().sub(end, index)) : Value();
      return emitPoint(at, lane, index, 1, width, masks ? width : Width{1},
                       masks ? maskBelow(left, width) : Value(), none);
    });
  };
  // Counted in elements from a row's first one on: where its first aligned vector begins, and where
  // its last whole one ends. `first` counts from the tile's first element.
  auto past = [&](OpFoldResult first) {
    Value at = indexValue(add(first, OpFoldResult(skew)));
    return Value(arith::AndIOp::create(b_, loc_, at, constant(vector - 1)));
  };
  auto ownBegin = [&](OpFoldResult row) {
    Value rest = past(scaled(row, number(length)));
    return Value(arith::AndIOp::create(
        b_, loc_, arith::SubIOp::create(b_, loc_, constant(vector), rest), constant(vector - 1)));
  };
  auto ownEnd = [&](OpFoldResult row) {
    return sizes().sub(number(length), past(scaled(add(row, 1), number(length))));
  };

  const Cursor first = goTo(number(0), 0);
  emitMasked(first, number(0), ownBegin(number(0)));
  emitRowLoop(rows, [&](OpFoldResult row) {
    Cursor at = goTo(row, 0);
    const OpFoldResult end = ownEnd(row);
    at.streams = true;
    emitLoop(ownBegin(row), end, width, {}, [&](OpFoldResult index, Sums none) {
      return emitPoint(at, lane, index, 1, width, width, Value(), none);
    });
    Value left = indexValue(sizes().sub(number(length), end));
    Value ends = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::ne, left, constant(0));
    Value follows = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::ne, indexValue(row),
                                          constant(rows - 1));
    auto branch = scf::IfOp::create(b_, loc_, arith::AndIOp::create(b_, loc_, ends, follows),
                                    /*withElseRegion=*/false);
    OpBuilder::InsertionGuard guard(b_);
    b_.setInsertionPoint(branch.thenYield());
    const auto own = at.wideArguments;
    bindRegisters(at, 1);
    Value mask = maskBelow(left, width);
    for (auto [mine, next] : llvm::zip(own, at.wideArguments))
      if (mine.size() == 1 && mine[0] != next[0])
        next[0] = arith::SelectOp::create(b_, loc_, mask, mine[0], next[0]);
    emitPoint(at, lane, end, 1, width, width, Value(), {});
  });
  const Cursor last = goTo(number(rows - 1), rows - 1);
  emitMasked(last, ownEnd(number(rows - 1)), number(length));
}

} // namespace normforge::tile
