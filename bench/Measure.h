// Interleaved timing: blocks of calls in turn, medians, paired ratios.
#pragma once

#include "bench/Contender.h"

#include <span>

namespace normforge::bench {

double now(); ///< seconds

double median(std::vector<double> values);

struct Timing {
  double us = 0;     ///< median of the blocks' means, a call
  double spread = 0; ///< distance of the quartiles over the median
  std::vector<double> blocks;
};

/// The median of b/a, block by block, and its 95 % interval (order statistics).
struct Ratio {
  double value = 0, low = 0, high = 0;
};
Ratio pairedRatio(const Timing &a, const Timing &b);

/// Runs blocks of about a millisecond, and two calls at least, of each contender in turn, for
/// `seconds` altogether and at least 7 rounds. The first call of a block is not counted.
std::vector<Timing> measure(std::span<Contender *const> contenders, double seconds);

double geometricMean(std::span<const double> values);

} // namespace normforge::bench
