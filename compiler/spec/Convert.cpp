#include "compiler/spec/Convert.h"

#include "compiler/spec/Diagnostics.h"
#include "compiler/spec/Presets.h"

#include "llvm/ADT/STLExtras.h"

#include <array>
#include <cmath>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge {

namespace {

enum Part : size_t { Gamma, Beta, Mean, Spread, kParts };
using Names = std::array<std::string_view, kParts>;

bool isKeras1(Semantics semantics) {
  return semantics == Semantics::Keras_1_2 || semantics == Semantics::Keras_1_0_4;
}

/// As layers name their weights: Keras 1.2.2 and 1.0.4, keras/layers/normalization.py; tf.keras and
/// Keras 3, BatchNormalization; MATLAB, batchNormalizationLayer's properties; PyTorch, state_dict;
/// ONNX, inputs of the operators.
Names namesOf(Semantics semantics, Mode mode) {
  switch (semantics) {
  case Semantics::Keras_1_2:
  case Semantics::Keras_1_0_4:
    return {"gamma", "beta", "running_mean", "running_std"};
  case Semantics::TfKeras:
    return {"gamma", "beta", "moving_mean", "moving_variance"};
  case Semantics::Keras_3:
    return {mode == Mode::Rms ? "scale" : "gamma", "beta", "moving_mean", "moving_variance"};
  case Semantics::Matlab:
    return {"Scale", "Offset", "TrainedMean", "TrainedVariance"};
  case Semantics::PyTorch:
    return {"weight", "bias", "running_mean", "running_var"};
  case Semantics::Onnx_15:
    return {mode == Mode::Sample ? "Scale" : "scale", mode == Mode::Group ? "bias" : "B",
            "input_mean", "input_var"};
  }
  return {};
}

/// The field's name of a layer that a framework does not have; empty where it has it.
std::string_view missingLayer(Semantics semantics, Mode mode) {
  auto among = [&](std::initializer_list<Semantics> those) {
    return llvm::is_contained(those, semantics);
  };
  using enum Semantics;
  switch (mode) {
  case Mode::Feature:
  case Mode::Sample:
    return "";
  case Mode::Batch:
    return isKeras1(semantics) || among({PyTorch}) ? "" : "mode 2";
  case Mode::Instance:
    return among({PyTorch, Onnx_15, Matlab}) ? "" : "instance normalization";
  case Mode::Group:
    return among({PyTorch, Onnx_15, Matlab, Keras_3}) ? "" : "group normalization";
  case Mode::Rms:
    return among({PyTorch, Onnx_15, Keras_3}) ? "" : "RMS normalization";
  case Mode::Range:
    return "mode range";
  }
  return "";
}

/// The divisor of a framework's inference, made of what the second moving vector holds.
struct Divisor {
  MovingSpread spread;
  EpsilonPosition position;
  bool operator==(const Divisor &) const = default;

