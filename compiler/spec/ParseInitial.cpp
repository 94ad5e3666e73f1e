// Parses `value` and `initializer` of `parameters`, and Keras 1's `weights`.
#include "compiler/spec/Parser.h"
#include "compiler/spec/Values.h"

#include "compiler/spec/Initialize.h"

#include "llvm/ADT/STLExtras.h"

#include <array>
#include <cmath>

namespace normforge::spec {
namespace {

constexpr Choice initializers[] = {{"zeros"},   {"ones"},   {"constant"},
                                   {"uniform"}, {"normal"}, {"truncated_normal"}};
constexpr Alias initializerAliases[] = {{"zero", "zeros"},
                                        {"one", "ones"},
                                        {"random_uniform", "uniform"},
                                        {"random_normal", "normal"},
                                        {"RandomUniform", "uniform"},
                                        {"RandomNormal", "normal"},
                                        {"TruncatedNormal", "truncated_normal"},
                                        {"Zeros", "zeros"},
                                        {"Ones", "ones"},
                                        {"Constant", "constant"}};
/// Keras's ranges.
constexpr double kSpread = 0.05;
constexpr std::string_view uniformKeys[] = {"min", "max"};
constexpr std::string_view normalKeys[] = {"mean", "stddev"};

/// A number as the dtype has it.
bool isFinite(double number, DType dtype) {
  HostArray array(dtype, {1});
  array.set(0, number);
  return std::isfinite(array.get(0));
}

} // namespace

void Parser::readInitialValue(const Value &value, const std::string &path, Initial &into) {
  written_[&into] = &value;
  const auto readNumber = [&](const Value &of) -> std::optional<double> {
    const auto number = asNumber(of);
    if (!number)
      error(of, fmt::format("{} must be a list of numbers; found {}", path, found(of)));
    else if (!isFinite(*number, spec_.parameterDType))
      error(of, fmt::format("{} is {}, and {} is more than that holds", path,
                            toString(spec_.parameterDType), found(of)));
    else if (&into == &spec_.spreadInitial && *number < 0)
      error(of, fmt::format("{} must be at least 0; found {}", path, found(of)));
    return number;
  };
  if (asNumber(value)) {
    into = {Initial::Kind::Constant, readNumber(value).value_or(0), 0, {}, {}, path, true};
    return;
  }
  if (value.isList()) {
    Initial initial{Initial::Kind::Values, 0, 0, {}, {}, path, true};
    for (const Value &item : value.items)
      if (const auto number = readNumber(item))
        initial.values.push_back(*number);
      else
        return;
    checkValues(value, path, initial.values.size());
    into = std::move(initial);
    return;
  }
  const auto word = asWord(value);
  if (!word || !word->ends_with(".npy")) {
    error(value, fmt::format("{} must be a number, a list of numbers or the path of an .npy file; "
                             "found {}",
                             path, found(value)));
    return;
  }
  // Whether it is there is seen when someone asks for it: `initialize`, or foldValues.
  into = {Initial::Kind::File, 0, 0, {}, std::string(*word), path, true};
}

void Parser::checkValues(const Value &value, const std::string &path, size_t count) {
  if (!shapeKnown_ || !axesKnown_)
    return;
  int64_t product = 1;
  for (const int axis : spec_.axes) {
    const Size &size = spec_.shape[static_cast<size_t>(axis)];
    if (size.isNamed() || __builtin_mul_overflow(product, size.value, &product))
      return; // it is told when the array is made
  }
  if (static_cast<int64_t>(count) != product)
    error(value, fmt::format("{} has {} numbers; the axes of gamma and beta have {}", path, count,
                             product));
}

void Parser::readInitializer(const Value &value, const std::string &path, Initial &into) {
  if (isNull(value))
    return;
  const auto chosen = chosenBy(value);
  if (!chosen || value.isList()) {
    error(value, fmt::format("{} must be a word, or a mapping of it to its numbers, such as "
                             "{{constant: 0.5}}; found {}",
                             path, found(value)));
    return;
  }
  const auto &[word, more] = *chosen;
  const auto index = choose(word, path, initializers, diagnostics_, initializerAliases);
  if (!index)
    return;
  const std::string name(initializers[*index].name), whole = path + "." + name;
  if (name == "zeros" || name == "ones") {
    if (more)
      error(*more, fmt::format("{} takes no number; found {}", whole, found(*more)));
    into = {Initial::Kind::Constant, name == "ones" ? 1.0 : 0.0, 0, {}, {}, path};
    return;
  }
  if (name == "constant") {
    const auto number = more ? asNumber(*more) : std::nullopt;
    if (number && (!isFinite(*number, spec_.parameterDType) ||
                   (&into == &spec_.spreadInitial && *number < 0)))
      error(*more, fmt::format("{} must be a number{} that {} holds; found {}", whole,
                               &into == &spec_.spreadInitial ? " of at least 0" : "",
                               toString(spec_.parameterDType), found(*more)));
    else if (number)
      into = {Initial::Kind::Constant, *number, 0, {}, {}, path};
    else
      error(more ? *more : value,
            fmt::format("{} needs its number, such as {{constant: 0.5}}; found {}", whole,
                        more ? found(*more) : "none"));
    return;
  }
  const bool isUniform = name == "uniform";
  Initial initial{isUniform          ? Initial::Kind::Uniform
                  : name == "normal" ? Initial::Kind::Normal
                                     : Initial::Kind::TruncatedNormal,
                  isUniform ? -kSpread : 0,
                  kSpread,
                  {},
                  {},
                  path};
  if (more && !more->isMapping()) {
    error(*more, fmt::format("{} must be a mapping of its numbers, {}; found {}", whole,
                             isUniform ? "{min: ..., max: ...}" : "{mean: ..., stddev: ...}",
                             found(*more)));
    return;
  }
  if (more) {
    const Keys keys(*more, whole, isUniform ? uniformKeys : normalKeys, diagnostics_);
    for (const Entry *key : keys.entries()) {
      const auto number = asNumber(key->value);
      const bool isFirst = key->key == "min" || key->key == "mean";
      if (!number || (key->key == "stddev" && *number < 0))
        error(key->value,
              fmt::format("{}.{} must be a number{}; found {}", whole, key->key,
                          key->key == "stddev" ? " of at least 0" : "", found(key->value)));
      else
        (isFirst ? initial.first : initial.second) = *number;
    }
    if (isUniform && initial.second < initial.first)
      error(*more,
            fmt::format("{}.max {} is less than min {}", whole, initial.second, initial.first));
  }
  into = initial;
}

void Parser::readWeights() {
  const Entry *entry = keys_.find("weights");
  if (!entry || isNull(entry->value))
    return;
  if (!semanticsName_.starts_with("keras-1.")) {
    diagnostics_.error(entry->offset,
                       fmt::format("'weights' belongs to semantics keras-1.2 and keras-1.0.4; "
                                   "found {}",
                                   quoted(semanticsName_)));
    return;
  }
  const Value &value = entry->value;
  if (!value.isList() || value.items.size() != 4) {
    error(value, fmt::format("weights must be the four arrays [gamma, beta, mean, std]; found {}",
                             value.isList() ? fmt::format("{} of them", value.items.size())
                                            : found(value)));
    return;
  }
  const std::array<Initial *, 4> into = {&spec_.gammaInitial, &spec_.betaInitial,
                                         &spec_.meanInitial, &spec_.spreadInitial};
  const std::array<bool, 4> exists = {spec_.scale, spec_.center, spec_.hasMovingStatistics(),
                                      spec_.hasMovingStatistics()};
  for (size_t i = 0; i < into.size(); ++i) {
    if (!into[i]->key.empty())
      spec_.notes.push_back(fmt::format("{} has no effect: weights win over it", into[i]->key));
    if (spec_.initializes && modeKnown_ && !exists[i])
      spec_.notes.push_back(fmt::format("weights[{}] has no effect: the layer has none", i));
    readInitialValue(value.items[i], fmt::format("weights[{}]", i), *into[i]);
  }
  if (!spec_.initializes && !spec_.foldsValues())
    spec_.notes.push_back("weights has no effect: initialize is none of the phases");
}

/// Checks values that the kernel is to have within it, and reads those of files.
void Parser::foldValues() {
  if (!shapeKnown_ || !axesKnown_ || !modeKnown_)
    return;
  for (const std::string &name : foldedNames(spec_)) {
    const auto isIt = [&](const auto &written) { return written.first == initialOf(spec_, name); };
    const auto written = llvm::find_if(written_, isIt);
    Initial &initial = *written->first;
    const Value &value = *written->second;
    if (initial.kind == Initial::Kind::Constant)
      continue;
    const auto isNamed = [&](int axis) { return spec_.shape[static_cast<size_t>(axis)].isNamed(); };
    if (const auto named = llvm::find_if(spec_.axes, isNamed); named != spec_.axes.end()) {
      error(value, fmt::format("{} is in the kernel where inference is the only phase, and the "
                               "sizes of its axes must be numbers; found {}. With phases: "
                               "[inference, initialize] it is an argument",
                               initial.key, quoted(spec_.shape[static_cast<size_t>(*named)].name)));
      continue;
    }
    if (initial.kind != Initial::Kind::File)
      continue; // checkValues has counted them
    if (!readArray_) {
      error(value, fmt::format("{} is in the kernel where inference is the only phase, and only "
                               "the command reads files; found {}, expected numbers. With phases: "
                               "[inference, initialize] it is an argument",
                               initial.key, quoted(initial.path)));
      continue;
    }
    auto array = initialValue(spec_, name, {}, /*seed=*/0, readArray_);
    if (!array) {
      error(value, fmt::format("{}: {}", initial.key, llvm::toString(array.takeError())));
      continue;
    }
    initial.kind = Initial::Kind::Values;
    for (int64_t i = 0; i < array->count(); ++i)
      initial.values.push_back(array->get(i));
  }
}

} // namespace normforge::spec
