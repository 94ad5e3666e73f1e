#include "compiler/cli/TuneOptions.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/Support/Path.h"

#include <cmath>
#include <fmt/format.h>

namespace normforge::cli {

llvm::Expected<double> parseDuration(llvm::StringRef option, llvm::StringRef word) {
  auto wrong = [&] {
    return badInput(fmt::format("{}: expected a time above 0 such as 90s, 10m or 1.5h, found '{}'",
                                option.str(), word.str()));
  };
  constexpr std::pair<llvm::StringLiteral, double> units[] = {
      {"ms", 1e-3}, {"s", 1}, {"m", 60}, {"min", 60}, {"h", 3600}, {"d", 86400}};
  llvm::StringRef number =
      word.take_while([](char c) { return (c >= '0' && c <= '9') || c == '.'; });
  const llvm::StringRef unit = word.drop_front(number.size());
  double factor = unit.empty() ? 1 : 0;
  for (const auto &[name, seconds] : units)
    if (unit == name)
      factor = seconds;
  double value = 0;
  if (factor == 0 || number.getAsDouble(value) || !(value > 0) || !std::isfinite(value))
    return wrong();
  return value * factor;
}

std::string durationInWords(double seconds) {
  const auto whole = static_cast<int64_t>(std::max(0.0, seconds) + 0.5);
  if (whole < 60)
    return fmt::format("{} s", whole);
  if (whole < 3600)
    return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

namespace {

std::optional<int64_t> numberIn(const char *text) {
  int64_t value;
  if (!text || llvm::StringRef(text).getAsInteger(10, value))
    return std::nullopt;
  return value;
}

} // namespace

llvm::Expected<Shard> chooseShard(llvm::StringRef word, const Environment &environment) {
  if (!word.empty()) {
    Shard shard{0, 0, "--shard"};
    auto [index, count] = word.split('/');
    if (index.getAsInteger(10, shard.index) || count.getAsInteger(10, shard.count) ||
        shard.index < 1 || shard.index > shard.count)
      return badInput(
          fmt::format("--shard: expected INDEX/COUNT with an index from 1 to the count, "
                      "such as 3/16, found '{}'",
                      word.str()));
    return shard;
  }
  auto number = [&](const char *name) { return numberIn(environment(name)); };
  auto checked = [&](const char *name, std::optional<int64_t> index,
                     std::optional<int64_t> count) -> llvm::Expected<Shard> {
    if (!index || !count || *index < 1 || *index > *count)
      return badInput(fmt::format(
          "{} is '{}', which is no part of a sweep of {}; give --shard INDEX/COUNT", name,
          environment(name), count ? std::to_string(*count) : "an unknown number"));
    return Shard{static_cast<size_t>(*index), static_cast<size_t>(*count), name};
  };
  // A Slurm array: --array=1-16, also with a step.
  if (environment("SLURM_ARRAY_TASK_ID")) {
    const auto id = number("SLURM_ARRAY_TASK_ID"), least = number("SLURM_ARRAY_TASK_MIN"),
               step = number("SLURM_ARRAY_TASK_STEP"), count = number("SLURM_ARRAY_TASK_COUNT");
    std::optional<int64_t> index;
    if (id && least && *id >= *least && step.value_or(1) > 0)
      index = (*id - *least) / step.value_or(1) + 1;
    return checked("SLURM_ARRAY_TASK_ID", index, count);
  }
  constexpr std::pair<const char *, const char *> ranks[] = {
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
      {"PMI_RANK", "PMI_SIZE"},
      {"SLURM_PROCID", "SLURM_NTASKS"}};
  for (auto [rank, size] : ranks)
    if (environment(rank) && number(size).value_or(1) > 1)
      return checked(rank, number(rank) ? std::optional(*number(rank) + 1) : std::nullopt,
                     number(size));
  // An indexed job of Kubernetes does not tell how many there are: its manifest does.
  if (environment("JOB_COMPLETION_INDEX")) {
    const auto index = number("JOB_COMPLETION_INDEX");
    return checked("JOB_COMPLETION_INDEX", index ? std::optional(*index + 1) : std::nullopt,
                   number("JOB_COMPLETIONS"));
  }
  return Shard();
}

std::string shardFile(const std::string &path, const Shard &shard) {
  if (shard.count == 1)
    return path;
  const std::string extension = llvm::sys::path::extension(path).str();
  return fmt::format("{}.{}-of-{}{}", path.substr(0, path.size() - extension.size()), shard.index,
                     shard.count, extension);
}

llvm::Expected<SizeLists> parseSizeLists(const std::vector<std::string> &words) {
  SizeLists lists;
  for (const std::string &word : words) {
    auto [name, text] = llvm::StringRef(word).split('=');
    llvm::SmallVector<llvm::StringRef> parts;
    text.split(parts, ',');
    std::vector<int64_t> values;
    for (llvm::StringRef part : parts) {
      int64_t value;
      if (name.empty() || part.getAsInteger(10, value) || value < 1)
        return badInput(fmt::format("--size: expected NAME=VALUE[,VALUE] with whole numbers from 1 "
                                    "to 2^63 - 1, found '{}'",
                                    word));
      if (!llvm::is_contained(values, value))
        values.push_back(value);
    }
    if (!lists.emplace(name.str(), std::move(values)).second)
      return badInput(fmt::format("--size: {} is given twice", name.str()));
  }
  return lists;
}

} // namespace normforge::cli
