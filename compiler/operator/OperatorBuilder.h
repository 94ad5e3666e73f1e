// Makes the operator of one phase of a spec.
//
// Private to the room. MakeOperator.cpp has loops, operands and elements, MakeStatistics.cpp what
// of the forward phases is over statistics, ApplySteps.cpp the steps of `prologue` and `fuse` and
// their gradients, MakeBackward.cpp the backward phase, MakeUpdate.cpp the update phase.
#pragma once

#include "compiler/operator/Operator.h"
#include "compiler/spec/Initialize.h"

#include "llvm/ADT/STLExtras.h"

#include <array>
#include <map>
#include <numeric>
#include <set>
#include <span>

namespace normforge {

/// The argument that has KeptBits.
constexpr char kBitsName[] = "relu_mask";
/// Beside the sum of a mask's weights, which may be 0.
constexpr double kMaskEpsilon = 1e-7;

/// A loop with the axes of the spec that it stands for.
struct RawLoop {
  Loop loop;
  std::vector<int> axes; ///< of the spec, outermost first; none: one iteration of the data
  enum Part {
    Whole,
    Blocks,
    Lanes,
    Groups,
    Within,
    OfGhost, ///< the samples of a ghost batch
    Ghosts,
  } part = Whole;
  bool kept = false, parameter = false; ///< index statistics; gamma and beta
  std::vector<bool> operands{};         ///< index each of the steps' operands
};

class OperatorBuilder {
public:
  OperatorBuilder(const Spec &spec, Phase phase);
  Operator build();
  /// As normforge::keptBits.
  std::optional<KeptBits> keptBits();

private:
  /// Which axes index an array. Data has a block's lanes innermost and its padding.
  struct Index {
    std::vector<bool> axes;
    bool isData = false;
    bool byGroup = false; ///< a grouped axis by its groups alone
    bool byGhost = false; ///< the samples axis by its ghost batches alone
  };

  /// `keepsBlocks`: a blocked axis is two loops, whatever lies between them; rows of kept bits are.
  void makeLoops(bool keepsBlocks);
  bool splitsGroupedAxis() const;
  void makeBlocked();
  void addGroups();
  SizeExpr channelsOfGroup() const {
    return ceilDivide(axisSizes_[static_cast<size_t>(spec_.axes.front())], SizeExpr(spec_.groups));
  }
  bool hasGhosts() const { return spec_.ghostBatch > 0; }
  SizeExpr ghosts() const {
    return ceilDivide(axisSizes_[static_cast<size_t>(spec_.samplesAxis())],
                      SizeExpr(spec_.ghostBatch));
  }
  /// Whether an array has a loop.
  bool hasLoop(const Index &index, const RawLoop &raw) const {
    if (raw.axes.empty())
      return index.isData;
    if (!index.axes[static_cast<size_t>(raw.axes.back())])
      return false;
    if (index.byGhost && raw.axes.back() == spec_.samplesAxis())
      return raw.part == RawLoop::Ghosts;
    return !(index.byGroup && spec_.isGrouped(raw.axes.back())) || raw.part == RawLoop::Groups;
  }
  void addMovingOperands(bool written);
  void addPopulationOperands(bool written);
  void addPartialMoments(bool written);
  void addPartialSums(bool written);
  void addSharedStatistics(bool written);
  void makeOperands(bool training, bool updates);
  void makeBackward();
  void addOperand(const char *name, Role role, Values values, DType dtype, const Index &index,
                  bool written, const std::vector<std::string> &aliases = {});
  void addKnown(Operand operand);
  void addBits(bool written);
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
    Index index = indexOf([&](int axis) {
      return spec_.indexesStatistics(axis) || spec_.isGrouped(axis) ||
             (hasGhosts() && axis == spec_.samplesAxis());
    });
    index.byGroup = spec_.mode == Mode::Group;
    index.byGhost = hasGhosts();
    return index;
  }
  /// Weights are of positions: they have the axes that gamma and beta have not.
  Index maskIndex() const {
    return indexOf([&](int axis) { return !spec_.isAxis(axis); });
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
      if (hasLoop(index, loops_[static_cast<size_t>(i)]))
        loops.push_back(i);
    return loops;
  }

  /// A result of a step to be.
  struct Named {
    std::string name;
    Term value;
    std::string operand{}; ///< that it is written to; none
  };

