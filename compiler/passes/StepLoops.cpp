// The loops of a step: vectors in flight, tails, sums in blocks.
#include "compiler/passes/StepEmitter.h"

namespace normforge::tile {

/// Terms that an accumulator takes before it is added to another: few enough for the rounding
/// errors of a long sum, many enough to cost nothing.
constexpr int64_t kBlock = 256;

/// An upper bound of a size, which is never negative, where its computation shows one.
static std::optional<int64_t> upperBound(OpFoldResult size) {
  if (auto constant = getConstantIntValue(size))
    return constant;
  Operation *op = cast<Value>(size).getDefiningOp();
  if (isa_and_nonnull<arith::SubIOp>(op)) // of something that is not negative
    return upperBound(op->getOperand(0));
  if (isa_and_nonnull<arith::MaxSIOp>(op)) {
    auto x = upperBound(op->getOperand(0)), y = upperBound(op->getOperand(1));
    return x && y ? std::optional<int64_t>(std::max(*x, *y)) : std::nullopt;
  }
  if (!isa_and_nonnull<arith::MinSIOp>(op))
    return std::nullopt;
  auto x = upperBound(op->getOperand(0)), y = upperBound(op->getOperand(1));
  return x && y ? std::min(*x, *y) : x ? x : y;
}

int64_t StepEmitter::termsAfter(unsigned next) const {
  int64_t terms = 1;
  auto count = [&](int loop, int64_t step) {
    const int64_t bound = upperBound(context_.loops[loop].extent).value_or(kBlock * step);
    terms = std::min(kBlock, terms * std::min(kBlock, (bound + step - 1) / step));
  };
  for (size_t i = next + 1; i < context_.order.size(); ++i)
    count(context_.order[i], i + 1 < context_.order.size() ? 1
                             : context_.laneLoop < 0       ? knobs_.unroll * down()
                                                           : down());
  if (context_.laneLoop >= 0 && !context_.packs())
    count(context_.laneLoop, knobs_.shared().lanes * knobs_.unroll);
  return terms;
}

int64_t StepEmitter::heldAfter(unsigned next) const {
  int64_t iterations = 1;
  auto count = [&](int loop, int64_t step) {
    const int64_t bound = upperBound(context_.loops[loop].extent).value_or(knobs_.held * step);
    iterations = std::min(knobs_.held, iterations * ((bound + step - 1) / step));
  };
  for (size_t i = next + 1; i < context_.order.size(); ++i)
    count(context_.order[i], i + 1 < context_.order.size() ? 1 : down());
  if (context_.laneLoop >= 0)
    count(context_.laneLoop, knobs_.shared().lanes);
  return std::max<int64_t>(1, iterations);
}

std::optional<int64_t>
StepEmitter::emitHeld(int loop, int64_t step, OpFoldResult first, int64_t each, const Cursor &at,
                      Sums &sums, llvm::function_ref<Sums(Cursor, OpFoldResult, Sums)> body) {
  const OpFoldResult extent = context_.loops[loop].extent;
  const auto size = getConstantIntValue(extent), bound = upperBound(extent);
  int64_t count = std::max<int64_t>(1, at.held / each);
  if (bound)
    count = std::min(count, (*bound + step - 1) / step);
  for (int64_t i = 0; i < count; ++i) {
    Cursor here = at;
    here.held = std::max<int64_t>(1, at.held / count);
    here.iterations[loop] = i;
    here.ordinal = at.ordinal * count + i;
    const OpFoldResult index = add(first, i * step);
    if (!size || *size < (i + 1) * step) {
      // Of lanes, whether the thread has a part of them; of what threads share, their own.
      Value exists = loop == context_.laneLoop
                         ? threadsBelow(b_, loc_, knobs_, indexValue(sizes().sub(extent, index)))
                         : Value(arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::slt,
                                                       indexValue(index), indexValue(extent)));
      here.exists = at.exists ? Value(arith::AndIOp::create(b_, loc_, at.exists, exists)) : exists;
    }
    sums = body(here, index, sums);
  }
  return bound && *bound <= count * step ? std::optional<int64_t>() : count * step;
}

