// `normforge roofline`: how near a spec's kernels are to the speed of memory, and what keeps them
// from it.
#include "compiler/cli/CasePlanner.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "normforge/openmp.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "runtime/measure/Race.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

namespace normforge::cli {

namespace {

struct Options {
  std::vector<std::string> paths, sizes;
  std::string threads, phase, seconds;
  TargetOptions target;
  ScheduleOptions schedule;
  bool json = false;
};

struct Figures {
  uint64_t read = 0, written = 0; ///< bytes that must move: whole arrays, once each
  double moved = 0;               ///< by the schedule: bytes of all tasks
  double flops = 0, elements = 0;
  double seconds = 0, copySeconds = 0;
  double noise = 0; ///< how far two copies of the kernel were apart
  std::string schedule, limit;

  double bytes() const { return static_cast<double>(read + written); }
  double share() const { return copySeconds / seconds; }
};

/// The nearest memory that holds so many bytes of all threads.
std::string_view homeOf(double bytes, const TargetDescription &target, int threads) {
  if (bytes <= static_cast<double>(target.l1Bytes) * threads)
    return "L1";
  if (bytes <= static_cast<double>(target.l2Bytes) * threads)
    return "L2";
  return bytes <= static_cast<double>(target.l3Bytes) ? "L3" : "memory";
}

/// The bottleneck that keeps a kernel from the speed of a copy, as far as figures tell.
std::string limitOf(const Figures &figures, const TargetDescription &target, int threads,
                    size_t stages) {
  constexpr double nearCopy = 0.85, muchMore = 1.2, shortCall = 3e-6;
  const std::string_view home = homeOf(figures.bytes(), target, threads);
  if (figures.share() >= nearCopy)
    return fmt::format("{}: as fast as a copy", home);
  if (figures.seconds < shortCall)
    return fmt::format("the call itself: {} stage{}, tasks that begin and end", stages,
                       stages == 1 ? "" : "s");
  if (figures.moved > muchMore * figures.bytes())
    return fmt::format("{}: the schedule moves {:.1f} times the least bytes", home,
                       figures.moved / figures.bytes());
  return fmt::format("the cores: {:.0f} flops an element, {:.3g} GFLOP/s",
                     figures.flops / std::max(1.0, figures.elements),
                     figures.flops / figures.seconds / 1e9);
}

class Measurement {
public:
  Measurement(const TargetDescription &target, const ScheduleOptions &schedule, int threads,
              double seconds)
      : session_(target, environmentVerifies()), schedule_(schedule), threads_(threads),
        seconds_(seconds) {}

