#include "compiler/tune/Report.h"

#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringExtras.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge::tune {

namespace {

constexpr const char *kStyle = R"css(
:root { color-scheme: light dark; --text: #1c2024; --soft: #5c6670; --page: #fbfbfa; --card: #fff;
  --line: #dfe3e6; --band: #e4e7ea; --gain: #0a7d4f; --loss: #b3442e; --dot: #7d8a97; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --soft: #9aa5b0; --page: #15181b;
  --card: #1d2125; --line: #32383e; --band: #353c43; --gain: #4cc38a; --loss: #f2806a;
  --dot: #8695a4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 40px 0 8px; }
p { margin: 4px 0 12px; max-width: 75ch; } .soft { color: var(--soft); }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 14px; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
table { width: 100%; border-collapse: collapse; background: var(--card);
  border: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; border-top: 1px solid var(--line);
  vertical-align: middle; }
th { font-weight: 600; color: var(--soft); border-top: 0; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
td.name small { display: block; color: var(--soft); } td.wide { text-align: left; }
td svg, th svg { display: block; margin-left: auto; } .gain { color: var(--gain); font-weight: 600; }
code { font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--soft); }
@media (max-width: 760px) {
  thead { display: none; } tr { display: block; padding: 8px 0; border-top: 1px solid var(--line); }
  td { display: flex; justify-content: space-between; gap: 16px; border: 0; padding: 2px 12px;
    text-align: right; }
  td.name, td.wide { display: block; text-align: left; }
  td[data-label]::before { content: attr(data-label); color: var(--soft); font-weight: 400; }
}
)css";

std::string escaped(llvm::StringRef text) {
  std::string result;
  for (char c : text)
    switch (c) {
    case '&':
      result += "&amp;";
      break;
    case '<':
      result += "&lt;";
      break;
    case '>':
      result += "&gt;";
      break;
    case '"':
      result += "&quot;";
      break;
    default:
      result += c;
    }
  return result;
}

/// Places on a logarithmic axis from half to four times as fast.
class Axis {
public:
  static constexpr double kWidth = 190, kLeast = 0.5, kMost = 4;
  static double at(double gain) {
    const double clamped = std::clamp(gain, kLeast, kMost);
    return kWidth * std::log(clamped / kLeast) / std::log(kMost / kLeast);
  }
};

/// The axis' numbers, above its charts.
std::string axisHead() {
  std::string svg = fmt::format("<svg width=\"{0}\" height=\"16\" viewBox=\"0 0 {0} 16\" "
                                "role=\"img\" aria-label=\"gain from 0.5 to 4\">",
                                Axis::kWidth);
  for (auto [gain, anchor] :
       {std::pair{0.5, "start"}, {1.0, "middle"}, {2.0, "middle"}, {4.0, "end"}})
    svg += fmt::format("<text x=\"{:.1f}\" y=\"12\" font-size=\"12\" text-anchor=\"{}\" "
                       "fill=\"var(--soft)\">{}</text>",
                       Axis::at(gain), anchor, gain);
  return svg + "</svg>";
}

/// The candidates as dots, the noise as a band around 1, the gain with its interval.
std::string gainChart(const ResultRecord &record, const std::vector<CandidateRecord> &candidates) {
  constexpr double height = 26, middle = 9, below = 19;
  std::string svg = fmt::format(
      "<svg width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" role=\"img\" aria-label=\"gain "
      "{2:.2f}, interval {3:.2f} to {4:.2f}; {5} candidates\">",
      Axis::kWidth, height, record.gain.value, record.gain.low, record.gain.high,
      candidates.size());
  const double left = Axis::at(record.noise.low), right = Axis::at(record.noise.high);
  svg += fmt::format("<rect x=\"{:.1f}\" y=\"0\" width=\"{:.1f}\" height=\"{}\" "
                     "fill=\"var(--band)\"/>",
                     std::min(left, Axis::at(1) - 0.7), std::max(1.4, right - left), height);
  svg += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"0\" y2=\"{1}\" "
                     "stroke=\"var(--soft)\" stroke-width=\"0.7\"/>",
                     Axis::at(1), height);
  for (const CandidateRecord &candidate : candidates)
    if (candidate.pairs > 0)
      svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{}\" r=\"1.6\" fill=\"var(--dot)\" "
                         "fill-opacity=\"0.45\"/>",
                         Axis::at(candidate.gain.value), below);
  if (record.isTuned())
    svg += fmt::format("<line x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{3}\" y2=\"{3}\" "
                       "stroke=\"var(--gain)\" stroke-width=\"2\"/><circle cx=\"{2:.1f}\" "
                       "cy=\"{3}\" r=\"3.4\" fill=\"var(--gain)\"/>",
                       Axis::at(record.gain.low), Axis::at(record.gain.high),
                       Axis::at(record.gain.value), middle);
  return svg + "</svg>";
}

