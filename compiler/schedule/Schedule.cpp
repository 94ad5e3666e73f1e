#include "compiler/schedule/Schedule.h"

namespace normforge {

std::vector<StageLoop> stageLoops(const Operator &op, const Schedule &schedule, size_t index) {
  std::vector<StageLoop> loops;
  const StagePlan &stage = schedule.stages[index];
  auto all = [&](auto append) {
    for (int i = 0; i < op.rank(); ++i)
      append(i);
  };
  if (!stage.merges()) {
    all([&](int i) { loops.push_back({op.loops[i].name, op.loops[i].size, op.kept[i], i}); });
    return loops;
  }
  const StagePlan &partials = schedule.stages[index - 1];
  all([&](int i) {
    if (!op.kept[i] && partials.chunks[i] > 0)
      loops.push_back(
          {op.loops[i].name, ceilDivide(op.loops[i].size, partials.chunks[i]), false, i});
  });
  all([&](int i) {
    if (op.kept[i])
      loops.push_back({op.loops[i].name, op.loops[i].size, true, i});
  });
  return loops;
}

int tileLoop(std::span<const StageLoop> loops) {
  for (int i = static_cast<int>(loops.size()) - 1; i >= 0; --i)
    if (loops[i].kept)
      return i;
  return -1;
}

SizeExpr taskCount(std::span<const StageLoop> loops, const StagePlan &stage) {
  SizeExpr count(1);
  for (size_t i = 0; i < loops.size(); ++i)
    if (stage.chunks[i] > 0)
      count = count * ceilDivide(loops[i].size, stage.chunks[i]);
  return count;
}

} // namespace normforge
