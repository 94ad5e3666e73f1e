// From a spec to its operator: loops, operands, and the formulas of the phases.
#include "compiler/expr/Functions.h"
#include "compiler/operator/Operator.h"

#include "llvm/ADT/STLExtras.h"

#include <fmt/format.h>
#include <numeric>

namespace normforge {

namespace {

/// The size of an axis as an expression over the named sizes.
SizeExpr sizeOf(const Size &size, const std::vector<std::string> &names) {
  if (!size.isNamed())
    return SizeExpr(size.value);
  auto it = llvm::find(names, size.name);
  return SizeExpr::size(static_cast<uint32_t>(it - names.begin()));
}

/// Of kernels' symbols.
const char *shortName(Mode mode) {
  switch (mode) {
  case Mode::Feature:
  case Mode::Batch:
    break;
  case Mode::Sample:
    return "ln";
  case Mode::Instance:
    return "in";
  case Mode::Rms:
    return "rms";
  }
  return "bn";
}

char upper(char letter) { return static_cast<char>(letter - 'a' + 'A'); }

/// A loop with the axes of the spec that it stands for.
struct RawLoop {
  Loop loop;
  std::vector<int> axes; ///< of the spec, outermost first
  enum { Whole, Blocks, Lanes } part = Whole;
  bool kept = false, parameter = false; ///< index statistics; gamma and beta
};

std::vector<RawLoop> rawLoops(const Spec &spec, const std::vector<SizeExpr> &axisSizes) {
  std::vector<RawLoop> raw;
  auto add = [&](char letter, SizeExpr size, int axis, auto part) {
    const bool named = spec.isAxis(axis);
    raw.push_back({{std::string(1, letter), std::move(size)},
                   {axis},
                   part,
                   spec.indexesStatistics(axis),
                   named});
  };
  const Layout &layout = spec.layout;
  for (int i = 0; i < spec.rank(); ++i)
    if (i == layout.blockedAxis)
      add(upper(layout.axes[i]), ceilDivide(axisSizes[i], layout.block), i, RawLoop::Blocks);
    else
      add(layout.axes[i], axisSizes[i], i, RawLoop::Whole);
  if (layout.isBlocked())
    add(layout.axes[layout.blockedAxis], layout.block, layout.blockedAxis, RawLoop::Lanes);
  return raw;
}

/// Drops axes of size 1, but for the last of its kind, then joins neighbors that everything indexes
/// alike.
std::vector<RawLoop> joinLoops(std::vector<RawLoop> raw) {
  auto hasOther = [&](const RawLoop &one) {
    return llvm::any_of(raw, [&](const RawLoop &r) { return &r != &one && r.kept == one.kept; });
  };
  for (size_t i = 0; i < raw.size();)
    if (raw[i].part == RawLoop::Whole && raw[i].loop.size.constant() == 1 && hasOther(raw[i]))
      raw.erase(raw.begin() + static_cast<std::ptrdiff_t>(i));
    else
      ++i;

  std::vector<RawLoop> loops;
  for (RawLoop &r : raw) {
    const RawLoop *last = loops.empty() ? nullptr : &loops.back();
    const bool joins = last && last->part == RawLoop::Whole && r.part == RawLoop::Whole &&
                       last->kept == r.kept && last->parameter == r.parameter;
    if (!joins) {
      loops.push_back(std::move(r));
      continue;
    }
    loops.back().loop.name += r.loop.name;
    loops.back().loop.size = loops.back().loop.size * r.loop.size;
    llvm::append_range(loops.back().axes, r.axes);
  }
  return loops;
}

class OperatorBuilder {
public:
  OperatorBuilder(const Spec &spec, Phase phase) : spec_(spec) {
    op_.name = spec.name;
    op_.phase = phase;
    op_.dtype = spec.dtype;
    op_.symbol = fmt::format("nf_{}_{}_{}_{}", shortName(spec.mode), toString(phase),
                             toString(spec.dtype), spec.layout.text);
    op_.sizes = spec.sizeNames();
    op_.scalars = spec.scalars(phase);
    // Nothing has no statistics.
    if (phase != Phase::Inference)
      for (uint32_t i = 0; i < op_.sizes.size(); ++i)
        op_.constraints.push_back({i, 1, 1});
  }