/// A loop from `begin` to `end` carrying the accumulators; straight code where it runs once,
/// nothing where it never does. A long sum is one of the sums of blocks, so that its rounding
/// errors do not grow with its length but with that of a block; a sum that is wider than what it is
/// of needs none. `terms` are those of an iteration.
StepEmitter::Sums StepEmitter::emitRange(OpFoldResult begin, OpFoldResult end, Width step,
                                         Sums sums, RangeBody body, int64_t terms) {
  auto from = getConstantIntValue(begin), to = getConstantIntValue(end);
  if (begin == end || (from && to && *from >= *to))
    return sums;
  if (from && to && *to - *from <= step.lanes)
    return body(begin, sums);
  const int64_t iterations = std::max<int64_t>(1, kBlock / terms);
  const Width length = step * iterations;
  auto bound = upperBound(end);
  if (!context_.blocks || (bound && *bound <= length.lanes))
    return emitLoop(begin, end, step, sums, body);
  return emitLoop(begin, end, length, sums, [&](OpFoldResult first, Sums outer) {
    Sums block;
    for (Value sum : outer)
      block.push_back(identity(sum.getType()));
    block = iterations == 1 ? body(first, block)
                            : emitLoop(first, sizes().min(add(first, sizes().lanes(length)), end),
                                       step, block, body);
    for (auto [sum, of] : llvm::zip(outer, block))
      sum = combine(sum, of);
    return outer;
  });
}

StepEmitter::Sums StepEmitter::emitLoop(OpFoldResult begin, OpFoldResult end, Width step, Sums sums,
                                        RangeBody body) {
  auto loop = scf::ForOp::create(b_, loc_, indexValue(begin), indexValue(end),
                                 constants_.lanes(loc_, step), sums);
  OpBuilder::InsertionGuard guard(b_);
  b_.setInsertionPointToStart(loop.getBody());
  Sums results = body(loop.getInductionVar(), Sums(loop.getRegionIterArgs()));
  if (!sums.empty() || loop.getBody()->empty() ||
      !loop.getBody()->back().hasTrait<OpTrait::IsTerminator>())
    scf::YieldOp::create(b_, loc_, results);
  return Sums(loop.getResults());
}

/// Vectors of elements go past the caches where all of them are aligned, which is seen when the
/// first one is: a second copy of the loop is for the other case.
StepEmitter::Sums StepEmitter::emitInnermost(int loop, Cursor at, Sums sums) {
  const OpFoldResult extent = context_.loops[loop].extent;
  makeViews(at);
  // Of threads one under the other each takes every `step`th iteration.
  const Width step{down()};
  const OpFoldResult first = firstRow();
  OpFoldResult begin = number(0); // of what is not held
  if (at.held > 0) {
    const auto rest = emitHeld(loop, step.lanes, first, /*each=*/1, at, sums,
                               [&](const Cursor &here, OpFoldResult index, Sums s) {
                                 return emitPoint(here, loop, index, 1, step, knobs_.width, Value(),
                                                  std::move(s));
                               });
    if (!rest)
      return sums;
    begin = number(*rest);
    at.held = 0;
  }
  const OpFoldResult end = sizes().max(extent, begin);
  auto emit = [&](const Cursor &here, Sums carried) {
    const Width inFlight = step * here.unroll;
    OpFoldResult whole = add(begin, sizes().roundDown(sizes().sub(end, begin), inFlight));
    carried = emitRange(begin, whole, inFlight, carried, [&](OpFoldResult index, Sums s) {
      return emitPoint(here, loop, add(index, first), here.unroll, step, knobs_.width, Value(), s);
    });
    if (inFlight.isScalar() || getConstantIntValue(sizes().sub(extent, whole)) == 0)
      return carried;
    auto one = [&](OpFoldResult index, Sums s) {
      return emitPoint(here, loop, index, 1, step, knobs_.width, Value(), s);
    };
    if (isDown()) // as many as a thread finds: few
      return emitLoop(add(whole, first), extent, step, carried, one);
    return emitRange(whole, extent, step, carried, one);
  };
  auto staysAligned = [&] {
    OpFoldResult stride = context_.outputs[0].strides[loop];
    auto step = stride ? getConstantIntValue(stride) : 0;
    return step && *step % knobs_.vector() == 0;
  };
  if (!mayStream() || !staysAligned())
    return emit(at, sums);
  emitByAlignment(at, [&](bool isAligned) {
    at.streams = isAligned;
    if (!isAligned) // seldom: buffers of this size come in pages; as little code as will do
      at.unroll = 1;
    emit(at, sums);
  });
  return sums;
}

