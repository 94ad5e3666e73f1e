// From a spec to its operator: loops, operands, and the formulas of the forward phases.
#include "compiler/expr/Functions.h"
#include "compiler/operator/OperatorBuilder.h"

#include <fmt/format.h>

namespace normforge {

namespace {

/// The size of an axis as an expression over the named sizes.
SizeExpr sizeOf(const Size &size, const std::vector<std::string> &names) {
  if (!size.isNamed())
    return SizeExpr(size.value);
  auto it = llvm::find(names, size.name);
  return SizeExpr::size(static_cast<uint32_t>(it - names.begin()));
}

/// The name of a mode in kernels' symbols.
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
  case Mode::Group:
    return "gn";
  case Mode::Range:
    return "range";
  }
  return "bn";
}

/// Loops over the groups of a grouped axis, over what one has of it, and over samples in blocks.
constexpr char kGroupsName = 'g', kWithinName = 'k', kSamplesName = 's';
/// Loops over ghost batches, and over the samples of one.
constexpr char kGhostsName = 'v', kOfGhostName = 'j';

char upper(char letter) { return static_cast<char>(letter - 'a' + 'A'); }

/// The operands of the steps of a spec, in its order.
std::vector<const StepOperand *> stepOperands(const Spec &spec) {
  std::vector<const StepOperand *> operands;
  for (const std::vector<FuseStep> *steps : {&spec.prologue, &spec.fuse})
    for (const FuseStep &step : *steps)
      for (const StepOperand &operand : step.operands)
        operands.push_back(&operand);
  return operands;
}

/// With `splits` a grouped axis is two loops, over groups and within one. Ghost batches are
/// strided: sample number s of ghost v is sample s*ghosts + v of all. A size of its own keeps sums
/// over elements from having nothing to run over.
std::vector<RawLoop> rawLoops(const Spec &spec, const std::vector<SizeExpr> &axisSizes, bool splits,
                              bool hasGhosts) {
  std::vector<RawLoop> raw;
  const auto operands = stepOperands(spec);
  auto add = [&](char letter, SizeExpr size, int axis, RawLoop::Part part) {
    const bool kept =
        spec.indexesStatistics(axis) || spec.isGrouped(axis) || part == RawLoop::Ghosts;
    raw.push_back({{std::string(1, letter), std::move(size)},
                   {axis},
                   part,
                   kept && part != RawLoop::Within,
                   spec.isAxis(axis)});
    for (const StepOperand *operand : operands)
      raw.back().operands.push_back(llvm::is_contained(operand->axes, axis));
  };
  const Layout &layout = spec.layout;
  for (int i = 0; i < spec.rank(); ++i)
    if (i == layout.blockedAxis) {
      add(upper(layout.axes[i]), ceilDivide(axisSizes[i], layout.block), i, RawLoop::Blocks);
    } else if (splits && spec.isGrouped(i)) {
      add(kGroupsName, spec.groups, i, RawLoop::Groups);
      add(kWithinName, ceilDivide(axisSizes[i], spec.groups), i, RawLoop::Within);
    } else if (hasGhosts && i == spec.samplesAxis()) {
      add(kOfGhostName, spec.ghostBatch, i, RawLoop::OfGhost);
      add(kGhostsName, ceilDivide(axisSizes[i], spec.ghostBatch), i, RawLoop::Ghosts);
    } else {
      add(layout.axes[i], axisSizes[i], i, RawLoop::Whole);
    }
  if (layout.isBlocked())
    add(layout.axes[layout.blockedAxis], layout.block, layout.blockedAxis, RawLoop::Lanes);
  if (spec.mode == Mode::Group && llvm::all_of(raw, [](const RawLoop &r) { return r.kept; })) {
    RawLoop one{{"1", 1}, {}};
    one.operands.assign(operands.size(), false);
    raw.insert(std::prev(raw.end()), std::move(one));
  }
  return raw;
}

/// A block of lanes beside its blocks, all of them whole, is the axis as it is without blocks.
void joinBlocks(std::vector<RawLoop> &raw, const SizeExpr &size, int64_t block) {
  const auto blocks = llvm::find_if(raw, [](auto &r) { return r.part == RawLoop::Blocks; });
  if (blocks == raw.end() || std::next(blocks)->part != RawLoop::Lanes)
    return;
  const auto constant = size.constant();
  if (!constant || *constant % block != 0)
    return;
  blocks->part = RawLoop::Whole;
  blocks->loop = {std::next(blocks)->loop.name, size};
  raw.erase(std::next(blocks));
}

