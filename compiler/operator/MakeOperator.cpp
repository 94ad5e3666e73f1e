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
    if (phase == Phase::Training)
      for (uint32_t i = 0; i < op_.sizes.size(); ++i)
        op_.constraints.push_back({i, 1, 1});
  }

  Operator build() {
    makeLoops();
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
  std::vector<int> keptLoops() const {
    std::vector<int> loops;
    for (int i = 0; i < op_.rank(); ++i)
      if (op_.kept[i])
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

  const Spec &spec_;
  Operator op_;
  std::vector<SizeExpr> axisSizes_;
  std::vector<RawLoop> loops_;
};

void OperatorBuilder::makeLoops() {
  for (const Size &size : spec_.shape)
    axisSizes_.push_back(sizeOf(size, op_.sizes));
  loops_ = joinLoops(rawLoops(spec_, axisSizes_));
  for (const RawLoop &raw : loops_) {
    op_.loops.push_back(raw.loop);
    op_.kept.push_back(raw.kept);
  }
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

/// y = epilogue(((x - mean)*scale + shift)*gamma + beta), gamma and beta where mode 1 has them.
void OperatorBuilder::normalize(const Statistics &statistics) {
  std::optional<Term> gamma, beta, addend;
  const Term x = operand("x");
  if (!parametersAreKept() && spec_.scale)
    gamma = operand("gamma");
  if (!parametersAreKept() && spec_.center)
    beta = operand("beta");
  if (op_.operand("addend", false) >= 0)
    addend = operand("addend");
  Term value = statistics.mean ? fma(x - *statistics.mean, statistics.scale, *statistics.shift)
                               : x * statistics.scale;
  if (gamma && beta)
    value = fma(value, *gamma, *beta);
  else if (gamma)
    value = value * *gamma;
  else if (beta)
    value = value + *beta;
  for (const FuseStep &step : spec_.fuse)
    value = step.isAdd() ? value + *addend : findFunction(step.name)->body(value, step.parameters);
  addStep("normalize", Reduce::None, allLoops(), allLoops(), {{"y", value, "y"}});
}

} // namespace

Operator makeOperator(const Spec &spec, Phase phase) {
  return OperatorBuilder(spec, phase).build();
}

} // namespace normforge
