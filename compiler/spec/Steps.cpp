#include "compiler/spec/Steps.h"

#include "compiler/expr/Functions.h"
#include "compiler/spec/Values.h"

#include <cmath>
#include <optional>

namespace normforge::spec {
namespace {

constexpr Alias aliases[] = {
    {"sum", "add"},        {"plus", "add"},    {"residual", "add"},        {"addend", "add"},
    {"swish", "silu"},     {"ReLU6", "relu6"}, {"multiply", "mul"},        {"factor", "mul"},
    {"hardtanh", "clamp"}, {"clip", "clamp"},  {"LeakyReLU", "leaky_relu"}};

/// The numbers after a function's name, or nothing where they are not as it takes them.
std::optional<std::vector<double>> readParameters(const Function &function, const Value *value) {
  std::vector<double> numbers;
  auto take = [&](const Value &one) {
    const std::optional<double> number = asNumber(one);
    // What f32 cannot hold would be another function.
    const bool isNumber = number && std::isfinite(static_cast<float>(*number));
    if (isNumber)
      numbers.push_back(*number);
    return isNumber;
  };
  if (function.parameters == 0)
    return value ? std::nullopt : std::optional(numbers);
  if (!value)
    return std::nullopt;
  if (function.parameters == 1)
    return take(*value) ? std::optional(numbers) : std::nullopt;
  if (!value->isList() || value->items.size() != function.parameters)
    return std::nullopt;
  for (const Value &item : value->items)
    if (!take(item))
      return std::nullopt;
  return numbers[0] <= numbers[1] ? std::optional(numbers) : std::nullopt;
}

/// A step of a list, or an error. `choices` say whether each is built there.
std::optional<FuseStep> readStep(const Value &item, std::string_view list,
                                 std::span<const Choice> choices, Diagnostics &diagnostics) {
  std::string what = fmt::format("step of {}", list);
  Value name = item; // a step with parameters is a mapping of one key
  const Value *parameters = nullptr;
  if (item.isMapping() && item.entries.size() == 1) {
    name = Value{Value::Kind::Scalar, item.entries[0].offset, item.entries[0].key, true, {}, {}};
    parameters = &item.entries[0].value;
  }
  std::optional<size_t> index = choose(name, what, choices, diagnostics, aliases);
  if (!index)
    return std::nullopt;
  FuseStep step{std::string(choices[*index].name)};
  const Function *function = findFunction(step.name);
  static constexpr Function operand{"", "", 0, nullptr};
  auto numbers = readParameters(function ? *function : operand, parameters);
  if (!function && parameters && !isNull(*parameters)) {
    diagnostics.unbuilt(
        parameters->offset,
        fmt::format("'{}' with axes, a name or a store is not built yet", step.name));
    return std::nullopt;
  }
  if (!numbers) {
    diagnostics.error(parameters && !isNull(*parameters) ? parameters->offset : name.offset,
                      !function || function->parameters == 0
                          ? fmt::format("'{}' takes no parameter", step.name)
                          : fmt::format("'{}' is written as '{}'", step.name, function->example));
    return std::nullopt;
  }
  step.parameters = std::move(*numbers);
  return step;
}

/// The functions and these, and whether they are built.
std::vector<Choice> choicesOf(std::initializer_list<Choice> operands, bool functionsAreBuilt) {
  std::vector<Choice> choices(operands);
  for (const Function &function : functions())
    choices.push_back({function.name, functionsAreBuilt});
  return choices;
}

/// Each step is code in every loop of a kernel.
bool checkCount(const Value &list, const char *what, Diagnostics &diagnostics) {
  constexpr size_t maxSteps = 32;
  if (list.items.size() <= maxSteps)
    return true;
  diagnostics.error(list.offset, fmt::format("{} has {} steps; expected at most {}", what,
                                             list.items.size(), maxSteps));
  return false;
}

} // namespace

std::vector<FuseStep> readFuse(const Value &value, Diagnostics &diagnostics) {
  std::vector<FuseStep> fuse;
  if (!value.isList()) {
    diagnostics.error(value.offset, fmt::format("fuse must be a list such as [add, relu]; found {}",
                                                found(value)));
    return fuse;
  }
  const auto choices =
      choicesOf({{"add", true}, {"mul", false}, {"expr", false}}, /*functionsAreBuilt=*/true);
  if (!checkCount(value, "fuse", diagnostics))
    return fuse;
  const Value *firstAdd = nullptr;
  for (const Value &item : value.items) {
    std::optional<FuseStep> step = readStep(item, "fuse", choices, diagnostics);
    if (!step)
      continue;
    if (step->name == "relu" && !fuse.empty() && fuse.back() == *step) {
      diagnostics.error(item.offset, "fuse has 'relu' after 'relu', which leaves it as it is");
      continue;
    }
    if (step->isAdd() && firstAdd) {
      diagnostics.error(item.offset, "fuse has 'add' twice, but a kernel has one addend");
      diagnostics.note(firstAdd->offset, "the first one is here");
      continue;
    }
    if (step->isAdd())
      firstAdd = &item;
    fuse.push_back(std::move(*step));
  }
  return fuse;
}

bool checkPrologue(const Value &value, Diagnostics &diagnostics) {
  if (!value.isList()) {
    diagnostics.error(value.offset, fmt::format("prologue must be a list such as [bias]; found {}",
                                                found(value)));
    return false;
  }
  const auto choices =
      choicesOf({{"bias"}, {"add"}, {"mul"}, {"expr"}}, /*functionsAreBuilt=*/true);
  bool right = checkCount(value, "prologue", diagnostics);
  for (size_t i = 0; right && i < value.items.size(); ++i)
    right &= readStep(value.items[i], "prologue", choices, diagnostics).has_value();
  return right;
}

} // namespace normforge::spec
