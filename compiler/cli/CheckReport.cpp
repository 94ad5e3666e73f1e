#include "compiler/cli/CheckReport.h"

#include "compiler/cli/CasePlanner.h"
#include "compiler/cli/Command.h"
#include "compiler/cli/Terminal.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/raw_ostream.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <cstdlib>

namespace normforge::cli {

namespace {

std::string errorText(double error) {
  if (error == 0)
    return "0";
  return std::isfinite(error) ? fmt::format("{:.1e}", error) : "inf";
}

bool wantsColour() {
  const char *no = std::getenv("NO_COLOR"); // https://no-color.org
  return isTerminal(stdout) && !(no && *no);
}

/// An output beside what oneDNN gave that is nearest to its tolerance.
const Compared &byOneDnn(const OutputResult &output) {
  if (!output.oneDnn || (output.transposed && output.transposed->comparison.largestExcess >
                                                  output.oneDnn->comparison.largestExcess))
    return *output.transposed;
  return *output.oneDnn;
}

class Table final : public CheckReport {
public:
  Table(const std::vector<CheckCase> &cases, const CheckSettings &settings,
        const std::string &targetCpu, const std::vector<std::string> &defaults, bool verbose)
      : cases_(cases), settings_(settings), targetCpu_(targetCpu), defaults_(defaults),
        verbose_(verbose), colour_(wantsColour()), progress_(isTerminal(stderr)) {
    size_t spec = 0, phase = 0, sizes = 0;
    for (const CheckCase &check : cases) {
      spec = std::max(spec, check.path.size());
      phase = std::max(phase, toString(check.phase).size());
      sizes = std::max(sizes, sizesText(check).size());
    }
    columns_.emplace(std::vector<Column>{
        {.title = "spec", .width = spec},
        {.title = "phase", .width = phase},
        {.title = "sizes", .width = sizes, .importance = 3},
        {.title = "target", .width = targetCpu.size(), .importance = 1},
        {.title = "compile\nms", .isNumber = true, .importance = 2},
        {.title = "error:\noneDNN", .width = 7, .isNumber = true, .importance = 5},
        {.title = "allowed\noneDNN", .isNumber = true, .importance = 4},
        {.title = "error:\nf64", .width = 7, .isNumber = true},
        {.title = "allowed\nf64", .isNumber = true},
        {.title = "time\nus", .width = 8, .isNumber = true},
        {.title = "time\noneDNN", .width = 8, .isNumber = true, .importance = 6},
        {.title = "verdict\n[notes]", .width = std::size("DISAGREES [1]") - 1}});
  }

  void begin() override {
    clearProgress();
    printFolded("{}, {} thread{}, oneDNN {}{}\n",
                settings_.own.empty()
                    ? fmt::format("seed {}, {} data", settings_.seed, toString(settings_.data))
                    : "own data",
                settings_.threads, settings_.threads == 1 ? "" : "s", oracle::oneDnnVersion(),
                defaults_.empty() ? ""
                                  : fmt::format("; {} by default", fmt::join(defaults_, ", ")));
    fmt::print("{}", columns_->titles());
  }

  void starting(size_t index) override {
    if (!progress_)
      return;
    const CheckCase &check = cases_[index];
    fmt::print(stderr, "\r\033[K[{}/{}] {} {}", index + 1, cases_.size(), check.path,
               toString(check.phase));
    std::fflush(stderr);
  }

  void finished(size_t index, const CaseResult &result) override {
    clearProgress();
    const CheckCase &check = cases_[index];
    const OutputResult &worst = result.worstByReference();
    const OutputResult *theirs = result.worstByOneDnn();
    std::vector<size_t> notes{note("allowed: " + worst.reference.tolerance.why)};
    for (const std::string &text : result.notes)
      notes.push_back(note(text));
    for (const std::string &text : result.oneDnnNotes)
      notes.push_back(note("oneDNN: " + text));
    const bool agrees = result.agrees();
    disagreements_ += !agrees;
    ++finished_;
    fmt::print(
        "{}",
        columns_->row(
            {check.path, std::string(toString(check.phase)), sizesText(check), result.targetCpu,
             fmt::format("{:.1f}", result.compileMilliseconds),
             theirs ? errorText(byOneDnn(*theirs).comparison.worstError) : "-",
             theirs ? errorText(byOneDnn(*theirs).comparison.allowed) : "-",
             errorText(worst.reference.comparison.worstError),
             errorText(worst.reference.comparison.allowed),
             fmt::format("{:.1f}", result.timeMicroseconds),
             result.oneDnnMicroseconds ? fmt::format("{:.1f}", *result.oneDnnMicroseconds) : "-",
             fmt::format("{} [{}]", verdict(agrees), fmt::join(notes, " "))}));
    if (verbose_)
      printFolded("    schedule {}\n    oneDNN {}\n", result.schedule,
                  result.oneDnnImplementation.empty() ? "-" : result.oneDnnImplementation);
    for (const OutputResult &output : result.outputs)
      if (verbose_ || !output.agrees())
        printOutput(output);
    if (!agrees)
      fmt::print("    repeat: {}\n", repeatCommand(check, settings_));
    std::fflush(stdout);
  }

