// How far a kernel's outputs may lie from the reference, and whether they do.
//
// Every bound below is a sum of roundings. u is the unit roundoff of the
// accumulators, 2^-24 for f32 and 2^-53 for f64; m, v and s are a statistics
// group's mean, variance and deviation; N is its size.
//
// Growth with N. A sum of N terms rounds at most N times, each time by at most
// u times the partial sum. Roundings of drawn data have no common sign, so
// their sum grows like a random walk: its standard deviation is at most u *
// sqrt(N/3) * sum|x| for one accumulator; the vector kernels have eight or
// more, which divides N. sqrt(N) is thus at least four standard deviations of
// what a kernel does. Roundings do have a common sign where one and the same
// number is added over and over to a sum that dwarfs it: in a group that is
// constant up to a few roundings, and in one where a single element makes up
// the variance. There the growth is the N/8 additions of one of eight lanes.
// oneDNN sums long groups into one accumulator, which in the end dwarfs every
// term: N/8 for it too (2e5 terms and more show it, 1e6 err by N/20). 8 more are for what does not
// grow: divisions, the merge of partial results, the conversion to the result's dtype.
//
// Mean. The first pass errs by f = u*growth*|m|; the second sums the residuals,
// of size s and f, and takes that error away. What is left is a few roundings
// of m itself and the error of the second sum: 8u|m| + u*growth*(s + f). oneDNN
// sums once: u*growth*(|m| + s).
//
// Variance. u*growth*v for the sum of squares; what is left of f^2 in it; the
// square of the mean's error; and 4u|m|s for the merge, in which each partial
// mean is off by a rounding of m.
//
// Moving statistics. The batch's error times the weight of the batch; the
// weights are off by a rounding of 1, whatever their size.
//
// y = (x - m)*gamma/d + beta. The error of m and of x - m, times |gamma|/d; the
// relative error of 1/d, from that of v and four roundings of root, quotient
// and product; two roundings of each term that is summed.

#include "compiler/oracle/Coordinates.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace normforge::oracle {