void StepEmitter::emitByAlignment(const Cursor &at, llvm::function_ref<void(bool isAligned)> emit) {
  Value aligned = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::eq,
                                        misalignment(at, at.slots[0]), constant(0));
  if (Value alike = alignsAlike(at, at.slots[0]))
    aligned = arith::AndIOp::create(b_, loc_, aligned, alike);
  auto branch = scf::IfOp::create(b_, loc_, aligned, /*withElseRegion=*/true);
  OpBuilder::InsertionGuard guard(b_);
  for (bool isAligned : {true, false}) {
    Region &region = isAligned ? branch.getThenRegion() : branch.getElseRegion();
    b_.setInsertionPointToStart(&region.front());
    emit(isAligned);
  }
}

/// Sums take all rows of the tile at once; elements are written row by row, in one copy of the
/// code, with as many vectors in flight, where each row has its own first aligned element, and
/// where they are not to be written together.
StepEmitter::Sums StepEmitter::emitLanes(Cursor at, Sums sums) {
  const bool streams = mayStream();
  auto emit = [&](Cursor here) {
    if (streams) {
      emitAlignedRow(here);
      return sums;
    }
    makeViews(here);
    return emitLanesFrom(here, number(0), sums);
  };
  if (context_.reduces() || context_.carries() || at.slots.size() == 1)
    return emit(at);
  if (streams && joinsRows()) {
    emitJoinedRows(at);
    return sums;
  }
  const auto count = static_cast<int64_t>(at.slots.size());
  auto emitOneByOne = [&] {
    emitRowLoop(count, [&](OpFoldResult row) {
      Cursor one = at;
      one.slots = {Slot()};
      one.unroll *= count;
      bindRegisters(one, 0);
      advance(one, context_.slotLoop, row);
      emit(one);
    });
  };
  auto emitTogether = [&](bool isAligned) {
    Cursor all = at;
    bindRegisters(all);
    makeViews(all);
    all.streams = isAligned;
    emitLanesFrom(all, number(0), {});
  };
  if (knobs_.rows != Rows::Together || (streams && !rowsAlignAlike()))
    emitOneByOne();
  else if (!streams)
    emitTogether(/*isAligned=*/false);
  else
    emitByAlignment(at, [&](bool isAligned) {
      if (isAligned)
        emitTogether(/*isAligned=*/true);
      else
        emitOneByOne();
    });
  return sums;
}

bool StepEmitter::rowsAlignAlike() const {
  return llvm::all_of(context_.outputs, [&](const Access &output) {
    if (output.isBits())
      return true;
    const OpFoldResult stride = output.strides[context_.slotLoop];
    const auto distance = stride ? getConstantIntValue(stride) : 0;
    return distance && *distance % knobs_.vector() == 0;
  });
}