  llvm::Expected<Figures> run(const CheckCase &check) {
    const Operator op = makeOperator(check.spec, check.phase);
    auto artifact = compileOperator(session_, op, schedule_);
    if (!artifact)
      return artifact.takeError();
    // Two copies of one kernel: how far they are apart is what a figure may be off.
    Failure failure;
    std::unique_ptr<KernelCall> calls[2];
    for (auto &call : calls) {
      Artifact copy = *artifact;
      auto kernel = Kernel::load(std::move(copy), {}, failure);
      std::vector<int64_t> sizes;
      for (const std::string &name : op.sizes)
        sizes.push_back(check.sizes.at(name));
      if (kernel)
        call = KernelCall::make(std::move(kernel), sizes, failure);
      if (!call)
        return badInput(fmt::format("{}: {}", check.path, failure.message));
    }
    if (const double needed = 3 * static_cast<double>(calls[0]->bytes());
        needed > static_cast<double>(physicalMemory()))
      return badInput(fmt::format("{}: a measurement at these sizes takes some {} of memory",
                                  check.path, describeBytes(needed)));
    calls[0]->allocate();
    for (const auto &[name, array] : oracle::drawInputs(
             check.spec, check.phase, check.sizes, /*seed=*/1, oracle::Data::Normal, check.scalars))
      calls[0]->set(name, array.bytes);
    std::vector<nf_scalar> scalars;
    for (const std::string &name : op.scalarNames())
      scalars.push_back(check.scalars.at(name));
    calls[0]->setScalars(std::move(scalars));
    calls[1]->copy(*calls[0]);
    const nf_executor executor = nf_openmp_executor(threads_);
    for (auto &call : calls)
      if (!call->run(executor, failure))
        return badInput(fmt::format("{}: {}", check.path, failure.message));

    Figures figures;
    const Plan &plan = calls[0]->plan();
    for (size_t i = 0; i < op.operands.size(); ++i)
      if (op.isWhole(op.operands[i]))
        (op.operands[i].written ? figures.written : figures.read) += plan.arrays()[i].bytes;
    if (figures.read + figures.written == 0) // an update: its arrays are the parameters
      for (size_t i = 0; i < op.operands.size(); ++i)
        (op.operands[i].written ? figures.written : figures.read) += plan.arrays()[i].bytes;
    std::vector<int64_t> sizes;
    for (const std::string &name : op.sizes)
      sizes.push_back(check.sizes.at(name));
    const Variant &variant = artifact->variants[plan.variant()];
    for (const Stage &stage : variant.stages)
      figures.moved += static_cast<double>(stage.tasks.evaluate(sizes).value_or(0)) *
                       static_cast<double>(stage.bytesPerTask.evaluate(sizes).value_or(0));
    figures.elements = static_cast<double>(op.elements.evaluate(sizes).value_or(0));
    figures.flops = static_cast<double>(op.flops().evaluate(sizes).value_or(0));
    figures.schedule = variant.schedule;
    Race race(executor, /*isCold=*/false);
    KernelCall *contenders[] = {calls[0].get(), calls[1].get()};
    const Race::Final final = race.finish(contenders, figures.read, figures.written, seconds_);
    figures.seconds = final.standardSeconds;
    figures.copySeconds = final.copySeconds;
    figures.noise = final.noise.fromOne();
    figures.limit = limitOf(figures, session_.target(), threads_, variant.stages.size());
    return figures;
  }

private:
  Session session_;
  const ScheduleOptions &schedule_;
  const int threads_;
  const double seconds_;
};

void printJson(const CheckCase &check, const Figures &figures, int threads) {
  llvm::json::Object sizes;
  for (const auto &[name, value] : check.sizes)
    sizes[name] = value;
  llvm::json::Object object{{"spec", check.path},
                            {"name", check.spec.name},
                            {"phase", llvm::StringRef(toString(check.phase))},
                            {"sizes", std::move(sizes)},
                            {"threads", threads},
                            {"least_bytes", static_cast<int64_t>(figures.read + figures.written)},
                            {"moved_bytes", figures.moved},
                            {"flops", figures.flops},
                            {"time_us", figures.seconds * 1e6},
                            {"copy_us", figures.copySeconds * 1e6},
                            {"share", figures.share()},
                            {"gigabytes_per_second", figures.bytes() / figures.seconds / 1e9},
                            {"noise", figures.noise},
                            {"schedule", figures.schedule},
                            {"limit", figures.limit}};
  fmt::print("{}\n", llvm::formatv("{0}", llvm::json::Value(std::move(object))).str());
}

llvm::Error run(Options &options) {
  if (llvm::Error error = options.schedule.read())
    return error;
  auto sizes = parseSizes(options.sizes);
  if (!sizes)
    return sizes.takeError();
  auto threads = parseThreads(options.threads);
  if (!threads)
    return threads.takeError();
  auto seconds = parseNumber("--seconds", options.seconds, 1, 3600);
  if (!seconds)
    return seconds.takeError();
  auto target = chooseTarget(options.target);
  if (!target)
    return target.takeError();
  auto paths = findSpecs(options.paths);
  if (!paths)
    return paths.takeError();
  auto specs = readSpecs(*paths, parsePhase(options.phase));
  if (!specs)
    return specs.takeError();
  CasePlanner planner(*sizes, options.phase);
  for (size_t i = 0; i < specs->size(); ++i)
    if (llvm::Error error = planner.add((*paths)[i], (*specs)[i]))
      return error;
  if (llvm::Error error = planner.finish())
    return error;

  size_t spec = 0, phase = 0, sizesWidth = 0;
  for (const CheckCase &check : planner.cases) {
    spec = std::max(spec, check.path.size());
    phase = std::max(phase, toString(check.phase).size());
    sizesWidth = std::max(sizesWidth, sizesText(check).size());
  }
  Columns columns({{.title = "spec", .width = spec},
                   {.title = "phase", .width = phase},
                   {.title = "sizes", .width = sizesWidth, .importance = 2},
                   {.title = "least\nbytes", .width = 9, .isNumber = true, .importance = 3},
                   {.title = "time\nus", .width = 8, .isNumber = true},
                   {.title = "GB/s", .width = 6, .isNumber = true},
                   {.title = "copy\nus", .width = 8, .isNumber = true, .importance = 1},
                   {.title = "share\nof copy", .isNumber = true},
                   {.title = "noise", .width = 5, .isNumber = true},
                   {.title = "limited by", .width = 30}});
  if (!options.json)
    printFolded("{}, {} thread{}; a copy moves as many bytes in the same place{}\n{}",
                target->summary(), *threads, *threads == 1 ? "" : "s",
                planner.defaults.empty()
                    ? ""
                    : fmt::format("; {} by default", fmt::join(planner.defaults, ", ")),
                columns.titles());
  Measurement measurement(*target, options.schedule, *threads,
                          static_cast<double>(seconds->value_or(1)));
  for (const CheckCase &check : planner.cases) {
    auto figures = measurement.run(check);
    if (!figures)
      return figures.takeError();
    if (options.json)
      printJson(check, *figures, *threads);
    else
      printFolded("{}",
                  columns.row({check.path, std::string(toString(check.phase)), sizesText(check),
                               describeBytes(figures->bytes()),
                               fmt::format("{:.1f}", figures->seconds * 1e6),
                               fmt::format("{:.1f}", figures->bytes() / figures->seconds / 1e9),
                               fmt::format("{:.1f}", figures->copySeconds * 1e6),
                               fmt::format("{:.2f}", figures->share()),
                               fmt::format("{:.0f} %", figures->noise * 100), figures->limit}));
    std::fflush(stdout);
  }
  if (!options.json)
    printFolded("{}noise: how far two copies of the kernel were apart; beyond 5 % the machine did "
                "something else. `normforge tune` looks for faster schedules\n",
                columns.leftOut());
  return llvm::Error::success();
}

} // namespace

void declareRoofline(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub = app.add_subcommand(
      "roofline", "Measure how near a spec's kernels are to the speed of memory, and say what "
                  "limits them");
  sub->add_option("SPEC", options->paths, "Specs, or directories of *.yaml")
      ->required()
      ->type_name("PATH");
  addSizeOption(*sub, options->sizes,
                "A named size; may be given several times (default: N=8, T=128)");
  addPhaseOption(*sub, options->phase, "(default: each of a spec's)");
  addThreadsOption(*sub, options->threads);
  addCpuOption(*sub, options->target,
               "Compile for this CPU, which must be one that this machine can stand for");
  sub->add_option("--seconds", options->seconds, "Seconds for each case (default: 1)")
      ->type_name("NUMBER");
  addScheduleOptions(*sub, options->schedule);
  addJsonFlag(*sub, options->json);
  addWideOption(*sub);
  addExamples(*sub, "roofline specs/bert_base/layer_norm.yaml --size N=1",
              "roofline specs/resnet50/conv5_block1_1_bn.yaml --phase inference --json");
  sub->callback([options, &status] {
    if (llvm::Error error = run(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
