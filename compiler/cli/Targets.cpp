// `normforge targets`: what the host is, and what can be compiled for.
#include "compiler/cli/Command.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "runtime/cpu_info/CpuInfo.h"

#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge::cli {

namespace {

/// Cases of specs/tuned that are of a machine.
size_t tunedCases(const TargetDescription &target) {
  size_t own = 0;
  forEachLine(TunedRecords::ofProject().text(), [&](size_t, llvm::StringRef line) {
    if (auto parsed = parseLine(line); !parsed)
      llvm::consumeError(parsed.takeError());
    else
      own += parsed->result && stalenessOf(*parsed->result, target).empty();
  });
  return own;
}

std::string bytesText(uint64_t bytes) { return describeBytes(static_cast<double>(bytes)); }

/// The target's features that this machine lacks; nullopt for a target of another architecture.
std::optional<std::vector<std::string>> lackedHere(const TargetDescription &target) {
  if ((target.isX86() ? "x86_64" : "aarch64") != hostArchitecture())
    return std::nullopt;
  std::vector<std::string> missing;
  for (const std::string &feature : target.instructionSets())
    if (!hostHasFeature(feature))
      missing.push_back(feature);
  return missing;
}

void printHost() {
  const CacheSizes caches = hostCaches();
  printFolded("This machine\n"
              "  name      {}\n"
              "  threads   {}\n"
              "  caches    L1 {}, L2 {} of one core; L3 {}, shared by {} hardware threads\n",
              hostCpuName(), usableProcessors(), bytesText(caches.l1), bytesText(caches.l2),
              bytesText(caches.l3), caches.l3Threads);
  auto host = describeTarget("native");
  if (!host) {
    printFolded("  kernels   none: {}\n", llvm::toString(host.takeError()));
    return;
  }
  printFolded("  features  {}\n", fmt::join(host->instructionSets(), " "));
  printFolded("  kernels   {}\n", host->summary());
  printFolded("  caches    {}\n  stores    past the caches {}: {}\n", host->cachesBasis,
              host->streamingBytes ? "beyond " + bytesText(*host->streamingBytes) : "never",
              host->streamingBasis);
  const size_t own = tunedCases(*host);
  printFolded("  tuned     {}\n",
              own ? fmt::format("{} cases of specs/tuned are of this machine", own)
                  : "no record of specs/tuned is of this machine: the heuristic chooses");
}

/// The machines that can be compiled for.
llvm::Expected<std::vector<TargetDescription>> compilableTargets() {
  std::vector<TargetDescription> targets;
  for (const std::string &name : compilableCpus()) {
    auto target = describeTarget(name);
    if (!target)
      return internalError(target.takeError());
    targets.push_back(std::move(*target));
  }
  return targets;
}

void printTargets(const std::vector<TargetDescription> &targets) {
  Columns columns({{.title = "--cpu", .width = 16},
                   {.title = "machine", .width = 8, .importance = 6},
                   {.title = "vectors", .width = 9},
                   {.title = "registers", .isNumber = true, .importance = 2},
                   {.title = "in flight", .isNumber = true, .importance = 1},
                   {.title = "tails", .width = 8, .importance = 3},
                   {.title = "L1", .width = 7, .isNumber = true, .importance = 7},
                   {.title = "L2", .width = 8, .isNumber = true, .importance = 7},
                   {.title = "L3", .width = 8, .isNumber = true, .importance = 7},
                   {.title = "streaming", .width = 9, .isNumber = true, .importance = 4},
                   {.title = "runs here", .width = 20}});
  printFolded("\nKernels can be compiled for\n{}", columns.titles());
  for (const TargetDescription &target : targets) {
    const auto missing = lackedHere(target);
    printFolded(
        "{}",
        columns.row({target.cpu, target.isX86() ? "x86_64" : "aarch64",
                     fmt::format("{} bit{}", target.vectorBits, target.scalableVectors ? "+" : ""),
                     std::to_string(target.vectorRegisters), std::to_string(target.vectorsInFlight),
                     std::string(target.tailsInWords()), bytesText(target.l1Bytes),
                     bytesText(target.l2Bytes), bytesText(target.l3Bytes),
                     target.streamingBytes
                         ? bytesText(*target.streamingBytes) +
                               (target.streamingBasis.starts_with("measured") ? "" : "?")
                         : "never",
                     !missing           ? "no: another machine"
                     : missing->empty() ? "yes"
                                        : fmt::format("no: lacks {}", fmt::join(*missing, ", "))}));
  }
  printFolded("{}", columns.leftOut());
  printFolded(
      "native, the default, is this machine. Other CPUs that LLVM knows by name are compiled for "
      "as well, from SSE4.2 or NEON on, as if their caches were haswell's, where --cache does not "
      "say them.\n"
      "512 bit+: scalable vectors; schedules are made for this length, the code runs with any "
      "power of two from 128 to 2048.\n"
      "streaming: x and y beyond these bytes are stored past the caches; measured on this kind "
      "of CPU, or with ? assumed from another's.\n"
      "GPUs: {}; as text (compile --emit=ptx), in packs, and emulated (check).\n",
      fmt::join(compilableGpus(), ", "));
}

llvm::json::Object jsonOf(const TargetDescription &target) {
  llvm::json::Array features;
  for (const std::string &feature : target.instructionSets())
    features.push_back(feature);
  llvm::json::Object object{{"cpu", target.cpu},
                            {"machine", target.isX86() ? "x86_64" : "aarch64"},
                            {"features", std::move(features)},
                            {"vector_bits", static_cast<int64_t>(target.vectorBits)},
                            {"scalable_vectors", target.scalableVectors},
                            {"vector_registers", static_cast<int64_t>(target.vectorRegisters)},
                            {"vectors_in_flight", static_cast<int64_t>(target.vectorsInFlight)},
                            {"tails", std::string(target.tailsInWords())},
                            {"l1_bytes", static_cast<int64_t>(target.l1Bytes)},
                            {"l2_bytes", static_cast<int64_t>(target.l2Bytes)},
                            {"l3_bytes", static_cast<int64_t>(target.l3Bytes)},
                            {"caches_basis", target.cachesBasis},
                            {"streaming_bytes", nullptr},
                            {"streaming_basis", target.streamingBasis}};
  if (target.streamingBytes)
    object["streaming_bytes"] = static_cast<int64_t>(*target.streamingBytes);
  return object;
}

void printJson(const std::vector<TargetDescription> &targets) {
  const CacheSizes caches = hostCaches();
  llvm::json::Object host{{"name", hostCpuName()},
                          {"threads", static_cast<int64_t>(usableProcessors())},
                          {"l3_threads", static_cast<int64_t>(caches.l3Threads)},
                          {"target", nullptr}};
  if (auto target = describeTarget("native")) {
    llvm::json::Object object = jsonOf(*target);
    object["tuned_cases"] = static_cast<int64_t>(tunedCases(*target));
    host["target"] = std::move(object);
  } else {
    host["problem"] = llvm::toString(target.takeError());
  }
  llvm::json::Array all;
  for (const TargetDescription &target : targets) {
    llvm::json::Object object = jsonOf(target);
    const auto missing = lackedHere(target);
    object["runs_here"] = missing && missing->empty();
    llvm::json::Array lacks;
    if (missing)
      for (const std::string &feature : *missing)
        lacks.push_back(feature);
    object["lacks"] = std::move(lacks);
    all.push_back(std::move(object));
  }
  const llvm::json::Value value(llvm::json::Object{{"host", std::move(host)},
                                                   {"targets", std::move(all)},
                                                   {"gpus", llvm::json::Array(compilableGpus())}});
  fmt::print("{}\n", llvm::formatv("{0:2}", value).str());
}

llvm::Error run(bool json) {
  auto targets = compilableTargets();
  if (!targets)
    return targets.takeError();
  if (json) {
    printJson(*targets);
    return llvm::Error::success();
  }
  printHost();
  printTargets(*targets);
  return llvm::Error::success();
}

} // namespace

void declareTargets(CLI::App &app, int &status) {
  auto json = std::make_shared<bool>(false);
  CLI::App *sub =
      app.add_subcommand("targets", "Show what this machine is and what can be compiled for");
  addJsonFlag(*sub, *json, "Print one JSON object");
  addWideOption(*sub);
  addExamples(*sub, "targets", "targets --json");
  sub->callback([json, &status] {
    if (llvm::Error error = run(*json))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
