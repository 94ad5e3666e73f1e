// `normforge compile`: a kernel's text or code at any stage of the compilation.
#include "compiler/cli/Command.h"
#include "compiler/cli/Files.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <unistd.h>

namespace normforge::cli {

namespace {

struct Options {
  std::string spec, emit, cpu, phase, output, variant;
  bool time = false;
};

const char *commentMark(EmitStage stage) {
  switch (stage) {
  case EmitStage::Llvm:
    return ";";
  case EmitStage::Assembly:
    return "#";
  default:
    return "//";
  }
}

llvm::Expected<EmitStage> chooseStage(const std::string &word) {
  const std::optional<EmitStage> stage = parseEmitStage(word);
  if (stage)
    return *stage;
  const std::string expected = fmt::format("expected one of: {}", emitStageNames());
  return badInput(word.empty() ? fmt::format("--emit is missing: {}", expected)
                               : fmt::format("--emit: {}, found '{}'", expected, word));
}

/// The median of each step and of the sums over some compilations.
CompileTimes medianOf(std::vector<CompileTimes> times) {
  CompileTimes median;
  for (double CompileTimes::*step :
       {&CompileTimes::lower, &CompileTimes::passes, &CompileTimes::convert,
        &CompileTimes::translate, &CompileTimes::optimize, &CompileTimes::codegen,
        &CompileTimes::image}) {
    std::sort(times.begin(), times.end(),
              [&](const CompileTimes &a, const CompileTimes &b) { return a.*step < b.*step; });
    median.*step = times[times.size() / 2].*step;
  }
  return median;
}

/// How long each step takes, for each variant: the first compilation of the process apart, then
/// medians.
llvm::Error printTimes(const Operator &op, const std::vector<ScheduleVariant> &variants,
                       const std::vector<size_t> &chosen, const TargetDescription &target) {
  constexpr int kRounds = 11;
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  Session session(target);
  const std::chrono::duration<double, std::milli> made = Clock::now() - start;
  auto row = [](const std::string &name, const CompileTimes &t) {
    fmt::print("{:<16} {:>7.2f} {:>7.2f} {:>7.2f} {:>9.2f} {:>8.2f} {:>7.2f} {:>7.2f} {:>7.2f}\n",
               name, t.lower, t.passes, t.convert, t.translate, t.optimize, t.codegen, t.image,
               t.total());
  };
  fmt::print("ms; a session took {:.2f}\n", made.count());
  fmt::print("{:<16} {:>7} {:>7} {:>7} {:>9} {:>8} {:>7} {:>7} {:>7}\n", "", "lower", "passes",
             "convert", "translate", "optimize", "codegen", "image", "sum");
  for (size_t i : chosen) {
    const ScheduleVariant always{variants[i].schedule, Guard{}, variants[i].reason};
    std::vector<CompileTimes> times;
    for (int round = 0; round <= kRounds; ++round) {
      CompileTimes spent;
      auto artifact = session.compile(op, always, &spent);
      if (!artifact)
        return internalError(artifact.takeError());
      if (round > 0)
        times.push_back(spent);
      else if (i == chosen.front())
        row("first", spent);
    }
    row(fmt::format("variant {} of {}", i + 1, variants.size()), medianOf(std::move(times)));
  }
  return llvm::Error::success();
}

llvm::Error run(const Options &options) {
  if (options.time && !(options.emit.empty() && options.output.empty()))
    return badInput("--time prints times; leave out --emit and -o, or --time");
  llvm::Expected<EmitStage> stage = EmitStage::Object;
  if (!options.time)
    stage = chooseStage(options.emit);
  if (!stage)
    return stage.takeError();
  auto target = chooseTarget(options.cpu);
  if (!target)
    return target.takeError();
  auto spec = readSpec(options.spec);
  if (!spec)
    return spec.takeError();
  auto phase = choosePhase(*spec, options.spec, options.phase);
  if (!phase)
    return phase.takeError();

  const Operator op = makeOperator(*spec, *phase);
  std::vector<ScheduleVariant> variants = selectSchedules(op, *target);
  const size_t count = variants.size();
  auto which = parseNumber("--variant", options.variant, 1, count);
  if (!which)
    return which.takeError();
  auto title = [&](size_t i) {
    return fmt::format("variant {} of {}, {}: {}", i + 1, count,
                       describeGuard(variants, i, op.sizes), variants[i].schedule.text());
  };
  std::vector<size_t> chosen;
  for (size_t i = 0; i < count; ++i)
    if (!*which || **which == i + 1)
      chosen.push_back(i);
  if (options.time)
    return printTimes(op, variants, chosen, *target);
  // Variants are objects of their own: their functions have the same names.
  if (*stage == EmitStage::Object && count > 1 && !*which) {
    std::string text = fmt::format("the kernel has {} variants, each an object file of its own; "
                                   "choose one with --variant",
                                   count);
    for (size_t i = 0; i < count; ++i)
      text += "\n  " + title(i);
    return badInput(text);
  }
  if (*stage == EmitStage::Object && options.output.empty() && isatty(STDOUT_FILENO))
    return badInput("an object file is not for a terminal; name a file with -o, or a pipe");

  std::vector<ScheduleVariant> emitted;
  for (size_t i : chosen)
    emitted.push_back(variants[i]);
  // What is read by people is verified; it costs little beside printing.
  Session session(*target, /*verify=*/true);
  auto texts = session.emit(op, emitted, *stage);
  if (!texts)
    return internalError(texts.takeError());

  std::string all;
  for (size_t i = 0; i < chosen.size(); ++i) {
    // mlir-opt's mark between the modules of one file (--split-input-file).
    if (i > 0 && std::string_view(commentMark(*stage)) == "//")
      all += "// -----\n";
    if (*stage != EmitStage::Object && count > 1)
      all += fmt::format("{} {}\n", commentMark(*stage), title(chosen[i]));
    all += (*texts)[i];
    if (*stage != EmitStage::Object && !all.empty() && all.back() != '\n')
      all += '\n';
  }
  if (!options.output.empty()) {
    llvm::Error error = writeFiles(FileToWrite{options.output, "", all});
    return error ? located(std::move(error)) : llvm::Error::success();
  }
  std::fwrite(all.data(), 1, all.size(), stdout);
  return llvm::Error::success();
}

} // namespace

void declareCompile(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub = app.add_subcommand(
      "compile", "Print a kernel at a stage of its compilation, or what each costs");
  sub->add_option("SPEC", options->spec, "The spec, a YAML file")->required()->type_name("PATH");
  sub->add_option("--emit", options->emit, fmt::format("One of: {}", emitStageNames()))
      ->type_name("STAGE");
  sub->add_option("--cpu", options->cpu,
                  "LLVM's name of the CPU; `normforge targets` lists them "
                  "(default: native)")
      ->type_name("CPU");
  sub->add_option("--phase", options->phase, "inference or training (default: the spec's first)")
      ->type_name("PHASE");
  sub->add_option("--variant", options->variant,
                  "The number of one variant, as `normforge explain` shows them (default: all, one "
                  "after the other; other tools read one at a time)")
      ->type_name("NUMBER");
  sub->add_flag("--time", options->time,
                "Print how long each step of the compilation takes, instead of a stage");
  sub->add_option("-o", options->output, "Write this file instead of standard output")
      ->type_name("FILE");
  sub->callback([options, &status] {
    if (llvm::Error error = run(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
