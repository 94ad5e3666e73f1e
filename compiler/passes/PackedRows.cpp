// Rows shorter than a vector, several in one.
#include "compiler/passes/StepEmitter.h"

#include <bit>
#include <numeric>

namespace normforge::tile {

/// Written past the caches where the run is aligned, which is seen when it begins.
StepEmitter::Sums StepEmitter::emitPacked(Cursor at, Sums sums) {
  makeViews(at);
  auto emit = [&](Sums carried) {
    return emitPoint(at, -1, number(0), 1, Width{1}, knobs_.width, Value(), std::move(carried));
  };
  if (!mayStream())
    return emit(std::move(sums));
  emitByAlignment(at, [&](bool isAligned) {
    at.streams = isAligned;
    emit({});
  });
  return sums;
}

Value StepEmitter::spread(Value values, const Slot &slot, bool isOverRows) {
  auto type = dyn_cast<VectorType>(values.getType());
  if (!type)
    return values;
  const int64_t length = context_.rowLength;
  SmallVector<int64_t> lanes;
  for (int64_t i = 0; i < slot.width.lanes; ++i) {
    const int64_t at = slot.offset + i;
    lanes.push_back(isOverRows ? std::min(at / length, context_.rows - 1) : at % length);
  }
  if (slot.width.isScalar())
    return vector::ExtractOp::create(b_, loc_, values, ArrayRef<int64_t>{lanes[0]});
  return pick(values, lanes);
}

/// These lanes of a vector. Halves are picked as integers: LLVM 22 ends the process over 9 bf16
/// where the machine has instructions for bf16.
Value StepEmitter::pick(Value values, ArrayRef<int64_t> lanes) {
  auto type = cast<VectorType>(values.getType());
  const Type element = type.getElementType();
  if (!element.isBF16() && !element.isF16())
    return vector::ShuffleOp::create(b_, loc_, values, values, lanes);
  Value bits = arith::BitcastOp::create(b_, loc_, type.clone(b_.getI16Type()), values);
  bits = vector::ShuffleOp::create(b_, loc_, bits, bits, lanes);
  auto picked = VectorType::get({static_cast<int64_t>(lanes.size())}, element);
  return arith::BitcastOp::create(b_, loc_, picked, bits);
}

Value StepEmitter::packedIndex(const Slot &slot, bool isOverRows) {
  SmallVector<int64_t> indices;
  for (int64_t i = 0; i < slot.width.lanes; ++i) {
    const int64_t at = slot.offset + i;
    indices.push_back(isOverRows ? at / context_.rowLength : at % context_.rowLength);
  }
  if (slot.width.isScalar())
    return constant(indices[0]);
  auto type = slot.width.vector(b_.getIndexType());
  return constants_.get(loc_, DenseIntElementsAttr::get(type, indices));
}

Value StepEmitter::loadPacked(const Access &access, const Place &place, const Slot &slot) {
  const bool hasRows = !access.strides[context_.slotLoop].isNull(),
             hasLanes = !access.strides[context_.laneLoop].isNull();
  const Slot first;
  if (hasRows == hasLanes) // the run, or one value for all
    return load(access, place, {-1, number(0), number(0), slot, slot.width, slot.mask});
  if (hasLanes)
    return spread(
        load(access, place,
             {context_.laneLoop, number(0), number(0), first, Width{context_.rowLength}, Value()}),
        slot, /*isOverRows=*/false);
  if (slot.width.isScalar())
    return memref::LoadOp::create(b_, loc_, place.view,
                                  indexValue(scaled(number(slot.offset / context_.rowLength),
                                                    access.strides[context_.slotLoop])));
  if (context_.rows == 1)
    return memref::LoadOp::create(b_, loc_, place.view, constant(0));
  // A value for each row: those of this slot alone.
  const int64_t from = slot.offset / context_.rowLength;
  const int64_t to =
      std::min(context_.rows, (slot.offset + slot.width.lanes - 1) / context_.rowLength + 1);
  SmallVector<Value> values;
  for (int64_t row = from; row < to; ++row)
    values.push_back(memref::LoadOp::create(
        b_, loc_, place.view, indexValue(scaled(number(row), access.strides[context_.slotLoop]))));
  auto type = VectorType::get({to - from}, access.element());
  Value all = vector::FromElementsOp::create(b_, loc_, type, values);
  SmallVector<int64_t> lanes;
  for (int64_t i = 0; i < slot.width.lanes; ++i)
    lanes.push_back(std::min((slot.offset + i) / context_.rowLength, to - 1) - from);
  return pick(all, lanes);
}

/// Rows of a power of two are halved in place, several vectors into one as they shrink; of others,
/// each lane adds what is ahead of it, and what the first lanes of rows have come to is picked.
Value StepEmitter::reducePacked(SmallVector<Value> sums) {
  const int64_t length = context_.rowLength, rows = context_.rows;
  const auto type = cast<VectorType>(sums[0].getType());
  const int64_t lanes = type.getNumElements();
  auto join = [&](ArrayRef<Value> parts) { // as one vector of `rows` lanes
    SmallVector<Value> whole(parts);
    while (whole.size() > 1) {
      if (whole.size() % 2)
        whole.push_back(whole.back());
      SmallVector<Value> joined;
      for (size_t i = 0; i < whole.size(); i += 2) {
        const int64_t each = cast<VectorType>(whole[i].getType()).getNumElements();
        SmallVector<int64_t> all;
        for (int64_t lane = 0; lane < 2 * each; ++lane)
          all.push_back(lane);
        joined.push_back(vector::ShuffleOp::create(b_, loc_, whole[i], whole[i + 1], all));
      }
      whole = std::move(joined);
    }
    if (rows == 1)
      return Value(vector::ExtractOp::create(b_, loc_, whole[0], ArrayRef<int64_t>{0}));
    if (cast<VectorType>(whole[0].getType()).getNumElements() == rows)
      return whole[0];
    SmallVector<int64_t> first;
    for (int64_t lane = 0; lane < rows; ++lane)
      first.push_back(lane);
    return Value(vector::ShuffleOp::create(b_, loc_, whole[0], whole[0], first));
  };
  if (std::has_single_bit(static_cast<uint64_t>(length)) && lanes % length == 0) {
    while (!std::has_single_bit(sums.size()))
      sums.push_back(identity(type));
    for (int64_t width = length; width > 1; width /= 2) {
      SmallVector<Value> halved;
      if (sums.size() == 1)
        halved.push_back(halve({sums[0]}, width));
      for (size_t i = 0; i + 1 < sums.size(); i += 2)
        halved.push_back(halve(ArrayRef(sums).slice(i, 2), width));
      sums = std::move(halved);
    }
    return join(sums);
  }
  // At each lane the sum of the 1, 2, 4, ... elements from there on, and of as many as a row has.
  auto ahead = [&](ArrayRef<Value> run, int64_t distance) {
    SmallVector<int64_t> from(lanes);
    std::iota(from.begin(), from.end(), distance);
    SmallVector<Value> shifted;
    for (size_t i = 0; i < run.size(); ++i)
      shifted.push_back(
          vector::ShuffleOp::create(b_, loc_, run[i], run[std::min(i + 1, run.size() - 1)], from));
    return shifted;
  };
  auto addAll = [&](SmallVector<Value> &run, ArrayRef<Value> other) {
    for (auto [sum, more] : llvm::zip(run, other))
      sum = combine(sum, more);
  };
  SmallVector<Value> whole;
  int64_t taken = 0;
  for (int64_t span = 1; span <= length; span *= 2) {
    if (length & span) {
      if (whole.empty())
        whole = sums;
      else
        addAll(whole, ahead(sums, taken));
      taken += span;
    }
    if (2 * span <= length)
      addAll(sums, ahead(SmallVector<Value>(sums), span));
  }
  SmallVector<Value> parts;
  for (int64_t begin = 0; begin < rows; begin += lanes) {
    Value picked; // at the first element of each row
    for (auto [s, sum] : llvm::enumerate(whole)) {
      SmallVector<int64_t> from; // lanes of what was picked before, then of this one
      bool picks = false;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t at = std::min(begin + lane, rows - 1) * length;
        const bool isHere = at / lanes == static_cast<int64_t>(s);
        picks |= isHere;
        from.push_back(isHere ? lanes + at % lanes : lane);
      }
      if (picks)
        picked = vector::ShuffleOp::create(b_, loc_, picked ? picked : sum, sum, from);
    }
    parts.push_back(picked);
  }
  return join(parts);
}

/// Rows of a power of two are summed vector on vector, then half on half; others row by row, each
/// out of the two vectors that it may lie in.
Value StepEmitter::sumPackedRows(SmallVector<Value> run) {
  const int64_t length = context_.rowLength;
  int64_t lanes = cast<VectorType>(run[0].getType()).getNumElements();
  auto part = [&](Value low, Value high, int64_t from, int64_t count) -> Value {
    SmallVector<int64_t> picked(count);
    std::iota(picked.begin(), picked.end(), from);
    return vector::ShuffleOp::create(b_, loc_, low, high, picked);
  };
  if (lanes % length == 0) {
    Value sum = combineAll(std::move(run));
    for (; lanes > length; lanes /= 2)
      sum = combine(part(sum, sum, 0, lanes / 2), part(sum, sum, lanes / 2, lanes / 2));
    return sum;
  }
  SmallVector<Value> rows;
  for (int64_t row = 0; row < context_.rows; ++row) {
    const int64_t first = row * length / lanes, last = (row * length + length - 1) / lanes;
    rows.push_back(part(run[first], run[last], row * length % lanes, length));
  }
  return combineAll(std::move(rows));
}

} // namespace normforge::tile