std::string cell(llvm::StringRef label, const std::string &content, llvm::StringRef kind = "") {
  return fmt::format("<td{} data-label=\"{}\">{}</td>",
                     kind.empty() ? "" : fmt::format(" class=\"{}\"", kind.str()), label.str(),
                     content);
}

std::string tile(const std::string &value, const std::string &what) {
  return fmt::format("<div class=\"tile\"><b>{}</b>{}</div>\n", value, what);
}

std::string countsInWords(const std::map<CandidateState, int> &counts) {
  std::vector<std::string> parts;
  for (const auto &[state, count] : counts)
    parts.push_back(fmt::format("{} {}", count, toString(state).str()));
  return parts.empty() ? "none" : fmt::format("{}", fmt::join(parts, ", "));
}

class Page {
public:
  Page(std::span<const Records> files,
       const std::function<std::string(const ResultRecord &)> &stale)
      : results_(latestResults(files)) {
    std::set<std::string> lines;
    for (const Records &file : files)
      for (const CandidateRecord &candidate : file.candidates)
        if (lines.insert(toLine(candidate)).second)
          candidates_[candidate.caseId].push_back(candidate);
    for (const ResultRecord &record : results_)
      stale_.push_back(stale(record));
  }

  std::string text() const {
    std::string page = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                       "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
                       "<title>Normforge: tuned schedules</title>\n<style>";
    page += kStyle;
    page += "</style>\n</head>\n<body>\n<main>\n";
    page += head() + totals() + cases() + knobs() + failures();
    return page + "</main>\n</body>\n</html>\n";
  }

private:
  std::string head() const;
  std::string totals() const;
  std::string cases() const;
  std::string knobs() const;
  std::string failures() const;
  const std::vector<CandidateRecord> &candidatesOf(const ResultRecord &record) const {
    static const std::vector<CandidateRecord> none;
    const auto found = candidates_.find(record.key.id());
    return found == candidates_.end() ? none : found->second;
  }

  const std::vector<ResultRecord> results_;
  std::vector<std::string> stale_;                                 ///< by result
  std::map<std::string, std::vector<CandidateRecord>> candidates_; ///< by case
};

