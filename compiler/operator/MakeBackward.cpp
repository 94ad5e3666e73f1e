// The backward phase: gradients as steps.
#include "compiler/operator/OperatorBuilder.h"

#include <fmt/format.h>
#include <map>

namespace normforge {

/// The gradients, from what training has saved or from the moving statistics.
///
/// With u the gradient of what gamma and beta gave, h = u*gamma that of xhat = (x - m)*s, n
/// elements a statistic and the sums over them (Ioffe and Szegedy 2015, section 3):
///   dx = s*h + (ds/dv * sum(h*(x - m)) * 2/n) * (x - m) - s*sum(h)/n
///   dgamma = sum(u*xhat), dbeta = sum(u)
/// The saved mean is a rounding away from m: m - mean is the mean of x - mean, which is summed as
/// well. Without a mean (rms) the sums and terms of h alone are not there. Statistics that are
/// given do not depend on x: dx = s*h, and m is the moving mean.
///
/// With groups of channels, the sums over elements are those of each channel, of u and u*(x - m):
/// the groups' sums of h and h*(x - m) and the channels' dgamma and dbeta are both made of them.
void OperatorBuilder::makeBackward() {
  const DType data = spec_.dtype, parameter = spec_.parameterDType;
  const bool moving = spec_.backwardStatistics == BackwardStatistics::Moving;
  const DType statistic = spec_.statisticDType();
  const bool hasMean = spec_.hasMean();
  const bool updates = isUpdate(op_.phase);
  // A synchronized batch has two phases: one makes the sums of these samples, and dgamma and dbeta
  // of them; the other takes the sums of all samples.
  const bool isShared = spec_.synchronized, isSums = op_.phase == Phase::GradientSums;
  const bool takesSums = isShared && !isSums;
  const Needs needs = needsOf(spec_.fuse, bits_ ? std::optional(bits_->step) : std::nullopt);

  // The prologue in runs of steps, each but the last ending with a value that is stored.
  struct Run {
    std::span<const FuseStep> steps;
    std::string from; ///< the argument that it begins with
    Needs needs;
  };
  std::vector<Run> runs;
  std::string from = "x";
  size_t first = 0;
  for (size_t i = 0; i <= spec_.prologue.size(); ++i) {
    const bool ends = i == spec_.prologue.size();
    if (!ends && spec_.prologue[i].store.empty())
      continue;
    const auto steps = std::span(spec_.prologue).subspan(first, i + !ends - first);
    runs.push_back({steps, from, needsOf(steps)});
    if (!ends)
      from = spec_.prologue[i].store;
    first = i + 1;
  }
  // The last one is computed again.
  runs.back().needs.value = true;
  for (const FuseStep &step : runs.back().steps)
    for (const StepOperand &operand : step.operands)
      runs.back().needs.operands.insert(operand.name);

  for (const Run &run : runs)
    if (run.needs.value)
      addOperand(run.from.c_str(), Role::Data, Values::Sample, data, dataIndex(), false);
  addOperand("dy", Role::Gradient, Values::Any, data, dataIndex(), false);
  for (size_t i = 1; i < runs.size(); ++i)
    addOperand(("d" + runs[i].from).c_str(), Role::Gradient, Values::Any, data, dataIndex(), false);
  for (const Run &run : runs)
    for (const FuseStep &step : run.steps)
      addStepOperands({step}, [&](const StepOperand &operand) {
        return !run.needs.operands.contains(operand.name);
      });
  if (spec_.scale)
    addOperand("gamma", Role::Parameter, Values::Factor, parameter, parameterIndex(), false);
  if (moving)
    addMovingOperands(/*written=*/false);
  else if (hasMean)
    addOperand("batch_mean", Role::Statistic, Values::Mean, statistic, statisticIndex(), false);
  if (!moving)
    addOperand("batch_variance", Role::Statistic, Values::Variance, statistic, statisticIndex(),
               false);
  if (isShared)
    addSharedStatistics(/*written=*/false);
  if (spec_.renorm) {
    addOperand("renorm_r", Role::Statistic, Values::Ratio, statistic, statisticIndex(), false);
    addOperand("renorm_d", Role::Statistic, Values::Any, statistic, statisticIndex(), false);
  }
  addAdjustments();
  if (needs.value && spec_.center)
    addOperand("beta", Role::Parameter, Values::Any, parameter, parameterIndex(), false);
  if (bits_)
    addBits(/*written=*/false);
  addStepOperands(spec_.fuse, [&](const StepOperand &operand) {
    return !needs.operands.contains(operand.name);
  });
  if (!isSums)
    addMask();
  if (isShared)
    addPartialSums(/*written=*/isSums);
  if (updates)
    addLearnedOperands(/*written=*/false);
  // An update of elements is made after dx, and of dy once more.
  std::vector<std::string> overDy;
  if (!updates || loopsOf(parameterIndex()) != allLoops())
    overDy.push_back("dy");
  if (!isSums)
    addOperand("dx", Role::Gradient, Values::Any, data, dataIndex(), true, overDy);
  for (const LearnedParameter &of : learnedParameters())
    if (!updates && !takesSums)
      addOperand(("d" + of.name).c_str(), Role::Gradient, Values::Any, parameter, parameterIndex(),
                 true);
  for (const std::vector<FuseStep> *steps : {&spec_.prologue, &spec_.fuse})
    for (const FuseStep &step : *steps)
      for (const StepOperand &operand : step.operands)
        if (!isSums)
          addOperand(("d" + operand.name).c_str(), Role::Gradient, Values::Any, dtypeOf(step),
                     indexOf(operand), true, operand.whole ? overDy : std::vector<std::string>());
  if (updates)
    addLearnedOperands(/*written=*/true);

  const Term start = operand(runs.back().from);
  const Term dy = operand("dy");
  value_ = applySteps(runs.back().steps, start);
  const bool isKept = parametersAreKept();
  std::optional<Term> gamma, beta;
  if (spec_.scale)
    gamma = operand("gamma");
  if (needs.value && spec_.center)
    beta = operand("beta");
  const std::optional<Term> none, elementGamma = isKept ? none : gamma,
                                  elementBeta = isKept ? none : beta;

  // The values that are known before the sums.
  const Term epsilon = number(spec_.epsilon, "epsilon");
  std::optional<Term> variance; // that x is in
  if (!moving)
    variance = operand("batch_variance");
  const Term deviation =
      moving ? reciprocalOfMoving(epsilon) : reciprocalDeviation(*variance, epsilon);
  const Correction corrected =
      spec_.renorm ? correction(operand("renorm_r"), operand("renorm_d")) : correction({}, {});
  const Term factored = corrected.factor ? deviation * *corrected.factor : deviation;
  std::vector<Named> known{{"deviation", factored}};
  if (isKept && gamma)
    known.push_back({"scale", factored * *gamma});
  if (hasMean)
    known.push_back({"mean", operand(moving ? "moving_mean" : "batch_mean")});
  if (needs.value && hasMean) {
    Term shift = isKept && beta ? *beta : constant(0);
    if (corrected.addend) {
      const Term added = gamma ? *corrected.addend * *gamma : *corrected.addend;
      shift = beta ? *beta + added : added;
    }
    known.push_back({"shift", shift});
  }
  const std::vector<int> ofChannels = ofStatistics(keptLoops());
  std::vector<Term> leaves = addStep("prepare", Reduce::None, ofChannels, ofChannels, known);
  auto take = [&, next = size_t(0)]() mutable { return leaves[next++]; };
  const Term s = take();
  const Term scale = isKept && gamma ? take() : s;
  std::optional<Term> mean, shift;
  if (hasMean)
    mean = take();
  if (needs.value && hasMean)
    shift = take();
  const Term centered = mean ? value_ - *mean : value_;

  // Gradients of elements.
  std::optional<Term> value;
  if (needs.value)
    value = affine({mean, scale, shift}, elementGamma, elementBeta);
  const Gradients ofFused = gradientsOf(spec_.fuse, value, dy, needs);
  const Term u = ofFused.value;
  const Term h = elementGamma ? u * *elementGamma : u;
  std::optional<Term> mask;
  if (spec_.mask && !isSums)
    mask = operand("mask");
  Term n = takesSums ? operand("batch_count") : size(op_.groupSize);
  if (takesSums && mask)
    n = n + constant(kMaskEpsilon);

  // Sums over other loops than those of the statistics, each a pass of its own, by their loops.
  std::map<std::vector<int>, std::vector<Named>> others;
  std::vector<Named> sums, made, elements;
  // By the parameters' names: gradients that are not written, but that a step is taken by.
  std::map<std::string, Term> ofLearned;
  auto isLearned = [](std::string_view name) { return name == "dgamma" || name == "dbeta"; };
  auto addGradient = [&](const std::string &name, std::vector<int> loops, Term of, bool isEarly) {
    // The gradient is 0 where nothing depends on the value, and a sum needs an array to run over.
    if (op_.exprs[of.expr].op == ExprOp::Constant)
      of = select(isNan(dy), of, of);
    if (loops == allLoops() && updates && isLearned(name))
      ofLearned.emplace(name.substr(1), of);
    else if (loops == allLoops())
      elements.push_back({name, of, name});
    else if (isEarly && loops == keptLoops())
      sums.push_back({name, of, name});
    else
      others[std::move(loops)].push_back({name, of, name});
  };

  // Sums of h where the statistics need them, of u where gamma and beta have the same loops.
  const bool needsSum = !takesSums && ((hasMean && !moving) || (spec_.learnsBeta() && isKept));
  const bool needsProduct = !takesSums && (!moving || (spec_.learnsGamma() && isKept));
  const bool needsRest = hasMean && !moving && !isShared;
  if (needsSum)
    sums.push_back({"gradient_sum", h});
  if (needsProduct)
    sums.push_back({"product_sum", h * centered});
  if (needsRest)
    sums.push_back({"residual_sum", mask ? *mask * centered : centered});
  if (mask && !isShared)
    sums.push_back({"weight_sum", *mask});
  if (!isSums)
    for (const auto &[one, gradient] : ofFused.operands)
      addGradient("d" + one->name, loopsOf(indexOf(*one)), gradient, /*isEarly=*/true);
  std::optional<Term> sum, product, rest;
  if (!sums.empty()) {
    std::vector<Named> summed = sums;
    for (Named &one : summed)
      one.operand = {};
    leaves = addStep("sums", Reduce::Sum, allLoops(), keptLoops(), summed);
    auto next = leaves.begin();
    if (needsSum)
      sum = *next++;
    if (needsProduct)
      product = *next++;
    if (needsRest)
      rest = *next++;
    if (mask && !isShared)
      n = *next++ + constant(kMaskEpsilon);
    for (const Named &one : sums)
      if (!one.operand.empty())
        made.push_back({one.name, *next++, one.operand});
  }
  // The sums of groups; those of channels stay for their dgamma and dbeta.
  std::optional<Term> channelSum, channelProduct;
  if (op_.grouped) {
    made.push_back({"channel_sum", *sum});
    made.push_back({"channel_product", *product});
    made.push_back({"channel_rest", *rest});
    leaves = addStep("channels", Reduce::None, keptLoops(), keptLoops(), made);
    auto next = leaves.end() - 3;
    channelSum = next[0];
    channelProduct = next[1];
    auto weighed = [&](Term of) { return gamma ? of * *gamma : of; };
    leaves = addStep("groups", Reduce::Sum, ofChannels, groupLoops(),
                     {{"group_sum", weighed(next[0])},
                      {"group_product", weighed(next[1])},
                      {"group_rest_sum", next[2]}});
    sum = leaves[0];
    product = leaves[1];
    rest = leaves[2];
    made.clear();
  }
  auto gradientOfGamma = [&] {
    return corrected.addend ? fma(s, *product, *corrected.addend * *sum) : s * *product;
  };
  if (isShared)
    rest = operand("batch_residual");
  if (isSums) {
    product = fma(-*rest, *sum, *product);
    std::vector<Named> partial{{"partial_gradient", *sum, "partial_gradient"},
                               {"partial_product", *product, "partial_product"}};
    if (spec_.learnsGamma())
      partial.push_back({"dgamma", gradientOfGamma(), "dgamma"});
    if (spec_.learnsBeta())
      partial.push_back({"dbeta", *sum, "dbeta"});
    addStep("finalize", Reduce::None, ofChannels, ofChannels, partial);
    return;
  }
  if (takesSums) {
    sum = operand("partial_gradient");
    product = operand("partial_product");
  } else if (rest) {
    // The mean of a mask's weights divides by a little more than they sum to.
    rest = (mask ? fma(constant(-kMaskEpsilon), *mean, *rest) : *rest) / n;
    product = fma(-*rest, *sum, *product);
  }

  // The values that dt is made of, and the gradients of parameters that have the statistics' loops,
  // or more of them.
  const std::vector<int> parameters = ofStatistics(parameterLoops());
  const bool sameLoops = parameters == ofChannels, storesSame = sameLoops && !updates;
  const bool readsRest = rest && !isKept;
  const size_t written = made.size();
  if (readsRest)
    made.push_back({"rest", *rest});
  if (!moving) {
    // Gamma is in the sums of groups.
    const bool lacksGamma = isKept && gamma && !op_.grouped;
    Term weighed = lacksGamma ? *gamma * *product : *product;
    if (corrected.factor)
      weighed = *corrected.factor * weighed;
    const Term seed = constant(2) / n * weighed;
    const Expr by = variance->expr;
    const auto slope = op_.exprs.gradients(deviation.expr, seed.expr, std::span(&by, 1));
    Term ofX{&op_.exprs, slope[0].value()};
    // The root of a variance of 0 has no slope, but where that is there is nothing to multiply it
    // with: all differences are 0.
    if (spec_.epsilonPosition == EpsilonPosition::Outside)
      ofX = select(lessEqual(*variance, constant(0)), constant(0), ofX);
    made.push_back({"of_x", ofX});
    if (hasMean) {
      Term ofOne = -fma(ofX, *rest, (op_.grouped ? deviation : scale) * (*sum / n));
      if (mask) // of the weighted differences, which sum to this times the mean
        ofOne = ofOne - ofX * (constant(kMaskEpsilon) * (*mean + *rest)) / n;
      made.push_back({"of_one", ofOne});
    }
  }
  if (op_.grouped) {
    made.push_back({"rest", *rest});
    for (Named &one : made)
      one.name = "group_" + one.name;
    leaves = addStep("finalize", Reduce::None, groupLoops(), groupLoops(), made);
    made = {{"of_x", leaves[0]}, {"of_one", leaves[1]}};
    sum = channelSum;
    product = fma(-leaves[2], *channelSum, *channelProduct);
  }
  const bool makesGamma = isKept && spec_.learnsGamma() && !isShared,
             makesBeta = isKept && spec_.learnsBeta() && !isShared;
  if (makesGamma)
    made.push_back({"dgamma", gradientOfGamma(), storesSame ? "dgamma" : ""});
  if (makesBeta)
    made.push_back({"dbeta", *sum, storesSame ? "dbeta" : ""});
  std::optional<Term> ofX, ofOne, ownGamma, ownBeta;
  if (!made.empty()) {
    leaves = addStep(op_.grouped ? "per_channel" : "finalize", Reduce::None, ofChannels, ofChannels,
                     made);
    auto next = leaves.begin() + static_cast<std::ptrdiff_t>(written);
    if (readsRest)
      rest = *next++;
    if (!moving) {
      ofX = *next++;
      if (hasMean)
        ofOne = *next++;
    }
    if (makesGamma)
      ownGamma = *next++;
    if (makesBeta)
      ownBeta = *next++;
  }
  if (updates && sameLoops) {
    if (ownGamma)
      ofLearned.emplace("gamma", *ownGamma);
    if (ownBeta)
      ofLearned.emplace("beta", *ownBeta);
  }
  // Before dx where no step after it reads gamma or beta, which may be written in place. Of groups
  // the gradients are stored first.
  const bool isUpdatedEarly = updates && sameLoops && isKept && !op_.grouped;
  if (isUpdatedEarly)
    addUpdate(ofLearned, parameters);
  if (!isKept) {
    if (spec_.learnsGamma())
      addGradient("dgamma", parameters, u * ((rest ? centered - *rest : centered) * s), false);
    if (spec_.learnsBeta())
      addGradient("dbeta", parameters, u, false);
  }

  // Through the prologue.
  Term gradient = scale * h;
  if (ofOne && mask)
    gradient = fma(scale, h, *mask * fma(*ofX, centered, *ofOne));
  else if (ofOne)
    gradient = fma(scale, h, fma(*ofX, centered, *ofOne));
  else if (ofX)
    gradient = fma(scale, h, *ofX * centered);
  for (size_t i = runs.size(); i-- > 0;) {
    const Run &run = runs[i];
    const std::optional<Term> begin =
        run.needs.value ? std::optional(operand(run.from)) : std::nullopt;
    const Gradients through = gradientsOf(run.steps, begin, gradient, run.needs);
    for (const auto &[one, part] : through.operands)
      addGradient("d" + one->name, loopsOf(indexOf(*one)), part, /*isEarly=*/false);
    gradient = through.value;
    if (i > 0)
      gradient = gradient + operand("d" + run.from);
  }
  elements.insert(elements.begin(), {"dx", gradient, "dx"});

  auto addSums = [&](std::vector<int> over, const std::vector<int> &loops,
                     const std::vector<Named> &ofLoops, const std::string &suffix) {
    std::vector<Named> summed = ofLoops, stored = ofLoops;
    for (Named &one : summed) {
      one.name += "_sum";
      one.operand = {};
    }
    leaves = addStep(("parameters" + suffix).c_str(), Reduce::Sum, std::move(over), loops, summed);
    for (size_t i = 0; i < stored.size(); ++i)
      stored[i].value = leaves[i];
    for (Named &one : stored)
      if (updates && isLearned(one.name))
        one.operand = {};
    leaves = addStep(("store" + suffix).c_str(), Reduce::None, loops, loops, stored);
    for (size_t i = 0; i < stored.size(); ++i)
      if (updates && isLearned(stored[i].name))
        ofLearned.emplace(stored[i].name.substr(1), leaves[i]);
  };
  std::string suffix;
  int count = 1;
  for (const auto &[loops, ofLoops] : others) {
    addSums(allLoops(), loops, ofLoops, suffix);
    suffix = fmt::format("_{}", ++count);
  }
  addStep("gradient", Reduce::None, allLoops(), allLoops(), elements);
  std::vector<Named> own;
  if (ownGamma && !sameLoops)
    own.push_back({"dgamma", *ownGamma, "dgamma"});
  if (ownBeta && !sameLoops)
    own.push_back({"dbeta", *ownBeta, "dbeta"});
  if (!own.empty())
    addSums(ofChannels, parameters, own, suffix);
  if (updates && !isUpdatedEarly)
    addUpdate(ofLearned, parameters);
}

} // namespace normforge
