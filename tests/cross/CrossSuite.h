// Kernels for aarch64 on all layouts, modes, phases and dtypes, on frameworks' cases and long sums.
#pragma once

#include <string>
#include <vector>

namespace normforge::test {

/// Compiles for a CPU, links one program, and checks its results on each of the emulated CPUs; all
/// inside a doctest case.
void checkOnEmulator(const char *cpu, const std::vector<std::string> &emulated);

} // namespace normforge::test