std::string Page::head() const {
  std::set<std::string> machines, versions;
  std::string first, last;
  std::vector<double> gains, noises;
  size_t tuned = 0, unused = 0;
  double seconds = 0;
  std::map<CandidateState, int> counts;
  for (size_t i = 0; i < results_.size(); ++i) {
    const ResultRecord &record = results_[i];
    const MachineKey &machine = record.key.machine;
    machines.insert(fmt::format("{} ({}, {}-bit vectors, L1 {} KiB, L2 {} KiB, L3 {} MiB)",
                                machine.model, machine.cpu, machine.vectorBits, machine.l1 >> 10,
                                machine.l2 >> 10, machine.l3 >> 20));
    versions.insert(record.versions);
    first = first.empty() ? record.date : std::min(first, record.date);
    last = std::max(last, record.date);
    gains.push_back(record.gain.value);
    noises.push_back(record.noise.fromOne());
    tuned += record.isTuned();
    unused += !stale_[i].empty();
    seconds += record.seconds;
    for (const auto &[state, count] : record.counts)
      counts[state] += count;
  }
  auto count = [&](CandidateState state) {
    const auto found = counts.find(state);
    return found == counts.end() ? 0 : found->second;
  };
  int all = 0;
  for (const auto &[state, number] : counts)
    all += number;
  std::string text = "<h1>Tuned schedules</h1>\n";
  text += fmt::format("<p class=\"soft\">{}<br>{}<br>{} to {}</p>\n",
                      escaped(fmt::format("{}", fmt::join(machines, "; "))),
                      escaped(fmt::format("{}", fmt::join(versions, "; "))), first, last);
  text += "<div class=\"tiles\">\n";
  text += tile(std::to_string(results_.size()), "cases");
  text += tile(fmt::format("{} of {}", tuned, results_.size()), "faster than the default");
  text += tile(fmt::format("{:.3f}", geometricMean(gains)), "gain, geometric mean of all cases");
  text += tile(noises.empty() ? "-" : fmt::format("{:.1f} %", 100 * median(noises)),
               "noise floor, median of the cases");
  text += tile(std::to_string(all), "candidates tried");
  text += tile(std::to_string(count(CandidateState::Behind)), "dropped early");
  text += tile(std::to_string(count(CandidateState::Wrong)), "wrong");
  text += tile(std::to_string(count(CandidateState::Crashed)), "crashed");
  text += tile(fmt::format("{:.1f} s",
                           results_.empty() ? 0.0 : seconds / static_cast<double>(results_.size())),
               "a case");
  text += "</div>\n";
  if (unused > 0)
    text += fmt::format("<p>{} results are of another machine or version and are not used on the "
                        "one that made this page.</p>\n",
                        unused);
  return text;
}

/// Sums over the cases of one phase, layout and sizes, each layer as often as it stands in its
/// network.
std::string Page::totals() const {
  struct Sum {
    size_t cases = 0;
    int64_t layers = 0;
    double standard = 0, tuned = 0, copy = 0;
    bool hasCopies = true;
  };
  std::map<std::string, Sum> sums;
  for (const ResultRecord &record : results_) {
    std::string key = fmt::format("{}, {}", record.key.phase, record.layout);
    for (const auto &[name, value] : record.key.sizes)
      key += fmt::format(", {} = {}", name, value);
    key += fmt::format(", {} thread{}, {}", record.key.threads, record.key.threads == 1 ? "" : "s",
                       toString(record.key.cache).str());
    Sum &sum = sums[key];
    const auto times = static_cast<double>(record.count);
    ++sum.cases;
    sum.layers += record.count;
    sum.standard += times * record.standardMicroseconds;
    sum.tuned += times * record.microseconds;
    sum.copy += times * record.copyMicroseconds;
    sum.hasCopies = sum.hasCopies && record.copyMicroseconds > 0;
  }
  std::string text = "<h2>Totals</h2>\n<p>Times of all layers, each as often as it stands in its "
                     "network.</p>\n<table>\n<thead><tr><th>of</th><th>cases</th><th>layers</th>"
                     "<th>default ms</th><th>tuned ms</th><th>gain</th><th>share of a copy</th>"
                     "</tr></thead>\n<tbody>\n";
  for (const auto &[key, sum] : sums)
    text +=
        "<tr>" + cell("", escaped(key), "name") + cell("cases", std::to_string(sum.cases)) +
        cell("layers", std::to_string(sum.layers)) +
        cell("default ms", fmt::format("{:.4g}", sum.standard / 1000)) +
        cell("tuned ms", fmt::format("{:.4g}", sum.tuned / 1000)) +
        cell("gain", fmt::format("{:.3f}", sum.standard / sum.tuned)) +
        cell("share of a copy", sum.hasCopies ? fmt::format("{:.2f}", sum.copy / sum.tuned) : "-") +
        "</tr>\n";
  return text + "</tbody>\n</table>\n";
}

