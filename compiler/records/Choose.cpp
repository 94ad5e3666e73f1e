#include "compiler/records/Choose.h"

#include "runtime/cpu_info/CpuInfo.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fmt/format.h>

namespace normforge {

const TunedRecords &TunedRecords::ofProject() {
  static constexpr const char *text =
#include "compiler/records/ProjectRecords.inc"
      ;
  static const TunedRecords *records =
      new TunedRecords(llvm::MemoryBuffer::getMemBuffer(text), "normforge's own records");
  return *records;
}

/// The string after a key of a line of JSON, as it stands there; empty: there is none.
static llvm::StringRef stringOf(llvm::StringRef line, llvm::StringRef quotedKey) {
  // Several times as fast as StringRef::find, on which the first kernel of a process would wait.
  const void *found = memmem(line.data(), line.size(), quotedKey.data(), quotedKey.size());
  if (!found)
    return {};
  const char *after = static_cast<const char *>(found) + quotedKey.size();
  llvm::StringRef rest = llvm::StringRef(after, static_cast<size_t>(line.end() - after)).ltrim();
  if (!rest.consume_front(":"))
    return {};
  rest = rest.ltrim();
  return rest.consume_front("\"") ? rest.take_until([](char c) { return c == '"'; })
                                  : llvm::StringRef();
}

TunedRecords::TunedRecords(std::unique_ptr<llvm::MemoryBuffer> text, std::string source)
    : text_(std::move(text)), source_(std::move(source)) {
  forEachLine(text_->getBuffer(), [&](size_t, llvm::StringRef line) {
    for (const char *key : {"\"operator\"", "\"family\""})
      if (const llvm::StringRef digest = stringOf(line, key); !digest.empty())
        lines_[digest].push_back(line);
  });
}

std::vector<ResultRecord> TunedRecords::find(llvm::StringRef field, llvm::StringRef digest,
                                             const TargetDescription &target) const {
  std::vector<ResultRecord> found;
  for (llvm::StringRef text : lines_.lookup(digest)) {
    auto line = parseLine(text);
    if (!line)
      llvm::consumeError(line.takeError());
    else if (line->result &&
             digest == (field == "family" ? line->result->key.family : line->result->key.op) &&
             stalenessOf(*line->result, target).empty())
      found.push_back(std::move(*line->result));
  }
  return found;
}

llvm::Expected<TunedRecords> readTunedRecords(const std::string &path,
                                              std::vector<std::string> &warnings) {
  auto buffer = llvm::MemoryBuffer::getFile(path, /*IsText=*/true);
  if (!buffer)
    return llvm::createStringError(
        fmt::format("{}: error: cannot be read: {}", path, buffer.getError().message()));
  const llvm::StringRef text = (*buffer)->getBuffer();
  forEachLine(text, [&](size_t number, llvm::StringRef line) {
    if (auto parsed = parseLine(line); !parsed)
      warnings.push_back(fmt::format("{}:{}: warning: left out: {}", path, number,
                                     llvm::toString(parsed.takeError())));
  });
  return TunedRecords(std::move(*buffer), path);
}

namespace {

/// Reasons of variants from records begin so.
constexpr std::string_view kTuned = "tuned: ";

/// A record and the variant of the heuristic that it replaces.
struct Match {
  ResultRecord record;
  Schedule schedule;
  std::string source;
};

class Tuning {
public:
  Tuning(const Operator &op, const TargetDescription &target, std::vector<ScheduleVariant> variants)
      : op_(op), target_(target), heuristic_(std::move(variants)) {}

  /// `threads`: only what was measured with as many.
  void apply(const TunedRecords &records, std::optional<int> threads = std::nullopt);
  std::vector<ScheduleVariant> take();

private:
  std::optional<std::vector<int64_t>> sizesOf(const ResultRecord &record) const;
  size_t variantAt(std::span<const int64_t> sizes) const;
  /// The measure that tells where sizes lie in a variant's range.
  const SizeExpr &measureOf(size_t variant) const {
    const Guard &guard = heuristic_[variant].guard;
    return guard.limit == INT64_MAX ? op_.elements : guard.value;
  }
  void add(size_t variant, ResultRecord record, int64_t at, const std::string &source);
  void addRange(std::vector<ScheduleVariant> &all, size_t variant) const;

