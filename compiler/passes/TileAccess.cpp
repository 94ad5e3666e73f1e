// What a step's loops and arrays are to a tile, and single loads and stores.
#include "compiler/passes/TileVectorizer.h"

namespace normforge::tile {

Value TileVectorizer::elementIndex(const Access &access, int loop, OpFoldResult index,
                                   OpFoldResult plus, const Slot &slot) {
  OpFoldResult at = b_.getIndexAttr(0);
  // What varies comes first: constants become displacements.
  OpFoldResult fixed = at;
  if (loop >= 0 && access.strides[loop]) {
    at = scaled(index, access.strides[loop]);
    fixed = scaled(plus, access.strides[loop]);
  }
  if (slotLoop_ >= 0 && access.strides[slotLoop_])
    fixed = add(fixed, scaled(offsetOf(slot), access.strides[slotLoop_]));
  return indexValue(add(at, fixed));
}

Value TileVectorizer::existing(const Access &access, OpFoldResult index, OpFoldResult plus,
                               const Slot &slot, Width width, Value mask) {
  if (!access.bound)
    return mask;
  OpFoldResult first = isRows() ? add(index, plus) : offsetOf(slot);
  return intersect(mask, maskBelow(indexValue(sizes().sub(access.bound, first)), width));
}

Value TileVectorizer::maskBelow(Value count, Width width) {
  if (auto known = getConstantIntValue(count); known && !width.scalable)
    return constantMask(std::clamp<int64_t>(*known, 0, width.lanes), width);
  return vector::CreateMaskOp::create(b_, loc_, width.vector(b_.getI1Type()), ValueRange{count});
}

Value TileVectorizer::constantMask(int64_t count, Width width) {
  return vector::ConstantMaskOp::create(b_, loc_, width.vector(b_.getI1Type()),
                                        ArrayRef<int64_t>{count});
}

/// Of all lanes; of a scalable vector, a mask of as many as it has at least stands for all.
Value TileVectorizer::wholeMask(Width width) { return constantMask(width.lanes, width); }

Value TileVectorizer::laneOffsets(Width width, OpFoldResult stride) {
  Value steps = vector::StepOp::create(b_, loc_, width.vector(b_.getIndexType()));
  Value distance = vector::BroadcastOp::create(b_, loc_, steps.getType(), indexValue(stride));
  return arith::MulIOp::create(b_, loc_, steps, distance);
}

Value TileVectorizer::intersect(Value x, Value y) {
  if (!x || !y)
    return x ? x : y;
  return arith::AndIOp::create(b_, loc_, x, y);
}

/// Roles and extents of the step's loops.
LogicalResult TileVectorizer::findLoops(linalg::GenericOp step) {
  auto domain = step->getAttrOfType<AffineMapAttr>(attr::kDomain).getValue();
  loops_.assign(step.getNumLoops(), StepLoop());
  slotLoop_ = laneLoop_ = -1;
  for (auto [i, expr] : llvm::enumerate(domain.getResults())) {
    auto dim = dyn_cast<AffineDimExpr>(expr);
    loops_[i].kept = dim && kept_[dim.getPosition()];
    if (dim && dim.getPosition() == tiled_) {
      loops_[i].role = Role::Slots;
      slotLoop_ = static_cast<int>(i);
    } else if (dim && dim.getPosition() == last_ && !columns_) {
      loops_[i].role = Role::Lanes;
      laneLoop_ = static_cast<int>(i);
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
      if (auto dim = dyn_cast<AffineDimExpr>(map.getResult(i)))
        if (!loops_[dim.getPosition()].extent || getConstantIntValue(sizes[i]))
          loops_[dim.getPosition()].extent = sizes[i];
  }
  for (const StepLoop &loop : loops_)
    if (!loop.extent)
      return step.emitError("a loop of the step has no extent");
  order_.clear();
  for (size_t i = 0; i < loops_.size(); ++i)
    if (loops_[i].role == Role::Other && !loops_[i].unit())
      order_.push_back(static_cast<int>(i));
  reduces_ = step.getNumReductionLoops() > 0 || llvm::any_of(step.getDpsInits(), [](Value init) {
               return init.getDefiningOp<linalg::FillOp>() != nullptr;
             });
  element_ = !reduces_ && (laneLoop_ >= 0 || !order_.empty());
  return success();
}

/// What of the tile is in registers: rows one by one where their elements are, columns by the
/// vector. The last, partial vector is masked, or made of narrower vectors.
void TileVectorizer::makeSlots() {
  slots_.clear();
  auto append = [&](int64_t offset, int64_t lanes, Value mask = Value()) {
    slots_.push_back({offset, Width{lanes}, mask, Value()});
  };
  if (slotLoop_ < 0) {
    append(0, 1);
    return;
  }
  auto extent = getConstantIntValue(loops_[slotLoop_].extent);
  if (!columns_) {
    if (!isRows())
      append(0, *extent);
    else
      for (int64_t i = 0; i < *extent; ++i)
        append(i, 1);
    return;
  }
  if (width_.scalable) {
    for (int64_t i = 0; i < vectorsInTile_; ++i) {
      Slot slot;
      slot.width = width_;
      OpFoldResult left = loops_[slotLoop_].extent;
      if (i > 0) {
        slot.lanesBefore = constants_.lanes(loc_, width_ * i);
        left = sizes().sub(left, OpFoldResult(slot.lanesBefore));
      }
      slot.mask = maskBelow(indexValue(left), width_);
      slots_.push_back(slot);
    }
    return;
  }
  if (!extent) {
    append(0, vector_, maskBelow(indexValue(loops_[slotLoop_].extent), width_));
    return;
  }
  int64_t offset = 0;
  for (; offset + vector_ <= *extent; offset += vector_)
    append(offset, vector_);
  if (offset < *extent && masked_ && vector_ > 1) {
    append(offset, vector_, constantMask(*extent - offset, width_));
    return;
  }
  for (int64_t lanes = vector_ / 2; offset < *extent; lanes /= 2)
    if (offset + lanes <= *extent) {
      append(offset, lanes);
      offset += lanes;
    }
}

Access TileVectorizer::accessOfMemory(Value memory, AffineMap map) {
  const BoundedSlice slice = BoundedSlice::of(memory);
  memref::SubViewOp part = slice.part;
  auto whole = part.getSource().getDefiningOp<memref::ReinterpretCastOp>();
  SmallVector<OpFoldResult> offsets = part.getMixedOffsets(), strides = whole.getMixedStrides();
  Access access;
  access.base = whole.getSource();
  access.strides.assign(loops_.size(), OpFoldResult());
  access.offset = b_.getIndexAttr(0);
  access.bound = slice.bound;
  access.block = slice.block;
  for (int i = 0; i < static_cast<int>(offsets.size()); ++i) {
    access.offset = add(access.offset, scaled(offsets[i], strides[i]));
    auto dim = dyn_cast<AffineDimExpr>(map.getResult(static_cast<unsigned>(i)));
    if (!dim)
      continue;
    access.strides[dim.getPosition()] = strides[i];
    if (i == slice.outer)
      access.blockLoop = static_cast<int>(dim.getPosition());
  }
  return access;
}

Access TileVectorizer::accessOf(Value tensor, AffineMap map) {
  return accessOfMemory(tensor.getDefiningOp<bufferization::ToTensorOp>().getBuffer(), map);
}

OpFoldResult TileVectorizer::laneStride(const Access &access) const {
  return lanesLoop() < 0 ? OpFoldResult() : access.strides[lanesLoop()];
}

/// Moves the accesses to iteration `index` of a loop.
void TileVectorizer::advance(int loop, Value index) {
  for (SmallVector<Access> *list : {&inputs_, &outputs_})
    for (Access &access : *list)
      if (access.base && access.strides[loop]) {
        access.offset = add(access.offset, scaled(OpFoldResult(index), access.strides[loop]));
        if (access.bound && loop == access.blockLoop)
          access.bound = indexValue(sizes().sub(
              access.bound, scaled(OpFoldResult(index), b_.getIndexAttr(access.block))));
      }
}

void TileVectorizer::makeViews() {
  for (SmallVector<Access> *list : {&inputs_, &outputs_})
    for (Access &access : *list) {
      if (!access.base)
        continue;
      auto element = cast<MemRefType>(access.base.getType()).getElementType();
      auto layout = StridedLayoutAttr::get(b_.getContext(), ShapedType::kDynamic, {1});
      auto type = MemRefType::get({ShapedType::kDynamic}, element, layout);
      OpFoldResult size = constant(1);
      access.view = memref::ReinterpretCastOp::create(
          b_, loc_, type, access.base, OpFoldResult(indexValue(access.offset)),
          ArrayRef<OpFoldResult>{size}, ArrayRef<OpFoldResult>{b_.getIndexAttr(1)});
    }
}

/// Element(s) at position `index + plus` of loop `loop` (-1: none is running) in a slot.
Value TileVectorizer::load(Access &access, int loop, OpFoldResult index, OpFoldResult plus,
                           const Slot &slot, Width width, Value mask) {
  auto element = cast<MemRefType>(access.base.getType()).getElementType();
  Value at = elementIndex(access, loop, index, plus, slot);
  OpFoldResult stride = laneStride(access);
  if (!stride || width.isScalar())
    return memref::LoadOp::create(b_, loc_, access.view, at);
  auto type = width.vector(element);
  mask = existing(access, index, plus, slot, width, mask);
  if (getConstantIntValue(stride) == 1) {
    if (!mask)
      return vector::LoadOp::create(b_, loc_, type, access.view, at);
    if (auto known = mask.getDefiningOp<vector::ConstantMaskOp>(); known && !masksLoads_)
      return loadElements(access, at, width, known.getMaskDimSizes()[0]);
    return vector::MaskedLoadOp::create(b_, loc_, type, access.view, at, mask,
                                        constants_.zero(loc_, type));
  }
  if (!mask)
    mask = wholeMask(width);
  return vector::GatherOp::create(b_, loc_, type, access.view, ValueRange{at},
                                  laneOffsets(width, stride), mask, constants_.zero(loc_, type));
}

Value TileVectorizer::loadElements(Access &access, Value at, Width width, int64_t count) {
  auto element = cast<MemRefType>(access.base.getType()).getElementType();
  Value vector = constants_.zero(loc_, width.vector(element));
  for (int64_t i = 0; i < count; ++i) {
    Value index = indexValue(add(OpFoldResult(at), i));
    Value loaded = memref::LoadOp::create(b_, loc_, access.view, index);
    vector = vector::InsertOp::create(b_, loc_, loaded, vector, ArrayRef<int64_t>{i});
  }
  return vector;
}

void TileVectorizer::prefetch(const Access &access, int loop, OpFoldResult index, OpFoldResult plus,
                              const Slot &slot) {
  OpFoldResult distance;
  if (isRows() && slotLoop_ >= 0 && access.strides[slotLoop_])
    distance = scaled(b_.getIndexAttr(tile_), access.strides[slotLoop_]);
  for (size_t i = 0; !isRows() && i < loops_.size(); ++i)
    if (loops_[i].kept && loops_[i].role == Role::Other && access.strides[i])
      distance = access.strides[i];
  if (!distance)
    return;
  OpFoldResult at = elementIndex(access, loop, index, plus, slot);
  at = add(at, distance);
  // Past the last tile nothing is there to fetch, and nothing happens.
  memref::PrefetchOp::create(b_, loc_, access.view, ValueRange{indexValue(at)}, /*isWrite=*/false,
                             /*localityHint=*/2, /*isDataCache=*/true);
}

void TileVectorizer::store(Access &access, int loop, OpFoldResult index, OpFoldResult plus,
                           const Slot &slot, Width width, Value mask, Value value) {
  Value at = elementIndex(access, loop, index, plus, slot);
  OpFoldResult stride = laneStride(access);
  if (!stride || width.isScalar()) {
    memref::StoreOp::create(b_, loc_, value, access.view, at);
    return;
  }
  mask = existing(access, index, plus, slot, width, mask);
  if (getConstantIntValue(stride) == 1) {
    // One lane is an element. (LLVM 22 would store twice its bytes where it has been narrowed: its
    // x86 backend makes a store of the wide element of a masked store under such a constant mask.)
    auto known = mask ? mask.getDefiningOp<vector::ConstantMaskOp>() : nullptr;
    if (known && known.getMaskDimSizes()[0] == 1) {
      Value first = vector::ExtractOp::create(b_, loc_, value, ArrayRef<int64_t>{0});
      memref::StoreOp::create(b_, loc_, first, access.view, at);
      return;
    }
    if (mask)
      vector::MaskedStoreOp::create(b_, loc_, access.view, at, mask, value);
    else
      vector::StoreOp::create(b_, loc_, value, access.view, at,
                              /*nontemporal=*/storesStream_ && width == width_,
                              storesStream_ && width == width_
                                  ? llvm::MaybeAlign(static_cast<uint64_t>(vectorBytes(access)))
                                  : llvm::MaybeAlign());
    return;
  }
  if (!mask)
    mask = wholeMask(width);
  vector::ScatterOp::create(b_, loc_, Type(), access.view, ValueRange{at},
                            laneOffsets(width, stride), mask, value);
}

} // namespace normforge::tile
