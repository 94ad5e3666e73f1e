// Two vectors of bf16 that lie side by side, moved as one: the even elements are a vector of f32,
// the odd ones another. Everything that a step has of lanes is paired alike; what is not bf16 is
// loaded in order and taken apart. CPUs widen and narrow such pairs without spreading or packing
// them (HalfPrecision.h).
#include "compiler/passes/StepEmitter.h"

namespace normforge::tile {

/// Where lanes are of bf16 more often than not: to take others apart costs about as much.
bool StepEmitter::pairsVectors() const {
  if (!knobs_.pairsHalves || context_.packs() || context_.kind == Kind::Registers ||
      knobs_.width.scalable || knobs_.width.isScalar())
    return false;
  linalg::GenericOp step = step_;
  if (!step.getBlock()->getOps<linalg::IndexOp>().empty())
    return false;
  int halves = 0, others = 0;
  for (const auto *accesses : {&context_.inputs, &context_.outputs})
    for (const Access &access : *accesses) {
      const OpFoldResult stride = access.base ? context_.laneStride(access) : OpFoldResult();
      if (!stride)
        continue;
      if (access.isBits() || access.bound || getConstantIntValue(stride) != 1)
        return false;
      // Carried sums go through memory once for all rows of a tile.
      const bool isRare =
          context_.carries() && accesses == &context_.outputs && context_.slots.size() > 1;
      if (access.element().isBF16())
        ++halves;
      else if (!isRare)
        ++others;
    }
  return halves > others;
}

void StepEmitter::forSlotPairs(llvm::function_ref<void(size_t)> take) const {
  if (!pairs_ || !context_.columns)
    return;
  for (size_t s = 0; s + 1 < context_.slots.size(); s += 2)
    if (isWhole(context_.slots[s]) && isWhole(context_.slots[s + 1]))
      take(s);
}

void StepEmitter::pairUp(Points &points) const {
  auto pair = [&](size_t first, size_t second) {
    points.spots[first].pair = InPair::First;
    points.spots[first].second = second;
    points.spots[second].pair = InPair::Second;
  };
  const size_t iterations = points.iterations;
  forSlotPairs([&](size_t s) {
    for (size_t u = 0; u < iterations; ++u)
      pair(s * iterations + u, (s + 1) * iterations + u);
  });
  if (!pairs_ || context_.columns)
    return;
  for (size_t slot = 0; slot < points.spots.size(); slot += iterations)
    for (size_t u = 0; u + 1 < iterations; u += 2)
      if (isWhole(points.spots[slot + u]) && isWhole(points.spots[slot + u + 1]))
        pair(slot + u, slot + u + 1);
}

StepEmitter::Pair StepEmitter::deinterleaved(Value first, Value second) {
  SmallVector<int64_t> even, odd;
  for (int64_t i = 0; i < knobs_.width.lanes; ++i) {
    even.push_back(2 * i);
    odd.push_back(2 * i + 1);
  }
  return {vector::ShuffleOp::create(b_, loc_, first, second, even),
          vector::ShuffleOp::create(b_, loc_, first, second, odd)};
}

std::pair<Value, Value> StepEmitter::interleaved(Pair pair) {
  const int64_t lanes = knobs_.width.lanes;
  SmallVector<int64_t> low, high;
  for (int64_t i = 0; i < lanes; ++i) {
    low.push_back(i / 2 + i % 2 * lanes);
    high.push_back((lanes + i) / 2 + i % 2 * lanes);
  }
  return {vector::ShuffleOp::create(b_, loc_, pair.even, pair.odd, low),
          vector::ShuffleOp::create(b_, loc_, pair.even, pair.odd, high)};
}

StepEmitter::Pair StepEmitter::loadPair(const Access &access, const Place &place, const Spot &first,
                                        const Spot &second) {
  if (!context_.laneStride(access))
    return {load(access, place, first), load(access, place, second)};
  if (!access.element().isBF16())
    return deinterleaved(load(access, place, first), load(access, place, second));
  Value both = vector::LoadOp::create(b_, loc_, (knobs_.width * 2).vector(access.element()),
                                      place.view, elementIndex(access, first));
  auto apart = vector::DeinterleaveOp::create(b_, loc_, both);
  return {apart.getRes1(), apart.getRes2()};
}

void StepEmitter::storePair(const Access &access, const Place &place, const Spot &first,
                            const Spot &second, Pair values, bool streams) {
  Value low = values.even, high = values.odd;
  if (context_.laneStride(access) && access.element().isBF16()) {
    Value both = vector::InterleaveOp::create(b_, loc_, values.even, values.odd);
    if (!streams) {
      vector::StoreOp::create(b_, loc_, both, place.view, elementIndex(access, first));
      return;
    }
    // Streaming stores are aligned to one vector.
    const auto lanes = llvm::to_vector(llvm::seq<int64_t>(2 * knobs_.width.lanes));
    low = vector::ShuffleOp::create(b_, loc_, both, both,
                                    ArrayRef(lanes).take_front(lanes.size() / 2));
    high = vector::ShuffleOp::create(b_, loc_, both, both,
                                     ArrayRef(lanes).drop_front(lanes.size() / 2));
  } else if (context_.laneStride(access)) {
    std::tie(low, high) = interleaved(values);
  }
  store(access, place, first, low, streams);
  store(access, place, second, high, streams);
}

} // namespace normforge::tile
