// Figures of times that were measured in turn.
#pragma once

#include <span>
#include <vector>

namespace normforge {

double median(std::vector<double> values);

/// The median of pairs of times, one over the other, and its 95 % interval: by ranks, so that no
/// distribution is assumed and a few disturbed pairs do not move it. Of fewer than seven pairs the
/// interval is that from the least to the largest.
struct Ratio {
  double value = 0, low = 0, high = 0;
};
/// b[i] / a[i], of as many as both have, one at least.
Ratio pairedRatio(std::span<const double> a, std::span<const double> b);

} // namespace normforge
