// Keys of what update does, `optimizer`, and of arrays, `parameters`.
#include "compiler/spec/Parser.h"
#include "compiler/spec/Presets.h"
#include "compiler/spec/Values.h"

#include <algorithm>

namespace normforge::spec {
namespace {

constexpr std::string_view parameterNames[] = {"gamma", "beta", "moving_mean", "moving_variance",
                                               "moving_stddev"};
constexpr std::string_view learnedKeys[] = {"value",      "initializer",       "regularizer",
                                            "constraint", "learn_rate_factor", "l2_factor"};
constexpr std::string_view movingKeys[] = {"value", "initializer"};
constexpr std::string_view regularizerKeys[] = {"l1", "l2"};
constexpr std::string_view minMaxKeys[] = {"min", "max", "rate"};

constexpr std::string_view kNoUpdate = "neither update nor backward+update is among the phases";

/// Momentum is SGD with it.
constexpr Choice optimizers[] = {{"sgd"}, {"momentum"}, {"rmsprop"}, {"adam"}};
constexpr Alias optimizerAliases[] = {{"sgdm", "momentum"}, {"rms_prop", "rmsprop"}};
/// In the order of WeightConstraint, None left out.
constexpr Choice constraints[] = {{"max_norm"}, {"unit_norm"}, {"min_max_norm"}, {"non_neg"}};
constexpr Alias constraintAliases[] = {
    {"maxnorm", "max_norm"}, {"unitnorm", "unit_norm"}, {"nonneg", "non_neg"}};

/// A number of an optimizer, and what it may be.
struct OptimizerKey {
  std::string_view name;
  double Optimizer::*number;
  bool belowOne; ///< at least 0 and below 1; else at least 0
};
constexpr OptimizerKey commonKeys[] = {{"decay", &Optimizer::decay, false},
                                       {"weight_decay", &Optimizer::weightDecay, false}};
constexpr OptimizerKey momentumKey = {"momentum", &Optimizer::momentum, true};
constexpr OptimizerKey epsilonKey = {"epsilon", &Optimizer::epsilon, false};
constexpr OptimizerKey rhoKey = {"rho", &Optimizer::rho, true};
constexpr OptimizerKey betaKeys[] = {{"beta_1", &Optimizer::beta1, true},
                                     {"beta_2", &Optimizer::beta2, true}};

struct OptimizerFlag {
  std::string_view name;
  bool Optimizer::*flag;
};

} // namespace

void Parser::readUpdate() {
  const auto listed = std::ranges::find_if(spec_.phases, isUpdate);
  const std::string_view phase = listed != spec_.phases.end() ? toString(*listed) : "";
  if (const Entry *entry = keys_.find("optimizer"))
    readOptimizer(*entry);
  else if (spec_.hasUpdate())
    error(keys_.find("phases")->value,
          fmt::format("phase {} needs the key 'optimizer', such as optimizer: sgd", phase));
  if (const Entry *entry = keys_.find("parameters"))
    readParameters(*entry);
  if (!spec_.hasUpdate()) {
    if (keys_.find("optimizer"))
      spec_.notes.push_back(fmt::format("optimizer has no effect: {}", kNoUpdate));
    return;
  }
  if (!spec_.learnsGamma() && !spec_.learnsBeta())
    error(keys_.find("phases")->value,
          fmt::format("phase {} has nothing to learn: the layer has no gamma and beta, or "
                      "trainable: false keeps them",
                      phase));
}

void Parser::readOptimizer(const Entry &entry) {
  const auto chosen = chosenBy(entry.value);
  if (!chosen) {
    error(entry.value,
          fmt::format("optimizer must be a word, or a mapping of it alone to its numbers, "
                      "such as {{adam: {{learning_rate: 1e-3}}}}; found {} keys",
                      entry.value.entries.size()));
    return;
  }
  const auto &[word, keys] = *chosen;
  if (keys && !keys->isMapping()) {
    error(*keys, fmt::format("optimizer.{} must be a mapping of its numbers; found {}", word.text,
                             found(*keys)));
    return;
  }
  if (llvm::StringRef(word.text).equals_insensitive("adamw")) {
    error(word, fmt::format("optimizer {} is {{adam: {{weight_decay: ...}}}} of semantics keras-3 "
                            "and tf-keras, whose decay is a step of its own",
                            quoted(word.text)));
    return;
  }
  const auto index = choose(word, "optimizer", optimizers, diagnostics_, optimizerAliases);
  if (!index)
    return;
  const std::string name(optimizers[*index].name);
  Optimizer optimizer = defaultOptimizer(spec_.semantics, name);

  std::vector<OptimizerKey> numbers(std::begin(commonKeys), std::end(commonKeys));
  std::vector<OptimizerFlag> flags;
  switch (optimizer.kind) {
  case Optimizer::Kind::Sgd:
    numbers.push_back(momentumKey);
    flags = {{"nesterov", &Optimizer::nesterov}};
    break;
  case Optimizer::Kind::Rmsprop:
    numbers.insert(numbers.end(), {momentumKey, rhoKey, epsilonKey});
    flags = {{"centered", &Optimizer::centered}};
    break;
  case Optimizer::Kind::Adam:
    numbers.insert(numbers.end(), {betaKeys[0], betaKeys[1], epsilonKey});
    flags = {{"amsgrad", &Optimizer::amsgrad}};
    break;
  }
  std::vector<std::string_view> known{"learning_rate"};
  for (const OptimizerKey &key : numbers)
    known.push_back(key.name);
  for (const OptimizerFlag &flag : flags)
    known.push_back(flag.name);
  if (keys) {
    const std::string path = "optimizer." + name;
    const Keys written(*keys, path, known, diagnostics_);
    for (const Entry *key : written.entries()) {
      const auto isKey = [&](const auto &other) { return other.name == key->key; };
      if (key->key == "learning_rate") {
        const auto rate = asNumber(key->value);
        if (key->value.isScalar() && key->value.text == "argument")
          optimizer.learningRate = {0, true};
        else if (rate && *rate >= 0)
          optimizer.learningRate = {*rate, false};
        else
          error(key->value, fmt::format("{}.learning_rate must be a number of at least 0, or "
                                        "'argument'; found {}",
                                        path, found(key->value)));
      } else if (const auto flag = std::ranges::find_if(flags, isKey); flag != flags.end()) {
        if (const auto is = readBool(key->value, path + "." + key->key, diagnostics_))
          optimizer.*flag->flag = *is;
      } else {
        const OptimizerKey &of = *std::ranges::find_if(numbers, isKey);
        const auto number = asNumber(key->value);
        if (number && *number >= 0 && (!of.belowOne || *number < 1))
          optimizer.*of.number = *number;
        else
          error(key->value,
                fmt::format("{}.{} must be a number of at least 0{}; found {}", path, key->key,
                            of.belowOne ? " and below 1" : "", found(key->value)));
      }
    }
  }
  if (optimizer.nesterov && optimizer.momentum == 0)
    error(entry.value, "nesterov needs a momentum above 0");
  spec_.optimizer = optimizer;
}

void Parser::readParameters(const Entry &entry) {
  auto isMapping = [&](const Value &value, const std::string &path) {
    if (!value.isMapping())
      error(value, fmt::format("{} must be a mapping; found {}", path, found(value)));
    return value.isMapping();
  };
  if (!isMapping(entry.value, "parameters"))
    return;
  const Keys parameters(entry.value, "parameters", parameterNames, diagnostics_);
  for (const Entry *of : parameters.entries()) {
    const std::string path = "parameters." + of->key;
    if (!isMapping(of->value, path))
      continue;
    const bool isGamma = of->key == "gamma", isLearned = isGamma || of->key == "beta";
    if (!isLearned && !checkMoving(*of, path))
      continue;
    Learned &learned = isGamma ? spec_.gammaLearned : spec_.betaLearned;
    Initial &initial = isGamma                    ? spec_.gammaInitial
                       : of->key == "beta"        ? spec_.betaInitial
                       : of->key == "moving_mean" ? spec_.meanInitial
                                                  : spec_.spreadInitial;
    const bool exists = !isLearned || (isGamma ? spec_.scale : spec_.center);
    const bool learns = isGamma ? spec_.learnsGamma() : spec_.learnsBeta();
    const auto known = isLearned ? std::span<const std::string_view>(learnedKeys) : movingKeys;
    const Keys keys(of->value, path, known, diagnostics_);
    const Entry *first = nullptr; // of value and initializer
    for (const Entry *key : keys.entries()) {
      const std::string whole = path + "." + key->key;
      auto note = [&](std::string_view why) {
        spec_.notes.push_back(fmt::format("{} has no effect: {}", whole, why));
      };
      if (key->key == "value" || key->key == "initializer") {
        if (isNull(key->value))
          continue;
        if (first)
          error(key->value, fmt::format("{0}.value and {0}.initializer contradict each other: "
                                        "expected one of them",
                                        path));
        first = key;
        if (key->key == "value")
          readInitialValue(key->value, whole, initial);
        else
          readInitializer(key->value, whole, initial);
        if (!exists)
          note("the layer has none");
        else if (!spec_.initializes && !(spec_.foldsValues() && initial.isValue))
          note("initialize is none of the phases");
        continue;
      }
      if (!spec_.hasUpdate())
        note(kNoUpdate);
      else if (!learns)
        note("there is none to be learned");
      else if (key->key == "l2_factor" && spec_.optimizer && spec_.optimizer->weightDecay == 0)
        note("the optimizer's weight_decay, which it multiplies, is 0");
      if (key->key == "regularizer")
        readRegularizer(key->value, whole, learned);
      else if (key->key == "constraint")
        readConstraint(key->value, whole, learned);
      else
        readAtLeastZero(key->value, whole,
                        key->key == "l2_factor" ? learned.l2Factor : learned.rateFactor);
    }
  }
}

/// Whether the layer keeps the moving statistic.
bool Parser::checkMoving(const Entry &of, const std::string &path) {
  if (!modeKnown_)
    return false;
  if (!spec_.hasMovingStatistics()) {
    diagnostics_.error(of.offset, fmt::format("{} belongs to mode 0 (feature); mode {} keeps no "
                                              "moving statistics",
                                              path, toString(spec_.mode)));
    return false;
  }
  if (of.key != "moving_mean" && of.key != spec_.movingSpreadName()) {
    diagnostics_.error(of.offset, fmt::format("{}: semantics {} keep {}{}", path,
                                              toString(spec_.semantics), spec_.movingSpreadName(),
                                              of.key == "moving_stddev"
                                                  ? "; renorm's moving_stddev begins as its root"
                                                  : ""));
    return false;
  }
  return true;
}

void Parser::readAtLeastZero(const Value &value, const std::string &path, double &into) {
  const auto number = asNumber(value);
  if (number && *number >= 0)
    into = *number;
  else
    error(value, fmt::format("{} must be a number of at least 0; found {}", path, found(value)));
}

void Parser::readRegularizer(const Value &value, const std::string &path, Learned &learned) {
  constexpr double kKeras = 0.01; // of a regularizer without a number
  if (isNull(value))
    return;
  const auto word = asWord(value);
  if (word == "l1" || word == "l1l2" || word == "l1_l2")
    learned.l1 = kKeras;
  if (word == "l2" || word == "l1l2" || word == "l1_l2")
    learned.l2 = kKeras;
  if (learned.hasPenalty())
    return;
  if (!value.isMapping()) {
    error(value, fmt::format("{} must be l1, l2, l1_l2 or a mapping such as {{l2: 0.01}}; found {}",
                             path, found(value)));
    return;
  }
  const Keys keys(value, path, regularizerKeys, diagnostics_);
  for (const Entry *key : keys.entries())
    readAtLeastZero(key->value, path + "." + key->key, key->key == "l1" ? learned.l1 : learned.l2);
}

void Parser::readConstraint(const Value &value, const std::string &path, Learned &learned) {
  if (isNull(value))
    return;
  const auto chosen = chosenBy(value);
  if (!chosen || value.isList()) {
    error(value, fmt::format("{} must be a word or a mapping of one, such as {{max_norm: 2}}; "
                             "found {}",
                             path, found(value)));
    return;
  }
  const auto &[word, of] = *chosen;
  const auto index = choose(word, path, constraints, diagnostics_, constraintAliases);
  if (!index)
    return;
  const auto constraint = static_cast<WeightConstraint>(*index + 1);
  if (constraint == WeightConstraint::MaxNorm) {
    if (!of || of->isMapping()) {
      error(value, path + ": max_norm needs its number, such as {max_norm: 2}");
      return;
    }
    readAtLeastZero(*of, path + ".max_norm", learned.most);
  } else if (constraint == WeightConstraint::MinMaxNorm) {
    if (of) {
      if (!of->isMapping()) {
        error(*of, fmt::format("{}.min_max_norm must be a mapping {{min: ..., max: ..., rate: "
                               "...}}; found {}",
                               path, found(*of)));
        return;
      }
      const Keys keys(*of, path + ".min_max_norm", minMaxKeys, diagnostics_);
      for (const Entry *key : keys.entries())
        readAtLeastZero(key->value, path + ".min_max_norm." + key->key,
                        key->key == "min"   ? learned.least
                        : key->key == "max" ? learned.most
                                            : learned.rate);
      if (learned.rate > 1)
        error(*of, fmt::format("{}.min_max_norm.rate must be from 0 to 1; found {}", path,
                               learned.rate));
      if (learned.most < learned.least)
        error(*of, fmt::format("{}.min_max_norm.max {} is less than min {}", path, learned.most,
                               learned.least));
    }
  } else if (of) {
    error(*of, fmt::format("{}.{} takes no number; found {}", path, word.text, found(*of)));
    return;
  }
  learned.constraint = constraint;
  // Keras's norms are along the first axis of gamma. Its batch normalizations of several axes, or
  // of ghost batches, have a gamma of x's rank whose first axis is 1; others have no more axes than
  // those of `axis`.
  if (!learned.takesNorm() || !axesKnown_ || !modeKnown_ ||
      (spec_.semantics != Semantics::TfKeras && spec_.semantics != Semantics::Keras_3))
    return;
  if (spec_.mode == Mode::Feature || spec_.mode == Mode::Batch)
    learned.normsElements = spec_.axes.size() > 1 || spec_.ghostBatch > 0;
  else if ((spec_.mode == Mode::Sample || spec_.mode == Mode::Rms) && spec_.axes.size() > 1)
    error(value, fmt::format("{}: semantics {} take the norm along the first axis of gamma and "
                             "beta, which is not built yet for several; found {} axes",
                             path, toString(spec_.semantics), spec_.axes.size()));
}

} // namespace normforge::spec