  // Leaves of formulas.
  Term constant(double value) { return {&op_.exprs, op_.exprs.constant(value)}; }
  Term size(const SizeExpr &size) { return {&op_.exprs, op_.exprs.size(size)}; }
  /// The operand of this name; its values where the spec has them. (Arrays that are made of such
  /// values have names that operands of steps may have too.)
  Term operand(std::string_view name) {
    if (const auto found = uniform_.find(name); found != uniform_.end())
      return constant(found->second);
    if (llvm::is_contained(folded_, name))
      for (uint32_t i = 0; i < op_.known.size(); ++i)
        if (op_.known[i].array.name == name)
          return {&op_.exprs, op_.exprs.known(i)};
    return {&op_.exprs, op_.exprs.operand(static_cast<uint32_t>(op_.operand(name, false)))};
  }
  /// Computes a value that is made of known arrays and numbers alone; nullopt where anything else
  /// is in it.
  std::optional<Term> known(const Named &named);
  Term scalar(std::string_view name) { return {&op_.exprs, op_.exprs.scalar(scalarIndex(name))}; }
  Term number(const Number &number, std::string_view name) {
    return number.isArgument ? scalar(name) : constant(number.value);
  }

  // Steps.
  /// Adds a step; the results as leaves. What a map would make of known arrays alone is one itself,
  /// in f64 rounded once, where a spec has values of some.
  std::vector<Term> addStep(const char *name, Reduce reduce, std::vector<int> loops,
                            const std::vector<int> &resultLoops, const std::vector<Named> &results);
  std::vector<int> allLoops() const {
    std::vector<int> loops(static_cast<size_t>(op_.rank()));
    std::iota(loops.begin(), loops.end(), 0);
    return loops;
  }
  /// That index sums over elements; gamma and beta.
  std::vector<int> keptLoops() const { return loopsThat(&RawLoop::kept); }
  std::vector<int> parameterLoops() const { return loopsThat(&RawLoop::parameter); }
  /// Loops of the data as steps over statistics have them.
  std::vector<int> ofStatistics(std::vector<int> loops) const {
    return op_.grouped ? op_.seenFrom(std::vector<int>{op_.grouped->groups()}, std::move(loops))
                       : loops;
  }
  /// That index statistics: those of sums over elements, or the groups of their channels.
  std::vector<int> groupLoops() const {
    std::vector<int> loops = ofStatistics(keptLoops());
    if (op_.grouped)
      std::erase(loops, op_.grouped->within());
    return loops;
  }
  std::vector<int> loopsThat(bool RawLoop::*index) const {
    std::vector<int> loops;
    for (int i = 0; i < op_.rank(); ++i)
      if (loops_[i].*index)
        loops.push_back(i);
    return loops;
  }

  // Formulas.
  /// The statistics that normalize needs: y = (x - mean)*scale + shift. The mean is rounded; shift
  /// carries what rounding lost, so that y is exact where |mean| is far above the deviation.
  /// Without a mean y = x*scale.
  struct Statistics {
    std::optional<Term> mean;
    Term scale;
    std::optional<Term> shift;
  };
  /// Gamma and beta are indexed by what sums over elements keep, not by reduced loops: they are in
  /// scale and shift.
  bool parametersAreKept() const {
    return op_.grouped || spec_.indexesStatistics(spec_.axes.front());
  }
  Term zeroIfNan(Term x) { return select(isNan(x), constant(0), x); }
  /// Keeps NaN.
  Term clampAtZero(Term x) {
    const Term zero = constant(0);
    return select(less(x, zero), zero, x);
  }
  /// The deviation before an epsilon is added to it.
  Term root(Term variance, Term epsilon) {
    return sqrt(spec_.epsilonPosition == EpsilonPosition::Outside ? variance : variance + epsilon);
  }
  Term reciprocalOfRoot(Term root, Term epsilon) {
    const bool adds = spec_.epsilonPosition != EpsilonPosition::Inside;
    return constant(1) / (adds ? root + epsilon : root);
  }
  /// 1/sqrt(v+e) and its variants: the preset's epsilon_position.
  Term reciprocalDeviation(Term variance, Term epsilon) {
    return reciprocalOfRoot(root(variance, epsilon), epsilon);
  }
  /// The same of what the second moving vector holds.
  Term reciprocalOfMoving(Term epsilon) {
    const Term spread = operand(spec_.movingSpreadName());
    return spec_.movingSpread == MovingSpread::Deviation ? reciprocalOfRoot(spread, epsilon)
                                                         : reciprocalDeviation(spread, epsilon);
  }