std::string Page::cases() const {
  std::string text =
      "<h2>Cases</h2>\n<p>Gain is the default's time over the tuned schedule's, measured afresh, "
      "with its 95&nbsp;% interval; the band is what two copies of the default differ by. The axis "
      "goes from 0.5 to 4, and every small dot is a candidate. The share is of what a copy of as "
      "many bytes takes.</p>\n<table>\n<thead><tr><th>case</th><th>times</th><th>default &micro;s"
      "</th><th>tuned &micro;s</th><th>gain</th><th>noise</th><th>share</th><th>candidates</th>"
      "<th>" +
      axisHead() + "</th></tr></thead>\n<tbody>\n";
  for (size_t i = 0; i < results_.size(); ++i) {
    const ResultRecord &record = results_[i];
    std::string about = fmt::format("{}, {} {}", record.key.phase, record.layout, record.shape);
    if (record.key.cache == CacheState::Cold)
      about += ", cold";
    if (!stale_[i].empty())
      about += "; not used here: " + stale_[i];
    int tried = 0;
    for (const auto &[state, count] : record.counts)
      tried += count;
    auto share = [&](double us) {
      return record.copyMicroseconds > 0 ? fmt::format("{:.2f}", record.copyMicroseconds / us)
                                         : "-";
    };
    text += "<tr>" +
            cell("", escaped(record.name) + "<small>" + escaped(about) + "</small>", "name") +
            cell("times in its network", std::to_string(record.count)) +
            cell("default us", fmt::format("{:.1f}", record.standardMicroseconds)) +
            cell("tuned us",
                 record.isTuned() ? fmt::format("{:.1f}", record.microseconds) : "&ndash;") +
            cell("gain", record.isTuned()
                             ? fmt::format("<span class=\"gain\">{:.2f}</span> "
                                           "<small>{:.2f}&ndash;{:.2f}</small>",
                                           record.gain.value, record.gain.low, record.gain.high)
                             : "default stays") +
            cell("noise", fmt::format("&plusmn;{:.1f}&nbsp;%", 100 * record.noise.fromOne())) +
            cell("share", record.isTuned() ? share(record.standardMicroseconds) + " &rarr; " +
                                                 share(record.microseconds)
                                           : share(record.standardMicroseconds)) +
            cell("candidates", std::to_string(tried)) +
            cell("", gainChart(record, candidatesOf(record))) + "</tr>\n";
  }
  text += "</tbody>\n</table>\n<details><summary>The schedules that were found</summary>\n";
  for (const ResultRecord &record : results_)
    if (record.isTuned())
      text += fmt::format("<p><b>{} {} {}</b><br><code>{}</code><br><span class=\"soft\">instead "
                          "of</span> <code>{}</code></p>\n",
                          escaped(record.name), record.key.phase, escaped(record.shape),
                          escaped(record.schedule), escaped(record.key.standard));
  return text + "</details>\n";
}

std::string Page::knobs() const {
  struct Effect {
    std::vector<double> gains; ///< of candidates that differ from the default in it alone
    size_t inWinners = 0;
  };
  std::map<std::string, Effect> effects;
  size_t tuned = 0;
  for (const ResultRecord &record : results_) {
    for (const CandidateRecord &candidate : candidatesOf(record)) {
      if (candidate.pairs == 0)
        continue;
      const auto knobs = differingKnobs(candidate.schedule, record.key.standard);
      if (knobs.size() == 1)
        effects[knobs.front()].gains.push_back(candidate.gain.value);
    }
    if (!record.isTuned())
      continue;
    ++tuned;
    for (const std::string &knob : differingKnobs(record.schedule, record.key.standard))
      ++effects[knob].inWinners;
  }
  std::string text =
      "<h2>Knobs</h2>\n<p>Of candidates that differ from the default in one knob alone; and how "
      "many of the tuned schedules differ in it, be it with others.</p>\n<table>\n<thead><tr><th>"
      "knob</th><th>candidates</th><th>worst</th><th>median</th><th>best</th><th>better by 2 %</th>"
      "<th>in tuned schedules</th></tr></thead>\n<tbody>\n";
  for (const auto &[knob, effect] : effects) {
    std::vector<double> gains = effect.gains;
    std::sort(gains.begin(), gains.end());
    auto figure = [&](double value) {
      return gains.empty() ? std::string("-") : fmt::format("{:.2f}", value);
    };
    const auto better =
        std::count_if(gains.begin(), gains.end(), [](double g) { return g > 1.02; });
    text += "<tr>" + cell("", escaped(knob), "name") +
            cell("candidates", std::to_string(gains.size())) +
            cell("worst", figure(gains.empty() ? 0 : gains.front())) +
            cell("median", figure(gains.empty() ? 0 : gains[gains.size() / 2])) +
            cell("best", figure(gains.empty() ? 0 : gains.back())) +
            cell("better by 2 %", std::to_string(better)) +
            cell("in tuned schedules", fmt::format("{} of {}", effect.inWinners, tuned)) +
            "</tr>\n";
  }
  return text + "</tbody>\n</table>\n";
}

