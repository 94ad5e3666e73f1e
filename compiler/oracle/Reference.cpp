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

/// The deviation before an epsilon is added to it.
template <typename T> T rootOf(EpsilonPosition position, T variance, T epsilon) {
  return std::sqrt(position == EpsilonPosition::Outside ? variance : variance + epsilon);
}

/// The divisor that the difference from the mean is normalized with, of that root.
template <typename T> T denominatorOf(EpsilonPosition position, T root, T epsilon) {
  return position == EpsilonPosition::Inside ? root : root + epsilon;
}
template <typename T> T denominator(EpsilonPosition position, T variance, T epsilon) {
  return denominatorOf(position, rootOf(position, variance, epsilon), epsilon);
}

/// The divisor that statistics give which are a variance, or such a root.
double divisorOf(const Spec &spec, double spread, bool isRoot, double epsilon) {
  return isRoot ? denominatorOf(spec.epsilonPosition, spread, epsilon)
                : denominator(spec.epsilonPosition, spread, epsilon);
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
  std::vector<long double> exactMean{}; ///< of a batch
};

/// What elements weigh in the batch's statistics.
struct Weights {
  static constexpr long double kBeside = 1e-7L; ///< what Keras 3 adds to the sum of a mask's
  const HostArray *mask = nullptr;              ///< null: all weigh 1
  std::vector<int64_t> positions{};

  Weights(const Spec &spec, const Coordinates &at, const Arrays &inputs) {
    // Phases of a synchronized batch do not all take it.
    if (!spec.mask || (spec.synchronized && !inputs.contains("mask")))
      return;
    mask = &inputs.at("mask");
    positions = at.positionsInMask();
  }
  long double operator()(size_t element) const { return mask ? mask->get(positions[element]) : 1; }
  /// By group, the sums of weights.
  std::vector<long double> counts(const Coordinates &at) const {
    std::vector<long double> sums(at.groups(), mask ? 0 : at.groupSize());
    size_t element = 0;
    if (mask)
      at.forEach([&](Place p) { sums[p.group] += (*this)(element++); });
    return sums;
  }
  /// By group: what sums of weighed elements are divided by.
  std::vector<long double> divisors(const Coordinates &at) const {
    std::vector<long double> sums = counts(at);
    for (long double &sum : sums)
      sum += mask ? kBeside : 0;
    return sums;
  }
};

HostArray toArray(const std::vector<double> &values, const std::vector<int64_t> &shape) {
  HostArray array(DType::F64, shape);
  for (size_t i = 0; i < values.size(); ++i)
    array.set(i, values[i]);
  return array;
}

HostArray roundedTo(DType dtype, const HostArray &array) {
  HostArray rounded(dtype, array.shape);
  for (int64_t i = 0, n = array.count(); i < n; ++i)
    rounded.set(i, array.get(i));
  return rounded;
}

/// Mean, then the mean of the squared deviations. Sums are in extended precision, and the mean is
/// corrected by that of the deviations from it: a long sum of one number rounds the same way in
/// every step, which even extended precision shows.
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
  std::vector<long double> mean = sums([](long double value, int64_t) { return value; });
  for (size_t g = 0; g < mean.size(); ++g)
    mean[g] /= n[g];
  const auto correction =
      sums([&](long double value, int64_t group) { return value - mean[group]; });
  for (size_t g = 0; g < mean.size(); ++g)
    if (std::isfinite(mean[g]))
      mean[g] += (correction[g] - (weights.mask ? Weights::kBeside * mean[g] : 0)) / n[g];
  const auto squares = sums([&](long double value, int64_t group) {
    return (value - mean[group]) * (value - mean[group]);
  });

  Statistics result;
  result.mean.assign(mean.begin(), mean.end());
  for (size_t g = 0; g < squares.size(); ++g)
    result.variance.push_back(static_cast<double>(squares[g] / n[g]));
  result.exactMean = std::move(mean);
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
  const HostArray rounded =
      roundedTo(spec.statisticDType(),
                toArray(std::vector<double>(mean.begin(), mean.end()), at.groupShape()));
  std::vector<long double> residual(n.size(), 0);
  element = 0;
  at.forEach([&](Place p) {
    const long double centered = x.get(p.offset) - rounded.get(p.group),
                      weight = weights(element++);
    residual[p.group] += weight * centered;
    squares[p.group] += weight * centered * centered;
  });
  for (size_t g = 0; g < n.size(); ++g)
    mean[g] = rounded.get(static_cast<int64_t>(g));
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

