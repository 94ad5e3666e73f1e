// Problems whose kernels have to have a property, and the kernels of all of them.
#pragma once

#include "tests/numerics/KernelCase.h"

#include <functional>
#include <span>

namespace normforge::test {

struct Problem {
  const char *layout, *shape, *axis;
  const char *mode; ///< and what goes with it
  oracle::Sizes sizes;
};

/// The relative distance of neighbors in the dtype of a spec, f32 or f64.
double digits(const Spec &spec);

using PropertyCheck =
    std::function<void(const TestKernel &, const Spec &, const Problem &, const ScheduleVariant &)>;
/// Calls `check` for each problem, in f32 and f64, on three CPUs, with every variant of the phase,
/// whatever its guard. `more` are lines of the spec. The values of pytorch's preset are scaled by
/// nothing but sqrt(v + epsilon).
void forEachKernel(const std::string &repeat, std::span<const Problem> problems, Phase phase,
                   const std::string &more, const PropertyCheck &check);

} // namespace normforge::test
