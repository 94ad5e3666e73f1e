// `normforge tune merge`, `show`, `report` and `import`: what is done with records.
#include "compiler/cli/Files.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "compiler/cli/TuneProgress.h"
#include "compiler/tune/Export.h"
#include "compiler/tune/Report.h"
#include "runtime/measure/SweepFile.h"

#include "llvm/Support/JSON.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/raw_ostream.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <fcntl.h>
#include <sys/file.h>

namespace normforge::cli {

namespace {

/// Tells of a file's lines that are no records; an error where it has nothing else.
llvm::Error tellOf(const std::vector<std::string> &warnings, const std::string &path,
                   bool hasRecords) {
  constexpr size_t most = 10;
  for (size_t i = 0; i < std::min(warnings.size(), most); ++i)
    llvm::errs() << warnings[i] << '\n';
  if (warnings.size() > most)
    llvm::errs() << fmt::format("{}: warning: {} more lines are left out\n", path,
                                warnings.size() - most);
  if (hasRecords || warnings.empty())
    return llvm::Error::success();
  return located(llvm::createStringError(fmt::format("{}: error: has no records", path)));
}

/// The files' records; lines that are none are told of on stderr.
llvm::Expected<std::vector<tune::Records>> readAll(const std::vector<std::string> &paths) {
  std::vector<tune::Records> all;
  for (const std::string &path : paths) {
    auto records = tune::readRecords(path);
    if (!records)
      return located(records.takeError());
    if (llvm::Error error = tellOf(records->warnings, path,
                                   !records->results.empty() || !records->candidates.empty()))
      return error;
    all.push_back(std::move(*records));
  }
  return all;
}

struct MergeOptions {
  std::vector<std::string> paths;
  std::string output;
  bool resultsAlone = false;
};

llvm::Error merge(const MergeOptions &options) {
  // Before it is read: what a sweep adds after that would be lost.
  const FileDescriptor before(open(options.output.c_str(), O_RDONLY | O_CLOEXEC));
  if (before && flock(before.get(), LOCK_EX | LOCK_NB) != 0)
    return located(llvm::createStringError(fmt::format(
        "{}: error: a normforge tune writes it; merge into another file", options.output)));
  auto files = readAll(options.paths);
  if (!files)
    return files.takeError();
  // Lines that could not be read would be lost.
  for (size_t i = 0; i < files->size(); ++i)
    if (!(*files)[i].warnings.empty() && !overwritten(options.paths[i], options.output).empty())
      return badInput(fmt::format("-o: {} is one of the files that are merged, and has lines that "
                                  "were left out; it is left as it is",
                                  options.output));
  const std::string text = tune::mergeRecords(*files, options.resultsAlone);
  if (options.output.empty()) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return llvm::Error::success();
  }
  llvm::Error error = writeFiles(FileToWrite{options.output, "", text});
  return error ? located(std::move(error)) : llvm::Error::success();
}

struct ImportOptions {
  std::vector<std::string> paths;
  std::string output = "tuned.jsonl";
};

/// Adds to a file what normforge-tune-run has measured; what it holds already is left out.
llvm::Error importRuns(const ImportOptions &options) {
  std::vector<std::string> lines;
  for (const std::string &path : options.paths) {
    auto buffer = llvm::MemoryBuffer::getFile(path, /*IsText=*/true);
    if (!buffer)
      return located(llvm::createStringError(
          fmt::format("{}: error: cannot be read: {}", path, buffer.getError().message())));
    const llvm::StringRef all = (*buffer)->getBuffer();
    if (isSweep({all.data(), all.size()}))
      return located(llvm::createStringError(
          fmt::format("{}: error: is a sweep to be run: normforge-tune-run {} -o FILE, and FILE is "
                      "what is imported",
                      path, shellWord(path))));
    std::vector<std::string> warnings;
    const size_t before = lines.size();
    forEachLine(all, [&](size_t number, llvm::StringRef line) {
      auto text = tune::importLine(line);
      if (text)
        lines.push_back(std::move(*text));
      else
        warnings.push_back(fmt::format("{}:{}: warning: left out: {}", path, number,
                                       llvm::toString(text.takeError())));
    });
    if (llvm::Error error = tellOf(warnings, path, lines.size() > before))
      return error;
  }
  tune::Records held;
  auto writer = tune::RecordWriter::open(options.output, held);
  if (!writer)
    return located(writer.takeError());
  for (const std::string &warning : held.warnings)
    llvm::errs() << warning << '\n';
  std::set<std::string> known;
  for (const ResultRecord &record : held.results)
    known.insert(toLine(record));
  for (const CandidateRecord &record : held.candidates)
    known.insert(toLine(record));
  size_t added = 0;
  for (const std::string &line : lines) {
    auto parsed = parseLine(line); // its own text: equal records are equal lines
    if (!parsed)
      return internalError(parsed.takeError());
    const std::string text = parsed->result ? toLine(*parsed->result) : toLine(*parsed->candidate);
    if (!known.insert(text).second)
      continue;
    if (llvm::Error error = writer->write(text))
      return located(std::move(error));
    ++added;
  }
  fmt::print("{} records added to {}, {} were there\n", added, options.output,
             lines.size() - added);
  return llvm::Error::success();
}

struct ReportOptions {
  std::vector<std::string> paths;
  std::string output;
};

llvm::Error writeReport(const ReportOptions &options) {
  auto files = readAll(options.paths);
  if (!files)
    return files.takeError();
  auto target = chooseTarget();
  if (!target)
    return target.takeError();
  const std::string page = tune::reportPage(
      *files, [&](const ResultRecord &record) { return stalenessOf(record, *target); });
  llvm::Error error = writeFiles(FileToWrite{options.output, "", page});
  return error ? located(std::move(error)) : llvm::Error::success();
}

struct ShowOptions {
  std::vector<std::string> paths;
  bool json = false;
};

std::string sizesText(const ResultRecord &record) {
  std::vector<std::string> parts;
  for (const auto &[name, value] : record.key.sizes)
    parts.push_back(fmt::format("{}={}", name, value));
  return parts.empty() ? "-" : fmt::format("{}", fmt::join(parts, " "));
}

std::string shapeText(const ResultRecord &record) {
  return fmt::format("{} {}", record.layout, record.shape);
}

/// The number of a text among those that are shown below a table, counted from 1.
size_t numberOf(const std::string &text, std::vector<std::string> &shown) {
  const auto found = llvm::find(shown, text);
  const size_t number = static_cast<size_t>(found - shown.begin()) + 1;
  if (found == shown.end())
    shown.push_back(text);
  return number;
}

/// The remarks on a record. Many records are stale for one reason: it is given by its number.
std::string marksOf(const ResultRecord &record, const std::string &stale,
                    std::vector<std::string> &reasons) {
  std::vector<std::string> marks;
  if (record.key.bits == BitsPolicy::Fixed)
    marks.push_back("bits fixed");
  if (record.isNoisy())
    marks.push_back("not used: noise");
  if (!stale.empty())
    marks.push_back(fmt::format("stale [{}]", numberOf(stale, reasons)));
  return fmt::format("{}", fmt::join(marks, "; "));
}

llvm::Error show(const ShowOptions &options) {
  auto files = readAll(options.paths);
  if (!files)
    return files.takeError();
  auto target = chooseTarget();
  if (!target)
    return target.takeError();
  const std::vector<ResultRecord> results = tune::latestResults(*files);
  if (options.json) {
    for (const ResultRecord &record : results) {
      llvm::json::Value value = llvm::cantFail(llvm::json::parse(toLine(record)));
      if (std::string stale = stalenessOf(record, *target); !stale.empty())
        (*value.getAsObject())["stale"] = stale;
      std::string text;
      llvm::raw_string_ostream(text) << value;
      fmt::print("{}\n", text);
    }
    return llvm::Error::success();
  }
  size_t width = 4, shapes = 13, phases = 9;
  for (const ResultRecord &record : results) {
    width = std::max(width, record.name.size());
    phases = std::max(phases, record.key.phase.size());
    shapes = std::max(shapes, shapeText(record).size());
  }
  printFolded("gain: the default's time over the tuned schedule's, 95 % interval; share: of the "
              "speed of a copy of as many bytes; noise: of two copies of the default\n");
  Columns columns({{.title = "spec", .width = width},
                   {.title = "phase", .width = phases},
                   {.title = "layout, shape", .width = shapes, .importance = 4},
                   {.title = "sizes", .width = 12},
                   {.title = "threads", .isNumber = true, .importance = 3},
                   {.title = "cache", .importance = 2},
                   {.title = "default us", .isNumber = true},
                   {.title = "us", .width = 10, .isNumber = true, .importance = 5},
                   {.title = "gain", .width = 18},
                   {.title = "noise", .width = 8, .isNumber = true, .importance = 6},
                   {.title = "share", .width = 5, .isNumber = true, .importance = 7},
                   {.title = "effort", .width = 9, .isNumber = true, .importance = 1},
                   {.title = "", .width = 6}});
  fmt::print("{}", columns.titles());
  std::vector<double> gains; // of those that are not stale
  size_t tuned = 0, noisy = 0;
  std::map<CandidateState, int> counts;
  std::vector<std::string> reasons; // for being stale
  for (const ResultRecord &record : results) {
    const std::string stale = stalenessOf(record, *target);
    printFolded(
        "{}",
        columns.row({record.name, record.key.phase, shapeText(record), sizesText(record),
                     std::to_string(record.key.threads), toString(record.key.cache).str(),
                     fmt::format("{:.1f}", record.standardMicroseconds),
                     fmt::format("{:.1f}", record.microseconds),
                     record.isTuned() ? ratioText(record.gain) : "default stays",
                     noiseText(record.noise),
                     record.copyMicroseconds > 0
                         ? fmt::format("{:.2f}", record.copyMicroseconds / record.microseconds)
                         : "-",
                     toString(record.effort).str(), marksOf(record, stale, reasons)}));
    for (const auto &[state, count] : record.counts)
      counts[state] += count;
    if (!stale.empty())
      continue;
    noisy += record.isNoisy();
    tuned += record.isTuned();
    gains.push_back(record.gain.value);
  }
  printFolded("{}", columns.leftOut());
  std::vector<std::string> parts;
  for (const auto &[state, count] : counts)
    parts.push_back(fmt::format("{} {}", count, toString(state).str()));
  printFolded("\n{} cases, {} of them of this machine and version; {} tuned, gain {:.3f} in the "
              "geometric mean of these {}\ncandidates: {}\n",
              results.size(), gains.size(), tuned, geometricMean(gains), gains.size(),
              parts.empty() ? "none" : fmt::format("{}", fmt::join(parts, ", ")));
  if (noisy > 0)
    printFolded(
        "{} of them are too noisy to choose by: normforge tune --again measures them again\n",
        noisy);
  for (size_t i = 0; i < reasons.size(); ++i)
    printFolded("{}[{}] {}\n", i == 0 ? "stale:\n" : "", i + 1, reasons[i]);
  return llvm::Error::success();
}

} // namespace

