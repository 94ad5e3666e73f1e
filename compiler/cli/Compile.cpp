// `normforge compile`: a kernel's text or code at any stage of the compilation.
#include "compiler/cli/Command.h"
#include "compiler/cli/Files.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <unistd.h>

namespace normforge::cli {

namespace {

struct Options {
  std::string spec, emit, cpu, phase, output, variant;
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

llvm::Error run(const Options &options) {
  auto stage = chooseStage(options.emit);
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

  std::vector<size_t> chosen;
  for (size_t i = 0; i < count; ++i)
    if (!*which || **which == i + 1)
      chosen.push_back(i);
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
  CLI::App *sub = app.add_subcommand("compile", "Print a kernel at a stage of its compilation");
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
  sub->add_option("-o", options->output, "Write this file instead of standard output")
      ->type_name("FILE");
  sub->callback([options, &status] {
    if (llvm::Error error = run(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
