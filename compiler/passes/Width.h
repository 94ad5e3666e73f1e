// How many lanes a vector has.
#pragma once

#include "mlir/IR/BuiltinTypes.h"

namespace normforge {

/// Lanes of a vector; of a scalable one (SVE), those that each multiple of its least length has.
struct Width {
  int64_t lanes = 1;
  bool scalable = false;

  bool isScalar() const { return lanes == 1 && !scalable; }
  bool operator==(const Width &) const = default;
  Width operator*(int64_t factor) const { return {lanes * factor, scalable}; }
  mlir::VectorType vector(mlir::Type element) const {
    return mlir::VectorType::get({lanes}, element, {scalable});
  }
  /// The element's own type for a scalar.
  mlir::Type type(mlir::Type element) const { return isScalar() ? element : vector(element); }
};

} // namespace normforge