void declareTuneMerge(CLI::App &tune, int &status) {
  auto options = std::make_shared<MergeOptions>();
  CLI::App *sub = tune.add_subcommand(
      "merge", "Join files of records: the same file for any order and any number of times");
  sub->add_option("FILE", options->paths, "Files of records")->required()->type_name("FILE");
  sub->add_option("-o", options->output, "The file to write (default: standard output)")
      ->type_name("FILE");
  sub->add_flag("--results", options->resultsAlone,
                "Leave out the candidates: what is needed to use the records, not to go on");
  addExamples(*sub, "tune merge specs/tuned/*.jsonl -o build/all.jsonl",
              "tune merge --results build/all.jsonl -o build/results.jsonl");
  sub->callback([options, &status] {
    if (llvm::Error error = merge(*options))
      status = report(std::move(error));
  });
}

void declareTuneImport(CLI::App &tune, int &status) {
  auto options = std::make_shared<ImportOptions>();
  CLI::App *sub = tune.add_subcommand(
      "import", "Add what normforge-tune-run has measured to a file of records");
  sub->add_option("FILE", options->paths, "Files that normforge-tune-run has written")
      ->required()
      ->type_name("FILE");
  sub->add_option("-o", options->output, "The file of records (default: tuned.jsonl)")
      ->type_name("FILE");
  addExamples(*sub, "tune import build/r.jsonl -o build/all.jsonl",
              "tune import build/r.jsonl build/r.jsonl -o build/all.jsonl");
  sub->callback([options, &status] {
    if (llvm::Error error = importRuns(*options))
      status = report(std::move(error));
  });
}