/// Those of moments that are given; `divisors` are what sums are divided by.
Statistics sharedStatistics(const Spec &spec, const Coordinates &at, const Arrays &inputs,
                            std::vector<long double> &divisors) {
  Statistics result;
  divisors.clear();
  for (int64_t g = 0; g < at.groups(); ++g) {
    const long double count = inputs.at("partial_count").get(g),
                      mean = inputs.at("partial_mean").get(g),
                      residual = inputs.at("partial_residual").get(g),
                      squares = inputs.at("partial_squares").get(g);
    const long double n = count + (spec.mask ? Weights::kBeside : 0);
    const long double exact = (count * mean + residual) / n, off = exact - mean;
    result.exactMean.push_back(exact);
    result.mean.push_back(static_cast<double>(exact));
    result.variance.push_back(
        static_cast<double>((squares - 2 * off * residual + count * off * off) / n));
    divisors.push_back(n);
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

double rounded(DType dtype, double value) {
  HostArray one(dtype, {1});
  one.set(0, value);
  return one.get(0);
}

/// The inputs of a step's operands, and where each element finds its own.
struct BoundStep {
  std::vector<const HostArray *> arrays; ///< null where it is not given, and does not matter
  std::vector<std::vector<int64_t>> positions;

  BoundStep(const FuseStep &step, const Coordinates &at, const Arrays &inputs) {
    for (const StepOperand &operand : step.operands) {
      const auto found = inputs.find(operand.name);
      arrays.push_back(found == inputs.end() ? nullptr : &found->second);
      positions.push_back(at.positionsIn(operand));
    }
  }
  std::vector<double> values(size_t element) const {
    std::vector<double> values;
    for (size_t i = 0; i < arrays.size(); ++i)
      values.push_back(arrays[i] ? arrays[i]->get(positions[i][element]) : 0);
    return values;
  }
};

std::vector<BoundStep> bindSteps(const std::vector<FuseStep> &steps, const Coordinates &at,
                                 const Arrays &inputs) {
  std::vector<BoundStep> bound;
  for (const FuseStep &step : steps)
    bound.emplace_back(step, at, inputs);
  return bound;
}

/// Sums of gradients of the operands of steps, by step and operand.
struct OperandGradients {
  const std::vector<FuseStep> &steps;
  const Coordinates &at;
  std::vector<std::vector<std::vector<long double>>> sums{};

  OperandGradients(const std::vector<FuseStep> &of, const Coordinates &coordinates)
      : steps(of), at(coordinates) {
    for (const FuseStep &step : steps) {
      auto &ofStep = sums.emplace_back();
      for (const StepOperand &operand : step.operands)
        ofStep.emplace_back(HostArray(DType::F32, at.shapeOf(operand)).count(), 0);
    }
  }
  void addTo(Arrays &outputs) const {
    for (size_t i = 0; i < sums.size(); ++i)
      for (size_t o = 0; o < sums[i].size(); ++o) {
        const StepOperand &operand = steps[i].operands[o];
        outputs.emplace("d" + operand.name,
                        toArray(std::vector<double>(sums[i][o].begin(), sums[i][o].end()),
                                at.shapeOf(operand)));
      }
  }
};

} // namespace

Prologue prologueOf(const Spec &spec, const Sizes &sizes, const Arrays &inputs,
                    const Numbers &scalars) {
  const Coordinates at(spec, sizes);
  Prologue result{HostArray(DType::F64, at.memoryShape()), {}};
  const int stored = spec.storedStep();
  // Where it begins.
  size_t first = 0;
  const HostArray *from = nullptr;
  if (stored >= 0)
    if (const auto given = inputs.find(spec.prologue[static_cast<size_t>(stored)].store);
        given != inputs.end()) {
      first = static_cast<size_t>(stored) + 1;
      from = &given->second;
    }
  if (!from)
    from = &inputs.at("x");
  const auto steps = bindSteps(spec.prologue, at, inputs);
  for (size_t i = first; i < spec.prologue.size(); ++i)
    if (!spec.prologue[i].store.empty())
      result.stored.emplace(spec.prologue[i].store, HostArray(DType::F64, at.memoryShape()));
  size_t element = 0;
  at.forEach([&](Place p) {
    double value = from->get(p.offset);
    for (size_t i = first; i < steps.size(); ++i) {
      const FuseStep &step = spec.prologue[i];
      value = applyStep(step, value, steps[i].values(element), scalars).value;
      if (step.store.empty())
        continue;
      result.stored.at(step.store).set(p.offset, value);
      value = rounded(spec.dtype, value);
    }
    result.value.set(p.offset, value);
    ++element;
  });
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
    const HostArray rounded = roundedTo(spec.statisticDType(), arrays.at("batch_mean"));
    std::vector<double> residual, count;
    const std::vector<long double> n = Weights(spec, at, inputs).counts(at);
    for (int64_t g = 0; g < at.groups(); ++g) {
      residual.push_back(
          static_cast<double>(found.exactMean[static_cast<size_t>(g)] - rounded.get(g)));
      count.push_back(static_cast<double>(n[static_cast<size_t>(g)]));
    }
    arrays.emplace("batch_residual", toArray(residual, at.groupShape()));
    arrays.emplace("batch_count", toArray(count, at.groupShape()));
  }
  return arrays;
}