  double of(double held, double epsilon) const {
    const double root =
        spread == MovingSpread::Deviation
            ? held
            : std::sqrt(position == EpsilonPosition::Outside ? held : held + epsilon);
    return position == EpsilonPosition::Inside ? root : root + epsilon;
  }
};

/// The value that `to` must hold to divide as `from` does; NaN where it can hold none.
double heldBy(const Divisor &to, double toEpsilon, const Divisor &from, double held,
              double epsilon) {
  double value;
  if (to.spread == MovingSpread::Variance && from.spread == MovingSpread::Variance)
    value = held + (epsilon - toEpsilon);
  else if (to.spread == MovingSpread::Variance) {
    const double divisor = from.of(held, epsilon);
    value = divisor * divisor - toEpsilon;
  } else {
    value = from.of(held, epsilon) - toEpsilon;
  }
  return value >= 0 ? value : NAN;
}

/// An array's name in parts: "bn1.weight:0" is "bn1." and Gamma.
struct Split {
  std::string prefix;
  Part part;
};
std::optional<Split> split(std::string_view name, std::initializer_list<Names> known) {
  const size_t colon = name.rfind(':');
  if (colon != std::string_view::npos && colon + 1 < name.size() &&
      llvm::all_of(name.substr(colon + 1), [](char c) { return c >= '0' && c <= '9'; }))
    name = name.substr(0, colon);
  std::optional<Split> found;
  size_t longest = 0;
  for (const Names &names : known)
    for (size_t part = 0; part < kParts; ++part) {
      const std::string_view own = names[part];
      if (own.size() <= longest || !name.ends_with(own))
        continue;
      const std::string_view prefix = name.substr(0, name.size() - own.size());
      if (!prefix.empty() && std::string_view("./_-").find(prefix.back()) == prefix.npos)
        continue;
      longest = own.size();
      found = Split{std::string(prefix), static_cast<Part>(part)};
    }
  return found;
}

std::string shapeText(const HostArray &array) {
  return fmt::format("({})", fmt::join(array.shape, ", "));
}

class Converter {
public:
  explicit Converter(const Conversion &conversion)
      : c_(conversion), from_(spec::presetOf(c_.from)), to_(spec::presetOf(c_.to)) {}
  llvm::Expected<Converted> run(const std::map<std::string, HostArray> &arrays,
                                const Problems &problems);

private:
  struct Saved {
    std::string name;
    const HostArray *array = nullptr; ///< null: it could not be read
    std::string problem{};
  };
  struct Layer {
    std::array<std::optional<Saved>, kParts> parts{};
    std::vector<std::string> problems{};
  };
  std::map<std::string, Layer> findLayers(const std::map<std::string, HostArray> &arrays,
                                          const Problems &problems);
  void error(std::string text) { errors_.push_back(std::move(text)); }
  void note(std::string text) {
    if (!llvm::is_contained(converted_.notes, text))
      converted_.notes.push_back(std::move(text));
  }
  bool hasStatistics() const { return c_.mode == Mode::Feature; }
  EpsilonPosition positionOf(const spec::Preset &preset) const {
    return c_.mode == Mode::Sample                              ? preset.sampleEpsilonPosition
           : c_.mode == Mode::Feature || c_.mode == Mode::Batch ? preset.epsilonPosition
                                                                : EpsilonPosition::Inside;
  }
  Divisor divisorOf(const spec::Preset &preset) const {
    return {preset.movingSpread, positionOf(preset)};
  }
  void chooseEpsilon(DType compute);
  void noteTraining();
  void takeTrainingState(const std::string &prefix, const std::map<std::string, HostArray> &arrays);
  void convertLayer(const std::string &prefix, const Layer &layer);
  /// Without the axes of size 1 that MATLAB's arrays of channels have.
  HostArray reshaped(const HostArray &array) const;

