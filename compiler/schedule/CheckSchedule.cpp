// Whether a schedule is legal for an operator on a target: what lowering and passes rely on.
#include "compiler/schedule/Schedule.h"

#include <algorithm>
#include <bit>
#include <fmt/format.h>

namespace normforge {

namespace {

/// Bytes of vectors that a step may have in flight: what registers do not hold lies on the stack,
/// and each is code.
constexpr int64_t kMostInFlight = 4096;
/// Iterations of a loop, or slots, that a step may have in flight at once.
constexpr int64_t kMostUnrolled = 128;
/// Tiles ahead of this one that may be fetched.
constexpr int64_t kMostPrefetch = 64;
/// Iterations that a task may take of a loop: far from where sizes overflow.
constexpr int64_t kMostTaken = int64_t(1) << 40;

class Checker {
public:
  Checker(const Schedule &schedule, const Operator &op, const TargetDescription &target)
      : schedule_(schedule), op_(op), target_(target) {}

  /// The error in words; empty: the schedule is legal.
  std::string run();

private:
  std::string checkTarget() const;
  std::string checkStage(size_t index);
  std::string checkTaken(const StagePlan &stage, std::span<const StageLoop> loops) const;
  std::string checkInFlight(const StagePlan &stage, std::span<const StageLoop> loops) const;
  std::string checkThreads(const StagePlan &stage, std::span<const StageLoop> loops) const;
  std::string checkPacked(const StagePlan &stage, std::span<const StageLoop> loops) const;
  std::string checkStep(size_t index, const StepPlan &plan);
  std::string checkReads(size_t index, const StepPlan &plan) const;
  std::string checkWrites(size_t index, const StepPlan &plan) const;
  bool isElements(const Step &step) const {
    return step.reduce == Reduce::None && op_.isWhole(step);
  }
  /// Whether a step stores a value for every element that the stage's tiles go over.
  bool isElementsOf(const StagePlan &stage, const Step &step) const {
    const std::vector<bool> kept = op_.kept(stage.stepNumbers());
    return isElements(step) ||
           (step.reduce == Reduce::None &&
            std::any_of(step.loops.begin(), step.loops.end(), [&](int i) { return !kept[i]; }));
  }
  bool countsGroups(const Step &step) const {
    return std::any_of(step.loops.begin(), step.loops.end(),
                       [&](int loop) { return loop >= op_.rank(); });
  }
  static bool keeps(const Step &step, int loop) {
    const std::vector<int> &kept = step.results[0].loops;
    return std::find(kept.begin(), kept.end(), loop) != kept.end();
  }
  std::string checkCut(const StagePlan &stage, std::span<const StageLoop> loops,
                       const StepPlan &plan) const;
  std::string checkPartial(const StagePlan &stage, const StepPlan &plan) const;
  /// Whether a stage's tasks may be more than one along a loop.
  static bool cuts(const StagePlan &stage, std::span<const StageLoop> loops, size_t i) {
    const auto size = loops[i].size.constant();
    return stage.chunks[i] > 0 && !(size && *size <= stage.chunks[i]);
  }

