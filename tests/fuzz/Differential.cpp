// The program `normforge_differential`: random specs, each compiled for several CPUs and run in
// several ways; every result against the f64 reference, the bits of one CPU's runs against each
// other. What fails is made smaller and left as a file, with the command that repeats it.
//
// Spec I of seed S depends on S and I alone, and so do its inputs and splits.
#include "tests/fuzz/Reduce.h"
#include "tests/fuzz/Trial.h"
#include "tests/numerics/SpecDraw.h"

#include "compiler/cli/Command.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fstream>
#include <random>

using namespace normforge;
using namespace normforge::test;

namespace {

/// A reduction that is not done by then has a small spec all the same.
constexpr double kSecondsToReduce = 200; // a busy machine takes 50

struct Options {
  std::string program; ///< as it was called, for the commands that it prints
  std::optional<uint64_t> seconds, specs, seed, only;
  uint64_t failures = 10;
  std::vector<std::string> cpus{"native", "haswell", "x86-64-v2", "skylake-avx512"};
  std::string yaml, phase, inject;
  std::vector<std::string> sizes;
};

class Differential {
public:
  Differential(const Options &options, std::vector<std::string> cpus, uint64_t seed)
      : options_(options), cpus_(std::move(cpus)), seed_(seed),
        injection_(parseInjection(options.inject).value_or(Injection::None)) {}

  /// Specs from number `first` on.
  void runDrawn(uint64_t first, uint64_t count) {
    for (uint64_t i = first; count-- > 0 && !isOver(); ++i)
      runOne(i);
  }

  /// The spec of a file: all that it says is reported, nothing reduced.
  llvm::Error runFile(const oracle::Sizes &sizes) {
    auto spec = readSpec(options_.yaml);
    if (!spec)
      return spec.takeError();
    auto phases = cli::choosePhases(*spec, options_.yaml, options_.phase);
    if (!phases)
      return phases.takeError();
    std::vector<std::string> names, missing;
    for (const auto &[name, size] : sizes)
      names.push_back(name);
    cli::orderSizes(spec->sizeNames(), sizes, missing);
    if (!missing.empty() || names.size() != spec->sizeNames().size())
      return cli::badInput(fmt::format("--size: {} has the sizes [{}], and [{}] are given",
                                       options_.yaml, fmt::join(spec->sizeNames(), ", "),
                                       fmt::join(names, ", ")));
    std::ifstream file(options_.yaml);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    if (const Outcome outcome = run({text, sizes, *phases, cpus_, seed_}); count(outcome))
      fmt::print("{}: {}\n{}\n", options_.yaml, toString(outcome.fault), outcome.text);
    return llvm::Error::success();
  }

  /// The last line, and whether nothing failed.
  bool report() const {
    fmt::print("{} specs, {} kernel runs, {} failures in {:.1f} s, seed {}\n", specs_, runs_,
               failures_, elapsed(), seed_);
    return failures_ == 0;
  }

private:
  Outcome run(const Trial &trial) const { return runTrial(trial, injection_); }

  bool count(const Outcome &outcome) {
    ++specs_;
    runs_ += outcome.runs;
    failures_ += outcome ? 1 : 0;
    return static_cast<bool>(outcome);
  }

  double elapsed() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  bool isOver() const {
    return failures_ >= options_.failures ||
           (options_.seconds && elapsed() >= static_cast<double>(*options_.seconds));
  }

  void runOne(uint64_t i) {
    // An odd factor: specs of one seed are not those of the next, moved by one.
    const uint64_t seed = seed_ * 1000003 + i;
    const Candidate drawn{drawnWithPhase(seed), cpus_};
    auto runCandidate = [&](const Candidate &candidate) {
      const DrawnSpec &spec = candidate.spec;
      return run({spec.yaml(), spec.sizes(), spec.phases, candidate.cpus, seed});
    };
    const Outcome outcome = runCandidate(drawn);
    if (!count(outcome))
      return;
    fmt::print("spec {}: {}\n{}\n", i, toString(outcome.fault), outcome.text);
    print(drawn);
    if (!runCandidate(drawn).isLike(outcome)) {
      fmt::print("It does not fail in the same way again, and is not reduced; to try more: {} "
                 "--seed {} --only {}\n\n",
                 cli::shellWord(options_.program), seed_, i);
      return;
    }
    const Reduction reduction = reduce(drawn, outcome, runCandidate, kSecondsToReduce);
    fmt::print("reduced in {} trials{} to: {}\n{}\n", reduction.tried,
               reduction.outOfTime ? ", out of time," : "", toString(reduction.outcome.fault),
               reduction.outcome.text);
    print(reduction.smallest);
    keep(reduction.smallest, seed, fmt::format("failure-{}-{}.yaml", seed_, i));
  }

  DrawnSpec drawnWithPhase(uint64_t seed) const {
    DrawnSpec spec = SpecDraw(seed).draw();
    if (!options_.phase.empty())
      spec.phases = {*parsePhase(options_.phase)};
    return spec;
  }

  static void print(const Candidate &candidate) {
    std::string text = "  " + candidate.spec.yaml();
    text.pop_back(); // the last line's end
    for (size_t at = 0; (at = text.find('\n', at)) != std::string::npos; at += 3)
      text.replace(at, 1, "\n  ");
    for (const auto &[name, size] : candidate.spec.sizes())
      text += fmt::format("\n  # {}={}", name, size);
    fmt::print("{}\n  # for {}\n", text, fmt::join(candidate.cpus, ","));
  }