namespace {

double unitRoundoff(DType dtype) {
  constexpr double units[dtypeCount] = {0x1p-24, 0x1p-53, 0x1p-8, 0x1p-11};
  return units[static_cast<unsigned>(dtype)];
}
/// The absolute error of an operation whose result is denormal, twice. Of bf16 it is the denormals
/// themselves: AVX512-BF16's conversion makes them 0.
double tiny(DType dtype) {
  constexpr double errors[dtypeCount] = {0x1p-148, 0x1p-1073, 0x1p-126, 0x1p-24};
  return errors[static_cast<unsigned>(dtype)];
}

/// A statistics group's values and how far off they may be.
struct Group {
  double mean = 0, variance = 0;
  double largestDeviation = 0; ///< of an element from the mean
  double meanError = 0, varianceError = 0;
};

struct Bounds {
  double u, least, n;
  std::vector<Group> groups;
};

double growth(const Group &g, double u, double n, bool corrected) {
  const bool constant = std::sqrt(g.variance) <= 8 * u * std::abs(g.mean);
  const bool oneElement = 4 * g.largestDeviation * g.largestDeviation >= n * g.variance;
  return 8 + std::max(std::sqrt(n), constant || oneElement || !corrected ? n / 8 : 0);
}

void addBatchErrors(Bounds &bounds, bool corrected) {
  const double u = bounds.u;
  for (Group &g : bounds.groups) {
    const double m = std::abs(g.mean), s = std::sqrt(g.variance);
    const double grown = u * growth(g, u, bounds.n, corrected);
    const double firstPass = grown * m;
    const double meanError =
        bounds.least + (corrected ? 8 * u * m + grown * (s + firstPass) : grown * (m + s));
    g.meanError += meanError;
    g.varianceError += grown * (g.variance + firstPass * firstPass) + 4 * u * m * s +
                       meanError * meanError + bounds.least;
  }
}

/// The batch's statistics from the reference's outputs; where the phase has
/// none, from x.
void takeBatchStatistics(Bounds &bounds, const Coordinates &at, const HostArray &x,
                         const Arrays &expected) {
  if (auto mean = expected.find("batch_mean"); mean != expected.end()) {
    const HostArray &variance = expected.at("batch_variance");
    for (int64_t g = 0; g < at.groups(); ++g) {
      bounds.groups[g].mean = mean->second.get(g);
      bounds.groups[g].variance = variance.get(g);
    }
    return;
  }
  const double n = static_cast<double>(at.groupSize());
  at.forEach([&](Place p) { bounds.groups[p.group].mean += x.get(p.offset) / n; });
  at.forEach([&](Place p) {
    Group &g = bounds.groups[p.group];
    const double deviation = x.get(p.offset) - g.mean;
    g.variance += deviation * deviation / n;
  });
}

double largest(const Arrays &arrays, const char *name) {
  auto found = arrays.find(name);
  double result = 0;
  if (found != arrays.end())
    for (int64_t i = 0, n = found->second.count(); i < n; ++i)
      if (double a = std::abs(found->second.get(i)); a <= std::numeric_limits<double>::max())
        result = std::max(result, a);
  return result;
}

void takeLargestDeviations(Bounds &bounds, const Coordinates &at, const HostArray &x) {
  at.forEach([&](Place p) {
    Group &g = bounds.groups[p.group];
    const double deviation = std::abs(x.get(p.offset) - g.mean);
    if (deviation > g.largestDeviation || std::isnan(deviation)) // a NaN stays
      g.largestDeviation = deviation;
  });
}

/// The bound of y, the largest over the groups. Groups that are not finite
/// bound nothing.
double boundOfY(const Spec &spec, const Coordinates &at, const Bounds &bounds, const Arrays &inputs,
                double epsilon) {
  const double u = bounds.u, gammaMax = spec.scale ? largest(inputs, "gamma") : 1;
  const double added =
      (spec.center ? largest(inputs, "beta") : 0) +
      std::count(spec.fuse.begin(), spec.fuse.end(), Fused::Add) * largest(inputs, "addend");
  const double inside = spec.epsilonPosition == EpsilonPosition::Outside ? 0 : epsilon;
  const double outside = spec.epsilonPosition == EpsilonPosition::Inside ? 0 : epsilon;

  double bound = bounds.least;
  for (int64_t i = 0; i < at.groups(); ++i) {
    const Group &g = bounds.groups[i];
    const double root = std::sqrt(g.variance + inside), d = root + outside;
    const double rootError = std::sqrt(g.variance + inside + g.varianceError) - root;
    const double relative = rootError / d + 4 * u;
    // In modes 0 and 2 a group has its own gamma.
    const double gamma =
        spec.scale && spec.mode != Mode::Sample ? std::abs(inputs.at("gamma").get(i)) : gammaMax;
    const double scaled = gamma / d;
    const double error = scaled * (g.meanError + 2 * u * g.largestDeviation + bounds.least +
                                   g.largestDeviation * relative) +
                         2 * u * (scaled * g.largestDeviation + added);
    if (std::isfinite(error))
      bound = std::max(bound, error);
  }
  return bound;
}

/// The bound of a moving statistic.
double boundOfMoving(const Spec &spec, const Coordinates &at, const Bounds &bounds, bool isMean,
                     const HostArray &old, double epsilon, const Numbers &scalars, double u) {
  const double n = bounds.n;
  const Number &momentum = isMean ? spec.momentum.mean : spec.momentum.variance;
  double weight = 0; // of the batch
  if (spec.momentum.cumulative) {
    weight = 1 / scalars.at("count");
  } else {
    const double given = momentum.isArgument ? scalars.at("momentum") : momentum.value;
    weight = spec.momentum.weighs == MomentumWeighs::Old ? 1 - given : given;
  }
  double correction = 1;
  if (!isMean && spec.runningVariance == RunningVariance::Bessel && n > 1)
    correction = n / (n - 1);
  if (!isMean && spec.runningVariance == RunningVariance::Keras2 && n > 1 + epsilon)
    correction = n / (n - (1 + epsilon));
  double bound = 0;
  for (int64_t i = 0; i < at.groups(); ++i) {
    const Group &g = bounds.groups[i];
    const double error =
        weight * correction * (isMean ? g.meanError : g.varianceError) +
        4 * u * (std::abs(old.get(i)) + correction * std::abs(isMean ? g.mean : g.variance));
    if (std::isfinite(error))
      bound = std::max(bound, error);
  }
  return bound;
}

Tolerance bound(const Spec &spec, Phase phase, const std::string &output, const Sizes &sizes,
                const Arrays &inputs, const Arrays &expected, const Numbers &scalars,
                bool withOneDnn) {
  const Coordinates at(spec, sizes);
  const double n = static_cast<double>(at.groupSize());
  const double epsilon = spec.epsilon.isArgument ? scalars.at("epsilon") : spec.epsilon.value;
  const bool takesMoving = spec.mode == Mode::Feature && phase == Phase::Inference;

  const DType computed = computeDType(spec.dtype);
  Bounds bounds{unitRoundoff(computed), tiny(computed), n, {}};
  bounds.groups.resize(at.groups());
  if (takesMoving) {
    for (int64_t i = 0; i < at.groups(); ++i) {
      bounds.groups[i].mean = inputs.at("moving_mean").get(i);
      bounds.groups[i].variance = inputs.at("moving_variance").get(i);
    }
    takeLargestDeviations(bounds, at, inputs.at("x"));
  } else {
    takeBatchStatistics(bounds, at, inputs.at("x"), expected);
    takeLargestDeviations(bounds, at, inputs.at("x"));
    addBatchErrors(bounds, /*corrected=*/true);
    if (withOneDnn)
      addBatchErrors(bounds, /*corrected=*/false);
  }

  // Parameters may be coarser than the data.
  const double stored = std::max(bounds.u, unitRoundoff(spec.parameterDType));
  Tolerance result;
  if (output == "y") {
    result.absolute = boundOfY(spec, at, bounds, inputs, epsilon);
    result.relative = 4 * bounds.u;
    if (withOneDnn) // both sides round
      result.absolute *= takesMoving ? 2 : 1, result.relative *= 2;
    if (computed != spec.dtype) { // y is rounded once more
      result.absolute += result.absolute * unitRoundoff(spec.dtype) + tiny(spec.dtype);
      result.relative += unitRoundoff(spec.dtype);
    }
    result.zeroForNaN =
        withOneDnn && std::count(spec.fuse.begin(), spec.fuse.end(), Fused::Relu) > 0;
  } else if (output == "moving_mean" || output == "moving_variance") {
    result.absolute = boundOfMoving(spec, at, bounds, output == "moving_mean", inputs.at(output),
                                    epsilon, scalars, stored);
    result.relative = 4 * stored;
  } else {
    for (const Group &g : bounds.groups) {
      const double error = output == "batch_mean" ? g.meanError : g.varianceError;
      if (std::isfinite(error))
        result.absolute = std::max(result.absolute, error);
    }
    result.relative = 4 * stored;
  }
  result.absolute = std::max(result.absolute, tiny(computed));

  const char *unit = computed == DType::F32 ? "2^-24" : "2^-53";
  if (takesMoving)
    result.why = fmt::format("{} x 8 roundings of the largest term", unit);
  else
    result.why = fmt::format("{} x (8 + sqrt({}) or more) of the deviation, {} x {} of the mean{}",
                             unit, at.groupSize(), unit, withOneDnn ? "growing roundings" : "8",
                             withOneDnn ? ", oneDNN's error included" : "");
  if (output == "y" && computed != spec.dtype)
    result.why += fmt::format(", and y's own rounding to {}", toString(spec.dtype));
  return result;
}

} // namespace

