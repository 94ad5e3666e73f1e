// The f64 reference: the formulas of the spec language, one after the other.

#include "compiler/oracle/ReferenceParts.h"

namespace normforge::oracle {

namespace {

/// The new moving value. A momentum weighs the old or the new value; a
/// cumulative one makes the moving value the plain average of `count` batches.
double update(const Momentum &momentum, const Number &number, double old, double batch,
              const Numbers &scalars) {
  if (momentum.cumulative) {
    const long double weight = 1 / static_cast<long double>(scalars.at("count"));
    return static_cast<double>((1 - weight) * old + weight * batch);
  }
  const double a = resolve(number, "momentum", scalars);
  const bool weighsOld = momentum.weighs == MomentumWeighs::Old;
  const long double ofOld = weighsOld ? a : 1 - a, ofNew = weighsOld ? 1 - a : a;
  return static_cast<double>(ofOld * old + ofNew * batch);
}

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

namespace {

/// r and d of Ioffe 2017, by group, and what of the moving arrays is made with them.
Arrays renormalize(const Spec &spec, const Coordinates &at, const Statistics &batch,
                   const Arrays &inputs, double epsilon, const Numbers &scalars) {
  const Renorm &renorm = *spec.renorm;
  std::map<std::string, std::vector<double>> made;
  auto old = [&](const char *name, int64_t g) { return inputs.at(name).get(g); };
  const bool weighsOld = spec.momentum.weighs == MomentumWeighs::Old;
  const double a = renorm.momentum;
  const long double ofOld = weighsOld ? a : 1 - a, ofNew = weighsOld ? 1 - a : a;
  auto average = [&](const char *name, int64_t g, double value) {
    made[name].push_back(static_cast<double>(ofOld * old(name, g) + ofNew * value));
  };
  for (int64_t g = 0; g < at.groups(); ++g) {
    const double deviation = rootOf(spec.epsilonPosition, batch.variance[g], epsilon);
    const double to = std::max(old("renorm_stddev", g), std::sqrt(epsilon));
    made["renorm_r"].push_back(std::clamp(deviation / to, renorm.rMin, renorm.rMax));
    made["renorm_d"].push_back(
        std::clamp((batch.mean[g] - old("renorm_mean", g)) / to, -renorm.dMax, renorm.dMax));
    average("renorm_mean", g, batch.mean[g]);
    average("renorm_stddev", g, deviation);
    const double stddev =
        update(spec.momentum, spec.momentum.variance, old("moving_stddev", g), deviation, scalars);
    made["moving_stddev"].push_back(stddev);
    const auto left = static_cast<double>(static_cast<long double>(stddev) * stddev - epsilon);
    made["moving_variance"].push_back(left < 0 ? 0 : left); // NaN stays
    made["moving_mean"].push_back(
        update(spec.momentum, spec.momentum.mean, old("moving_mean", g), batch.mean[g], scalars));
  }
  Arrays arrays;
  for (const auto &[name, values] : made)
    arrays.emplace(name, toArray(values, at.groupShape()));
  return arrays;
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
    return population(spec, at, inputs, std::move(prologue), epsilon);
  if (phase == Phase::Moments)
    return partialMoments(spec, at, x, Weights(spec, at, inputs));
  const bool training = phase == Phase::Training;
  const bool takesMoving = spec.takesMovingStatistics(phase);
  const bool keepsDeviation = spec.movingSpread == MovingSpread::Deviation;
  const std::string spreadName(spec.movingSpreadName());

  Statistics used;
  std::vector<long double> counts; ///< by group: of elements, as they are weighed
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
    counts = weights.counts(at);
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
    // With ghost batches, the moving statistics take the means over all of them.
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
