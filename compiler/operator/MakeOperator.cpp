// From a spec to its operator: loops, operands, and the formulas of the phases.
#include "compiler/expr/Functions.h"
#include "compiler/operator/Operator.h"

#include "llvm/ADT/STLExtras.h"

#include <deque>
#include <fmt/format.h>
#include <map>
#include <numeric>
#include <set>
#include <span>

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
  std::vector<bool> operands{};         ///< index each of the steps' operands
};

/// The operands of the steps of a spec, in its order.
std::vector<const StepOperand *> stepOperands(const Spec &spec) {
  std::vector<const StepOperand *> operands;
  for (const std::vector<FuseStep> *steps : {&spec.prologue, &spec.fuse})
    for (const FuseStep &step : *steps)
      for (const StepOperand &operand : step.operands)
        operands.push_back(&operand);
  return operands;
}

std::vector<RawLoop> rawLoops(const Spec &spec, const std::vector<SizeExpr> &axisSizes) {
  std::vector<RawLoop> raw;
  const auto operands = stepOperands(spec);
  auto add = [&](char letter, SizeExpr size, int axis, auto part) {
    const bool named = spec.isAxis(axis);
    raw.push_back({{std::string(1, letter), std::move(size)},
                   {axis},
                   part,
                   spec.indexesStatistics(axis),
                   named});
    for (const StepOperand *operand : operands)
      raw.back().operands.push_back(llvm::is_contained(operand->axes, axis));
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
                       last->kept == r.kept && last->parameter == r.parameter &&
                       last->operands == r.operands;
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
    value_ = operand("x"); // steps read what was named first before the rest
    value_ = prologue(/*stores=*/true);
    if (spec_.hasMovingStatistics() && !training)
      normalize(movingStatistics());
    else if (spec_.hasMean())
      normalize(batchStatistics(training, updates));
    else
      normalize(meanOfSquares(training));
    return std::move(op_);
  }

private:
  /// Which axes index an array. Data has a block's lanes innermost and its padding.
  struct Index {
    std::vector<bool> axes;
    bool isData = false;
  };

  void makeLoops();
  void makeOperands(bool training, bool updates);
  void makeBackward();
  void addOperand(const char *name, Role role, Values values, DType dtype, const Index &index,
                  bool written, const std::vector<std::string> &aliases = {});
  template <typename Has> Index indexOf(Has has) const {
    Index index;
    for (int i = 0; i < spec_.rank(); ++i)
      index.axes.push_back(has(i));
    return index;
  }
  Index dataIndex() const { return {std::vector<bool>(spec_.shape.size(), true), true}; }
  Index parameterIndex() const {
    return indexOf([&](int axis) { return spec_.isAxis(axis); });
  }
  Index statisticIndex() const {
    return indexOf([&](int axis) { return spec_.indexesStatistics(axis); });
  }
  Index indexOf(const StepOperand &operand) const {
    if (operand.whole)
      return dataIndex();
    return indexOf([&](int axis) { return llvm::is_contained(operand.axes, axis); });
  }
  /// Adds what the steps of a list read, but for what `skips` says.
  template <typename Skips> void addStepOperands(const std::vector<FuseStep> &steps, Skips skips) {
    for (const FuseStep &step : steps)
      for (const StepOperand &operand : step.operands)
        if (!skips(operand))
          addOperand(operand.name.c_str(), step.name == "bias" ? Role::Parameter : Role::Data,
                     step.isMul() ? Values::Factor : Values::Any, dtypeOf(step), indexOf(operand),
                     false);
  }
  DType dtypeOf(const FuseStep &step) const {
    return step.name == "bias" ? spec_.parameterDType : spec_.dtype;
  }
  /// The loops of an operand.
  std::vector<int> loopsOf(const Index &index) const {
    std::vector<int> loops;
    for (int i = 0; i < op_.rank(); ++i)
      if (index.axes[static_cast<size_t>(loops_[static_cast<size_t>(i)].axes.back())])
        loops.push_back(i);
    return loops;
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
  Term build(const Formula &formula, std::span<const Term> operands, std::span<const Term> scalars);
  Term applyStep(const FuseStep &step, Term value, std::span<const Term> operands);
  Term applySteps(std::span<const FuseStep> steps, Term value);
  Term prologue(bool stores);
  uint32_t scalarIndex(std::string_view name) const {
    const auto found =
        llvm::find_if(op_.scalars, [&](const Scalar &scalar) { return scalar.name == name; });
    return static_cast<uint32_t>(found - op_.scalars.begin());
  }
  /// What of the forward pass the gradients of steps are made of: the value that they were applied
  /// to, and which of their operands.
  struct Needs {
    bool value = false;
    std::set<std::string> operands{};
  };
  Needs needsOf(std::span<const FuseStep> steps) const;
  /// Gradients of a value and of operands, through steps whose operands are bound as `needs` says.
  struct Gradients {
    Term value;
    std::vector<std::pair<const StepOperand *, Term>> operands{};
  };
  Gradients gradientsOf(std::span<const FuseStep> steps, std::optional<Term> value, Term seed,
                        const Needs &needs);

  const Spec &spec_;
  Operator op_;
  std::vector<SizeExpr> axisSizes_;
  std::vector<RawLoop> loops_;
  Term value_{nullptr, 0}; ///< what statistics are taken of
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
    if (!spec_.indexesStatistics(i))
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
                                 const Index &index, bool written,
                                 const std::vector<std::string> &aliases) {
  const bool blocks = index.isData && spec_.layout.isBlocked();
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
    if (!index.axes[static_cast<size_t>(i)])
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
    if (!index.axes[static_cast<size_t>(loops_[i].axes.back())])
      continue;
    // The lanes of a block follow the blocks where the axis is whole in memory.
    const bool isLanes = loops_[i].part == RawLoop::Lanes && !blocks;
    const auto at =
        isLanes ? std::next(llvm::find(operand.loops, op_.blocked->outer)) : operand.loops.end();
    operand.loops.insert(at, i);
  }
  for (const std::string &alias : aliases)
    if (int other = op_.operand(alias, false); other >= 0)
      operand.mayAlias.push_back(static_cast<uint32_t>(other));
  op_.operands.push_back(std::move(operand));
}