void StepEmitter::emitRowLoop(int64_t rows, llvm::function_ref<void(OpFoldResult)> body) {
  SetVector<Value> packed; // tensors
  for (auto [input, access] : llvm::zip(step_.getInputs(), context_.inputs))
    if (!access.base && isa<VectorType>(registers_[input][0].getType()))
      packed.insert(input);
  Sums whole;
  for (Value tensor : packed)
    whole.push_back(registers_[tensor][0]);
  emitLoop(number(0), number(rows), Width{1}, whole, [&](OpFoldResult row, Sums turned) {
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

StepEmitter::Sums StepEmitter::emitLanesFrom(const Cursor &at, OpFoldResult begin, Sums sums) {
  OpFoldResult extent = laneLoop().extent;
  const Width width = knobs_.width, shared = knobs_.shared(), stride = shared * at.unroll;
  if (at.held > 0) {
    const auto rest = emitHeld(context_.laneLoop, shared.lanes, begin, /*each=*/1, at, sums,
                               [&](const Cursor &here, OpFoldResult index, Sums s) {
                                 return emitPoint(here, context_.laneLoop, index, 1, shared, width,
                                                  Value(), std::move(s));
                               });
    if (!rest)
      return sums;
    Cursor after = at;
    after.held = 0;
    return emitLanesFrom(after, number(*rest), sums);
  }
  if (knobs_.threads > 0) // what is held may be more than there is
    extent = sizes().max(extent, begin);
  auto whole = [&](OpFoldResult index, int64_t count, Sums s) {
    return emitPoint(at, context_.laneLoop, index, count, shared, width, Value(), s);
  };
  // Where the last of the vectors in flight end, and the last whole vector.
  OpFoldResult count = sizes().sub(extent, begin);
  const OpFoldResult inFlight = add(begin, sizes().roundDown(count, stride));
  sums = emitRange(begin, inFlight, stride, sums,
                   [&](OpFoldResult index, Sums s) { return whole(index, at.unroll, s); });
  auto byThreads = [&](OpFoldResult index, Sums s) {
    Value active = threadsBelow(b_, loc_, knobs_, indexValue(sizes().sub(extent, index)));
    return emitPoint(at, context_.laneLoop, index, 1, shared, width, active, s);
  };
  if (auto end = getConstantIntValue(extent), from = getConstantIntValue(inFlight); end && from) {
    const int64_t vectors = (*end - *from) / shared.lanes;
    if (vectors > 0)
      sums = whole(inFlight, vectors, sums);
    *from += vectors * shared.lanes;
    if (knobs_.threads > 0)
      return *from < *end ? byThreads(number(*from), sums) : sums;
    // A tail of one element is no vector: of one whose other lanes are masked off by a constant,
    // LLVM 22's x86 backend makes scalars that take the wrong lane of what was broadcast.
    if (*from + 1 < *end && width.lanes > 1 && (knobs_.masksTails || context_.reduces()))
      return emitPoint(at, context_.laneLoop, number(*from), 1, width, width,
                       constantMask(*end - *from, width), sums);
    for (int64_t lanes = *from + 1 < *end ? width.lanes / 2 : 1; *from < *end; lanes /= 2)
      if (*from + lanes <= *end) {
        sums = emitPoint(at, context_.laneLoop, number(*from), 1, Width{lanes}, Width{lanes},
                         Value(), sums);
        *from += lanes;
      }
    return sums;
  }
  if (knobs_.threads > 0) {
    const OpFoldResult last = add(begin, sizes().roundDown(count, shared));
    sums = emitRange(inFlight, last, shared, sums,
                     [&](OpFoldResult index, Sums s) { return whole(index, 1, s); });
    return emitRange(last, extent, shared, sums, byThreads);
  }
  const bool masksTail =
      width.lanes > 1 && (knobs_.masksTails || (context_.reduces() && knobs_.masksLoads));
  // A masked store is never past the caches, a whole vector is.
  const bool splits = at.unroll > 1 && (!masksTail || at.streams);
  OpFoldResult last = splits ? add(begin, sizes().roundDown(count, width)) : inFlight;
  sums = emitRange(inFlight, last, width, sums,
                   [&](OpFoldResult index, Sums s) { return whole(index, 1, s); });
  if (masksTail)
    return emitRange(last, extent, width, sums, [&](OpFoldResult index, Sums s) {
      Value left = indexValue(sizes().sub(extent, index));
      return emitPoint(at, context_.laneLoop, index, 1, width, width, maskBelow(left, width), s);
    });
  return emitRange(last, extent, Width{1}, sums, [&](OpFoldResult index, Sums s) {
    return emitPoint(at, context_.laneLoop, index, 1, Width{1}, Width{1}, Value(), s);
  });
}

StepEmitter::Sums StepEmitter::emitLoops(unsigned next, Cursor at, Sums sums) {
  if (context_.packs() && next == context_.order.size())
    return emitPacked(at, sums);
  if (context_.laneLoop >= 0 && next == context_.order.size())
    return emitLanes(at, sums);
  if (next == context_.order.size()) {
    makeViews(at);
    return emitPoint(at, -1, number(0), 1, Width{1}, Width{1}, Value(), sums);
  }
  const int loop = context_.order[next];
  const bool isLast = next + 1 == context_.order.size();
  if (context_.laneLoop < 0 && isLast)
    return emitInnermost(loop, at, sums);
  const int64_t step = isLast ? down() : 1;
  OpFoldResult begin = isLast ? firstRow() : number(0);
  if (at.held > 0) {
    const auto rest = emitHeld(loop, step, begin, heldAfter(next), at, sums,
                               [&](Cursor here, OpFoldResult index, Sums s) {
                                 advance(here, loop, index);
                                 return emitLoops(next + 1, std::move(here), std::move(s));
                               });
    if (!rest)
      return sums;
    begin = add(begin, *rest);
    at.held = 0;
  }
  return emitRange(
      begin, context_.loops[loop].extent, Width{step}, sums,
      [&](OpFoldResult index, Sums carried) {
        if (context_.backwards && next == 0)
          index = sizes().sub(sizes().sub(context_.loops[loop].extent, number(1)), index);
        Cursor inner = at;
        advance(inner, loop, index);
        return emitLoops(next + 1, inner, carried);
      },
      termsAfter(next));
}

} // namespace normforge::tile
