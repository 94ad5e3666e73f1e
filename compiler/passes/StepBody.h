// The body of a step on vectors.
#pragma once

#include "compiler/passes/Constants.h"

#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/IR/Builders.h"

namespace normforge {

/// Emits the body of a linalg.generic for `width` elements at once. `arguments` are the values of
/// the body's arguments, `loopIndex(i)` of `linalg.index i`; a scalar among them stands for all
/// lanes. Operations on scalars alone stay scalar. `constants` are those of the function. Returns
/// what the body yields, `width` wide.
llvm::SmallVector<mlir::Value> emitStepBody(mlir::OpBuilder &b, Constants &constants,
                                            mlir::Block &body, mlir::ValueRange arguments,
                                            Width width,
                                            llvm::function_ref<mlir::Value(unsigned)> loopIndex);

/// How a reduction's partial results become one, which is how it takes a value, too.
enum class Combiner : uint8_t {
  Sum,     ///< x + y, from 0
  Maximum, ///< the greater, NaN where one is; from -inf
};

/// That of all results of a reduction, each of which takes values into its own accumulator.
llvm::FailureOr<Combiner> combinerOf(mlir::linalg::GenericOp step);

} // namespace normforge