Tolerance tolerance(const Spec &spec, Phase phase, const std::string &output, const Sizes &sizes,
                    const Arrays &inputs, const Arrays &expected, const Numbers &scalars) {
  return bound(spec, phase, output, sizes, inputs, expected, scalars,
               /*withOneDnn=*/false);
}

Tolerance oneDnnTolerance(const Spec &spec, Phase phase, const std::string &output,
                          const Sizes &sizes, const Arrays &inputs, const Arrays &expected,
                          const Numbers &scalars) {
  return bound(spec, phase, output, sizes, inputs, expected, scalars,
               /*withOneDnn=*/true);
}

Comparison compare(const HostArray &actual, const HostArray &expected, const Tolerance &tolerance) {
  constexpr double infinite = std::numeric_limits<double>::infinity();
  Comparison result;
  if (actual.count() != expected.count()) {
    result.largestError = result.worstError = result.largestExcess = infinite;
    return result;
  }
  for (int64_t i = 0, n = actual.count(); i < n; ++i) {
    const double a = actual.get(i), b = expected.get(i);
    double error = 0, excess = 0;
    if (a == b || (std::isnan(a) && std::isnan(b)) ||
        (tolerance.zeroForNaN && std::isnan(a) && b == 0)) {
      // Agrees; two equal infinities have no difference to speak of.
    } else if (!std::isfinite(a) || !std::isfinite(b)) {
      error = excess = infinite;
    } else {
      const double allowed = tolerance.absolute + tolerance.relative * std::abs(b);
      error = std::abs(a - b);
      excess = allowed > 0 ? error / allowed : infinite;
    }
    result.largestError = std::max(result.largestError, error);
    if (result.worst < 0 || excess > result.largestExcess) {
      result.largestExcess = excess;
      result.worstError = error;
      result.worst = i;
      result.actual = a;
      result.expected = b;
    }
  }
  return result;
}

} // namespace normforge::oracle
