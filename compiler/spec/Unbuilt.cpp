#include "compiler/spec/Unbuilt.h"

#include "compiler/spec/Keys.h"
#include "compiler/spec/Values.h"

#include <string>

namespace normforge::spec {
namespace {

constexpr std::string_view parameterNames[] = {"gamma", "beta", "moving_mean", "moving_variance"};
constexpr std::string_view affineKeys[] = {"value",      "initializer",       "regularizer",
                                           "constraint", "learn_rate_factor", "l2_factor"};
constexpr std::string_view movingKeys[] = {"value", "initializer"};

constexpr Choice statisticsNames[] = {{"moving"}, {"population"}};
constexpr Choice optimizers[] = {{"sgd"}, {"momentum"}, {"rmsprop"}, {"adam"}};

bool checkMapping(const Entry &entry, Diagnostics &diagnostics) {
  if (entry.value.isMapping())
    return true;
  diagnostics.error(entry.value.offset,
                    fmt::format("{} must be a mapping; found {}", entry.key, found(entry.value)));
  return false;
}

bool checkParameters(const Entry &entry, Diagnostics &diagnostics) {
  if (!checkMapping(entry, diagnostics))
    return false;
  Diagnostics::Mark before = diagnostics.mark();
  Keys parameters(entry.value, "parameters", parameterNames, diagnostics);
  for (const Entry *parameter : parameters.entries()) {
    if (!checkMapping(*parameter, diagnostics))
      continue;
    bool affine = parameter->key == "gamma" || parameter->key == "beta";
    Keys(parameter->value, "parameters." + parameter->key,
         affine ? std::span<const std::string_view>(affineKeys) : movingKeys, diagnostics);
  }
  return diagnostics.mark() == before;
}

/// A word, or a mapping with the word as its key: {adam: {...}}, or with it under `kind`.
bool checkOptimizer(const Entry &entry, Diagnostics &diagnostics) {
  const Value &value = entry.value;
  if (value.isMapping() && !value.entries.empty())
    return true;
  return choose(value, "optimizer", optimizers, diagnostics).has_value();
}

bool checkWeights(const Entry &entry, std::string_view semantics, Diagnostics &diagnostics) {
  if (!semantics.starts_with("keras-1.")) {
    diagnostics.error(
        entry.offset,
        fmt::format("'weights' belongs to semantics keras-1.2 and keras-1.0.4; found {}",
                    quoted(semantics)));
    return false;
  }
  if (entry.value.isList() && entry.value.items.size() == 4)
    return true;
  diagnostics.error(entry.value.offset,
                    fmt::format("weights must be the four arrays [gamma, beta, mean, std]; found "
                                "{}",
                                entry.value.isList()
                                    ? fmt::format("{} of them", entry.value.items.size())
                                    : found(entry.value)));
  return false;
}

} // namespace

void refuse(const Entry &entry, std::string_view path, Diagnostics &diagnostics) {
  diagnostics.unbuilt(entry.offset, fmt::format("'{}{}{}' is not built yet", path,
                                                path.empty() ? "" : ".", entry.key));
}

void refuseStrides(const Entry &entry, std::string_view path, int rank, Diagnostics &diagnostics) {
  const Value &value = entry.value;
  if (!value.isList()) {
    diagnostics.error(
        value.offset,
        fmt::format("{}.strides must be a list of numbers or names; found {}", path, found(value)));
    return;
  }
  if (rank > 0 && value.items.size() != static_cast<size_t>(rank)) {
    diagnostics.error(value.offset, fmt::format("{}.strides has rank {}, but the shape has rank {}",
                                                path, value.items.size(), rank));
    return;
  }
  for (const Value &item : value.items) {
    std::optional<std::string_view> word = asWord(item);
    std::optional<Integer> integer = asInteger(item);
    if (!(word && isIdentifier(*word)) && !(integer && !integer->tooLarge && integer->value >= 0)) {
      diagnostics.error(item.offset, fmt::format("a stride must be a number of at least 0 or a "
                                                 "name; found {}",
                                                 found(item)));
      return;
    }
  }
  refuse(entry, path, diagnostics);
}

void refuseKey(const Entry &entry, std::string_view semantics, Diagnostics &diagnostics) {
  const Value &value = entry.value;
  const std::string &key = entry.key;
  auto isOneOf = [&](std::span<const Choice> choices) {
    return choose(value, key, choices, diagnostics).has_value();
  };
  bool right = true;
  if (key == "statistics")
    right = isOneOf(statisticsNames);
  else if (key == "parameters")
    right = checkParameters(entry, diagnostics);
  else if (key == "optimizer")
    right = checkOptimizer(entry, diagnostics);
  else if (key == "weights")
    right = checkWeights(entry, semantics, diagnostics);
  if (right)
    refuse(entry, "", diagnostics);
}

} // namespace normforge::spec
