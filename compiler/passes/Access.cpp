// Loads and stores of single vectors.
#include "compiler/passes/StepEmitter.h"

namespace normforge::tile {

Value StepEmitter::elementIndex(const Access &access, const Spot &spot) {
  OpFoldResult at = number(0);
  // Terms that vary come first: constants become displacements.
  OpFoldResult fixed = at;
  if (spot.loop >= 0 && access.strides[spot.loop]) {
    at = scaled(spot.index, access.strides[spot.loop]);
    fixed = scaled(spot.plus, access.strides[spot.loop]);
  }
  // Packed rows are one run.
  const int slotLoop = context_.packs() ? context_.laneLoop : context_.slotLoop;
  if (slotLoop >= 0 && access.strides[slotLoop])
    fixed = add(fixed, scaled(offsetOf(spot.slot), access.strides[slotLoop]));
  if (isShared() && access.strides[context_.lanesLoop()])
    at = add(at, scaled(OpFoldResult(knobs_.firstLane), access.strides[context_.lanesLoop()]));
  return indexValue(add(at, fixed));
}

Value StepEmitter::isActive(const Place &place, const Spot &spot) {
  Value active = spot.mask;
  if (!place.bound)
    return active;
  OpFoldResult first = context_.isRows() ? add(spot.index, spot.plus) : offsetOf(spot.slot);
  Value exists = threadsBelow(b_, loc_, knobs_, indexValue(sizes().sub(place.bound, first)));
  return active ? Value(arith::AndIOp::create(b_, loc_, active, exists)) : exists;
}

Value StepEmitter::existing(const Access &access, const Place &place, const Spot &spot) {
  if (!place.bound)
    return spot.mask;
  OpFoldResult first = context_.isRows() ? add(spot.index, spot.plus) : offsetOf(spot.slot);
  Value exist = maskBelow(indexValue(sizes().sub(place.bound, first)), spot.width);
  return spot.mask ? Value(arith::AndIOp::create(b_, loc_, spot.mask, exist)) : exist;
}

Value StepEmitter::laneOffsets(Width width, OpFoldResult stride) {
  Value steps = vector::StepOp::create(b_, loc_, width.vector(b_.getIndexType()));
  Value distance = vector::BroadcastOp::create(b_, loc_, steps.getType(), indexValue(stride));
  return arith::MulIOp::create(b_, loc_, steps, distance);
}

Value StepEmitter::load(const Access &access, const Place &place, const Spot &spot) {
  if (isShared())
    if (Value active = isActive(place, spot)) {
      // A branch, and zeros where the thread has nothing to load.
      Place whole = place;
      Spot all = spot;
      whole.bound = all.mask = Value();
      const Type type = spot.width.type(access.element());
      auto branch = scf::IfOp::create(b_, loc_, type, active, /*withElseRegion=*/true);
      Value zero = constants_.zero(loc_, type);
      OpBuilder::InsertionGuard guard(b_);
      b_.setInsertionPointToStart(branch.thenBlock());
      Value loaded = load(access, whole, all);
      if (loaded.getType() != type)
        loaded = vector::BroadcastOp::create(b_, loc_, type, loaded);
      scf::YieldOp::create(b_, loc_, loaded);
      b_.setInsertionPointToStart(branch.elseBlock());
      scf::YieldOp::create(b_, loc_, zero);
      return branch.getResult(0);
    }
  if (access.isBits())
    return loadBits(access, place, spot);
  Value at = elementIndex(access, spot);
  OpFoldResult stride = context_.laneStride(access);
  if (!stride || (spot.width.isScalar() && !place.bound))
    return memref::LoadOp::create(b_, loc_, place.view, at);
  auto type = spot.width.vector(access.element());
  if (spot.width.isScalar()) { // one lane, which may not exist
    Value lane = vector::MaskedLoadOp::create(
        b_, loc_, type, place.view, at, existing(access, place, spot), constants_.zero(loc_, type));
    return vector::ExtractOp::create(b_, loc_, lane, ArrayRef<int64_t>{0});
  }
  Value mask = existing(access, place, spot);
  if (getConstantIntValue(stride) == 1) {
    if (!mask)
      return vector::LoadOp::create(b_, loc_, type, place.view, at);
    if (auto known = mask.getDefiningOp<vector::ConstantMaskOp>(); known && !knobs_.masksLoads)
      return loadElements(access, place, at, spot.width, known.getMaskDimSizes()[0]);
    return vector::MaskedLoadOp::create(b_, loc_, type, place.view, at, mask,
                                        constants_.zero(loc_, type));
  }
  // The mask has all lanes; one of a scalable vector's least number of lanes stands for all.
  if (!mask)
    mask = constantMask(spot.width.lanes, spot.width);
  return vector::GatherOp::create(b_, loc_, type, place.view, ValueRange{at},
                                  laneOffsets(spot.width, stride), mask,
                                  constants_.zero(loc_, type));
}

Value StepEmitter::loadElements(const Access &access, const Place &place, Value at, Width width,
                                int64_t count) {
  Value vector = constants_.zero(loc_, width.vector(access.element()));
  for (int64_t i = 0; i < count; ++i) {
    Value index = indexValue(add(OpFoldResult(at), i));
    Value loaded = memref::LoadOp::create(b_, loc_, place.view, index);
    vector = vector::InsertOp::create(b_, loc_, loaded, vector, ArrayRef<int64_t>{i});
  }
  return vector;
}

void StepEmitter::prefetch(const Access &access, const Place &place, const Spot &spot) {
  if (access.isBits()) // a line of them is that of many tiles
    return;
  OpFoldResult distance;
  const int slotLoop = context_.slotLoop;
  const int64_t rows =
      context_.packs() ? context_.rows : static_cast<int64_t>(context_.slots.size());
  if (context_.isRows() && slotLoop >= 0 && access.strides[slotLoop])
    distance = scaled(number(rows), access.strides[slotLoop]);
  for (size_t i = 0; !context_.isRows() && i < context_.loops.size(); ++i)
    if (context_.loops[i].kept && context_.loops[i].role == LoopRole::Outer && access.strides[i])
      distance = access.strides[i];
  if (!distance || (context_.packs() && !access.strides[context_.laneLoop]))
    return;
  OpFoldResult at = elementIndex(access, spot);
  at = add(at, scaled(distance, number(knobs_.prefetch)));
  // Past the last tile nothing is there to fetch, and nothing happens.
  memref::PrefetchOp::create(b_, loc_, place.view, ValueRange{indexValue(at)}, /*isWrite=*/false,
                             /*localityHint=*/2, /*isDataCache=*/true);
}

void StepEmitter::store(const Access &access, const Place &place, const Spot &spot, Value value,
                        bool streams) {
  if (access.isBits() && isShared())
    return storeSharedBits(access, place, spot, value);
  if (knobs_.threads > 0) {
    // What several threads have the first of them stores, after all have read what it may be
    // written over.
    Value first = !isShared()                    ? knobs_.thread
                  : knobs_.down > 1 && !isDown() ? knobs_.firstRow
                                                 : Value();
    Value active = isShared() ? isActive(place, spot) : Value();
    if (first) {
      awaitThreads();
      Value stores = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::eq, first, constant(0));
      active = active ? Value(arith::AndIOp::create(b_, loc_, active, stores)) : stores;
    }
    if (active) {
      Place whole = place;
      Spot all = spot;
      whole.bound = all.mask = Value();
      OpBuilder::InsertionGuard guard(b_);
      b_.setInsertionPointToStart(scf::IfOp::create(b_, loc_, active, false).thenBlock());
      storeElements(access, whole, all, value, streams);
      return;
    }
  }
  storeElements(access, place, spot, value, streams);
}