  const Conversion &c_;
  const spec::Preset &from_, &to_;
  double epsilon_ = 0; ///< of the layers converted
  Converted converted_;
  std::vector<std::string> errors_;
};

/// `compute` is the type that the layers compute in.
void Converter::chooseEpsilon(DType compute) {
  epsilon_ = c_.fromEpsilon.value_or(spec::defaultEpsilon(from_, c_.mode, compute));
  const bool isSame =
      hasStatistics() ? divisorOf(from_) == divisorOf(to_) : positionOf(from_) == positionOf(to_);
  double &epsilon = converted_.epsilon;
  epsilon = c_.toEpsilon.value_or(isSame ? epsilon_ : spec::defaultEpsilon(to_, c_.mode, compute));
  constexpr double kLeastOfMatlab = 1e-5;
  if (c_.to == Semantics::Matlab && epsilon < kLeastOfMatlab)
    error(
        fmt::format("MATLAB takes no epsilon below 1e-5; found {}{}", epsilon,
                    hasStatistics() ? ": --to-epsilon 1e-5 takes the rest from the variance" : ""));
  if (hasStatistics())
    return;
  auto formula = [](EpsilonPosition position) {
    return position == EpsilonPosition::Inside    ? "sqrt(v + epsilon)"
           : position == EpsilonPosition::Outside ? "sqrt(v) + epsilon"
                                                  : "sqrt(v + epsilon) + epsilon";
  };
  if (!isSame)
    error(fmt::format("{} divides by {} and {} by {}, v taken of the data: no gamma makes up for "
                      "it",
                      toString(c_.from), formula(positionOf(from_)), toString(c_.to),
                      formula(positionOf(to_))));
  else if (epsilon != epsilon_)
    error(fmt::format("epsilon {} cannot be {}: statistics are taken of the data, and no gamma "
                      "makes up for it",
                      epsilon_, epsilon));
}

/// Notes how training goes on otherwise than before, and which numbers a framework replaces by its
/// own.
void Converter::noteTraining() {
  if (!hasStatistics())
    return;
  auto averaged = [](Semantics semantics, const spec::Preset &preset) {
    return semantics == Semantics::TfKeras
               ? "the batch's variance (N/(N-1) of it where its fused kernel runs)"
           : preset.runningVariance == RunningVariance::Bessel ? "N/(N-1) of the batch's variance"
                                                               : "the batch's variance";
  };
  constexpr double kLeastOfKernel = 1.001e-5;
  if (c_.to == Semantics::TfKeras && converted_.epsilon < kLeastOfKernel)
    note(fmt::format("tf.keras's fused kernel takes epsilon 1.001e-5 for {}", converted_.epsilon));
  if (c_.from == Semantics::TfKeras && epsilon_ < kLeastOfKernel)
    note(fmt::format("where tf.keras's fused kernel ran, it took epsilon 1.001e-5 for {}: "
                     "--from-epsilon 1.001e-5 then",
                     epsilon_));
  if (divisorOf(from_) != divisorOf(to_))
    note(fmt::format("inference is the same; training divides otherwise in {} than in {}",
                     toString(c_.to), toString(c_.from)));
  else if (converted_.epsilon != epsilon_)
    note(fmt::format("epsilon {} instead of {} is made up for in the moving variance: good for "
                     "inference, not to go on training",
                     converted_.epsilon, epsilon_));
  if (const std::string_view before = averaged(c_.from, from_), after = averaged(c_.to, to_);
      before != after)
    note(fmt::format("{} averages {}, and {} {}: training goes on with an average of both",
                     toString(c_.from), before, toString(c_.to), after));
  if (from_.momentumWeighs != to_.momentumWeighs)
    note(fmt::format("momentum weighs the {} value in {} and the {} one in {}: {} is {:.6g}",
                     from_.momentumWeighs == MomentumWeighs::Old ? "old" : "new", toString(c_.from),
                     to_.momentumWeighs == MomentumWeighs::Old ? "old" : "new", toString(c_.to),
                     from_.momentum, 1 - from_.momentum));
}

/// Leaves out the states that training keeps beside the moving statistics and that no other
/// framework has; an error where training could not go on without them.
void Converter::takeTrainingState(const std::string &prefix,
                                  const std::map<std::string, HostArray> &arrays) {
  if (c_.from == c_.to || !hasStatistics())
    return;
  auto leave = [&](const char *own) {
    for (const char *suffix : {"", ":0"})
      converted_.left.push_back(prefix + own + suffix);
  };
  if (c_.from == Semantics::PyTorch)
    leave("num_batches_tracked");
  if (c_.from != Semantics::TfKeras)
    return;
  for (const char *own : {"moving_stddev", "renorm_mean", "renorm_stddev"}) {
    leave(own);
    for (const char *suffix : {"", ":0"})
      if (arrays.contains(prefix + own + suffix) && !c_.forInference)
        error(fmt::format("{}: {} has no renorm, so that training could not go on; --inference "
                          "leaves it out",
                          shownName(prefix + own + suffix), toString(c_.to)));
  }
}

HostArray Converter::reshaped(const HostArray &array) const {
  HostArray made = array;
  const bool isOfChannels = c_.mode != Mode::Sample && c_.mode != Mode::Rms;
  if (c_.from != Semantics::Matlab || !isOfChannels)
    return made;
  std::erase(made.shape, 1);
  if (made.shape.empty())
    made.shape.push_back(1);
  return made;
}

void Converter::convertLayer(const std::string &prefix, const Layer &layer) {
  const Names names = namesOf(c_.to, c_.mode);
  ConvertedLayer made{prefix, {}, {}};
  const HostArray *like = nullptr;
  std::string likeName;
  for (const std::string &problem : layer.problems)
    error(problem);
  if (!layer.problems.empty())
    return;
  for (const std::optional<Saved> &part : layer.parts) {
    if (!part)
      continue;
    made.taken.push_back(part->name);
    const std::string shown = shownName(part->name);
    const HostArray array = reshaped(*part->array);
    if (array.dtype == DType::Bit) {
      error(fmt::format("{}: expected numbers, found bytes", shown));
      return;
    }
    if (array.shape.empty() || array.count() == 0 ||
        (array.shape.size() > 1 && c_.mode != Mode::Sample && c_.mode != Mode::Rms)) {
      error(fmt::format("{} has shape {}; expected {}", shown, shapeText(*part->array),
                        c_.mode == Mode::Sample || c_.mode == Mode::Rms ? "an element or more"
                                                                        : "one axis, of channels"));
      return;
    }
    if (like && reshaped(*like).shape != array.shape) {
      error(fmt::format("{} has shape {} and {} {}; expected one", likeName, shapeText(*like),
                        shown, shapeText(*part->array)));
      return;
    }
    like = part->array;
    likeName = shown;
  }
  const bool hasGamma = layer.parts[Gamma].has_value(), hasBeta = layer.parts[Beta].has_value();
  if (c_.mode == Mode::Rms && hasBeta) {
    error(fmt::format("{}: RMS normalization of {} has no beta", shownName(layer.parts[Beta]->name),
                      toString(c_.to)));
    return;
  }
  // Layers that have both or none, and those that always have both.
  const bool needsBoth = isKeras1(c_.to) || c_.to == Semantics::Matlab ||
                         (c_.to == Semantics::Onnx_15 && c_.mode != Mode::Sample) ||
                         (c_.to == Semantics::PyTorch && (hasGamma || hasBeta));
  for (Part part : {Gamma, Beta}) {
    const std::string name = prefix + std::string(names[part]);
    if (const std::optional<Saved> &own = layer.parts[part]) {
      made.made.emplace_back(name, reshaped(*own->array));
    } else if (needsBoth && !(c_.mode == Mode::Rms && part == Beta)) {
      HostArray filled(like->dtype, reshaped(*like).shape);
      for (int64_t i = 0, n = filled.count(); i < n; ++i)
        filled.set(i, part == Gamma ? 1 : 0);
      note(fmt::format("{} is {} everywhere: there was none", shownName(name),
                       part == Gamma ? 1 : 0));
      made.made.emplace_back(name, std::move(filled));
    }
  }
  if (hasStatistics()) {
    made.made.emplace_back(prefix + std::string(names[Mean]), reshaped(*layer.parts[Mean]->array));
    HostArray held = reshaped(*layer.parts[Spread]->array);
    const Divisor from = divisorOf(from_), to = divisorOf(to_);
    const std::string name = shownName(layer.parts[Spread]->name);
    const double digits = held.dtype == DType::F64   ? 0x1p-53
                          : held.dtype == DType::F32 ? 0x1p-24
                          : held.dtype == DType::F16 ? 0x1p-11
                                                     : 0x1p-8;
    for (int64_t i = 0, n = held.count(); i < n; ++i) {
      const double old = held.get(i);
      if (!(old >= 0) || std::isinf(old)) {
        error(fmt::format("{}[{}] is {}; expected a {} of at least 0", name, i, old,
                          from.spread == MovingSpread::Deviation ? "deviation" : "variance"));
        return;
      }
      if (from == to && epsilon_ == converted_.epsilon)
        continue;
      const double value = heldBy(to, converted_.epsilon, from, old, epsilon_);
      held.set(i, value);
      const double before = from.of(old, epsilon_), after = to.of(held.get(i), converted_.epsilon);
      if (std::isfinite(value) && !(std::abs(after - before) <= 4 * digits * before)) {
        error(
            fmt::format("{}[{}] is {}: {} would be {}, which {} rounds to {}, and {} divide by {} "
                        "instead of {}",
                        name, i, old, names[Spread], value, toString(held.dtype), held.get(i),
                        toString(c_.to), after, before));
        return;
      }
      if (!std::isfinite(held.get(i))) {
        error(fmt::format("{}[{}] is {}: {} divides by {} there with epsilon {}, and with epsilon "
                          "{} no {} makes {} do so",
                          name, i, old, toString(c_.from), from.of(old, epsilon_), epsilon_,
                          converted_.epsilon, names[Spread], toString(c_.to)));
        return;
      }
    }
    made.made.emplace_back(prefix + std::string(names[Spread]), std::move(held));
  }
  converted_.layers.push_back(std::move(made));
}

std::map<std::string, Converter::Layer>
Converter::findLayers(const std::map<std::string, HostArray> &arrays, const Problems &problems) {
  const Names known = namesOf(c_.from, c_.mode);
  const Names ours{"gamma", "beta", "moving_mean",
                   from_.movingSpread == MovingSpread::Deviation ? "moving_stddev"
                                                                 : "moving_variance"};
  std::map<std::string, Layer> layers;
  auto add = [&](Saved saved) {
    const auto at = split(saved.name, {known, ours});
    if (!at)
      return;
    Layer &layer = layers[at->prefix];
    if (!saved.array)
      layer.problems.push_back(saved.problem);
    std::optional<Saved> &part = layer.parts[at->part];
    if (part)
      layer.problems.push_back(fmt::format("{} and {} are the same array of one layer",
                                           shownName(part->name), shownName(saved.name)));
    part = std::move(saved);
  };
  for (const auto &[name, array] : arrays)
    add({name, &array});
  for (const auto &[name, problem] : problems)
    add({name, nullptr, problem});

  const std::vector<std::string> &wanted = c_.prefixes;
  std::erase_if(layers, [&](const auto &named) {
    const auto &[prefix, layer] = named;
    if (!wanted.empty() && !llvm::is_contained(wanted, prefix))
      return true;
    const auto &mean = layer.parts[Mean], &spread = layer.parts[Spread];
    if (!hasStatistics()) {
      if ((mean || spread) && (layer.parts[Gamma] || layer.parts[Beta]))
        error(fmt::format("{}: a layer of mode {} takes the statistics of its data; found moving "
                          "ones, with which inference is another formula",
                          shownName((mean ? mean : spread)->name), toString(c_.mode)));
      return !layer.parts[Gamma] && !layer.parts[Beta];
    }
    if (mean.has_value() != spread.has_value())
      error(fmt::format("{} has no {} beside it", shownName((mean ? mean : spread)->name),
                        shownName(prefix + std::string(known[mean ? Spread : Mean]))));
    return !mean || !spread;
  });
  for (const std::string &prefix : wanted)
    if (!layers.contains(prefix) && errors_.empty())
      error(fmt::format("no layer of {} behind {}", toString(c_.from), spec::quoted(prefix)));
  if (!layers.empty() || !errors_.empty())
    return layers;
  std::vector<std::string> found;
  for (const auto &[name, array] : arrays)
    if (found.size() < 8)
      found.push_back(shownName(name));
  error(fmt::format("no layer of {}; expected arrays {}, alone or behind a prefix, found {}{}",
                    toString(c_.from), fmt::join(savedNames(c_.from, c_.mode), ", "),
                    found.empty() ? "none" : fmt::format("{}", fmt::join(found, ", ")),
                    arrays.size() > found.size() ? ", ..." : ""));
  return layers;
}

llvm::Expected<Converted> Converter::run(const std::map<std::string, HostArray> &arrays,
                                         const Problems &problems) {
  for (Semantics semantics : {c_.from, c_.to})
    if (const std::string_view layer = missingLayer(semantics, c_.mode); !layer.empty())
      error(fmt::format("{} has no {}", toString(semantics), layer));
  const std::map<std::string, Layer> layers = findLayers(arrays, problems);
  DType compute = DType::F32;
  for (const auto &[prefix, layer] : layers)
    for (const std::optional<Saved> &part : layer.parts)
      if (part && part->array && part->array->dtype == DType::F64)
        compute = DType::F64;
  chooseEpsilon(compute);
  const bool isPossible = errors_.empty();
  for (const auto &[prefix, layer] : layers) {
    takeTrainingState(prefix, arrays);
    if (isPossible)
      convertLayer(prefix, layer);
  }
  if (!errors_.empty())
    return llvm::createStringError(fmt::format("{}", fmt::join(errors_, "\n")));
  noteTraining();
  return std::move(converted_);
}

} // namespace

llvm::Expected<Converted> convert(const Conversion &conversion,
                                  const std::map<std::string, HostArray> &arrays,
                                  const Problems &problems) {
  return Converter(conversion).run(arrays, problems);
}

std::string shownName(const std::string &name) {
  constexpr size_t kMost = 100;
  const bool isPlain = !name.empty() && name.size() <= kMost &&
                       llvm::all_of(name, [](char c) { return c > ' ' && c <= '~'; });
  return isPlain ? name : spec::quoted(name);
}

std::vector<std::string> savedNames(Semantics semantics, Mode mode) {
  const Names names = namesOf(semantics, mode);
  std::vector<std::string> all(names.begin(), names.end());
  if (mode != Mode::Feature)
    all.resize(Mean);
  if (mode == Mode::Rms)
    all.resize(Beta);
  return all;
}

} // namespace normforge
