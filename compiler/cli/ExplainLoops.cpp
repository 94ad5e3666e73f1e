#include "compiler/cli/Explain.h"

#include "compiler/tune/Estimate.h"

#include "llvm/ADT/STLExtras.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge::cli {

std::optional<size_t> Explained::taken() const {
  for (size_t i = 0; values && i < variants.size(); ++i)
    if (variants[i].guard.holds(*values))
      return i;
  return std::nullopt;
}

// ---- Pseudocode ---------------------------------------------------------------------------------

namespace {

/// Lines, each indented by the loops that are around it.
class Writer {
public:
  void line(const std::string &text) { text_ += std::string(4 + 2 * depth_, ' ') + text + "\n"; }
  void loop(const std::string &text) {
    line(text);
    ++depth_;
  }
  size_t depth() const { return depth_; }
  void closeTo(size_t depth) { depth_ = depth; }
  std::string take() { return std::move(text_); }

private:
  std::string text_;
  size_t depth_ = 0;
};

std::string resultsOf(const Step &step) {
  std::vector<std::string> names;
  for (const Result &result : step.results)
    names.push_back(result.name + (result.operand < 0 ? "" : "'"));
  return fmt::format("{}", fmt::join(names, ", "));
}

class Pseudocode {
public:
  Pseudocode(const Operator &op, const Schedule &schedule, size_t index, const SizeValues &values)
      : op_(op), stage_(schedule.stages[index]), loops_(stageLoops(op, schedule, index)),
        values_(values) {}

  std::string run() {
    const SizeExpr tasks = taskCount(loops_, stage_);
    if (tasks.constant() != 1)
      writer_.loop(
          fmt::format("for each of {} tasks, in parallel{}:", describe(tasks, op_.sizes, values_),
                      stage_.reversed ? ", the last first" : ""));
    for (size_t i = 0; i < loops_.size(); ++i)
      if (loops_[i].kept)
        keptLoop(i);
    for (const StepPlan &plan : stage_.steps)
      step(plan);
    return writer_.take();
  }

private:
  /// "of the task's 16", "of 49".
  std::string extent(size_t i) const {
    if (stage_.chunks[i] > 0)
      return fmt::format("of the task's {}", stage_.chunks[i]);
    return "in " + describe(loops_[i].size, op_.sizes, values_);
  }

  void keptLoop(size_t i) {
    const bool isTiled = static_cast<int>(i) == stage_.tiled;
    const int64_t step = isTiled ? stage_.tile : 1;
    if (stage_.chunks[i] == 1 || (loops_[i].size.constant() == 1))
      return;
    writer_.loop(step == 1
                     ? fmt::format("for {} {}:", loops_[i].name, extent(i))
                     : fmt::format("for {} {}, {} at once:", loops_[i].name, extent(i), step));
  }

  void step(const StepPlan &plan) {
    const Step &step = op_.steps[plan.step];
    const bool isMerge = plan.part == Part::Merge;
    const size_t depth = writer_.depth();
    const bool goesThrough = isMerge || op_.isWhole(step) || step.reduce != Reduce::None;
    const int passes = step.reduce == Reduce::Moments && !isMerge ? 2 : 1;
    if (passes > 1)
      writer_.loop(stage_.alternates ? "twice, the second time backwards:" : "twice:");
    if (goesThrough)
      for (size_t i = 0; i < loops_.size(); ++i)
        if (!loops_[i].kept && (isMerge || llvm::is_contained(step.loops, loops_[i].loop)))
          reducedLoop(i);
    writer_.line(fmt::format("{}{}: {}",
                             plan.part == Part::Partial ? "partial "
                             : isMerge                  ? "merge "
                                                        : "",
                             step.name, resultsOf(step)));
    writer_.closeTo(depth);
  }

  void reducedLoop(size_t i) {
    const bool isInnermost = i + 1 == loops_.size();
    // Where the innermost loop is kept, its lanes are the tile, and what is in flight are
    // iterations of the last reduced one.
    size_t last = loops_.size();
    for (size_t k = 0; k < loops_.size(); ++k)
      if (!loops_[k].kept)
        last = k;
    const int64_t step = isInnermost ? stage_.vector * stage_.unroll
                         : i == last ? stage_.unroll
                                     : 1;
    writer_.loop(step == 1
                     ? fmt::format("for {} {}:", loops_[i].name, extent(i))
                     : fmt::format("for {} {}, {} at once:", loops_[i].name, extent(i), step));
  }

