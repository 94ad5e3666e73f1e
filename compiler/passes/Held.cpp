// Vectors that a thread holds from step to step.
#include "compiler/passes/StepEmitter.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

namespace normforge::tile {

std::optional<HeldPlace> StepEmitter::heldPlace(const Access &access, const Cursor &at,
                                                const Spot &spot) const {
  // Within the iterations that are emitted one after the other, of what each of them has its own.
  if (at.held == 0 || access.isBits() || access.fresh)
    return std::nullopt;
  for (size_t i = 0; i < context_.loops.size(); ++i)
    if (!llvm::is_contained(access.loopOfAxis, static_cast<int>(i)))
      return std::nullopt; // a parameter of a row
  HeldPlace place = access.slice;
  for (int loop : access.loopOfAxis)
    place.push_back(static_cast<uintptr_t>(loop < 0                    ? 0
                                           : loop == context_.slotLoop ? spot.slot.offset
                                                                       : at.iterations[loop]));
  return place;
}

Value StepEmitter::loadHeld(const Access &access, const Place &place, const Cursor &at,
                            const Spot &spot) {
  const auto where = heldPlace(access, at, spot);
  if (!where)
    return load(access, place, spot);
  Value &held = held_[*where];
  if (!held) {
    Value loaded = load(access, place, spot);
    held = bitsOf(loaded);
    return loaded;
  }
  held = unextended(held);
  Type type = spot.width.type(access.element());
  return held.getType() == type ? held : Value(arith::BitcastOp::create(b_, loc_, type, held));
}

/// Numbers of half precision stay in registers as the integers that they are in memory: LLVM would
/// keep them as f32 on CPUs that emulate, and call a function to narrow them.
Value StepEmitter::bitsOf(Value value) {
  const Type element = getElementTypeOrSelf(value.getType());
  if (element.getIntOrFloatBitWidth() != 16)
    return value;
  auto vector = dyn_cast<VectorType>(value.getType());
  Type bits = b_.getI16Type();
  return arith::BitcastOp::create(b_, loc_, vector ? Type(vector.clone(bits)) : bits, value);
}

SmallVector<Value> opaque(OpBuilder &b, Location loc, ArrayRef<Value> words) {
  const size_t count = words.size();
  std::string constraints;
  for (size_t i = 0; i < count; ++i)
    constraints += "=r,";
  for (size_t i = 0; i < count; ++i)
    constraints += std::to_string(i) + (i + 1 < count ? "," : "");
  const SmallVector<Type> types(count, b.getI32Type());
  Type type = count == 1 ? types[0] : LLVM::LLVMStructType::getLiteral(b.getContext(), types);
  auto nothing = LLVM::InlineAsmOp::create(
      b, loc, type, words, b.getStringAttr(""), b.getStringAttr(constraints),
      /*has_side_effects=*/b.getUnitAttr(), /*is_align_stack=*/UnitAttr(),
      LLVM::TailCallKindAttr::get(b.getContext(), LLVM::tailcallkind::TailCallKind::None),
      LLVM::AsmDialectAttr(), /*operand_attrs=*/ArrayAttr());
  if (count == 1)
    return {nothing.getResult(0)};
  SmallVector<Value> results;
  for (size_t i = 0; i < count; ++i)
    results.push_back(
        LLVM::ExtractValueOp::create(b, loc, nothing.getResult(0), static_cast<int64_t>(i)));
  return results;
}

/// LLVM would make the f32 of a half once for all steps, and hold twice the registers.
Value StepEmitter::unextended(Value vector) {
  if (vector.getType().isInteger(16)) {
    Value word = arith::ExtUIOp::create(b_, loc_, b_.getI32Type(), vector);
    return arith::TruncIOp::create(b_, loc_, vector.getType(), opaque(b_, loc_, {word})[0]);
  }
  auto type = dyn_cast<VectorType>(vector.getType());
  if (!type || type.getElementTypeBitWidth() != 16 || type.getNumElements() % 2 != 0)
    return vector;
  const int64_t count = type.getNumElements() / 2;
  Value packed =
      vector::BitCastOp::create(b_, loc_, VectorType::get({count}, b_.getI32Type()), vector);
  SmallVector<Value> words;
  for (int64_t i = 0; i < count; ++i)
    words.push_back(vector::ExtractOp::create(b_, loc_, packed, ArrayRef<int64_t>{i}));
  packed = vector::FromElementsOp::create(b_, loc_, packed.getType(), opaque(b_, loc_, words));
  return vector::BitCastOp::create(b_, loc_, type, packed);
}

} // namespace normforge::tile