Arrays partials(const Spec &spec, Phase phase, const Sizes &sizes, const Arrays &inputs,
                const Numbers &scalars) {
  return reference(spec, isBackward(phase) ? Phase::GradientSums : Phase::Moments, sizes, inputs,
                   scalars);
}

namespace {

/// The derivative of 1/denominator by the variance.
long double slope(EpsilonPosition position, long double variance, long double epsilon) {
  const long double divisor = denominator(position, variance, epsilon);
  const long double root = rootOf(position, variance, epsilon);
  return -1 / (2 * root * divisor * divisor);
}

/// What a bit says of the argument of a function: whether it has the slope of what is kept as it
/// is.
bool isKept(const FuseStep &step, double x) {
  if (step.name == "relu" || step.name == "leaky_relu")
    return !(x <= 0);
  if (step.name == "relu6")
    return !(x <= 0 || x >= 6);
  if (step.name == "hard_sigmoid")
    return !(x <= -3 || x >= 3);
  if (step.name == "clamp")
    return !(x < step.parameters[0] || x > step.parameters[1]);
  throw std::logic_error("no bit decides the slope of " + step.name);
}
double slopeOf(const FuseStep &step, bool isKept) {
  if (step.name == "leaky_relu")
    return isKept ? 1 : step.parameters[0];
  return !isKept ? 0 : step.name == "hard_sigmoid" ? 1.0 / 6 : 1;
}

/// What training does with xhat before gamma and beta: xhat*factor + addend, of an element.
struct Corrections {
  const HostArray *r = nullptr, *d = nullptr;        ///< of a renorm, by group
  const HostArray *scale = nullptr, *bias = nullptr; ///< of an adjustment, by parameter