/// Drops axes of size 1, but for the last of its kind and a grouped one, then joins neighbors that
/// everything indexes alike. Those of size 1 that are left are outermost (but for groups), for the
/// innermost has lanes.
std::vector<RawLoop> joinLoops(const Spec &spec, const std::vector<SizeExpr> &axisSizes,
                               bool keepsBlocks, std::vector<RawLoop> raw) {
  auto hasOther = [&](const RawLoop &one) {
    return llvm::any_of(raw, [&](const RawLoop &r) { return &r != &one && r.kept == one.kept; });
  };
  for (size_t i = 0; i < raw.size();)
    if (raw[i].part == RawLoop::Whole && raw[i].loop.size.constant() == 1 && hasOther(raw[i]) &&
        !(raw[i].axes.size() == 1 && spec.isGrouped(raw[i].axes.front())))
      raw.erase(raw.begin() + static_cast<std::ptrdiff_t>(i));
    else
      ++i;
  if (spec.mode != Mode::Group)
    std::stable_partition(raw.begin(), raw.end(), [](const RawLoop &r) {
      return r.part == RawLoop::Whole && r.loop.size.constant() == 1;
    });
  if (spec.layout.isBlocked() && !keepsBlocks)
    joinBlocks(raw, axisSizes[static_cast<size_t>(spec.layout.blockedAxis)], spec.layout.block);

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

} // namespace

OperatorBuilder::OperatorBuilder(const Spec &spec, Phase phase) : spec_(ofPhase(spec, phase)) {
  op_.name = spec.name;
  op_.phase = phase;
  op_.dtype = spec_.dtype;
  op_.compute = spec_.accumulate;
  if (phase == Phase::Inference)
    folded_ = foldedNames(spec);
  op_.symbol = fmt::format("nf_{}_{}_{}_{}", shortName(spec.mode), toString(phase),
                           toString(spec_.dtype), spec_.layout.text);
  llvm::replace(op_.symbol, '+', '_');
  op_.sizes = spec_.sizeNames();
  op_.scalars = spec.scalars(phase);
  // Nothing has no statistics.
  const int64_t least = phase == Phase::Inference ? 0 : 1;
  for (uint32_t i = 0; i < op_.sizes.size(); ++i) {
    const bool isGrouped =
        spec_.mode == Mode::Group &&
        spec_.shape[static_cast<size_t>(spec_.axes.front())].name == op_.sizes[i];
    const bool hasGhosts =
        this->hasGhosts() &&
        spec_.shape[static_cast<size_t>(spec_.samplesAxis())].name == op_.sizes[i];
    if (least > 0 || isGrouped)
      op_.constraints.push_back({i, least,
                                 isGrouped   ? spec_.groups
                                 : hasGhosts ? spec_.ghostBatch
                                             : 1});
  }
}

Operator OperatorBuilder::build() {
  if (op_.phase == Phase::Training || isBackward(op_.phase))
    bits_ = OperatorBuilder(spec_, Phase::Training).keptBits();
  makeLoops(/*keepsBlocks=*/bits_.has_value());
  if (isBackward(op_.phase)) {
    makeBackward();
    return std::move(op_);
  }
  if (op_.phase == Phase::Update) {
    makeUpdate();
    return std::move(op_);
  }
  const bool training = op_.phase == Phase::Training;
  const bool updates = spec_.updatesMovingStatistics(op_.phase);
  makeOperands(training, updates);
  value_ = operand("x"); // steps read what was named first before the rest
  value_ = prologue();
  if (op_.phase == Phase::Population) {
    makePopulation();
    return std::move(op_);
  }
  if (op_.phase == Phase::Moments) {
    makePartialMoments();
    return std::move(op_);
  }
  if (spec_.hasRange())
    normalize(range());
  else if (spec_.takesMovingStatistics(op_.phase))
    normalize(movingStatistics());
  else if (spec_.hasMean())
    normalize(batchStatistics(training, updates));
  else
    normalize(meanOfSquares(training));
  finishMoving();
  return std::move(op_);
}

