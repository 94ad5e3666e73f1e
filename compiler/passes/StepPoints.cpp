// A step at one place of its loops: loads, the body, and what becomes of its results.
#include "compiler/passes/StepBody.h"
#include "compiler/passes/StepEmitter.h"

namespace normforge::tile {

StepEmitter::Sums StepEmitter::emitPoint(const Cursor &at, int loop, OpFoldResult index,
                                         int64_t count, Width distance, Width lanes, Value mask,
                                         Sums sums) {
  Points points{at, loop, static_cast<size_t>(count)};
  // Rows take width and mask from the loop; otherwise each slot has its own.
  const bool rows = context_.isRows() && !context_.packs();
  for (const Slot &slot : at.slots) {
    Value exist = rows ? mask : slot.mask;
    if (at.exists)
      exist = exist ? Value(arith::AndIOp::create(b_, loc_, exist, at.exists)) : at.exists;
    for (int64_t u = 0; u < count; ++u)
      points.spots.push_back({loop, index, u == 0 ? number(0) : sizes().lanes(distance * u), slot,
                              rows ? lanes : slot.width, exist, at.shifted});
  }
  pairUp(points);
  const size_t results = step_.getNumDpsInits();
  for (size_t point = 0; point < points.spots.size(); ++point) {
    const Spot &spot = points.spots[point];
    const size_t s = point / points.iterations, u = point % points.iterations;
    SmallVector<Value> arguments = loadInputs(points, point);
    auto sumAt = [&](size_t r) -> Value & {
      const auto inFlight = static_cast<size_t>(context_.inFlight);
      return sums[(r * at.slots.size() + s) * inFlight +
                  (u + static_cast<size_t>(at.ordinal)) % inFlight];
    };
    // An element by itself is added to its vector's first lane.
    auto takesLane = [&](Value sum) {
      return spot.width.isScalar() && isa<VectorType>(sum.getType());
    };
    for (size_t r = 0; context_.reduces() && r < results; ++r) {
      Value sum = sumAt(r);
      if (takesLane(sum))
        sum = vector::ExtractOp::create(b_, loc_, sum, ArrayRef<int64_t>{0});
      arguments.push_back(sum);
    }
    if (context_.carries())
      for (Value init : step_.getDpsInits())
        arguments.push_back(identity(spot.width.type(getElementTypeOrSelf(init.getType()))));
    SmallVector<Value> values =
        emitStepBody(b_, constants_, *step_.getBlock(), arguments, spot.width,
                     [&](unsigned dim) { return loopIndex(points, spot, static_cast<int>(dim)); });
    for (size_t r = 0; r < results; ++r) {
      if (context_.reduces()) {
        Value &sum = sumAt(r);
        // Lanes past the end keep what they have.
        if (takesLane(sum))
          sum = vector::InsertOp::create(b_, loc_, values[r], sum, ArrayRef<int64_t>{0});
        else
          sum = spot.mask && (context_.isRows() || at.exists)
                    ? Value(arith::SelectOp::create(b_, loc_, spot.mask, values[r], sum))
                    : values[r];
      } else if (context_.storesElements() || context_.carries()) {
        points.results.push_back(values[r]);
      } else {
        registers_[step_.getResult(static_cast<unsigned>(r))].push_back(values[r]);
      }
    }
  }
  if (context_.carries())
    carry(points);
  else if (context_.storesElements())
    storeElements(points);
  return sums;
}

SmallVector<Value> StepEmitter::loadInputs(Points &points, size_t point) {
  const Cursor &at = points.at;
  const Spot &spot = points.spots[point];
  const bool isWide = context_.isRows() && !context_.packs() && spot.width == knobs_.width;
  if (spot.pair == InPair::First)
    points.seconds.resize(context_.inputs.size() * points.spots.size());
  SmallVector<Value> loaded;
  for (size_t i = 0; i < context_.inputs.size(); ++i) {
    const Access &input = context_.inputs[i];
    if (!input.base) {
      const auto &values = isWide ? at.wideArguments[i] : at.arguments[i];
      loaded.push_back(values[values.size() == 1 ? 0 : point / points.iterations]);
      continue;
    }
    auto secondOf = [&](size_t number) -> Value & {
      return points.seconds[number * context_.inputs.size() + i];
    };
    if (spot.pair == InPair::First) {
      const Pair pair = loadPair(input, at.inputs[i], spot, points.spots[spot.second]);
      loaded.push_back(pair.even);
      secondOf(spot.second) = pair.odd;
    } else if (spot.pair == InPair::Second) {
      loaded.push_back(secondOf(point));
    } else {
      loaded.push_back(context_.packs() ? loadPacked(input, at.inputs[i], spot.slot)
                                        : loadHeld(input, at.inputs[i], at, spot));
    }
    // Two vectors of halves are a line, or less.
    const bool isFetched = spot.pair == InPair::Second && input.element().isBF16();
    if (knobs_.prefetch > 0 && context_.storesElements() && !spot.width.isScalar() && !isFetched)
      prefetch(input, at.inputs[i], spot);
  }
  return loaded;
}

Value StepEmitter::loopIndex(const Points &points, const Spot &spot, int dim) {
  if (context_.packs() && (dim == context_.slotLoop || dim == context_.laneLoop))
    return packedIndex(spot.slot, dim == context_.slotLoop);
  const OpFoldResult around = points.at.position[dim];
  if (dim == context_.slotLoop || dim == context_.laneLoop) {
    Value first = indexValue(dim == context_.laneLoop ? add(spot.index, spot.plus)
                             : around                 ? add(around, offsetOf(spot.slot))
                                                      : offsetOf(spot.slot));
    if (isShared() && dim == context_.lanesLoop())
      first = indexValue(add(OpFoldResult(first), OpFoldResult(knobs_.firstLane)));
    if (dim != context_.lanesLoop() || spot.width.isScalar())
      return first;
    auto type = spot.width.vector(b_.getIndexType());
    Value steps = vector::StepOp::create(b_, loc_, type);
    return arith::AddIOp::create(b_, loc_, steps,
                                 vector::BroadcastOp::create(b_, loc_, type, first));
  }
  if (dim == points.loop)
    return indexValue(add(spot.index, spot.plus));
  return around ? indexValue(around) : constant(0);
}

/// Stores come after all loads: an output may be an input's buffer.
void StepEmitter::storeElements(const Points &points) {
  const size_t results = step_.getNumDpsInits();
  for (size_t point = 0; point < points.spots.size(); ++point)
    for (size_t r = 0; r < results; ++r) {
      const Spot &spot = points.spots[point];
      const Access &output = context_.outputs[r];
      const Place &place = points.at.outputs[r];
      Value value = points.results[point * results + r];
      if (spot.pair == InPair::First)
        storePair(output, place, spot, points.spots[spot.second],
                  {value, points.results[spot.second * results + r]}, points.at.streams);
      else if (spot.pair == InPair::Alone)
        store(output, place, spot, value, points.at.streams);
      if (auto held = heldPlace(output, points.at, spot))
        held_[*held] = bitsOf(value);
    }
}

void StepEmitter::carry(const Points &points) {
  const size_t results = step_.getNumDpsInits();
  for (size_t r = 0; r < results; ++r) {
    const Access &output = context_.outputs[r];
    const Place &place = points.at.outputs[r];
    auto sumAt = [&](size_t u) { // of the slots
      SmallVector<std::pair<Spot, Value>> terms;
      for (size_t point = u; point < points.spots.size(); point += points.iterations)
        terms.emplace_back(points.spots[point], points.results[point * results + r]);
      return sumOf(terms);
    };
    for (size_t u = 0; u < points.iterations; ++u) {
      const Spot &spot = points.spots[u];
      if (context_.packs()) { // to the elements of one row
        addTo(points.at, output, place,
              {context_.laneLoop, number(0), number(0), Slot(), Width{context_.rowLength}, Value()},
              sumAt(u));
      } else if (context_.columns || spot.pair == InPair::Alone) {
        addTo(points.at, output, place, spot, sumAt(u));
      } else if (spot.pair == InPair::First) {
        auto [first, second] = interleaved({sumAt(u), sumAt(u + 1)});
        addTo(points.at, output, place, spot, first);
        addTo(points.at, output, place, points.spots[spot.second], second);
      }
    }
  }
}

/// Rows: the slots have the same lanes of memory. Columns: they are lanes of one element in memory;
/// those of one width are added first.
Value StepEmitter::sumOf(ArrayRef<std::pair<Spot, Value>> terms) {
  auto existing = [&](const std::pair<Spot, Value> &term) -> Value {
    const auto &[spot, value] = term;
    return spot.mask
               ? arith::SelectOp::create(b_, loc_, spot.mask, value, identity(value.getType()))
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

void StepEmitter::addTo(const Cursor &at, const Access &access, const Place &place,
                        const Spot &spot, Value sum) {
  if (carriesInRegisters(at, access)) {
    scf::ForOp loop = carried_.loop;
    Value before =
        UnrealizedConversionCastOp::create(b_, loc_, sum.getType(), ValueRange()).getResult(0);
    Value after = combine(before, sum);
    carried_.sums.push_back({identity(sum.getType()), before, after});
    Value next = arith::AddIOp::create(b_, loc_, loop.getInductionVar(), loop.getStep());
    Value isLast =
        arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::sge, next, loop.getUpperBound());
    OpBuilder::InsertionGuard guard(b_);
    b_.setInsertionPointToStart(scf::IfOp::create(b_, loc_, isLast, false).thenBlock());
    store(access, place, spot, after, /*streams=*/false);
    return;
  }
  Value before = load(access, place, spot);
  before = arith::SelectOp::create(b_, loc_, access.fresh, identity(before.getType()), before);
  store(access, place, spot, combine(before, sum), /*streams=*/false);
}

bool StepEmitter::carriesInRegisters(const Cursor &at, const Access &access) const {
  scf::ForOp loop = carried_.loop;
  if (at.held == 0 || !isShared() || !loop || b_.getInsertionBlock() != loop.getBody())
    return false;
  auto begins = access.fresh.getDefiningOp<arith::CmpIOp>();
  return begins && begins.getPredicate() == arith::CmpIPredicate::eq &&
         begins.getLhs() == loop.getInductionVar() && begins.getRhs() == loop.getLowerBound();
}

} // namespace normforge::tile
