// bf16 and f16 for CPUs that have no instructions for them.
#pragma once

#include "compiler/machine/Machine.h"

#include "mlir/Conversion/LLVMCommon/TypeConverter.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/PatternMatch.h"

namespace normforge {

/// Patterns for conversions between f32 and the two half-precision types that the target has no
/// instruction for: integer arithmetic in the lanes of f32, rounded to the nearest, ties to even,
/// NaN to NaN. LLVM would call functions of a library.
void populateHalfPrecisionPatterns(mlir::LLVMTypeConverter &types,
                                   mlir::RewritePatternSet &patterns,
                                   const TargetDescription &target);

/// Whether the target has instructions that round f32 to bf16, of every width of its vectors.
bool hasBf16Rounding(const TargetDescription &target);

/// Vectors of bf16 that are taken apart into even and odd elements and widened
/// (vector.deinterleave, arith.extf), and such that are narrowed and put together (arith.truncf,
/// vector.interleave): by a shift and masks of the 32 bits that two neighbors are, without moving
/// lanes; to be run before the patterns. `hasInstruction`: as hasBf16Rounding.
void convertPairedHalves(mlir::ModuleOp module, bool hasInstruction);

} // namespace normforge