  const Schedule &schedule_;
  const Operator &op_;
  const TargetDescription &target_;
  std::vector<int> doneIn_;    ///< by step, the stage that has made it whole; -1
  std::vector<int> partialIn_; ///< by step, the stage that has made its partials; -1
};

std::string Checker::checkTarget() const {
  if (target_.device && (!schedule_.maskedTails || !schedule_.maskedLoads))
    return fmt::format("{}: {} has neither; expected tails=masked alone",
                       schedule_.maskedTails ? "loads=whole" : "tails=narrower", target_.cpu);
  if (schedule_.maskedTails && !target_.maskedTails)
    return fmt::format("tails=masked: {} has no masks that cost nothing", target_.cpu);
  if (schedule_.maskedLoads && !target_.maskedLoads)
    return fmt::format("loads under masks: {} has none; expected loads=whole", target_.cpu);
  if (schedule_.maskedTails && !schedule_.maskedLoads)
    return "loads=whole: expected loads under masks where tails are masked";
  // There are none of 16-bit elements.
  if (schedule_.maskedLoads && !target_.maskedTails && op_.leastElementBytes() < 4)
    return fmt::format("loads under masks: {} has none of 16 bits; expected loads=whole",
                       target_.cpu);
  if (schedule_.pairsHalves && !mayPairHalves(op_, target_))
    return fmt::format("halves=paired: {} for {}: expected vectors of x86 and data of bf16",
                       toString(op_.dtype), target_.cpu);
  if (schedule_.scalable != target_.vectorScale())
    return fmt::format("scalable={}: expected {} for {}", schedule_.scalable, target_.vectorScale(),
                       target_.cpu);
  return {};
}

std::string Checker::checkTaken(const StagePlan &stage, std::span<const StageLoop> loops) const {
  if (stage.chunks.size() != loops.size())
    return fmt::format("take has {} numbers; expected {}, one a loop", stage.chunks.size(),
                       loops.size());
  for (size_t i = 0; i < loops.size(); ++i)
    if (stage.chunks[i] < 0 || stage.chunks[i] > kMostTaken)
      return fmt::format("take of loop {} is {}; expected 1 to {}, or all", loops[i].name,
                         stage.chunks[i], kMostTaken);
  for (const StepPlan &plan : stage.steps) {
    const int64_t word = elementsPerWord(DType::Bit);
    if (plan.part != Part::Merge && op_.takesBits(op_.steps[plan.step]) &&
        stage.chunks.back() % word != 0 && cuts(stage, loops, loops.size() - 1))
      return fmt::format(
          "a task takes {} of loop {}, of which a step has bits; expected a multiple "
          "of {}, or all",
          stage.chunks.back(), loops.back().name, word);
    if (op_.steps[plan.step].reduce != Reduce::None)
      if (std::string wrong = checkCut(stage, loops, plan); !wrong.empty())
        return wrong;
  }
  return {};
}

/// Checks how much a task takes of the loops that a step reduces over.
std::string Checker::checkCut(const StagePlan &stage, std::span<const StageLoop> loops,
                              const StepPlan &plan) const {
  const Step &step = op_.steps[plan.step];
  bool cutsReduced = false;
  for (size_t i = 0; i < loops.size(); ++i) {
    const int64_t taken = stage.chunks[i];
    const int loop = loops[i].loop;
    if (taken == 0 || keeps(step, loop))
      continue;
    if (plan.part != Part::Partial)
      return fmt::format("a task takes {} of loop {}, which a step of the stage reduces over; "
                         "expected all",
                         taken, loops[i].name);
    // The number of elements that a chunk has of it is no product of sizes.
    if (step.reduce == Reduce::Moments && op_.blocked && op_.blocked->padded &&
        (loop == op_.blocked->outer || loop == op_.blocked->inner))
      return fmt::format("a task takes {} of loop {}, of a padded blocked axis that a step of the "
                         "stage reduces over; expected all",
                         taken, loops[i].name);
    if (taken == 1 && i + 1 == loops.size())
      return fmt::format(
          "a task takes 1 of loop {}, which has the lanes of a step that reduces over "
          "it; expected 2 or more, or all",
          loops[i].name);
    cutsReduced = true;
  }
  if (plan.part == Part::Partial && !cutsReduced)
    return "partials of no loop: a task takes all of every loop that is reduced over";
  return {};
}

/// Partials are all that a stage does, or its tiles carry them.
std::string Checker::checkPartial(const StagePlan &stage, const StepPlan &plan) const {
  const Step &step = op_.steps[plan.step];
  if (!isCarried(op_, stage, plan))
    return stage.steps.size() == 1
               ? ""
               : fmt::format("a stage of partials does nothing else; step {} is one of {}",
                             step.name, stage.steps.size());
  const std::vector<bool> kept = op_.kept(stage.stepNumbers());
  for (int i = 0; i < op_.rank(); ++i)
    if (!kept[i] && !keeps(step, i))
      return fmt::format("step {} cannot be carried: loop {} is reduced over by the stage and by "
                         "the step",
                         step.name, op_.loops[i].name);
  if (stage.tiled >= 0 && keeps(step, stage.tiled))
    return fmt::format("step {} cannot be carried: it keeps loop {}, whose indices a tile covers",
                       step.name, op_.loops[stage.tiled].name);
  return step.reduce == Reduce::Moments
             ? fmt::format("step {} cannot be carried: moments are no single pass", step.name)
             : "";
}

std::string Checker::checkInFlight(const StagePlan &stage, std::span<const StageLoop> loops) const {
  const int last = static_cast<int>(loops.size()) - 1, best = tileLoop(loops);
  if (stage.tiled < -1 || stage.tiled > last)
    return fmt::format("tiled is loop {} of {}", stage.tiled, loops.size());
  if ((stage.tiled < 0) != (best < 0))
    return best < 0 ? "a tile needs a loop that is kept; there is none"
                    : fmt::format("no loop is tiled; expected tiled={}", loops[best].name);
  if (stage.tiled >= 0 && !loops[stage.tiled].kept)
    return fmt::format("tiled={}: the loop is reduced over; expected tiled={}",
                       loops[stage.tiled].name, loops[best].name);
  if (best == last && stage.tiled != last)
    return fmt::format("tiled={}: the innermost loop {} is kept and has the lanes; expected "
                       "tiled={}",
                       loops[stage.tiled].name, loops[last].name, loops[last].name);
  const bool columns = hasColumns(stage, loops);

  if (std::string wrong = checkThreads(stage, loops); !wrong.empty())
    return wrong;
  const size_t bytes = stage.merges() ? sizeof(double) : byteSize(op_.compute);
  const int64_t most =
      target_.device ? stage.threads * target_.lanes(byteSize(op_.dtype)) : target_.lanes(bytes);
  const int64_t least = std::max<int64_t>(1, schedule_.scalable);
  if (stage.vector < least || stage.vector > most ||
      !std::has_single_bit(static_cast<uint64_t>(stage.vector)))
    return fmt::format("vector={}: expected a power of two from {} to {}", stage.vector, least,
                       most);
  if (stage.tile < 1 || stage.tile > kMostUnrolled * most)
    return fmt::format("tile={}: expected 1 to {}", stage.tile, kMostUnrolled * most);
  if (columns && stage.tile % stage.vector != 0)
    return fmt::format("tile={}: expected a multiple of the {} lanes of a vector", stage.tile,
                       stage.vector);
  if (stage.tiled < 0 && stage.tile != 1)
    return fmt::format("tile={}: expected 1 where no loop is tiled", stage.tile);
  if (stage.tiled >= 0 && stage.chunks[stage.tiled] % stage.tile != 0)
    return fmt::format("a task takes {} of loop {}; expected a multiple of the tile, {}",
                       stage.chunks[stage.tiled], loops[stage.tiled].name, stage.tile);
  if (stage.unroll < 1 || stage.unroll > kMostUnrolled)
    return fmt::format("unroll={}: expected 1 to {}", stage.unroll, kMostUnrolled);
  if (stage.prefetch < 0 || stage.prefetch > kMostPrefetch)
    return fmt::format("prefetch={}: expected 1 to {}", stage.prefetch, kMostPrefetch);
  if (stage.rows == Rows::Together && (columns || stage.tile == 1))
    return "rows=together: expected several rows in a tile";
  if (stage.rows == Rows::Packed)
    if (std::string wrong = checkPacked(stage, loops); !wrong.empty())
      return wrong;
  const int64_t inFlight = bytesInFlight(stage, op_, loops);
  const int64_t mostInFlight =
      target_.device ? mostRegisterBytes(stage, *target_.device) : kMostInFlight;
  if (inFlight > mostInFlight)
    return fmt::format(
        "{} slots with unroll={} are {} bytes of vectors in flight; expected at most "
        "{}",
        slotsOf(stage, loops), stage.unroll, inFlight, mostInFlight);
  if (const int64_t slots = slotsOf(stage, loops); stage.held % slots != 0)
    return fmt::format("hold=registers:{}: expected a multiple of the {} vectors of a tile",
                       stage.held, slots);
  if (const int64_t held = bytesHeld(stage, op_); held > mostInFlight - inFlight)
    return fmt::format("hold=registers:{} is {} bytes of a thread, beside {} in flight; expected "
                       "at most {}",
                       stage.held, held, inFlight, mostInFlight);
  return {};
}

/// Checks threads and groups, and that a thread's part of a vector exists whole or not at all.
std::string Checker::checkThreads(const StagePlan &stage, std::span<const StageLoop> loops) const {
  if (!target_.device)
    return stage.threads == 0 && stage.down == 1 && stage.groups == 1 && stage.held == 0 &&
                   stage.resident == 1
               ? ""
               : fmt::format(
                     "threads={} down={} groups={} resident={} hold=registers:{}: {} is no GPU",
                     stage.threads, stage.down, stage.groups, stage.resident, stage.held,
                     target_.cpu);
  auto isPower = [](int64_t n) { return n > 0 && std::has_single_bit(static_cast<uint64_t>(n)); };
  const int64_t most = target_.device->blockThreads;
  const bool columns = hasColumns(stage, loops);
  if (!isPower(stage.threads) || stage.threads > most)
    return fmt::format("threads={}: expected a power of two up to {}", stage.threads, most);
  if (!isPower(stage.down) || stage.down > most / stage.threads)
    return fmt::format("down={}: expected a power of two up to {}, for {} threads of a row",
                       stage.down, most / stage.threads, stage.threads);
  if (stage.groups < 1 || stage.groups > most / stage.groupThreads())
    return fmt::format("groups={}: expected 1 to {} groups of {} threads in a block", stage.groups,
                       most / stage.groupThreads(), stage.groupThreads());
  if (stage.vector % stage.threads != 0)
    return fmt::format("vector={}: expected a multiple of the {} threads that share it",
                       stage.vector, stage.threads);
  if (const char *knob = stage.alternates               ? "passes=alternating"
                         : stage.prefetch > 0           ? "prefetch="
                         : stage.rows != Rows::OneByOne ? "rows="
                                                        : nullptr)
    return fmt::format("{}: not for {}", knob, target_.cpu);
  if (stage.held < 0 || stage.held > kMostHeld)
    return fmt::format("hold=registers:{}: expected up to {} vectors", stage.held, kMostHeld);
  if (stage.held > 0 && heldArrays(op_, stage).empty())
    return fmt::format("hold=registers:{}: no array of the data is gone through twice", stage.held);
  if (stage.held > 0 && !columns && stage.tile > 1)
    return fmt::format("hold=registers:{}: expected tile=1, a row at a time", stage.held);
  for (const StepPlan &plan : stage.steps) {
    if (!isCarried(op_, stage, plan))
      continue;
    if (columns)
      return fmt::format("step {} is carried over columns: not for {} (not built)",
                         op_.steps[plan.step].name, target_.cpu);
    if (stage.down > 1) // all of them would add to the same places
      return fmt::format("down={}: expected 1 where step {} is carried", stage.down,
                         op_.steps[plan.step].name);
  }
  const bool hasRows = std::ranges::any_of(loops, [&](const StageLoop &loop) {
    const auto i = static_cast<size_t>(&loop - loops.data());
    return !loop.kept && i + 1 < loops.size() && loop.size.constant() != 1 && stage.chunks[i] != 1;
  });
  for (const StepPlan &plan : stage.steps)
    if (!columns && stage.down > 1 && !hasRows && op_.steps[plan.step].reduce != Reduce::None)
      return fmt::format("down={}: expected 1 where a task of step {} has one row", stage.down,
                         op_.steps[plan.step].name);
  if (const int64_t bytes = sharedBytes(stage, op_, loops, *target_.device);
      bytes > target_.device->sharedBytes)
    return fmt::format("its groups' sums take {} bytes of shared memory; {} has {} a block", bytes,
                       target_.cpu, target_.device->sharedBytes);
  if (const int64_t blocks = mostResident(stage, op_, loops, *target_.device);
      stage.resident < 1 || stage.resident > blocks)
    return fmt::format("resident={}: expected 1 to {} blocks of {} threads", stage.resident, blocks,
                       stage.groupThreads() * stage.groups);
  for (const StepPlan &plan : stage.steps)
    if (const int64_t word = elementsPerWord(DType::Bit);
        plan.part != Part::Merge && op_.takesBits(op_.steps[plan.step]) && stage.vector % word != 0)
      return fmt::format("vector={}: step {} has bits; expected a multiple of {}", stage.vector,
                         op_.steps[plan.step].name, word);
  const int64_t lanes = stage.vector / stage.threads;
  if (lanes <= 1 || loops.empty())
    return {};
  const auto size = loops.back().size.constant();
  const auto limit = op_.blocked && op_.blocked->padded ? op_.blocked->size.constant() : 0;
  if (!size || !limit)
    return fmt::format("vector={}: a thread has {} lanes; expected 1, for the size of loop {} is "
                       "known at the call",
                       stage.vector, lanes, loops.back().name);
  for (int64_t whole : {*size, *limit})
    if (whole % lanes != 0)
      return fmt::format("vector={}: a thread has {} lanes; expected a divisor of {}", stage.vector,
                         lanes, whole);
  if (stage.chunks.back() % lanes != 0)
    return fmt::format(
        "a task takes {} of loop {}; expected a multiple of the {} lanes of a thread",
        stage.chunks.back(), loops.back().name, lanes);
  return {};
}

/// Rows that are one run to everything that has elements of them, each not longer than a vector.
std::string Checker::checkPacked(const StagePlan &stage, std::span<const StageLoop> loops) const {
  const int last = static_cast<int>(loops.size()) - 1;
  if (stage.tiled < 0 || stage.tiled == last || stage.merges())
    return "rows=packed: expected a stage that has rows in tiles";
  if (schedule_.scalable > 0)
    return "rows=packed: not of scalable vectors";
  const auto length = loops[last].size.constant();
  if (!length || *length < 2 || *length > stage.vector)
    return fmt::format("rows=packed: a row has {} elements; expected 2 to {}, as a vector has",
                       loops[last].size.text(op_.sizes), stage.vector);
  if (stage.tile * *length % stage.vector != 0)
    return fmt::format("rows=packed: {} rows of {} in a tile; expected whole vectors of {}",
                       stage.tile, *length, stage.vector);
  if (cuts(stage, loops, static_cast<size_t>(last)))
    return fmt::format("rows=packed: a task takes {} of loop {}; expected all", stage.chunks[last],
                       loops[last].name);
  for (const StepPlan &plan : stage.steps) {
    if (op_.takesBits(op_.steps[plan.step]))
      return fmt::format("rows=packed: step {} has bits", op_.steps[plan.step].name);
    if (const auto name =
            apartRows(op_, op_.steps[plan.step], loops[stage.tiled].loop, loops[last].loop))
      return fmt::format("rows=packed: the rows of {} do not lie one after the other", *name);
  }
  return op_.blocked && op_.blocked->padded ? "rows=packed: not of a padded block" : "";
}

/// Checks that all that a step reads was made before, where the stage can read it.
std::string Checker::checkReads(size_t index, const StepPlan &plan) const {
  const Step &step = op_.steps[plan.step];
  for (Expr expr : op_.exprs.nodesOf(step.values())) {
    if (op_.exprs[expr].op != ExprOp::Result)
      continue;
    const Step &maker = op_.stepOf(op_.exprs[expr].index);
    const int made = doneIn_[static_cast<size_t>(&maker - op_.steps.data())];
    if (made < 0)
      return fmt::format("step {} reads {} before step {} has made it", step.name,
                         op_.result(op_.exprs[expr].index).name, maker.name);
    if (made != static_cast<int>(index) && maker.reduce != Reduce::None)
      return fmt::format("step {} reads {} of step {}, which is kept within its stage alone",
                         step.name, op_.result(op_.exprs[expr].index).name, maker.name);
  }
  return {};
}

/// No task writes what another one writes or reads, and nothing is read after it was written over.
std::string Checker::checkWrites(size_t index, const StepPlan &plan) const {
  const StagePlan &stage = schedule_.stages[index];
  const Step &step = op_.steps[plan.step];
  const std::vector<StageLoop> loops = stageLoops(op_, schedule_, index);
  for (size_t r = 0; r < step.results.size(); ++r) {
    const Result &result = step.results[r];
    const uint32_t number = step.firstResult + static_cast<uint32_t>(r);
    bool isWritten = result.operand >= 0;
    for (size_t i = index; i < schedule_.stages.size(); ++i)
      for (const StepPlan &later : schedule_.stages[i].steps) {
        // In the same stage, only the steps that follow count. Merging reads partials alone.
        if (later.step >= op_.steps.size() || later.part == Part::Merge ||
            (i == index && &later <= &plan))
          continue;
        for (Expr expr : op_.exprs.nodesOf(op_.steps[later.step].values())) {
          const Node &node = op_.exprs[expr];
          isWritten |= i > index && node.op == ExprOp::Result && node.index == number;
          if (result.operand < 0 || node.op != ExprOp::Operand)
            continue;
          for (uint32_t alias : op_.operands[result.operand].mayAlias)
            if (alias == node.index)
              return fmt::format("stage {} reads {} after {} may have been written over it",
                                 schedule_.stages[i].name, op_.operands[alias].name, result.name);
        }
      }
    for (size_t i = 0; isWritten && i < loops.size(); ++i)
      if (cuts(stage, loops, i) &&
          std::find(result.loops.begin(), result.loops.end(), loops[i].loop) == result.loops.end())
        return fmt::format("tasks that take {} of loop {} would all write {}, which the loop does "
                           "not index",
                           stage.chunks[i], loops[i].name, result.name);
  }
  return {};
}

std::string Checker::checkStep(size_t index, const StepPlan &plan) {
  const StagePlan &stage = schedule_.stages[index];
  const Step &step = op_.steps[plan.step];
  if (doneIn_[plan.step] >= 0)
    return fmt::format("step {} is done twice", step.name);
  if (plan.part != Part::Whole && step.reduce == Reduce::None)
    return fmt::format("step {} is no reduction, and has no partials", step.name);
  // A grouped axis has other loops in the data than among statistics; what has none goes with both.
  for (const StepPlan &other : stage.steps)
    if (!step.loops.empty() && !op_.steps[other.step].loops.empty() &&
        countsGroups(step) != countsGroups(op_.steps[other.step]))
      return fmt::format("steps {} and {}: one runs over loops {} and {}, the other over those of "
                         "the data; expected a stage for each",
                         step.name, op_.steps[other.step].name,
                         op_.loops[op_.grouped->groups()].name,
                         op_.loops[op_.grouped->within()].name);
  const bool keepsOthers = !isElementsOf(stage, step) && !isCarried(op_, stage, plan) &&
                           op_.kept(std::span(&plan.step, 1)) != op_.kept(stage.stepNumbers());
  if (keepsOthers)
    return fmt::format("step {} keeps other loops than the stage does", step.name);
  if (stage.merges() && isElementsOf(stage, step))
    return fmt::format("step {} runs over elements; a stage that merges has none", step.name);
  if (plan.part == Part::Partial) {
    if (std::string wrong = checkPartial(stage, plan); !wrong.empty())
      return wrong;
    if (partialIn_[plan.step] >= 0)
      return fmt::format("partials of step {} are made twice", step.name);
    partialIn_[plan.step] = static_cast<int>(index);
    return checkReads(index, plan);
  }
  if (plan.part == Part::Merge) {
    if (&plan != &stage.steps.front())
      return fmt::format("merge {}: expected as the first step of its stage", step.name);
  } else {
    if (stage.merges() && step.reduce != Reduce::None)
      return fmt::format("step {} reduces elements; a stage that merges has none", step.name);
    if (std::string wrong = checkReads(index, plan); !wrong.empty())
      return wrong;
    if (std::string wrong = checkWrites(index, plan); !wrong.empty())
      return wrong;
  }
  doneIn_[plan.step] = static_cast<int>(index);
  return {};
}

std::string Checker::checkStage(size_t index) {
  const StagePlan &stage = schedule_.stages[index];
  if (stage.steps.empty())
    return "it has no steps";
  for (const StepPlan &plan : stage.steps)
    if (plan.step >= op_.steps.size())
      return fmt::format("there is no step {}", plan.step);
  // Its loops depend on the stage that makes the partials.
  const uint32_t first = stage.steps.front().step;
  if (stage.merges() && partialIn_[first] < 0)
    return fmt::format("merge {}: no stage before makes its partials", op_.steps[first].name);
  const std::vector<StageLoop> loops = stageLoops(op_, schedule_, index);
  std::string wrong = checkTaken(stage, loops);
  for (size_t i = 0; wrong.empty() && i < stage.steps.size(); ++i)
    wrong = checkStep(index, stage.steps[i]);
  if (wrong.empty())
    wrong = checkInFlight(stage, loops);
  if (wrong.empty() && stage.streams) {
    const bool writes = std::any_of(stage.steps.begin(), stage.steps.end(),
                                    [&](auto &plan) { return isElements(op_.steps[plan.step]); });
    if (!target_.isX86())
      wrong = fmt::format("stores=streaming: not for {}", target_.cpu);
    else if (!writes)
      wrong = "stores=streaming: no step of the stage writes elements";
  }
  return wrong;
}

std::string Checker::run() {
  std::string wrong = checkTarget();
  if (!wrong.empty())
    return wrong;
  doneIn_.assign(op_.steps.size(), -1);
  partialIn_ = doneIn_;
  for (size_t i = 0; i < schedule_.stages.size(); ++i) {
    const std::string &name = schedule_.stages[i].name;
    const bool isName = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
      return c < 0x80 && (std::isalnum(c) || c == '_');
    });
    if (!isName || name.size() > 64)
      return fmt::format("stage {}: a stage's name has 1 to 64 letters, digits and _", i + 1);
    for (size_t j = 0; j < i; ++j)
      if (schedule_.stages[j].name == name)
        return fmt::format("two stages are named {}", name);
    if (wrong = checkStage(i); !wrong.empty())
      return fmt::format("stage {}: {}", name, wrong);
  }
  for (size_t i = 0; i < op_.steps.size(); ++i)
    if (doneIn_[i] < 0)
      return fmt::format("no stage does step {}{}", op_.steps[i].name,
                         partialIn_[i] < 0 ? "" : " but for its partials");
  return {};
}

} // namespace

llvm::Error checkSchedule(const Schedule &schedule, const Operator &op,
                          const TargetDescription &target) {
  const std::string wrong = target.scalableVectors
                                ? Checker(schedule, op, targetFor(op, target)).run()
                                : Checker(schedule, op, target).run();
  return wrong.empty() ? llvm::Error::success()
                       : llvm::createStringError("schedule is not legal: " + wrong);
}

} // namespace normforge
