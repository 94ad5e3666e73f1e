#include "compiler/target/HalfPrecision.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/TypeUtilities.h"
#include "mlir/Transforms/DialectConversion.h"

namespace normforge {

using namespace mlir;

namespace {

/// Arithmetic on all lanes of a vector, or on a scalar.
struct Lanes {
  OpBuilder &b;
  Location loc;
  Type shape; ///< of the value: its lanes

  Type of(Type element) const {
    auto vector = dyn_cast<VectorType>(shape);
    return vector ? Type(vector.clone(element)) : element;
  }
  Type words() const { return of(b.getI32Type()); }
  Value splat(Type element, Attribute value) const {
    Type type = of(element);
    auto vector = dyn_cast<VectorType>(type);
    return arith::ConstantOp::create(
        b, loc, vector ? TypedAttr(DenseElementsAttr::get(vector, value)) : cast<TypedAttr>(value));
  }
  Value word(uint32_t value) const {
    return splat(b.getI32Type(), b.getI32IntegerAttr(static_cast<int32_t>(value)));
  }
  Value number(double value) const {
    return splat(b.getF32Type(), b.getF32FloatAttr(static_cast<float>(value)));
  }
  Value bits(Value x) const { return arith::BitcastOp::create(b, loc, words(), x); }
  Value asFloat(Value x) const { return arith::BitcastOp::create(b, loc, of(b.getF32Type()), x); }
  Value add(Value x, Value y) const { return arith::AddIOp::create(b, loc, x, y); }
  Value sub(Value x, Value y) const { return arith::SubIOp::create(b, loc, x, y); }
  Value both(Value x, Value y) const { return arith::AndIOp::create(b, loc, x, y); }
  Value either(Value x, Value y) const { return arith::OrIOp::create(b, loc, x, y); }
  Value left(Value x, uint32_t by) const { return arith::ShLIOp::create(b, loc, x, word(by)); }
  Value right(Value x, uint32_t by) const { return arith::ShRUIOp::create(b, loc, x, word(by)); }
  Value below(Value x, Value y) const { // both below 2^31
    return arith::CmpIOp::create(b, loc, arith::CmpIPredicate::slt, x, y);
  }
  Value choose(Value condition, Value x, Value y) const {
    return arith::SelectOp::create(b, loc, condition, x, y);
  }
  /// The half-precision number whose bits are the low 16 of each word, and back.
  Value narrow(Value x, Type element) const {
    Value halves = arith::TruncIOp::create(b, loc, of(b.getI16Type()), x);
    return arith::BitcastOp::create(b, loc, of(element), halves);
  }
  Value widen(Value x) const {
    Value halves = arith::BitcastOp::create(b, loc, of(b.getI16Type()), x);
    return arith::ExtUIOp::create(b, loc, words(), halves);
  }
};

Value widenBf16(const Lanes &l, Value x) { return l.asFloat(l.left(l.widen(x), 16)); }

/// The words whose high halves are the bf16 nearest to `x`.
Value roundToBf16(const Lanes &l, Value x) {
  Value bits = l.bits(x);
  // Half of the last place, or just below where the kept part is even: ties go to even.
  Value odd = l.both(l.right(bits, 16), l.word(1));
  Value rounded = l.add(bits, l.add(odd, l.word(0x7FFF)));
  Value quiet = l.either(bits, l.word(0x400000));
  Value isNan = arith::CmpFOp::create(l.b, l.loc, arith::CmpFPredicate::UNO, x, x);
  return l.choose(isNan, quiet, rounded);
}

Value narrowBf16(const Lanes &l, Value x, Type element) {
  return l.narrow(l.right(roundToBf16(l, x), 16), element);
}

/// Exponent and mantissa go where f32 has them, and the exponent's offset from 15 to 127; the
/// largest one, of infinities and NaN, becomes f32's. A denormal number is its mantissa times
/// 2^-24: no step has a denormal f32, which a caller's flush mode would make 0.
Value widenF16(const Lanes &l, Value x) {
  Value half = l.widen(x);
  Value sign = l.left(l.both(half, l.word(0x8000)), 16);
  Value magnitude = l.both(half, l.word(0x7FFF));
  Value moved = l.left(magnitude, 13);
  Value normal = l.add(moved, l.word((127 - 15) << 23));
  Value counted = arith::SIToFPOp::create(l.b, l.loc, l.of(l.b.getF32Type()), magnitude);
  Value denormal = l.bits(arith::MulFOp::create(l.b, l.loc, counted, l.number(0x1p-24)));
  Value result = l.choose(l.below(magnitude, l.word(0x0400)), denormal, normal);
  result =
      l.choose(l.below(magnitude, l.word(0x7C00)), result, l.either(moved, l.word(0x7F800000)));
  return l.asFloat(l.either(result, sign));
}

/// Normal results round like those of bf16, after the exponent's offset has changed from 127 to 15.
/// Denormal ones are rounded by adding 0.5, whose last place is theirs (2^-24). From 65520 on, what
/// rounds to an exponent too large for f16 is infinite; 65536 and more would wrap around.
Value narrowF16(const Lanes &l, Value x, Type element) {
  Value bits = l.bits(x);
  Value sign = l.right(l.both(bits, l.word(0x80000000)), 16);
  Value magnitude = l.both(bits, l.word(0x7FFFFFFF));
  Value odd = l.both(l.right(magnitude, 13), l.word(1));
  Value offset = l.word(static_cast<uint32_t>((15 - 127) * (1 << 23) + 0xFFF));
  Value normal = l.right(l.add(l.add(magnitude, offset), odd), 13);
  Value sum = arith::AddFOp::create(l.b, l.loc, l.asFloat(magnitude), l.number(0.5));
  Value denormal = l.sub(l.bits(sum), l.word(0x3F000000));
  Value result = l.choose(l.below(magnitude, l.word(0x38800000)), denormal, normal);
  Value isNan = l.below(l.word(0x7F800000), magnitude);
  Value large = l.choose(isNan, l.word(0x7E00), l.word(0x7C00));
  result = l.choose(l.below(magnitude, l.word(0x47800000)), result, large);
  return l.narrow(l.either(result, sign), element);
}

/// Which conversions are made of integer arithmetic.
struct Expanded {
  bool widensBf16, narrowsBf16, f16;
};

template <typename Op> struct Expand : OpConversionPattern<Op> {
  Expanded expanded;
  Expand(const LLVMTypeConverter &types, MLIRContext *context, Expanded expanded)
      : OpConversionPattern<Op>(types, context, PatternBenefit(2)), expanded(expanded) {}

  LogicalResult matchAndRewrite(Op op, typename Op::Adaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    const Type from = getElementTypeOrSelf(op.getIn().getType());
    const Type to = getElementTypeOrSelf(op.getType());
    const Lanes lanes{b, op.getLoc(), op.getType()};
    Value value = adaptor.getIn(), result;
    if (from.isBF16() && to.isF32() && expanded.widensBf16)
      result = widenBf16(lanes, value);
    else if (from.isF32() && to.isBF16() && expanded.narrowsBf16)
      result = narrowBf16(lanes, value, to);
    else if (from.isF16() && to.isF32() && expanded.f16)
      result = widenF16(lanes, value);
    else if (from.isF32() && to.isF16() && expanded.f16)
      result = narrowF16(lanes, value, to);
    if (!result)
      return failure();
    b.replaceOp(op, result);
    return success();
  }
};

// Single lanes of half precision are moved as integers: LLVM converts a number that is put into or
// taken out of a vector by a call where the CPU has none of its type.

/// The integer of a half-precision number's bits; null for other types.
Type bitsOf(Type element) {
  return element.isBF16() || element.isF16() ? Type(IntegerType::get(element.getContext(), 16))
                                             : Type();
}
Value asVector(OpBuilder &b, Location loc, Value value, Type element) {
  return vector::BitCastOp::create(b, loc, cast<VectorType>(value.getType()).clone(element), value);
}

struct ExtractLane : OpConversionPattern<vector::ExtractOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(vector::ExtractOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    const Type bits = bitsOf(op.getType());
    if (!bits)
      return failure();
    Value lane = vector::ExtractOp::create(b, op.getLoc(),
                                           asVector(b, op.getLoc(), adaptor.getSource(), bits),
                                           op.getStaticPosition());
    b.replaceOpWithNewOp<arith::BitcastOp>(op, op.getType(), lane);
    return success();
  }
};

struct InsertLane : OpConversionPattern<vector::InsertOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(vector::InsertOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    const Type element = adaptor.getValueToStore().getType(), bits = bitsOf(element);
    if (!bits)
      return failure();
    Value lane = arith::BitcastOp::create(b, op.getLoc(), bits, adaptor.getValueToStore());
    Value whole = vector::InsertOp::create(b, op.getLoc(), lane,
                                           asVector(b, op.getLoc(), adaptor.getDest(), bits),
                                           op.getStaticPosition());
    b.replaceOp(op, asVector(b, op.getLoc(), whole, element));
    return success();
  }
};

