#include "compiler/tune/Export.h"

#include "compiler/session/Session.h"
#include "compiler/target/CodeGen.h"
#include "compiler/tune/Search.h"
#include "compiler/tune/Worker.h"
#include "runtime/cpu_info/CpuInfo.h"

#include "llvm/Support/JSON.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>

namespace normforge::tune {

namespace {

/// Elements of an output whose values are in the file; small outputs are there whole.
constexpr int64_t kExpectedElements = 1024;
/// Arrays of fewer elements are in the file as they are.
constexpr int64_t kDrawnElements = 4096;

/// The inputs at the checked sizes: large arrays of data by a rule that the other machine knows,
/// the rest as the oracle draws it; saved statistics are those of the data.
oracle::Arrays drawFor(const Case &of, const oracle::Sizes &checked, uint64_t seed,
                       std::vector<SweepFile::Input> &inputs) {
  oracle::Arrays arrays =
      oracle::drawInputs(of.spec, of.phase, checked, seed, oracle::Data::Normal, of.scalars);
  bool hasSaved = false;
  for (const Operand &operand : of.op.operands) {
    if (operand.written)
      continue;
    hasSaved |= operand.role == Role::Statistic;
    HostArray &array = arrays.at(operand.name);
    SweepFile::Input input;
    input.name = operand.name;
    input.isDrawn = of.op.isWhole(operand) && array.count() >= kDrawnElements &&
                    (array.dtype == DType::F32 || array.dtype == DType::F64);
    input.mean = operand.values == Values::Sample ? 0.5 : 0;
    input.deviation = operand.values == Values::Sample ? 2 : 1;
    if (input.isDrawn)
      fill(input, seed, array.dtype, array.bytes);
    inputs.push_back(std::move(input));
  }
  if (hasSaved) {
    const oracle::Arrays saved = oracle::batchStatistics(of.spec, checked, arrays, of.scalars);
    for (const Operand &operand : of.op.operands)
      if (!operand.written && operand.role == Role::Statistic)
        for (int64_t i = 0; i < arrays.at(operand.name).count(); ++i)
          arrays.at(operand.name).set(i, saved.at(operand.name).get(i));
  }
  for (SweepFile::Input &input : inputs)
    if (!input.isDrawn)
      input.bytes = arrays.at(input.name).bytes;
  return arrays;
}

SweepFile::Output outputOf(const std::string &name, const HostArray &expected,
                           const oracle::Tolerance &tolerance, double growth) {
  SweepFile::Output output{name, {}, 0};
  const int64_t count = expected.count();
  const int64_t step = std::max<int64_t>(1, count / kExpectedElements);
  for (int64_t i = 0; i < count; ++i) {
    const double value = expected.get(i), allowed = tolerance.allowed(i, value);
    output.allowed = std::max(output.allowed, std::isfinite(allowed) ? allowed : 0);
    // An odd distance meets every lane and every row; the first and last are where tails are.
    if (i % (step | 1) == 0 || i < 16 || i + 16 >= count)
      output.expected.push_back({static_cast<uint64_t>(i), value, allowed});
  }
  output.allowed *= 2 * growth;
  return output;
}

} // namespace

llvm::Expected<SweepFile> exportSweep(std::span<const Case> cases, const ExportOptions &options,
                                      const std::function<void(const Case &)> &show) {
  Session session(options.target, options.verify);
  SweepFile sweep;
  sweep.seed = options.seed;
  if (options.isNative)
    sweep.machine = hostIdentity();
  for (const Case &of : cases) {
    show(of);
    SweepFile::Case &one = sweep.cases.emplace_back();
    const oracle::Sizes checked = checkedSizes(of);
    ResultRecord record;
    record.key = of.key;
    describe(record, of);
    record.schedule = of.key.standard;
    one.title = of.title();
    one.id = of.key.id();
    one.record = toLine(record);
    one.sizes = of.sizeValues;
    one.checkedSizes = orderedSizes(of.op, checked);
    for (const Scalar &scalar : of.op.scalars)
      one.scalars.push_back(of.scalars.at(scalar.name));
    one.threads = static_cast<uint64_t>(of.threads);
    one.isCold = of.cache == CacheState::Cold;
    for (const Operand &operand : of.op.operands)
      if (of.op.isWhole(operand))
        (operand.written ? one.written : one.read) +=
            static_cast<uint64_t>(operand.bytes().evaluate(of.sizeValues).value_or(0));
    const oracle::Arrays inputs = drawFor(of, checked, options.seed, one.inputs);
    const oracle::Arrays expected =
        oracle::reference(of.spec, of.phase, checked, inputs, of.scalars);
    const auto tolerances = oracle::tolerances(of.spec, of.phase, checked, inputs, of.scalars);
    const auto elements = [&](const std::vector<int64_t> &sizes) {
      return static_cast<double>(of.op.elements.evaluate(sizes).value_or(1));
    };
    const double growth = std::sqrt(elements(one.sizes) / elements(one.checkedSizes));
    for (const Operand &operand : of.op.operands)
      if (operand.written)
        one.outputs.push_back(
            outputOf(operand.name, expected.at(operand.name), tolerances.at(operand.name), growth));

    std::set<std::string> codes;
    auto add = [&](const std::string &text, const Schedule &schedule) -> llvm::Error {
      auto artifact = session.compile(of.op, ScheduleVariant{schedule, Guard{}, "a candidate"});
      if (!artifact)
        return artifact.takeError();
      std::string code(reinterpret_cast<const char *>(artifact->variants[0].image.bytes.data()),
                       artifact->variants[0].image.bytes.size());
      for (const Stage &stage : artifact->variants[0].stages)
        code += stage.tasks.text(of.op.sizes) + " ";
      if (codes.insert(std::move(code)).second)
        one.candidates.push_back({text, serialize(*artifact)});
      return llvm::Error::success();
    };
    if (llvm::Error error = add(of.key.standard, of.standard))
      return error;
    Search search(of, options.target, Effort::Quick);
    // Many a schedule has the code of another.
    constexpr size_t triesEach = 8;
    for (size_t tries = 0;
         one.candidates.size() <= options.candidates && tries < triesEach * options.candidates;
         ++tries) {
      const auto text = search.next();
      if (!text)
        break;
      const size_t before = one.candidates.size();
      llvm::Error error = add(*text, llvm::cantFail(parseSchedule(*text, of.op)));
      error = llvm::handleErrors(std::move(error), [](const StackError &) {}); // costs itself
      if (error)
        return error;
      // Nothing is measured here: by the model alone, neighbors of the most promising too.
      const bool isNew = one.candidates.size() > before;
      search.tell(*text, isNew ? 1 : 0);
    }
  }
  return sweep;
}

llvm::Expected<std::string> importLine(llvm::StringRef line) {
  auto value = llvm::json::parse(line);
  if (!value)
    return llvm::createStringError("no JSON: " + llvm::toString(value.takeError()));
  const llvm::json::Object *object = value->getAsObject();
  if (!object || object->getString("record") != "measured") {
    auto parsed = parseLine(line);
    if (!parsed)
      return parsed.takeError();
    return line.str();
  }
  if (object->getInteger("version").value_or(0) != kRecordVersion)
    return llvm::createStringError("is of another version");
  const llvm::json::Object *head = object->getObject("result");
  if (!head)
    return llvm::createStringError("\"result\": expected an object");
  std::string text;
  llvm::raw_string_ostream(text) << llvm::json::Value(llvm::json::Object(*head));
  auto parsed = parseLine(text);
  if (!parsed)
    return parsed.takeError();
  if (!parsed->result)
    return llvm::createStringError("\"result\": expected a result");
  ResultRecord &record = *parsed->result;
  auto ratio = [&](llvm::StringRef name, Ratio &into) {
    const llvm::json::Array *array = object->getArray(name);
    if (!array || array->size() != 3)
      return false;
    for (auto [number, at] : {std::pair{&into.value, 0}, {&into.low, 1}, {&into.high, 2}})
      *number = (*array)[static_cast<size_t>(at)].getAsNumber().value_or(0);
    return true;
  };
  const auto schedule = object->getString("schedule"), date = object->getString("date");
  const auto us = object->getNumber("us"), standard = object->getNumber("default_us"),
             copy = object->getNumber("copy_us");
  const auto pairs = object->getInteger("pairs");
  if (!ratio("gain", record.gain) || !ratio("noise", record.noise) || !schedule || !date || !us ||
      !standard || !copy || !pairs)
    return llvm::createStringError("expected the measurements of a case");
  record.schedule = schedule->str();
  record.date = date->str();
  record.microseconds = *us;
  record.standardMicroseconds = *standard;
  record.copyMicroseconds = *copy;
  record.pairs = static_cast<int>(*pairs);
  record.key.machine.model = object->getString("model").value_or("unknown CPU").str();
  record.isEmulated = object->getBoolean("emulated").value_or(false);
  if (record.pairs < 0 || !(record.gain.value > 0) || !(record.microseconds > 0) ||
      !(record.standardMicroseconds > 0))
    return llvm::createStringError("expected times above 0");
  return toLine(record);
}

} // namespace normforge::tune
