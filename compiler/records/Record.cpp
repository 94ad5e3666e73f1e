#include "compiler/records/Record.h"

#include "normforge/normforge.h"
#include "runtime/cpu_info/CpuInfo.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Config/llvm-config.h"
#include "llvm/Support/BLAKE3.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/raw_ostream.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <tuple>

namespace normforge {

namespace {

/// A word for each value of an enumeration.
template <typename T, size_t N> using Words = std::pair<T, llvm::StringLiteral>[N];

constexpr Words<CacheState, 2> kCacheStates = {{CacheState::Warm, "warm"},
                                               {CacheState::Cold, "cold"}};
constexpr Words<BitsPolicy, 2> kBitsPolicies = {{BitsPolicy::Any, "any"},
                                                {BitsPolicy::Fixed, "fixed"}};
constexpr Words<Effort, 3> kEfforts = {
    {Effort::Quick, "quick"}, {Effort::Full, "full"}, {Effort::Exhaustive, "exhaustive"}};
constexpr Words<CandidateState, 7> kStates = {
    {CandidateState::Measured, "measured"}, {CandidateState::Behind, "behind"},
    {CandidateState::Same, "same"},         {CandidateState::Wrong, "wrong"},
    {CandidateState::Crashed, "crashed"},   {CandidateState::TimedOut, "timed out"},
    {CandidateState::Refused, "refused"}};

template <typename T, size_t N> llvm::StringRef wordOf(const Words<T, N> &words, T value) {
  return std::ranges::find(words, value, [](const auto &word) { return word.first; })->second;
}
template <typename T, size_t N>
std::optional<T> valueOf(const Words<T, N> &words, llvm::StringRef text) {
  for (const auto &[value, word] : words)
    if (word == text)
      return value;
  return std::nullopt;
}

/// The text of a list of loops' indices: "0,2".
std::string indices(const std::vector<int> &loops) {
  return fmt::format("{}", fmt::join(loops, ","));
}

std::string describe(const Operator &op, bool withSizes) {
  auto size = [&](const SizeExpr &size) { return withSizes ? size.text(op.sizes) : std::string(); };
  std::string text =
      fmt::format("{} {} in {}\n", toString(op.phase), toString(op.dtype), toString(op.compute));
  for (const Loop &loop : op.loops)
    text += fmt::format("loop {} {}\n", loop.name, size(loop.size));
  if (op.blocked)
    text += fmt::format("blocked {} {} {} {} {}\n", op.blocked->outer, op.blocked->inner,
                        op.blocked->block, op.blocked->padded, size(op.blocked->size));
  if (op.grouped)
    for (const GroupedStatistics::Axis &axis : op.grouped->axes)
      text += fmt::format("grouped {} as {}\n", indices(axis.whole), indices(axis.own));
  auto addArray = [&](const char *what, const Operand &array) {
    text += fmt::format("{} {} {} {} of {} strides", what, toString(array.dtype),
                        array.written ? "written" : "read", array.padded, indices(array.loops));
    for (const SizeExpr &stride : array.strides)
      text += withSizes                         ? " " + stride.text(op.sizes)
              : stride.constant() == int64_t(0) ? " 0"
                                                : " +";
    text += "\n";
  };
  for (const Operand &operand : op.operands)
    addArray("operand", operand);
  for (const KnownArray &known : op.known)
    addArray("known", known.array);
  // Nodes by the order in which the steps come to them: how formulas were built does not matter.
  // Constants have no numbers: whether two are equal matters no more than their values.
  std::map<Expr, size_t> numbers;
  auto numberOf = [&](Expr expr) {
    return op.exprs[expr].op == ExprOp::Constant ? std::string("#")
                                                 : std::to_string(numbers.at(expr));
  };
  for (const Step &step : op.steps) {
    text += fmt::format("step {} {} over {}\n", step.name, static_cast<int>(step.reduce),
                        indices(step.loops));
    for (Expr expr : op.exprs.nodesOf(step.values())) {
      if (op.exprs[expr].op == ExprOp::Constant || !numbers.emplace(expr, numbers.size()).second)
        continue;
      const Node &node = op.exprs[expr];
      text += fmt::format("{}", static_cast<int>(node.op));
      if (isArray(node.op))
        text += fmt::format(" of {}", node.index);
      for (unsigned i = 0; i < arityOf(node.op); ++i)
        text += " " + numberOf(node.in[i]);
      text += "\n";
    }
    for (const Result &result : step.results)
      text += fmt::format("result {} of {} to {}\n", numberOf(result.value), indices(result.loops),
                          result.operand);
  }
  return text;
}

} // namespace

std::string digestOf(llvm::StringRef text) {
  const auto hash = llvm::BLAKE3::hash<8>(llvm::arrayRefFromStringRef(text));
  return llvm::toHex(hash, /*LowerCase=*/true);
}

std::string signatureOf(const Operator &op) { return describe(op, /*withSizes=*/true); }
std::string familyOf(const Operator &op) { return describe(op, /*withSizes=*/false); }

llvm::StringRef toString(CacheState state) { return wordOf(kCacheStates, state); }
llvm::StringRef toString(BitsPolicy bits) { return wordOf(kBitsPolicies, bits); }
llvm::StringRef toString(Effort effort) { return wordOf(kEfforts, effort); }
llvm::StringRef toString(CandidateState state) { return wordOf(kStates, state); }
std::optional<CacheState> parseCacheState(llvm::StringRef word) {
  return valueOf(kCacheStates, word);
}
std::optional<BitsPolicy> parseBitsPolicy(llvm::StringRef word) {
  return valueOf(kBitsPolicies, word);
}
std::optional<Effort> parseEffort(llvm::StringRef word) { return valueOf(kEfforts, word); }

MachineKey MachineKey::of(const TargetDescription &target) {
  MachineKey key;
  key.triple = target.triple;
  key.cpu = target.cpu;
  key.features = target.instructionSets();
  key.vectorBits = target.vectorBits;
  key.l1 = target.l1Bytes;
  key.l2 = target.l2Bytes;
  key.l3 = target.l3Bytes;
  key.model = hostCpuName();
  return key;
}

std::string MachineKey::difference(const MachineKey &other) const {
  std::vector<std::string> parts;
  auto compare = [&](const char *what, const auto &here, const auto &there) {
    if (here != there)
      parts.push_back(fmt::format("{} {}, here {}", what, there, here));
  };
  compare("machine", triple, other.triple);
  compare("CPU", cpu, other.cpu);
  compare("vectors of", vectorBits, other.vectorBits);
  compare("L1", l1, other.l1);
  compare("L2", l2, other.l2);
  compare("L3", l3, other.l3);
  if (features != other.features) {
    std::vector<std::string> missing, more;
    std::ranges::set_difference(other.features, features, std::back_inserter(missing));
    std::ranges::set_difference(features, other.features, std::back_inserter(more));
    parts.push_back(fmt::format(
        "features{}{}",
        missing.empty() ? "" : fmt::format(" {}, which are not here", fmt::join(missing, " ")),
        more.empty() ? "" : fmt::format(" without {}", fmt::join(more, " "))));
  }
  return fmt::format("{}", fmt::join(parts, "; "));
}

std::string compilerKey() {
  return fmt::format("normforge {}.{}, LLVM {}", NF_VERSION_MAJOR, NF_VERSION_MINOR,
                     LLVM_VERSION_MAJOR);
}
std::string compilerVersions() {
  return fmt::format("normforge {}, LLVM {}", nf_version(), LLVM_VERSION_STRING);
}

std::string CaseKey::id() const {
  std::string text = fmt::format("{} {} {} {} {} {} {}\n", op, phase, threads,
                                 toString(cache).str(), toString(bits).str(), compiler, language);
  for (const auto &[name, value] : sizes)
    text += fmt::format("{}={}\n", name, value);
  text +=
      fmt::format("{} {} {} {} {} {} {}\n{}\n", machine.triple, machine.cpu, machine.vectorBits,
                  machine.l1, machine.l2, machine.l3, fmt::join(machine.features, " "), standard);
  return digestOf(text);
}

namespace {

/// Four digits are more than any time has.
double rounded(double value) {
  return value == 0 || !std::isfinite(value) ? 0 : std::stod(fmt::format("{:.4e}", value));
}

void put(llvm::json::Object &object, llvm::StringRef prefix, const Ratio &ratio) {
  object[prefix.str()] = rounded(ratio.value);
  object[(prefix + "_low").str()] = rounded(ratio.low);
  object[(prefix + "_high").str()] = rounded(ratio.high);
}

std::string printed(llvm::json::Object object) {
  std::string text;
  llvm::raw_string_ostream stream(text);
  stream << llvm::json::Value(std::move(object));
  return text;
}

/// Takes fields, and remembers the first that is not as it should be.
class Reader {
public:
  explicit Reader(const llvm::json::Object &object) : object_(object) {}