void OperatorBuilder::makeLoops(bool keepsBlocks) {
  for (const Size &size : spec_.shape)
    axisSizes_.push_back(sizeOf(size, op_.sizes));
  const bool splits = splitsGroupedAxis();
  loops_ =
      joinLoops(spec_, axisSizes_, keepsBlocks, rawLoops(spec_, axisSizes_, splits, hasGhosts()));
  for (const RawLoop &raw : loops_)
    op_.loops.push_back(raw.loop);
  const Layout &layout = spec_.layout;
  op_.groupSize = op_.elements = SizeExpr(1);
  for (int i = 0; i < spec_.rank(); ++i) {
    op_.elements = op_.elements * (i == layout.blockedAxis ? ceilDivide(axisSizes_[i], layout.block)
                                                           : axisSizes_[i]);
    if (!spec_.indexesStatistics(i))
      op_.groupSize =
          op_.groupSize * (spec_.isGrouped(i)                        ? channelsOfGroup()
                           : hasGhosts() && i == spec_.samplesAxis() ? SizeExpr(spec_.ghostBatch)
                                                                     : axisSizes_[i]);
  }
  if (layout.isBlocked())
    op_.elements = op_.elements * SizeExpr(layout.block);
  if (llvm::any_of(loops_, [](const RawLoop &raw) { return raw.part == RawLoop::Blocks; }))
    makeBlocked();
  if (spec_.mode == Mode::Group && !splits)
    addGroups();
}

/// Whether a group's statistics are taken of its elements at once, and the data's loops are those
/// of groups and within them. Otherwise they are made of sums of each channel: where channels are
/// innermost or in blocks, so that their sums are columns whatever the groups are, and in the
/// backward phase, which needs the sums of channels for dgamma and dbeta.
bool OperatorBuilder::splitsGroupedAxis() const {
  if (spec_.mode != Mode::Group || isBackward(op_.phase) || spec_.layout.isBlocked())
    return false;
  bool hasOthers = false;
  for (int i = 0; i < spec_.rank(); ++i) {
    if (spec_.isGrouped(i) || i == spec_.samplesAxis() || axisSizes_[i].constant() == 1)
      continue;
    if (i > spec_.axes.front())
      return true;
    hasOthers = true;
  }
  return !hasOthers;
}

/// Loops of statistics for the groups of an axis whose channels sums over elements keep, and for
/// samples in blocks.
void OperatorBuilder::addGroups() {
  GroupedStatistics grouped;
  auto add = [&](int axis, std::vector<Loop> own) {
    GroupedStatistics::Axis &added = grouped.axes.emplace_back();
    for (size_t i = 0; i < loops_.size(); ++i)
      if (!loops_[i].axes.empty() && loops_[i].axes.back() == axis)
        added.whole.push_back(static_cast<int>(i));
    for (Loop &loop : own) {
      added.own.push_back(static_cast<int>(op_.loops.size()));
      op_.loops.push_back(std::move(loop));
    }
  };
  add(spec_.axes.front(), {{std::string(1, kGroupsName), spec_.groups},
                           {std::string(1, kWithinName), channelsOfGroup()}});
  if (const int samples = spec_.samplesAxis(); samples == spec_.layout.blockedAxis)
    add(samples, {{std::string(1, kSamplesName), axisSizes_[static_cast<size_t>(samples)]}});
  op_.grouped = std::move(grouped);
}