std::string Page::failures() const {
  std::map<CandidateState, int> counts;
  std::string list;
  for (const ResultRecord &record : results_)
    for (const CandidateRecord &candidate : candidatesOf(record)) {
      ++counts[candidate.state];
      if (candidate.state == CandidateState::Wrong || candidate.state == CandidateState::Crashed ||
          candidate.state == CandidateState::TimedOut || candidate.state == CandidateState::Refused)
        list += fmt::format("<p><b>{}</b>: {} {}: {}<br><code>{}</code></p>\n",
                            toString(candidate.state).str(), escaped(record.name), record.key.phase,
                            escaped(candidate.note), escaped(candidate.schedule));
    }
  return fmt::format("<h2>What failed</h2>\n<p>Candidates: {}.</p>\n{}", countsInWords(counts),
                     list.empty() ? "<p>No candidate was wrong, crashed, refused or late.</p>\n"
                                  : list);
}

} // namespace

std::vector<ResultRecord> latestResults(std::span<const Records> files) {
  std::map<std::string, ResultRecord> byCase;
  for (const Records &file : files)
    for (const ResultRecord &record : file.results) {
      const auto [at, isNew] = byCase.emplace(record.key.id(), record);
      if (!isNew && isBetterSource(record, at->second))
        at->second = record;
    }
  std::vector<ResultRecord> all;
  for (auto &[id, record] : byCase)
    all.push_back(std::move(record));
  auto order = [](const ResultRecord &r) {
    return std::tie(r.name, r.layout, r.key.phase, r.key.sizes, r.key.threads, r.key.cache,
                    r.key.op, r.date);
  };
  std::sort(all.begin(), all.end(),
            [&](const auto &a, const auto &b) { return order(a) < order(b); });
  return all;
}

std::vector<std::string> differingKnobs(llvm::StringRef a, llvm::StringRef b) {
  // "name(steps; knob=value knob=value)", a space between stages and between knobs; before the
  // first stage those of all.
  struct Stage {
    std::string head;
    std::map<std::string, std::string> knobs;
  };
  auto stagesOf = [](llvm::StringRef text) {
    std::vector<Stage> stages;
    while (!text.empty()) {
      auto [stage, rest] = text.split(')');
      text = rest;
      auto [head, knobs] = stage.split(';');
      if (knobs.empty() && !stage.contains('('))
        break;
      Stage &added = stages.emplace_back();
      llvm::SmallVector<llvm::StringRef> words;
      knobs.trim().split(words, ' ', -1, /*KeepEmpty=*/false);
      head = head.trim();
      for (auto [word, after] = head.split(' '); word.contains('=') && !word.contains('(');
           std::tie(word, after) = head.split(' ')) {
        words.push_back(word);
        head = after;
      }
      added.head = head.str();
      for (llvm::StringRef word : words) {
        auto [name, value] = word.split('=');
        added.knobs[name.str()] = value.str();
      }
    }
    return stages;
  };
  const std::vector<Stage> one = stagesOf(a), other = stagesOf(b);
  std::set<std::string> names;
  if (one.size() != other.size())
    return {"stages"};
  for (size_t i = 0; i < one.size(); ++i) {
    if (one[i].head != other[i].head)
      return {"stages"};
    for (const auto *stages : {&one, &other})
      for (const auto &[name, value] : (*stages)[i].knobs) {
        auto valueIn = [&](const Stage &stage) {
          const auto found = stage.knobs.find(name);
          return found == stage.knobs.end() ? std::string() : found->second;
        };
        if (valueIn(one[i]) != valueIn(other[i]))
          names.insert(name);
      }
  }
  return {names.begin(), names.end()};
}

std::string reportPage(std::span<const Records> files,
                       const std::function<std::string(const ResultRecord &)> &stale) {
  return Page(files, stale).text();
}

} // namespace normforge::tune