  const Operator &op_;
  const TargetDescription &target_;
  const std::vector<ScheduleVariant> heuristic_;
  /// By variant, by what its guard asks about, at the record's sizes.
  std::map<size_t, std::map<int64_t, Match>> matches_;
};

std::optional<std::vector<int64_t>> Tuning::sizesOf(const ResultRecord &record) const {
  std::vector<int64_t> values;
  for (const std::string &name : op_.sizes) {
    const auto found = record.key.sizes.find(name);
    if (found == record.key.sizes.end())
      return std::nullopt;
    values.push_back(found->second);
  }
  return values.size() == record.key.sizes.size() ? std::optional(values) : std::nullopt;
}

size_t Tuning::variantAt(std::span<const int64_t> sizes) const {
  size_t i = 0;
  while (!heuristic_[i].guard.holds(sizes))
    ++i;
  return i;
}

void Tuning::add(size_t variant, ResultRecord record, int64_t at, const std::string &source) {
  if (record.key.standard != heuristic_[variant].schedule.text(op_))
    return;
  auto schedule = parseSchedule(record.schedule, op_);
  llvm::Error error = schedule ? checkSchedule(*schedule, op_, target_) : schedule.takeError();
  if (error) {
    llvm::consumeError(std::move(error));
    return;
  }
  const auto sizes = record.key.sizes;
  const std::string text = record.schedule;
  const auto [found, isNew] =
      matches_[variant].emplace(at, Match{std::move(record), std::move(*schedule), source});
  // Other sizes with as much work: where what was found for them differs, neither holds for both.
  if (!isNew && found->second.record.key.sizes != sizes &&
      found->second.schedule.text(op_) != text) {
    found->second.schedule = heuristic_[variant].schedule;
    found->second.record.gain = {1, 1, 1};
  }
}

/// Those of files asked earlier win: `emplace` keeps what is there.
void Tuning::apply(const TunedRecords &records, std::optional<int> threads) {
  if (records.text().empty())
    return;
  auto ofOthers = [&](const ResultRecord &record) {
    return record.isNoisy() || (threads && record.key.threads != *threads);
  };
  auto found = records.find("operator", digestOf(signatureOf(op_)), target_);
  std::erase_if(found, ofOthers);
  std::sort(found.begin(), found.end(), isBetterSource);
  for (ResultRecord &record : found) {
    const auto sizes = sizesOf(record);
    if (!sizes || record.key.phase != toString(op_.phase))
      continue;
    const size_t variant = variantAt(*sizes);
    if (const auto at = measureOf(variant).evaluate(*sizes))
      add(variant, std::move(record), *at, records.source());
  }
  const auto elements = op_.elements.constant();
  if (!matches_.empty() || !elements || !op_.sizes.empty())
    return;
  // No record of its own: the nearest of its family.
  auto relatives = records.find("family", digestOf(familyOf(op_)), target_);
  std::erase_if(relatives, [&](const ResultRecord &record) {
    return ofOthers(record) || !record.key.sizes.empty() ||
           record.key.phase != toString(op_.phase) || record.elements < *elements / kRelatives ||
           record.elements / kRelatives > *elements;
  });
  auto distance = [&](const ResultRecord &record) {
    return std::abs(std::log(static_cast<double>(std::max<int64_t>(1, record.elements)) /
                             static_cast<double>(std::max<int64_t>(1, *elements))));
  };
  std::sort(relatives.begin(), relatives.end(), [&](const auto &a, const auto &b) {
    return distance(a) != distance(b) ? distance(a) < distance(b) : isBetterSource(a, b);
  });
  for (ResultRecord &record : relatives)
    add(0, std::move(record), *elements, records.source());
}

/// The range of a variant of the heuristic, cut at its records.
void Tuning::addRange(std::vector<ScheduleVariant> &all, size_t variant) const {
  const ScheduleVariant &standard = heuristic_[variant];
  const auto found = matches_.find(variant);
  if (found == matches_.end()) {
    all.push_back(standard);
    return;
  }
  const SizeExpr &measure = measureOf(variant);
  const int64_t limit = standard.guard.limit;
  auto push = [&](const Schedule &schedule, const std::string &reason, int64_t most) {
    ScheduleVariant piece{schedule, most == INT64_MAX ? Guard{} : Guard{measure, most}, reason};
    if (!all.empty() && all.back().schedule == schedule && all.back().guard.value == measure)
      all.pop_back();
    all.push_back(std::move(piece));
  };
  auto times = [](int64_t value, int64_t factor) {
    return value > INT64_MAX / factor ? INT64_MAX : value * factor;
  };
  // Up to which this variant's range is dealt with: by the variant before, where it asks the same.
  int64_t covered = 0;
  if (variant > 0 && heuristic_[variant - 1].guard.value == measure)
    covered = heuristic_[variant - 1].guard.limit;
  for (auto at = found->second.begin(); at != found->second.end(); ++at) {
    const Match &match = at->second;
    int64_t low = at->first / kRelatives, high = times(at->first, kRelatives);
    const auto next = std::next(at);
    if (next != found->second.end() && next->first / kRelatives <= high)
      high = static_cast<int64_t>(
          std::sqrt(static_cast<double>(at->first) * static_cast<double>(next->first)));
    if (op_.sizes.empty()) // one problem
      low = 0, high = INT64_MAX;
    if (low > covered + 1)
      push(standard.schedule, standard.reason, low - 1);
    const ResultRecord &record = match.record;
    push(match.schedule,
         fmt::format("{}{:.2f} ({:.2f} to {:.2f}) times as fast as the heuristic's with {} "
                     "thread{}, {} caches; {}",
                     kTuned, record.gain.value, record.gain.low, record.gain.high,
                     record.key.threads, record.key.threads == 1 ? "" : "s",
                     toString(record.key.cache).str(), match.source),
         std::min(high, limit));
    covered = std::max(covered, std::min(high, limit));
  }
  if (covered < limit)
    push(standard.schedule, standard.reason, limit);
}

/// Where there would be too many variants, the records that bring least go.
std::vector<ScheduleVariant> Tuning::take() {
  while (true) {
    std::vector<ScheduleVariant> all;
    for (size_t i = 0; i < heuristic_.size(); ++i)
      addRange(all, i);
    if (all.size() <= kMostVariants)
      return all;
    // Where the default was found to be best it stays: it bounds what neighbors hold for.
    Match *least = nullptr;
    size_t of = 0;
    for (auto &[variant, matches] : matches_)
      for (auto &[at, match] : matches)
        if (!(match.schedule == heuristic_[variant].schedule) &&
            (!least || match.record.gain.value < least->record.gain.value))
          least = &match, of = variant;
    if (!least) // of defaults alone there are as many as of the heuristic
      return heuristic_;
    least->schedule = heuristic_[of].schedule;
  }
}

} // namespace

llvm::Expected<std::vector<ScheduleVariant>>
chooseSchedules(const Operator &op, const TargetDescription &target, const ScheduleSource &source) {
  if (!source.forced.empty()) {
    llvm::Expected<Schedule> schedule = parseSchedule(source.forced, op);
    if (!schedule)
      return schedule.takeError();
    if (llvm::Error error = checkSchedule(*schedule, op, target))
      return error;
    return std::vector<ScheduleVariant>{{std::move(*schedule), Guard{}, "given", true}};
  }
  std::vector<ScheduleVariant> variants = selectSchedules(op, target);
  if (source.heuristicAlone || target.device)
    return variants;
  Tuning tuning(op, target, std::move(variants));
  if (source.tuned)
    tuning.apply(*source.tuned);
  // Nobody asked for these: a schedule for two threads may have two tasks.
  tuning.apply(TunedRecords::ofProject(), usableProcessors());
  return tuning.take();
}

std::string_view recordsOf(std::string_view reason) {
  // A compiled variant's begins with its form.
  const size_t tuned = reason.find(kTuned), source = reason.rfind("; ");
  return tuned == reason.npos || source == reason.npos || source < tuned
             ? std::string_view()
             : reason.substr(source + 2);
}

} // namespace normforge
