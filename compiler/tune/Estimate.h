// A model of bytes, tasks and instructions of a schedule, which says in which order
// candidates are worth a measurement. Only ratios of its figures mean anything.
#pragma once

#include "compiler/schedule/Schedule.h"

namespace normforge::tune {

/// Nanoseconds of one call at these sizes, about: for each stage the larger of what memory and
/// arithmetic take, over the threads that its tasks keep busy, and what tasks and stages cost.
double estimateNanoseconds(const Schedule &schedule, const Operator &op,
                           std::span<const int64_t> sizes, const TargetDescription &target,
                           int threads);

} // namespace normforge::tune
