#include "compiler/spec/Steps.h"

#include "compiler/spec/Values.h"

#include <optional>

namespace normforge::spec {
namespace {

enum class Parameters : uint8_t { None, Number, Range };

struct Step {
  std::string_view name;
  Parameters parameters = Parameters::None;
  std::string_view example = {};
};
constexpr Step steps[] = {
    {"add"},
    {"relu"},
    {"mul"},
    {"relu6"},
    {"leaky_relu", Parameters::Number, "leaky_relu: 0.01"},
    {"elu", Parameters::Number, "elu: 1.0"},
    {"gelu"},
    {"gelu_tanh"},
    {"sigmoid"},
    {"silu"},
    {"tanh"},
    {"clamp", Parameters::Range, "clamp: [0, 6]"},
    {"bias"},
};
constexpr Alias aliases[] = {
    {"sum", "add"},        {"plus", "add"},    {"residual", "add"},        {"addend", "add"},
    {"swish", "silu"},     {"ReLU6", "relu6"}, {"multiply", "mul"},        {"factor", "mul"},
    {"hardtanh", "clamp"}, {"clip", "clamp"},  {"LeakyReLU", "leaky_relu"}};

/// A step's name and parameters, or an error. `built` says whether each step is built in this list.
std::optional<std::string_view> readStep(const Value &item, std::string_view list,
                                         std::span<const Choice> choices,
                                         Diagnostics &diagnostics) {
  std::string what = fmt::format("step of {}", list);
  Value name = item; // a step with parameters is a mapping of one key
  const Value *parameters = nullptr;
  if (item.isMapping() && item.entries.size() == 1) {
    name = Value{Value::Kind::Scalar, item.entries[0].offset, item.entries[0].key, true, {}, {}};
    parameters = &item.entries[0].value;
  }
  for (const Step &step : steps) {
    if (!name.isScalar() || name.text != step.name)
      continue;
    bool right = (parameters != nullptr) == (step.parameters != Parameters::None);
    if (right && step.parameters == Parameters::Number)
      right = asNumber(*parameters).has_value();
    if (right && step.parameters == Parameters::Range) {
      std::optional<double> low, high;
      if (parameters->isList() && parameters->items.size() == 2) {
        low = asNumber(parameters->items[0]);
        high = asNumber(parameters->items[1]);
      }
      right = low && high && *low <= *high;
    }
    if (!right) {
      diagnostics.error(parameters && !isNull(*parameters) ? parameters->offset : name.offset,
                        step.parameters == Parameters::None
                            ? fmt::format("'{}' takes no parameter", step.name)
                            : fmt::format("'{}' is written as '{}'", step.name, step.example));
      return std::nullopt;
    }
  }
  std::optional<size_t> index = choose(name, what, choices, diagnostics, aliases);
  if (!index)
    return std::nullopt;
  return choices[*index].name;
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

std::vector<Fused> readFuse(const Value &value, Diagnostics &diagnostics) {
  std::vector<Fused> fuse;
  if (!value.isList()) {
    diagnostics.error(value.offset, fmt::format("fuse must be a list such as [add, relu]; found {}",
                                                found(value)));
    return fuse;
  }
  std::vector<Choice> choices;
  for (const Step &step : steps)
    if (step.name != "bias")
      choices.push_back({step.name, step.name == "add" || step.name == "relu"});
  if (!checkCount(value, "fuse", diagnostics))
    return fuse;
  const Value *firstAdd = nullptr;
  for (const Value &item : value.items) {
    std::optional<std::string_view> step = readStep(item, "fuse", choices, diagnostics);
    if (step == "relu" && !fuse.empty() && fuse.back() == Fused::Relu)
      diagnostics.error(item.offset, "fuse has 'relu' after 'relu', which leaves it as it is");
    else if (step == "relu")
      fuse.push_back(Fused::Relu);
    if (step != "add")
      continue;
    if (firstAdd) {
      diagnostics.error(item.offset, "fuse has 'add' twice, but a kernel has one addend");
      diagnostics.note(firstAdd->offset, "the first one is here");
      continue;
    }
    firstAdd = &item;
    fuse.push_back(Fused::Add);
  }
  return fuse;
}

bool checkPrologue(const Value &value, Diagnostics &diagnostics) {
  if (!value.isList()) {
    diagnostics.error(value.offset, fmt::format("prologue must be a list such as [bias]; found {}",
                                                found(value)));
    return false;
  }
  std::vector<Choice> choices;
  for (const Step &step : steps)
    if (step.name != "mul")
      choices.push_back({step.name});
  bool right = checkCount(value, "prologue", diagnostics);
  for (size_t i = 0; right && i < value.items.size(); ++i)
    right &= readStep(value.items[i], "prologue", choices, diagnostics).has_value();
  return right;
}

} // namespace normforge::spec
