// `normforge check`: compiles specs, runs them on drawn data, and compares with oneDNN and with the
// f64 reference.
#include "compiler/cli/Adversarial.h"
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
  std::string threads, phase, seed, data, schedules;
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

class Planner {
public:
  Planner(const NamedSizes &given, const std::string &phase) : given_(given), phase_(phase) {}

  llvm::Error add(const std::string &path, const Spec &spec) {
    std::vector<Phase> phases = spec.phases;
    if (!phase_.empty()) {
      const std::optional<Phase> phase = parsePhase(phase_);
      if (!phase)
        return badInput(fmt::format("--phase: expected {}, found '{}'", phaseChoices(), phase_));
      if (!spec.hasPhase(*phase))
        return llvm::Error::success();
      phases = {*phase};
    }
    CheckCase check{path, spec, Phase::Inference, {}, {}};
    std::vector<std::string> missing;
    for (const std::string &name : spec.sizeNames()) {
      used_.push_back(name);
      if (const auto found = given_.find(name); found != given_.end()) {
        check.sizes[name] = found->second;
        continue;
      }
      const std::optional<int64_t> fallback = defaultSize(name);
      if (!fallback) {
        missing.push_back(name);
        continue;
      }
      check.sizes[name] = *fallback;
      if (std::string text = fmt::format("{}={}", name, *fallback);
          !llvm::is_contained(defaults, text))
        defaults.push_back(std::move(text));
    }
    if (!missing.empty())
      return badInput(fmt::format("{}: no value for size {}; give it with --size {}=VALUE (named "
                                  "sizes of this spec: {})",
                                  path, fmt::join(missing, ", "), missing.front(),
                                  fmt::join(spec.sizeNames(), ", ")));
    for (Phase phase : phases) {
      check.phase = phase;
      check.scalars = oracle::usualNumbers(spec, phase);
      cases.push_back(check);
    }
    return llvm::Error::success();
  }

  /// What was asked for and concerns nothing.
  llvm::Error finish() const {
    if (cases.empty())
      return badInput(fmt::format("--phase: no spec given has phase {}", phase_));
    for (const auto &[name, value] : given_)
      if (!llvm::is_contained(used_, name)) {
        std::vector<std::string> names = used_;
        llvm::sort(names);
        names.erase(std::unique(names.begin(), names.end()), names.end());
        return badInput(fmt::format(
            "--size: no spec given has a size '{}'; {}", name,
            names.empty() ? "all sizes are numbers"
                          : fmt::format("the named sizes are {}", fmt::join(names, ", "))));
      }
    return llvm::Error::success();
  }

  std::vector<CheckCase> cases;
  std::vector<std::string> defaults; ///< "N=8"

private:
  const NamedSizes &given_;
  const std::string &phase_;
  std::vector<std::string> used_;
};

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
  auto target = chooseTarget(options.target);
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
  Planner planner(*sizes, options.phase);
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
  Session session(std::move(*target), environmentVerifies());
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
  addCpuOption(*sub, options->target,
               "Compile for this CPU, which must be one that this machine can stand for");
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
