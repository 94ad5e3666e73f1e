// Interleaved timing: blocks of calls in turn, medians, paired ratios.
#pragma once

#include "bench/Contender.h"
#include "runtime/measure/Ratio.h"

#include <span>

namespace normforge::bench {

double now(); ///< seconds

struct Timing {
  double us = 0;     ///< median of the blocks' means, a call
  double spread = 0; ///< distance of the quartiles over the median
  std::vector<double> blocks;
};

/// Runs blocks of about a millisecond, and two calls at least, of each contender in turn, for
/// `seconds` altogether and at least 7 rounds. The first call of a block is not counted.
std::vector<Timing> measure(std::span<Contender *const> contenders, double seconds);

} // namespace normforge::bench
