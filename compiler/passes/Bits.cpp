// Loads and stores of vectors of bits, in words of 16.
//
// A row's bits begin with a word, and vectors have a power of two of lanes, 16 at most, so that one
// that begins at a multiple of them lies in one word:
//
//   lanes of 4   | 0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3 | 4 4 4 4 ...     bit 0 first
//   lanes of 16  | 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 | 1 1 1 1 ...
//
// One that begins anywhere (rows that are written past the caches, from an aligned address on) lies
// in two:
//
//   lanes of 16  | . . . . . 0 0 0 0 0 0 0 0 0 0 0 | 0 0 0 0 0 1 1 1 ...
//
// Of a GPU's threads each has some lanes of a word. Those of one word exchange them, and the first
// stores it; it begins at a multiple of a word's lanes, and no word is written twice.
//
// Rules that a change must keep: only words of which an element of the row has a bit are read or
// written, for those beside them may be another task's; a row's vectors are stored in their order,
// and the one that has the first bit of a word begins it with zeros, so that bits past a row's end
// are 0.
#include "compiler/passes/StepEmitter.h"

#include "runtime/artifact/Artifact.h"

#include <bit>

namespace normforge::tile {

constexpr int64_t kWord = elementsPerWord(DType::Bit);
constexpr int64_t kLogWord = std::countr_zero(static_cast<uint64_t>(kWord));

StepEmitter::Words StepEmitter::wordsOf(const Access &access, const Place &place,
                                        const Spot &spot) {
  auto wordOf = [&](Value bit) {
    return Value(arith::ShRUIOp::create(b_, loc_, bit, constant(kLogWord)));
  };
  Value first = indexValue(add(place.offset, OpFoldResult(elementIndex(access, spot))));
  Words words;
  words.first = words.last = wordOf(first);
  Value shift = arith::AndIOp::create(b_, loc_, first, constant(kWord - 1));
  words.shift = arith::IndexCastOp::create(b_, loc_, b_.getI32Type(), shift);
  words.crosses = spot.shifted && !spot.width.isScalar();
  if (words.crosses) {
    // Both are indices in the row: where the vector begins, and its last lane that exists.
    OpFoldResult begin = add(spot.index, spot.plus);
    OpFoldResult end = sizes().min(add(begin, spot.width.lanes - 1), add(laneLoop().extent, -1));
    words.last = wordOf(indexValue(add(OpFoldResult(first), sizes().sub(end, begin))));
  }
  return words;
}

Value StepEmitter::word(Value view, Value at) {
  Value loaded = memref::LoadOp::create(b_, loc_, view, at);
  return arith::ExtUIOp::create(b_, loc_, b_.getI32Type(), loaded);
}

Value StepEmitter::loadBits(const Access &access, const Place &place, const Spot &spot) {
  const Words words = wordsOf(access, place, spot);
  const int64_t lanes = spot.width.lanes;
  Value bits = word(place.view, words.first);
  if (words.crosses)
    bits = arith::OrIOp::create(
        b_, loc_, bits, arith::ShLIOp::create(b_, loc_, word(place.view, words.last), i32(kWord)));
  if (words.crosses || lanes < kWord)
    bits = arith::ShRUIOp::create(b_, loc_, bits, words.shift);
  if (spot.width.isScalar())
    return arith::TruncIOp::create(b_, loc_, b_.getI1Type(), bits);
  auto type = spot.width.vector(b_.getI1Type());
  if (lanes < 8 || knobs_.threads > 0) { // no integer of a machine: each lane asks for its own
    SmallVector<int32_t> own;
    for (int64_t i = 0; i < lanes; ++i)
      own.push_back(1 << i);
    auto wide = spot.width.vector(b_.getI32Type());
    Value each = arith::AndIOp::create(
        b_, loc_, vector::BroadcastOp::create(b_, loc_, wide, bits),
        constants_.get(loc_, DenseElementsAttr::get(wide, ArrayRef<int32_t>(own))));
    return arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::ne, each,
                                 constants_.zero(loc_, wide));
  }
  Type integer = b_.getIntegerType(static_cast<unsigned>(lanes));
  Value packed = vector::BroadcastOp::create(b_, loc_, VectorType::get({1}, integer),
                                             arith::TruncIOp::create(b_, loc_, integer, bits));
  return vector::BitCastOp::create(b_, loc_, type, packed);
}

void StepEmitter::storeBits(const Access &access, const Place &place, const Spot &spot,
                            Value value) {
  const Words words = wordsOf(access, place, spot);
  const int64_t lanes = spot.width.lanes;
  if (spot.mask)
    value = arith::AndIOp::create(b_, loc_, value, spot.mask);
  if (!spot.width.isScalar()) {
    auto packed = VectorType::get({1}, b_.getIntegerType(static_cast<unsigned>(lanes)));
    value = vector::ExtractOp::create(b_, loc_, vector::BitCastOp::create(b_, loc_, packed, value),
                                      ArrayRef<int64_t>{0});
  }
  Value bits = arith::ExtUIOp::create(b_, loc_, b_.getI32Type(), value);
  auto put = [&](Value of, Value at) {
    memref::StoreOp::create(b_, loc_, arith::TruncIOp::create(b_, loc_, b_.getI16Type(), of),
                            place.view, at);
  };
  if (!words.crosses && lanes == kWord)
    return put(bits, words.first);
  bits = arith::ShLIOp::create(b_, loc_, bits, words.shift);
  Value begins = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::eq, words.shift, i32(0));
  Value before = arith::SelectOp::create(b_, loc_, begins, i32(0), word(place.view, words.first));
  // The last word, and then the first, which may be the same.
  if (words.crosses)
    put(arith::ShRUIOp::create(b_, loc_, bits, i32(kWord)), words.last);
  put(arith::OrIOp::create(b_, loc_, bits, before), words.first);
}

void StepEmitter::storeSharedBits(const Access &access, const Place &place, const Spot &spot,
                                  Value value) {
  const Words words = wordsOf(access, place, spot);
  const int64_t lanes = spot.width.lanes;
  Value bits = i32(0);
  for (int64_t i = 0; i < lanes; ++i) {
    Value one = spot.width.isScalar()
                    ? value
                    : vector::ExtractOp::create(b_, loc_, value, ArrayRef<int64_t>{i});
    one = arith::ShLIOp::create(b_, loc_, arith::ExtUIOp::create(b_, loc_, b_.getI32Type(), one),
                                i32(static_cast<int32_t>(i)));
    bits = arith::OrIOp::create(b_, loc_, bits, one);
  }
  Value active = isActive(place, spot);
  if (active) // bits past a row's end are 0
    bits = arith::SelectOp::create(b_, loc_, active, bits, i32(0));
  bits = arith::ShLIOp::create(b_, loc_, bits, words.shift);
  const int64_t threads = kWord / lanes;
  for (int64_t distance = 1; distance < threads; distance *= 2)
    bits = arith::OrIOp::create(b_, loc_, bits, exchanged(bits, distance, threads));
  Value stores = arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::eq, words.shift, i32(0));
  if (active)
    stores = arith::AndIOp::create(b_, loc_, stores, active);
  OpBuilder::InsertionGuard guard(b_);
  b_.setInsertionPointToStart(scf::IfOp::create(b_, loc_, stores, false).thenBlock());
  memref::StoreOp::create(b_, loc_, arith::TruncIOp::create(b_, loc_, b_.getI16Type(), bits),
                          place.view, words.first);
}

} // namespace normforge::tile