  Operator build() {
    makeLoops();
    if (op_.phase == Phase::Backward) {
      makeBackward();
      return std::move(op_);
    }
    const bool training = op_.phase == Phase::Training;
    const bool updates = training && spec_.hasMovingStatistics();
    makeOperands(training, updates);
    operand("x"); // steps read what was named first before the rest
    if (spec_.hasMovingStatistics() && !training)
      normalize(movingStatistics());
    else if (spec_.hasMean())
      normalize(batchStatistics(training, updates));
    else
      normalize(meanOfSquares(training));
    return std::move(op_);
  }

private:
  enum class Index { Data, Parameters, Statistics };

  void makeLoops();
  void makeOperands(bool training, bool updates);
  void makeBackward();
  void addOperand(const char *name, Role role, Values values, DType dtype, Index index,
                  bool written, std::initializer_list<const char *> aliases = {});
  bool isIndexed(int axis, Index index) const {
    switch (index) {
    case Index::Data:
      return true;
    case Index::Parameters:
      return spec_.isAxis(axis);
    case Index::Statistics:
      return spec_.indexesStatistics(axis);
    }
    return false;
  }

  // Leaves of formulas.
  Term constant(double value) { return {&op_.exprs, op_.exprs.constant(value)}; }
  Term size(const SizeExpr &size) { return {&op_.exprs, op_.exprs.size(size)}; }
  Term operand(std::string_view name) {
    return {&op_.exprs, op_.exprs.operand(static_cast<uint32_t>(op_.operand(name, false)))};
  }
  Term scalar(std::string_view name) {
    const auto it =
        llvm::find_if(op_.scalars, [&](const Scalar &scalar) { return scalar.name == name; });
    return {&op_.exprs, op_.exprs.scalar(static_cast<uint32_t>(it - op_.scalars.begin()))};
  }
  Term number(const Number &number, std::string_view name) {
    return number.isArgument ? scalar(name) : constant(number.value);
  }

  // Steps.
  struct Named {
    std::string name;
    Term value;
    std::string_view operand = {}; ///< that it is written to; none
  };
  /// Adds a step; the results as leaves.
  std::vector<Term> addStep(const char *name, Reduce reduce, std::vector<int> loops,
                            const std::vector<int> &resultLoops, const std::vector<Named> &results);
  std::vector<int> allLoops() const {
    std::vector<int> loops(op_.loops.size());
    std::iota(loops.begin(), loops.end(), 0);
    return loops;
  }
  /// That index statistics; gamma and beta.
  std::vector<int> keptLoops() const { return loopsThat(&RawLoop::kept); }
  std::vector<int> parameterLoops() const { return loopsThat(&RawLoop::parameter); }
  std::vector<int> loopsThat(bool RawLoop::*index) const {
    std::vector<int> loops;
    for (int i = 0; i < op_.rank(); ++i)
      if (loops_[i].*index)
        loops.push_back(i);
    return loops;
  }

  // Formulas.
  /// What normalize needs: y = (x - mean)*scale + shift. The mean is rounded; shift carries what
  /// rounding lost, so that y is exact where |mean| is far above the deviation.
  /// Without a mean y = x*scale.
  struct Statistics {
    std::optional<Term> mean;
    Term scale;
    std::optional<Term> shift;
  };
  /// Gamma and beta are indexed as the statistics are, not by reduced loops: they are in scale and
  /// shift.
  bool parametersAreKept() const { return spec_.indexesStatistics(spec_.axes.front()); }
  Term zeroIfNan(Term x) { return select(isNan(x), constant(0), x); }
  /// Keeps NaN.
  Term clampAtZero(Term x) {
    const Term zero = constant(0);
    return select(less(x, zero), zero, x);
  }
  Term reciprocalDeviation(Term variance, Term epsilon);
  struct MomentumWeights {
    Term oldMean, batchMean, oldVariance, batchVariance;
  };
  MomentumWeights momentumWeights();
  std::optional<Term> runningVarianceFactor(Term n, Term epsilon);
  Statistics batchStatistics(bool training, bool updates);
  Statistics meanOfSquares(bool training);
  Statistics movingStatistics();
  void normalize(const Statistics &statistics);
  /// gamma and beta are those that elements have, none where they are in the statistics.
  Term affine(const Statistics &statistics, std::optional<Term> gamma, std::optional<Term> beta);
  Term epilogue(Term value, std::optional<Term> addend);
  /// What of the forward pass the gradients of the epilogue are made of.
  struct Needs {
    bool value = false; ///< what the epilogue was applied to
    bool addend = false;
  };
  Needs needsOfEpilogue() const;

