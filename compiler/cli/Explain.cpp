// `normforge explain`: what a spec becomes: loops, schedules, work, arguments.
#include "compiler/cli/Command.h"

#include "compiler/spec/Initialize.h"
#include "llvm/ADT/STLExtras.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

namespace normforge::cli {

namespace {

struct Options {
  std::string spec, cpu, machine, phase;
  ScheduleOptions schedule;
  std::vector<std::string> sizes;
};

using Values = std::optional<std::vector<int64_t>>;

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

/// What of a stage is in registers at once.
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

/// Names of arrays of the data: what reductions read, or else what elements are made of first; what
/// is written.
std::vector<std::string> arraysRead(const Operator &op) {
  std::vector<std::string> names;
  for (const Step &step : op.steps)
    for (Expr expr : op.exprs.nodesOf(step.values())) {
      const Operand *array = op.arrayOf(expr);
      if (!array || !op.isWhole(*array) ||
          (op.reduces() ? step.reduce == Reduce::None || !op.isWhole(step) : !names.empty()))
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

std::string times(int count) {
  return count == 1 ? "once" : count == 2 ? "twice" : fmt::format("{} times", count);
}

/// What of the arrays moves, and where from.
std::string trafficInWords(const Operator &op, const Schedule &schedule) {
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
  if (passes > stages)
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

void printSchedule(const Operator &op, const Schedule &schedule) {
  const std::string written = fmt::format("{}", fmt::join(arraysWritten(op), ", "));
  fmt::print("    vectors of {} {}, tails {}{}{}\n", schedule.stages.front().vector,
             toString(op.compute), schedule.maskedTails ? "under a mask" : "in narrower vectors",
             schedule.pairsHalves ? ", those of bf16 in pairs where most data is bf16" : "",
             llvm::any_of(schedule.stages, [](const StagePlan &stage) { return stage.streams; })
                 ? fmt::format(", {} stored around the caches", withoutBits(op, arraysWritten(op)))
                 : "");
  fmt::print("    moved      {}{}\n", trafficInWords(op, schedule),
             written.empty() ? ""
                             : fmt::format("; {} {} written once", written,
                                           arraysWritten(op).size() == 1 ? "is" : "are"));
  for (size_t i = 0; i < schedule.stages.size(); ++i) {
    const StagePlan &stage = schedule.stages[i];
    const std::vector<StageLoop> loops = stageLoops(op, schedule, i);
    fmt::print("    {:<10} {}; {}{}{}\n", stage.name, taskInWords(loops, stage),
               flightInWords(loops, stage), stage.alternates ? "; every other pass backwards" : "",
               stage.reversed ? "; tasks from the last to the first" : "");
    if (stage.rows == Rows::Together)
      fmt::print("               the rows of a tile are written together\n");
    if (stage.prefetch > 0)
      fmt::print("               while {} is written, the {} of {} is fetched into L2\n", written,
                 withoutBits(op, arraysRead(op)),
                 stage.prefetch == 1 ? "the next tile"
                                     : fmt::format("the tile {} after it", stage.prefetch));
  }
}

std::string numberInWords(const Number &number, const char *argument) {
  return number.isArgument ? fmt::format("the number {}", argument)
                           : fmt::format("{}", number.value);
}

std::string_view rootInWords(const Spec &spec) {
  return spec.epsilonPosition == EpsilonPosition::Outside ? "sqrt(variance)"
                                                          : "sqrt(variance + epsilon)";
}

/// What the second moving vector takes of a sum of squares over n values.
void printStored(const Spec &spec, std::string_view squares, std::string_view n) {
  std::string divisor(n);
  if (spec.runningVariance == RunningVariance::Bessel)
    divisor = fmt::format("({} - 1)", n);
  else if (spec.runningVariance == RunningVariance::Keras2)
    divisor = fmt::format("({} - 1 - epsilon)", n);
  fmt::print("  the variance in {}: {} / {}{}\n", spec.movingSpreadName(), squares, divisor,
             spec.movingSpread == MovingSpread::Deviation
                 ? fmt::format(", as {}", rootInWords(spec))
                 : "");
}

/// What the semantics, and what the spec says beside them, come to.
void printFormula(const Spec &whole, Phase phase) {
  const Spec spec = ofPhase(whole, phase);
  if (isUpdate(phase)) {
    fmt::print("\nOptimizer, by {}\n  {}\n", toString(spec.semantics), textOf(*spec.optimizer));
    if (spec.learnsGamma())
      fmt::print("  gamma  {}\n", textOf(spec.gammaLearned));
    if (spec.learnsBeta())
      fmt::print("  beta   {}\n", textOf(spec.betaLearned));
  }
  if (phase == Phase::Update)
    return;
  if (spec.hasRange()) {
    if (phase == Phase::Population)
      fmt::print("\nFormula\n  minimum' = the least of minimum and {0}, maximum' = the greatest of "
                 "maximum and {0}\n",
                 spec.prologue.empty() ? "x" : "what the prologue makes of x");
    else
      fmt::print("\nFormula\n  y = (x - minimum) / (maximum - minimum){}{}, the divisor 1 where it "
                 "is not above 0\n{}",
                 spec.scale ? " * gamma" : "", spec.center ? " + beta" : "",
                 spec.prologue.empty() ? "" : "  x stands for what the prologue makes of it\n");
    return;
  }
  if (phase == Phase::Moments) {
    fmt::print(
        "\nFormula\n  count, mean as rounded, sums of what remains and of its squares, of these "
        "samples{}{}:\n  nf_plan_merge makes those of all ranks' of them\n",
        spec.prologue.empty() ? "" : ", of what the prologue makes of x",
        spec.mask ? ", weighed by mask" : "");
    return;
  }
  if (phase == Phase::Population) {
    fmt::print("\nFormula (Chan, Golub, LeVeque 1983), in f64\n"
               "  count' = count + n, mean' = mean + (batch_mean - mean) * n / count',\n"
               "  m2' = m2 + batch_m2 + (batch_mean - mean)^2 * n * count / count'\n"
               "  of n values{}{}; moving_mean' = mean'\n",
               spec.prologue.empty() ? "" : " that the prologue makes of x",
               spec.mask ? ", weighed by mask, n their sum" : "");
    printStored(spec, "m2'", "count'");
    return;
  }
  const EpsilonPosition position = spec.epsilonPosition;
  const bool keepsDeviation = spec.movingSpread == MovingSpread::Deviation;
  const std::string root(rootInWords(spec));
  const std::string deviation =
      keepsDeviation && spec.takesMovingStatistics(phase) ? "moving_stddev" : root;
  const std::string denominator =
      position == EpsilonPosition::Inside ? deviation : fmt::format("({} + epsilon)", deviation);
  fmt::print("\nFormula, by {}\n  y = {} / {}{}{}\n  epsilon {}\n", toString(spec.semantics),
             spec.hasMean() ? "(x - mean)" : "x", denominator, spec.scale ? " * gamma" : "",
             spec.center ? " + beta" : "", numberInWords(spec.epsilon, "epsilon"));
  if (!spec.prologue.empty())
    fmt::print("  x stands for what the prologue makes of it\n");
  if (!spec.hasMean())
    fmt::print("  variance is the mean of x * x\n");
  if (spec.takesBatchStatistics(phase)) {
    if (spec.renorm)
      fmt::print("  then times r, plus d, before gamma and beta: t = max(renorm_stddev, "
                 "sqrt(epsilon)),\n  r = {} / t in [{}, {}], d = (mean - renorm_mean) / t in "
                 "[-{}, {}]\n",
                 root, spec.renorm->rMin, spec.renorm->rMax, spec.renorm->dMax, spec.renorm->dMax);
    if (spec.adjustment)
      fmt::print("  then times adjust_scale, plus adjust_bias, before gamma and beta\n");
    if (spec.mask)
      fmt::print("  mean and variance are weighed by mask, their divisor sum(mask) + 1e-7\n");
    if (spec.synchronized)
      fmt::print("  statistics{} are of all ranks' samples: {}\n",
                 isBackward(phase) ? " and sums of gradients" : "",
                 phase == Phase::GradientSums
                     ? "dgamma and dbeta are of these samples"
                     : "nf_plan_merge has made what the partial arrays hold");
    if (spec.ghostBatch > 0)
      fmt::print("  statistics are of ghost batches of {} samples, every (samples / {})-th; the "
                 "moving ones\n  take the means of theirs\n",
                 spec.ghostBatch, spec.ghostBatch);
  }
  if (spec.frozen != Frozen::Nothing)
    fmt::print("  trainable: false keeps gamma and beta{} as they are\n",
               spec.frozen == Frozen::ParametersAndStatistics ? " and the moving statistics" : "");
  if (!spec.updatesMovingStatistics(phase))
    return;
  const Momentum &momentum = spec.momentum;
  if (momentum.cumulative)
    fmt::print("  moving = (1 - 1/count) * moving + 1/count * batch, count a number\n");
  else {
    const std::string mean = numberInWords(momentum.mean, "momentum"),
                      variance = numberInWords(momentum.variance, "momentum");
    fmt::print(
        "  moving = {}\n  momentum {}\n",
        momentum.weighs == MomentumWeighs::Old ? "momentum * moving + (1 - momentum) * batch"
                                               : "(1 - momentum) * moving + momentum * batch",
        mean == variance ? mean
                         : fmt::format("{} for the mean, {} for the variance", mean, variance));
  }
  printStored(spec, "sum of squares", "N");
}

void printLoops(const Operator &op, const Values &values) {
  fmt::print("\nLoop nest, outermost first\n");
  const std::vector<bool> kept = op.kept();
  std::string indent = "  ";
  for (int i = 0; i < op.rank(); ++i) {
    std::vector<std::string_view> parameters;
    for (const Operand &operand : op.operands)
      if (operand.role == Role::Parameter && !operand.written &&
          llvm::is_contained(operand.loops, i))
        parameters.push_back(operand.name);
    fmt::print("{}for {} in {}: {}{}{}\n", indent, op.loops[i].name,
               describe(op.loops[i].size, op.sizes, values),
               kept[i] ? "kept, indexes the statistics" : "reduced",
               parameters.empty() ? ""
               : kept[i]          ? " and "
                                  : ", indexes ",
               fmt::join(parameters, ", "));
    indent += "  ";
  }
  if (op.blocked)
    fmt::print("  blocks of {} of an axis of {}{}\n", op.blocked->block,
               describe(op.blocked->size, op.sizes, values),
               op.blocked->padded ? "; the last one may be padded with zeros" : "");
  fmt::print("  a statistic is taken over {} elements\n", describe(op.groupSize, op.sizes, values));
}

/// The formulas of the steps, in their order.
void printSteps(const Operator &op) {
  fmt::print("\nSteps\n");
  const Exprs::Names names = op.names();
  for (const Step &step : op.steps) {
    std::vector<std::string> over;
    for (int loop : step.loops)
      over.push_back(op.loops[loop].name);
    fmt::print("  {} over {}\n", step.name,
               over.empty() ? "nothing" : fmt::format("{}", fmt::join(over, ", ")));
    if (step.reduce == Reduce::Moments) {
      fmt::print("    mean of {}{}, sums of what remains and of its squares\n",
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
      fmt::print("    {}\n", line);
  }
}

void printWork(const Operator &op, const Values &values) {
  std::vector<std::string_view> whole;
  for (const Operand &operand : op.operands)
    if (op.isWhole(operand))
      whole.push_back(operand.name);
  fmt::print("\nWork of a call\n"
             "  elements  {}\n"
             "  bytes     {}  (at least: {}, once each)\n"
             "  flops     {}\n",
             describe(op.elements, op.sizes, values), describe(op.minimumBytes(), op.sizes, values),
             fmt::join(whole, ", "), describe(op.flops(), op.sizes, values));
}

void printVariants(const Operator &op, llvm::ArrayRef<ScheduleVariant> variants,
                   const Artifact &artifact, const Values &values) {
  size_t taken = variants.size();
  for (size_t i = variants.size(); values && i-- > 0;)
    if (variants[i].guard.holds(*values))
      taken = i;
  for (size_t i = 0; i < variants.size(); ++i) {
    const ScheduleVariant &variant = variants[i];
    fmt::print("\nVariant {} of {}, {}{}\n", i + 1, variants.size(),
               describeGuard(variants, i, op.sizes),
               i == taken && variants.size() > 1 ? " (taken by these sizes)" : "");
    fmt::print("  schedule   {}\n  in words   {}: {}\n", variant.schedule.text(op),
               formInWords(op, variant.schedule), variant.reason);
    printSchedule(op, variant.schedule);
    for (const Stage &stage : artifact.variants[i].stages)
      fmt::print("  stage      {}\n"
                 "    tasks      {}\n"
                 "    each moves {} bytes\n",
                 stage.symbol, describe(stage.tasks, op.sizes, values),
                 describe(stage.bytesPerTask, op.sizes, values));
    const Image &image = artifact.variants[i].image;
    fmt::print("  image      {} bytes of code and constants, loaded as one\n", image.bytes.size());
    for (const Stage &stage : artifact.variants[i].stages) {
      uint64_t end = image.bytes.size();
      for (const Stage &other : artifact.variants[i].stages)
        if (other.entry > stage.entry)
          end = std::min(end, other.entry);
      fmt::print("    {:#06x}     {}, {} bytes\n", stage.entry, stage.symbol, end - stage.entry);
    }
    fmt::print("  workspace  {} bytes\n",
               describe(artifact.variants[i].workspaceBytes, op.sizes, values));
  }
}

void printArguments(const Spec &spec, const Operator &op, const Values &values) {
  fmt::print("\nArguments, in order\n");
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
    fmt::print("  {:>2}  {:<7}  {:<15}  {}  {}{}\n", i, argument.written ? "written" : "read",
               argument.name, toString(argument.dtype), shape,
               aliases.empty()
                   ? ""
                   : fmt::format("; may be the buffer of {}", fmt::join(aliases, " or ")));
  }
  if (op.phase == Phase::Inference)
    for (const std::string &name : foldedNames(spec)) {
      const Initial &initial = *initialOf(spec, name);
      fmt::print("      within   {:<15}  {}  {}\n", name, toString(spec.parameterDType),
                 initial.kind == Initial::Kind::Constant
                     ? fmt::format("{}", initial.first)
                     : plural(static_cast<int64_t>(initial.values.size()), "number"));
    }
  if (!op.sizes.empty())
    fmt::print("Sizes, in order: {}\n", fmt::join(op.sizes, ", "));
  if (!op.scalars.empty())
    fmt::print("Numbers, in order: {}\n", fmt::join(op.scalarNames(), ", "));
}

llvm::Error run(Options &options) {
  if (llvm::Error error = options.schedule.read())
    return error;
  auto given = parseSizes(options.sizes);
  if (!given)
    return given.takeError();
  auto target = chooseTarget(options.cpu, options.machine);
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
  Values values;
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
  Session session(*target, environmentVerifies());
  auto artifact = session.compile(op, variants);
  if (!artifact)
    return internalError(artifact.takeError());
  for (size_t i = 0; i < variants.size(); ++i) { // as they came to be
    variants[i].schedule = llvm::cantFail(parseSchedule(artifact->variants[i].schedule, op));
    variants[i].reason = artifact->variants[i].reason;
  }
  if (std::string problem = values ? problemOf(*artifact, *values) : ""; !problem.empty())
    return badInput(fmt::format("{}: {}", options.spec, problem));

  fmt::print("{}: {}, mode {}{}, {} {}{}\n", spec->name, toString(op.phase), toString(spec->mode),
             spec->groups > 0 ? fmt::format(" of {}", spec->groups) : "", spec->layout.text,
             toString(spec->dtype), stepsInWords(*spec));
  fmt::print("for {}\n", targetFor(op, *target).summary());
  for (const std::string &note : spec->notes)
    fmt::print("note: {}\n", note);
  printFormula(*spec, *phase);
  printLoops(op, values);
  printSteps(op);
  printWork(op, values);
  printVariants(op, variants, *artifact, values);
  printArguments(*spec, op, values);
  return llvm::Error::success();
}

} // namespace

void declareExplain(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub =
      app.add_subcommand("explain", "Show a spec's loop nest, schedules, work and arguments");
  sub->add_option("SPEC", options->spec, "The spec, a YAML file")->required()->type_name("PATH");
  sub->add_option("--size", options->sizes, "a named size; with all of them, values are shown")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
  sub->add_option("--cpu", options->cpu, "Explain the kernel for this CPU (default: native)")
      ->type_name("CPU");
  sub->add_option("--target", options->machine,
                  "The machine, x86_64-linux-gnu or aarch64-linux-gnu (default: the CPU's)")
      ->type_name("TRIPLE");
  sub->add_option("--phase", options->phase, phaseChoices() + " (default: the spec's first)")
      ->type_name("PHASE");
  addScheduleOptions(*sub, options->schedule);
  sub->callback([options, &status] {
    if (llvm::Error error = run(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
