// `normforge pack`: all kernels of a model in one file, and what is in such a file.
#include "runtime/pack/Pack.h"
#include "compiler/cli/Command.h"
#include "compiler/cli/Files.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "runtime/kernel/Kernel.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <map>
#include <memory>

namespace normforge::cli {

namespace {

struct Options {
  std::vector<std::string> specs;
  TargetOptions target;
  std::string phase, output, list;
  ScheduleOptions schedule;
};

/// What a file of kernels is, a line a kernel and CPU; every artifact is read.
llvm::Error list(const std::string &path) {
  Failure failure;
  const auto pack = Pack::open(path, failure);
  if (!pack)
    return badInput(failure.message);
  llvm::Error errors = llvm::Error::success();
  std::map<uint64_t, uint64_t> distinct; // bytes by offset
  size_t names = 0, phases = 0, cpus = 0;
  for (const Pack::Entry &entry : pack->entries()) {
    names = std::max(names, entry.name.size());
    phases = std::max(phases, entry.phase.size());
    cpus = std::max(cpus, entry.cpu.size());
  }
  Columns columns({{.title = "kernel", .width = names},
                   {.title = "phase", .width = phases},
                   {.title = "machine", .width = 8, .importance = 1},
                   {.title = "cpu", .width = cpus},
                   {.title = "bytes", .width = 8, .isNumber = true, .importance = 2},
                   {.title = "code", .width = std::size("123456 in 3 variants") - 1}});
  fmt::print("{}", columns.titles());
  for (const Pack::Entry &entry : pack->entries()) {
    Artifact artifact;
    if (!pack->read(entry, artifact, failure)) {
      errors = llvm::joinErrors(std::move(errors), badInput(path + ": " + failure.message));
      continue;
    }
    const bool isNew = distinct.emplace(entry.offset, entry.bytes).second;
    size_t code = 0;
    std::string records; // that schedules are from
    for (const Variant &variant : artifact.variants) {
      code += variant.image.bytes.size();
      if (llvm::StringRef(variant.reason).starts_with("tuned: "))
        records += fmt::format("; {}", variant.reason);
    }
    printFolded("{}",
                columns.row({entry.name, entry.phase, std::string(architectureOf(entry.triple)),
                             entry.cpu, std::to_string(entry.bytes),
                             fmt::format("{} in {} variant{}{}{}", code, artifact.variants.size(),
                                         artifact.variants.size() == 1 ? "" : "s",
                                         isNew ? "" : ", shared with another", records)}));
  }
  uint64_t bytes = 0;
  for (const auto &[offset, size] : distinct)
    bytes += size;
  printFolded("{}", columns.leftOut());
  fmt::print("{} kernels, {} of them distinct code, {} bytes\n", pack->entries().size(),
             distinct.size(), bytes);
  return errors;
}

/// That what is about to be written can be read: every kernel of it.
llvm::Error readBack(const std::vector<std::byte> &bytes, size_t kernels) {
  Failure failure;
  const auto pack = Pack::open(bytes, failure);
  bool isWhole = pack && pack->entries().size() == kernels;
  for (size_t i = 0; isWhole && i < kernels; ++i) {
    Artifact artifact;
    isWhole = pack->read(pack->entries()[i], artifact, failure);
  }
  return isWhole ? llvm::Error::success()
                 : llvm::createStringError(
                       "internal error: the pack that was made cannot be read: " + failure.message);
}

llvm::Error run(Options &options) {
  if (llvm::Error error = options.schedule.read())
    return error;
  if (!options.list.empty()) {
    if (!options.specs.empty() || !options.output.empty() || !options.target.cpus.empty() ||
        !options.phase.empty() || !options.target.caches.empty() || !options.schedule.tuned.empty())
      return badInput("--list shows a pack; leave out specs, --cpu, --cache, --phase, --tuned and "
                      "-o, or --list");
    return list(options.list);
  }
  if (options.specs.empty())
    return badInput("specs are missing; expected files or directories of them, or --list FILE");
  if (options.output.empty())
    return badInput("-o is missing; expected the pack's file, such as -o model.nfk");
  auto targets = chooseTargets(options.target);
  if (!targets)
    return targets.takeError();
  std::vector<std::unique_ptr<Session>> sessions;
  for (TargetDescription &target : *targets)
    sessions.push_back(std::make_unique<Session>(std::move(target), environmentVerifies()));
  auto paths = findSpecs(options.specs);
  if (!paths)
    return paths.takeError();
  if (const std::string path = overwritten(*paths, options.output); !path.empty())
    return badInput(fmt::format("-o: {} is a spec that was read; it is left as it is", path));
  auto specs = readSpecs(*paths);
  if (!specs)
    return specs.takeError();
  if (llvm::Error error = checkDistinctNames(*paths, *specs))
    return error;

  std::vector<PackedKernel> kernels;
  std::map<std::string, Artifact> compiled; // by all that the code depends on
  for (size_t i = 0; i < specs->size(); ++i) {
    const Spec &spec = (*specs)[i];
    auto phases = choosePhases(spec, (*paths)[i], options.phase);
    if (!phases)
      return phases.takeError();
    for (Phase phase : *phases)
      for (const auto &session : sessions) {
        const std::string key =
            fmt::format("{} {}\n{}", toString(phase), session->target().cpu, canonicalText(spec));
        auto found = compiled.find(key);
        if (found == compiled.end()) {
          const Operator op = makeOperator(spec, phase);
          auto artifact = compileOperator(*session, op, options.schedule);
          if (!artifact)
            return artifact.takeError();
          found = compiled.emplace(key, std::move(*artifact)).first;
        }
        kernels.push_back({spec.name, found->second, session->target().instructionSets()});
      }
  }
  const std::vector<std::byte> bytes = writePack(kernels);
  if (llvm::Error error = readBack(bytes, kernels.size()))
    return internalError(std::move(error));
  llvm::Error error = writeFiles(FileToWrite{
      options.output, "", {reinterpret_cast<const char *>(bytes.data()), bytes.size()}});
  return error ? located(std::move(error)) : llvm::Error::success();
}

} // namespace

void declarePack(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  options->target.takesGpus = true;
  CLI::App *sub = app.add_subcommand(
      "pack", "Compile kernels into one file that a program loads without the compiler");
  sub->add_option("SPECS", options->specs, "Specs, YAML files, or directories of them")
      ->type_name("PATH");
  addCpusOption(
      *sub, options->target,
      "LLVM's names of CPUs, of any machines, and of GPUs; the one that fits best is chosen when a "
      "kernel is loaded");
  addPhaseOption(*sub, options->phase, "(default: all of each spec)");
  sub->add_option("-o", options->output, "The file to write, such as model.nfk")->type_name("FILE");
  addTunedOption(*sub, options->schedule);
  sub->add_option("--list", options->list, "Show and check what a pack holds")->type_name("FILE");
  addWideOption(*sub);
  addExamples(*sub, "pack specs/bert_base --cpu haswell,neoverse-n1 -o build/bert.nfk",
              "pack --list build/bert.nfk");
  sub->callback([options, &status] {
    if (llvm::Error error = run(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
