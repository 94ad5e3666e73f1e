// The loops of a step: vectors in flight, tails, sums in blocks, stores past the caches.
#include "compiler/passes/StepBody.h"
#include "compiler/passes/TileVectorizer.h"

namespace normforge::tile {

/// Terms that an accumulator takes before it is added to another: few enough for the rounding
/// errors of a long sum, many enough to cost nothing.
constexpr int64_t kBlock = 256;

SmallVector<Value> TileVectorizer::emitPoint(int loop, OpFoldResult index, int64_t count,
                                             Width distance, Width lanes, Value mask,
                                             SmallVector<Value> accumulators) {
  const size_t results = step_.getNumDpsInits();
  const bool rows = isRows();
  struct Pending {
    Value value;
    size_t slot;
    OpFoldResult plus;
    Width width;
    Value mask;
  };
  SmallVector<Pending> pending;
  for (size_t s = 0; s < slots_.size(); ++s) {
    const Slot &slot = slots_[s];
    const Width width = rows ? lanes : slot.width;
    Value active = rows ? mask : slot.mask;
    for (int64_t u = 0; u < count; ++u) {
      const OpFoldResult plus =
          u == 0 ? OpFoldResult(b_.getIndexAttr(0)) : sizes().lanes(distance * u);
      SmallVector<Value> arguments;
      for (size_t i = 0; i < inputs_.size(); ++i) {
        if (!inputs_[i].base) {
          const auto &values = rows && width == width_ ? wideArguments_[i] : arguments_[i];
          arguments.push_back(values[values.size() == 1 ? 0 : s]);
          continue;
        }
        arguments.push_back(load(inputs_[i], loop, index, plus, slot, width, active));
        if (prefetches_ && element_ && !width.isScalar())
          prefetch(inputs_[i], loop, index, plus, slot);
      }
      auto slotOf = [&](size_t r) {
        return (r * slots_.size() + s) * static_cast<size_t>(inFlight_) + static_cast<size_t>(u);
      };
      for (size_t r = 0; reduces_ && r < results; ++r)
        arguments.push_back(accumulators[slotOf(r)]);
      auto loopIndex = [&](unsigned i) -> Value {
        if (static_cast<int>(i) == slotLoop_ || static_cast<int>(i) == laneLoop_) {
          const bool isLanes = static_cast<int>(i) == lanesLoop();
          Value first = static_cast<int>(i) == slotLoop_ ? indexValue(offsetOf(slot))
                                                         : indexValue(add(index, plus));
          if (!isLanes || width.isScalar())
            return first;
          auto type = width.vector(b_.getIndexType());
          Value steps = vector::StepOp::create(b_, loc_, type);
          return arith::AddIOp::create(b_, loc_, steps,
                                       vector::BroadcastOp::create(b_, loc_, type, first));
        }
        if (static_cast<int>(i) == loop)
          return indexValue(add(index, plus));
        return position_[i] ? indexValue(position_[i]) : constant(0);
      };
      SmallVector<Value> values =
          emitStepBody(b_, constants_, *step_.getBlock(), arguments, width, loopIndex);
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
    store(outputs_[0], loop, index, p.plus, slots_[p.slot], p.width, p.mask, p.value);
  return accumulators;
}

/// What a size, which is never negative, is at most, where its computation shows it.
static std::optional<int64_t> upperBound(OpFoldResult size) {
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
/// errors do not grow with its length but with that of a block; a sum that is wider than what it is
/// of needs none. `terms` are those of an iteration.
SmallVector<Value> TileVectorizer::emitRange(OpFoldResult begin, OpFoldResult end, Width step,
                                             SmallVector<Value> accumulators, RangeBody body,
                                             int64_t terms) {
  auto from = getConstantIntValue(begin), to = getConstantIntValue(end);
  if (begin == end || (from && to && *from >= *to))
    return accumulators;
  if (from && to && *to - *from <= step.lanes)
    return body(begin, accumulators);
  const int64_t iterations = std::max<int64_t>(1, kBlock / terms);
  const Width length = step * iterations;
  auto bound = upperBound(end);
  if (!blocks_ || (bound && *bound <= length.lanes))
    return emitLoop(begin, end, step, accumulators, body);
  return emitLoop(
      begin, end, length, accumulators, [&](OpFoldResult first, SmallVector<Value> sums) {
        SmallVector<Value> block;
        for (Value sum : sums)
          block.push_back(constants_.zero(loc_, sum.getType()));
        block = iterations == 1
                    ? body(first, block)
                    : emitLoop(first, sizes().min(add(first, sizes().lanes(length)), end), step,
                               block, body);
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

SmallVector<Value> TileVectorizer::emitLoop(OpFoldResult begin, OpFoldResult end, Width step,
                                            SmallVector<Value> accumulators, RangeBody body) {
  auto loop = scf::ForOp::create(b_, loc_, indexValue(begin), indexValue(end),
                                 constants_.lanes(loc_, step), accumulators);
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
    OpFoldResult whole = sizes().roundDown(extent, Width{unroll_});
    carried = emitRange(b_.getIndexAttr(0), whole, Width{unroll_}, carried,
                        [&](OpFoldResult index, SmallVector<Value> sums) {
                          return emitPoint(loop, index, unroll_, Width{1}, width_, Value(), sums);
                        });
    if (unroll_ == 1)
      return carried;
    return emitRange(whole, extent, Width{1}, carried,
                     [&](OpFoldResult index, SmallVector<Value> sums) {
                       return emitPoint(loop, index, 1, Width{1}, width_, Value(), sums);
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
  // Seldom: buffers of this size come in pages. As little code as will do.
  b_.setInsertionPointToStart(&branch.getElseRegion().front());
  const int64_t unroll = std::exchange(unroll_, 1);
  emit(accumulators);
  unroll_ = unroll;
  return accumulators;
}

/// The loop that has the lanes of rows. Sums take all rows of the tile at once; y is written row by
/// row, in one copy of the code, with as many vectors in flight: it is written to one place at
/// a time, and each row has its own first aligned element.
SmallVector<Value> TileVectorizer::emitLanes(SmallVector<Value> accumulators) {
  auto emit = [&] {
    if (mayStream()) {
      emitAlignedRow();
      return accumulators;
    }
    makeViews();
    return emitLanesFrom(b_.getIndexAttr(0), accumulators);
  };
  if (reduces_ || slots_.size() == 1)
    return emit();
  if (mayStream() && joinsRows()) {
    emitJoinedRows();
    return accumulators;
  }
  const SmallVector<Access> inputs = inputs_, outputs = outputs_;
  const SmallVector<Slot> tile = slots_;
  const auto count = static_cast<int64_t>(tile.size());
  unroll_ *= count;
  emitRowLoop(count, [&](OpFoldResult row) {
    slots_ = {Slot()};
    inputs_ = inputs;
    outputs_ = outputs;
    bindRegisters(0);
    advance(slotLoop_, indexValue(row));
    emit();
  });
  unroll_ /= count;
  inputs_ = inputs;
  outputs_ = outputs;
  slots_ = tile;
  return accumulators;
}

/// A row of y past the caches: the elements before its first aligned one, then vectors from there.
void TileVectorizer::emitAlignedRow() {
  makeViews();
  Value head = arith::AndIOp::create(
      b_, loc_, arith::SubIOp::create(b_, loc_, constant(0), misalignment(slots_[0])),
      constant(vector_ - 1));
  head = arith::MinUIOp::create(b_, loc_, head, indexValue(loops_[laneLoop_].extent));
  emitRange(b_.getIndexAttr(0), head, masked_ ? width_ : Width{1}, {},
            [&](OpFoldResult index, SmallVector<Value> none) {
              return masked_ ? emitPoint(laneLoop_, index, 1, width_, width_,
                                         maskBelow(head, width_), none)
                             : emitPoint(laneLoop_, index, 1, Width{1}, Width{1}, Value(), none);
            });
  storesStream_ = true;
  emitLanesFrom(head, {});
  storesStream_ = false;
}

/// A loop over the rows of a tile, in which the row at hand is row 0 of what rows have in
/// registers, and the next row 1: the vectors over the rows turn by a lane an iteration. (To pick a
/// lane by its number, a vector would go through memory.)
void TileVectorizer::emitRowLoop(int64_t rows, llvm::function_ref<void(OpFoldResult)> body) {
  SetVector<Value> packed; // tensors
  for (auto [input, access] : llvm::zip(step_.getInputs(), inputs_))
    if (!access.base && isa<VectorType>(registers_[input][0].getType()))
      packed.insert(input);
  SmallVector<Value> whole;
  for (Value tensor : packed)
    whole.push_back(registers_[tensor][0]);
  emitLoop(b_.getIndexAttr(0), b_.getIndexAttr(rows), Width{1}, whole,
           [&](OpFoldResult row, SmallVector<Value> turned) {
             for (auto [tensor, vector] : llvm::zip(packed, turned))
               registers_[tensor] = {vector};
             body(row);
             SmallVector<int64_t> lanes;
             for (int64_t i = 0; i < rows; ++i)
               lanes.push_back((i + 1) % rows);
             for (Value &vector : turned)
               vector = vector::ShuffleOp::create(b_, loc_, vector, vector, lanes);
             return turned;
           });
  for (auto [tensor, vector] : llvm::zip(packed, whole))
    registers_[tensor] = {vector};
}

bool TileVectorizer::joinsRows() {
  auto length = getConstantIntValue(loops_[laneLoop_].extent);
  if (!length || *length < vector_ || *length % vector_ == 0)
    return false;
  auto isRun = [&](const Access &access) {
    return !access.bound && access.strides[laneLoop_] && access.strides[slotLoop_] &&
           getConstantIntValue(access.strides[laneLoop_]) == 1 &&
           getConstantIntValue(access.strides[slotLoop_]) == length;
  };
  for (const Access &input : inputs_)
    if (input.base && !isRun(input))
      return false;
  // Lanes of a vector that two rows share have no one index.
  return isRun(outputs_[0]) && step_.getBlock()->getOps<linalg::IndexOp>().empty();
}

/// Rows that lie one after the other, past the caches: a vector in which one row ends and the next
/// begins takes each lane's values from its own row, so that every line of y but the tile's first
/// and last is written whole.
void TileVectorizer::emitJoinedRows() {
  const SmallVector<Access> inputs = inputs_, outputs = outputs_;
  const SmallVector<Slot> tile = slots_;
  const auto rows = static_cast<int64_t>(tile.size());
  const int64_t length = *getConstantIntValue(loops_[laneLoop_].extent);
  Value skew = misalignment(tile[0]);
  auto goTo = [&](OpFoldResult row, int64_t inRegisters) {
    inputs_ = inputs;
    outputs_ = outputs;
    slots_ = {Slot()};
    bindRegisters(inRegisters);
    advance(slotLoop_, indexValue(row));
    makeViews();
  };
  auto emitMasked = [&](OpFoldResult begin, OpFoldResult end) {
    emitRange(begin, end, masked_ ? width_ : Width{1}, {},
              [&](OpFoldResult index, SmallVector<Value> none) {
                Value left = masked_ ? indexValue(sizes().sub(end, index)) : Value();
                return emitPoint(laneLoop_, index, 1, width_, masked_ ? width_ : Width{1},
                                 masked_ ? maskBelow(left, width_) : Value(), none);
              });
  };
  // Of elements from a row's first one on: where its first aligned vector begins, and where its
  // last whole one ends. `first` counts from the tile's first element.
  auto past = [&](OpFoldResult first) {
    Value at = indexValue(add(first, OpFoldResult(skew)));
    return Value(arith::AndIOp::create(b_, loc_, at, constant(vector_ - 1)));
  };
  auto ownBegin = [&](OpFoldResult row) {
    Value rest = past(scaled(row, b_.getIndexAttr(length)));
    return Value(arith::AndIOp::create(
        b_, loc_, arith::SubIOp::create(b_, loc_, constant(vector_), rest), constant(vector_ - 1)));
  };
  auto ownEnd = [&](OpFoldResult row) {
    return sizes().sub(b_.getIndexAttr(length), past(scaled(add(row, 1), b_.getIndexAttr(length))));
  };

  goTo(b_.getIndexAttr(0), 0);
  emitMasked(b_.getIndexAttr(0), ownBegin(b_.getIndexAttr(0)));
  emitRowLoop(rows, [&](OpFoldResult row) {
    goTo(row, 0);
    const OpFoldResult end = ownEnd(row);
    storesStream_ = true;
    emitLoop(ownBegin(row), end, width_, {}, [&](OpFoldResult index, auto carried) {
      return emitPoint(laneLoop_, index, 1, width_, width_, Value(), carried);
    });
    Value left = indexValue(sizes().sub(b_.getIndexAttr(length), end));
    Value ends = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::ne, left, constant(0));
    Value follows = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::ne, indexValue(row),
                                          constant(rows - 1));
    auto branch = scf::IfOp::create(b_, loc_, arith::AndIOp::create(b_, loc_, ends, follows),
                                    /*withElseRegion=*/false);
    OpBuilder::InsertionGuard guard(b_);
    b_.setInsertionPoint(branch.thenYield());
    auto own = wideArguments_;
    bindRegisters(1);
    Value mask = maskBelow(left, width_);
    for (auto [mine, next] : llvm::zip(own, wideArguments_))
      if (mine.size() == 1 && mine[0] != next[0])
        next[0] = arith::SelectOp::create(b_, loc_, mask, mine[0], next[0]);
    emitPoint(laneLoop_, end, 1, width_, width_, Value(), {});
    storesStream_ = false;
  });
  goTo(b_.getIndexAttr(rows - 1), rows - 1);
  emitMasked(ownEnd(b_.getIndexAttr(rows - 1)), b_.getIndexAttr(length));
  inputs_ = inputs;
  outputs_ = outputs;
  slots_ = tile;
}

/// From `begin` on: whole vectors in flight, whole vectors, and a tail.
SmallVector<Value> TileVectorizer::emitLanesFrom(OpFoldResult begin,
                                                 SmallVector<Value> accumulators) {
  const OpFoldResult extent = loops_[laneLoop_].extent;
  const Width stride = width_ * unroll_;
  // Where the last of the vectors in flight end, and the last whole vector.
  OpFoldResult count = sizes().sub(extent, begin);
  const OpFoldResult inFlight = add(begin, sizes().roundDown(count, stride));
  accumulators = emitRange(
      begin, inFlight, stride, accumulators, [&](OpFoldResult index, SmallVector<Value> carried) {
        return emitPoint(laneLoop_, index, unroll_, width_, width_, Value(), carried);
      });
  if (auto end = getConstantIntValue(extent), at = getConstantIntValue(inFlight); end && at) {
    const int64_t vectors = (*end - *at) / vector_;
    if (vectors > 0)
      accumulators = emitPoint(laneLoop_, inFlight, vectors, width_, width_, Value(), accumulators);
    *at += vectors * vector_;
    if (*at < *end && vector_ > 1 && (masked_ || reduces_))
      return emitPoint(laneLoop_, b_.getIndexAttr(*at), 1, width_, width_,
                       constantMask(*end - *at, width_), accumulators);
    for (int64_t lanes = vector_ > 1 ? vector_ / 2 : 1; *at < *end; lanes /= 2)
      if (*at + lanes <= *end) {
        accumulators = emitPoint(laneLoop_, b_.getIndexAttr(*at), 1, Width{lanes}, Width{lanes},
                                 Value(), accumulators);
        *at += lanes;
      }
    return accumulators;
  }
  const bool masksTail = masked_ || (reduces_ && masksLoads_);
  // A masked store is never past the caches, a whole vector is.
  const bool splits = unroll_ > 1 && (!masksTail || storesStream_);
  OpFoldResult whole = splits ? add(begin, sizes().roundDown(count, width_)) : inFlight;
  accumulators = emitRange(
      inFlight, whole, width_, accumulators, [&](OpFoldResult index, SmallVector<Value> carried) {
        return emitPoint(laneLoop_, index, 1, width_, width_, Value(), carried);
      });
  if (masksTail)
    return emitRange(
        whole, extent, width_, accumulators, [&](OpFoldResult index, SmallVector<Value> carried) {
          Value left = indexValue(sizes().sub(extent, index));
          return emitPoint(laneLoop_, index, 1, width_, width_, maskBelow(left, width_), carried);
        });
  // One by one; a sum takes each in its vector's first lane.
  const bool widens = reduces_ && vector_ > 1;
  const Width one = widens ? width_ : Width{1};
  return emitRange(whole, extent, Width{1}, accumulators,
                   [&](OpFoldResult index, SmallVector<Value> carried) {
                     return emitPoint(laneLoop_, index, 1, one, one,
                                      widens ? constantMask(1, width_) : Value(), carried);
                   });
}

SmallVector<Value> TileVectorizer::emitLoops(unsigned next, SmallVector<Value> accumulators) {
  if (laneLoop_ >= 0 && next == order_.size())
    return emitLanes(accumulators);
  if (next == order_.size()) {
    makeViews();
    return emitPoint(-1, b_.getIndexAttr(0), 1, Width{1}, Width{1}, Value(), accumulators);
  }
  const int loop = order_[next];
  if (laneLoop_ < 0 && next + 1 == order_.size())
    return emitInnermost(loop, accumulators);
  return emitRange(
      b_.getIndexAttr(0), loops_[loop].extent, Width{1}, accumulators,
      [&](OpFoldResult index, SmallVector<Value> carried) {
        SmallVector<Access> inputs = inputs_, outputs = outputs_;
        if (backwards_ && next == 0)
          index = sizes().sub(sizes().sub(loops_[loop].extent, b_.getIndexAttr(1)), index);
        position_[loop] = index;
        advance(loop, indexValue(index));
        carried = emitLoops(next + 1, carried);
        inputs_ = inputs;
        outputs_ = outputs;
        return carried;
      },
      termsAfter(next));
}

} // namespace normforge::tile