  const Spec &spec_;
  Operator op_;
  std::vector<SizeExpr> axisSizes_;
  std::vector<RawLoop> loops_;
};

void OperatorBuilder::makeLoops() {
  for (const Size &size : spec_.shape)
    axisSizes_.push_back(sizeOf(size, op_.sizes));
  loops_ = joinLoops(rawLoops(spec_, axisSizes_));
  for (const RawLoop &raw : loops_)
    op_.loops.push_back(raw.loop);
  const Layout &layout = spec_.layout;
  op_.groupSize = op_.elements = SizeExpr(1);
  for (int i = 0; i < spec_.rank(); ++i) {
    op_.elements = op_.elements * (i == layout.blockedAxis ? ceilDivide(axisSizes_[i], layout.block)
                                                           : axisSizes_[i]);
    if (!isIndexed(i, Index::Statistics))
      op_.groupSize = op_.groupSize * axisSizes_[i];
  }
  if (!layout.isBlocked())
    return;
  op_.elements = op_.elements * SizeExpr(layout.block);
  BlockedAxis blocked;
  blocked.outer = static_cast<int>(
      llvm::find_if(loops_, [](const RawLoop &raw) { return raw.part == RawLoop::Blocks; }) -
      loops_.begin());
  blocked.inner = op_.rank() - 1;
  blocked.block = layout.block;
  blocked.size = axisSizes_[layout.blockedAxis];
  const auto constant = blocked.size.constant();
  blocked.padded = !constant || *constant % layout.block != 0;
  op_.blocked = blocked;
}

void OperatorBuilder::addOperand(const char *name, Role role, Values values, DType dtype,
                                 Index index, bool written,
                                 std::initializer_list<const char *> aliases) {
  const bool blocks = index == Index::Data && spec_.layout.isBlocked();
  Operand operand{.name = name,
                  .role = role,
                  .values = values,
                  .dtype = dtype,
                  .written = written,
                  .padded = blocks && op_.blocked->padded};
  if (written && role == Role::State)
    operand.old = op_.operand(name, false);
  // The distance of an axis' neighbors in memory; 0 where it has no index.
  std::vector<SizeExpr> axisStrides(axisSizes_.size(), SizeExpr(0));
  SizeExpr stride(blocks ? spec_.layout.block : 1);
  for (int i = spec_.rank() - 1; i >= 0; --i) {
    if (!isIndexed(i, index))
      continue;
    const SizeExpr size = blocks && i == spec_.layout.blockedAxis
                              ? ceilDivide(axisSizes_[i], spec_.layout.block)
                              : axisSizes_[i];
    operand.shape.insert(operand.shape.begin(), size);
    axisStrides[i] = stride;
    stride = size * stride;
  }
  if (blocks)
    operand.shape.push_back(SizeExpr(spec_.layout.block));
  for (const RawLoop &raw : loops_) {
    SizeExpr loopStride = axisStrides[raw.axes.back()];
    if (raw.part == RawLoop::Blocks && !blocks)
      loopStride = loopStride * SizeExpr(spec_.layout.block);
    else if (raw.part == RawLoop::Lanes && blocks)
      loopStride = SizeExpr(1);
    operand.strides.push_back(loopStride);
  }
  for (int i = 0; i < op_.rank(); ++i) {
    if (!isIndexed(loops_[i].axes.back(), index))
      continue;
    // The lanes of a block follow the blocks where the axis is whole in memory.
    const bool isLanes = loops_[i].part == RawLoop::Lanes && !blocks;
    const auto at =
        isLanes ? std::next(llvm::find(operand.loops, op_.blocked->outer)) : operand.loops.end();
    operand.loops.insert(at, i);
  }
  for (const char *alias : aliases)
    if (int other = op_.operand(alias, false); other >= 0)
      operand.mayAlias.push_back(static_cast<uint32_t>(other));
  op_.operands.push_back(std::move(operand));
}

void OperatorBuilder::makeOperands(bool training, bool updates) {
  const DType data = spec_.dtype, parameter = spec_.parameterDType;
  addOperand("x", Role::Data, Values::Sample, data, Index::Data, false);
  if (spec_.scale)
    addOperand("gamma", Role::Parameter, Values::Factor, parameter, Index::Parameters, false);
  if (spec_.center)
    addOperand("beta", Role::Parameter, Values::Any, parameter, Index::Parameters, false);
  if (spec_.hasMovingStatistics()) {
    addOperand("moving_mean", Role::State, Values::Mean, parameter, Index::Statistics, false);
    addOperand("moving_variance", Role::State, Values::Variance, parameter, Index::Statistics,
               false);
  }
  if (llvm::any_of(spec_.fuse, [](const FuseStep &step) { return step.isAdd(); }))
    addOperand("addend", Role::Data, Values::Any, data, Index::Data, false);
  addOperand("y", Role::Data, Values::Any, data, Index::Data, true, {"x", "addend"});
  if (updates) {
    addOperand("moving_mean", Role::State, Values::Mean, parameter, Index::Statistics, true,
               {"moving_mean"});
    addOperand("moving_variance", Role::State, Values::Variance, parameter, Index::Statistics, true,
               {"moving_variance"});
  }
  if (training) {
    if (spec_.hasMean())
      addOperand("batch_mean", Role::Statistic, Values::Mean, parameter, Index::Statistics, true);
    addOperand("batch_variance", Role::Statistic, Values::Variance, parameter, Index::Statistics,
               true);
  }
}

std::vector<Term> OperatorBuilder::addStep(const char *name, Reduce reduce, std::vector<int> loops,
                                           const std::vector<int> &resultLoops,
                                           const std::vector<Named> &results) {
  Step step{name, reduce, std::move(loops), {}, 0};
  if (!op_.steps.empty())
    step.firstResult =
        op_.steps.back().firstResult + static_cast<uint32_t>(op_.steps.back().results.size());
  std::vector<Term> leaves;
  for (const Named &named : results) {
    leaves.push_back({&op_.exprs, op_.exprs.result(step.firstResult +
                                                   static_cast<uint32_t>(step.results.size()))});
    const int written = named.operand.empty() ? -1 : op_.operand(named.operand, true);
    step.results.push_back({named.name, named.value.expr, resultLoops, written});
  }
  op_.steps.push_back(std::move(step));
  return leaves;
}

/// 1/sqrt(v+e) and its variants: the preset's epsilon_position.
Term OperatorBuilder::reciprocalDeviation(Term variance, Term epsilon) {
  const EpsilonPosition position = spec_.epsilonPosition;
  Term deviation = sqrt(position == EpsilonPosition::Outside ? variance : variance + epsilon);
  if (position != EpsilonPosition::Inside)
    deviation = deviation + epsilon;
  return constant(1) / deviation;
}

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

/// Statistics of the batch, and what is written of them.
OperatorBuilder::Statistics OperatorBuilder::batchStatistics(bool training, bool updates) {
  const Term x = operand("x");
  const auto moments = addStep("moments", Reduce::Moments, allLoops(), keptLoops(),
                               {{"rounded_mean", x}, {"residual_sum", x}, {"square_sum", x}});
  const Term n = size(op_.groupSize);
  const bool folds = parametersAreKept();
  std::optional<Term> gamma, beta, oldMean, oldVariance;
  if (folds && spec_.scale)
    gamma = operand("gamma");
  if (folds && spec_.center)
    beta = operand("beta");
  if (updates) {
    oldMean = operand("moving_mean");
    oldVariance = operand("moving_variance");
  }
  const Term epsilon = number(spec_.epsilon, "epsilon");

  // What corrects an infinite mean is no number and no correction.
  Term rest = zeroIfNan(moments[1] / n);
  const Term squares = fma(-moments[1], rest, moments[2]);
  // The mean and what its rounding leaves out, so that x - mean is 0 for a group of equal x.
  const Term mean = moments[0] + rest;
  rest = rest - (mean - moments[0]);
  const Term variance = clampAtZero(squares / n);
  Term scale = reciprocalDeviation(variance, epsilon);
  if (gamma)
    scale = scale * *gamma;
  // 0 for an infinite gamma, as if there were no rest.
  Term shift = zeroIfNan(-rest * scale);
  if (beta)
    shift = *beta + shift;
  std::vector<Named> results{{"mean", mean}, {"scale", scale}, {"shift", shift}};
  if (training) {
    results.push_back({"batch_mean", mean, "batch_mean"});
    results.push_back({"batch_variance", variance, "batch_variance"});
  }
  if (updates) {
    const MomentumWeights weights = momentumWeights();
    const auto factor = runningVarianceFactor(n, epsilon);
    const Term kept = factor ? variance * *factor : variance;
    results.push_back(
        {"moving_mean", fma(weights.batchMean, mean, weights.oldMean * *oldMean), "moving_mean"});
    results.push_back({"moving_variance",
                       fma(weights.batchVariance, kept, weights.oldVariance * *oldVariance),
                       "moving_variance"});
  }
  const auto leaves = addStep("finalize", Reduce::None, keptLoops(), keptLoops(), results);
  return {leaves[0], leaves[1], leaves[2]};
}

/// The mean of squares about 0 (Zhang and Sennrich 2019), and what is written of it.
OperatorBuilder::Statistics OperatorBuilder::meanOfSquares(bool training) {
  const Term x = operand("x");
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
  const Term mean = operand("moving_mean"), variance = operand("moving_variance");
  std::optional<Term> gamma, beta;
  if (spec_.scale)
    gamma = operand("gamma");
  if (spec_.center)
    beta = operand("beta");
  Term scale = reciprocalDeviation(variance, number(spec_.epsilon, "epsilon"));
  if (gamma)
    scale = scale * *gamma;
  const auto leaves =
      addStep("finalize", Reduce::None, keptLoops(), keptLoops(),
              {{"mean", mean}, {"scale", scale}, {"shift", beta ? *beta : constant(0)}});
  return {leaves[0], leaves[1], leaves[2]};
}

Term OperatorBuilder::affine(const Statistics &statistics, std::optional<Term> gamma,
                             std::optional<Term> beta) {
  const Term x = operand("x");
  Term value = statistics.mean ? fma(x - *statistics.mean, statistics.scale, *statistics.shift)
                               : x * statistics.scale;
  if (gamma && beta)
    value = fma(value, *gamma, *beta);
  else if (gamma)
    value = value * *gamma;
  else if (beta)
    value = value + *beta;
  return value;
}

Term OperatorBuilder::epilogue(Term value, std::optional<Term> addend) {
  for (const FuseStep &step : spec_.fuse)
    value = step.isAdd() ? value + *addend : (*findFunction(step.name))(value, step.parameters);
  return value;
}

/// y = epilogue(((x - mean)*scale + shift)*gamma + beta), gamma and beta where mode 1 has them.
void OperatorBuilder::normalize(const Statistics &statistics) {
  std::optional<Term> gamma, beta, addend;
  operand("x");
  if (!parametersAreKept() && spec_.scale)
    gamma = operand("gamma");
  if (!parametersAreKept() && spec_.center)
    beta = operand("beta");
  if (op_.operand("addend", false) >= 0)
    addend = operand("addend");
  const Term value = epilogue(affine(statistics, gamma, beta), addend);
  addStep("normalize", Reduce::None, allLoops(), allLoops(), {{"y", value, "y"}});
}

OperatorBuilder::Needs OperatorBuilder::needsOfEpilogue() const {
  // With other leaves in place of what they stand for.
  Exprs exprs;
  const Term value{&exprs, exprs.operand(0)}, addend{&exprs, exprs.operand(1)};
  OperatorBuilder scratch(spec_, Phase::Inference);
  const Expr y = scratch.epilogue(value, addend).expr;
  const Expr by[] = {value.expr, addend.expr};
  Needs needs;
  for (const std::optional<Expr> &gradient : exprs.gradients(y, exprs.operand(2), by))
    for (Expr expr : gradient ? exprs.nodesOf(std::span(&*gradient, 1)) : std::vector<Expr>()) {
      needs.value |= expr == value.expr;
      needs.addend |= expr == addend.expr;
    }
  return needs;
}

/// The gradients, from what training has saved or from the moving statistics.
///
/// With u the gradient of what gamma and beta gave, h = u*gamma that of xhat = (x - m)*s, n
/// elements a statistic and the sums over them (Ioffe and Szegedy 2015, section 3):
///   dx = s*h + (ds/dv * sum(h*(x - m)) * 2/n) * (x - m) - s*sum(h)/n
///   dgamma = sum(u*xhat), dbeta = sum(u)
/// The saved mean is a rounding away from m: m - mean is the mean of x - mean, which is summed as
/// well. Without a mean (rms) the sums and terms of h alone are not there. Statistics that are
/// given do not depend on x: dx = s*h, and m is the moving mean.
void OperatorBuilder::makeBackward() {
  const DType data = spec_.dtype, parameter = spec_.parameterDType;
  const bool moving = spec_.backwardStatistics == BackwardStatistics::Moving;
  const bool hasMean = spec_.hasMean();
  const std::string prefix = moving ? "moving_" : "batch_";
  const std::string meanName = prefix + "mean", varianceName = prefix + "variance";
  const Role role = moving ? Role::State : Role::Statistic;
  const Needs needs = needsOfEpilogue();
  const bool adds = llvm::any_of(spec_.fuse, [](const FuseStep &step) { return step.isAdd(); });

  addOperand("x", Role::Data, Values::Sample, data, Index::Data, false);
  addOperand("dy", Role::Gradient, Values::Any, data, Index::Data, false);
  if (spec_.scale)
    addOperand("gamma", Role::Parameter, Values::Factor, parameter, Index::Parameters, false);
  if (hasMean)
    addOperand(meanName.c_str(), role, Values::Mean, parameter, Index::Statistics, false);
  addOperand(varianceName.c_str(), role, Values::Variance, parameter, Index::Statistics, false);
  if (needs.value && spec_.center)
    addOperand("beta", Role::Parameter, Values::Any, parameter, Index::Parameters, false);
  if (needs.addend)
    addOperand("addend", Role::Data, Values::Any, data, Index::Data, false);
  addOperand("dx", Role::Gradient, Values::Any, data, Index::Data, true, {"dy"});
  if (spec_.scale)
    addOperand("dgamma", Role::Gradient, Values::Any, parameter, Index::Parameters, true);
  if (spec_.center)
    addOperand("dbeta", Role::Gradient, Values::Any, parameter, Index::Parameters, true);
  if (adds)
    addOperand("daddend", Role::Gradient, Values::Any, data, Index::Data, true, {"dy"});

  const Term x = operand("x"), dy = operand("dy");
  std::optional<Term> gamma, beta, keptGamma, elementGamma, elementBeta;
  if (spec_.scale)
    (parametersAreKept() ? keptGamma : elementGamma) = gamma = operand("gamma");
  if (needs.value && spec_.center) {
    beta = operand("beta");
    if (!parametersAreKept())
      elementBeta = beta;
  }

  // What is known before the sums.
  const Term variance = operand(varianceName);
  const Term deviation = reciprocalDeviation(variance, number(spec_.epsilon, "epsilon"));
  std::vector<Named> known{{"deviation", deviation}};
  if (keptGamma)
    known.push_back({"scale", deviation * *keptGamma});
  if (hasMean)
    known.push_back({"mean", operand(meanName)});
  if (needs.value && hasMean)
    known.push_back({"shift", beta && parametersAreKept() ? *beta : constant(0)});
  std::vector<Term> leaves = addStep("prepare", Reduce::None, keptLoops(), keptLoops(), known);
  auto take = [next = size_t(0), &leaves]() mutable { return leaves[next++]; };
  const Term s = take();
  const Term scale = keptGamma ? take() : s;
  std::optional<Term> mean, shift;
  if (hasMean)
    mean = take();
  if (needs.value && hasMean)
    shift = take();
  const Term centered = mean ? x - *mean : x;

  // Gradients of elements.
  Term u = dy;
  std::optional<Term> daddend;
  {
    // Where the value is not needed it stands in for itself.
    const Term value =
        needs.value ? affine({mean, scale, shift}, elementGamma, elementBeta) : constant(0.5);
    std::optional<Term> addend;
    if (adds)
      addend = needs.addend ? operand("addend") : constant(0.25);
    const Expr y = epilogue(value, addend).expr;
    std::vector<Expr> by{value.expr};
    if (adds)
      by.push_back(addend->expr);
    const auto gradients = op_.exprs.gradients(y, dy.expr, by);
    u = {&op_.exprs, gradients[0].value()};
    if (adds)
      daddend = {&op_.exprs, gradients[1].value()};
  }
  const Term h = elementGamma ? u * *elementGamma : u;
  // Per element where no loop is kept but by the parameters.
  const std::vector<int> parameters = parameterLoops();
  const bool sumsParameters = parameters != allLoops();

  // Sums of h where the statistics need them, of u where gamma and beta have the same loops.
  const Term n = size(op_.groupSize);
  const bool ofStatistics = !moving || parametersAreKept();
  std::optional<Term> sum, product, rest;
  std::vector<Named> sums;
  const bool needsSum = (hasMean && !moving) || (spec_.center && parametersAreKept());
  const bool needsProduct = !moving || (spec_.scale && parametersAreKept());
  if (ofStatistics && needsSum)
    sums.push_back({"gradient_sum", h});
  if (ofStatistics && needsProduct)
    sums.push_back({"product_sum", h * centered});
  if (!moving && hasMean)
    sums.push_back({"residual_sum", centered});
  if (!sums.empty()) {
    leaves = addStep("sums", Reduce::Sum, allLoops(), keptLoops(), sums);
    auto next = leaves.begin();
    if (ofStatistics && needsSum)
      sum = *next++;
    if (ofStatistics && needsProduct)
      product = *next++;
    if (!moving && hasMean)
      rest = *next++ / n;
  }
  if (rest)
    product = fma(-*rest, *sum, *product);

  // What dx is made of, and gradients of parameters that have the statistics' loops, or more of
  // them.
  const bool sameLoops = parameters == keptLoops();
  const bool readsRest = rest && !parametersAreKept();
  std::vector<Named> made;
  if (readsRest)
    made.push_back({"rest", *rest});
  if (!moving) {
    const Term seed = constant(2) / n * (keptGamma ? *keptGamma * *product : *product);
    const Expr by = variance.expr;
    const auto slope = op_.exprs.gradients(deviation.expr, seed.expr, std::span(&by, 1));
    const Term ofX{&op_.exprs, slope[0].value()};
    made.push_back({"of_x", ofX});
    if (hasMean)
      made.push_back({"of_one", -fma(ofX, *rest, scale * (*sum / n))});
  }
  if (parametersAreKept() && spec_.scale)
    made.push_back({"dgamma", s * *product, sameLoops ? "dgamma" : ""});
  if (parametersAreKept() && spec_.center)
    made.push_back({"dbeta", *sum, sameLoops ? "dbeta" : ""});
  std::optional<Term> ofX, ofOne, ownGamma, ownBeta;
  if (!made.empty()) {
    leaves = addStep("finalize", Reduce::None, keptLoops(), keptLoops(), made);
    auto next = leaves.begin();
    if (readsRest)
      rest = *next++;
    if (!moving) {
      ofX = *next++;
      if (hasMean)
        ofOne = *next++;
    }
    if (parametersAreKept() && spec_.scale)
      ownGamma = *next++;
    if (parametersAreKept() && spec_.center)
      ownBeta = *next++;
  }

  // Parameters that other loops index: one sum for each of them.
  const Term xhat = (rest ? centered - *rest : centered) * s;
  std::vector<Named> elements;
  auto addParameters = [&](const char *name, std::vector<int> loops, std::optional<Term> gammas,
                           std::optional<Term> betas) {
    std::vector<Named> summed, stored;
    if (spec_.scale)
      summed.push_back({"gamma_sum", *gammas});
    if (spec_.center)
      summed.push_back({"beta_sum", *betas});
    if (summed.empty())
      return;
    leaves = addStep(name, Reduce::Sum, std::move(loops), parameters, summed);
    if (spec_.scale)
      stored.push_back({"dgamma", leaves.front(), "dgamma"});
    if (spec_.center)
      stored.push_back({"dbeta", leaves.back(), "dbeta"});
    addStep("store", Reduce::None, parameters, parameters, stored);
  };
  if (!parametersAreKept() && sumsParameters) {
    addParameters("parameters", allLoops(), u * xhat, u);
  } else if (!parametersAreKept()) {
    if (spec_.scale)
      elements.push_back({"dgamma", u * xhat, "dgamma"});
    if (spec_.center)
      elements.push_back({"dbeta", u, "dbeta"});
  }

  Term dx = scale * h;
  if (ofOne)
    dx = fma(scale, h, fma(*ofX, centered, *ofOne));
  else if (ofX)
    dx = fma(scale, h, *ofX * centered);
  elements.insert(elements.begin(), {"dx", dx, "dx"});
  if (daddend)
    elements.push_back({"daddend", *daddend, "daddend"});
  addStep("gradient", Reduce::None, allLoops(), allLoops(), elements);
  if (parametersAreKept() && !sameLoops)
    addParameters("parameters", keptLoops(), ownGamma, ownBeta);
}

} // namespace

Operator makeOperator(const Spec &spec, Phase phase) {
  return OperatorBuilder(spec, phase).build();
}

} // namespace normforge
