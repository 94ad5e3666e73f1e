// `normforge targets`: what the host is, and what can be compiled for.
#include "compiler/cli/Command.h"
#include "runtime/cpu_info/CpuInfo.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <thread>

namespace normforge::cli {

namespace {

int run() {
  const CacheSizes caches = hostCaches();
  fmt::print("This machine\n"
             "  name      {}\n"
             "  threads   {}\n"
             "  caches    L1 {}, L2 {} of one core; L3 {}, shared by {} hardware threads\n",
             hostCpuName(), usableProcessors(), describeBytes(static_cast<double>(caches.l1)),
             describeBytes(static_cast<double>(caches.l2)),
             describeBytes(static_cast<double>(caches.l3)), caches.l3Threads);
  auto host = describeTarget("native");
  if (host) {
    fmt::print("  features  {}\n", fmt::join(host->instructionSets(), " "));
    fmt::print("  kernels   {}\n", host->summary());
    fmt::print("  caches    {}\n  stores    past the caches {}: {}\n", host->cachesBasis,
               host->streamingBytes
                   ? "beyond " + describeBytes(static_cast<double>(*host->streamingBytes))
                   : "never",
               host->streamingBasis);
    const TunedRecords &records = TunedRecords::ofProject();
    size_t own = 0;
    forEachLine(records.text(), [&](size_t, llvm::StringRef line) {
      if (auto parsed = parseLine(line); !parsed)
        llvm::consumeError(parsed.takeError());
      else
        own += parsed->result && stalenessOf(*parsed->result, *host).empty();
    });
    fmt::print("  tuned     {}\n",
               own ? fmt::format("{} cases of specs/tuned are of this machine", own)
                   : std::string("no record of specs/tuned is of this machine: "
                                 "the heuristic chooses"));
  } else {
    fmt::print("  kernels   none: {}\n", llvm::toString(host.takeError()));
  }

  fmt::print("\nKernels can be compiled for\n  {:<16} {:<8} {:>9}  {:>9}  {:>9}  {:<9} {:>9} {:>9} "
             "{:>9} {:>9}  {}\n",
             "--cpu", "machine", "vectors", "registers", "in flight", "tails", "L1", "L2", "L3",
             "streaming", "runs here");
  for (const std::string &name : compilableCpus()) {
    auto target = describeTarget(name);
    if (!target)
      return report(internalError(target.takeError()));
    const std::string_view machine = target->isX86() ? "x86_64" : "aarch64";
    std::vector<std::string> missing;
    for (const std::string &feature : target->instructionSets())
      if (!hostHasFeature(feature))
        missing.push_back(feature);
    fmt::print("  {:<16} {:<8} {:>5} bit{} {:>9}  {:>9}  {:<9} {:>9} {:>9} {:>9} {:>9}  {}\n", name,
               machine, target->vectorBits, target->scalableVectors ? "+" : " ",
               target->vectorRegisters, target->vectorsInFlight, target->tailsInWords(),
               describeBytes(static_cast<double>(target->l1Bytes)),
               describeBytes(static_cast<double>(target->l2Bytes)),
               describeBytes(static_cast<double>(target->l3Bytes)),
               target->streamingBytes
                   ? describeBytes(static_cast<double>(*target->streamingBytes)) +
                         (target->streamingBasis.starts_with("measured") ? "" : "?")
                   : "never",
               machine != hostArchitecture() ? "no: another machine"
               : missing.empty()             ? "yes"
                                 : fmt::format("no: lacks {}", fmt::join(missing, ", ")));
  }
  fmt::print("  native, the default, is this machine. Other CPUs that LLVM knows by name are "
             "compiled for as well, from SSE4.2 or NEON on, as if their caches were haswell's.\n"
             "  512 bit+: scalable vectors; schedules are made for this length, the code runs with "
             "any power of two from 128 to 2048.\n"
             "  streaming: x and y beyond these bytes are stored past the caches; measured on this "
             "kind of CPU, or with ? assumed from another's.\n");
  return Success;
}

} // namespace

void declareTargets(CLI::App &app, int &status) {
  CLI::App *sub =
      app.add_subcommand("targets", "Show what this machine is and what can be compiled for");
  sub->callback([&status] { status = run(); });
}

} // namespace normforge::cli
