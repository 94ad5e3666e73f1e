// Figures of times that were measured in turn.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace normforge {

double median(std::vector<double> values);
/// 1 of none.
double geometricMean(std::span<const double> values);

/// The median of pairs of times, one over the other, and its 95 % interval: by ranks, so that no
/// distribution is assumed and a few disturbed pairs do not move it. Of fewer than seven pairs the
/// interval is that from the least to the largest.
struct Ratio {
  double value = 0, low = 0, high = 0;

  /// How far its interval goes from 1.
  double fromOne() const { return std::max(std::abs(high - 1), std::abs(1 - low)); }
};
/// b[i] / a[i], of as many as both have, one at least.
Ratio pairedRatio(std::span<const double> a, std::span<const double> b);

} // namespace normforge
