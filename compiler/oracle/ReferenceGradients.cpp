// Gradients by the chain rule along the formulas of the forward pass, in extended precision.
#include "compiler/oracle/ReferenceParts.h"

#include <stdexcept>

namespace normforge::oracle {

/// The bit that decides the slope of a function at x: set above its only kink or between its two,
/// and for NaN.
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
namespace {

/// The derivative of 1/denominator by the variance; where there is none, at a root of 0, all
/// differences from the mean that it is multiplied with are 0.
long double slope(EpsilonPosition position, long double variance, long double epsilon) {
  const long double divisor = denominator(position, variance, epsilon);
  const long double root = rootOf(position, variance, epsilon);
  return root == 0 ? 0 : -1 / (2 * root * divisor * divisor);
}

double slopeOf(const FuseStep &step, bool isKept) {
  if (step.name == "leaky_relu")
    return isKept ? 1 : step.parameters[0];
  return !isKept ? 0 : step.name == "hard_sigmoid" ? 1.0 / 6 : 1;
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

/// The statistics that the backward pass takes.
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

} // namespace

/// The chain rule along the formulas of the forward pass. In xhat it is the mean itself, not as it
/// was saved.
Arrays gradients(const Spec &whole, Phase phase, const Sizes &sizes, const Arrays &inputs,
                 const Numbers &scalars) {
  const Spec spec = ofPhase(whole, Phase::Backward);
  const Coordinates at(spec, sizes);
  const Corrections corrections(spec, inputs, inputs);
  const bool isSums = phase == Phase::GradientSums, takesSums = spec.synchronized && !isSums;
  const Weights weights(spec, at, inputs);
  const HostArray x = prologueOf(spec, sizes, inputs, scalars).value;
  const double epsilon = resolve(spec.epsilon, "epsilon", scalars);
  const bool moving = spec.backwardStatistics == BackwardStatistics::Moving;
  const bool isRms = spec.mode == Mode::Rms;
  const Saved saved = savedStatistics(spec, inputs);
  const HostArray *gamma = spec.scale ? &inputs.at("gamma") : nullptr;
  const EpilogueGradients before = epilogueGradients(spec, sizes, inputs, scalars);

  // The mean, and what it has lost by being rounded.
  std::vector<double> mean(static_cast<size_t>(at.groups()), 0);
  std::vector<long double> restOfMean(mean.size(), 0);
  if (moving || spec.synchronized) {
    for (int64_t g = 0; g < at.groups(); ++g) {
      mean[static_cast<size_t>(g)] = saved.mean->get(g);
      if (!moving)
        restOfMean[static_cast<size_t>(g)] = inputs.at("batch_residual").get(g);
    }
  } else if (!isRms) {
    Statistics found = batchStatistics(at, x, weights);
    mean = std::move(found.mean);
    restOfMean = std::move(found.restOfMean);
  }
  auto centeredAt = [&](const Place &p) {
    const auto g = static_cast<size_t>(p.group);
    return (static_cast<long double>(x.get(p.offset)) - mean[g]) - restOfMean[g];
  };
  // In extended precision: what dx is made of cancels.
  std::vector<long double> divisor;
  for (int64_t g = 0; g < at.groups(); ++g)
    divisor.push_back(
        moving ? saved.divisor(spec, g, epsilon)
               : denominator<long double>(spec.epsilonPosition, saved.spread.get(g), epsilon));

  std::vector<long double> sums(at.groups(), 0), products(at.groups(), 0), rests(at.groups(), 0);
  std::vector<long double> dgamma(at.parameters(), 0), dbeta(at.parameters(), 0);
  // h, the gradient of xhat.
  auto gradientOfXhat = [&](const Place &p) {
    const long double gradient = before.value.get(p.offset) * corrections.factor(p);
    return gamma ? gradient * gamma->get(p.parameter) : gradient;
  };
  size_t element = 0;
  at.forEach([&](Place p) {
    const long double gradient = before.value.get(p.offset);
    const long double h = gradientOfXhat(p);
    const long double centered = centeredAt(p);
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
      ofX[p.group] += gradient * centeredAt(p);
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
      rests[g] = spec.mask ? Weights::kBeside * (mean[g] + restOfMean[g]) : 0;
    }
  }

  HostArray dt(DType::F64, at.memoryShape());
  element = 0;
  at.forEach([&](Place p) {
    long double value = gradientOfXhat(p) / divisor[p.group];
    const long double weight = weights(element++);
    if (!moving && weight != 0) {
      const long double n = divisors[p.group];
      const long double centered = centeredAt(p);
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

} // namespace normforge::oracle
