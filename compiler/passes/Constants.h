// The constants of a function, one of each.
#pragma once

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/Builders.h"

namespace normforge {

/// Makes constants at the beginning of a function and gives each of them again where it is asked
/// for again: every operation costs some microseconds until it is machine code.
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
  /// Zero, or a vector of zeros.
  mlir::Value zero(mlir::Location loc, mlir::Type type) {
    return get(loc, mlir::Builder(loc.getContext()).getZeroAttr(type));
  }

private:
  mlir::Block &entry_;
  llvm::DenseMap<mlir::Attribute, mlir::Value> values_;
};

} // namespace normforge