  std::string text(llvm::StringRef name) {
    const auto value = object_.getString(name);
    return value ? value->str() : (fail(name, "a text"), "");
  }
  double number(llvm::StringRef name) {
    const auto value = object_.getNumber(name);
    return value ? *value : (fail(name, "a number"), 0);
  }
  int64_t whole(llvm::StringRef name, int64_t least) {
    const auto value = object_.getInteger(name);
    if (value && *value >= least)
      return *value;
    fail(name, fmt::format("a whole number of at least {}", least));
    return least;
  }
  int wholeInt(llvm::StringRef name, int least) {
    return static_cast<int>(std::min<int64_t>(whole(name, least), 1 << 30));
  }
  Ratio ratio(llvm::StringRef prefix) {
    return {number(prefix), number((prefix + "_low").str()), number((prefix + "_high").str())};
  }
  /// False where it is not there.
  bool flag(llvm::StringRef name) {
    if (object_.get(name) && !object_.getBoolean(name))
      fail(name, "true or false");
    return object_.getBoolean(name).value_or(false);
  }
  const llvm::json::Object &object(llvm::StringRef name) {
    static const llvm::json::Object none;
    const llvm::json::Object *value = object_.getObject(name);
    return value ? *value : (fail(name, "an object"), none);
  }
  std::vector<std::string> texts(llvm::StringRef name) {
    std::vector<std::string> result;
    const llvm::json::Array *array = object_.getArray(name);
    if (!array)
      fail(name, "a list of texts");
    else
      for (const llvm::json::Value &value : *array)
        if (const auto text = value.getAsString())
          result.push_back(text->str());
        else
          fail(name, "a list of texts");
    return result;
  }
  template <typename T, size_t N> T word(llvm::StringRef name, const Words<T, N> &words) {
    const std::string found = text(name);
    if (const auto value = valueOf(words, found))
      return *value;
    std::vector<std::string_view> expected;
    for (const auto &[value, word] : words)
      expected.push_back(word);
    fail(name, fmt::format("one of {}", fmt::join(expected, ", ")));
    return words[0].first;
  }
  void fail(llvm::StringRef name, const std::string &expected) {
    if (!error_.empty())
      return;
    std::string found = "nothing";
    if (const llvm::json::Value *value = object_.get(name)) {
      found.clear();
      llvm::raw_string_ostream(found) << *value;
      if (found.size() > 40)
        found = found.substr(0, 40) + "...";
    }
    error_ = fmt::format("\"{}\": expected {}, found {}", name.str(), expected, found);
  }
  std::string error() { return error_; }

private:
  const llvm::json::Object &object_;
  std::string error_;
};

} // namespace

std::string toLine(const CandidateRecord &record) {
  llvm::json::Object object{{"record", "candidate"},
                            {"version", kRecordVersion},
                            {"case", record.caseId},
                            {"schedule", record.schedule},
                            {"state", toString(record.state)}};
  if (record.pairs > 0) {
    put(object, "gain", record.gain);
    object["pairs"] = record.pairs;
    object["us"] = rounded(record.microseconds);
  }
  if (!record.note.empty())
    object["note"] = llvm::json::fixUTF8(record.note);
  return printed(std::move(object));
}

std::string toLine(const ResultRecord &record) {
  const CaseKey &key = record.key;
  llvm::json::Object sizes, counts;
  for (const auto &[name, value] : key.sizes)
    sizes[name] = value;
  for (const auto &[state, count] : record.counts)
    counts[toString(state).str()] = count;
  llvm::json::Object object{
      {"record", "result"},
      {"version", kRecordVersion},
      {"case", key.id()},
      {"name", llvm::json::fixUTF8(record.name)},
      {"layout", record.layout},
      {"shape", record.shape},
      {"count", record.count},
      {"operator", key.op},
      {"family", key.family},
      {"phase", key.phase},
      {"sizes", std::move(sizes)},
      {"elements", record.elements},
      {"bytes", record.bytes},
      {"threads", key.threads},
      {"cache", toString(key.cache)},
      {"bits", toString(key.bits)},
      {"schedule", record.schedule},
      {"default", key.standard},
      {"pairs", record.pairs},
      {"us", rounded(record.microseconds)},
      {"default_us", rounded(record.standardMicroseconds)},
      {"copy_us", rounded(record.copyMicroseconds)},
      {"candidates", std::move(counts)},
      {"seconds", rounded(record.seconds)},
      {"effort", toString(record.effort)},
      {"date", record.date},
      {"machine", llvm::json::Object{{"triple", key.machine.triple},
                                     {"cpu", key.machine.cpu},
                                     {"features", llvm::json::Array(key.machine.features)},
                                     {"vector_bits", key.machine.vectorBits},
                                     {"l1", key.machine.l1},
                                     {"l2", key.machine.l2},
                                     {"l3", key.machine.l3},
                                     {"model", llvm::json::fixUTF8(key.machine.model)}}},
      {"compiler", key.compiler},
      {"versions", record.versions},
      {"language", key.language}};
  if (record.isEmulated)
    object["emulated"] = true;
  put(object, "gain", record.gain);
  put(object, "noise", record.noise);
  return printed(std::move(object));
}

static CandidateRecord readCandidate(Reader &read, const llvm::json::Object &object) {
  CandidateRecord record;
  record.caseId = read.text("case");
  record.schedule = read.text("schedule");
  record.state = read.word("state", kStates);
  if (object.get("pairs")) {
    record.gain = read.ratio("gain");
    record.pairs = read.wholeInt("pairs", 1);
    record.microseconds = read.number("us");
  }
  if (object.get("note"))
    record.note = read.text("note");
  return record;
}

static ResultRecord readResult(Reader &read, std::string &id, std::string &error) {
  ResultRecord record;
  CaseKey &key = record.key;
  id = read.text("case");
  record.name = read.text("name");
  record.layout = read.text("layout");
  record.shape = read.text("shape");
  record.count = read.whole("count", 1);
  record.isEmulated = read.flag("emulated");
  key.op = read.text("operator");
  key.family = read.text("family");
  key.phase = read.text("phase");
  for (const auto &[name, value] : read.object("sizes")) {
    const auto size = value.getAsInteger();
    if (!size || *size < 1)
      read.fail("sizes", "whole numbers of at least 1");
    key.sizes[name.str()] = size.value_or(1);
  }
  record.elements = read.whole("elements", 0);
  record.bytes = read.whole("bytes", 0);
  key.threads = read.wholeInt("threads", 1);
  key.cache = read.word("cache", kCacheStates);
  key.bits = read.word("bits", kBitsPolicies);
  record.schedule = read.text("schedule");
  key.standard = read.text("default");
  record.gain = read.ratio("gain");
  record.noise = read.ratio("noise");
  record.pairs = read.wholeInt("pairs", 0);
  record.microseconds = read.number("us");
  record.standardMicroseconds = read.number("default_us");
  record.copyMicroseconds = read.number("copy_us");
  for (const auto &[name, value] : read.object("candidates")) {
    const auto state = valueOf(kStates, llvm::StringRef(name));
    const auto count = value.getAsInteger();
    if (!state || !count)
      read.fail("candidates", "a number for each state");
    else
      record.counts[*state] = static_cast<int>(*count);
  }
  record.seconds = read.number("seconds");
  record.effort = read.word("effort", kEfforts);
  record.date = read.text("date");
  Reader machine(read.object("machine"));
  key.machine.triple = machine.text("triple");
  key.machine.cpu = machine.text("cpu");
  key.machine.features = machine.texts("features");
  key.machine.vectorBits = machine.wholeInt("vector_bits", 1);
  key.machine.l1 = machine.whole("l1", 0);
  key.machine.l2 = machine.whole("l2", 0);
  key.machine.l3 = machine.whole("l3", 0);
  key.machine.model = machine.text("model");
  key.compiler = read.text("compiler");
  record.versions = read.text("versions");
  key.language = read.wholeInt("language", 0);
  error = machine.error();
  return record;
}

void forEachLine(llvm::StringRef text,
                 llvm::function_ref<void(size_t number, llvm::StringRef line)> take) {
  size_t number = 0;
  while (!text.empty()) {
    const auto [line, after] = text.split('\n');
    text = after;
    ++number;
    if (!line.trim().empty())
      take(number, line);
  }
}

llvm::Expected<Line> parseLine(llvm::StringRef line) {
  auto value = llvm::json::parse(line);
  if (!value)
    return llvm::createStringError("no JSON: " + llvm::toString(value.takeError()));
  const llvm::json::Object *object = value->getAsObject();
  if (!object)
    return llvm::createStringError("expected an object");
  Reader read(*object);
  const std::string kind = read.text("record");
  const int version = read.wholeInt("version", 1);
  if (version > kRecordVersion)
    return llvm::createStringError(
        fmt::format("is of version {}, from the future; this normforge reads up to {}", version,
                    kRecordVersion));
  Line result;
  std::string id, ofMachine;
  if (kind == "candidate")
    result.candidate = readCandidate(read, *object);
  else if (kind == "result")
    result.result = readResult(read, id, ofMachine);
  else
    read.fail("record", "candidate or result");
  if (!read.error().empty())
    return llvm::createStringError(read.error());
  if (!ofMachine.empty())
    return llvm::createStringError("machine: " + ofMachine);
  if (result.result && result.result->key.id() != id)
    return llvm::createStringError(fmt::format("\"case\" is {}, but what it is made of gives {}",
                                               id, result.result->key.id()));
  return result;
}

std::string stalenessOf(const ResultRecord &record, const TargetDescription &target) {
  std::vector<std::string> reasons;
  if (record.key.language != kScheduleLanguage)
    reasons.push_back(
        fmt::format("schedules' language {}, here {}", record.key.language, kScheduleLanguage));
  if (record.key.compiler != compilerKey())
    reasons.push_back(fmt::format("compiler {}, here {}", record.key.compiler, compilerKey()));
  if (record.isEmulated)
    reasons.push_back("measured under emulation");
  if (std::string other = MachineKey::of(target).difference(record.key.machine); !other.empty())
    reasons.push_back(std::move(other));
  return fmt::format("{}", fmt::join(reasons, "; "));
}

bool isBetterSource(const ResultRecord &a, const ResultRecord &b) {
  auto rank = [](const ResultRecord &record) {
    return std::tuple(!record.isNoisy(), record.key.threads, record.key.cache == CacheState::Warm,
                      record.effort, std::string_view(record.date),
                      std::string_view(record.schedule));
  };
  return rank(a) > rank(b);
}

} // namespace normforge