  const Operator &op_;
  const StagePlan &stage_;
  const std::vector<StageLoop> loops_;
  const SizeValues &values_;
  Writer writer_;
};

} // namespace

std::string pseudocode(const Operator &op, const Schedule &schedule, size_t stage,
                       const SizeValues &values) {
  return Pseudocode(op, schedule, stage, values).run();
}

// ---- What else there was ------------------------------------------------------------------------

double estimateOfTaken(const Explained &explained) {
  const std::optional<size_t> taken = explained.taken();
  return taken ? tune::estimateNanoseconds(explained.variants[*taken].schedule, explained.op,
                                           *explained.values, explained.target, explained.threads)
               : 0;
}

std::vector<Alternative> alternatives(const Explained &explained) {
  std::vector<Alternative> others;
  const std::optional<size_t> taken = explained.taken();
  if (!taken)
    return others;
  const double own = estimateOfTaken(explained);
  for (const Schedule &schedule : scheduleForms(explained.op, explained.target))
    if (schedule != explained.variants[*taken].schedule)
      others.push_back({schedule.text(explained.op),
                        tune::estimateNanoseconds(schedule, explained.op, *explained.values,
                                                  explained.target, explained.threads) /
                            own});
  llvm::stable_sort(others,
                    [](const Alternative &a, const Alternative &b) { return a.ratio < b.ratio; });
  return others;
}

std::vector<const Operand *> operandsOfSteps(const Explained &explained) {
  std::vector<const Operand *> operands;
  for (const std::vector<FuseStep> *steps : {&explained.spec.prologue, &explained.spec.fuse})
    for (const FuseStep &step : *steps)
      for (const Operand &operand : explained.op.operands) {
        const bool isOf =
            operand.name == step.store || llvm::any_of(step.operands, [&](const StepOperand &of) {
              return of.name == operand.name;
            });
        if (isOf && explained.op.isWhole(operand) && !llvm::is_contained(operands, &operand))
          operands.push_back(&operand);
      }
  return operands;
}

// ---- JSON ---------------------------------------------------------------------------------------