void StepEmitter::storeElements(const Access &access, const Place &place, const Spot &spot,
                                Value value, bool streams) {
  if (access.isBits())
    return storeBits(access, place, spot, value);
  Value at = elementIndex(access, spot);
  OpFoldResult stride = context_.laneStride(access);
  if (!stride || (spot.width.isScalar() && !place.bound)) {
    memref::StoreOp::create(b_, loc_, value, place.view, at);
    return;
  }
  Value mask = existing(access, place, spot);
  if (spot.width.isScalar()) { // one lane, which may not exist
    Value lane = vector::BroadcastOp::create(b_, loc_, spot.width.vector(access.element()), value);
    vector::MaskedStoreOp::create(b_, loc_, place.view, at, mask, lane);
    return;
  }
  if (getConstantIntValue(stride) == 1) {
    // One lane is an element. (LLVM 22 would store twice its bytes where it has been narrowed: its
    // x86 backend makes a store of the wide element of a masked store under such a constant mask.)
    auto known = mask ? mask.getDefiningOp<vector::ConstantMaskOp>() : nullptr;
    if (known && known.getMaskDimSizes()[0] == 1) {
      Value first = vector::ExtractOp::create(b_, loc_, value, ArrayRef<int64_t>{0});
      memref::StoreOp::create(b_, loc_, first, place.view, at);
      return;
    }
    streams = streams && spot.width == knobs_.width;
    if (mask)
      vector::MaskedStoreOp::create(b_, loc_, place.view, at, mask, value);
    else
      vector::StoreOp::create(b_, loc_, value, place.view, at, /*nontemporal=*/streams,
                              streams ? llvm::MaybeAlign(static_cast<uint64_t>(vectorBytes(access)))
                                      : llvm::MaybeAlign());
    return;
  }
  if (!mask)
    mask = constantMask(spot.width.lanes, spot.width);
  vector::ScatterOp::create(b_, loc_, Type(), place.view, ValueRange{at},
                            laneOffsets(spot.width, stride), mask, value);
}

} // namespace normforge::tile
