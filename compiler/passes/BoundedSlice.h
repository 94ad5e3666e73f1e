// Slices of arrays that have no memory for the padding of a blocked axis.
#pragma once

#include "compiler/lowering/Attributes.h"

#include "mlir/Dialect/MemRef/IR/MemRef.h"

namespace normforge {

/// A slice of an array in memory, as FormTasks makes and VectorizeSteps reads it. Where two of its
/// axes are the blocks and the lanes of an axis that may be padded, it goes through a cast that
/// carries how many elements exist from the slice's first block on:
///   %part = memref.subview %array[...]
///   %slice = builtin.unrealized_conversion_cast %part, %bound {nf.padding = array<i64: 0, 1, 16>}
/// One that sums are carried in goes through such a cast too, with whether what is there counts:
///   %slice = builtin.unrealized_conversion_cast %part, %first {nf.carried}
struct BoundedSlice {
  mlir::memref::SubViewOp part;
  mlir::Value fresh;              ///< of carried sums: whether what is in memory does not count yet
  mlir::Value bound;              ///< null where every element exists
  int64_t outer = -1, inner = -1; ///< axes of the blocks and of the lanes
  int64_t block = 0;

  /// Decodes a memref that FormTasks made.
  static BoundedSlice of(mlir::Value memory) {
    BoundedSlice slice;
    auto cast = memory.getDefiningOp<mlir::UnrealizedConversionCastOp>();
    if (cast && cast->hasAttr(attr::kCarried)) {
      slice.fresh = cast.getInputs()[1];
      memory = cast.getInputs()[0];
    } else if (cast) {
      const auto padding =
          cast->getAttrOfType<mlir::DenseI64ArrayAttr>(attr::kPadding).asArrayRef();
      slice.outer = padding[0];
      slice.inner = padding[1];
      slice.block = padding[2];
      slice.bound = cast.getInputs()[1];
      memory = cast.getInputs()[0];
    }
    slice.part = memory.getDefiningOp<mlir::memref::SubViewOp>();
    return slice;
  }
  /// `part` bounded.
  static mlir::Value make(mlir::OpBuilder &b, mlir::Location loc, mlir::Value part,
                          mlir::Value bound, mlir::DenseI64ArrayAttr padding) {
    auto cast = mlir::UnrealizedConversionCastOp::create(b, loc, part.getType(),
                                                         mlir::ValueRange{part, bound});
    cast->setAttr(attr::kPadding, padding);
    return cast.getResult(0);
  }
};

} // namespace normforge