struct BroadcastLane : OpConversionPattern<vector::BroadcastOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(vector::BroadcastOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    const Type element = adaptor.getSource().getType(), bits = bitsOf(element);
    if (!bits)
      return failure();
    Value lane = arith::BitcastOp::create(b, op.getLoc(), bits, adaptor.getSource());
    Value whole = vector::BroadcastOp::create(b, op.getLoc(),
                                              cast<VectorType>(op.getType()).clone(bits), lane);
    b.replaceOp(op, asVector(b, op.getLoc(), whole, element));
    return success();
  }
};

struct GatherLanes : OpConversionPattern<vector::FromElementsOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(vector::FromElementsOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    const Type element = op.getType().getElementType(), bits = bitsOf(element);
    if (!bits)
      return failure();
    SmallVector<Value> lanes;
    for (Value lane : adaptor.getElements())
      lanes.push_back(arith::BitcastOp::create(b, op.getLoc(), bits, lane));
    Value whole = vector::FromElementsOp::create(b, op.getLoc(), op.getType().clone(bits), lanes);
    b.replaceOp(op, asVector(b, op.getLoc(), whole, element));
    return success();
  }
};

/// Even and odd elements as f32.
void widenPair(vector::DeinterleaveOp apart) {
  OpBuilder b(apart);
  const Lanes l{b, apart.getLoc(), apart.getRes1().getType()};
  Value words = vector::BitCastOp::create(b, l.loc, cast<VectorType>(l.words()), apart.getSource());
  for (OpResult half : apart->getResults())
    for (Operation *user : llvm::make_early_inc_range(half.getUsers()))
      if (isa<arith::ExtFOp>(user) && getElementTypeOrSelf(user->getResult(0)).isF32()) {
        Value wide =
            half.getResultNumber() == 0 ? l.left(words, 16) : l.both(words, l.word(0xFFFF0000));
        user->getResult(0).replaceAllUsesWith(l.asFloat(wide));
        user->erase();
      }
  if (apart->use_empty())
    apart.erase();
}

