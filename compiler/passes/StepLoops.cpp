// The loops of a step: vectors in flight, tails, sums in blocks.
#include "compiler/passes/StepBody.h"
#include "compiler/passes/StepEmitter.h"

namespace normforge::tile {

/// Terms that an accumulator takes before it is added to another: few enough for the rounding
/// errors of a long sum, many enough to cost nothing.
constexpr int64_t kBlock = 256;

StepEmitter::Sums StepEmitter::emitPoint(const Cursor &at, int loop, OpFoldResult index,
                                         int64_t count, Width distance, Width lanes, Value mask,
                                         Sums sums) {
  const size_t results = step_.getNumDpsInits();
  // Of rows as the loop has it; else each slot has its own.
  const bool rows = context_.isRows() && !context_.packs();
  SmallVector<Spot> spots; // by slot and iteration
  for (const Slot &slot : at.slots)
    for (int64_t u = 0; u < count; ++u)
      spots.push_back({loop, index, u == 0 ? number(0) : sizes().lanes(distance * u), slot,
                       rows ? lanes : slot.width, rows ? mask : slot.mask, at.shifted});
  const auto iterations = static_cast<size_t>(count);
  // How far the second of two paired vectors is from the first.
  const size_t toSecond = context_.columns ? iterations : 1;
  auto inPair = [&](size_t point) {
    return placeInPair(at, spots[point], point / iterations, point % iterations, iterations);
  };
  SmallVector<SmallVector<Value>> seconds(spots.size()); // by spot and input, where it is one
  SmallVector<Value> pending;                            // by spot and result
  for (size_t s = 0; s < at.slots.size(); ++s) {
    const Slot &slot = at.slots[s];
    for (int64_t u = 0; u < count; ++u) {
      const size_t point = s * iterations + static_cast<size_t>(u);
      const Spot &spot = spots[point];
      const InPair pair = inPair(point);
      if (pair == InPair::First)
        seconds[point + toSecond].resize(context_.inputs.size());
      SmallVector<Value> arguments;
      for (size_t i = 0; i < context_.inputs.size(); ++i) {
        const Access &input = context_.inputs[i];
        if (!input.base) {
          const auto &values =
              rows && spot.width == knobs_.width ? at.wideArguments[i] : at.arguments[i];
          arguments.push_back(values[values.size() == 1 ? 0 : s]);
          continue;
        }
        if (pair == InPair::First) {
          Pair loaded = loadPair(input, at.inputs[i], spot, spots[point + toSecond]);
          arguments.push_back(loaded.even);
          seconds[point + toSecond][i] = loaded.odd;
        } else if (pair == InPair::Second) {
          arguments.push_back(seconds[point][i]);
        } else {
          arguments.push_back(context_.packs() ? loadPacked(input, at.inputs[i], slot)
                                               : load(input, at.inputs[i], spot));
        }
        if (knobs_.prefetch > 0 && context_.storesElements() && !spot.width.isScalar())
          prefetch(input, at.inputs[i], spot);
      }
      auto sumAt = [&](size_t r) {
        return (r * at.slots.size() + s) * static_cast<size_t>(context_.inFlight) +
               static_cast<size_t>(u);
      };
      // An element by itself is added to its vector's first lane.
      auto takesLane = [&](Value sum) {
        return spot.width.isScalar() && isa<VectorType>(sum.getType());
      };
      for (size_t r = 0; context_.reduces() && r < results; ++r) {
        Value sum = sums[sumAt(r)];
        if (takesLane(sum))
          sum = vector::ExtractOp::create(b_, loc_, sum, ArrayRef<int64_t>{0});
        arguments.push_back(sum);
      }
      if (context_.carries())
        for (Value init : step_.getDpsInits())
          arguments.push_back(
              constants_.zero(loc_, spot.width.type(getElementTypeOrSelf(init.getType()))));
      auto loopIndex = [&](unsigned i) -> Value {
        const int dim = static_cast<int>(i);
        if (context_.packs() && (dim == context_.slotLoop || dim == context_.laneLoop))
          return packedIndex(slot, dim == context_.slotLoop);
        if (dim == context_.slotLoop || dim == context_.laneLoop) {
          Value first = indexValue(dim == context_.laneLoop ? add(index, spot.plus)
                                   : at.position[i]         ? add(at.position[i], offsetOf(slot))
                                                            : offsetOf(slot));
          if (dim != context_.lanesLoop() || spot.width.isScalar())
            return first;
          auto type = spot.width.vector(b_.getIndexType());
          Value steps = vector::StepOp::create(b_, loc_, type);
          return arith::AddIOp::create(b_, loc_, steps,
                                       vector::BroadcastOp::create(b_, loc_, type, first));
        }
        if (dim == loop)
          return indexValue(add(index, spot.plus));
        return at.position[i] ? indexValue(at.position[i]) : constant(0);
      };
      SmallVector<Value> values =
          emitStepBody(b_, constants_, *step_.getBlock(), arguments, spot.width, loopIndex);
      for (size_t r = 0; r < results; ++r) {
        if (context_.reduces()) {
          Value &sum = sums[sumAt(r)];
          // Lanes past the end keep what they have.
          if (takesLane(sum))
            sum = vector::InsertOp::create(b_, loc_, values[r], sum, ArrayRef<int64_t>{0});
          else
            sum = context_.isRows() && spot.mask
                      ? Value(arith::SelectOp::create(b_, loc_, spot.mask, values[r], sum))
                      : values[r];
        } else if (context_.storesElements() || context_.carries()) {
          pending.push_back(values[r]);
        } else {
          registers_[step_.getResult(static_cast<unsigned>(r))].push_back(values[r]);
        }
      }
    }
  }
  if (context_.carries()) {
    for (size_t r = 0; r < results; ++r) {
      auto sumAt = [&](size_t u) { // of the slots
        SmallVector<std::pair<Spot, Value>> terms;
        for (size_t s = 0; s < at.slots.size(); ++s) {
          const size_t point = s * iterations + u;
          terms.emplace_back(spots[point], pending[point * results + r]);
        }
        return sumOf(terms);
      };
      for (size_t u = 0; u < iterations; ++u) {
        Value sum = sumAt(u);
        if (context_.isRows() && inPair(u) == InPair::First) {
          auto [first, second] = interleaved({sum, sumAt(u + 1)});
          addTo(context_.outputs[r], at.outputs[r], spots[u], first);
          sum = second;
          ++u;
        }
        addTo(context_.outputs[r], at.outputs[r], carriedSpot(spots[u]), sum);
      }
    }
    return sums;
  }
  // Stores come after all loads: an output may be an input's buffer.
  for (size_t i = 0; i < pending.size(); ++i) {
    const size_t point = i / results, r = i % results;
    const InPair pair = inPair(point);
    if (pair == InPair::First)
      storePair(context_.outputs[r], at.outputs[r], spots[point], spots[point + toSecond],
                {pending[i], pending[i + toSecond * results]}, at.streams);
    else if (pair == InPair::Alone)
      store(context_.outputs[r], at.outputs[r], spots[point], pending[i], at.streams);
  }
  return sums;
}

/// Rows: the slots have the same lanes of memory. Columns: they are lanes of one element in memory;
/// those of one width are added first.
Value StepEmitter::sumOf(ArrayRef<std::pair<Spot, Value>> terms) {
  auto existing = [&](const std::pair<Spot, Value> &term) -> Value {
    const auto &[spot, value] = term;
    return spot.mask ? arith::SelectOp::create(b_, loc_, spot.mask, value,
                                               constants_.zero(loc_, value.getType()))
                     : value;
  };
  if (context_.packs()) {
    SmallVector<Value> run;
    for (const auto &term : terms)
      run.push_back(existing(term));
    return sumPackedRows(std::move(run));
  }
  Value sum;
  for (size_t i = 0; i < terms.size();) {
    Value part;
    const Width width = terms[i].first.width;
    for (; i < terms.size() && terms[i].first.width == width; ++i) {
      Value term = context_.columns ? existing(terms[i]) : terms[i].second;
      part = part ? combine(part, term) : term;
    }
    if (context_.columns)
      part = reduceRows({part});
    sum = sum ? combine(sum, part) : part;
  }
  return sum;
}

StepEmitter::Spot StepEmitter::carriedSpot(const Spot &spot) const {
  static const Slot row;
  return context_.packs() ? Spot{context_.laneLoop,         b_.getIndexAttr(0),
                                 b_.getIndexAttr(0),        row,
                                 Width{context_.rowLength}, Value()}
                          : spot;
}

void StepEmitter::addTo(const Access &access, const Place &place, const Spot &spot, Value sum) {
  Value before = load(access, place, spot);
  before = arith::SelectOp::create(b_, loc_, access.fresh, constants_.zero(loc_, before.getType()),
                                   before);
  store(access, place, spot, combine(before, sum), /*streams=*/false);
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

int64_t StepEmitter::termsAfter(unsigned next) const {
  int64_t terms = 1;
  auto count = [&](int loop, int64_t step) {
    const int64_t bound = upperBound(context_.loops[loop].extent).value_or(kBlock * step);
    terms = std::min(kBlock, terms * std::min(kBlock, (bound + step - 1) / step));
  };
  for (size_t i = next + 1; i < context_.order.size(); ++i)
    count(context_.order[i],
          context_.laneLoop < 0 && i + 1 == context_.order.size() ? knobs_.unroll : 1);
  if (context_.laneLoop >= 0 && !context_.packs())
    count(context_.laneLoop, knobs_.vector() * knobs_.unroll);
  return terms;
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
      block.push_back(constants_.zero(loc_, sum.getType()));
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
  auto emit = [&](const Cursor &here, Sums carried) {
    const Width inFlight{here.unroll};
    OpFoldResult whole = sizes().roundDown(extent, inFlight);
    carried = emitRange(number(0), whole, inFlight, carried, [&](OpFoldResult index, Sums s) {
      return emitPoint(here, loop, index, here.unroll, Width{1}, knobs_.width, Value(), s);
    });
    if (here.unroll == 1)
      return carried;
    return emitRange(whole, extent, Width{1}, carried, [&](OpFoldResult index, Sums s) {
      return emitPoint(here, loop, index, 1, Width{1}, knobs_.width, Value(), s);
    });
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
  const OpFoldResult extent = laneLoop().extent;
  const Width width = knobs_.width, stride = width * at.unroll;
  auto whole = [&](OpFoldResult index, int64_t count, Sums s) {
    return emitPoint(at, context_.laneLoop, index, count, width, width, Value(), s);
  };
  // Where the last of the vectors in flight end, and the last whole vector.
  OpFoldResult count = sizes().sub(extent, begin);
  const OpFoldResult inFlight = add(begin, sizes().roundDown(count, stride));
  sums = emitRange(begin, inFlight, stride, sums,
                   [&](OpFoldResult index, Sums s) { return whole(index, at.unroll, s); });
  if (auto end = getConstantIntValue(extent), from = getConstantIntValue(inFlight); end && from) {
    const int64_t vectors = (*end - *from) / width.lanes;
    if (vectors > 0)
      sums = whole(inFlight, vectors, sums);
    *from += vectors * width.lanes;
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
  if (context_.laneLoop < 0 && next + 1 == context_.order.size())
    return emitInnermost(loop, at, sums);
  return emitRange(
      number(0), context_.loops[loop].extent, Width{1}, sums,
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
