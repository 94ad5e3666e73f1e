// Launches a spec's kernels through the runtime and the driver.
#pragma once

#include "tests/device/CudaHost.h"
#include "tests/numerics/KernelHarness.h"

#include <functional>

namespace normforge::test {

/// Compiles a phase for a GPU and launches it in the current context, with arrays `shift` elements
/// behind aligned addresses where that is not 0, and outputs over inputs where they may be and
/// `inPlace` says so. `change` gets the artifact before it is loaded. Throws std::runtime_error.
oracle::Arrays launch(const Spec &spec, Phase phase, const std::string &cpu,
                      const oracle::Sizes &sizes, const oracle::Arrays &inputs,
                      const oracle::Numbers &scalars, size_t shift = 0, bool inPlace = false,
                      const std::function<void(Artifact &)> &change = {});

} // namespace normforge::test