  /// `renorm` has r and d: what training makes, what backward reads.
  Corrections(const Spec &spec, const Arrays &inputs, const Arrays &renorm) {
    if (spec.renorm) {
      r = &renorm.at("renorm_r");
      d = &renorm.at("renorm_d");
    }
    if (spec.adjustment) {
      scale = &inputs.at("adjust_scale");
      bias = &inputs.at("adjust_bias");
    }
  }
  double factor(const Place &p) const {
    return (r ? r->get(p.group) : 1) * (scale ? scale->get(p.parameter) : 1);
  }
  double addend(const Place &p) const {
    return (d ? d->get(p.group) : 0) * (scale ? scale->get(p.parameter) : 1) +
           (bias ? bias->get(p.parameter) : 0);
  }
};

/// r and d of Ioffe 2017, by group, and what of the moving arrays is made with them.
Arrays renormalize(const Spec &spec, const Coordinates &at, const Statistics &batch,
                   const Arrays &inputs, double epsilon, const Numbers &scalars) {
  const Renorm &renorm = *spec.renorm;
  std::map<std::string, std::vector<double>> made;
  auto old = [&](const char *name, int64_t g) { return inputs.at(name).get(g); };
  auto average = [&](const char *name, double weightOfOld, int64_t g, double value) {
    made[name].push_back(weightOfOld * old(name, g) + (1 - weightOfOld) * value);
    return made[name].back();
  };
  const bool weighsOld = spec.momentum.weighs == MomentumWeighs::Old;
  for (int64_t g = 0; g < at.groups(); ++g) {
    const double deviation = rootOf(spec.epsilonPosition, batch.variance[g], epsilon);
    const double to = std::max(old("renorm_stddev", g), std::sqrt(epsilon));
    made["renorm_r"].push_back(std::clamp(deviation / to, renorm.rMin, renorm.rMax));
    made["renorm_d"].push_back(
        std::clamp((batch.mean[g] - old("renorm_mean", g)) / to, -renorm.dMax, renorm.dMax));
    const double ofOld = weighsOld ? renorm.momentum : 1 - renorm.momentum;
    average("renorm_mean", ofOld, g, batch.mean[g]);
    average("renorm_stddev", ofOld, g, deviation);
    const double stddev =
        update(spec.momentum, spec.momentum.variance, old("moving_stddev", g), deviation, scalars);
    made["moving_stddev"].push_back(stddev);
    made["moving_variance"].push_back(std::max(0.0, stddev * stddev - epsilon));
    made["moving_mean"].push_back(
        update(spec.momentum, spec.momentum.mean, old("moving_mean", g), batch.mean[g], scalars));
  }
  Arrays arrays;
  for (const auto &[name, values] : made)
    arrays.emplace(name, toArray(values, at.groupShape()));
  return arrays;
}

/// What the backward pass takes statistics from.
struct Saved {
  const HostArray *mean; ///< null for rms
  const HostArray &spread;
  bool isDeviation; ///< what spread holds; else the variance

  double divisor(const Spec &spec, int64_t group, double epsilon) const {
    return divisorOf(spec, spread.get(group), isDeviation, epsilon);
  }
};
Saved savedStatistics(const Spec &spec, const Arrays &inputs) {
  if (spec.backwardStatistics == BackwardStatistics::Moving)
    return {&inputs.at("moving_mean"), inputs.at(std::string(spec.movingSpreadName())),
            spec.movingSpread == MovingSpread::Deviation};
  return {spec.mode == Mode::Rms ? nullptr : &inputs.at("batch_mean"), inputs.at("batch_variance"),
          false};
}

} // namespace

EpilogueGradients epilogueGradients(const Spec &whole, const Sizes &sizes, const Arrays &inputs,
                                    const Numbers &scalars) {
  const Spec spec = ofPhase(whole, Phase::Backward);
  const Coordinates at(spec, sizes);
  const Corrections corrections(spec, inputs, inputs);
  const HostArray x = prologueOf(spec, sizes, inputs, scalars).value;
  const HostArray &dy = inputs.at("dy");
  const double epsilon = resolve(spec.epsilon, "epsilon", scalars);
  const Saved saved = savedStatistics(spec, inputs);
  const HostArray *gamma = spec.scale ? &inputs.at("gamma") : nullptr;
  const HostArray *beta = spec.center && inputs.contains("beta") ? &inputs.at("beta") : nullptr;
  const auto steps = bindSteps(spec.fuse, at, inputs);
  const auto bits = keptBits(spec);
  const std::vector<int64_t> positions = bits ? at.positionsIn(*bits) : std::vector<int64_t>();
  const HostArray *mask = bits ? &inputs.at("relu_mask") : nullptr;

  EpilogueGradients result{HostArray(DType::F64, at.memoryShape()), {}};
  OperandGradients ofOperands(spec.fuse, at);
  size_t element = 0;
  at.forEach([&](Place p) {
    const double mean = saved.mean ? saved.mean->get(p.group) : 0;
    double value = (x.get(p.offset) - mean) / saved.divisor(spec, p.group, epsilon);
    value = value * corrections.factor(p) + corrections.addend(p);
    if (gamma)
      value *= gamma->get(p.parameter);
    if (beta)
      value += beta->get(p.parameter);
    std::vector<StepValue> values;
    for (size_t i = 0; i < steps.size(); ++i) {
      values.push_back(applyStep(spec.fuse[i], value, steps[i].values(element), scalars));
      value = values.back().value;
    }
    if (bits)
      values[bits->step].derivatives[0] =
          slopeOf(spec.fuse[bits->step], mask->get(positions[element]) != 0);
    double gradient = dy.get(p.offset);
    auto times = [&](double slope) { return slope == 0 ? 0 : gradient * slope; };
    for (size_t i = steps.size(); i-- > 0;) {
      for (size_t o = 0; o < ofOperands.sums[i].size(); ++o)
        ofOperands.sums[i][o][static_cast<size_t>(steps[i].positions[o][element])] +=
            times(values[i].derivatives[o + 1]);
      gradient = times(values[i].derivatives[0]);
    }
    result.value.set(p.offset, gradient);
    ++element;
  });
  ofOperands.addTo(result.operands);
  return result;
}

