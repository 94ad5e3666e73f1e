// An array in host memory: what .npy files, the reference and the oracle exchange.
#pragma once

#include "runtime/artifact/Artifact.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace normforge {

/// Dense, row-major. `shape` is in memory order; a blocked layout's array has shape
/// [n, C/block, h, w, block].
struct HostArray {
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;

  HostArray() = default;
  /// Zero-filled. The product of `shape` must be representable, and of bits whole words.
  HostArray(DType dtype, std::vector<int64_t> shape);

  int64_t count() const;
  /// Element i in memory order, whatever the dtype. Rounds on writing; a bit is 0 or 1, and what is
  /// not 0 is 1.
  double get(int64_t i) const;
  void set(int64_t i, double value);
  template <typename T> T *data() { return reinterpret_cast<T *>(bytes.data()); }
  template <typename T> const T *data() const { return reinterpret_cast<const T *>(bytes.data()); }
};

} // namespace normforge