  void end(bool complete) override {
    clearProgress();
    if (finished_ == 0)
      return;
    printFolded("{}", columns_->leftOut());
    for (size_t i = 0; i < notes_.size(); ++i)
      printFolded("[{}] {}\n", i + 1, notes_[i]);
    printFolded("Errors are of the element nearest to its tolerance. Times are medians of a few "
                "calls: a check, no benchmark.\n");
    if (complete)
      fmt::print("{} of {} agree.\n", finished_ - disagreements_, finished_);
    std::fflush(stdout);
  }

private:
  std::string verdict(bool agrees) const {
    if (!colour_)
      return agrees ? "agrees" : "DISAGREES";
    return agrees ? "\033[32magrees\033[0m" : "\033[1;31mDISAGREES\033[0m";
  }

  static void printOutput(const OutputResult &output) {
    auto line = [&](const char *authority, const Compared &compared) {
      const oracle::Comparison &c = compared.comparison;
      printFolded(
          "    {:<15} {:<18} {}: largest error {}; at the worst element {}, allowed {} ({})",
          output.name, authority, c.agrees() ? "agrees" : "DISAGREES", errorText(c.largestError),
          errorText(c.worstError), errorText(c.allowed), compared.tolerance.why);
      if (!c.agrees() && c.worst >= 0)
        printFolded("; element {} is {}, expected {}", c.worst, c.actual, c.expected);
      printFolded("\n");
    };
    line("f64", output.reference);
    if (output.oneDnn)
      line("oneDNN", *output.oneDnn);
    if (output.transposed)
      line("oneDNN, transposed", *output.transposed);
  }

  /// The number of a footnote, the same for the same text.
  size_t note(const std::string &text) {
    const auto found = llvm::find(notes_, text);
    if (found != notes_.end())
      return static_cast<size_t>(found - notes_.begin()) + 1;
    notes_.push_back(text);
    return notes_.size();
  }

  void clearProgress() const {
    if (progress_)
      fmt::print(stderr, "\r\033[K");
  }

  const std::vector<CheckCase> &cases_;
  const CheckSettings settings_;
  const std::string targetCpu_;
  const std::vector<std::string> defaults_;
  const bool verbose_, colour_, progress_;
  std::optional<Columns> columns_;
  size_t finished_ = 0, disagreements_ = 0;
  std::vector<std::string> notes_;
};

class Json final : public CheckReport {
public:
  Json(const std::vector<CheckCase> &cases, const CheckSettings &settings)
      : cases_(cases), settings_(settings) {}
  void begin() override {}
  void starting(size_t) override {}
  void end(bool) override {}

