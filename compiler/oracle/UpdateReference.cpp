// Optimizer steps in extended precision, by the formulas of compiler/spec/Optimizer.h.
#include "compiler/oracle/Coordinates.h"

#include <algorithm>
#include <cmath>

namespace normforge::oracle {

namespace {

using Real = long double;

/// Keeps NaN.
Real clampedAtZero(Real x) { return x < 0 ? 0 : x; }

/// One parameter through one step.
class Stepper {
public:
  Stepper(const Optimizer &optimizer, const Learned &learned, const Numbers &scalars)
      : o_(optimizer), learned_(learned), step_(scalarOf(scalars, "step", 1)),
        rate_((optimizer.learningRate.isArgument ? scalarOf(scalars, "learning_rate", 0)
                                                 : Real(optimizer.learningRate.value)) /
              (1 + optimizer.decay * (step_ - 1)) * learned.rateFactor) {}

  /// Next values of `name` and of its states, added to `outputs`.
  void run(const std::string &name, const Arrays &inputs, Arrays &outputs);
  Real penalty() const { return penalty_; }

private:
  static Real scalarOf(const Numbers &scalars, const char *name, double otherwise) {
    const auto found = scalars.find(name);
    return found == scalars.end() ? otherwise : found->second;
  }
  Real correction(double beta) const { return 1 - std::pow(Real(beta), step_); }
  Real factorOf(Real norm) const;
  /// The next value of the weight; updates its states. NaN stays.
  Real next(Real w, Real g, Real &momentum, Real &mean, Real &square, Real &most) const;

  const Optimizer &o_;
  const Learned &learned_;
  Real step_, rate_, penalty_ = 0;
};

Real Stepper::next(Real w, Real g, Real &momentum, Real &mean, Real &square, Real &most) const {
  const bool isAdam = o_.kind == Optimizer::Kind::Adam;
  Real direction = g;
  if (o_.kind != Optimizer::Kind::Sgd) {
    const Real ofMean = isAdam ? o_.beta1 : o_.rho, ofSquare = isAdam ? o_.beta2 : o_.rho;
    mean = ofMean * mean + (1 - ofMean) * g;
    square = ofSquare * square + (1 - ofSquare) * g * g;
    Real under = square;
    if (o_.amsgrad)
      under = most = square <= most ? most : square;
    if (o_.centered)
      under = clampedAtZero(under - mean * mean);
    Real divisor = o_.epsilonInRoot  ? std::sqrt(under + o_.epsilon)
                   : o_.correctsRoot ? std::sqrt(under / correction(o_.beta2)) + o_.epsilon
                                     : std::sqrt(under) + o_.epsilon;
    if (isAdam && !o_.correctsRoot)
      divisor /= std::sqrt(correction(o_.beta2));
    direction = (isAdam ? mean / correction(o_.beta1) : g) / divisor;
  }
  if (o_.momentum == 0)
    return w - rate_ * direction;
  if (!o_.ratesMomentum) {
    momentum = o_.momentum * momentum + direction;
    return w - rate_ * (o_.nesterov ? direction + o_.momentum * momentum : momentum);
  }
  if (o_.kind == Optimizer::Kind::Rmsprop) {
    momentum = o_.momentum * momentum + rate_ * direction;
    return w - momentum;
  }
  momentum = o_.momentum * momentum - rate_ * direction;
  return w + (o_.nesterov ? o_.momentum * momentum - rate_ * direction : momentum);
}

/// The factor by which the constraint multiplies a weight.
Real Stepper::factorOf(Real norm) const {
  switch (learned_.constraint) {
  case WeightConstraint::MaxNorm:
    return std::min<Real>(norm, learned_.most) / (kNormEpsilon + norm);
  case WeightConstraint::UnitNorm:
    return 1 / (kNormEpsilon + norm);
  case WeightConstraint::MinMaxNorm:
    return (learned_.rate * std::clamp<Real>(norm, learned_.least, learned_.most) +
            (1 - Real(learned_.rate)) * norm) /
           (kNormEpsilon + norm);
  case WeightConstraint::None:
  case WeightConstraint::NonNegative:
    break;
  }
  return 1;
}

void Stepper::run(const std::string &name, const Arrays &inputs, Arrays &outputs) {
  const HostArray &weights = inputs.at(name), &gradients = inputs.at("d" + name);
  auto stateOf = [&](const char *end) {
    const auto found = inputs.find(name + end);
    return found == inputs.end() ? nullptr : &found->second;
  };
  struct State {
    const char *end;
    const HostArray *old;
    HostArray next;
  };
  State states[] = {
      {"_momentum", stateOf("_momentum"), HostArray(DType::F64, weights.shape)},
      {"_mean_gradient", stateOf("_mean_gradient"), HostArray(DType::F64, weights.shape)},
      {"_mean_square", stateOf("_mean_square"), HostArray(DType::F64, weights.shape)},
      {"_max_square", stateOf("_max_square"), HostArray(DType::F64, weights.shape)}};
  const int64_t count = weights.count();
  std::vector<Real> next(static_cast<size_t>(count));
  Real squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Real w = weights.get(i);
    penalty_ += learned_.l1 * std::abs(w) + learned_.l2 * w * w;
    const Real ofWeight = Real(o_.weightDecay) * learned_.l2Factor;
    const Real sign = w > 0 ? 1 : w < 0 ? -1 : 0;
    const Real g = gradients.get(i) + learned_.l1 * sign + 2 * learned_.l2 * w +
                   (o_.decouplesDecay ? 0 : ofWeight) * w;
    Real values[4];
    for (size_t k = 0; k < 4; ++k)
      values[k] = states[k].old ? states[k].old->get(i) : 0;
    const Real from = o_.decouplesDecay ? w - rate_ * ofWeight * w : w;
    Real to = this->next(from, g, values[0], values[1], values[2], values[3]);
    if (learned_.constraint == WeightConstraint::NonNegative)
      to = clampedAtZero(to);
    for (size_t k = 0; k < 4; ++k)
      states[k].next.set(i, static_cast<double>(values[k]));
    next[static_cast<size_t>(i)] = to;
    squares += to * to;
  }
  HostArray result(DType::F64, weights.shape);
  for (int64_t i = 0; i < count; ++i) {
    const Real to = next[static_cast<size_t>(i)];
    const Real norm = learned_.normsElements ? std::abs(to) : std::sqrt(squares);
    result.set(i, static_cast<double>(to * factorOf(norm)));
  }
  outputs.emplace(name, std::move(result));
  for (State &state : states)
    if (state.old)
      outputs.emplace(name + state.end, std::move(state.next));
}

} // namespace

Arrays updated(const Spec &spec, const Arrays &inputs, const Numbers &scalars) {
  Arrays outputs;
  Real penalty = 0;
  for (const auto &[name, learned, exists] :
       {std::tuple("gamma", &spec.gammaLearned, spec.learnsGamma()),
        std::tuple("beta", &spec.betaLearned, spec.learnsBeta())}) {
    if (!exists)
      continue;
    Stepper stepper(*spec.optimizer, *learned, scalars);
    stepper.run(name, inputs, outputs);
    penalty += stepper.penalty();
  }
  const bool hasPenalty = (spec.learnsGamma() && spec.gammaLearned.hasPenalty()) ||
                          (spec.learnsBeta() && spec.betaLearned.hasPenalty());
  if (hasPenalty) {
    HostArray sum(DType::F64, {});
    sum.set(0, static_cast<double>(penalty));
    outputs.emplace("penalty", std::move(sum));
  }
  return outputs;
}

} // namespace normforge::oracle
