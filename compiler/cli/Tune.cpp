// `normforge tune`: a sweep over the schedules of specs, and what is done with its records.
#include "compiler/cli/Files.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "compiler/cli/TuneOptions.h"
#include "compiler/cli/TuneProgress.h"
#include "compiler/tune/Benchdnn.h"
#include "compiler/tune/Export.h"
#include "compiler/tune/Sweep.h"
#include "runtime/cpu_info/CpuInfo.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <random>

namespace normforge::cli {

namespace {

struct Options {
  std::vector<std::string> specs, lists, sizes, phases, layouts, caches{"warm"}, faults;
  std::string threads, bits = "any", effort = "quick", budget, shard, seed, output = "tuned.jsonl",
                       candidateSeconds, candidateBytes, candidates, exportPath;
  TargetOptions target;
  bool json = false, again = false;
};

volatile std::sig_atomic_t wasInterrupted = 0;
extern "C" void onInterrupt(int signal) { wasInterrupted = signal; }

/// The settings from which all cases of a sweep are made.
struct Common {
  std::vector<Phase> phases; ///< empty: all of each spec
  SizeLists sizes;
  int threads = 1;
  std::vector<CacheState> caches;
  BitsPolicy bits = BitsPolicy::Any;
};

llvm::Expected<Common> readCommon(const Options &options) {
  Common common;
  for (const std::string &word : options.phases) {
    const auto phase = parsePhase(word);
    if (!phase)
      return badInput(fmt::format("--phase: expected {}, found '{}'", phaseChoices(), word));
    common.phases.push_back(*phase);
  }
  auto sizes = parseSizeLists(options.sizes);
  if (!sizes)
    return sizes.takeError();
  common.sizes = std::move(*sizes);
  auto threads = parseThreads(options.threads);
  if (!threads)
    return threads.takeError();
  common.threads = *threads;
  for (const std::string &word : options.caches) {
    const auto cache = parseCacheState(word);
    if (!cache)
      return badInput(
          fmt::format("--cache: expected warm, cold or both with a comma, found '{}'", word));
    common.caches.push_back(*cache);
  }
  const auto bits = parseBitsPolicy(options.bits);
  if (!bits)
    return badInput(fmt::format("--bits: expected any or fixed, found '{}'", options.bits));
  common.bits = *bits;
  return common;
}

/// All values of a spec's named sizes, the first name's slowest.
llvm::Expected<std::vector<oracle::Sizes>> sizesOf(const Spec &spec, const std::string &path,
                                                   const SizeLists &lists) {
  std::vector<oracle::Sizes> all{{}};
  for (const std::string &name : spec.sizeNames()) {
    std::vector<int64_t> values;
    if (const auto given = lists.find(name); given != lists.end())
      values = given->second;
    else if (const auto fallback = defaultSize(name))
      values = {*fallback};
    else
      return badInput(
          fmt::format("{}: no value for size {}; give it with --size {}=VALUE", path, name, name));
    std::vector<oracle::Sizes> longer;
    for (const oracle::Sizes &sizes : all)
      for (int64_t value : values) {
        longer.push_back(sizes);
        longer.back()[name] = value;
      }
    all = std::move(longer);
  }
  return all;
}

/// Cases that have no sizes yet.
struct Problem {
  std::string path;
  Spec spec;
  std::vector<Phase> phases;
};

llvm::Expected<std::vector<Problem>> readProblems(const Options &options, const Common &common) {
  std::vector<Problem> problems;
  auto paths = findSpecs(options.specs);
  if (!paths)
    return paths.takeError();
  auto specs = readSpecs(*paths);
  if (!specs)
    return specs.takeError();
  for (size_t i = 0; i < specs->size(); ++i)
    problems.push_back({(*paths)[i], (*specs)[i], (*specs)[i].phases});
  for (const std::string &list : options.lists) {
    auto listed = tune::readBenchdnnList(list);
    if (!listed)
      return located(listed.takeError());
    for (tune::ListedProblem &problem : *listed)
      problems.push_back({problem.place, std::move(problem.spec), {problem.phase}});
  }
  if (!common.phases.empty())
    for (Problem &problem : problems)
      llvm::erase_if(problem.phases,
                     [&](Phase phase) { return !llvm::is_contained(common.phases, phase); });
  return problems;
}

llvm::Expected<std::vector<tune::Case>> makeCases(const Options &options, const Common &common,
                                                  const TargetDescription &target) {
  auto problems = readProblems(options, common);
  if (!problems)
    return problems.takeError();
  std::vector<tune::Case> cases;
  std::vector<std::string> names;
  for (const Problem &problem : *problems) {
    auto sizes = sizesOf(problem.spec, problem.path, common.sizes);
    if (!sizes)
      return sizes.takeError();
    llvm::append_range(names, problem.spec.sizeNames());
    std::vector<Spec> variants;
    for (const std::string &layout : options.layouts)
      if (auto other = inLayout(problem.spec, layout))
        variants.push_back(std::move(*other));
    if (options.layouts.empty())
      variants.push_back(problem.spec);
    if (!options.layouts.empty() && !problem.spec.layout.axes.starts_with("nc"))
      llvm::errs() << fmt::format(
          "{}: note: --layouts brings specs with channels first into others; "
          "this one has layout {}\n",
          problem.path, problem.spec.layout.text);
    for (const Spec &spec : variants)
      for (Phase phase : problem.phases)
        for (const oracle::Sizes &of : *sizes)
          for (CacheState cache : common.caches) {
            tune::Case one;
            one.path = problem.path;
            one.spec = spec;
            one.phase = phase;
            one.sizes = of;
            one.threads = common.threads;
            one.cache = cache;
            one.bits = common.bits;
            one.scalars = oracle::usualNumbers(spec, phase);
            complete(one, target);
            cases.push_back(std::move(one));
          }
  }
  for (const auto &[name, values] : common.sizes)
    if (!llvm::is_contained(names, name))
      return badInput(fmt::format("--size: no spec given has a size '{}'", name));
  if (cases.empty())
    return badInput("none of the specs has such a phase and layout");
  return tune::distinctCases(std::move(cases));
}

llvm::Expected<std::vector<tune::Fault>> readFaults(const std::vector<std::string> &words) {
  std::vector<tune::Fault> faults;
  for (const std::string &word : words) {
    auto pair = parseNamedText(word, "TEXT");
    if (!pair)
      return pair.takeError();
    if (!llvm::is_contained(tune::kFaults, llvm::StringRef(pair->name)))
      return badInput(fmt::format("--fault: expected one of {}, found '{}'",
                                  fmt::join(tune::kFaults, ", "), pair->name));
    faults.push_back({pair->name, pair->text});
  }
  return faults;
}

llvm::Error run(const Options &options, int &status) {
  if (options.specs.empty() && options.lists.empty())
    return badInput("specs are missing; expected files or directories of them, --list FILE, or one "
                    "of the commands that normforge tune --help lists");
  auto common = readCommon(options);
  if (!common)
    return common.takeError();
  tune::SweepOptions sweep;
  const auto effort = parseEffort(options.effort);
  if (!effort)
    return badInput(
        fmt::format("--effort: expected quick, full or exhaustive, found '{}'", options.effort));
  sweep.effort = *effort;
  if (!options.budget.empty()) {
    auto budget = parseDuration("--budget", options.budget);
    if (!budget)
      return budget.takeError();
    sweep.seconds = *budget;
  }
  auto shard = chooseShard(options.shard, [](const char *name) { return std::getenv(name); });
  if (!shard)
    return shard.takeError();
  auto seed = parseNumber("--seed", options.seed, 0, UINT64_MAX);
  if (!seed)
    return seed.takeError();
  sweep.seed = seed->value_or(std::random_device()());
  auto faults = readFaults(options.faults);
  if (!faults)
    return faults.takeError();
  auto target = chooseTarget();
  if (!target)
    return target.takeError();
  auto cases = makeCases(options, *common, *target);
  if (!cases)
    return cases.takeError();
  const size_t all = cases->size();
  const std::vector<tune::Case> own = tune::shardOf(std::move(*cases), shard->index, shard->count);
  const std::string path = shardFile(options.output, *shard);
  tune::Records held;
  auto writer = tune::RecordWriter::open(path, held);
  if (!writer)
    return located(writer.takeError());
  for (const std::string &warning : held.warnings)
    llvm::errs() << warning << '\n';

  sweep.worker = {*target, environmentVerifies(), std::move(*faults)};
  if (!options.candidateSeconds.empty()) {
    auto seconds = parseDuration("--candidate-seconds", options.candidateSeconds);
    if (!seconds)
      return seconds.takeError();
    sweep.worker.secondsPerCandidate = *seconds;
  }
  auto bytes = parseNumber("--candidate-bytes", options.candidateBytes, 1, UINT64_MAX);
  if (!bytes)
    return bytes.takeError();
  sweep.worker.bytes = bytes->value_or(0);
  if (common->threads > usableProcessors())
    llvm::errs() << fmt::format(
        "warning: --threads {} on {} processor{}: they wait for each other, "
        "and times say little\n",
        common->threads, usableProcessors(), usableProcessors() == 1 ? "" : "s");
  sweep.again = options.again;
  auto progress = options.json ? makeJsonProgress(own) : makeTextProgress(own);
  progress->begin(fmt::format("{}; {} thread{}, seed {}", target->summary(), common->threads,
                              common->threads == 1 ? "" : "s", sweep.seed),
                  all, *shard, path);
  std::signal(SIGINT, onInterrupt);
  std::signal(SIGTERM, onInterrupt);
  auto outcome = tune::sweep(
      own, sweep, *writer, held, [&](const tune::Event &event) { progress->show(event); },
      [] { return wasInterrupted != 0; });
  if (!outcome) {
    progress->clear();
    return located(outcome.takeError());
  }
  progress->end(*outcome, path, wasInterrupted != 0);
  if (wasInterrupted)
    status = 128 + wasInterrupted;
  else if (outcome->failed > 0)
    status = Disagrees;
  return llvm::Error::success();
}

} // namespace

namespace {

/// Adds the options that say which cases a sweep has, whether it runs here or is exported.
void addCaseOptions(CLI::App &sub, Options &options) {
  sub.add_option("SPEC", options.specs, "Specs, or directories of *.yaml")->type_name("PATH");
  sub.add_option("--list", options.lists,
                 "Also the problems of this list, in the notation of oneDNN's benchdnn")
      ->type_name("FILE")
      ->allow_extra_args(false);
  addSizeOption(sub, options.sizes,
                "A named size, or several values of it, NAME=1,8; may be given several times "
                "(default: N=8, T=128)");
  sub.add_option("--phase", options.phases, phaseChoices() + " (default: each of a spec's)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("PHASE[,PHASE]");
  sub.add_option("--layouts", options.layouts,
                 "Bring specs with channels first into these layouts: nchw, nhwc, nChw16c, nChw8c "
                 "(default: as they are)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"nchw", "nhwc", "nChw16c", "nChw8c"}));
  addThreadsOption(sub, options.threads, "Threads that kernels are measured with");
  sub.add_option("--cache", options.caches,
                 "warm: data are in the caches as far as the call before left them there; cold: "
                 "they are in memory alone (default: warm)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("STATE[,STATE]");
  sub.add_option("--bits", options.bits,
                 "any; fixed: search only what changes no bit of a result (default: any)")
      ->type_name("POLICY");
  addSeedOption(sub, options.seed);
}

llvm::Error runExport(const Options &options) {
  if (options.specs.empty() && options.lists.empty())
    return badInput("specs are missing; expected files or directories of them, or --list FILE");
  if (options.exportPath.empty())
    return badInput("-o is missing; expected the sweep's file, such as -o sweep.nfs");
  auto common = readCommon(options);
  if (!common)
    return common.takeError();
  auto seed = parseNumber("--seed", options.seed, 0, UINT64_MAX);
  if (!seed)
    return seed.takeError();
  auto count = parseNumber("--candidates", options.candidates, 1, 10000);
  if (!count)
    return count.takeError();
  auto target = chooseTarget(options.target);
  if (!target)
    return target.takeError();
  auto cases = makeCases(options, *common, *target);
  if (!cases)
    return cases.takeError();
  tune::ExportOptions how{*target, environmentVerifies(), seed->value_or(std::random_device()())};
  how.candidates = count->value_or(how.candidates);
  how.isNative = options.target.isNative();
  if (!how.isNative && options.threads.empty())
    return badInput("--threads is missing: with how many is to be measured on that machine");
  auto sweep = tune::exportSweep(*cases, how, [](const tune::Case &) {});
  if (!sweep)
    return internalError(sweep.takeError());
  const std::vector<std::byte> bytes = toBytes(*sweep);
  size_t candidates = 0;
  for (const SweepFile::Case &one : sweep->cases)
    candidates += one.candidates.size() - 1;
  if (llvm::Error error = writeFiles(FileToWrite{
          options.exportPath, "", {reinterpret_cast<const char *>(bytes.data()), bytes.size()}}))
    return located(std::move(error));
  fmt::print("{} cases for {}, {} candidates, {}, seed {}\nrun it there: normforge-tune-run {} -o "
             "r.jsonl; then here: normforge tune import r.jsonl -o all.jsonl\n",
             sweep->cases.size(), target->cpu, candidates,
             describeBytes(static_cast<double>(bytes.size())), how.seed,
             shellWord(options.exportPath));
  return llvm::Error::success();
}

void declareTuneExport(CLI::App &tune, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub = tune.add_subcommand(
      "export", "Compile a sweep into one file for a machine without a compiler, where "
                "normforge-tune-run runs it");
  addCaseOptions(*sub, *options);
  // --cache is the state of data here.
  sub->add_option("--cpu", options->target.cpus,
                  "LLVM's name of that machine's CPU (default: native)")
      ->expected(1)
      ->type_name("CPU");
  sub->add_option("--candidates", options->candidates, "Of each case, at most (default: 40)")
      ->type_name("COUNT");
  sub->add_option("-o", options->exportPath, "The file to write, such as sweep.nfs")
      ->type_name("FILE");
  addExamples(*sub,
              "tune export specs/bert_base --phase inference --cpu haswell --threads 1 "
              "-o build/sweep.nfs",
              "tune export specs/bert_base --candidates 4 --cpu neoverse-n1 --threads 4 "
              "-o build/arm.nfs");
  sub->callback([options, &status] {
    if (llvm::Error error = runExport(*options))
      status = report(std::move(error));
  });
}

} // namespace

void declareTune(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub = app.add_subcommand(
      "tune", "Search for faster schedules on this machine, and keep them as records");
  addCaseOptions(*sub, *options);
  sub->add_option("--effort", options->effort,
                  "quick: about 3 seconds a case; full: about a minute; exhaustive: until nothing "
                  "is left (default: quick)")
      ->type_name("EFFORT");
  sub->add_option("--budget", options->budget, "Stop after this time; start again to go on")
      ->type_name("TIME");
  sub->add_option("--shard", options->shard,
                  "One part of the cases, into a file of its own; found by itself in a Slurm "
                  "array, under MPI and in an indexed Kubernetes job")
      ->type_name("INDEX/COUNT");
  sub->add_option("-o", options->output,
                  "The file of records, added to where it is there (default: tuned.jsonl)")
      ->type_name("FILE");
  sub->add_flag("--again", options->again,
                "Measure again what is there but too noisy to choose by");
  addJsonFlag(*sub, options->json, "Print one JSON object a line for all that happens");
  addExamples(*sub,
              "tune specs/bert_base/layer_norm.yaml --phase inference --size N=1 --budget 20s "
              "-o build/tuned.jsonl",
              "tune show build/tuned.jsonl");
  // For tests: what happens to candidates that have this text in their schedules, and how long one
  // may take to answer beyond its measurements, and of memory beyond its arrays.
  sub->add_option("--candidate-seconds", options->candidateSeconds)->group("");
  sub->add_option("--candidate-bytes", options->candidateBytes)->group("");
  sub->add_option("--fault", options->faults)->group("")->allow_extra_args(false);
  sub->require_subcommand(0, 1);
  declareTuneMerge(*sub, status);
  declareTuneExport(*sub, status);
  declareTuneImport(*sub, status);
  declareTuneShow(*sub, status);
  declareTuneReport(*sub, status);
  sub->callback([sub, options, &status] {
    if (!sub->get_subcommands().empty())
      return;
    int own = Success;
    llvm::Error error = run(*options, own);
    status = error ? report(std::move(error)) : own;
  });
}

} // namespace normforge::cli
