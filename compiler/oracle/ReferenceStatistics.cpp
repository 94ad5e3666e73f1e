// Statistics in extended precision: of a batch, of what ranks share of one, of a population.
#include "compiler/oracle/ReferenceParts.h"

namespace normforge::oracle {

/// The batch's biased variance as the moving variance takes it.
double runningVariance(RunningVariance kind, double variance, double n, double epsilon) {
  switch (kind) {
  case RunningVariance::Biased:
    return variance;
  case RunningVariance::Bessel:
    return n <= 1 ? variance : variance * n / (n - 1);
  case RunningVariance::Keras2:
    return n <= 1 + epsilon ? variance : variance * n / (n - (1 + epsilon));
  }
  return NAN;
}

/// Mean, then the mean of the squared deviations. Sums are in extended precision, and the mean is
/// corrected by that of the deviations from it as it is rounded: a long sum of one number rounds
/// the same way in every step, which even extended precision shows.
Statistics batchStatistics(const Coordinates &at, const HostArray &x, const Weights &weights) {
  const std::vector<long double> n = weights.divisors(at);
  auto sums = [&](auto of) {
    std::vector<long double> totals(at.groups(), 0);
    size_t element = 0;
    at.forEach([&](Place p) {
      const long double weight = weights(element++);
      totals[p.group] += weight * of(x.get(p.offset), p.group);
    });
    return totals;
  };
  const std::vector<long double> whole = sums([](long double value, int64_t) { return value; });
  Statistics result;
  for (size_t g = 0; g < whole.size(); ++g)
    result.mean.push_back(static_cast<double>(whole[g] / n[g]));
  const auto correction =
      sums([&](long double value, int64_t group) { return value - result.mean[size_t(group)]; });
  for (size_t g = 0; g < whole.size(); ++g) {
    double &mean = result.mean[g];
    const long double near = mean;
    long double off = 0;
    if (std::isfinite(mean))
      off = (correction[g] - (weights.mask ? Weights::kBeside * near : 0)) / n[g];
    mean = static_cast<double>(near + off);
    result.restOfMean.push_back(std::isfinite(mean) ? off + (near - mean) : 0);
  }
  const auto squares = sums([&](long double value, int64_t group) {
    const auto g = static_cast<size_t>(group);
    const long double centered = (value - result.mean[g]) - result.restOfMean[g];
    return centered * centered;
  });
  for (size_t g = 0; g < squares.size(); ++g)
    result.variance.push_back(static_cast<double>(squares[g] / n[g]));
  return result;
}

/// Moments of these elements, about their mean as a kernel holds it.
Arrays partialMoments(const Spec &spec, const Coordinates &at, const HostArray &x,
                      const Weights &weights) {
  const std::vector<long double> n = weights.counts(at);
  std::vector<long double> mean(n.size(), 0), squares(n.size(), 0);
  size_t element = 0;
  at.forEach([&](Place p) { mean[p.group] += weights(element++) * x.get(p.offset); });
  for (size_t g = 0; g < n.size(); ++g)
    mean[g] = n[g] == 0 ? 0 : mean[g] / n[g];
  for (long double &of : mean)
    of = rounded(spec.partialDType(), static_cast<double>(of));
  std::vector<long double> residual(n.size(), 0);
  element = 0;
  at.forEach([&](Place p) {
    const long double centered = x.get(p.offset) - mean[p.group], weight = weights(element++);
    residual[p.group] += weight * centered;
    squares[p.group] += weight * centered * centered;
  });
  Arrays arrays;
  auto add = [&](const char *name, const std::vector<long double> &values) {
    arrays.emplace(name,
                   toArray(std::vector<double>(values.begin(), values.end()), at.groupShape()));
  };
  add("partial_count", n);
  add("partial_mean", mean);
  add("partial_residual", residual);
  add("partial_squares", squares);
  return arrays;
}

/// Those of moments that are given; `counts` are of elements, as they are weighed.
Statistics sharedStatistics(const Spec &spec, const Coordinates &at, const Arrays &inputs,
                            std::vector<long double> &counts) {
  Statistics result;
  counts.clear();
  for (int64_t g = 0; g < at.groups(); ++g) {
    const long double count = inputs.at("partial_count").get(g),
                      mean = inputs.at("partial_mean").get(g),
                      residual = inputs.at("partial_residual").get(g),
                      squares = inputs.at("partial_squares").get(g);
    // The distance from the mean as it is rounded, which may be all that a variance is made of.
    const long double beside = spec.mask ? Weights::kBeside : 0, n = count + beside;
    const long double off = (residual - beside * mean) / n;
    result.mean.push_back(static_cast<double>(mean + off));
    result.restOfMean.push_back(off + (mean - result.mean.back()));
    result.variance.push_back(
        static_cast<double>((squares - 2 * off * residual + count * off * off) / n));
    counts.push_back(count);
  }
  return result;
}

/// The mean of squares, about no mean.
Statistics meanOfSquares(const Coordinates &at, const HostArray &x) {
  std::vector<long double> squares(at.groups(), 0);
  at.forEach([&](Place p) {
    const long double value = x.get(p.offset);
    squares[p.group] += value * value;
  });
  Statistics result;
  result.mean.assign(squares.size(), 0);
  for (long double s : squares)
    result.variance.push_back(static_cast<double>(s / at.groupSize()));
  return result;
}

Arrays batchStatistics(const Spec &spec, const Sizes &sizes, const Arrays &inputs,
                       const Numbers &scalars) {
  const Coordinates at(spec, sizes);
  const HostArray x = prologueOf(spec, sizes, inputs, scalars).value;
  const bool isRms = spec.mode == Mode::Rms;
  const Statistics found =
      isRms ? meanOfSquares(at, x) : batchStatistics(at, x, Weights(spec, at, inputs));
  Arrays arrays;
  if (!isRms)
    arrays.emplace("batch_mean", toArray(found.mean, at.groupShape()));
  arrays.emplace("batch_variance", toArray(found.variance, at.groupShape()));
  if (spec.synchronized) {
    std::vector<double> residual;
    for (size_t g = 0; g < found.mean.size(); ++g)
      residual.push_back(static_cast<double>(found.restOfMean[g] +
                                             (static_cast<long double>(found.mean[g]) -
                                              rounded(spec.statisticDType(), found.mean[g]))));
    const std::vector<long double> n = Weights(spec, at, inputs).counts(at);
    arrays.emplace("batch_residual", toArray(residual, at.groupShape()));
    arrays.emplace("batch_count",
                   toArray(std::vector<double>(n.begin(), n.end()), at.groupShape()));
  }
  return arrays;
}

Arrays partials(const Spec &spec, Phase phase, const Sizes &sizes, const Arrays &inputs,
                const Numbers &scalars) {
  return reference(spec, isBackward(phase) ? Phase::GradientSums : Phase::Moments, sizes, inputs,
                   scalars);
}

/// The least and the greatest of all elements and of what was before them; NaN where one is.
static Arrays populationRange(const Coordinates &at, const Arrays &inputs, Prologue prologue) {
  Arrays outputs = std::move(prologue.stored);
  for (const char *name : {"minimum", "maximum"}) {
    const bool isLeast = name == std::string_view("minimum");
    std::vector<double> values;
    for (int64_t g = 0; g < at.groups(); ++g)
      values.push_back(inputs.at(name).get(g));
    at.forEach([&](Place p) {
      double &value = values[static_cast<size_t>(p.group)];
      const double x = prologue.value.get(p.offset);
      if (std::isnan(x) || (isLeast ? x < value : x > value))
        value = x;
    });
    outputs.emplace(name, toArray(values, at.parameterShape()));
  }
  return outputs;
}

/// All elements as one batch: those before are known by their count, mean and squares.
Arrays population(const Spec &spec, const Coordinates &at, const Arrays &inputs, Prologue prologue,
                  double epsilon) {
  if (spec.hasRange())
    return populationRange(at, inputs, std::move(prologue));
  const HostArray *mask = spec.mask ? &inputs.at("mask") : nullptr;
  const std::vector<int64_t> positions = mask ? at.positionsInMask() : std::vector<int64_t>();
  const auto groups = static_cast<size_t>(at.groups());
  std::vector<long double> n(groups, 0), mean(groups, 0), squares(groups, 0);
  auto add = [&](std::vector<long double> &sums, auto of) {
    size_t element = 0;
    at.forEach([&](Place p) {
      const long double weight = mask ? mask->get(positions[element]) : 1;
      ++element;
      sums[p.group] += weight * of(static_cast<long double>(prologue.value.get(p.offset)), p.group);
    });
  };
  add(n, [](long double, int64_t) { return 1; });
  add(mean, [](long double x, int64_t) { return x; });
  std::vector<double> count, total, variance, spread;
  for (size_t g = 0; g < groups; ++g) {
    const auto i = static_cast<int64_t>(g);
    const long double before = inputs.at("population_count").get(i);
    const long double old = inputs.at("population_mean").get(i);
    count.push_back(static_cast<double>(before + n[g]));
    mean[g] = before + n[g] > 0 ? (before * old + mean[g]) / (before + n[g]) : old;
    squares[g] = inputs.at("population_m2").get(i) + before * (old - mean[g]) * (old - mean[g]);
  }
  add(squares, [&](long double x, int64_t group) { return (x - mean[group]) * (x - mean[group]); });
  for (size_t g = 0; g < groups; ++g) {
    const double biased = count[g] > 0 ? static_cast<double>(squares[g] / count[g]) : 0;
    const double v = runningVariance(spec.runningVariance, biased, count[g], epsilon);
    spread.push_back(spec.movingSpread == MovingSpread::Deviation
                         ? rootOf(spec.epsilonPosition, v, epsilon)
                         : v);
  }
  auto narrow = [&](const std::vector<long double> &values) {
    return toArray(std::vector<double>(values.begin(), values.end()), at.parameterShape());
  };
  Arrays outputs = std::move(prologue.stored);
  outputs.emplace("population_count", toArray(count, at.parameterShape()));
  outputs.emplace("population_mean", narrow(mean));
  outputs.emplace("population_m2", narrow(squares));
  outputs.emplace("moving_mean", narrow(mean));
  outputs.emplace(spec.movingSpreadName(), toArray(spread, at.parameterShape()));
  return outputs;
}

} // namespace normforge::oracle
