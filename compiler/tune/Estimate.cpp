#include "compiler/tune/Estimate.h"

#include <algorithm>
#include <cmath>

namespace normforge::tune {

namespace {

// The bandwidths of one core, in bytes a nanosecond: orders of magnitude that CPUs of the last ten
// years share.
constexpr double kL1Speed = 120, kL2Speed = 45, kL3Speed = 20, kMemorySpeed = 10;
/// One more thread brings this share of the first one's speed where memory is shared.
constexpr double kMemoryOfFurtherThreads = 0.5;
constexpr double kTaskNanoseconds = 60, kBarrierNanoseconds = 1500;
/// Vector instructions a nanosecond.
constexpr double kInstructions = 4;
/// Nanoseconds of an addition that waits for the one before.
constexpr double kAdditionLatency = 1.2;
/// Bytes of a run that the prefetchers need to begin.
constexpr double kRunBytes = 256;

class Model {
public:
  Model(const Schedule &schedule, const Operator &op, std::span<const int64_t> sizes,
        const TargetDescription &target, int threads)
      : schedule_(schedule), op_(op), sizes_(sizes), target_(target), threads_(threads),
        element_(static_cast<double>(byteSize(op.dtype))) {
    for (const Operand &operand : op.operands)
      if (op.isWhole(operand))
        all_ += value(operand.bytes());
  }
  double run() const {
    double sum = 0;
    for (size_t i = 0; i < schedule_.stages.size(); ++i)
      sum += stage(i);
    return sum;
  }

private:
  double value(const SizeExpr &size) const {
    return static_cast<double>(size.evaluate(sizes_).value_or(INT64_MAX));
  }
  /// Bytes a nanosecond from where so many bytes stay.
  double speedOf(double bytes) const {
    if (bytes <= static_cast<double>(target_.l1Bytes))
      return kL1Speed;
    if (bytes <= static_cast<double>(target_.l2Bytes))
      return kL2Speed;
    return bytes <= static_cast<double>(target_.l3Bytes) ? kL3Speed : kMemorySpeed;
  }
  double stage(size_t index) const;

  const Schedule &schedule_;
  const Operator &op_;
  const std::span<const int64_t> sizes_;
  const TargetDescription &target_;
  const int threads_;
  const double element_;
  double all_ = 0; ///< bytes of all arrays of the data
};

double Model::stage(size_t index) const {
  const StagePlan &plan = schedule_.stages[index];
  const std::vector<StageLoop> loops = stageLoops(op_, schedule_, index);
  double tasks = 1, perTask = 1, elements = 1;
  std::vector<double> taken(loops.size());
  for (size_t i = 0; i < loops.size(); ++i) {
    const double size = std::max(1.0, value(loops[i].size));
    taken[i] = plan.chunks[i] > 0 ? std::min(size, static_cast<double>(plan.chunks[i])) : size;
    tasks *= std::ceil(size / taken[i]);
    perTask *= taken[i];
    elements *= size;
  }
  const double busy = tasks / std::ceil(tasks / threads_);
  const bool columns = plan.tiled == static_cast<int>(loops.size()) - 1;
  const double vector = static_cast<double>(plan.vector);
  const double row = taken.empty() ? 1 : taken.back();
  const double vectors = elements / row * std::ceil(row / vector);
  const double slots = columns ? std::max(1.0, static_cast<double>(plan.tile) / vector)
                               : static_cast<double>(plan.tile);
  const double inFlight = slots * static_cast<double>(plan.unroll);

  double arithmetic = 0, memory = 0;
  int passes = 0;
  for (const StepPlan &step : plan.steps) {
    const Step &of = op_.steps[step.step];
    const int own = of.reduce == Reduce::Moments && step.part != Part::Merge ? 2 : 1;
    const double cost = 2 + static_cast<double>(op_.exprs.cost(of.values()));
    for (int pass = 0; pass < own; ++pass, ++passes) {
      // Control of a loop is shared by what is in flight; registers are few.
      const double registers = static_cast<double>(target_.vectorRegisters);
      const double spills = std::max(0.0, 2 * inFlight - registers) / registers;
      double ofPass = vectors * (cost + 2 / inFlight) * (1 + spills) / kInstructions;
      if (of.reduce != Reduce::None) { // a chain of additions each, and its lanes at the end
        ofPass = std::max(ofPass, vectors * kAdditionLatency * 4 / std::max(4.0, 2 * inFlight));
        if (!columns)
          ofPass += elements / row * 4 / std::min(4.0, slots);
      }
      arithmetic += ofPass;
      if (step.part == Part::Merge || !op_.isWhole(of))
        continue;
      double read = 0, written = 0;
      for (Expr expr : op_.exprs.nodesOf(of.values()))
        if (const Operand *array = op_.arrayOf(expr))
          read += op_.isWhole(*array);
      for (const Result &result : of.results)
        written += result.operand >= 0 && of.reduce == Reduce::None;
      const double share = perTask * element_ * (read + written);
      const bool again = passes > 0 && share <= static_cast<double>(target_.l2Bytes);
      const double speed = speedOf(again ? share : all_ / threads_);
      double bytes = elements * element_ * read;
      const double stored = elements * element_ * written;
      if (!plan.streams)
        bytes += stored * (all_ > static_cast<double>(target_.l3Bytes) ? 2 : 1);
      else
        memory += stored / kMemorySpeed;
      // Runs of columns, or rows, that lie apart.
      const double run = columns && plan.chunks.back() > 0
                             ? element_ * std::min(row, static_cast<double>(plan.tile))
                             : element_ * row;
      memory += bytes / speed * (1 + (columns ? kRunBytes / std::max(run, 16.0) : 0));
    }
  }
  if (busy > 1 && all_ > static_cast<double>(target_.l3Bytes))
    memory *= busy / (1 + (busy - 1) * kMemoryOfFurtherThreads);
  double time = std::max(arithmetic, memory) / busy + tasks / busy * kTaskNanoseconds;
  if (threads_ > 1 && tasks > 1)
    time += kBarrierNanoseconds;
  return time;
}

} // namespace

double estimateNanoseconds(const Schedule &schedule, const Operator &op,
                           std::span<const int64_t> sizes, const TargetDescription &target,
                           int threads) {
  return Model(schedule, op, sizes, target, threads).run();
}

} // namespace normforge::tune