void OperatorBuilder::makeBlocked() {
  const Layout &layout = spec_.layout;
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
                  .padded = blocks && op_.blocked && op_.blocked->padded};
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
                          : index.byGroup && spec_.isGrouped(i)       ? SizeExpr(spec_.groups)
                          : index.byGhost && i == spec_.samplesAxis() ? ghosts()
                                                                      : axisSizes_[i];
    operand.shape.insert(operand.shape.begin(), size);
    axisStrides[i] = stride;
    stride = size * stride;
  }
  if (blocks)
    operand.shape.push_back(SizeExpr(spec_.layout.block));
  for (const RawLoop &raw : loops_) {
    SizeExpr loopStride(0);
    if (hasLoop(index, raw) && !raw.axes.empty())
      loopStride = axisStrides[raw.axes.back()];
    if (raw.part == RawLoop::Blocks && !blocks)
      loopStride = loopStride * SizeExpr(spec_.layout.block);
    else if (blocks && !raw.axes.empty() && raw.axes.back() == spec_.layout.blockedAxis &&
             raw.part != RawLoop::Blocks)
      loopStride = SizeExpr(1); // of lanes, and of the whole axis where nothing lies between them
    else if (raw.part == RawLoop::Groups && !index.byGroup)
      loopStride = loopStride * channelsOfGroup();
    else if (raw.part == RawLoop::OfGhost)
      loopStride = loopStride * ghosts();
    operand.strides.push_back(loopStride);
  }
  for (size_t i = 0; op_.grouped && i < op_.grouped->axes.size(); ++i) {
    const auto &[whole, own] = op_.grouped->axes[i];
    const int axis = loops_[static_cast<size_t>(whole.back())].axes.back();
    const SizeExpr &unit = blocks ? SizeExpr(0) : axisStrides[static_cast<size_t>(axis)];
    if (own.size() == 1) {
      operand.strides.push_back(unit);
      continue;
    }
    operand.strides.push_back(index.byGroup ? unit : unit * channelsOfGroup());
    operand.strides.push_back(index.byGroup ? SizeExpr(0) : unit);
    if (index.byGroup)
      operand.loops.push_back(own[0]);
  }
  for (int i = 0; i < op_.rank(); ++i) {
    if (!hasLoop(index, loops_[i]))
      continue;
    // The lanes of a block follow the blocks where the axis is whole in memory.
    const bool isLanes = loops_[i].part == RawLoop::Lanes && !blocks;
    const auto at =
        isLanes ? std::next(llvm::find(operand.loops, op_.blocked->outer)) : operand.loops.end();
    operand.loops.insert(at, i);
  }
  if (!written && llvm::is_contained(folded_, operand.name)) {
    addKnown(std::move(operand));
    return;
  }
  for (const std::string &alias : aliases)
    if (int other = op_.operand(alias, false); other >= 0)
      operand.mayAlias.push_back(static_cast<uint32_t>(other));
  op_.operands.push_back(std::move(operand));
}

/// One number is a constant of the formulas.
void OperatorBuilder::addKnown(Operand operand) {
  const std::string name = operand.name;
  if (const Initial &initial = *initialOf(spec_, name); initial.kind == Initial::Kind::Constant) {
    HostArray one(operand.dtype, {1});
    one.set(0, initial.first);
    uniform_[name] = one.get(0);
    return;
  }
  op_.known.push_back({std::move(operand), foldedValue(spec_, name, {})});
}

/// A dense array of bits, but that every run of the innermost loop begins with a word.
void OperatorBuilder::addBits(bool written) {
  addOperand(kBitsName, Role::Mask, Values::Bit, DType::Bit, dataIndex(), written);
  Operand &operand = op_.operands.back();
  const int64_t word = elementsPerWord(DType::Bit);
  const int last = op_.rank() - 1;
  const SizeExpr run = ceilDivide(op_.loops[last].size, word) * SizeExpr(word);
  operand.strides.assign(op_.loops.size(), SizeExpr(0));
  operand.strides[last] = SizeExpr(1);
  SizeExpr stride = run;
  for (int i = last; i-- > 0;) {
    operand.strides[i] = stride;
    stride = op_.loops[i].size * stride;
  }
  operand.shape.clear();
  for (int i = 0; i < spec_.rank(); ++i)
    if (i == spec_.layout.blockedAxis)
      operand.shape.push_back(ceilDivide(axisSizes_[i], spec_.layout.block));
    else if (!llvm::is_contained(bits_->run, i))
      operand.shape.push_back(axisSizes_[i]);
  operand.shape.push_back(run);
}

void OperatorBuilder::addMovingOperands(bool written) {
  // A range is values of x.
  const DType type = spec_.hasRange() ? spec_.statisticDType() : spec_.parameterDType;
  auto add = [&](const char *name, Values values) {
    addOperand(name, Role::State, values, type, parameterIndex(), written,
               written ? std::vector<std::string>{name} : std::vector<std::string>());
  };
  if (spec_.hasRange()) {
    add("minimum", Values::Least);
    add("maximum", Values::Greatest);
    return;
  }
  add("moving_mean", Values::Mean);
  if (spec_.movingSpread == MovingSpread::Deviation)
    add("moving_stddev", Values::Deviation);
  else if (written || !spec_.renorm)
    add("moving_variance", Values::Variance);
  if (!spec_.renorm)
    return;
  add("moving_stddev", Values::Deviation);
  add("renorm_mean", Values::Mean);
  add("renorm_stddev", Values::Deviation);
}

