// What a stage takes of registers and of shared memory.
#include "compiler/schedule/Schedule.h"

#include <algorithm>
#include <map>
#include <utility>

namespace normforge {

bool hasColumns(const StagePlan &stage, std::span<const StageLoop> loops) {
  return !loops.empty() && stage.tiled == static_cast<int>(loops.size()) - 1;
}

int64_t slotsOf(const StagePlan &stage, std::span<const StageLoop> loops) {
  if (hasColumns(stage, loops))
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

int64_t sharedBytes(const StagePlan &stage, const Operator &op, std::span<const StageLoop> loops,
                    const Device &device) {
  const bool columns = hasColumns(stage, loops);
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

int64_t mostResident(const StagePlan &stage, const Operator &op, std::span<const StageLoop> loops,
                     const Device &device) {
  const int64_t threads = stage.groupThreads() * stage.groups;
  const int64_t whole = (threads + device.subgroup - 1) / device.subgroup * device.subgroup;
  const int64_t shared = std::max<int64_t>(1, sharedBytes(stage, op, loops, device));
  return std::max<int64_t>(
      1, std::min({device.blocks, device.threads / whole, device.sharedBytes / shared}));
}

namespace {

/// How often a stage's steps go through each array of the data: operands' elements, without bits,
/// and what a step stores and others read, which counts as once by itself.
std::map<Expr, int> passesOf(const Operator &op, const StagePlan &stage) {
  std::map<Expr, int> passes;
  std::vector<uint32_t> made; // results of elements
  for (const StepPlan &plan : stage.steps) {
    const Step &step = op.steps[plan.step];
    if (plan.part == Part::Merge || !op.isWhole(step))
      continue;
    for (Expr expr : op.exprs.nodesOf(step.values())) {
      const Node &node = op.exprs[expr];
      const Operand *array = op.arrayOf(expr);
      if (array ? op.isWhole(*array) && !array->isBits()
                : node.op == ExprOp::Result && std::ranges::count(made, node.index) > 0)
        passes.try_emplace(expr, array ? 0 : 1).first->second +=
            step.reduce == Reduce::Moments ? 2 : 1;
    }
    for (uint32_t i = 0; step.reduce == Reduce::None && i < step.results.size(); ++i)
      if (const int operand = step.results[i].operand;
          operand < 0 || !op.operands[static_cast<size_t>(operand)].isBits())
        made.push_back(step.firstResult + i);
  }
  return passes;
}

} // namespace

std::vector<Expr> heldArrays(const Operator &op, const StagePlan &stage) {
  std::vector<Expr> held;
  for (auto [expr, count] : passesOf(op, stage))
    if (count > 1)
      held.push_back(expr);
  return held;
}

std::optional<int64_t> vectorsOfThread(const StagePlan &stage, std::span<const StageLoop> loops) {
  const int last = static_cast<int>(loops.size()) - 1;
  int64_t vectors = hasColumns(stage, loops) ? slotsOf(stage, loops) : 1, down = stage.down;
  for (int i = last; i >= 0; --i) {
    if (loops[i].kept)
      continue;
    std::optional<int64_t> size = loops[i].size.constant();
    if (stage.chunks[i] > 0)
      size = size ? std::min(*size, stage.chunks[i]) : stage.chunks[i];
    if (!size)
      return std::nullopt;
    const int64_t step = i == last ? stage.vector : std::exchange(down, 1);
    vectors *= (*size + step - 1) / step;
  }
  return vectors;
}

std::vector<Loads> loadsOf(const Operator &op, const StagePlan &stage,
                           std::span<const StageLoop> loops) {
  const auto vectors = vectorsOfThread(stage, loops);
  std::vector<Loads> loads;
  for (auto [expr, passes] : passesOf(op, stage))
    if (const Operand *array = op.arrayOf(expr)) {
      const bool isHeld = stage.held > 0 && passes > 1;
      const bool isWhole = isHeld && vectors && *vectors <= stage.held;
      loads.push_back({array, isHeld ? 1 : passes, isWhole || !isHeld ? 0 : passes - 1});
    }
  return loads;
}

int64_t bytesHeld(const StagePlan &stage, const Operator &op) {
  constexpr int64_t kRegister = 4;
  const std::vector<Expr> arrays = heldArrays(op, stage);
  const int64_t lanes = stage.vector / std::max<int64_t>(1, stage.threads);
  int64_t bytes = 0;
  for (Expr expr : arrays) {
    const Operand *array = op.arrayOf(expr);
    const int operand = array ? -1 : op.result(op.exprs[expr].index).operand;
    const DType dtype = array          ? array->dtype
                        : operand >= 0 ? op.operands[static_cast<size_t>(operand)].dtype
                                       : op.compute;
    bytes += std::max(kRegister, lanes * static_cast<int64_t>(byteSize(dtype)));
  }
  // What is computed from halves of two the assembler keeps from step to step, too.
  if (arrays.size() > 1)
    bytes = std::max(bytes, static_cast<int64_t>(arrays.size() * byteSize(op.compute)) * lanes);
  // Sums that tiles carry are held, too.
  for (const StepPlan &plan : stage.steps)
    if (isCarried(op, stage, plan))
      bytes +=
          static_cast<int64_t>(op.steps[plan.step].results.size() * byteSize(op.compute)) * lanes;
  return stage.held * bytes;
}

} // namespace normforge