void declareTuneReport(CLI::App &tune, int &status) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App *sub = tune.add_subcommand(
      "report",
      "Write what was found as one HTML page, without scripts or anything from elsewhere");
  sub->add_option("FILE", options->paths, "Files of records")->required()->type_name("FILE");
  sub->add_option("-o", options->output, "The page to write, such as report.html")
      ->required()
      ->type_name("FILE");
  addExamples(*sub, "tune report specs/tuned/znver4.jsonl -o build/report.html",
              "tune report specs/tuned/*.jsonl -o build/all.html");
  sub->callback([options, &status] {
    if (llvm::Error error = writeReport(*options))
      status = report(std::move(error));
  });
}

void declareTuneShow(CLI::App &tune, int &status) {
  auto options = std::make_shared<ShowOptions>();
  CLI::App *sub = tune.add_subcommand(
      "show", "Show what was found, against what, how sure, and what is stale here and why");
  sub->add_option("FILE", options->paths, "Files of records")->required()->type_name("FILE");
  addJsonFlag(*sub, options->json, "Print one JSON object a line");
  addWideOption(*sub);
  addExamples(*sub, "tune show specs/tuned/znver4.jsonl",
              "tune show specs/tuned/znver4.jsonl --json");
  sub->callback([options, &status] {
    if (llvm::Error error = show(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
