// What a stage takes of registers and of shared memory.
#include "compiler/schedule/Schedule.h"

#include <algorithm>
#include <map>

namespace normforge {

int64_t slotsOf(const StagePlan &stage, std::span<const StageLoop> loops) {
  const int last = static_cast<int>(loops.size()) - 1;
  if (last >= 0 && stage.tiled == last)
    return stage.tile / stage.vector;
  return stage.rows == Rows::Packed ? stage.tile * *loops.back().size.constant() / stage.vector
                                    : stage.tile;
}

int64_t bytesInFlight(const StagePlan &stage, const Operator &op,
                      std::span<const StageLoop> loops) {
  int64_t sums = 1; // moments have two at once
  for (const Step &step : op.steps)
    if (step.reduce != Reduce::None)
      sums = std::max<int64_t>(
          {sums, 2,
           step.reduce == Reduce::Moments ? 2 : static_cast<int64_t>(step.results.size())});
  const size_t bytes = stage.merges() ? sizeof(double) : byteSize(op.compute);
  return slotsOf(stage, loops) * stage.unroll * sums * stage.vector * static_cast<int64_t>(bytes) /
         std::max<int64_t>(1, stage.threads);
}

int64_t mostRegisterBytes(const StagePlan &stage, const Device &device) {
  return std::min(device.threadRegisterBytes,
                  device.registerBytes / (stage.groupThreads() * stage.groups * stage.resident));
}

int64_t sharedBytes(const StagePlan &stage, const Operator &op, const Device &device,
                    bool columns) {
  const int64_t subgroup = device.subgroup, threads = stage.groupThreads();
  if (threads <= subgroup || (columns && stage.down == 1))
    return 0;
  int64_t sums = 0;
  for (const StepPlan &plan : stage.steps)
    if (const Step &step = op.steps[plan.step]; step.reduce != Reduce::None)
      sums += step.reduce == Reduce::Moments ? 3 : static_cast<int64_t>(step.results.size());
  const int64_t apart = columns ? stage.threads : 1;
  const int64_t numbers = threads / std::max(subgroup, apart) * apart;
  const int64_t slots = columns ? stage.tile / stage.threads : stage.tile;
  constexpr int64_t kCopies = 2; // of the code: for whole tiles, and for others
  return kCopies * sums * slots * numbers * static_cast<int64_t>(sizeof(double)) * stage.groups;
}

std::vector<Expr> heldArrays(const Operator &op, const StagePlan &stage) {
  std::map<Expr, int> passes;
  std::vector<uint32_t> made; // results of elements
  for (const StepPlan &plan : stage.steps) {
    const Step &step = op.steps[plan.step];
    if (plan.part == Part::Merge || !op.isWhole(step))
      continue;
    for (Expr expr : op.exprs.nodesOf(step.values())) {
      const Node &node = op.exprs[expr];
      const Operand *array = op.arrayOf(expr);
      if (array && op.isWhole(*array) && array->dtype != DType::Bit)
        passes[expr] += step.reduce == Reduce::Moments ? 2 : 1;
      else if (node.op == ExprOp::Result && std::ranges::count(made, node.index) > 0)
        passes[expr] = 2; // it is stored, and read
    }
    for (uint32_t i = 0; step.reduce == Reduce::None && i < step.results.size(); ++i)
      made.push_back(step.firstResult + i);
  }
  std::vector<Expr> held;
  for (auto [expr, count] : passes)
    if (count > 1)
      held.push_back(expr);
  return held;
}

int64_t bytesHeld(const StagePlan &stage, const Operator &op) {
  size_t bytes = 0;
  const std::vector<Expr> arrays = heldArrays(op, stage);
  for (Expr expr : arrays) {
    const Operand *array = op.arrayOf(expr);
    const int operand = array ? -1 : op.result(op.exprs[expr].index).operand;
    bytes += byteSize(array          ? array->dtype
                      : operand >= 0 ? op.operands[operand].dtype
                                     : op.compute);
  }
  // What is computed from halves of two the assembler keeps from step to step, too.
  if (arrays.size() > 1)
    bytes = std::max(bytes, arrays.size() * byteSize(op.compute));
  return stage.held * static_cast<int64_t>(bytes) * stage.vector /
         std::max<int64_t>(1, stage.threads);
}

} // namespace normforge
