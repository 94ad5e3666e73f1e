// JAX's programs call kernels by XLA's foreign function interface; built where jaxlib's headers
// are.
#pragma once

#include "python/src/Kernel.h"

namespace normforge::python {

/// jax_handler, the function that programs call, and jax_register, which makes a kernel known to it
/// by its spec and phase. Nothing where this was built without jaxlib's headers.
void declareJax(nanobind::module_ &m);

} // namespace normforge::python