void OperatorBuilder::addPopulationOperands(bool written) {
  if (spec_.hasRange()) // the range itself is all
    return;
  for (auto [name, values] :
       {std::pair("population_count", Values::Count), std::pair("population_mean", Values::Mean),
        std::pair("population_m2", Values::Variance)})
    addOperand(name, Role::State, values, DType::F64, parameterIndex(), written,
               written ? std::vector<std::string>{name} : std::vector<std::string>());
}

void OperatorBuilder::addPartialMoments(bool written) {
  for (auto [name, values] :
       {std::pair("partial_count", Values::Count), std::pair("partial_mean", Values::Mean),
        std::pair("partial_residual", Values::Any), std::pair("partial_squares", Values::Variance)})
    addOperand(name, Role::PartialMoments, values, spec_.partialDType(), statisticIndex(), written);
}

void OperatorBuilder::addPartialSums(bool written) {
  for (const char *name : {"partial_gradient", "partial_product"})
    addOperand(name, Role::PartialSum, Values::Any, spec_.partialDType(), statisticIndex(),
               written);
}

/// Adds the statistics that training gives beside the mean of the whole batch: what its rounding
/// has left out, and the number of its elements.
void OperatorBuilder::addSharedStatistics(bool written) {
  addOperand("batch_residual", Role::Statistic, Values::Any, spec_.statisticDType(),
             statisticIndex(), written);
  if (op_.phase != Phase::GradientSums)
    addOperand("batch_count", Role::Statistic, Values::Count, spec_.statisticDType(),
               statisticIndex(), written);
}

void OperatorBuilder::addAdjustments() {
  if (!spec_.adjustment)
    return;
  addOperand("adjust_scale", Role::Data, Values::Factor, spec_.parameterDType, parameterIndex(),
             false);
  addOperand("adjust_bias", Role::Data, Values::Any, spec_.parameterDType, parameterIndex(), false);
}

void OperatorBuilder::addMask() {
  if (spec_.mask)
    addOperand("mask", Role::Data, Values::Weight, spec_.dtype, maskIndex(), false);
}

void OperatorBuilder::makeOperands(bool training, bool updates) {
  const DType data = spec_.dtype, parameter = spec_.parameterDType,
              statistic = spec_.statisticDType();
  addOperand("x", Role::Data, Values::Sample, data, dataIndex(), false);
  addStepOperands(spec_.prologue, [](const StepOperand &) { return false; });
  if (spec_.scale)
    addOperand("gamma", Role::Parameter, Values::Factor, parameter, parameterIndex(), false);
  if (spec_.center)
    addOperand("beta", Role::Parameter, Values::Any, parameter, parameterIndex(), false);
  if (spec_.takesMovingStatistics(op_.phase) || updates || spec_.hasRange())
    addMovingOperands(/*written=*/false);
  if (op_.phase == Phase::Population)
    addPopulationOperands(/*written=*/false);
  addAdjustments();
  addStepOperands(spec_.fuse, [](const StepOperand &) { return false; });
  if (!spec_.synchronized || op_.phase == Phase::Moments)
    addMask();
  if (spec_.synchronized)
    addPartialMoments(/*written=*/op_.phase == Phase::Moments);
  if (op_.phase == Phase::Moments)
    return;
  // Over what elements alone read, and no step before them.
  std::vector<std::string> over;
  if (spec_.storedStep() < 0)
    over.push_back("x");
  for (const FuseStep &step : spec_.fuse)
    for (const StepOperand &operand : step.operands)
      if (operand.whole)
        over.push_back(operand.name);
  if (op_.phase != Phase::Population)
    addOperand("y", Role::Data, Values::Any, data, dataIndex(), true, over);
  for (const FuseStep &step : spec_.prologue)
    if (!step.store.empty()) {
      std::vector<std::string> sources;
      if (spec_.storedStep() == 0)
        sources = {"x", step.operands[0].name};
      addOperand(step.store.c_str(), Role::Data, Values::Any, data, dataIndex(), true, sources);
    }
  if (op_.phase == Phase::Population)
    addPopulationOperands(/*written=*/true);
  if (updates || op_.phase == Phase::Population)
    addMovingOperands(/*written=*/true);
  if (training && !spec_.takesMovingStatistics(op_.phase)) {
    if (spec_.hasMean())
      addOperand("batch_mean", Role::Statistic, Values::Mean, statistic, statisticIndex(), true);
    addOperand("batch_variance", Role::Statistic, Values::Variance, statistic, statisticIndex(),
               true);
    if (spec_.synchronized && spec_.hasBackward())
      addSharedStatistics(/*written=*/true);
    if (bits_)
      addBits(/*written=*/true);
    if (spec_.renorm && spec_.hasBackward())
      for (const char *name : {"renorm_r", "renorm_d"})
        addOperand(name, Role::Statistic, Values::Any, statistic, statisticIndex(), true);
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
    if (reduce == Reduce::None && named.operand.empty())
      if (const auto value = known(named)) {
        leaves.push_back(*value);
        continue;
      }
    leaves.push_back({&op_.exprs, op_.exprs.result(step.firstResult +
                                                   static_cast<uint32_t>(step.results.size()))});
    const int written = named.operand.empty() ? -1 : op_.operand(named.operand, true);
    step.results.push_back({named.name, named.value.expr, resultLoops, written});
  }
  if (!step.results.empty())
    op_.steps.push_back(std::move(step));
  return leaves;
}