  /// Leaves the spec as a file and prints the command that fails with it.
  void keep(const Candidate &candidate, uint64_t seed, const std::string &path) const {
    std::ofstream file(path);
    file << candidate.spec.yaml();
    file.close();
    if (!file)
      fmt::print("{} cannot be written\n", path);
    std::string command = fmt::format("{} --yaml {} --cpus {}", cli::shellWord(options_.program),
                                      path, fmt::join(candidate.cpus, ","));
    if (candidate.spec.phases.size() == 1)
      command += fmt::format(" --phase {}", toString(candidate.spec.phases.front()));
    for (const auto &[name, size] : candidate.spec.sizes())
      command += fmt::format(" --size {}={}", name, size);
    command += fmt::format(" --seed {}", seed);
    if (injection_ != Injection::None)
      command += fmt::format(" --inject {}", toString(injection_));
    fmt::print("repeat: {}\n\n", command);
  }

  const Options &options_;
  const std::vector<std::string> cpus_;
  const uint64_t seed_;
  const Injection injection_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  uint64_t specs_ = 0, runs_ = 0, failures_ = 0;
};

/// The parser itself would read -1 as 2^64 - 1.
CLI::Validator wholeNumber(uint64_t least) {
  auto problem = [least](const std::string &word) {
    auto number = cli::parseNumber("", word, least, UINT64_MAX);
    if (number)
      return std::string();
    llvm::consumeError(number.takeError());
    return fmt::format("expected a whole number of at least {}, found '{}'", least, word);
  };
  return CLI::Validator(problem, "");
}

void declare(CLI::App &app, Options &options) {
  const CLI::Validator atLeast0 = wholeNumber(0), atLeast1 = wholeNumber(1);
  app.set_help_flag("-h,--help", "Print this help");
  app.add_option("--seconds", options.seconds, "Draw specs for S seconds")
      ->type_name("S")
      ->check(atLeast0);
  app.add_option("--specs", options.specs, "Draw N specs; 100 where no time is given either")
      ->type_name("N")
      ->check(atLeast0);
  auto *seed =
      app.add_option("--seed", options.seed, "Draw with seed N; a new one each time by default")
          ->type_name("N")
          ->check(atLeast0);
  auto *only = app.add_option("--only", options.only, "Draw spec I of the seed alone")
                   ->type_name("I")
                   ->check(atLeast0)
                   ->needs(seed);
  app.add_option("--failures", options.failures, "Stop after N specs that fail")
      ->capture_default_str()
      ->type_name("N")
      ->check(atLeast1);
  app.add_option("--cpus", options.cpus, "Compile for these CPUs")
      ->capture_default_str()
      ->type_name("CPU,...")
      ->delimiter(',');
  app.add_option("--phase", options.phase, "Run this phase alone")->type_name("P");
  auto *yaml =
      app.add_option("--yaml", options.yaml, "Run the spec of a file instead of drawn ones")
          ->type_name("FILE")
          ->excludes(only);
  app.add_option("--size", options.sizes, "Set a named size of the file's spec")
      ->type_name("NAME=N")
      ->needs(yaml);
  app.add_option("--inject", options.inject,
                 fmt::format("Make a fault on purpose: {}", injectionNames()))
      ->type_name("KIND");
  app.footer("Exit status: 0 nothing failed; 1 a spec failed; 2 bad input.\n"
             "Examples:\n"
             "  build/bin/normforge_differential --seconds 600\n"
             "  build/bin/normforge_differential --seed 7 --only 3 --cpus haswell");
}

int run(const Options &options) {
  if (!options.phase.empty() && !parsePhase(options.phase))
    return cli::report(cli::badInput("--phase: expected " + cli::phaseChoices() + ", found '" +
                                     options.phase + "'"));
  if (!options.inject.empty() && !parseInjection(options.inject))
    return cli::report(cli::badInput(
        fmt::format("--inject: expected one of {}, found '{}'", injectionNames(), options.inject)));
  auto sizes = cli::parseSizes(options.sizes);
  if (!sizes)
    return cli::report(sizes.takeError());
  const std::vector<std::string> cpus = runnableCpus(options.cpus);
  if (cpus.empty()) {
    fmt::print("SKIP: this machine can run kernels for none of {}\n",
               fmt::join(options.cpus, ", "));
    return cli::Success;
  }

  const uint64_t seed = options.seed.value_or(std::random_device{}());
  // At once, for a run that never reaches its last line.
  fmt::print("seed {}, CPUs {}\n", seed, fmt::join(cpus, ","));
  Differential differential(options, cpus, seed);
  if (!options.yaml.empty()) {
    if (llvm::Error error = differential.runFile(*sizes))
      return cli::report(std::move(error));
  } else if (options.only) {
    differential.runDrawn(*options.only, 1);
  } else {
    differential.runDrawn(0, options.specs.value_or(options.seconds ? UINT64_MAX : 100));
  }
  return differential.report() ? cli::Success : cli::Disagrees;
}

} // namespace

int main(int argc, char **argv) {
  Options options;
  options.program = argv[0];
  CLI::App app("Compiles random specs for several CPUs and compares their results.",
               "normforge_differential");
  declare(app, options);
  try {
    app.parse(argc, argv);
    return run(options);
  } catch (const CLI::Success &asked) { // --help
    return app.exit(asked);
  } catch (const std::exception &error) { // the command line, a CPU that LLVM does not know
    return cli::report(cli::badInput(error.what()));
  }
}
