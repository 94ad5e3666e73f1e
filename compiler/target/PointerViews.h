// Memrefs to plain pointers.
//
// Kernels know strides and sizes on their own: a memref is a base and an offset to them. So it
// becomes one pointer, where upstream's conversion makes, fills and takes apart a descriptor for
// each: a fifth of the conversion's time, a third of the translation's.
#pragma once

#include "mlir/Conversion/LLVMCommon/TypeConverter.h"
#include "mlir/IR/PatternMatch.h"

namespace normforge {

/// Adds the conversion of memrefs to `types`, and to `patterns` those of the operations on them
/// that VectorizeSteps leaves: memref.reinterpret_cast (of a base or a view, in elements from it),
/// memref.view, load, store and prefetch, memref.extract_aligned_pointer_as_index, vector.load,
/// store, maskedload, maskedstore, gather and scatter, all on memrefs of rank 0, or of rank 1 with
/// stride 1. They are aligned to their elements, unless a vector.store says more; on a GPU, where
/// pointers are to global memory, or to a block's own where the memref says so, vectors are aligned
/// to their size, or to 16 bytes.
void populatePointerViewPatterns(mlir::LLVMTypeConverter &types, mlir::RewritePatternSet &patterns,
                                 bool isDevice);

} // namespace normforge
