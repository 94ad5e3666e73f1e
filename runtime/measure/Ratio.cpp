#include "runtime/measure/Ratio.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace normforge {

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double geometricMean(std::span<const double> values) {
  double sum = 0;
  for (double value : values)
    sum += std::log(value);
  return values.empty() ? 1 : std::exp(sum / static_cast<double>(values.size()));
}

Ratio pairedRatio(std::span<const double> a, std::span<const double> b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    ratios.push_back(b[i] / a[i]);
  std::sort(ratios.begin(), ratios.end());
  // 1.96 standard deviations of a binomial's rank.
  const auto n = static_cast<double>(ratios.size()), half = 0.98 * std::sqrt(n);
  auto rank = [&](double r) { return ratios[static_cast<size_t>(std::clamp(r, 0.0, n - 1))]; };
  return {(rank((n - 1) / 2) + rank(n / 2)) / 2, rank(n / 2 - half), rank(n / 2 + half)};
}

} // namespace normforge
