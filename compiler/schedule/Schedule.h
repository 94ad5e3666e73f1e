// How a kernel computes: a plain value chosen before lowering.
//
// Enters: an Operator and a TargetDescription. Leaves: up to three variants, each a Schedule with a
// guard over the sizes. Lowering and passes read a schedule and decide nothing; SelectSchedule
// decides and rewrites nothing.
#pragma once

#include "compiler/operator/Operator.h"
#include "compiler/machine/Machine.h"

#include <string>
#include <vector>

namespace normforge {

/// How one stage runs over its loops.
struct StageSchedule {
  /// For each loop, the iterations of it that a task takes; 0: all of them. The number of tasks is
  /// the product of ceil(size/chunk) over the chunked loops.
  std::vector<int64_t> chunks;
  int64_t vector = 1; ///< lanes of a vector
  /// Kept indices whose statistics are in registers at once: rows in flight where the innermost
  /// loop is reduced; lanes, a multiple of the vector, where it is kept.
  int64_t tile = 1;
  /// Iterations of the innermost reduced loop in flight, in vectors where that loop has the lanes.
  int64_t unroll = 1;
  /// Every other pass over a task's data goes through the outermost reduced loop backwards, and
  /// meets in cache what the pass before it read last.
  bool alternates = false;
  /// While y is written, what the next tile of rows reads is fetched into L2: memory then works
  /// through the passes that find their data in cache, too.
  bool prefetches = false;
  /// A range of tasks that one call runs goes from the last to the first, beginning with those
  /// whose data a stage before this one has read last.
  bool reversed = false;
};

enum class Form : uint8_t {
  Elementwise, ///< one stage, statistics given: normalize
  Fused,       ///< one stage: a task's slab stays in cache between statistics and normalize
  Split,       ///< three stages: moments of chunks, merge in a fixed order, normalize
};
std::string_view toString(Form form);

struct Schedule {
  Form form = Form::Elementwise;
  bool maskedTails = true; ///< as TargetDescription::maskedTails
  bool maskedLoads = true; ///< as TargetDescription::maskedLoads
  /// Vectors are scalable, and StageSchedule::vector is what this many times their least length
  /// has; 0: they are not. Any other length takes the same tasks in other steps.
  int64_t scalable = 0;
  /// y is written past the caches, where it is aligned to whole vectors.
  bool streamingStores = false;
  StageSchedule moments;   ///< Fused: the only stage. Split: the first
  StageSchedule merge;     ///< Split alone, over mergeLoops()
  StageSchedule normalize; ///< Elementwise and Split

  /// One line: "split tails=masked moments(chunks=[1,1,0] vector=16 tile=1 unroll=4) ...".
  std::string text() const;
};

struct ScheduleVariant {
  Schedule schedule;
  Guard guard;
  std::string reason; ///< in words, for `explain`
};

/// Loops of the merge of a split schedule: one reduced loop a chunked reduced loop of the operator,
/// counting its chunks, then the kept loops.
std::vector<Loop> mergeLoops(const Operator &op, const StageSchedule &moments);

/// The loop whose indices a tile covers: the innermost one when it is kept, else the last kept one;
/// -1 when no loop is kept.
int tileLoop(std::span<const Loop> loops);

/// Product of ceil(size/chunk) over the chunked loops.
SizeExpr taskCount(std::span<const Loop> loops, const StageSchedule &stage);

/// The heuristic. The variants are in the order in which their guards are tried; the last one's
/// always holds.
std::vector<ScheduleVariant> selectSchedules(const Operator &op, const TargetDescription &target);

} // namespace normforge
