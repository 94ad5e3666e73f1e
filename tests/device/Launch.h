// Launches a spec's kernels through the runtime and the driver.
#pragma once

#include "tests/device/CudaHost.h"
#include "tests/numerics/KernelHarness.h"

#include <functional>
#include <map>

namespace normforge::test {

/// Bytes that kernels have loaded and stored, by argument.
using Traffic = std::map<std::string, std::pair<uint64_t, uint64_t>>;

/// Compiles a phase for a GPU and launches it in the current context, with arrays `shift` elements
/// behind aligned addresses where that is not 0, and outputs over inputs where they may be and
/// `inPlace` says so. `change` gets the artifact before it is loaded; `traffic` is filled by the
/// emulated driver, and left empty by another. Throws std::runtime_error.
oracle::Arrays launch(const Spec &spec, Phase phase, const std::string &cpu,
                      const oracle::Sizes &sizes, const oracle::Arrays &inputs,
                      const oracle::Numbers &scalars, size_t shift = 0, bool inPlace = false,
                      const std::function<void(Artifact &)> &change = {},
                      Traffic *traffic = nullptr);

} // namespace normforge::test
