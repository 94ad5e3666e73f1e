// The constants of a function, one of each.
#pragma once

#include "compiler/passes/Width.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/TypeUtilities.h"

namespace normforge {

/// Makes constants, and what does not change while a process runs, at the beginning of a function
/// and gives each of them again where it is asked for again: every operation costs some
/// microseconds until it is machine code.
class Constants {
public:
  /// `entry` is the function's first block and outlives this.
  explicit Constants(mlir::Block &entry) : entry_(entry) {}

  mlir::Value get(mlir::Location loc, mlir::TypedAttr attribute) {
    mlir::Value &value = values_[attribute];
    if (!value) {
      mlir::OpBuilder b(&entry_, entry_.begin());
      value = mlir::arith::ConstantOp::create(b, loc, attribute);
    }
    return value;
  }
  mlir::Value index(mlir::Location loc, int64_t v) {
    return get(loc, mlir::Builder(loc.getContext()).getIndexAttr(v));
  }
  /// The lanes of a vector of this width.
  mlir::Value lanes(mlir::Location loc, Width width) {
    if (!width.scalable)
      return index(loc, width.lanes);
    mlir::Value &value = scaled_[width.lanes];
    if (!value) {
      if (!scale_) {
        mlir::OpBuilder b(&entry_, entry_.begin());
        scale_ = mlir::vector::VectorScaleOp::create(b, loc);
      }
      mlir::OpBuilder b(scale_.getContext());
      b.setInsertionPointAfterValue(scale_);
      mlir::Value factor = mlir::arith::ConstantIndexOp::create(b, loc, width.lanes);
      value = mlir::arith::MulIOp::create(b, loc, scale_, factor);
    }
    return value;
  }
  /// Zero, or a vector of zeros.
  mlir::Value zero(mlir::Location loc, mlir::Type type) {
    return get(loc, mlir::Builder(loc.getContext()).getZeroAttr(type));
  }
  /// -inf, or a vector of it.
  mlir::Value lowest(mlir::Location loc, mlir::Type type) {
    auto element = llvm::cast<mlir::FloatType>(mlir::getElementTypeOrSelf(type));
    mlir::TypedAttr least = mlir::FloatAttr::get(
        element, llvm::APFloat::getInf(element.getFloatSemantics(), /*Negative=*/true));
    auto vector = llvm::dyn_cast<mlir::VectorType>(type);
    return get(loc, vector ? mlir::DenseElementsAttr::get(vector, mlir::Attribute(least)) : least);
  }

private:
  mlir::Block &entry_;
  llvm::DenseMap<mlir::Attribute, mlir::Value> values_;
  mlir::Value scale_; ///< multiples of their least length that scalable vectors have
  llvm::DenseMap<int64_t, mlir::Value> scaled_;
};

} // namespace normforge