/// The even and the odd elements' f32, narrowed and put together.
void narrowPair(vector::InterleaveOp together, bool hasInstruction) {
  auto even = together.getLhs().getDefiningOp<arith::TruncFOp>();
  auto odd = together.getRhs().getDefiningOp<arith::TruncFOp>();
  if (!even || !odd || !getElementTypeOrSelf(even.getIn()).isF32() ||
      !getElementTypeOrSelf(odd.getIn()).isF32())
    return;
  OpBuilder b(together);
  const Lanes l{b, together.getLoc(), even.getType()};
  const auto type = cast<VectorType>(together.getType());
  Value result;
  const int64_t lanes = type.getNumElements() / 2;
  if (hasInstruction && lanes >= 4) {
    // One vector's elements after the other's, which one permutation puts between each other.
    const std::string name = "llvm.x86.avx512bf16.cvtne2ps2bf16." + std::to_string(lanes * 32);
    Value packed = LLVM::CallIntrinsicOp::create(b, l.loc, type, b.getStringAttr(name),
                                                 ValueRange{odd.getIn(), even.getIn()})
                       .getResult(0);
    packed = asVector(b, l.loc, packed, b.getI16Type());
    SmallVector<int64_t> order;
    for (int64_t i = 0; i < 2 * lanes; ++i)
      order.push_back(i / 2 + i % 2 * lanes);
    Value mixed = vector::ShuffleOp::create(b, l.loc, packed, packed, order);
    result = asVector(b, l.loc, mixed, type.getElementType());
  } else {
    Value low = l.right(roundToBf16(l, even.getIn()), 16);
    Value high = l.both(roundToBf16(l, odd.getIn()), l.word(0xFFFF0000));
    result = vector::BitCastOp::create(b, l.loc, type, l.either(low, high));
  }
  together.replaceAllUsesWith(result);
  together.erase();
  if (even->use_empty())
    even.erase();
  if (odd != even && odd->use_empty())
    odd.erase();
}

} // namespace

bool hasBf16Rounding(const TargetDescription &target) {
  return target.isX86() ? target.has("avx512bf16") && target.has("avx512vl") : target.has("bf16");
}

void convertPairedHalves(ModuleOp module, bool hasInstruction) {
  SmallVector<vector::DeinterleaveOp> apart;
  SmallVector<vector::InterleaveOp> together;
  module.walk([&](Operation *op) {
    if (auto pair = dyn_cast<vector::DeinterleaveOp>(op);
        pair && getElementTypeOrSelf(pair.getSource()).isBF16())
      apart.push_back(pair);
    else if (auto pair = dyn_cast<vector::InterleaveOp>(op);
             pair && getElementTypeOrSelf(pair.getType()).isBF16())
      together.push_back(pair);
  });
  for (vector::DeinterleaveOp pair : apart)
    widenPair(pair);
  for (vector::InterleaveOp pair : together)
    narrowPair(pair, hasInstruction);
}

void populateHalfPrecisionPatterns(LLVMTypeConverter &types, RewritePatternSet &patterns,
                                   const TargetDescription &target) {
  Expanded expanded;
  expanded.widensBf16 = true; // a shift, everywhere
  expanded.narrowsBf16 = !hasBf16Rounding(target);
  expanded.f16 = target.isX86() && !target.has("f16c");
  patterns.add<Expand<arith::ExtFOp>, Expand<arith::TruncFOp>>(types, patterns.getContext(),
                                                               expanded);
  patterns.add<ExtractLane, InsertLane, BroadcastLane, GatherLanes>(types, patterns.getContext(),
                                                                    PatternBenefit(2));
}

} // namespace normforge
