// `normforge cache`: what the directory of compiled kernels holds.
#include "compiler/cli/Command.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "runtime/cache/DiskCache.h"

#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fmt/format.h>
#include <set>

namespace normforge::cli {

namespace {

constexpr const char *kernelGone = "its kernel is gone";

/// Describes an entry in words; empty for one that cannot be read. `kernels` are the keys of those
/// that are there.
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

/// An entry as it is told of.
struct Line {
  const DiskCache::File *file;
  std::string contents, problem;
};

std::string timeText(std::time_t time, const char *format) {
  const std::tm *local = std::localtime(&time); // null for years that no calendar has
  char text[32];
  return local && std::strftime(text, sizeof text, format, local) > 0 ? text : std::to_string(time);
}

void printJson(const std::vector<Line> &lines) {
  for (const Line &line : lines) {
    llvm::json::Object object{{"name", line.file->name},
                              {"kind", line.file->kind == CacheKind::Kernel ? "kernel" : "text"},
                              {"bytes", static_cast<int64_t>(line.file->bytes)},
                              {"last_used", timeText(line.file->lastUsed, "%Y-%m-%dT%H:%M:%S%z")},
                              {"contents", line.contents},
                              {"problem", line.problem}};
    fmt::print("{}\n", llvm::formatv("{0}", llvm::json::Value(std::move(object))).str());
  }
}

void printTable(const std::vector<Line> &lines) {
  size_t contents = 0;
  for (const Line &line : lines)
    contents = std::max(contents, line.contents.size());
  Columns columns({{.title = "file", .width = 40, .importance = 1},
                   {.title = "bytes", .width = 9, .isNumber = true},
                   {.title = "last used", .width = 16, .importance = 2},
                   {.title = "contents", .width = contents},
                   {.title = "problem"}});
  if (!lines.empty())
    fmt::print("{}", columns.titles());
  for (const Line &line : lines)
    printFolded("{}",
                columns.row({line.file->name, describeBytes(static_cast<double>(line.file->bytes)),
                             timeText(line.file->lastUsed, "%Y-%m-%d %H:%M"), line.contents,
                             line.problem}));
  if (!lines.empty())
    printFolded("{}", columns.leftOut());
}

int list(DiskCache &cache, bool problemsOnly, bool json) {
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
  std::vector<Line> lines;
  for (const DiskCache::File &file : files) {
    std::string wrong = file.problem;
    std::string what = contents(file, keys, wrong);
    bytes += file.bytes;
    kernels += file.kind == CacheKind::Kernel;
    // A text whose kernel has made room for others is as it should be.
    unsound += !wrong.empty() && wrong != kernelGone;
    if (!problemsOnly || !wrong.empty())
      lines.push_back({&file, std::move(what), std::move(wrong)});
  }
  if (json) {
    printJson(lines);
  } else {
    printTable(lines);
    printFolded("{} kernel{}, {} text{}, {} in {}{}\n", kernels, kernels == 1 ? "" : "s",
                files.size() - kernels, files.size() - kernels == 1 ? "" : "s",
                describeBytes(static_cast<double>(bytes)), cache.directory(),
                unsound ? fmt::format("; {} would not be used", unsound) : "");
  }
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
  addExamples(*sub, "cache list", "cache verify --dir build/kernels");
  auto directory = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  auto declare = [&](const char *name, const char *help, auto run) {
    CLI::App *action = sub->add_subcommand(name, help);
    action
        ->add_option("--dir", *directory,
                     "The directory (default: $NORMFORGE_CACHE_DIR, else "
                     "$XDG_CACHE_HOME/normforge, else ~/.cache/normforge)")
        ->type_name("DIRECTORY");
    action->callback([directory, json, &status, run] {
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
      status = run(cache, *json);
    });
    return action;
  };
  auto declareList = [&](const char *name, const char *help, bool problemsOnly) {
    CLI::App *action = declare(name, help, [problemsOnly](DiskCache &cache, bool asJson) {
      return list(cache, problemsOnly, asJson);
    });
    addJsonFlag(*action, *json, "Print one JSON object an entry");
    addWideOption(*action);
    return action;
  };
  addExamples(*declareList("list",
                           "Print every entry, its size, when it was last used, and what it is",
                           false),
              "cache list", "cache list --dir build/kernels --json");
  addExamples(
      *declareList("verify",
                   "Print the entries that would not be used, and why; exit status 1 if any", true),
      "cache verify", "cache verify --dir build/kernels");
  addExamples(
      *declare("clear", "Remove all entries", [](DiskCache &cache, bool) { return clear(cache); }),
      "cache clear", "cache clear --dir build/kernels");
}

} // namespace normforge::cli
