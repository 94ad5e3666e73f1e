#include "compiler/cli/Command.h"

#include "compiler/export/CHeader.h"
#include "compiler/target/CodeGen.h"
#include "runtime/cpu_info/CpuInfo.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"

#include <algorithm>
#include <cstdlib>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge::cli {

namespace {

class CommandError : public llvm::ErrorInfo<CommandError> {
public:
  static char ID;
  CommandError(std::string text, int status) : text(std::move(text)), status(status) {}
  void log(llvm::raw_ostream &os) const override { os << text; }
  std::error_code convertToErrorCode() const override { return llvm::inconvertibleErrorCode(); }

  const std::string text;
  const int status;
};
char CommandError::ID = 0;

} // namespace

llvm::Error badInput(const std::string &text) {
  return llvm::make_error<CommandError>("normforge: error: " + text, BadInput);
}

llvm::Error located(llvm::Error error) {
  return llvm::make_error<CommandError>(llvm::toString(std::move(error)), BadInput);
}

llvm::Error internalError(llvm::Error error) {
  if (error.isA<StackError>())
    return error;
  return llvm::make_error<CommandError>("normforge: " + llvm::toString(std::move(error)),
                                        InternalError);
}

int report(llvm::Error error) {
  int status = Success;
  auto print = [](llvm::StringRef text) { llvm::errs() << text.rtrim('\n') << '\n'; };
  llvm::handleAllErrors(
      std::move(error),
      [&](const CommandError &e) {
        print(e.text);
        status = std::max(status, e.status);
      },
      [&](const SpecError &e) {
        print(e.text());
        status = std::max<int>(status, BadInput);
      },
      [&](const StackError &e) {
        print("normforge: error: " + e.message());
        status = std::max<int>(status, BadInput);
      },
      [&](const llvm::ErrorInfoBase &e) {
        print("normforge: internal error: " + e.message());
        status = InternalError;
      });
  return status;
}

// ---- Options ------------------------------------------------------------------------------------

llvm::Expected<NamedText> parseNamedText(llvm::StringRef word, llvm::StringRef what) {
  auto [name, text] = word.split('=');
  if (name.empty() || text.empty() || !word.contains('='))
    return badInput(fmt::format("expected NAME={}, found '{}'", what.str(), word.str()));
  return NamedText{name.str(), text.str()};
}

llvm::Expected<NamedSizes> parseSizes(const std::vector<std::string> &words) {
  NamedSizes sizes;
  for (const std::string &word : words) {
    auto [name, text] = llvm::StringRef(word).split('=');
    int64_t value;
    if (name.empty() || text.getAsInteger(10, value) || value < 1)
      return badInput(fmt::format("--size: expected NAME=VALUE with a whole number from 1 to "
                                  "2^63 - 1, found '{}'",
                                  word));
    if (!sizes.emplace(name.str(), value).second)
      return badInput(fmt::format("--size: {} is given twice", name.str()));
  }
  return sizes;
}

llvm::Error checkSizeNames(const std::vector<std::string> &names, const std::string &path,
                           const NamedSizes &sizes) {
  for (const auto &[name, value] : sizes)
    if (!llvm::is_contained(names, name))
      return badInput(fmt::format("--size: {} has no size '{}'; {}", path, name,
                                  names.empty()
                                      ? "all of its sizes are numbers"
                                      : fmt::format("it has {}", fmt::join(names, ", "))));
  return llvm::Error::success();
}

llvm::Expected<std::optional<uint64_t>> parseNumber(llvm::StringRef option, llvm::StringRef word,
                                                    uint64_t least, uint64_t most) {
  if (word.empty())
    return std::optional<uint64_t>();
  uint64_t value;
  if (word.getAsInteger(10, value) || value < least || value > most)
    return badInput(fmt::format("{}: expected a whole number from {} to {}, found '{}'",
                                option.str(), least, most, word.str()));
  return std::optional<uint64_t>(value);
}

