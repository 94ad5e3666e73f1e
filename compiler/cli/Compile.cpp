// `normforge compile`: a kernel's text at any stage of the compilation, and files for other
// programs.
#include "compiler/cli/Export.h"
#include "compiler/cli/Files.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "compiler/export/Tool.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>

namespace normforge::cli {

namespace {

struct Options {
  std::vector<std::string> specs, emit;
  TargetOptions target;
  std::string phase, output, variant;
  ScheduleOptions schedule;
  bool time = false;
};

const char *commentMark(EmitStage stage, bool isGpu) {
  switch (stage) {
  case EmitStage::Llvm:
    return ";";
  case EmitStage::Assembly:
    return isGpu ? "//" : "#";
  default:
    return "//";
  }
}

std::string expectedKinds() {
  return fmt::format("expected a stage of the compilation ({}), or kinds of files ({})",
                     emitStageNames(), fileKindNames());
}

/// The one stage that --emit names, or nothing where it names kinds of files.
llvm::Expected<std::optional<EmitStage>> chooseStage(const Options &options,
                                                     std::vector<FileKind> &kinds) {
  if (options.emit.empty())
    return badInput("--emit is missing: " + expectedKinds());
  std::optional<EmitStage> stage;
  for (const std::string &word : options.emit) {
    const auto kind = parseFileKind(word);
    if (kind)
      kinds.push_back(*kind);
    if (const auto found = parseEmitStage(word))
      stage = *found;
    else if (!kind)
      return badInput(fmt::format("--emit: {}, found '{}'", expectedKinds(), word));
  }
  // Assembly is both: printed for people, a variant after the other; and a file that assembles.
  const bool isFile = !kinds.empty() && !options.output.empty() && options.variant.empty();
  if (options.emit.size() == 1)
    return stage && !isFile ? stage : std::nullopt;
  if (kinds.size() < options.emit.size())
    return badInput("--emit: a stage of the compilation is printed alone; only files (" +
                    std::string(fileKindNames()) + ") go together");
  return std::optional<EmitStage>();
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
  Session session(target, environmentVerifies());
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

llvm::Error run(Options &options) {
  if (llvm::Error error = options.schedule.read())
    return error;
  if (options.time && !(options.emit.empty() && options.output.empty()))
    return badInput("--time prints times; leave out --emit and -o, or --time");
  std::optional<EmitStage> stage;
  if (!options.time) {
    std::vector<FileKind> kinds;
    auto chosen = chooseStage(options, kinds);
    if (!chosen)
      return chosen.takeError();
    stage = *chosen;
    if (!stage) {
      if (!options.variant.empty())
        return badInput("--variant: a file holds all variants; leave it out, or print a stage");
      return exportKernels({options.specs, options.target, options.phase, options.schedule,
                            std::move(kinds), options.output});
    }
  }
  if (options.specs.size() > 1 || options.target.cpus.size() > 1)
    return badInput(fmt::format("{} {} of one spec for one CPU; files ({}) may be of several",
                                options.time ? "--time" : "--emit=" + options.emit.front(), "is",
                                fileKindNames()));
  const std::string &path = options.specs.front();
  options.target.takesGpus = !options.time;
  auto target = chooseTarget(options.target);
  if (!target)
    return target.takeError();
  auto spec = readSpec(path, parsePhase(options.phase));
  if (!spec)
    return spec.takeError();
  auto phase = choosePhase(*spec, path, options.phase);
  if (!phase)
    return phase.takeError();

  const Operator op = makeOperator(*spec, *phase);
  auto choice = chooseVariants(op, *target, options.schedule);
  if (!choice)
    return choice.takeError();
  std::vector<ScheduleVariant> &variants = *choice;
  const size_t count = variants.size();
  auto which = parseNumber("--variant", options.variant, 1, count);
  if (!which)
    return which.takeError();
  auto title = [&](size_t i) {
    return fmt::format("variant {} of {}, {}: {}", i + 1, count,
                       describeGuard(variants, i, op.sizes), variants[i].schedule.text(op));
  };
  std::vector<size_t> chosen;
  for (size_t i = 0; i < count; ++i)
    if (!*which || **which == i + 1)
      chosen.push_back(i);
  if (options.time)
    return printTimes(op, variants, chosen, *target);
  std::vector<ScheduleVariant> emitted;
  for (size_t i : chosen)
    emitted.push_back(variants[i]);
  const std::string &kind = options.emit.front();
  const bool isCubin = kind == "cubin";
  if (*stage == EmitStage::Assembly && target->device.has_value() == (kind == "asm"))
    return badInput(fmt::format("--emit={}: expected {} for {}", kind,
                                target->device ? "ptx or cubin" : "asm", target->cpu));
  if (isCubin && emitted.size() > 1)
    return badInput(fmt::format("--emit=cubin: a file has one variant of {}; expected --variant 1 "
                                "to {}",
                                count, count));
  if (isCubin && options.output.empty())
    return badInput("--emit=cubin: machine code is not printed; expected -o FILE");
  // What is read by people is verified; it costs little beside printing.
  Session session(*target, /*verify=*/true);
  auto texts = session.emit(op, emitted, *stage);
  if (!texts)
    return internalError(texts.takeError());

  std::string all;
  if (isCubin) {
    auto code = assembleForDevice(texts->front(), target->cpu);
    if (!code)
      return badInput("--emit=cubin: " + llvm::toString(code.takeError()));
    all = std::move(*code);
  }
  for (size_t i = 0; !isCubin && i < chosen.size(); ++i) {
    // mlir-opt's mark between the modules of one file (--split-input-file).
    if (i > 0 && *stage <= EmitStage::LlvmMlir)
      all += "// -----\n";
    if (count > 1)
      all +=
          fmt::format("{} {}\n", commentMark(*stage, target->device.has_value()), title(chosen[i]));
    all += (*texts)[i];
    if (!all.empty() && all.back() != '\n')
      all += '\n';
  }
  if (!options.output.empty()) {
    if (!overwritten(path, options.output).empty())
      return badInput(
          fmt::format("-o: {} is the spec that was read; it is left as it is", options.output));
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
      "compile", "Write kernels as files for other programs, or print one at a stage of its "
                 "compilation, or what each costs");
  sub->add_option("SPECS", options->specs,
                  "Specs, YAML files; directories of them for files for other programs")
      ->required()
      ->type_name("PATH");
  sub->add_option("--emit", options->emit,
                  fmt::format("Files, one or several: {}; or a stage, printed: {}", fileKindNames(),
                              emitStageNames()))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("KIND[,KIND]");
  addCpusOption(*sub, options->target,
                "LLVM's name of the CPU, of those that `normforge targets` lists; several for a "
                "library, which chooses when it is loaded");
  addMachineOption(*sub, options->target);
  addPhaseOption(*sub, options->phase,
                 "(default: all of the spec's in a file; the first, printed)");
  sub->add_option("--variant", options->variant,
                  "The number of one variant, as `normforge explain` shows them (default: all, one "
                  "after the other; other tools read one at a time)")
      ->type_name("NUMBER");
  sub->add_flag("--time", options->time,
                "Print how long each step of the compilation takes, instead of a stage");
  sub->add_option("-o", options->output,
                  "Write this file instead of standard output; a directory (with / at its end, or "
                  "there already) gets files named after each spec")
      ->type_name("PATH");
  addScheduleOptions(*sub, options->schedule);
  addExamples(
      *sub, "compile specs/bert_base/layer_norm.yaml --emit=vector",
      "compile examples/ahead.yaml --emit=so,header --cpu haswell,skylake-avx512 -o build/");
  sub->callback([options, &status] {
    if (llvm::Error error = run(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
