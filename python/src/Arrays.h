// Arrays of NumPy, PyTorch, JAX and whatever else speaks DLPack or the buffer protocol, read and
// written where they lie.
#pragma once

#include "normforge/normforge.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <span>
#include <string>

namespace normforge::python {

namespace nb = nanobind;

/// The name by which Python knows an element's type: "float32", "bfloat16". Bits are bytes.
const char *nameOf(nf_dtype dtype);

/// A new array of the library that `like` is of, in the CPU's memory; its shape is a tuple.
nb::object makeArray(nb::handle like, const nb::object &shape, nf_dtype dtype);

/// What lies behind a Python object, for as long as this lives. Never a copy.
class Array {
public:
  /// Throws TypeError where `object` is no array of `dtype`, and ValueError where it is not in this
  /// machine's memory, or may not be written though it is to be. `name` is the argument's.
  Array(nb::handle object, const char *name, nf_dtype dtype, bool written);

  void *data() const { return data_; }
  std::span<const int64_t> shape() const { return {tensor_.shape, rank()}; }
  uint64_t bytes() const;

  /// Whether the last axis is innermost, and no gaps are.
  bool isDense() const;
  /// Throws ValueError that names the strides and says what to do.
  [[noreturn]] void failStrides(const char *name) const;

private:
  size_t rank() const { return static_cast<size_t>(tensor_.ndim); }
  void take(nb::handle object, const char *name, const char *expected, bool written);
  /// Of the arrays that most callers have, without their protocols.
  bool takeAtOnce(nb::handle object, bool written);

  nb::dlpack::dltensor tensor_{}; ///< its shape and strides belong to the object or to `owner_`
  nb::ndarray<> writable_{};
  nb::ndarray<nb::ro> readable_{};
  nb::object view_{}; ///< the object as another type
  void *data_ = nullptr;
};

} // namespace normforge::python
