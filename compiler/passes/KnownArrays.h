// Arrays whose elements a kernel has within it, as constants of its module.
#pragma once

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/IR/Builders.h"

namespace normforge {

/// One constant for all arrays of the same elements. Global memory of a GPU is address space 1.
class KnownArrays {
public:
  explicit KnownArrays(unsigned addressSpace) : addressSpace_(addressSpace) {}

  /// A pointer to the constant, which is made before `stage` where there is none yet.
  mlir::Value addressOf(mlir::OpBuilder &b, mlir::Operation *stage,
                        mlir::DenseElementsAttr elements);

private:
  unsigned addressSpace_;
  llvm::DenseMap<mlir::Attribute, mlir::LLVM::GlobalOp> known_;
};

} // namespace normforge