  struct MomentumWeights {
    Term oldMean, batchMean, oldVariance, batchVariance;
  };
  MomentumWeights momentumWeights();
  std::optional<Term> runningVarianceFactor(Term n, Term epsilon);
  /// The mean of x as rounded, the sums of what remains and of its squares, and of a mask's
  /// weights. Of a synchronized batch they are given.
  struct Moments {
    Term mean, rest, squares;
    std::optional<Term> weights{};
    std::optional<Term> count{}; ///< of elements; none: all that there are
  };
  Moments moments();
  /// Makes the moments of these samples, for other ranks.
  void makePartialMoments();
  /// The correction of xhat before gamma and beta: xhat*factor + addend (renorm, adjustment).
  struct Correction {
    std::optional<Term> factor{}, addend{};
  };
  /// The correction by r and d, where there is a renorm, and by the adjustment.
  Correction correction(std::optional<Term> r, std::optional<Term> d);
  void addAdjustments();
  void addMask();
  /// The value that the second moving vector averages, for a variance over n elements.
  Term spreadOf(Term variance, Term n, Term epsilon);
  /// Appends what of the moving statistics training writes, made of these of the batch.
  void addMoving(std::vector<Named> &results, Term mean, Term variance, Term n, Term epsilon);
  void finishMoving();
  /// x normalized by the range of a population: (x - minimum)/(maximum - minimum), with gamma and
  /// beta.
  Term range();
  /// Statistics of a batch into those of all before it.
  void makePopulation();
  void makeRange();
  struct LearnedParameter {
    std::string name;
    Values values;
    Learned learned;
  };
  std::vector<LearnedParameter> learnedParameters() const;
  /// gamma, beta and what the optimizer keeps of them; written, the penalty too.
  void addLearnedOperands(bool written);
  void makeUpdate();
  /// The steps of the optimizer over parameters with these gradients and loops.
  void addUpdate(const std::map<std::string, Term> &gradients, const std::vector<int> &loops);
  Statistics batchStatistics(bool training, bool updates);
  Statistics meanOfSquares(bool training);
  Statistics movingStatistics();
  void normalize(const Statistics &statistics);
  void normalize(Term value);
  /// gamma and beta are those that elements have, none where they are in the statistics.
  Term affine(const Statistics &statistics, std::optional<Term> gamma, std::optional<Term> beta);
  Term build(const Formula &formula, std::span<const Term> operands, std::span<const Term> scalars);
  /// With a bit, its gradient is the one that this decides.
  Term applyStep(const FuseStep &step, Term value, std::span<const Term> operands,
                 std::optional<Term> bit = {});
  Term applySteps(std::span<const FuseStep> steps, Term value);
  /// x through the prologue. What is stored is a step, and what follows begins with it as it is
  /// stored.
  Term prologue();
  uint32_t scalarIndex(std::string_view name) const {
    const auto found =
        llvm::find_if(op_.scalars, [&](const Scalar &scalar) { return scalar.name == name; });
    return static_cast<uint32_t>(found - op_.scalars.begin());
  }
  /// The values of the forward pass that the gradients of steps are made of: the value that the
  /// steps were applied to, and which of their operands. A bit that was kept decides the gradient
  /// of one of the steps.
  struct Needs {
    bool value = false;
    std::set<std::string> operands{};
    std::optional<size_t> bitOf{};
  };
  Needs needsOf(std::span<const FuseStep> steps, std::optional<size_t> bitOf = {}) const;
  /// Gradients of a value and of operands, through steps whose operands are bound as `needs` says.
  struct Gradients {
    Term value;
    std::vector<std::pair<const StepOperand *, Term>> operands{};
  };
  Gradients gradientsOf(std::span<const FuseStep> steps, std::optional<Term> value, Term seed,
                        const Needs &needs);

  const Spec spec_; ///< as the phase sees it
  Operator op_;
  std::vector<SizeExpr> axisSizes_;
  std::vector<RawLoop> loops_;
  Term value_{nullptr, 0}; ///< what statistics are taken of
  std::optional<KeptBits> bits_;
  /// The mean and the spread of each ghost batch, for the moving statistics.
  std::optional<std::array<Term, 2>> ofGhosts_;
  std::vector<std::string> folded_; ///< arrays that are no arguments: the spec has their values
  std::map<std::string, double, std::less<>> uniform_; ///< those that are one number
};

} // namespace normforge