llvm::Expected<int> parseThreads(llvm::StringRef word) {
  auto threads = parseNumber("--threads", word, 1, 1024);
  if (!threads)
    return threads.takeError();
  return static_cast<int>(threads->value_or(static_cast<uint64_t>(usableProcessors())));
}

bool environmentVerifies() {
  const char *word = std::getenv("NORMFORGE_VERIFY");
  return word && llvm::StringRef(word) == "1";
}

std::string stepsInWords(const Spec &spec) {
  std::string text;
  for (auto [word, steps] : {std::pair{"after", &spec.prologue}, {"then", &spec.fuse}}) {
    std::vector<std::string> texts;
    for (const FuseStep &step : *steps)
      texts.push_back(step.text());
    if (!texts.empty())
      text += fmt::format(", {} {}", word, fmt::join(texts, ", "));
  }
  return text;
}

std::string phaseChoices() {
  std::string text;
  for (Phase phase : kPhases)
    text += fmt::format("{}{}",
                        phase == kPhases[0]                        ? ""
                        : phase == kPhases[std::size(kPhases) - 1] ? " or "
                                                                   : ", ",
                        toString(phase));
  return text;
}

llvm::Expected<Phase> choosePhase(const Spec &spec, llvm::StringRef path, llvm::StringRef word) {
  if (word.empty())
    return spec.phases.front();
  const std::optional<Phase> phase = parsePhase(word);
  if (phase && spec.hasPhase(*phase))
    return *phase;
  std::vector<std::string_view> listed;
  for (Phase p : spec.phases)
    listed.push_back(toString(p));
  if (word == kInitialize && spec.initializes)
    return badInput("--phase: initialize has no kernel; `normforge run` does it");
  if (spec.initializes)
    listed.push_back(kInitialize);
  return badInput(fmt::format("--phase: '{}' is none of the phases of {}: {}", word.str(),
                              path.str(), fmt::join(listed, ", ")));
}

namespace {

/// "l1=32K,l2=512K,l3=2M".
llvm::Expected<GivenCaches> parseCaches(llvm::StringRef text) {
  GivenCaches caches;
  llvm::SmallVector<llvm::StringRef> words;
  text.split(words, ',', -1, /*KeepEmpty=*/!text.empty());
  for (llvm::StringRef word : words) {
    auto [name, size] = word.split('=');
    std::optional<int64_t> *const cache = name == "l1"   ? &caches.l1
                                          : name == "l2" ? &caches.l2
                                          : name == "l3" ? &caches.l3
                                                         : nullptr;
    int shift = 0;
    if (size.consume_back("K"))
      shift = 10;
    else if (size.consume_back("M"))
      shift = 20;
    uint64_t bytes;
    constexpr uint64_t least = 1024, most = uint64_t(1) << 40;
    if (!cache || size.getAsInteger(10, bytes) || bytes > most || bytes << shift < least ||
        bytes << shift > most)
      return badInput(fmt::format("--cache: expected l1=BYTES,l2=BYTES,l3=BYTES of 1K to 1048576M, "
                                  "such as l1=32K,l2=512K,l3=2M, found '{}'",
                                  word.str()));
    if (*cache)
      return badInput(fmt::format("--cache: {} is given twice", name.str()));
    *cache = static_cast<int64_t>(bytes << shift);
  }
  return caches;
}

llvm::Expected<TargetDescription> chooseOne(llvm::StringRef cpu, const TargetOptions &options) {
  auto caches = parseCaches(options.caches);
  if (!caches)
    return caches.takeError();
  auto target = describeTarget(cpu, options.machine, *caches);
  if (!target)
    return badInput((options.machine.empty() ? "--cpu: " : "--target and --cpu: ") +
                    llvm::toString(target.takeError()));
  if (target->device && !options.takesGpus)
    return badInput(
        fmt::format("--cpu: {} is a GPU, which only compile --emit of a stage, pack, check and "
                    "explain take yet (not built)",
                    target->cpu));
  if (!options.caches.empty() && target->l1Bytes > target->l2Bytes)
    return badInput(fmt::format("--cache: L1 of {} is larger than L2 of {}",
                                describeBytes(static_cast<double>(target->l1Bytes)),
                                describeBytes(static_cast<double>(target->l2Bytes))));
  if (target->cachesAreAssumed)
    llvm::errs() << fmt::format(
        "normforge: note: the caches of {} are not known, and {} haswell's: L1 {}K, L2 {}K, L3 "
        "{}M; "
        "--cache l1=...,l2=...,l3=... says them\n",
        target->cpu, options.caches.empty() ? "taken as" : "where not given taken as",
        target->l1Bytes >> 10, target->l2Bytes >> 10, target->l3Bytes >> 20);
  return target;
}

} // namespace

