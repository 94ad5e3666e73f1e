#include "compiler/schedule/Schedule.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge {

std::string_view toString(Form form) {
  switch (form) {
  case Form::Elementwise:
    return "elementwise";
  case Form::Fused:
    return "fused";
  case Form::Split:
    return "split";
  }
  return "";
}

std::string Schedule::text() const {
  auto stage = [](const char *name, const StageSchedule &s) {
    return fmt::format(" {}(chunks=[{}] vector={} tile={} unroll={}{}{}{})", name,
                       fmt::join(s.chunks, ","), s.vector, s.tile, s.unroll,
                       s.alternates ? " passes=alternating" : "",
                       s.prefetches ? " prefetch=next" : "", s.reversed ? " tasks=reversed" : "");
  };
  std::string text =
      fmt::format("{} tails={}", toString(form), maskedTails ? "masked" : "narrower");
  if (scalable > 0)
    text += fmt::format(" scalable={}", scalable);
  if (!maskedLoads)
    text += " loads=whole";
  if (streamingStores)
    text += " stores=streaming";
  if (form != Form::Elementwise)
    text += stage("moments", moments);
  if (form == Form::Split)
    text += stage("merge", merge);
  if (form != Form::Fused)
    text += stage("normalize", normalize);
  return text;
}

std::vector<Loop> mergeLoops(const Operator &op, const StageSchedule &moments) {
  std::vector<Loop> loops;
  for (int i = 0; i < op.rank(); ++i)
    if (!op.loops[i].kept && moments.chunks[i] > 0)
      loops.push_back(
          {op.loops[i].axes, ceilDivide(op.loops[i].size, moments.chunks[i]), false, false});
  for (const Loop &loop : op.loops)
    if (loop.kept)
      loops.push_back(loop);
  return loops;
}

int tileLoop(std::span<const Loop> loops) {
  for (int i = static_cast<int>(loops.size()) - 1; i >= 0; --i)
    if (loops[i].kept)
      return i;
  return -1;
}

SizeExpr taskCount(std::span<const Loop> loops, const StageSchedule &stage) {
  SizeExpr count(1);
  for (size_t i = 0; i < loops.size(); ++i)
    if (stage.chunks[i] > 0)
      count = count * ceilDivide(loops[i].size, stage.chunks[i]);
  return count;
}

} // namespace normforge
