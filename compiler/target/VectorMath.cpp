#include "compiler/target/VectorMath.h"

#include "compiler/target/VectorMathPatterns.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/IR/TypeUtilities.h"

namespace normforge {

using namespace mlir;

namespace {

/// Arithmetic on values: vectors of any length, and scalars.
struct ValueOps {
  using Number = Value;
  using Integer = Value;
  using Condition = Value;

  OpBuilder &b;
  Location loc;
  Type type; ///< of the numbers
  bool isF64;

  ValueOps(OpBuilder &b, Location loc, Type type)
      : b(b), loc(loc), type(type), isF64(getElementTypeOrSelf(type).isF64()) {}

  Type words() const {
    Type word = isF64 ? b.getI64Type() : b.getI32Type();
    auto vector = dyn_cast<VectorType>(type);
    return vector ? Type(vector.clone(word)) : word;
  }
  Value splat(Type of, TypedAttr value) const {
    auto vector = dyn_cast<VectorType>(of);
    return arith::ConstantOp::create(
        b, loc, vector ? TypedAttr(DenseElementsAttr::get(vector, Attribute(value))) : value);
  }
  Value number(double v) const {
    return splat(type, b.getFloatAttr(getElementTypeOrSelf(type), v));
  }
  Value integer(int64_t v) const {
    return splat(words(), b.getIntegerAttr(getElementTypeOrSelf(words()), v));
  }
  Value add(Value x, Value y) const { return arith::AddFOp::create(b, loc, x, y); }
  Value sub(Value x, Value y) const { return arith::SubFOp::create(b, loc, x, y); }
  Value mul(Value x, Value y) const { return arith::MulFOp::create(b, loc, x, y); }
  Value div(Value x, Value y) const { return arith::DivFOp::create(b, loc, x, y); }
  Value fma(Value x, Value y, Value z) const { return math::FmaOp::create(b, loc, x, y, z); }
  Value less(Value x, Value y) const {
    return arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OLT, x, y);
  }
  Value select(Value condition, Value x, Value y) const {
    return arith::SelectOp::create(b, loc, condition, x, y);
  }
  Value bits(Value x) const { return arith::BitcastOp::create(b, loc, words(), x); }
  Value asNumber(Value x) const { return arith::BitcastOp::create(b, loc, type, x); }
  Value addI(Value x, Value y) const { return arith::AddIOp::create(b, loc, x, y); }
  Value subI(Value x, Value y) const { return arith::SubIOp::create(b, loc, x, y); }
  Value andI(Value x, Value y) const { return arith::AndIOp::create(b, loc, x, y); }
  Value orI(Value x, Value y) const { return arith::OrIOp::create(b, loc, x, y); }
  Value shiftLeft(Value x, int count) const {
    return arith::ShLIOp::create(b, loc, x, integer(count));
  }
  Value shiftRight(Value x, int count) const {
    return arith::ShRSIOp::create(b, loc, x, integer(count));
  }
};

using Emitter = vector_math::Functions<ValueOps>;

/// A function of MLIR's math dialect as arithmetic.
template <typename Op, Value (Emitter::*emit)(Value)> struct Expand : OpRewritePattern<Op> {
  using OpRewritePattern<Op>::OpRewritePattern;
  LogicalResult matchAndRewrite(Op op, PatternRewriter &b) const override {
    const Type element = getElementTypeOrSelf(op.getType());
    if (!element.isF32() && !element.isF64())
      return failure();
    Emitter emitter(ValueOps(b, op.getLoc(), op.getType()));
    b.replaceOp(op, (emitter.*emit)(op.getOperand()));
    return success();
  }
};

} // namespace

void populateVectorMathPatterns(RewritePatternSet &patterns) {
  patterns.add<Expand<math::ExpOp, &Emitter::exp>, Expand<math::ExpM1Op, &Emitter::expm1>,
               Expand<math::LogOp, &Emitter::log>, Expand<math::Log1pOp, &Emitter::log1p>,
               Expand<math::ErfOp, &Emitter::erf>, Expand<math::TanhOp, &Emitter::tanh>>(
      patterns.getContext(), PatternBenefit(2));
}

} // namespace normforge