  void finished(size_t index, const CaseResult &result) override {
    const CheckCase &check = cases_[index];
    std::string line;
    llvm::raw_string_ostream stream(line);
    llvm::json::OStream json(stream);
    json.object([&] {
      json.attribute("spec", check.path);
      json.attribute("name", check.spec.name);
      json.attribute("phase", llvm::StringRef(toString(check.phase)));
      json.attributeObject("sizes", [&] {
        for (const auto &[name, value] : check.sizes)
          json.attribute(name, value);
      });
      json.attributeObject("scalars", [&] {
        for (const auto &[name, value] : check.scalars)
          number(json, name, value);
      });
      json.attribute("target_cpu", result.targetCpu);
      json.attribute("threads", settings_.threads);
      if (settings_.own.empty())
        json.attribute("seed", settings_.seed);
      json.attribute("data", settings_.own.empty() ? llvm::StringRef(toString(settings_.data))
                                                   : llvm::StringRef("own"));
      json.attribute("schedule", result.schedule);
      number(json, "compile_ms", rounded(result.compileMilliseconds));
      number(json, "time_us", rounded(result.timeMicroseconds));
      if (result.oneDnnMicroseconds)
        number(json, "onednn_time_us", rounded(*result.oneDnnMicroseconds));
      else
        json.attribute("onednn_time_us", nullptr);
      json.attributeArray("notes", [&] {
        for (const std::string &note : result.notes)
          json.value(note);
      });
      json.attribute("onednn_version", oracle::oneDnnVersion());
      json.attribute("onednn_implementation", result.oneDnnImplementation);
      json.attributeArray("onednn_notes", [&] {
        for (const std::string &note : result.oneDnnNotes)
          json.value(note);
      });
      const OutputResult &worst = result.worstByReference();
      const OutputResult *theirs = result.worstByOneDnn();
      if (theirs) {
        number(json, "error_onednn", byOneDnn(*theirs).comparison.worstError);
        number(json, "tolerance_onednn", byOneDnn(*theirs).comparison.allowed);
      } else {
        json.attribute("error_onednn", nullptr);
        json.attribute("tolerance_onednn", nullptr);
      }
      number(json, "error_reference", worst.reference.comparison.worstError);
      number(json, "tolerance_reference", worst.reference.comparison.allowed);
      json.attribute("tolerance_reference_why", worst.reference.tolerance.why);
      json.attributeArray("outputs", [&] {
        for (const OutputResult &output : result.outputs)
          writeOutput(json, output);
      });
      json.attribute("verdict", result.agrees() ? "agrees" : "disagrees");
      json.attribute("repeat", repeatCommand(check, settings_));
    });
    fmt::print("{}\n", line);
    std::fflush(stdout);
  }

private:
  /// In the fewest digits that give the number back; JSON has no infinities.
  static void number(llvm::json::OStream &json, llvm::StringRef name, double value) {
    json.attributeBegin(name);
    json.rawValue(std::isfinite(value) ? fmt::format("{}", value) : "\"inf\"");
    json.attributeEnd();
  }
  /// Times are measured to a nanosecond.
  static double rounded(double microseconds) { return std::round(microseconds * 1e3) / 1e3; }

  static void writeOutput(llvm::json::OStream &json, const OutputResult &output) {
    auto write = [&](const std::string &authority, const Compared &compared) {
      number(json, "error_" + authority, compared.comparison.largestError);
      number(json, "error_over_tolerance_" + authority, compared.comparison.largestExcess);
      number(json, "worst_error_" + authority, compared.comparison.worstError);
      number(json, "tolerance_" + authority, compared.comparison.allowed);
      json.attribute("tolerance_why_" + authority, compared.tolerance.why);
    };
    json.object([&] {
      json.attribute("name", output.name);
      write("reference", output.reference);
      if (output.oneDnn)
        write("onednn", *output.oneDnn);
      if (output.transposed)
        write("onednn_transposed", *output.transposed);
    });
  }

  const std::vector<CheckCase> &cases_;
  const CheckSettings settings_;
};

} // namespace

std::string repeatCommand(const CheckCase &check, const CheckSettings &settings) {
  std::string command =
      fmt::format("normforge check {} --phase {}", shellWord(check.path), toString(check.phase));
  for (const auto &[name, value] : check.sizes)
    command += fmt::format(" --size {}={}", name, value);
  if (!settings.target.cpus.empty())
    command += " --cpu " + shellWord(settings.target.cpus.front());
  if (!settings.target.caches.empty())
    command += " --cache " + shellWord(settings.target.caches);
  if (!settings.chosen.tuned.empty())
    command += " --tuned " + shellWord(settings.chosen.tuned);
  if (!check.schedule.empty())
    command += " --schedule " + shellWord(check.schedule);
  command += fmt::format(" --threads {}", settings.threads);
  command += settings.own.empty()
                 ? fmt::format(" --data {} --seed {}", toString(settings.data), settings.seed)
                 : " " + settings.own;
  return command + " --verbose";
}

std::unique_ptr<CheckReport> makeTable(const std::vector<CheckCase> &cases,
                                       const CheckSettings &settings, const std::string &targetCpu,
                                       const std::vector<std::string> &defaults, bool verbose) {
  return std::make_unique<Table>(cases, settings, targetCpu, defaults, verbose);
}

std::unique_ptr<CheckReport> makeJson(const std::vector<CheckCase> &cases,
                                      const CheckSettings &settings) {
  return std::make_unique<Json>(cases, settings);
}

} // namespace normforge::cli
