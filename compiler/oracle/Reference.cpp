// The f64 reference: the formulas of the spec language, one after the other.

#include "compiler/oracle/Coordinates.h"

#include <cmath>
#include <stdexcept>

namespace normforge::oracle {

namespace {

/// The number itself, or the scalar given at the call.
double resolve(const Number &number, const char *name, const Numbers &scalars) {
  return number.isArgument ? scalars.at(name) : number.value;
}

/// The divisor that the deviation from the mean is normalized with.
double denominator(EpsilonPosition position, double variance, double epsilon) {
  switch (position) {
  case EpsilonPosition::Inside:
    return std::sqrt(variance + epsilon);
  case EpsilonPosition::Outside:
    return std::sqrt(variance) + epsilon;
  case EpsilonPosition::Both:
    return std::sqrt(variance + epsilon) + epsilon;
  }
  return NAN;
}

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

/// The new moving value. A momentum weighs the old or the new value; a
/// cumulative one makes the moving value the plain average of `count` batches.
double update(const Momentum &momentum, const Number &number, double old, double batch,
              const Numbers &scalars) {
  if (momentum.cumulative) {
    const double weight = 1 / scalars.at("count");
    return (1 - weight) * old + weight * batch;
  }
  const double a = resolve(number, "momentum", scalars);
  return momentum.weighs == MomentumWeighs::Old ? a * old + (1 - a) * batch
                                                : (1 - a) * old + a * batch;
}

struct Statistics {
  std::vector<double> mean, variance;
};

/// Mean, then the mean of the squared deviations. Sums are in extended precision, and the mean is
/// corrected by that of the deviations from it: a long sum of one number rounds the same way in
/// every step, which even extended precision shows.
Statistics batchStatistics(const Coordinates &at, const HostArray &x) {
  const long double n = at.groupSize();
  std::vector<long double> mean(at.groups(), 0);
  at.forEach([&](Place p) { mean[p.group] += x.get(p.offset); });
  for (long double &m : mean)
    m /= n;

  std::vector<long double> correction(at.groups(), 0);
  at.forEach([&](Place p) { correction[p.group] += x.get(p.offset) - mean[p.group]; });
  for (size_t g = 0; g < mean.size(); ++g)
    if (std::isfinite(mean[g]))
      mean[g] += correction[g] / n;

  std::vector<long double> squares(at.groups(), 0);
  at.forEach([&](Place p) {
    const long double deviation = x.get(p.offset) - mean[p.group];
    squares[p.group] += deviation * deviation;
  });

  Statistics result;
  result.mean.assign(mean.begin(), mean.end());
  for (long double s : squares)
    result.variance.push_back(static_cast<double>(s / n));
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

HostArray toArray(const std::vector<double> &values, const std::vector<int64_t> &shape) {
  HostArray array(DType::F64, shape);
  for (size_t i = 0; i < values.size(); ++i)
    array.set(i, values[i]);
  return array;
}

} // namespace

double applyFunction(const FuseStep &step, double x) {
  constexpr double rootOf2 = 1.41421356237309504880, rootOf2OverPi = 0.79788456080286535588;
  auto clamp = [](double value, double low, double high) { // NaN passes
    return value < low ? low : value > high ? high : value;
  };
  auto softplus = [](double value) {
    return value > 0 ? value + std::log1p(std::exp(-value)) : std::log1p(std::exp(value));
  };
  const std::string &name = step.name;
  if (name == "relu")
    return x < 0 ? 0 : x;
  if (name == "relu6")
    return clamp(x, 0, 6);
  if (name == "clamp")
    return clamp(x, step.parameters[0], step.parameters[1]);
  if (name == "leaky_relu")
    return x < 0 ? step.parameters[0] * x : x;
  if (name == "elu")
    return x > 0 ? x : step.parameters[0] * std::expm1(x);
  if (name == "gelu")
    return 0.5 * x * std::erfc(-x / rootOf2);
  if (name == "gelu_tanh")
    return 0.5 * x * (1 + std::tanh(rootOf2OverPi * (x + 0.044715 * x * x * x)));
  if (name == "sigmoid")
    return 1 / (1 + std::exp(-x));
  if (name == "silu")
    return x / (1 + std::exp(-x));
  if (name == "tanh")
    return std::tanh(x);
  if (name == "softplus")
    return softplus(x);
  if (name == "mish")
    return x * std::tanh(softplus(x));
  if (name == "hard_sigmoid")
    return clamp(x / 6 + 0.5, 0, 1);
  if (name == "hard_swish")
    return x * clamp(x / 6 + 0.5, 0, 1);
  throw std::logic_error("the reference has no function '" + name + "'");
}

Arrays reference(const Spec &spec, Phase phase, const Sizes &sizes, const Arrays &inputs,
                 const Numbers &scalars) {
  const Coordinates at(spec, sizes);
  const HostArray &x = inputs.at("x");
  const double epsilon = resolve(spec.epsilon, "epsilon", scalars);
  const bool training = phase == Phase::Training;
  const bool takesMoving = spec.mode == Mode::Feature && !training;

  Statistics used;
  if (takesMoving) {
    for (int64_t g = 0; g < at.groups(); ++g) {
      used.mean.push_back(inputs.at("moving_mean").get(g));
      used.variance.push_back(inputs.at("moving_variance").get(g));
    }
  } else if (spec.mode == Mode::Rms) {
    used = meanOfSquares(at, x);
  } else {
    used = batchStatistics(at, x);
  }

  HostArray y(DType::F64, at.memoryShape()); // zero, and padding stays so
  const HostArray *gamma = spec.scale ? &inputs.at("gamma") : nullptr;
  const HostArray *beta = spec.center ? &inputs.at("beta") : nullptr;
  at.forEach([&](Place p) {
    const double divisor = denominator(spec.epsilonPosition, used.variance[p.group], epsilon);
    double value = (x.get(p.offset) - used.mean[p.group]) / divisor;
    if (gamma)
      value *= gamma->get(p.parameter);
    if (beta)
      value += beta->get(p.parameter);
    for (const FuseStep &step : spec.fuse)
      value = step.isAdd() ? value + inputs.at("addend").get(p.offset) : applyFunction(step, value);
    y.set(p.offset, value);
  });

  Arrays outputs;
  outputs.emplace("y", std::move(y));
  if (!training)
    return outputs;

  if (spec.hasMovingStatistics()) {
    const double n = static_cast<double>(at.groupSize());
    std::vector<double> mean, variance;
    for (int64_t g = 0; g < at.groups(); ++g) {
      const double batch = runningVariance(spec.runningVariance, used.variance[g], n, epsilon);
      mean.push_back(update(spec.momentum, spec.momentum.mean, inputs.at("moving_mean").get(g),
                            used.mean[g], scalars));
      variance.push_back(update(spec.momentum, spec.momentum.variance,
                                inputs.at("moving_variance").get(g), batch, scalars));
    }
    outputs.emplace("moving_mean", toArray(mean, at.groupShape()));
    outputs.emplace("moving_variance", toArray(variance, at.groupShape()));
  }
  if (spec.mode != Mode::Rms)
    outputs.emplace("batch_mean", toArray(used.mean, at.groupShape()));
  outputs.emplace("batch_variance", toArray(used.variance, at.groupShape()));
  return outputs;
}

} // namespace normforge::oracle
