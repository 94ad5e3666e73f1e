// `normforge run`: computes one phase of a spec from NumPy files into NumPy files, or what a layer
// begins with.
#include "compiler/cli/Command.h"
#include "compiler/cli/Files.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/NamedArrays.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "compiler/oracle/Oracle.h"
#include "compiler/spec/Initialize.h"
#include "compiler/spec/Npy.h"
#include "normforge/openmp.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <set>

namespace normforge::cli {

namespace {

struct Options {
  TargetOptions target;
  std::string spec, phase, threads, seed;
  ScheduleOptions schedule;
  std::vector<std::string> inputs, outputs, sizes;
};

/// Files by the outputs that -o names: each one that there is, one at least, none twice.
llvm::Expected<std::map<std::string, std::string>>
readOutputs(const std::vector<std::string> &words, const std::string &subject,
            const std::string &writes, llvm::function_ref<bool(const std::string &)> isOutput) {
  std::map<std::string, std::string> outputs;
  std::set<std::string> files;
  for (const std::string &word : words) {
    auto pair = parseNamedText(word, "FILE.npy");
    if (!pair)
      return pair.takeError();
    if (!isOutput(pair->name))
      return badInput(fmt::format("-o: {} has no output '{}'; {}", subject, pair->name, writes));
    if (!outputs.emplace(pair->name, pair->text).second)
      return badInput(fmt::format("-o: output {} is given twice", pair->name));
    if (!files.insert(fileOf(pair->text)).second)
      return badInput(fmt::format("-o: {} is named for two outputs", pair->text));
    if (llvm::sys::fs::exists(pair->text) && !llvm::sys::fs::is_regular_file(pair->text))
      return located(llvm::createStringError(fmt::format(
          "{}: error: expected a file to write, found {}", pair->text,
          llvm::sys::fs::is_directory(pair->text) ? "a directory" : "a device or pipe")));
  }
  if (outputs.empty())
    return badInput(fmt::format("no output is named with -o NAME=FILE.npy; {}", writes));
  return outputs;
}

/// Writes each array to its file, all of them or none.
llvm::Error writeArrays(const std::vector<std::pair<std::string, HostArray>> &arrays) {
  std::vector<FileToWrite> files;
  for (const auto &[path, array] : arrays) {
    auto head = npyHead(array);
    if (!head)
      return located(head.takeError());
    files.push_back({path, std::move(*head), bytesOf(array)});
  }
  llvm::Error error = writeFiles(files);
  return error ? located(std::move(error)) : llvm::Error::success();
}

llvm::Error writeOutputs(const std::map<std::string, std::string> &outputs, const Operator &op,
                         const KernelCall &call) {
  std::vector<std::pair<std::string, HostArray>> arrays;
  for (const auto &[name, path] : outputs)
    arrays.emplace_back(path, oracle::outputOf(call, static_cast<size_t>(op.operand(name, true))));
  return writeArrays(arrays);
}

/// Phase initialize: no kernel, no input but the spec.
llvm::Error initialize(const Spec &spec, const Options &options, const NamedSizes &sizes,
                       uint64_t seed) {
  const std::string subject = fmt::format("phase {} of {}", kInitialize, options.spec);
  if (!options.inputs.empty())
    return badInput(
        fmt::format("{} takes no arrays and numbers; found {}", subject, options.inputs.front()));
  if (!options.target.cpus.empty())
    return badInput(fmt::format("--cpu: {} has no kernel that it could be of", subject));
  for (const auto &[option, text] : {std::pair("--threads", &options.threads),
                                     {"--cache", &options.target.caches},
                                     {"--schedule", &options.schedule.forced},
                                     {"--tuned", &options.schedule.tuned}})
    if (!text->empty())
      return badInput(fmt::format("{}: {} has no kernel that it could be of", option, subject));
  const std::vector<std::string> names = initialNames(spec);
  if (names.empty())
    return badInput(fmt::format("{} has nothing to make: the layer has no parameters and no "
                                "moving statistics",
                                subject));
  auto outputs =
      readOutputs(options.outputs, subject, fmt::format("it writes {}", fmt::join(names, ", ")),
                  [&](const std::string &name) { return llvm::is_contained(names, name); });
  if (!outputs)
    return outputs.takeError();
  bool isOfFile = false; // an error
  const auto readFile = [&](const std::string &path) {
    auto array = readNpy(beside(options.spec, path));
    isOfFile = !array;
    return array;
  };
  std::vector<std::pair<std::string, HostArray>> arrays;
  for (const auto &[name, path] : *outputs) {
    auto array = initialValue(spec, name, sizes, seed, readFile);
    if (!array && isOfFile)
      return located(array.takeError());
    if (!array)
      return badInput(llvm::toString(array.takeError()));
    arrays.emplace_back(path, std::move(*array));
  }
  return writeArrays(arrays);
}

llvm::Error run(Options &options) {
  auto given = parseSizes(options.sizes);
  if (!given)
    return given.takeError();
  auto seed = parseNumber("--seed", options.seed, 0, UINT64_MAX);
  if (!seed)
    return seed.takeError();
  auto spec = readSpec(options.spec, parsePhase(options.phase));
  if (!spec)
    return spec.takeError();
  if (options.phase == kInitialize && spec->initializes) {
    if (llvm::Error error = checkSizeNames(spec->sizeNames(), options.spec, *given))
      return error;
    return initialize(*spec, options, *given, seed->value_or(0));
  }
  if (llvm::Error error = options.schedule.read())
    return error;
  auto threads = parseThreads(options.threads);
  if (!threads)
    return threads.takeError();
  auto target = chooseTarget(options.target);
  if (!target)
    return target.takeError();
  if (*seed)
    return badInput(fmt::format("--seed belongs to --phase {}", kInitialize));
  auto phase = choosePhase(*spec, options.spec, options.phase);
  if (!phase)
    return phase.takeError();
  const Operator op = makeOperator(*spec, *phase);
  if (llvm::Error error = checkSizeNames(op.sizes, options.spec, *given))
    return error;

  NamedArrays named(*spec, op, options.spec);
  if (llvm::Error error = named.take(options.inputs))
    return error;
  auto outputs = readOutputs(options.outputs, named.subject(), named.writes(),
                             [&](const std::string &name) { return op.operand(name, true) >= 0; });
  if (!outputs)
    return outputs.takeError();
  if (llvm::Error error = named.read())
    return error;
  auto sizes = named.sizes(*given);
  if (!sizes)
    return sizes.takeError();

  Session session(*target, environmentVerifies());
  auto artifact = compileOperator(session, op, options.schedule);
  if (!artifact)
    return artifact.takeError();
  Failure failure;
  auto kernel = Kernel::load(std::move(*artifact), {}, failure);
  auto call = kernel ? KernelCall::make(kernel, *sizes, failure) : nullptr;
  if (!call)
    return badInput(failure.message);
  call->allocate();
  for (const auto &[name, array] : named.arrays())
    call->set(name, array.bytes);
  call->setScalars(named.scalars());
  if (!call->run(nf_openmp_executor(*threads), failure))
    return badInput(failure.message);
  return writeOutputs(*outputs, op, *call);
}

} // namespace

void declareRun(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub = app.add_subcommand("run", "Compute one phase of a spec on NumPy files");
  addSpecArgument(*sub, options->spec);
  sub->add_option("ARGUMENT", options->inputs,
                  "The arrays that the phase reads, by their names; numbers as epsilon=1e-5. "
                  "`normforge explain` lists them")
      ->type_name("NAME=FILE.npy");
  sub->add_option("-o", options->outputs,
                  "An output to write; may be given several times. Outputs not named "
                  "are dropped")
      ->type_name("NAME=FILE.npy")
      ->allow_extra_args(false);
  addSizeOption(*sub, options->sizes, "A size that the arrays do not tell");
  addPhaseOption(*sub, options->phase, "(default: the spec's first), or initialize");
  sub->add_option("--seed", options->seed, "What initialize draws numbers with (default: 0)")
      ->type_name("NUMBER");
  addCpuOption(*sub, options->target, "Compile for this CPU");
  addThreadsOption(*sub, options->threads);
  addScheduleOptions(*sub, options->schedule);
  addExamples(*sub,
              "run specs/frameworks/keras1_batch_normalization.yaml --phase initialize "
              "-o gamma=build/gamma.npy",
              "run specs/frameworks/pytorch_layer_norm.yaml x=x.npy gamma=gamma.npy beta=beta.npy "
              "-o y=build/y.npy");
  sub->callback([options, &status] {
    if (llvm::Error error = run(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
