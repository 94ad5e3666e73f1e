#include "compiler/schedule/Schedule.h"

#include <algorithm>

namespace normforge {

std::vector<uint32_t> StagePlan::stepNumbers() const {
  std::vector<uint32_t> numbers;
  for (const StepPlan &plan : steps)
    numbers.push_back(plan.step);
  return numbers;
}

TargetDescription targetFor(const Operator &op, const TargetDescription &target) {
  return op.takesBits() ? target.withFixedVectors() : target;
}

bool mayPairHalves(const Operator &op, const TargetDescription &target) {
  return op.dtype == DType::BF16 && target.isX86();
}

std::vector<bool> keptLoops(const Operator &op, const StagePlan &stage) {
  std::vector<bool> kept = op.kept(stage.stepNumbers());
  const int last = op.rank() - 1;
  const bool elementsAlone =
      std::all_of(stage.steps.begin(), stage.steps.end(), [&](const StepPlan &plan) {
        return op.isWhole(op.steps[plan.step]) && op.steps[plan.step].reduce == Reduce::None;
      });
  if (elementsAlone && kept[last] && stage.tiled >= 0 && stage.tiled < last) {
    kept.assign(kept.size(), false);
    std::fill_n(kept.begin(), last, true);
  }
  return kept;
}

std::vector<StageLoop> stageLoops(const Operator &op, const Schedule &schedule, size_t index) {
  std::vector<StageLoop> loops;
  const StagePlan &stage = schedule.stages[index];
  const std::vector<bool> kept = keptLoops(op, stage);
  auto all = [&](auto append) {
    for (int i = 0; i < static_cast<int>(op.loops.size()); ++i)
      append(i);
  };
  if (!stage.merges()) {
    std::vector<bool> used(op.loops.size());
    for (const StepPlan &plan : stage.steps)
      for (int i : op.steps[plan.step].loops)
        used[i] = true;
    all([&](int i) {
      if (used[i])
        loops.push_back({op.loops[i].name, op.loops[i].size, kept[i], i});
    });
    return loops;
  }
  const int maker = partialStage(schedule, index);
  if (maker < 0)
    return loops;
  const std::vector<StageLoop> cut = stageLoops(op, schedule, static_cast<size_t>(maker));
  const StagePlan &partials = schedule.stages[static_cast<size_t>(maker)];
  for (size_t i = 0; i < cut.size(); ++i)
    if (!kept[cut[i].loop] && partials.chunks[i] > 0)
      loops.push_back(
          {cut[i].name, ceilDivide(cut[i].size, partials.chunks[i]), false, cut[i].loop});
  all([&](int i) {
    if (kept[i])
      loops.push_back({op.loops[i].name, op.loops[i].size, true, i});
  });
  return loops;
}

int partialStage(const Schedule &schedule, size_t index) {
  const StepPlan partial{schedule.stages[index].steps.front().step, Part::Partial};
  for (int i = static_cast<int>(index); i-- > 0;)
    for (const StepPlan &plan : schedule.stages[static_cast<size_t>(i)].steps)
      if (plan == partial)
        return i;
  return -1;
}

bool isCarried(const Operator &op, const StagePlan &stage, const StepPlan &plan) {
  const uint32_t step = plan.step;
  return plan.part == Part::Partial && op.kept(std::span(&step, 1)) != op.kept(stage.stepNumbers());
}

int tileLoop(std::span<const StageLoop> loops) {
  for (int i = static_cast<int>(loops.size()) - 1; i >= 0; --i)
    if (loops[i].kept)
      return i;
  return -1;
}

std::optional<std::string> apartRows(const Operator &op, const Step &step, int outer, int inner) {
  const auto length = op.loops[inner].size.constant();
  auto isApart = [&](const std::vector<SizeExpr> &strides) {
    const SizeExpr &row = strides[outer], &element = strides[inner];
    return row.constant() != 0 && element.constant() != 0 &&
           !(length && row.constant() == length && element.constant() == 1);
  };
  for (Expr expr : op.exprs.nodesOf(step.values()))
    if (const Operand *array = op.arrayOf(expr); array && isApart(array->strides))
      return array->name;
    else if (const Node &node = op.exprs[expr]; node.op == ExprOp::Result)
      if (const Result &read = op.result(node.index);
          !op.isWhole(read.loops) && isApart(op.dense(read.loops).strides))
        return read.name;
  for (const Result &result : step.results)
    if (result.operand >= 0 && isApart(op.operands[result.operand].strides))
      return op.operands[result.operand].name;
  return std::nullopt;
}

SizeExpr taskCount(std::span<const StageLoop> loops, const StagePlan &stage) {
  SizeExpr count(1);
  for (size_t i = 0; i < loops.size(); ++i)
    if (stage.chunks[i] > 0)
      count = count * ceilDivide(loops[i].size, stage.chunks[i]);
  return count;
}

} // namespace normforge