llvm::Expected<TargetDescription> chooseTarget(const TargetOptions &options) {
  return chooseOne(options.cpus.empty() ? "" : llvm::StringRef(options.cpus.front()), options);
}

llvm::Expected<std::vector<TargetDescription>> chooseTargets(const TargetOptions &options) {
  if (options.cpus.size() > 1 && !options.caches.empty())
    return badInput(fmt::format("--cache is of one CPU, and {} are given", options.cpus.size()));
  std::vector<TargetDescription> targets;
  for (const std::string &cpu :
       options.cpus.empty() ? std::vector<std::string>{"native"} : options.cpus) {
    auto target = chooseOne(cpu, options);
    if (!target)
      return target.takeError();
    for (const TargetDescription &other : targets) {
      // LLVM knows some under two names, which differ by more than letters and digits alone.
      if (identifierOf(other.cpu) == identifierOf(target->cpu))
        return badInput(fmt::format("--cpu: {} is given twice", target->cpu));
    }
    targets.push_back(std::move(*target));
  }
  return targets;
}

llvm::Expected<std::vector<Phase>> choosePhases(const Spec &spec, llvm::StringRef path,
                                                llvm::StringRef word) {
  if (word.empty())
    return spec.phases;
  auto phase = choosePhase(spec, path, word);
  if (!phase)
    return phase.takeError();
  return std::vector<Phase>{*phase};
}

std::vector<int64_t> orderSizes(const std::vector<std::string> &names, const NamedSizes &sizes,
                                std::vector<std::string> &missing) {
  std::vector<int64_t> values;
  for (const std::string &name : names) {
    const auto found = sizes.find(name);
    if (found == sizes.end())
      missing.push_back(name);
    values.push_back(found == sizes.end() ? 0 : found->second);
  }
  return values;
}

std::optional<int64_t> defaultSize(llvm::StringRef name) {
  return name == "N"   ? std::optional<int64_t>(8)
         : name == "T" ? std::optional<int64_t>(128)
                       : std::nullopt;
}

// ---- Specs --------------------------------------------------------------------------------------

llvm::Error ScheduleOptions::read() {
  if (tuned.empty())
    return llvm::Error::success();
  std::vector<std::string> warnings;
  auto found = readTunedRecords(tuned, warnings);
  for (const std::string &warning : warnings)
    llvm::errs() << warning << '\n';
  if (!found)
    return located(found.takeError());
  records = std::make_shared<const TunedRecords>(std::move(*found));
  return llvm::Error::success();
}

llvm::Expected<std::vector<ScheduleVariant>> chooseVariants(const Operator &op,
                                                            const TargetDescription &target,
                                                            const ScheduleOptions &options) {
  auto variants =
      chooseSchedules(op, target, {.forced = options.forced, .tuned = options.records.get()});
  if (!variants)
    return badInput((options.forced.empty() ? "" : "--schedule: ") +
                    llvm::toString(variants.takeError()));
  return variants;
}

