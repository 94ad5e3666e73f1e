// `normforge check`: compiles specs, runs them on drawn data, and compares with oneDNN and with the
// f64 reference.
#include "compiler/cli/Adversarial.h"
#include "compiler/cli/CasePlanner.h"
#include "compiler/cli/CheckReport.h"
#include "compiler/cli/Command.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/NamedArrays.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "compiler/target/CodeGen.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <memory>
#include <random>

namespace normforge::cli {

namespace {

struct Options {
  std::vector<std::string> paths, sizes;
  TargetOptions target;
  std::string threads, phase, seed, data, schedules, variant;
  ScheduleOptions schedule;
  bool json = false, verbose = false, adversarial = false;
};

/// Words of own data, NAME=FILE.npy and NAME=NUMBER, out of those of paths.
std::vector<std::string> takeNamed(std::vector<std::string> &words) {
  std::vector<std::string> named, paths;
  for (const std::string &word : words) {
    const std::string name = word.substr(0, word.find('='));
    const bool isName =
        word.find('=') != std::string::npos && !name.empty() && llvm::all_of(name, [](char c) {
          return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.';
        });
    (isName ? named : paths).push_back(word);
  }
  words = std::move(paths);
  return named;
}

/// One phase of one spec on own data.
struct OwnData {
  Operator op;
  std::optional<NamedArrays> arrays{};
  std::map<std::string, std::string> results{};
};

llvm::Expected<std::unique_ptr<OwnData>> readOwn(const std::vector<std::string> &words,
                                                 const std::vector<std::string> &paths,
                                                 const std::vector<Spec> &specs,
                                                 const Options &options) {
  if (specs.size() != 1)
    return badInput(
        fmt::format("{} is data of one spec; {} are given", words.front(), specs.size()));
  if (!options.data.empty() || !options.seed.empty() || options.adversarial)
    return badInput(fmt::format("{} is own data, and none are drawn; leave out --data, --seed and "
                                "--adversarial, or it",
                                words.front()));
  auto phase = choosePhase(specs.front(), paths.front(), options.phase);
  if (!phase)
    return phase.takeError();
  auto own = std::make_unique<OwnData>(OwnData{makeOperator(specs.front(), *phase)});
  own->arrays.emplace(specs.front(), own->op, paths.front());
  if (llvm::Error error = own->arrays->take(words, &own->results))
    return error;
  if (llvm::Error error = own->arrays->read())
    return error;
  return own;
}

llvm::Expected<CheckSettings> readSettings(const Options &options) {
  CheckSettings settings;
  settings.target = options.target;
  auto threads = parseThreads(options.threads);
  if (!threads)
    return threads.takeError();
  settings.threads = *threads;
  auto seed = parseNumber("--seed", options.seed, 0, UINT64_MAX);
  if (!seed)
    return seed.takeError();
  // 32 bits are enough for variety and short enough to type.
  settings.seed = seed->value_or(std::random_device()());
  if (!options.data.empty()) {
    const std::optional<oracle::Data> data = oracle::parseData(options.data);
    if (!data)
      return badInput(
          fmt::format("--data: expected normal, offset, constant, outlier, denormal or large, "
                      "found '{}'",
                      options.data));
    settings.data = *data;
  }
  return settings;
}

/// In the place of a CPU's name: the GPU that the driver finds first.
constexpr const char *kGpuAtHand = "cuda";

llvm::Expected<ExitStatus> run(Options &options) {
  if (options.adversarial && (options.json || options.verbose || !options.data.empty()))
    return badInput("--adversarial prints a table of its own data; leave out --data, --json and "
                    "--verbose, or --adversarial");
  auto settings = readSettings(options);
  if (!settings)
    return settings.takeError();
  if (llvm::Error error = options.schedule.read())
    return error;
  settings->chosen = options.schedule;
  auto sizes = parseSizes(options.sizes);
  if (!sizes)
    return sizes.takeError();
  options.target.takesGpus = true;
  TargetOptions machine = options.target;
  if (machine.cpus == std::vector<std::string>{kGpuAtHand}) {
    if (options.adversarial)
      return badInput("--adversarial: not on a GPU; --cpu sm_90 is emulated");
    Failure failure;
    settings->gpu = Gpu::open(failure);
    if (!settings->gpu)
      return badInput(fmt::format("--cpu {}: {}", kGpuAtHand, failure.message));
    machine.cpus = {settings->gpu->device()->cpu()};
  }
  auto target = chooseTarget(machine);
  if (!target)
    return target.takeError();
  const std::vector<std::string> words = takeNamed(options.paths);
  if (options.paths.empty())
    return badInput("SPEC is required");
  auto paths = findSpecs(options.paths);
  if (!paths)
    return paths.takeError();
  auto specs = readSpecs(*paths, parsePhase(options.phase));
  if (!specs)
    return specs.takeError();
  std::unique_ptr<OwnData> own;
  if (!words.empty()) {
    auto read = readOwn(words, *paths, *specs, options);
    if (!read)
      return read.takeError();
    own = std::move(*read);
    if (llvm::Error error = checkSizeNames(own->op.sizes, paths->front(), *sizes))
      return error;
    auto told = own->arrays->sizes(*sizes);
    if (!told)
      return told.takeError();
    for (size_t i = 0; i < told->size(); ++i)
      (*sizes)[own->op.sizes[i]] = (*told)[i];
    options.phase = toString(own->op.phase);
    settings->own = fmt::format("{}", fmt::join(words, " "));
  }
  CasePlanner planner(*sizes, options.phase);
  for (size_t i = 0; i < specs->size(); ++i)
    if (llvm::Error error = planner.add((*paths)[i], (*specs)[i]))
      return error;
  if (llvm::Error error = planner.finish())
    return error;

  if (!options.schedules.empty() && options.schedules != "all")
    return badInput(fmt::format("--schedules: expected all, found '{}'", options.schedules));
  if (!options.schedules.empty() && (!options.schedule.forced.empty() || options.adversarial))
    return badInput("--schedules all is of a check by itself; leave out --schedule and "
                    "--adversarial, or --schedules");
  auto variant = parseNumber("--variant", options.variant, 1, 1000);
  if (!variant)
    return variant.takeError();
  if (*variant && (!options.schedules.empty() || !options.schedule.forced.empty()))
    return badInput("--variant is of the schedules that are chosen; leave out --schedule and "
                    "--schedules, or it");
  const bool isAll = options.schedules == "all";
  std::vector<CheckCase> cases;
  for (CheckCase &check : planner.cases) {
    if (own) {
      check.own = &own->arrays->arrays();
      check.results = own->results;
      for (size_t i = 0; i < own->op.scalars.size(); ++i)
        check.scalars[own->op.scalarNames()[i]] = own->arrays->scalars()[i];
    }
    check.schedule = options.schedule.forced;
    if (*variant) {
      auto variants =
          chooseVariants(makeOperator(check.spec, check.phase), *target, options.schedule);
      if (!variants)
        return variants.takeError();
      if (**variant > variants->size())
        return badInput(fmt::format("--variant: phase {} of {} has {} variant{} on this machine, "
                                    "found {}",
                                    toString(check.phase), check.path, variants->size(),
                                    variants->size() == 1 ? "" : "s", **variant));
      check.schedule =
          (*variants)[**variant - 1].schedule.text(makeOperator(check.spec, check.phase));
    }
    if (!isAll) {
      cases.push_back(check);
      continue;
    }
    const Operator op = makeOperator(check.spec, check.phase);
    for (const Schedule &schedule : scheduleSpace(op, *target)) {
      check.schedule = schedule.text(op);
      cases.push_back(check);
    }
  }
  const std::string cpu = target->cpu;
  Session session(std::move(*target), environmentVerifies(), /*emulates=*/!settings->gpu);
  ExitStatus status = Success;
  if (options.adversarial) {
    for (const CheckCase &check : cases) {
      auto agrees = printAdversarial(session, check, *settings);
      if (!agrees)
        return agrees.takeError();
      status = *agrees ? status : Disagrees;
    }
    return status;
  }
  auto report = options.json ? makeJson(cases, *settings)
                             : makeTable(cases, *settings, cpu, planner.defaults, options.verbose);
  bool hasBegun = false;
  for (size_t i = 0; i < cases.size(); ++i) {
    report->starting(i);
    auto result = runCase(session, cases[i], *settings);
    if (!result && isAll && result.errorIsA<StackError>()) { // one to choose from fewer
      fmt::print(stderr, "normforge: note: {} {}: {}: left out: {}\n", cases[i].path,
                 toString(cases[i].phase), cases[i].schedule, llvm::toString(result.takeError()));
      continue;
    }
    if (!result) {
      report->end(/*complete=*/false);
      return result.takeError();
    }
    if (!hasBegun) // what cannot run at all is an error and no table
      report->begin();
    hasBegun = true;
    report->finished(i, *result);
    if (!result->agrees())
      status = Disagrees;
  }
  report->end(/*complete=*/true);
  if (!hasBegun && !cases.empty())
    return badInput("--schedules all: every one was left out; nothing was checked");
  return status;
}

} // namespace

void declareCheck(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub = app.add_subcommand(
      "check", "Compile and run specs; compare them with oneDNN and an f64 reference");
  sub->add_option(
         "SPEC", options->paths,
         "Specs, or directories of *.yaml; and with one spec, own data: all that its phase "
         "reads, as NAME=FILE.npy or NAME=NUMBER, and results that are to be compared, as "
         "NAME=FILE.npy, or new.NAME=FILE.npy of what is read too")
      ->required()
      ->type_name("PATH");
  addSizeOption(*sub, options->sizes,
                "A named size; may be given several times (default: N=8, T=128)");
  addThreadsOption(*sub, options->threads, "Threads, for oneDNN too");
  addCpuOption(
      *sub, options->target,
      "Compile for this CPU, which must be one that this machine can stand for; a GPU's name "
      "(sm_90): emulated; cuda: the GPU that is there");
  addPhaseOption(*sub, options->phase, "(default: each of a spec's)");
  sub->add_option("--data", options->data,
                  "How inputs are drawn: normal, offset (mean far from 0), constant, outlier or "
                  "denormal, large (default: normal)")
      ->type_name("KIND");
  addSeedOption(*sub, options->seed);
  addScheduleOptions(*sub, options->schedule);
  sub->add_option("--schedules", options->schedules,
                  "all: check every schedule that there is to choose from, one after the other")
      ->type_name("all");
  sub->add_option("--variant", options->variant,
                  "Check this variant, by its number in `normforge explain`, whatever sizes it is "
                  "meant for (default: the one that the sizes choose)")
      ->type_name("NUMBER");
  sub->add_flag("--adversarial", options->adversarial,
                "Instead, print how far our results and oneDNN's are off on data that are hard for "
                "arithmetic");
  addJsonFlag(*sub, options->json);
  sub->add_flag("--verbose", options->verbose,
                "Print every output, its tolerance and the schedule");
  addWideOption(*sub);
  addExamples(*sub, "check specs/resnet50/conv5_block1_1_bn.yaml --size N=2",
              "check specs/bert_base --size N=2 --size T=16 --phase training --json");
  sub->callback([options, &status] {
    auto result = run(*options);
    status = result ? static_cast<int>(*result) : report(result.takeError());
  });
}

} // namespace normforge::cli