void OperatorBuilder::makeOperands(bool training, bool updates) {
  const DType data = spec_.dtype, parameter = spec_.parameterDType;
  addOperand("x", Role::Data, Values::Sample, data, dataIndex(), false);
  addStepOperands(spec_.prologue, [](const StepOperand &) { return false; });
  if (spec_.scale)
    addOperand("gamma", Role::Parameter, Values::Factor, parameter, parameterIndex(), false);
  if (spec_.center)
    addOperand("beta", Role::Parameter, Values::Any, parameter, parameterIndex(), false);
  if (spec_.hasMovingStatistics()) {
    addOperand("moving_mean", Role::State, Values::Mean, parameter, statisticIndex(), false);
    addOperand("moving_variance", Role::State, Values::Variance, parameter, statisticIndex(),
               false);
  }
  addStepOperands(spec_.fuse, [](const StepOperand &) { return false; });
  // Over what elements alone read, and no step before them.
  std::vector<std::string> over;
  if (spec_.storedStep() < 0)
    over.push_back("x");
  for (const FuseStep &step : spec_.fuse)
    for (const StepOperand &operand : step.operands)
      if (operand.whole)
        over.push_back(operand.name);
  addOperand("y", Role::Data, Values::Any, data, dataIndex(), true, over);
  for (const FuseStep &step : spec_.prologue)
    if (!step.store.empty()) {
      std::vector<std::string> sources;
      if (spec_.storedStep() == 0)
        sources = {"x", step.operands[0].name};
      addOperand(step.store.c_str(), Role::Data, Values::Any, data, dataIndex(), true, sources);
    }
  if (updates) {
    addOperand("moving_mean", Role::State, Values::Mean, parameter, statisticIndex(), true,
               {"moving_mean"});
    addOperand("moving_variance", Role::State, Values::Variance, parameter, statisticIndex(), true,
               {"moving_variance"});
  }
  if (training) {
    if (spec_.hasMean())
      addOperand("batch_mean", Role::Statistic, Values::Mean, parameter, statisticIndex(), true);
    addOperand("batch_variance", Role::Statistic, Values::Variance, parameter, statisticIndex(),
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
  const Term x = value_;
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
  const Term x = value_;
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

/// A formula of the spec; `operands` are x and those that it names.
Term OperatorBuilder::build(const Formula &formula, std::span<const Term> operands,
                            std::span<const Term> scalars) {
  const Term &x = operands[0];
  switch (formula.kind) {
  case Formula::Kind::Number:
    return x.constant(formula.number);
  case Formula::Kind::Operand:
    return operands[formula.index];
  case Formula::Kind::Scalar:
    return scalars[formula.index];
  case Formula::Kind::Call:
    break;
  }
  std::vector<Term> in;
  for (const Formula &argument : formula.arguments)
    in.push_back(build(argument, operands, scalars));
  const std::string &call = formula.call;
  struct Row {
    const char *call;
    Term (*make)(std::span<const Term> in);
  };
  using In = std::span<const Term>;
  // NaN stays where either of two is one.
  static constexpr Row kRows[] = {
      {"+", [](In in) { return in[0] + in[1]; }},
      {"-", [](In in) { return in[0] - in[1]; }},
      {"*", [](In in) { return in[0] * in[1]; }},
      {"/", [](In in) { return in[0] / in[1]; }},
      {"neg", [](In in) { return -in[0]; }},
      {"<", [](In in) { return less(in[0], in[1]); }},
      {"<=", [](In in) { return lessEqual(in[0], in[1]); }},
      {">", [](In in) { return less(in[1], in[0]); }},
      {">=", [](In in) { return lessEqual(in[1], in[0]); }},
      {"where", [](In in) { return select(in[0], in[1], in[2]); }},
      {"abs", [](In in) { return abs(in[0]); }},
      {"min",
       [](In in) { return select(isNan(in[0]), in[0], select(less(in[0], in[1]), in[0], in[1])); }},
      {"max",
       [](In in) { return select(isNan(in[0]), in[0], select(less(in[1], in[0]), in[0], in[1])); }},
      {"sqrt", [](In in) { return sqrt(in[0]); }},
      {"exp", [](In in) { return exp(in[0]); }},
      {"log", [](In in) { return log(in[0]); }},
      {"erf", [](In in) { return erf(in[0]); }},
      {"floor", [](In in) { return apply(ExprOp::Floor, in[0]); }},
      {"round", [](In in) { return apply(ExprOp::RoundEven, in[0]); }},
  };
  for (const Row &row : kRows)
    if (call == row.call)
      return row.make(in);
  return (*findFunction(call))(in[0], {});
}

Term OperatorBuilder::applyStep(const FuseStep &step, Term value, std::span<const Term> operands) {
  if (step.isAdd())
    return value + operands[0];
  if (step.isMul())
    return value * operands[0];
  if (!step.formula)
    return (*findFunction(step.name))(value, step.parameters);
  std::vector<Term> all{value}, scalars;
  all.insert(all.end(), operands.begin(), operands.end());
  for (const std::string &name : step.scalars)
    scalars.push_back({value.in, value.in->scalar(scalarIndex(name))});
  return build(*step.formula, all, scalars);
}

Term OperatorBuilder::applySteps(std::span<const FuseStep> steps, Term value) {
  for (const FuseStep &step : steps) {
    std::vector<Term> operands;
    for (const StepOperand &taken : step.operands)
      operands.push_back(operand(taken.name));
    value = applyStep(step, value, operands);
  }
  return value;
}

/// x through the prologue. What is stored is a step, and what follows begins with it as it is
/// stored.
Term OperatorBuilder::prologue(bool stores) {
  Term value = operand("x");
  for (const FuseStep &step : spec_.prologue) {
    value = applySteps(std::span(&step, 1), value);
    if (stores && !step.store.empty())
      value = addStep(step.store.c_str(), Reduce::None, allLoops(), allLoops(),
                      {{step.store, value, step.store}})[0];
  }
  return value;
}

/// y = epilogue(((x - mean)*scale + shift)*gamma + beta), gamma and beta where mode 1 has them.
void OperatorBuilder::normalize(const Statistics &statistics) {
  std::optional<Term> gamma, beta;
  if (!parametersAreKept() && spec_.scale)
    gamma = operand("gamma");
  if (!parametersAreKept() && spec_.center)
    beta = operand("beta");
  const Term value = applySteps(spec_.fuse, affine(statistics, gamma, beta));
  addStep("normalize", Reduce::None, allLoops(), allLoops(), {{"y", value, "y"}});
}

OperatorBuilder::Needs OperatorBuilder::needsOf(std::span<const FuseStep> steps) const {
  // With other leaves in place of what they stand for.
  OperatorBuilder scratch(spec_, op_.phase);
  Exprs exprs;
  std::map<Expr, std::string> names;
  const Term value{&exprs, exprs.operand(0)};
  std::vector<Expr> by{value.expr};
  Term y = value;
  for (const FuseStep &step : steps) {
    std::vector<Term> operands;
    for (const StepOperand &operand : step.operands) {
      operands.push_back({&exprs, exprs.operand(static_cast<uint32_t>(by.size()))});
      by.push_back(operands.back().expr);
      names[by.back()] = operand.name;
    }
    y = scratch.applyStep(step, y, operands);
  }
  Needs needs;
  const Expr seed = exprs.operand(static_cast<uint32_t>(by.size()));
  for (const std::optional<Expr> &gradient : exprs.gradients(y.expr, seed, by))
    for (Expr expr : gradient ? exprs.nodesOf(std::span(&*gradient, 1)) : std::vector<Expr>()) {
      needs.value |= expr == value.expr;
      if (const auto found = names.find(expr); found != names.end())
        needs.operands.insert(found->second);
    }
  return needs;
}

OperatorBuilder::Gradients OperatorBuilder::gradientsOf(std::span<const FuseStep> steps,
                                                        std::optional<Term> value, Term seed,
                                                        const Needs &needs) {
  // What is not needed is stood for by a number of its own.
  double standIn = 0.5;
  auto leaf = [&] { return constant(standIn += 0.0625); };
  const Term from = value ? *value : leaf();
  std::vector<const StepOperand *> taken;
  std::vector<Expr> by{from.expr};
  Term y = from;
  for (const FuseStep &step : steps) {
    std::vector<Term> operands;
    for (const StepOperand &one : step.operands) {
      operands.push_back(needs.operands.contains(one.name) ? operand(one.name) : leaf());
      taken.push_back(&one);
      by.push_back(operands.back().expr);
    }
    y = applyStep(step, y, operands);
  }
  const auto found = op_.exprs.gradients(y.expr, seed.expr, by);
  auto term = [&](const std::optional<Expr> &gradient) {
    return gradient ? Term{&op_.exprs, *gradient} : constant(0);
  };
  Gradients gradients{term(found[0])};
  for (size_t i = 0; i < taken.size(); ++i)
    gradients.operands.emplace_back(taken[i], term(found[i + 1]));
  return gradients;
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
  const Needs needs = needsOf(spec_.fuse);

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
  if (hasMean)
    addOperand(meanName.c_str(), role, Values::Mean, parameter, statisticIndex(), false);
  addOperand(varianceName.c_str(), role, Values::Variance, parameter, statisticIndex(), false);
  if (needs.value && spec_.center)
    addOperand("beta", Role::Parameter, Values::Any, parameter, parameterIndex(), false);
  addStepOperands(spec_.fuse, [&](const StepOperand &operand) {
    return !needs.operands.contains(operand.name);
  });
  addOperand("dx", Role::Gradient, Values::Any, data, dataIndex(), true, {"dy"});
  if (spec_.scale)
    addOperand("dgamma", Role::Gradient, Values::Any, parameter, parameterIndex(), true);
  if (spec_.center)
    addOperand("dbeta", Role::Gradient, Values::Any, parameter, parameterIndex(), true);
  for (const std::vector<FuseStep> *steps : {&spec_.prologue, &spec_.fuse})
    for (const FuseStep &step : *steps)
      for (const StepOperand &operand : step.operands)
        addOperand(("d" + operand.name).c_str(), Role::Gradient, Values::Any, dtypeOf(step),
                   indexOf(operand), true,
                   operand.whole ? std::vector<std::string>{"dy"} : std::vector<std::string>());

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

  // What is known before the sums.
  const Term variance = operand(varianceName);
  const Term deviation = reciprocalDeviation(variance, number(spec_.epsilon, "epsilon"));
  std::vector<Named> known{{"deviation", deviation}};
  if (isKept && gamma)
    known.push_back({"scale", deviation * *gamma});
  if (hasMean)
    known.push_back({"mean", operand(meanName)});
  if (needs.value && hasMean)
    known.push_back({"shift", isKept && beta ? *beta : constant(0)});
  std::vector<Term> leaves = addStep("prepare", Reduce::None, keptLoops(), keptLoops(), known);
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
  const Term n = size(op_.groupSize);

  // Sums over other loops than those of the statistics, each a pass of its own, by their loops.
  std::map<std::vector<int>, std::vector<Named>> others;
  std::deque<std::string> names; // of results; others refers to them
  std::vector<Named> sums, made, elements;
  auto addGradient = [&](const std::string &name, std::vector<int> loops, Term of, bool isEarly) {
    const std::string &kept = names.emplace_back(name);
    // Of what nothing depends on it is 0, and a sum has to have something to run over.
    if (op_.exprs[of.expr].op == ExprOp::Constant)
      of = select(isNan(dy), of, of);
    if (loops == allLoops())
      elements.push_back({kept, of, kept});
    else if (isEarly && loops == keptLoops())
      sums.push_back({kept, of, kept});
    else
      others[std::move(loops)].push_back({kept, of, kept});
  };

  // Sums of h where the statistics need them, of u where gamma and beta have the same loops.
  const bool needsSum = (hasMean && !moving) || (spec_.center && isKept);
  const bool needsProduct = !moving || (spec_.scale && isKept);
  const bool needsRest = hasMean && !moving;
  if (needsSum)
    sums.push_back({"gradient_sum", h});
  if (needsProduct)
    sums.push_back({"product_sum", h * centered});
  if (needsRest)
    sums.push_back({"residual_sum", centered});
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
      rest = *next++ / n;
    for (const Named &one : sums)
      if (!one.operand.empty())
        made.push_back({one.name, *next++, one.operand});
  }
  if (rest)
    product = fma(-*rest, *sum, *product);

  // What dt is made of, and gradients of parameters that have the statistics' loops, or more of
  // them.
  const std::vector<int> parameters = parameterLoops();
  const bool sameLoops = parameters == keptLoops();
  const bool readsRest = rest && !isKept;
  const size_t written = made.size();
  if (readsRest)
    made.push_back({"rest", *rest});
  if (!moving) {
    const Term seed = constant(2) / n * (isKept && gamma ? *gamma * *product : *product);
    const Expr by = variance.expr;
    const auto slope = op_.exprs.gradients(deviation.expr, seed.expr, std::span(&by, 1));
    const Term ofX{&op_.exprs, slope[0].value()};
    made.push_back({"of_x", ofX});
    if (hasMean)
      made.push_back({"of_one", -fma(ofX, *rest, scale * (*sum / n))});
  }
  if (isKept && spec_.scale)
    made.push_back({"dgamma", s * *product, sameLoops ? "dgamma" : ""});
  if (isKept && spec_.center)
    made.push_back({"dbeta", *sum, sameLoops ? "dbeta" : ""});
  std::optional<Term> ofX, ofOne, ownGamma, ownBeta;
  if (!made.empty()) {
    leaves = addStep("finalize", Reduce::None, keptLoops(), keptLoops(), made);
    auto next = leaves.begin() + static_cast<std::ptrdiff_t>(written);
    if (readsRest)
      rest = *next++;
    if (!moving) {
      ofX = *next++;
      if (hasMean)
        ofOne = *next++;
    }
    if (isKept && spec_.scale)
      ownGamma = *next++;
    if (isKept && spec_.center)
      ownBeta = *next++;
  }
  if (!isKept) {
    if (spec_.scale)
      addGradient("dgamma", parameters, u * ((rest ? centered - *rest : centered) * s), false);
    if (spec_.center)
      addGradient("dbeta", parameters, u, false);
  }

  // Through the prologue.
  Term gradient = scale * h;
  if (ofOne)
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
    addStep(("store" + suffix).c_str(), Reduce::None, loops, loops, stored);
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
    addSums(keptLoops(), parameters, own, suffix);
}

} // namespace

Operator makeOperator(const Spec &spec, Phase phase) {
  return OperatorBuilder(spec, phase).build();
}

} // namespace normforge
