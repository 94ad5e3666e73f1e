// Functions that no instruction computes, as arithmetic: a kernel calls nothing.
#pragma once

#include "mlir/IR/PatternMatch.h"

namespace normforge {

/// math.exp, expm1, log, log1p, erf and tanh of f32 and f64, scalars and vectors of any length.
void populateVectorMathPatterns(mlir::RewritePatternSet &patterns);

} // namespace normforge
