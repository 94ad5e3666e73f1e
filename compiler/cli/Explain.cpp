// `normforge explain`: what a spec becomes: loops, schedules, work, arguments.
#include "compiler/cli/Explain.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "runtime/cpu_info/CpuInfo.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FormatVariadic.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

namespace normforge::cli {

namespace {

struct Options {
  std::string spec, phase;
  TargetOptions target;
  ScheduleOptions schedule;
  std::vector<std::string> sizes;
  bool json = false;
};

std::string plural(int64_t count, const char *noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

/// "a task takes all of n, 1 of c and all of hw".
std::string taskInWords(std::span<const StageLoop> loops, const StagePlan &stage) {
  if (loops.empty())
    return "one task takes everything";
  std::vector<std::string> parts;
  for (size_t i = 0; i < loops.size(); ++i)
    parts.push_back(stage.chunks[i] == 0 ? fmt::format("all of {}", loops[i].name)
                                         : fmt::format("{} of {}", stage.chunks[i], loops[i].name));
  std::string last = parts.back();
  parts.pop_back();
  return parts.empty() ? fmt::format("a task takes {}", last)
                       : fmt::format("a task takes {} and {}", fmt::join(parts, ", "), last);
}

/// The part of a stage that is in registers at once, in words.
std::string flightInWords(std::span<const StageLoop> loops, const StagePlan &stage) {
  if (loops.empty())
    return "one value of each result";
  if (stage.rows == Rows::Packed)
    return fmt::format("{} of {} at once, several in a vector: {}", plural(stage.tile, "row"),
                       loops[stage.tiled].name,
                       plural(stage.tile * *loops.back().size.constant() / stage.vector, "vector"));
  if (!loops.back().kept) {
    const std::string vectors =
        fmt::format("{} of {} in flight", plural(stage.unroll, "vector"), loops.back().name);
    return stage.tiled < 0
               ? vectors
               : fmt::format("{} of {} at once, each with {}", plural(stage.tile, "row"),
                             loops[stage.tiled].name, vectors);
  }
  std::string text =
      fmt::format("{} of {} at once ({})", plural(stage.tile, "lane"), loops[stage.tiled].name,
                  plural((stage.tile + stage.vector - 1) / stage.vector, "vector"));
  for (size_t i = loops.size(); i-- > 0;)
    if (!loops[i].kept)
      return text +
             fmt::format(", {} of {} in flight", plural(stage.unroll, "iteration"), loops[i].name);
  return text;
}

/// Who takes a task of a GPU, in words.
std::string threadsInWords(const StagePlan &stage) {
  const std::string rows =
      stage.down > 1 ? fmt::format(", {} of them one under the other", stage.down) : "";
  return fmt::format("{} a task{}, each with {} of a vector; {} a block, {} a multiprocessor",
                     plural(stage.groupThreads(), "thread"), rows,
                     plural(stage.vector / stage.threads, "lane"), plural(stage.groups, "task"),
                     stage.resident == 1 ? "a block or more"
                                         : fmt::format("{} blocks or more", stage.resident));
}

std::string times(int count) {
  return count == 1 ? "once" : count == 2 ? "twice" : fmt::format("{} times", count);
}

/// What a GPU's threads load of the data, and where they keep it, in words.
std::string loadsInWords(const Operator &op, const StagePlan &stage,
                         std::span<const StageLoop> loops, const Device &device) {
  std::vector<std::string> parts;
  for (const Loads &loads : loadsOf(op, stage, loops))
    parts.push_back(fmt::format(
        "{}{} {}{}", parts.empty() ? "loads " : "", loads.array->name, times(loads.ofAll),
        loads.beyondHeld > 0 ? fmt::format(", what is not held {} more", times(loads.beyondHeld))
                             : ""));
  if (stage.held > 0) {
    const auto vectors = vectorsOfThread(stage, loops);
    parts.push_back(fmt::format(
        "{} of {} held, {} bytes of a thread's registers", plural(stage.held, "vector"),
        vectors ? std::to_string(*vectors) : "those that there are", bytesHeld(stage, op)));
  }
  if (const int64_t bytes = sharedBytes(stage, op, loops, device))
    parts.push_back(fmt::format("up to {} bytes of shared memory a block", bytes));
  return fmt::format("{}", fmt::join(parts, "; "));
}

/// Names of arrays of the data: those that reductions read, or else those that elements are made
/// of; those that are written.
std::vector<std::string> arraysRead(const Operator &op) {
  std::vector<std::string> names;
  for (const Step &step : op.steps)
    for (Expr expr : op.exprs.nodesOf(step.values())) {
      const Operand *array = op.arrayOf(expr);
      if (!array || !op.isWhole(*array) ||
          (op.reduces() && (step.reduce == Reduce::None || !op.isWhole(step))))
        continue;
      if (!llvm::is_contained(names, array->name))
        names.push_back(array->name);
    }
  return names;
}
std::vector<std::string> arraysWritten(const Operator &op) {
  std::vector<std::string> names;
  for (const Operand &operand : op.operands)
    if (operand.written && op.isWhole(operand))
      names.push_back(operand.name);
  return names;
}
/// The same without bits, which are neither fetched ahead nor stored past the caches.
std::string withoutBits(const Operator &op, std::vector<std::string> names) {
  llvm::erase_if(names, [&](const std::string &name) {
    return llvm::any_of(op.operands, [&](const Operand &operand) {
      return operand.name == name && operand.isBits();
    });
  });
  return fmt::format("{}", fmt::join(names, ", "));
}

/// Which arrays move, and where from, in words.
std::string trafficInWords(const Operator &op, const Schedule &schedule, bool isOfDevice) {
  int stages = 0, passes = 0;
  size_t partials = 0;
  for (const StagePlan &stage : schedule.stages) {
    int own = 0;
    for (const StepPlan &plan : stage.steps) {
      const Step &step = op.steps[plan.step];
      if (!op.isWhole(step) || plan.part == Part::Merge)
        continue;
      const bool isMoments = step.reduce == Reduce::Moments;
      own += isMoments ? 2 : 1;
      if (plan.part == Part::Partial)
        partials += step.results.size();
    }
    stages += own > 0;
    passes += own;
  }
  const std::vector<std::string> arrays = arraysRead(op);
  std::string text = fmt::format("{} {} read {}", fmt::join(arrays, ", "),
                                 arrays.size() == 1 ? "is" : "are", times(stages));
  if (!op.reduces())
    return text;
  text += " from memory";
  if (passes > stages && !isOfDevice) // what a GPU's threads load is said of each stage
    text += fmt::format(", {}{} from the task's caches", stages == 1 ? "then " : "",
                        times(passes - stages) + (stages == 1 ? "" : " more"));
  if (partials == 1)
    text += ", and a partial a chunk is written and read";
  else if (partials > 1)
    text += fmt::format(", and {} partials a chunk are written and read",
                        partials == 2 ? "two" : std::to_string(partials));
  return text;
}

/// Fused: one stage goes through the data.
const char *formInWords(const Operator &op, const Schedule &schedule) {
  if (!op.reduces())
    return "elementwise";
  const auto goesThrough = [&](const StagePlan &stage) {
    return llvm::any_of(stage.steps, [&](const StepPlan &plan) {
      return plan.part != Part::Merge && op.isWhole(op.steps[plan.step]);
    });
  };
  const bool merges = schedule.stages.size() > 1 && arraysWritten(op).empty();
  return llvm::count_if(schedule.stages, goesThrough) == 1 && !merges ? "fused" : "split";
}

void printSchedule(const Operator &op, const Schedule &schedule, const TargetDescription &target) {
  const std::string written = fmt::format("{}", fmt::join(arraysWritten(op), ", "));
  printFolded("    vectors of {} {}, tails {}{}{}\n", schedule.stages.front().vector,
              toString(op.compute), schedule.maskedTails ? "under a mask" : "in narrower vectors",
              schedule.pairsHalves ? ", those of bf16 in pairs where most data is bf16" : "",
              llvm::any_of(schedule.stages, [](const StagePlan &stage) { return stage.streams; })
                  ? fmt::format(", {} stored around the caches", withoutBits(op, arraysWritten(op)))
                  : "");
  printFolded("    moved      {}{}\n", trafficInWords(op, schedule, target.device.has_value()),
              written.empty() ? ""
                              : fmt::format("; {} {} written once", written,
                                            arraysWritten(op).size() == 1 ? "is" : "are"));
  for (size_t i = 0; i < schedule.stages.size(); ++i) {
    const StagePlan &stage = schedule.stages[i];
    const std::vector<StageLoop> loops = stageLoops(op, schedule, i);
    printFolded("    {:<10} {}; {}{}{}\n", stage.name, taskInWords(loops, stage),
                flightInWords(loops, stage), stage.alternates ? "; every other pass backwards" : "",
                stage.reversed ? "; tasks from the last to the first" : "");
    if (target.device) {
      printFolded("               {}\n", threadsInWords(stage));
      if (const std::string loads = loadsInWords(op, stage, loops, *target.device); !loads.empty())
        printFolded("               {}\n", loads);
    }
    if (stage.rows == Rows::Together)
      printFolded("               the rows of a tile are written together\n");
    if (stage.prefetch > 0)
      printFolded("               while {} is written, the {} of {} is fetched into L2\n", written,
                  withoutBits(op, arraysRead(op)),
                  stage.prefetch == 1 ? "the next tile"
                                      : fmt::format("the tile {} after it", stage.prefetch));
  }
}

void printLoops(const Operator &op, const SizeValues &values) {
  printFolded("\nLoop nest, outermost first\n");
  const std::vector<bool> kept = op.kept();
  std::string indent = "  ";
  for (int i = 0; i < op.rank(); ++i) {
    std::vector<std::string> words;
    if (op.reduces())
      words.push_back(kept[i] ? "kept, indexes the statistics" : "reduced");
    std::vector<std::string_view> parameters;
    for (const Operand &operand : op.operands)
      if (!op.isWhole(operand) && !operand.written && llvm::is_contained(operand.loops, i) &&
          (operand.role == Role::Parameter || !op.reduces()))
        parameters.push_back(operand.name);
    if (!parameters.empty())
      words.push_back(fmt::format("indexes {}", fmt::join(parameters, ", ")));
    printFolded("{}for {} in {}{}{}\n", indent, op.loops[i].name,
                describe(op.loops[i].size, op.sizes, values), words.empty() ? "" : ": ",
                fmt::join(words, "; "));
    indent += "  ";
  }
  if (op.blocked)
    printFolded("  blocks of {} of an axis of {}{}\n", op.blocked->block,
                describe(op.blocked->size, op.sizes, values),
                op.blocked->padded ? "; the last one may be padded with zeros" : "");
  if (op.reduces())
    printFolded("  a statistic is taken over {} elements\n",
                describe(op.groupSize, op.sizes, values));
}

/// The formulas of the steps, in their order.
void printSteps(const Operator &op) {
  printFolded("\nSteps\n");
  const Exprs::Names names = op.names();
  for (const Step &step : op.steps) {
    std::vector<std::string> over;
    for (int loop : step.loops)
      over.push_back(op.loops[loop].name);
    printFolded("  {} over {}\n", step.name,
                over.empty() ? "nothing" : fmt::format("{}", fmt::join(over, ", ")));
    if (step.reduce == Reduce::Moments) {
      printFolded("    mean of {}{}, sums of what remains and of its squares\n",
                  op.exprs.text(step.results[0].value, names),
                  step.results.size() > 3
                      ? fmt::format(" weighed by {}", op.exprs.text(step.results[3].value, names))
                      : "");
      continue;
    }
    const std::string_view reduction = step.reduce == Reduce::Sum       ? "sum of "
                                       : step.reduce == Reduce::Maximum ? "greatest of "
                                                                        : "";
    std::vector<std::pair<std::string, Expr>> results;
    for (const Result &result : step.results)
      results.emplace_back(result.name + (result.operand < 0 ? "" : "'"), result.value);
    for (const std::string &line : op.exprs.lines(results, names, reduction))
      printFolded("    {}\n", line);
  }
}

void printWork(const Explained &explained) {
  const Operator &op = explained.op;
  const SizeValues &values = explained.values;
  std::vector<std::string_view> whole;
  SizeExpr small(0);
  for (const Operand &operand : op.operands)
    if (op.isWhole(operand))
      whole.push_back(operand.name);
    else
      small = small + operand.bytes();
  printFolded("\nWork of a call\n"
              "  elements  {}\n"
              "  bytes     {}  (at least: {}, once each)\n",
              describe(op.elements, op.sizes, values),
              describe(op.minimumBytes(), op.sizes, values), fmt::join(whole, ", "));
  for (const Operand *operand : operandsOfSteps(explained))
    printFolded("            {} of them {}, of the {} step that takes it\n",
                describe(operand->bytes(), op.sizes, values), operand->name,
                explained.spec.prologue.empty() ? "fused" : "prologue's or fused");
  printFolded("            {} beside them, of parameters and statistics\n"
              "  flops     {}\n",
              describe(small, op.sizes, values), describe(op.flops(), op.sizes, values));
}

/// Whether a stage's threads load data more than once.
bool readsAgain(const Operator &op, const Schedule &schedule) {
  for (size_t i = 0; i < schedule.stages.size(); ++i)
    for (const Loads &loads : loadsOf(op, schedule.stages[i], stageLoops(op, schedule, i)))
      if (loads.ofAll + loads.beyondHeld > 1)
        return true;
  return false;
}

/// The least bytes over those that a variant's stages move, whose tasks have whatever is beside the
/// data anew: what is to be expected of a copy's speed on a GPU, beyond its caches.
void printExpected(const Explained &explained, const ScheduleVariant &variant,
                   std::span<const Stage> stages) {
  const Operator &op = explained.op;
  // Named sizes are what this variant is for, about 1024.
  int64_t named = 1024;
  std::vector<int64_t> sizes;
  for (int64_t tried : {1024, 512, 256, 128, 64, 16, 4, 1, 4096, 1 << 16, 1 << 20}) {
    sizes = explained.values.value_or(std::vector<int64_t>(op.sizes.size(), tried));
    const auto *taken = llvm::find_if(
        explained.variants, [&](const ScheduleVariant &one) { return one.guard.holds(sizes); });
    named = tried;
    if (explained.values || taken == &variant)
      break;
  }
  double moved = 0;
  for (const Stage &stage : stages)
    moved += static_cast<double>(stage.tasks.evaluate(sizes).value_or(0)) *
             static_cast<double>(stage.bytesPerTask.evaluate(sizes).value_or(0));
  const double least = static_cast<double>(op.minimumBytes().evaluate(sizes).value_or(0));
  if (moved > 0 && least > 0)
    printFolded("  expected   {:.2f} of a copy's speed: {:.4g} MB move for {:.4g} MB{}{}\n",
                std::min(1.0, least / moved), moved / 1e6, least / 1e6,
                explained.values || op.sizes.empty()
                    ? ""
                    : fmt::format(", where {} is {}", fmt::join(op.sizes, " and "), named),
                readsAgain(op, variant.schedule) ? " if what is loaded again is in L2" : "");
}

void printVariants(const Explained &explained) {
  const Operator &op = explained.op;
  const SizeValues &values = explained.values;
  const llvm::ArrayRef<ScheduleVariant> variants = explained.variants;
  const std::optional<size_t> taken = explained.taken();
  for (size_t i = 0; i < variants.size(); ++i) {
    const ScheduleVariant &variant = variants[i];
    printFolded("\nVariant {} of {}, {}{}\n", i + 1, variants.size(),
                describeGuard(variants, i, op.sizes),
                taken == i && variants.size() > 1 ? " (taken by these sizes)" : "");
    // In one line on any terminal: --schedule takes it.
    fmt::print("  schedule   {}\n", variant.schedule.text(op));
    printFolded("  in words   {}: {}\n", formInWords(op, variant.schedule), variant.reason);
    printSchedule(op, variant.schedule, explained.target);
    const std::vector<Stage> &stages = explained.artifact.variants[i].stages;
    const std::vector<Stage> named = namedStages(explained.artifact, i);
    const Image &image = explained.artifact.variants[i].image;
    for (size_t k = 0; k < stages.size(); ++k) {
      uint64_t end = image.bytes.size();
      for (const Stage &other : stages)
        if (other.entry > stages[k].entry)
          end = std::min(end, other.entry);
      // The code at hand is that of the CPU which emulates a GPU.
      if (explained.target.device)
        printFolded("  stage      {}\n", stages[k].symbol);
      else
        printFolded("  stage      {}, {} bytes of code at {:#x}\n"
                    "    shown as   {} by perf and debuggers\n",
                    stages[k].symbol, end - stages[k].entry, stages[k].entry, named[k].symbol);
      printFolded("    tasks      {}\n"
                  "    each moves {} bytes\n",
                  describe(stages[k].tasks, op.sizes, values),
                  describe(stages[k].bytesPerTask, op.sizes, values));
      printFolded("{}", pseudocode(op, variant.schedule, k, values));
    }
    if (explained.target.device)
      printExpected(explained, variant, stages);
    else
      printFolded("  image      {} bytes of code and constants, loaded as one\n",
                  image.bytes.size());
    printFolded("  workspace  {} bytes\n",
                describe(explained.artifact.variants[i].workspaceBytes, op.sizes, values));
  }
  const std::vector<Alternative> others = alternatives(explained);
  if (others.empty())
    return;
  printFolded("\nWhat else there was to choose, by a model of bytes and instructions whose ratios "
              "alone mean anything\n"
              "  1.00  the one taken, some {:.3g} us with {} thread{}\n",
              estimateOfTaken(explained) / 1e3, explained.threads,
              explained.threads == 1 ? "" : "s");
  for (const Alternative &other : others)
    printFolded("  {:.2f}  {}\n", other.ratio, other.schedule);
  printFolded("  `normforge tune` measures them and their neighbors\n");
}

void printArguments(const Spec &spec, const Operator &op, const SizeValues &values) {
  printFolded("\nArguments, in order\n");
  for (size_t i = 0; i < op.operands.size(); ++i) {
    const Operand &argument = op.operands[i];
    std::string shape = describe(argument.shape, op.sizes);
    if (values) {
      std::vector<int64_t> numbers;
      for (const SizeExpr &size : argument.shape)
        numbers.push_back(size.evaluate(*values).value_or(-1));
      if (describe(numbers) != shape)
        shape += " = " + describe(numbers);
    }
    std::vector<std::string> aliases;
    for (uint32_t alias : argument.mayAlias)
      aliases.push_back(fmt::format("{} ({})", alias, op.operands[alias].name));
    printFolded("  {:>2}  {:<7}  {:<15}  {}  {}{}\n", i, argument.written ? "written" : "read",
                argument.name, toString(argument.dtype), shape,
                aliases.empty()
                    ? ""
                    : fmt::format("; may be the buffer of {}", fmt::join(aliases, " or ")));
  }
  if (op.phase == Phase::Inference)
    for (const std::string &name : foldedNames(spec)) {
      const Initial &initial = *initialOf(spec, name);
      printFolded("      within   {:<15}  {}  {}\n", name, toString(spec.parameterDType),
                  initial.kind == Initial::Kind::Constant
                      ? fmt::format("{}", initial.first)
                      : plural(static_cast<int64_t>(initial.values.size()), "number"));
    }
  if (!op.sizes.empty())
    printFolded("Sizes, in order: {}\n", fmt::join(op.sizes, ", "));
  if (!op.scalars.empty())
    printFolded("Numbers, in order: {}\n", fmt::join(op.scalarNames(), ", "));
}

llvm::Error run(Options &options) {
  if (llvm::Error error = options.schedule.read())
    return error;
  auto given = parseSizes(options.sizes);
  if (!given)
    return given.takeError();
  options.target.takesGpus = true;
  auto target = chooseTarget(options.target);
  if (!target)
    return target.takeError();
  auto spec = readSpec(options.spec, parsePhase(options.phase));
  if (!spec)
    return spec.takeError();
  auto phase = choosePhase(*spec, options.spec, options.phase);
  if (!phase)
    return phase.takeError();

  const Operator op = makeOperator(*spec, *phase);
  if (llvm::Error error = checkSizeNames(spec->sizeNames(), options.spec, *given))
    return error;
  // With all sizes or with none: expressions are shown either way, and values where they are known.
  SizeValues values;
  std::vector<std::string> missing;
  std::vector<int64_t> ordered = orderSizes(op.sizes, *given, missing);
  if (!given->empty() && !missing.empty())
    return badInput(
        fmt::format("the size {} is missing: give --size {}=VALUE, or none of the sizes",
                    fmt::join(missing, ", "), missing.front()));
  if (missing.empty())
    values = ordered;

  auto chosen = chooseVariants(op, *target, options.schedule);
  if (!chosen)
    return chosen.takeError();
  std::vector<ScheduleVariant> &variants = *chosen;
  Session session(*target, environmentVerifies(), /*emulates=*/true);
  auto artifact = session.compile(op, variants);
  if (!artifact)
    return internalError(artifact.takeError());
  for (size_t i = 0; i < variants.size(); ++i) { // as they came to be
    variants[i].schedule = llvm::cantFail(parseSchedule(artifact->variants[i].schedule, op));
    variants[i].reason = artifact->variants[i].reason;
  }
  if (std::string problem = values ? problemOf(*artifact, *values) : ""; !problem.empty())
    return badInput(fmt::format("{}: {}", options.spec, problem));

  const Explained explained{*spec,     op,     targetFor(op, *target), variants,
                            *artifact, values, usableProcessors()};
  if (options.json) {
    fmt::print("{}\n", llvm::formatv("{0:2}", llvm::json::Value(jsonOf(explained))).str());
    return llvm::Error::success();
  }
  printFolded("{}: {}, mode {}{}, {} {}{}\n", spec->name, toString(op.phase), toString(spec->mode),
              spec->groups > 0 ? fmt::format(" of {}", spec->groups) : "", spec->layout.text,
              toString(spec->dtype), stepsInWords(*spec));
  printFolded("for {}\n", explained.target.summary());
  for (const std::string &note : spec->notes)
    printFolded("note: {}\n", note);
  printFormula(*spec, *phase);
  printLoops(op, values);
  printSteps(op);
  printWork(explained);
  printVariants(explained);
  printArguments(*spec, op, values);
  return llvm::Error::success();
}

} // namespace

void declareExplain(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub =
      app.add_subcommand("explain", "Show a spec's loop nest, schedules, work and arguments");
  addSpecArgument(*sub, options->spec);
  addSizeOption(*sub, options->sizes, "A named size; with all of them, values are shown");
  addCpuOption(*sub, options->target, "Explain the kernel for this CPU");
  addMachineOption(*sub, options->target);
  addPhaseOption(*sub, options->phase, "(default: the spec's first)");
  addScheduleOptions(*sub, options->schedule);
  addJsonFlag(*sub, options->json, "Print one JSON object");
  addWideOption(*sub);
  addExamples(*sub, "explain specs/resnet50/conv4_block1_1_bn.yaml --size N=8",
              "explain specs/bert_base/layer_norm.yaml --cpu skylake-avx512 --phase training");
  sub->callback([options, &status] {
    if (llvm::Error error = run(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