namespace {

/// dt, the gradient of what statistics are taken of, back through the prologue: dx and those of the
/// operands. A stored value has a gradient of its own, which is added.
Arrays throughPrologue(const Spec &spec, const Coordinates &at, const Arrays &inputs,
                       const HostArray &dt, const Numbers &scalars) {
  const auto steps = bindSteps(spec.prologue, at, inputs);
  const auto from = inputs.find("x");
  HostArray dx(DType::F64, at.memoryShape());
  OperandGradients ofOperands(spec.prologue, at);
  size_t element = 0;
  at.forEach([&](Place p) {
    // Values on the way; what is not given does not matter.
    std::vector<StepValue> values;
    double value = from != inputs.end() ? from->second.get(p.offset) : 0;
    for (size_t i = 0; i < steps.size(); ++i) {
      values.push_back(applyStep(spec.prologue[i], value, steps[i].values(element), scalars));
      value = values.back().value;
      const std::string &store = spec.prologue[i].store;
      if (store.empty())
        continue;
      const auto given = inputs.find(store);
      value = given != inputs.end() ? given->second.get(p.offset) : rounded(spec.dtype, value);
    }
    double gradient = dt.get(p.offset);
    auto times = [&](double slope) { return slope == 0 ? 0 : gradient * slope; };
    for (size_t i = steps.size(); i-- > 0;) {
      if (const std::string &store = spec.prologue[i].store; !store.empty())
        gradient += inputs.at("d" + store).get(p.offset);
      for (size_t o = 0; o < ofOperands.sums[i].size(); ++o)
        ofOperands.sums[i][o][static_cast<size_t>(steps[i].positions[o][element])] +=
            times(values[i].derivatives[o + 1]);
      gradient = times(values[i].derivatives[0]);
    }
    dx.set(p.offset, gradient);
    ++element;
  });
  Arrays outputs;
  outputs.emplace("dx", std::move(dx));
  ofOperands.addTo(outputs);
  return outputs;
}

/// The chain rule along the formulas of the forward pass. In xhat it is the mean itself, not as it
/// was saved.
Arrays gradients(const Spec &whole, Phase phase, const Sizes &sizes, const Arrays &inputs,
                 const Numbers &scalars) {
  const Spec spec = ofPhase(whole, Phase::Backward);
  const Coordinates at(spec, sizes);
  const Corrections corrections(spec, inputs, inputs);
  const bool isSums = phase == Phase::GradientSums, takesSums = spec.synchronized && !isSums;
  Spec unmasked = spec;
  unmasked.mask &= !isSums;
  const Weights weights(unmasked, at, inputs);
  const HostArray x = prologueOf(spec, sizes, inputs, scalars).value;
  const double epsilon = resolve(spec.epsilon, "epsilon", scalars);
  const bool moving = spec.backwardStatistics == BackwardStatistics::Moving;
  const bool isRms = spec.mode == Mode::Rms;
  const Saved saved = savedStatistics(spec, inputs);
  const HostArray *gamma = spec.scale ? &inputs.at("gamma") : nullptr;
  const EpilogueGradients before = epilogueGradients(spec, sizes, inputs, scalars);

  std::vector<long double> mean(static_cast<size_t>(at.groups()), 0);
  if (moving)
    for (int64_t g = 0; g < at.groups(); ++g)
      mean[static_cast<size_t>(g)] = saved.mean->get(g);
  else if (spec.synchronized)
    for (int64_t g = 0; g < at.groups(); ++g)
      mean[static_cast<size_t>(g)] =
          static_cast<long double>(saved.mean->get(g)) + inputs.at("batch_residual").get(g);
  else if (!isRms)
    mean = batchStatistics(at, x, weights).exactMean;
  // In extended precision: what dx is made of cancels.
  std::vector<long double> divisor;
  for (int64_t g = 0; g < at.groups(); ++g)
    divisor.push_back(
        moving ? saved.divisor(spec, g, epsilon)
               : denominator<long double>(spec.epsilonPosition, saved.spread.get(g), epsilon));

  std::vector<long double> sums(at.groups(), 0), products(at.groups(), 0), rests(at.groups(), 0);
  std::vector<long double> dgamma(at.parameters(), 0), dbeta(at.parameters(), 0);
  // Of xhat.
  auto gradientOfXhat = [&](const Place &p) {
    const long double gradient = before.value.get(p.offset) * corrections.factor(p);
    return gamma ? gradient * gamma->get(p.parameter) : gradient;
  };
  size_t element = 0;
  at.forEach([&](Place p) {
    const long double gradient = before.value.get(p.offset);
    const long double h = gradientOfXhat(p);
    const long double centered = x.get(p.offset) - mean[p.group];
    sums[p.group] += h;
    products[p.group] += h * centered;
    rests[p.group] += weights(element++) * centered;
    dgamma[p.parameter] +=
        gradient * (centered / divisor[p.group] * corrections.factor(p) + corrections.addend(p));
    dbeta[p.parameter] += gradient;
  });

  auto narrow = [&](const std::vector<long double> &values) {
    return toArray(std::vector<double>(values.begin(), values.end()), at.parameterShape());
  };
  Arrays ofParameters;
  if (spec.learnsGamma() && !takesSums)
    ofParameters.emplace("dgamma", narrow(dgamma));
  if (spec.learnsBeta() && !takesSums)
    ofParameters.emplace("dbeta", narrow(dbeta));
  std::vector<long double> divisors = weights.divisors(at);
  if (spec.synchronized) {
    // The exchanged sums are of the gradients of what gamma and beta made.
    std::vector<long double> by(at.groups(), 1), ofOne(at.groups(), 0), ofX(at.groups(), 0);
    at.forEach([&](Place p) {
      const long double gradient = before.value.get(p.offset);
      by[p.group] = corrections.factor(p) * (gamma ? gamma->get(p.parameter) : 1.0);
      ofOne[p.group] += gradient;
      ofX[p.group] += gradient * (x.get(p.offset) - mean[p.group]);
    });
    if (isSums) {
      ofParameters.emplace("partial_gradient", narrow(ofOne));
      ofParameters.emplace("partial_product", narrow(ofX));
      return ofParameters;
    }
    for (int64_t i = 0; i < at.groups(); ++i) {
      const auto g = static_cast<size_t>(i);
      sums[g] = by[g] * inputs.at("partial_gradient").get(i);
      products[g] = by[g] * inputs.at("partial_product").get(i);
      divisors[g] = inputs.at("batch_count").get(i) + (spec.mask ? Weights::kBeside : 0);
      rests[g] = spec.mask ? Weights::kBeside * mean[g] : 0;
    }
  }

  HostArray dt(DType::F64, at.memoryShape());
  element = 0;
  at.forEach([&](Place p) {
    long double value = gradientOfXhat(p) / divisor[p.group];
    const long double weight = weights(element++);
    if (!moving && weight != 0) {
      const long double n = divisors[p.group];
      const long double centered = x.get(p.offset) - mean[p.group];
      const long double ofVariance =
          slope(spec.epsilonPosition, saved.spread.get(p.group), epsilon) * products[p.group];
      value += weight * ofVariance * 2 * centered / n;
      if (!isRms) {
        long double ofMean = -sums[p.group] / divisor[p.group];
        if (weights.mask) // else these sum to 0
          ofMean -= ofVariance * 2 / n * rests[p.group];
        value += weight * ofMean / n;
      }
    }
    dt.set(p.offset, static_cast<double>(value));
  });

  Arrays outputs = throughPrologue(spec, at, inputs, dt, scalars);
  outputs.merge(ofParameters);
  for (const auto &[name, array] : before.operands)
    outputs.emplace(name, array);
  return outputs;
}

/// All elements as one batch: those before are known by their count, mean and squares.
Arrays population(const Spec &spec, const Coordinates &at, const Arrays &inputs, Prologue prologue,
                  double epsilon) {
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

/// The least and the greatest of all elements and of what was before them.
Arrays populationRange(const Coordinates &at, const Arrays &inputs, Prologue prologue) {
  std::vector<double> least, greatest;
  for (int64_t g = 0; g < at.groups(); ++g) {
    least.push_back(inputs.at("minimum").get(g));
    greatest.push_back(inputs.at("maximum").get(g));
  }
  at.forEach([&](Place p) {
    const double x = prologue.value.get(p.offset);
    const auto g = static_cast<size_t>(p.group);
    if (std::isnan(x) || std::isnan(least[g]) || std::isnan(greatest[g])) {
      least[g] = std::isnan(least[g]) || std::isnan(x) ? NAN : std::min(least[g], x);
      greatest[g] = std::isnan(greatest[g]) || std::isnan(x) ? NAN : std::max(greatest[g], x);
      return;
    }
    least[g] = std::min(least[g], x);
    greatest[g] = std::max(greatest[g], x);
  });
  Arrays outputs = std::move(prologue.stored);
  outputs.emplace("minimum", toArray(least, at.parameterShape()));
  outputs.emplace("maximum", toArray(greatest, at.parameterShape()));
  return outputs;
}

} // namespace

Arrays reference(const Spec &whole, Phase phase, const Sizes &sizes, const Arrays &inputs,
                 const Numbers &scalars) {
  const Spec spec = ofPhase(whole, phase);
  if (isBackward(phase)) {
    Arrays outputs = gradients(whole, phase, sizes, inputs, scalars);
    if (!isUpdate(phase))
      return outputs;
    Arrays ofParameters = inputs; // and their gradients
    for (const char *name : {"dgamma", "dbeta"})
      if (auto gradient = outputs.extract(name))
        ofParameters.insert(std::move(gradient));
    outputs.merge(updated(spec, ofParameters, scalars));
    return outputs;
  }
  if (isUpdate(phase))
    return updated(spec, inputs, scalars);
  const Coordinates at(spec, sizes);
  Prologue prologue = prologueOf(spec, sizes, inputs, scalars);
  const HostArray &x = prologue.value;
  const double epsilon = resolve(spec.epsilon, "epsilon", scalars);
  if (phase == Phase::Population)
    return spec.hasRange() ? populationRange(at, inputs, std::move(prologue))
                           : population(spec, at, inputs, std::move(prologue), epsilon);
  if (phase == Phase::Moments)
    return partialMoments(spec, at, x, Weights(spec, at, inputs));
  const bool training = phase == Phase::Training;
  const bool takesMoving = spec.takesMovingStatistics(phase);
  const bool keepsDeviation = spec.movingSpread == MovingSpread::Deviation;
  const std::string spreadName(spec.movingSpreadName());

  Statistics used;
  std::vector<long double> counts; ///< by group: what sums over elements are divided by
  std::vector<double> divisors;
  if (spec.hasRange()) {
    for (int64_t g = 0; g < at.groups(); ++g) {
      const double least = inputs.at("minimum").get(g), width = inputs.at("maximum").get(g) - least;
      used.mean.push_back(least);
      divisors.push_back(width > 0 ? width : 1);
    }
  } else if (takesMoving) {
    for (int64_t g = 0; g < at.groups(); ++g) {
      used.mean.push_back(inputs.at("moving_mean").get(g));
      divisors.push_back(divisorOf(spec, inputs.at(spreadName).get(g), keepsDeviation, epsilon));
    }
  } else if (spec.mode == Mode::Rms) {
    used = meanOfSquares(at, x);
  } else if (spec.synchronized) {
    used = sharedStatistics(spec, at, inputs, counts);
  } else {
    const Weights weights(spec, at, inputs);
    used = batchStatistics(at, x, weights);
    counts = weights.divisors(at);
  }
  Arrays made; // with a renorm
  if (spec.renorm)
    made = renormalize(spec, at, used, inputs, epsilon, scalars);
  const Corrections corrections(spec, inputs, made);
  for (double variance : used.variance)
    divisors.push_back(denominator(spec.epsilonPosition, variance, epsilon));

  HostArray y(DType::F64, at.memoryShape()); // zero, and padding stays so
  const HostArray *gamma = spec.scale ? &inputs.at("gamma") : nullptr;
  const HostArray *beta = spec.center ? &inputs.at("beta") : nullptr;
  const auto steps = bindSteps(spec.fuse, at, inputs);
  const auto bits = training ? keptBits(spec) : std::nullopt;
  const std::vector<int64_t> positions = bits ? at.positionsIn(*bits) : std::vector<int64_t>();
  HostArray mask(DType::Bit, bits ? at.shapeOf(*bits) : std::vector<int64_t>{0});
  size_t element = 0;
  at.forEach([&](Place p) {
    double value = (x.get(p.offset) - used.mean[p.group]) / divisors[p.group];
    value = value * corrections.factor(p) + corrections.addend(p);
    if (gamma)
      value *= gamma->get(p.parameter);
    if (beta)
      value += beta->get(p.parameter);
    for (size_t i = 0; i < steps.size(); ++i) {
      if (bits && i == bits->step)
        mask.set(positions[element], isKept(spec.fuse[i], value));
      value = applyStep(spec.fuse[i], value, steps[i].values(element), scalars).value;
    }
    y.set(p.offset, value);
    ++element;
  });

  Arrays outputs = std::move(prologue.stored);
  outputs.emplace("y", std::move(y));
  if (!training || takesMoving)
    return outputs;

  if (spec.renorm) {
    if (!spec.hasBackward())
      for (const char *name : {"renorm_r", "renorm_d"})
        made.erase(name);
    outputs.merge(made);
  } else if (spec.updatesMovingStatistics(phase)) {
    // Of ghost batches these are means over them.
    std::vector<int64_t> parameterOf(at.groups());
    at.forEach([&](Place p) { parameterOf[p.group] = p.parameter; });
    const double ghosts = static_cast<double>(at.groups()) / static_cast<double>(at.parameters());
    const std::vector<long double> &n = counts;
    std::vector<double> mean(at.parameters(), 0), spread(at.parameters(), 0);
    for (int64_t g = 0; g < at.groups(); ++g) {
      double batch = runningVariance(spec.runningVariance, used.variance[g],
                                     static_cast<double>(n[g]), epsilon);
      if (keepsDeviation)
        batch = rootOf(spec.epsilonPosition, batch, epsilon);
      mean[parameterOf[g]] += used.mean[g] / ghosts;
      spread[parameterOf[g]] += batch / ghosts;
    }
    for (int64_t i = 0; i < at.parameters(); ++i) {
      mean[i] = update(spec.momentum, spec.momentum.mean, inputs.at("moving_mean").get(i), mean[i],
                       scalars);
      spread[i] = update(spec.momentum, spec.momentum.variance, inputs.at(spreadName).get(i),
                         spread[i], scalars);
    }
    outputs.emplace("moving_mean", toArray(mean, at.parameterShape()));
    outputs.emplace(spreadName, toArray(spread, at.parameterShape()));
  }
  if (spec.mode != Mode::Rms)
    outputs.emplace("batch_mean", toArray(used.mean, at.groupShape()));
  outputs.emplace("batch_variance", toArray(used.variance, at.groupShape()));
  if (spec.synchronized && spec.hasBackward()) {
    outputs.emplace("batch_residual",
                    toArray(std::vector<double>(used.mean.size(), 0), at.groupShape()));
    outputs.emplace("batch_count", inputs.at("partial_count"));
  }
  if (bits)
    outputs.emplace("relu_mask", std::move(mask));
  return outputs;
}

} // namespace normforge::oracle
