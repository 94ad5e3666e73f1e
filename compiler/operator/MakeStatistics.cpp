// Statistics of the forward phases: what is taken of the batch or given, and what is kept of it.
#include "compiler/operator/OperatorBuilder.h"

#include <cmath>

namespace normforge {

/// The weights of the old and of the batch's value. They are computed in f64 where they are known
/// now: 1 - 0.99 is not the f32 nearest to 0.01 when taken in f32.
OperatorBuilder::MomentumWeights OperatorBuilder::momentumWeights() {
  const Momentum &momentum = spec_.momentum;
  if (momentum.cumulative) {
    const Term batch = constant(1) / scalar("count");
    const Term old = constant(1) - batch;
    return {old, batch, old, batch};
  }
  auto pair = [&](const Number &number) {
    const Term weighed = number.isArgument ? scalar("momentum") : constant(number.value);
    const Term other =
        number.isArgument ? constant(1) - scalar("momentum") : constant(1 - number.value);
    return momentum.weighs == MomentumWeighs::Old ? std::pair(weighed, other)
                                                  : std::pair(other, weighed);
  };
  const auto [oldMean, batchMean] = pair(momentum.mean);
  const auto [oldVariance, batchVariance] = pair(momentum.variance);
  return {oldMean, batchMean, oldVariance, batchVariance};
}

/// N/(N-1) and the like; nothing for the biased variance. A group of one element keeps its biased
/// variance, 0, where the formula divides by zero.
std::optional<Term> OperatorBuilder::runningVarianceFactor(Term n, Term epsilon) {
  const RunningVariance kind = spec_.runningVariance;
  if (kind == RunningVariance::Biased)
    return std::nullopt;
  const Term one = constant(1);
  const Term denominator = n - (kind == RunningVariance::Keras2 ? one + epsilon : one);
  return select(less(constant(0), denominator), n / denominator, one);
}

OperatorBuilder::Moments OperatorBuilder::moments() {
  if (spec_.synchronized && op_.phase != Phase::Moments) {
    const Term count = operand("partial_count");
    return {operand("partial_mean"), operand("partial_residual"), operand("partial_squares"),
            spec_.mask ? std::optional(count) : std::nullopt, count};
  }
  const Term x = value_;
  std::vector<Named> results{{"rounded_mean", x}, {"residual_sum", x}, {"square_sum", x}};
  if (spec_.mask)
    results.push_back({"weight_sum", operand("mask")});
  const auto ofElements = addStep("moments", Reduce::Moments, allLoops(), keptLoops(), results);
  if (spec_.mask)
    return {ofElements[0], ofElements[1], ofElements[2], ofElements[3]};
  if (!op_.grouped)
    return {ofElements[0], ofElements[1], ofElements[2]};
  // Those of each channel, and of a group those of its channels' means, to which the channels' own
  // are added (Chan, Golub, LeVeque 1983).
  const Term count = size(op_.terms(op_.steps.back()));
  const Term rest = zeroIfNan(ofElements[1] / count);
  const Term mean = ofElements[0] + rest;
  const auto channels = addStep("channels", Reduce::None, keptLoops(), keptLoops(),
                                {{"channel_mean", mean},
                                 {"channel_rest", rest - (mean - ofElements[0])},
                                 {"channel_squares", fma(-ofElements[1], rest, ofElements[2])}});
  const std::vector<int> loops = ofStatistics(keptLoops()), kept = groupLoops();
  const auto ofMeans = addStep("groups", Reduce::Moments, loops, kept,
                               {{"mean_of_means", channels[0]},
                                {"mean_residual_sum", channels[0]},
                                {"mean_square_sum", channels[0]}});
  // A channel's mean is channels[0] + channels[1], whose square about the group's counts.
  const Term left = channels[1], distance = channels[0] - ofMeans[0];
  const Term more = count * (constant(2) * distance + left);
  const auto sums =
      addStep("channel_sums", Reduce::Sum, loops, kept,
              {{"rest_sum", left}, {"channel_square_sum", fma(more, left, channels[2])}});
  return {ofMeans[0], count * (ofMeans[1] + sums[0]), fma(count, ofMeans[2], sums[1])};
}

void OperatorBuilder::makePartialMoments() {
  const Moments own = moments();
  const Term n = own.weights ? *own.weights : size(op_.groupSize);
  // About the mean as it is rounded when it is corrected.
  const Term mean = own.mean + zeroIfNan(own.rest / n), off = mean - own.mean;
  const Term residual = fma(-n, off, own.rest);
  addStep("partial", Reduce::None, keptLoops(), keptLoops(),
          {{"partial_count", n, "partial_count"},
           {"partial_mean", mean, "partial_mean"},
           {"partial_residual", residual, "partial_residual"},
           {"partial_squares", fma(-off, own.rest + residual, own.squares), "partial_squares"}});
}

/// Statistics of the batch, and what is written of them.
OperatorBuilder::Statistics OperatorBuilder::batchStatistics(bool training, bool updates) {
  const Moments moments = this->moments();
  // Keras 3 divides by the sum of a mask's weights and this, its backend's epsilon.
  const Term n = moments.weights ? *moments.weights + constant(kMaskEpsilon)
                 : moments.count ? *moments.count
                                 : size(op_.groupSize);
  const bool folds = parametersAreKept() && !op_.grouped; // those of groups are each channel's
  std::optional<Term> gamma, beta;
  if (folds && spec_.scale)
    gamma = operand("gamma");
  if (folds && spec_.center)
    beta = operand("beta");
  // Steps read what was named first before the rest.
  if (updates && !hasGhosts())
    for (const char *name : {"moving_mean", spec_.movingSpreadName().data()})
      if (op_.operand(name, false) >= 0)
        operand(name);
  const Term epsilon = number(spec_.epsilon, "epsilon");

  // The correction of an infinite mean is NaN: 0 takes its place.
  Term rest = zeroIfNan(
      (moments.weights ? fma(constant(-kMaskEpsilon), moments.mean, moments.rest) : moments.rest) /
      n);
  const Term twice =
      moments.weights ? fma(-rest, *moments.weights, constant(2) * moments.rest) : moments.rest;
  const Term squares = fma(-twice, rest, moments.squares);
  // The mean and what its rounding leaves out, so that x - mean is 0 for a group of equal x.
  const Term mean = moments.mean + rest;
  rest = rest - (mean - moments.mean);
  const Term variance = clampAtZero(squares / n);
  std::optional<Term> r, d;
  if (spec_.renorm) {
    auto clip = [&](Term value, double least, double most) {
      if (std::isfinite(most))
        value = select(less(constant(most), value), constant(most), value);
      return std::isfinite(least) ? select(less(value, constant(least)), constant(least), value)
                                  : value;
    };
    const Term least = sqrt(epsilon), old = operand("renorm_stddev");
    const Term to = select(less(old, least), least, old);
    r = clip(root(variance, epsilon) / to, spec_.renorm->rMin, spec_.renorm->rMax);
    d = clip((mean - operand("renorm_mean")) / to, -spec_.renorm->dMax, spec_.renorm->dMax);
  }
  const Correction corrected = correction(r, d);
  Term scale = reciprocalDeviation(variance, epsilon);
  if (corrected.factor)
    scale = scale * *corrected.factor;
  if (gamma)
    scale = scale * *gamma;
  // 0 for an infinite gamma, as if there were no rest.
  Term shift = zeroIfNan(-rest * scale);
  if (corrected.addend)
    shift = (gamma ? *corrected.addend * *gamma : *corrected.addend) + shift;
  if (beta)
    shift = *beta + shift;
  std::vector<Named> results{{op_.grouped ? "group_mean" : "mean", mean},
                             {op_.grouped ? "group_scale" : "scale", scale},
                             {op_.grouped ? "group_shift" : "shift", shift}};
  if (training) {
    results.push_back({"batch_mean", mean, "batch_mean"});
    results.push_back({"batch_variance", variance, "batch_variance"});
  }
  if (op_.operand("batch_residual", true) >= 0) {
    results.push_back({"batch_residual", rest, "batch_residual"});
    results.push_back({"batch_count", *moments.count, "batch_count"});
  }
  if (r && op_.operand("renorm_r", true) >= 0) {
    results.push_back({"renorm_r", *r, "renorm_r"});
    results.push_back({"renorm_d", *d, "renorm_d"});
  }
  if (updates)
    addMoving(results, mean, variance, moments.weights ? *moments.weights : n, epsilon);
  auto leaves = addStep("finalize", Reduce::None, groupLoops(), groupLoops(), results);
  if (ofGhosts_)
    ofGhosts_ = {leaves[0], leaves.back()};
  if (op_.grouped) {
    Term ofChannel = leaves[1], added = leaves[2];
    if (spec_.scale) {
      ofChannel = ofChannel * operand("gamma");
      added = zeroIfNan(added * operand("gamma"));
    }
    if (spec_.center)
      added = operand("beta") + added;
    const std::vector<int> loops = ofStatistics(keptLoops());
    leaves = addStep("per_channel", Reduce::None, loops, loops,
                     {{"mean", leaves[0]}, {"scale", ofChannel}, {"shift", added}});
  }
  return {leaves[0], leaves[1], leaves[2]};
}

/// (xhat*r + d)*adjust_scale + adjust_bias.
OperatorBuilder::Correction OperatorBuilder::correction(std::optional<Term> r,
                                                        std::optional<Term> d) {
  if (!spec_.adjustment)
    return {r, d};
  const Term scale = operand("adjust_scale"), bias = operand("adjust_bias");
  return {r ? *r * scale : scale, d ? fma(*d, scale, bias) : bias};
}

Term OperatorBuilder::spreadOf(Term variance, Term n, Term epsilon) {
  const auto factor = runningVarianceFactor(n, epsilon);
  const Term unbiased = factor ? variance * *factor : variance;
  return spec_.movingSpread == MovingSpread::Deviation ? root(unbiased, epsilon) : unbiased;
}

void OperatorBuilder::addMoving(std::vector<Named> &results, Term mean, Term variance, Term n,
                                Term epsilon) {
  const Term spread = spreadOf(variance, n, epsilon);
  if (hasGhosts()) { // averages are of all ghosts: finishMoving
    results.push_back({"spread", spread});
    ofGhosts_ = {mean, spread};
    return;
  }
  auto average = [&](const std::string &name, Term old, Term batch, Term value) {
    const Term next = fma(batch, value, old * operand(name));
    results.push_back({name, next, name});
    return next;
  };
  const MomentumWeights weights = momentumWeights();
  average("moving_mean", weights.oldMean, weights.batchMean, mean);
  if (!spec_.renorm) {
    average(std::string(spec_.movingSpreadName()), weights.oldVariance, weights.batchVariance,
            spread);
    return;
  }
  // As tf.keras: the deviation is averaged, and the variance that inference takes is made of it.
  const Term deviation = root(variance, epsilon);
  const Term stddev =
      average("moving_stddev", weights.oldVariance, weights.batchVariance, deviation);
  results.push_back(
      {"moving_variance", clampAtZero(fma(stddev, stddev, -epsilon)), "moving_variance"});
  const bool weighsOld = spec_.momentum.weighs == MomentumWeighs::Old;
  const double a = spec_.renorm->momentum;
  const Term old = constant(weighsOld ? a : 1 - a), batch = constant(weighsOld ? 1 - a : a);
  average("renorm_mean", old, batch, mean);
  average("renorm_stddev", old, batch, deviation);
}

/// Moving statistics take the means over the ghost batches of their means and variances.
void OperatorBuilder::finishMoving() {
  if (!ofGhosts_)
    return;
  const std::string spreadName(spec_.movingSpreadName());
  const auto [mean, spread] = *ofGhosts_;
  const auto sums = addStep("ghosts", Reduce::Sum, keptLoops(), parameterLoops(),
                            {{"mean_sum", mean}, {"spread_sum", spread}});
  const Term count = size(ghosts());
  const MomentumWeights weights = momentumWeights();
  auto average = [&](Term old, Term batch, Term sum, const std::string &name) {
    return Named{name, fma(batch, sum / count, old * operand(name)), name};
  };
  addStep("moving", Reduce::None, parameterLoops(), parameterLoops(),
          {average(weights.oldMean, weights.batchMean, sums[0], "moving_mean"),
           average(weights.oldVariance, weights.batchVariance, sums[1], spreadName)});
}

/// Chan, Golub, LeVeque 1983, (2.1): of n elements with mean m and squares S about it, and n', m',
/// S' before them, the mean m' + (m - m')*n/(n + n') and squares S' + S + (m - m')^2*n*n'/(n + n').
/// They are exact but for f64's roundings, so that all cuts into batches come to the same.
void OperatorBuilder::makePopulation() {
  if (spec_.hasRange()) {
    makeRange();
    return;
  }
  const Moments moments = this->moments();
  const Term zero = constant(0);
  const Term n = moments.weights ? *moments.weights : size(op_.groupSize);
  // The correction of an infinite mean, or of a mean of nothing, is NaN: 0 takes its place.
  const Term rest = zeroIfNan(moments.rest / n);
  const Term batch = moments.mean + rest;
  const Term squares = clampAtZero(fma(-moments.rest, rest, moments.squares));
  const Term before = operand("population_count"), old = operand("population_mean");
  const Term count = before + n, hasAny = less(zero, count);
  const Term share = select(hasAny, n / count, zero), distance = batch - old;
  const Term mean = fma(distance, share, old);
  const Term between = distance * distance * (before * share);
  const Term all = operand("population_m2") + (squares + between);
  const Term variance = select(hasAny, all / count, zero);
  const std::string spread(spec_.movingSpreadName());
  const Term epsilon = spec_.spreadTakesEpsilon() ? number(spec_.epsilon, "epsilon") : zero;
  addStep("population", Reduce::None, keptLoops(), keptLoops(),
          {{"population_count", count, "population_count"},
           {"population_mean", mean, "population_mean"},
           {"population_m2", all, "population_m2"},
           {"moving_mean", mean, "moving_mean"},
           {spread, spreadOf(variance, count, epsilon), spread}});
}

/// The least and greatest value of all batches so far, exactly.
void OperatorBuilder::makeRange() {
  const Term x = value_;
  const auto ofBatch = addStep("extremes", Reduce::Maximum, allLoops(), keptLoops(),
                               {{"negated_minimum", -x}, {"batch_maximum", x}});
  auto greater = [&](Term a, Term b) { // keeps NaN of either
    return select(isNan(b), b, select(less(a, b), b, a));
  };
  addStep("population", Reduce::None, keptLoops(), keptLoops(),
          {{"minimum", -greater(-operand("minimum"), ofBatch[0]), "minimum"},
           {"maximum", greater(operand("maximum"), ofBatch[1]), "maximum"}});
}

/// A quotient, no product with a reciprocal: it is 1 for the greatest value and never above it. A
/// range of nothing or of one value divides by 1.
Term OperatorBuilder::range() {
  const Term least = operand("minimum"), width = operand("maximum") - least, one = constant(1);
  std::vector<Named> results{{"minimum", least},
                             {"width", select(less(constant(0), width), width, one)}};
  if (spec_.scale)
    results.push_back({"scale", operand("gamma")});
  if (spec_.center)
    results.push_back({"shift", operand("beta")});
  const auto leaves = addStep("finalize", Reduce::None, keptLoops(), keptLoops(), results);
  const Term share = (value_ - leaves[0]) / leaves[1];
  if (spec_.scale && spec_.center)
    return fma(share, leaves[2], leaves[3]);
  return spec_.scale ? share * leaves[2] : spec_.center ? share + leaves[2] : share;
}

/// The mean of squares about 0 (Zhang and Sennrich 2019), and what is written of it.
OperatorBuilder::Statistics OperatorBuilder::meanOfSquares(bool training) {
  const Term x = value_;
  const auto sums =
      addStep("squares", Reduce::Sum, allLoops(), keptLoops(), {{"square_sum", x * x}});
  const Term square = sums[0] / size(op_.groupSize);
  const Term scale = reciprocalDeviation(square, number(spec_.epsilon, "epsilon"));
  std::vector<Named> results{{"scale", scale}};
  if (training)
    results.push_back({"batch_variance", square, "batch_variance"});
  return {{}, addStep("finalize", Reduce::None, keptLoops(), keptLoops(), results)[0], {}};
}

/// Statistics as they are given.
OperatorBuilder::Statistics OperatorBuilder::movingStatistics() {
  const Term mean = operand("moving_mean");
  std::optional<Term> gamma, beta;
  if (spec_.scale)
    gamma = operand("gamma");
  if (spec_.center)
    beta = operand("beta");
  Term scale = reciprocalOfMoving(number(spec_.epsilon, "epsilon"));
  if (gamma)
    scale = scale * *gamma;
  const auto leaves =
      addStep("finalize", Reduce::None, keptLoops(), keptLoops(),
              {{"mean", mean}, {"scale", scale}, {"shift", beta ? *beta : constant(0)}});
  return {leaves[0], leaves[1], leaves[2]};
}

} // namespace normforge