std::optional<Term> OperatorBuilder::known(const Named &named) {
  if (folded_.empty())
    return std::nullopt;
  const KnownArray *like = nullptr;
  for (Expr expr : op_.exprs.nodesOf(std::span(&named.value.expr, 1))) {
    const Node &node = op_.exprs[expr];
    if (node.op == ExprOp::Known) {
      const KnownArray &of = op_.known[node.index];
      if (like && (like->array.loops != of.array.loops || like->array.strides != of.array.strides))
        return std::nullopt;
      like = &of;
    } else if (arityOf(node.op) == 0 && node.op != ExprOp::Constant) {
      return std::nullopt;
    }
  }
  auto at = [&](int64_t i) {
    return op_.exprs.evaluate(
        named.value.expr, [&](const Node &leaf) { return op_.known[leaf.index].values.get(i); });
  };
  if (!like)
    return constant(at(0));
  KnownArray made{like->array, HostArray(op_.compute, like->values.shape)};
  made.array.name = named.name;
  made.array.dtype = op_.compute;
  for (int64_t i = 0; i < made.values.count(); ++i)
    made.values.set(i, at(i));
  op_.known.push_back(std::move(made));
  return Term{&op_.exprs, op_.exprs.known(static_cast<uint32_t>(op_.known.size() - 1))};
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

/// y = epilogue(((x - mean)*scale + shift)*gamma + beta), gamma and beta where mode 1 has them.
void OperatorBuilder::normalize(const Statistics &statistics) {
  std::optional<Term> gamma, beta;
  if (!parametersAreKept() && spec_.scale)
    gamma = operand("gamma");
  if (!parametersAreKept() && spec_.center)
    beta = operand("beta");
  normalize(affine(statistics, gamma, beta));
}

/// y of what gamma and beta have made.
void OperatorBuilder::normalize(Term value) {
  std::optional<Term> bit;
  for (size_t i = 0; i < spec_.fuse.size(); ++i) {
    const FuseStep &step = spec_.fuse[i];
    if (bits_ && i == bits_->step)
      bit = findFunction(step.name)->decides(value, step.parameters);
    value = applySteps(std::span(&step, 1), value);
  }
  std::vector<Named> results{{"y", value, "y"}};
  if (bit)
    results.push_back({kBitsName, *bit, kBitsName});
  addStep("normalize", Reduce::None, allLoops(), allLoops(), results);
}

std::optional<KeptBits> keptBits(const Spec &spec) {
  return OperatorBuilder(spec, Phase::Training).keptBits();
}

Operator makeOperator(const Spec &spec, Phase phase) {
  return OperatorBuilder(spec, phase).build();
}

} // namespace normforge
