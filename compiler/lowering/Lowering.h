// From an operator and a schedule to linalg on tensors.
//
// Leaves: a module with a function a stage. A step is one linalg.generic over the whole of its
// loops, or a few (moments are a sum, a mean, and the sums of residuals); what the schedule says is
// carried as attributes (Attributes.h) and nothing is tiled yet.
#pragma once

#include "compiler/schedule/Schedule.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"

namespace normforge {

struct StageInfo {
  std::string symbol;
  SizeExpr tasks;
  SizeExpr bytesPerTask;
};

struct LoweredKernel {
  mlir::OwningOpRef<mlir::ModuleOp> module;
  std::vector<StageInfo> stages; ///< in the order in which they run
  SizeExpr workspaceBytes;
};

/// The size that an affine expression over named sizes is, as attributes have it (Attributes.h).
SizeExpr sizeOf(mlir::AffineExpr expr);

/// Dialects that the lowering creates operations of.
void registerLoweringDialects(mlir::DialectRegistry &registry);

/// `symbol` is the prefix of the stages' names.
LoweredKernel lowerToLinalg(mlir::MLIRContext &context, const Operator &op,
                            const Schedule &schedule, llvm::StringRef symbol);

} // namespace normforge