llvm::Expected<Artifact> compileOperator(Session &session, const Operator &op,
                                         const ScheduleOptions &options) {
  auto variants = chooseVariants(op, session.target(), options);
  if (!variants)
    return variants.takeError();
  auto artifact = session.compile(op, *variants);
  if (!artifact)
    return internalError(artifact.takeError());
  return artifact;
}

llvm::Expected<std::vector<std::string>> findSpecs(const std::vector<std::string> &paths) {
  namespace fs = llvm::sys::fs;
  std::vector<std::string> specs;
  for (const std::string &path : paths) {
    if (!fs::is_directory(path)) {
      specs.push_back(path);
      continue;
    }
    std::vector<std::string> found;
    std::error_code code;
    for (fs::recursive_directory_iterator it(path, code), end; it != end && !code;
         it.increment(code))
      if (llvm::sys::path::extension(it->path()) == ".yaml" && !fs::is_directory(it->path()))
        found.push_back(it->path());
    if (code)
      return located(llvm::createStringError(
          fmt::format("{}: error: cannot be read: {}", path, code.message())));
    if (found.empty())
      return located(llvm::createStringError(
          fmt::format("{}: error: expected specs in this directory, found no *.yaml file", path)));
    std::sort(found.begin(), found.end());
    specs.insert(specs.end(), found.begin(), found.end());
  }
  return specs;
}

llvm::Expected<std::vector<Spec>> readSpecs(const std::vector<std::string> &paths,
                                            std::optional<Phase> asked) {
  std::vector<Spec> specs;
  llvm::Error errors = llvm::Error::success();
  for (const std::string &path : paths) {
    if (auto spec = readSpec(path, asked))
      specs.push_back(std::move(*spec));
    else
      errors = llvm::joinErrors(std::move(errors), spec.takeError());
  }
  if (errors)
    return errors;
  return specs;
}

llvm::Error checkDistinctNames(const std::vector<std::string> &paths,
                               const std::vector<Spec> &specs) {
  std::map<std::string, std::string> seen; // path by name
  for (size_t i = 0; i < specs.size(); ++i)
    if (auto [earlier, isNew] = seen.emplace(specs[i].name, paths[i]); !isNew)
      return badInput(
          fmt::format("{} and {} are both named {}; kernels are told apart by the names "
                      "of their specs",
                      earlier->second, paths[i], specs[i].name));
  return llvm::Error::success();
}

// ---- Text ---------------------------------------------------------------------------------------

std::string describe(const SizeExpr &expression, const std::vector<std::string> &names,
                     const std::optional<std::vector<int64_t>> &sizes) {
  const std::string text = expression.text(names);
  if (expression.constant() || !sizes)
    return text;
  const std::optional<int64_t> value = expression.evaluate(*sizes);
  return fmt::format("{} = {}", text, value ? std::to_string(*value) : "more than 2^63 - 1");
}

std::string describe(const std::vector<SizeExpr> &shape, const std::vector<std::string> &names) {
  std::vector<std::string> texts;
  for (const SizeExpr &size : shape)
    texts.push_back(size.text(names));
  return fmt::format("({})", fmt::join(texts, ", "));
}

std::string describe(const std::vector<int64_t> &shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

std::string describeGuard(llvm::ArrayRef<ScheduleVariant> variants, size_t index,
                          const std::vector<std::string> &names) {
  const Guard &guard = variants[index].guard;
  if (guard.limit == INT64_MAX)
    return variants.size() == 1 ? "always" : "otherwise";
  return fmt::format("when {} <= {}", guard.value.text(names), guard.limit);
}

std::string describeBytes(double bytes) {
  const char *units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} {}", bytes, units[unit])
                   : fmt::format("{:.4g} {}", bytes, units[unit]);
}

std::string shellWord(const std::string &word) {
  const bool plain = !word.empty() && llvm::all_of(word, [](char c) {
    return llvm::isAlnum(c) || llvm::StringRef("_-./=+:,@%").contains(c);
  });
  if (plain)
    return word;
  std::string quoted = "'";
  for (char c : word)
    quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

} // namespace normforge::cli