namespace {

/// {"text": "N * 49", "value": 392}.
llvm::json::Object sizeOf(const SizeExpr &size, const Explained &explained) {
  llvm::json::Object object{{"text", size.text(explained.op.sizes)}, {"value", nullptr}};
  const std::vector<int64_t> none;
  const std::optional<int64_t> value = size.constant()    ? size.constant()
                                       : explained.values ? size.evaluate(*explained.values)
                                                          : std::nullopt;
  if (value)
    object["value"] = *value;
  return object;
}

llvm::json::Array stepsOf(const Operator &op) {
  llvm::json::Array steps;
  for (const Step &step : op.steps) {
    llvm::json::Array over, results;
    for (int loop : step.loops)
      over.push_back(op.loops[loop].name);
    for (const Result &result : step.results)
      results.push_back(llvm::json::Object{{"name", result.name},
                                           {"stored", result.operand >= 0},
                                           {"formula", op.exprs.text(result.value, op.names())}});
    steps.push_back(llvm::json::Object{{"name", step.name},
                                       {"reduces", step.reduce != Reduce::None},
                                       {"over", std::move(over)},
                                       {"results", std::move(results)}});
  }
  return steps;
}

/// What a GPU's group of threads has.
llvm::json::Object groupOf(const Explained &explained, const Schedule &schedule, size_t index) {
  const Operator &op = explained.op;
  const StagePlan &stage = schedule.stages[index];
  const std::vector<StageLoop> loops = stageLoops(op, schedule, index);
  llvm::json::Object loads;
  for (const Loads &of : loadsOf(op, stage, loops))
    loads[of.array->name] =
        llvm::json::Object{{"of_all", of.ofAll}, {"beyond_held", of.beyondHeld}};
  return llvm::json::Object{
      {"threads", stage.groupThreads()},
      {"groups_per_block", stage.groups},
      {"resident_blocks", stage.resident},
      {"held_vectors", stage.held},
      {"held_bytes_per_thread", bytesHeld(stage, op)},
      {"shared_bytes_per_block", sharedBytes(stage, op, loops, *explained.target.device)},
      {"loads", std::move(loads)}};
}

llvm::json::Array variantsOf(const Explained &explained) {
  const Operator &op = explained.op;
  const std::optional<size_t> taken = explained.taken();
  llvm::json::Array variants;
  for (size_t i = 0; i < explained.variants.size(); ++i) {
    const ScheduleVariant &variant = explained.variants[i];
    llvm::json::Array stages;
    const std::vector<Stage> &own = explained.artifact.variants[i].stages;
    for (size_t k = 0; k < own.size(); ++k) {
      stages.push_back(
          llvm::json::Object{{"symbol", own[k].symbol},
                             {"shown_as", namedStages(explained.artifact, i)[k].symbol},
                             {"entry", static_cast<int64_t>(own[k].entry)},
                             {"tasks", sizeOf(own[k].tasks, explained)},
                             {"bytes_per_task", sizeOf(own[k].bytesPerTask, explained)},
                             {"loops", pseudocode(op, variant.schedule, k, explained.values)}});
      if (explained.target.device)
        (*stages.back().getAsObject())["group"] = groupOf(explained, variant.schedule, k);
    }
    variants.push_back(llvm::json::Object{
        {"when", describeGuard(explained.variants, i, op.sizes)},
        {"taken", taken == i},
        {"schedule", variant.schedule.text(op)},
        {"reason", variant.reason},
        {"stages", std::move(stages)},
        {"code_bytes", explained.target.device
                           ? llvm::json::Value(nullptr) // of the CPU which emulates it
                           : llvm::json::Value(static_cast<int64_t>(
                                 explained.artifact.variants[i].image.bytes.size()))},
        {"workspace_bytes", sizeOf(explained.artifact.variants[i].workspaceBytes, explained)}});
  }
  return variants;
}

llvm::json::Array argumentsOf(const Explained &explained) {
  const Operator &op = explained.op;
  llvm::json::Array arguments;
  for (const Operand &operand : op.operands) {
    llvm::json::Array shape, aliases;
    for (const SizeExpr &size : operand.shape)
      shape.push_back(sizeOf(size, explained));
    for (uint32_t alias : operand.mayAlias)
      aliases.push_back(op.operands[alias].name);
    arguments.push_back(llvm::json::Object{{"name", operand.name},
                                           {"role", llvm::StringRef(toString(operand.role))},
                                           {"dtype", llvm::StringRef(toString(operand.dtype))},
                                           {"written", operand.written},
                                           {"shape", std::move(shape)},
                                           {"bytes", sizeOf(operand.bytes(), explained)},
                                           {"may_alias", std::move(aliases)}});
  }
  return arguments;
}

} // namespace

llvm::json::Object jsonOf(const Explained &explained) {
  const Operator &op = explained.op;
  const Spec &spec = explained.spec;
  llvm::json::Array notes, loops, sizes, scalars, others;
  for (const std::string &note : spec.notes)
    notes.push_back(note);
  const std::vector<bool> kept = op.kept();
  for (int i = 0; i < op.rank(); ++i)
    loops.push_back(llvm::json::Object{{"name", op.loops[i].name},
                                       {"size", sizeOf(op.loops[i].size, explained)},
                                       {"reduced", op.reduces() && !kept[i]}});
  for (const std::string &size : op.sizes)
    sizes.push_back(size);
  for (const std::string &scalar : op.scalarNames())
    scalars.push_back(scalar);
  for (const Alternative &other : alternatives(explained))
    others.push_back(
        llvm::json::Object{{"schedule", other.schedule}, {"estimated_ratio", other.ratio}});
  return llvm::json::Object{{"name", spec.name},
                            {"phase", llvm::StringRef(toString(op.phase))},
                            {"mode", llvm::StringRef(toString(spec.mode))},
                            {"layout", spec.layout.text},
                            {"dtype", llvm::StringRef(toString(spec.dtype))},
                            {"semantics", llvm::StringRef(toString(spec.semantics))},
                            {"target", explained.target.summary()},
                            {"notes", std::move(notes)},
                            {"loops", std::move(loops)},
                            {"steps", stepsOf(op)},
                            {"elements", sizeOf(op.elements, explained)},
                            {"least_bytes", sizeOf(op.minimumBytes(), explained)},
                            {"flops", sizeOf(op.flops(), explained)},
                            {"variants", variantsOf(explained)},
                            {"alternatives", std::move(others)},
                            {"arguments", argumentsOf(explained)},
                            {"sizes", std::move(sizes)},
                            {"scalars", std::move(scalars)}};
}

} // namespace normforge::cli
