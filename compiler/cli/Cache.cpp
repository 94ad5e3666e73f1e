// `normforge cache`: what the directory of compiled kernels holds.
#include "compiler/cli/Command.h"
#include "runtime/cache/DiskCache.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <set>

namespace normforge::cli {

namespace {

constexpr const char *kernelGone = "its kernel is gone";

/// What an entry is of, in words; empty for one that cannot be read. `kernels` are the keys of
/// those that are there.
std::string contents(const DiskCache::File &file, const std::set<std::string> &kernels,
                     std::string &problem) {
  if (!file.entry)
    return {};
  const std::vector<std::byte> &payload = file.entry->payload;
  if (file.kind == CacheKind::Request) {
    const std::string text(reinterpret_cast<const char *>(payload.data()), payload.size());
    const size_t zero = std::min(text.find('\0'), text.size() - 1);
    if (problem.empty() && !kernels.contains(text.substr(zero + 1)))
      problem = kernelGone;
    return fmt::format("the text of {}", text.substr(0, zero));
  }
  std::string error;
  const auto artifact = deserialize(payload, error);
  if (!artifact || !validate(*artifact, error)) {
    problem = error;
    return {};
  }
  return fmt::format("{}, {}, {}, {} variant{}", artifact->name, artifact->phase, artifact->cpu,
                     artifact->variants.size(), artifact->variants.size() == 1 ? "" : "s");
}

int cannotRead(const DiskCache &cache, const std::string &problem) {
  return report(badInput(fmt::format("cannot use {}: {}", cache.directory(), problem)));
}

int list(DiskCache &cache, bool problemsOnly) {
  std::string problem;
  const std::vector<DiskCache::File> files = cache.list(problem);
  if (!problem.empty())
    return cannotRead(cache, problem);
  std::set<std::string> keys;
  for (const DiskCache::File &file : files)
    if (file.kind == CacheKind::Kernel && file.entry && file.problem.empty())
      keys.insert(file.entry->key);
  uint64_t bytes = 0;
  size_t kernels = 0, unsound = 0;
  for (const DiskCache::File &file : files) {
    std::string wrong = file.problem;
    const std::string what = contents(file, keys, wrong);
    bytes += file.bytes;
    kernels += file.kind == CacheKind::Kernel;
    // A text whose kernel has made room for others is as it should be.
    unsound += !wrong.empty() && wrong != kernelGone;
    if (problemsOnly && wrong.empty())
      continue;
    const std::time_t used = file.lastUsed;
    const std::tm *local = std::localtime(&used); // null for years that no calendar has
    fmt::print("{:<40}  {:>9}  {}  {}{}{}\n", file.name,
               describeBytes(static_cast<double>(file.bytes)),
               local ? fmt::format("{:%Y-%m-%d %H:%M}", *local) : std::to_string(used), what,
               what.empty() || wrong.empty() ? "" : "; ", wrong);
  }
  fmt::print("{} kernel{}, {} text{}, {} in {}", kernels, kernels == 1 ? "" : "s",
             files.size() - kernels, files.size() - kernels == 1 ? "" : "s",
             describeBytes(static_cast<double>(bytes)), cache.directory());
  fmt::print("{}\n", unsound ? fmt::format("; {} would not be used", unsound) : "");
  return problemsOnly && unsound ? Disagrees : Success;
}

int clear(DiskCache &cache) {
  std::string problem;
  const size_t removed = cache.clear(problem);
  if (!problem.empty())
    return cannotRead(cache, problem);
  fmt::print("removed {} file{} from {}\n", removed, removed == 1 ? "" : "s", cache.directory());
  return Success;
}

} // namespace

void declareCache(CLI::App &app, int &status) {
  CLI::App *sub = app.add_subcommand(
      "cache", "List, verify or clear the kernels that programs have compiled and kept");
  sub->require_subcommand(1);
  auto directory = std::make_shared<std::string>();
  auto declare = [&](const char *name, const char *help, auto run) {
    CLI::App *action = sub->add_subcommand(name, help);
    action->add_option(
        "--dir", *directory,
        "The directory (default: $NORMFORGE_CACHE_DIR, else $XDG_CACHE_HOME/normforge,"
        " else ~/.cache/normforge)");
    action->callback([directory, &status, run] {
      std::string ignored;
      const std::string path = directory->empty() ? DiskCache::defaultDirectory(ignored)
                                                  : std::filesystem::absolute(*directory).string();
      if (!ignored.empty())
        fmt::print(stderr, "normforge: note: {}\n", ignored);
      if (path.empty()) {
        status = report(badInput("no cache directory: NORMFORGE_CACHE_DIR, XDG_CACHE_HOME and HOME "
                                 "are not set to absolute paths; name one with --dir"));
        return;
      }
      DiskCache cache(path, DiskCache::defaultBytes);
      status = run(cache);
    });
  };
  declare("list", "Print every entry, its size, when it was last used, and what it is",
          [](DiskCache &cache) { return list(cache, false); });
  declare("verify", "Print the entries that would not be used, and why; exit status 1 if any",
          [](DiskCache &cache) { return list(cache, true); });
  declare("clear", "Remove all entries", [](DiskCache &cache) { return clear(cache); });
}

} // namespace normforge::cli
