// Arithmetic on sizes and indices that folds what is known.
#pragma once

#include "compiler/passes/Constants.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Arith/Utils/Utils.h"
#include "mlir/Dialect/Utils/StaticValueUtils.h"

#include <algorithm>

namespace normforge {

/// Arithmetic on sizes, folded where they are static.
struct SizeArithmetic {
  mlir::OpBuilder &b;
  mlir::Location loc;
  Constants &constants;

  mlir::Value value(mlir::OpFoldResult size) const {
    if (auto known = mlir::getConstantIntValue(size))
      return constants.index(loc, *known);
    return llvm::cast<mlir::Value>(size);
  }
  mlir::OpFoldResult constant(int64_t v) const { return b.getIndexAttr(v); }
  mlir::OpFoldResult add(mlir::OpFoldResult x, mlir::OpFoldResult y) const {
    auto cx = mlir::getConstantIntValue(x), cy = mlir::getConstantIntValue(y);
    if (cx && cy)
      return constant(*cx + *cy);
    if (cx == 0)
      return y;
    if (cy == 0)
      return x;
    return mlir::arith::AddIOp::create(b, loc, value(x), value(y)).getResult();
  }
  mlir::OpFoldResult sub(mlir::OpFoldResult x, mlir::OpFoldResult y) const {
    auto cx = mlir::getConstantIntValue(x), cy = mlir::getConstantIntValue(y);
    if (cx && cy)
      return constant(*cx - *cy);
    if (cy == 0)
      return x;
    return mlir::arith::SubIOp::create(b, loc, value(x), value(y)).getResult();
  }
  mlir::OpFoldResult mul(mlir::OpFoldResult x, mlir::OpFoldResult y) const {
    auto cx = mlir::getConstantIntValue(x), cy = mlir::getConstantIntValue(y);
    if (cx && cy)
      return constant(*cx * *cy);
    if (cx == 1)
      return y;
    if (cy == 1)
      return x;
    return mlir::arith::MulIOp::create(b, loc, value(x), value(y)).getResult();
  }
  mlir::OpFoldResult div(mlir::OpFoldResult x, mlir::OpFoldResult y) const {
    auto cx = mlir::getConstantIntValue(x), cy = mlir::getConstantIntValue(y);
    if (cx && cy)
      return constant(*cx / *cy);
    if (cy == 1)
      return x;
    return mlir::arith::DivUIOp::create(b, loc, value(x), value(y)).getResult();
  }
  mlir::OpFoldResult div(mlir::OpFoldResult x, int64_t y) const { return div(x, constant(y)); }
  mlir::OpFoldResult ceilDiv(mlir::OpFoldResult x, mlir::OpFoldResult y) const {
    return mlir::getConstantIntValue(y) == 1 ? x : div(add(x, sub(y, constant(1))), y);
  }
  mlir::OpFoldResult ceilDiv(mlir::OpFoldResult x, int64_t y) const {
    return ceilDiv(x, constant(y));
  }
  /// The largest multiple of y that is not beyond x.
  mlir::OpFoldResult roundDown(mlir::OpFoldResult x, Width y) const {
    auto cx = mlir::getConstantIntValue(x);
    if (cx && !y.scalable)
      return constant(*cx / y.lanes * y.lanes);
    if (y.isScalar())
      return x;
    return sub(x,
               mlir::arith::RemUIOp::create(b, loc, value(x), constants.lanes(loc, y)).getResult());
  }
  mlir::OpFoldResult lanes(Width width) const {
    return width.scalable ? mlir::OpFoldResult(constants.lanes(loc, width)) : constant(width.lanes);
  }
  mlir::OpFoldResult min(mlir::OpFoldResult x, mlir::OpFoldResult y) const {
    auto cx = mlir::getConstantIntValue(x), cy = mlir::getConstantIntValue(y);
    if (cx && cy)
      return constant(std::min(*cx, *cy));
    return mlir::arith::MinSIOp::create(b, loc, value(x), value(y)).getResult();
  }
  mlir::OpFoldResult max(mlir::OpFoldResult x, mlir::OpFoldResult y) const {
    auto cx = mlir::getConstantIntValue(x), cy = mlir::getConstantIntValue(y);
    if (cx && cy)
      return constant(std::max(*cx, *cy));
    if (cx == 0 || cy == 0) // sizes are no less
      return cx == 0 ? y : x;
    return mlir::arith::MaxSIOp::create(b, loc, value(x), value(y)).getResult();
  }
  /// An expression whose symbols are the named sizes.
  mlir::OpFoldResult evaluate(mlir::AffineExpr expr, mlir::ValueRange symbols) const {
    if (auto c = llvm::dyn_cast<mlir::AffineConstantExpr>(expr))
      return constant(c.getValue());
    if (auto s = llvm::dyn_cast<mlir::AffineSymbolExpr>(expr))
      return symbols[s.getPosition()];
    auto binary = llvm::cast<mlir::AffineBinaryOpExpr>(expr);
    mlir::OpFoldResult left = evaluate(binary.getLHS(), symbols);
    mlir::OpFoldResult right = evaluate(binary.getRHS(), symbols);
    switch (expr.getKind()) {
    case mlir::AffineExprKind::Add:
      return add(left, right);
    case mlir::AffineExprKind::Mul:
      return mul(left, right);
    case mlir::AffineExprKind::CeilDiv:
      return ceilDiv(left, right);
    default:
      return div(left, right);
    }
  }
};

} // namespace normforge
