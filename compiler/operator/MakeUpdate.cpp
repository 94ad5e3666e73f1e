// An optimizer's step by the gradients of gamma and beta: phase update, and the end of
// backward+update.
#include "compiler/operator/OperatorBuilder.h"

#include <cmath>

namespace normforge {

namespace {

/// A state that is kept for a parameter from step to step, by the end of the argument's name.
struct State {
  const char *end;
  Values values;
};
constexpr State kMomentum = {"_momentum", Values::Any};
constexpr State kMeanGradient = {"_mean_gradient", Values::Fraction};
constexpr State kMeanSquare = {"_mean_square", Values::Ratio};
constexpr State kMaxSquare = {"_max_square", Values::Ratio};

std::vector<State> statesOf(const Optimizer &optimizer) {
  std::vector<State> states;
  if (optimizer.momentum > 0)
    states.push_back(kMomentum);
  if (optimizer.kind == Optimizer::Kind::Adam || optimizer.centered)
    states.push_back(kMeanGradient);
  if (optimizer.kind != Optimizer::Kind::Sgd)
    states.push_back(kMeanSquare);
  if (optimizer.amsgrad)
    states.push_back(kMaxSquare);
  return states;
}

} // namespace

std::vector<OperatorBuilder::LearnedParameter> OperatorBuilder::learnedParameters() const {
  std::vector<LearnedParameter> all;
  if (spec_.learnsGamma())
    all.push_back({"gamma", Values::Factor, spec_.gammaLearned});
  if (spec_.learnsBeta())
    all.push_back({"beta", Values::Any, spec_.betaLearned});
  return all;
}

void OperatorBuilder::addLearnedOperands(bool written) {
  const DType parameter = spec_.parameterDType, state = spec_.statisticDType();
  const std::vector<LearnedParameter> all = learnedParameters();
  for (const LearnedParameter &of : all) {
    const int read = op_.operand(of.name, false);
    if (!written && read >= 0) // by backward, too
      continue;
    addOperand(of.name.c_str(), Role::Parameter, of.values, parameter, parameterIndex(), written,
               written ? std::vector{of.name} : std::vector<std::string>());
    if (written)
      op_.operands.back().old = read;
  }
  for (const LearnedParameter &of : all)
    for (const auto &[end, values] : statesOf(*spec_.optimizer)) {
      const std::string name = of.name + end;
      addOperand(name.c_str(), Role::State, values, state, parameterIndex(), written,
                 written ? std::vector{name} : std::vector<std::string>());
    }
  if (written &&
      llvm::any_of(all, [](const LearnedParameter &of) { return of.learned.hasPenalty(); }))
    addOperand("penalty", Role::Statistic, Values::Any, state, indexOf([](int) { return false; }),
               true);
}

/// Elements are those of a parameter, all of them one statistics group: what norms and penalties
/// are sums over.
void OperatorBuilder::makeUpdate() {
  for (const LearnedParameter &of : learnedParameters())
    addOperand(("d" + of.name).c_str(), Role::Gradient, Values::Any, spec_.parameterDType,
               parameterIndex(), false);
  addLearnedOperands(/*written=*/false);
  addLearnedOperands(/*written=*/true);
  std::map<std::string, Term> gradients;
  for (const LearnedParameter &of : learnedParameters())
    gradients.emplace(of.name, operand("d" + of.name));
  addUpdate(gradients, allLoops());
}

/// The formulas are those of compiler/spec/Optimizer.h.
void OperatorBuilder::addUpdate(const std::map<std::string, Term> &gradients,
                                const std::vector<int> &loops) {
  const Optimizer &optimizer = *spec_.optimizer;
  const std::vector<LearnedParameter> all = learnedParameters();
  const Term one = constant(1), zero = constant(0);

  // The values of the step that all elements share: the rate, and the sums of the averages'
  // weights, 1 - b^t = -expm1(t*ln b).
  std::optional<Term> step;
  if (optimizer.takesStep())
    step = scalar("step");
  Term rate = number(optimizer.learningRate, "learning_rate");
  if (optimizer.decay > 0)
    rate = rate / (one + constant(optimizer.decay) * (*step - one));
  const Term ofDecay = rate; // before what Adam makes of it
  std::optional<Term> ofRoot;
  if (optimizer.kind == Optimizer::Kind::Adam) {
    auto sumOfWeights = [&](double beta) {
      return beta == 0 ? one : -expm1(*step * constant(std::log(beta)));
    };
    rate = rate / sumOfWeights(optimizer.beta1);
    const Term root = sqrt(sumOfWeights(optimizer.beta2));
    if (optimizer.correctsRoot)
      ofRoot = root;
    else
      rate = rate * root;
  }

  // The factor that a constraint takes a weight times, by a norm.
  auto factorOf = [&](const Learned &learned, Term norm) {
    auto clip = [&](Term value, double least) {
      const Term most = constant(learned.most), low = constant(least);
      value = select(less(most, value), most, value);
      return select(less(value, low), low, value);
    };
    Term wanted = one;
    if (learned.constraint == WeightConstraint::MaxNorm)
      wanted = clip(norm, 0);
    else if (learned.constraint == WeightConstraint::MinMaxNorm)
      wanted =
          fma(constant(learned.rate), clip(norm, learned.least), constant(1 - learned.rate) * norm);
    return wanted / (constant(kNormEpsilon) + norm);
  };

  // New values before constraints that take a sum, and states.
  std::vector<Named> results, states, sums;
  std::vector<Term> weights;
  std::optional<Term> penalty;
  for (const LearnedParameter &of : all) {
    const Learned &learned = of.learned;
    const Term w = operand(of.name);
    Term g = gradients.at(of.name);
    const double ofWeight = optimizer.weightDecay * learned.l2Factor;
    const double decay = (optimizer.decouplesDecay ? 0 : ofWeight) + 2 * learned.l2;
    if (decay > 0)
      g = fma(constant(decay), w, g);
    if (learned.l1 > 0)
      g = g + select(less(zero, w), constant(learned.l1),
                     select(less(w, zero), constant(-learned.l1), zero));
    const Term r = learned.rateFactor == 1 ? rate : rate * constant(learned.rateFactor);
    auto state = [&](const State &kept) { return operand(of.name + kept.end); };
    auto keep = [&](const State &kept, Term value) {
      const std::string name = of.name + kept.end;
      states.push_back({name, value, name});
      return value;
    };
    auto average = [&](const State &kept, double weight, Term value) {
      return keep(kept, fma(constant(weight), state(kept), constant(1 - weight) * value));
    };
    Term to = g; // what is gone along
    if (optimizer.kind != Optimizer::Kind::Sgd) {
      const bool isAdam = optimizer.kind == Optimizer::Kind::Adam;
      const Term epsilon = constant(optimizer.epsilon);
      std::optional<Term> mean;
      if (isAdam || optimizer.centered)
        mean = average(kMeanGradient, isAdam ? optimizer.beta1 : optimizer.rho, g);
      Term square = average(kMeanSquare, isAdam ? optimizer.beta2 : optimizer.rho, g * g);
      if (optimizer.amsgrad) { // NaN stays
        const Term most = state(kMaxSquare);
        square = keep(kMaxSquare, select(lessEqual(square, most), most, square));
      }
      if (optimizer.centered)
        square = clampAtZero(fma(-*mean, *mean, square));
      Term root = sqrt(optimizer.epsilonInRoot ? square + epsilon : square);
      if (ofRoot)
        root = root / *ofRoot;
      to = (isAdam ? *mean : g) / (optimizer.epsilonInRoot ? root : root + epsilon);
    }
    Term next = w;
    if (optimizer.decouplesDecay && ofWeight > 0)
      next = fma(-(ofDecay * constant(ofWeight * learned.rateFactor)), w, w);
    if (optimizer.momentum == 0) {
      next = fma(-r, to, next);
    } else {
      const Term mu = constant(optimizer.momentum), old = state(kMomentum);
      // In SGD with rates in the momentum, v points towards less loss; otherwise away from it.
      const bool isDownward = optimizer.kind == Optimizer::Kind::Sgd && optimizer.ratesMomentum;
      if (optimizer.ratesMomentum)
        to = isDownward ? -(r * to) : r * to;
      const Term v = keep(kMomentum, fma(mu, old, to));
      const Term along = optimizer.nesterov ? fma(mu, v, to) : v;
      next = !optimizer.ratesMomentum ? fma(-r, along, next)
             : isDownward             ? next + along
                                      : next - along;
    }
    if (learned.constraint == WeightConstraint::NonNegative)
      next = clampAtZero(next);
    if (learned.takesNorm() && learned.normsElements)
      next = next * factorOf(learned, abs(next));
    if (learned.sumsSquares())
      sums.push_back({of.name + "_squares", next * next});
    weights.push_back(next);
    if (learned.hasPenalty()) {
      Term own = constant(learned.l2) * (w * w);
      if (learned.l1 > 0)
        own = fma(constant(learned.l1), abs(w), own);
      penalty = penalty ? *penalty + own : own;
    }
  }
  if (penalty)
    sums.push_back({"penalty_sum", *penalty});

  std::vector<Term> factors;
  if (!sums.empty()) {
    const std::vector<Term> ofAll = addStep("norm_sums", Reduce::Sum, loops, {}, sums);
    std::vector<Named> ofSums;
    size_t next = 0;
    for (const LearnedParameter &of : all)
      if (of.learned.sumsSquares())
        ofSums.push_back({of.name + "_factor", factorOf(of.learned, sqrt(ofAll[next++]))});
    if (penalty)
      ofSums.push_back({"penalty", ofAll.back(), "penalty"});
    factors = addStep("norms", Reduce::None, {}, {}, ofSums);
  }
  size_t next = 0;
  for (size_t i = 0; i < all.size(); ++i)
    results.push_back({all[i].name,
                       all[i].learned.sumsSquares() ? weights[i] * factors[next++] : weights[i],
                       all[i].name});
  llvm::append_range(results, states);
  addStep("update", Reduce::None, loops, loops, results);
}

} // namespace normforge
