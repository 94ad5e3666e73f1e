#include "compiler/spec/Parser.h"

#include "compiler/spec/Npy.h"
#include "compiler/spec/Unbuilt.h"
#include "compiler/spec/Values.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <memory>
#include <system_error>

namespace normforge {
namespace spec {
namespace {

/// In the order of Semantics.
constexpr Choice semanticsNames[] = {{"keras-1.2"}, {"keras-1.0.4"}, {"tf-keras"}, {"keras-3"},
                                     {"matlab"},    {"pytorch"},     {"onnx-15"}};
constexpr Alias semanticsAliases[] = {{"keras-1", "keras-1.2"},
                                      {"torch", "pytorch"},
                                      {"onnx", "onnx-15"},
                                      {"tensorflow", "tf-keras"},
                                      {"keras-2", "tf-keras"}};
/// In the order of Mode.
constexpr Choice modeNames[] = {{"feature"}, {"sample"}, {"batch"}, {"instance"},
                                {"rms"},     {"group"},  {"range"}};
constexpr char expectedModes[] =
    "0 (feature), 1 (sample, layer), 2 (batch), instance, rms, group or range";
constexpr Choice runningVarianceNames[] = {{"biased"}, {"bessel"}, {"keras-2"}};
constexpr Alias runningVarianceAliases[] = {{"unbiased", "bessel"}};
/// In the order of Phase; the last has no kernel.
constexpr Choice phaseNames[] = {{"inference"},  {"training"},      {"backward"},
                                 {"population"}, {"update"},        {"backward+update"},
                                 {"moments"},    {"gradient_sums"}, {"initialize"}};
constexpr Alias phaseAliases[] = {{"train", "training"},    {"test", "inference"},
                                  {"eval", "inference"},    {"predict", "inference"},
                                  {"forward", "inference"}, {"gradient", "backward"}};
/// In the order of EpsilonPosition.
constexpr Choice epsilonPositions[] = {{"inside"}, {"outside"}, {"both"}};
constexpr Choice statisticsNames[] = {{"moving"}, {"population"}};
/// In the order of BackwardStatistics.
constexpr Choice backwardStatisticsNames[] = {{"batch"}, {"moving"}};
constexpr Choice accumulators[] = {{"f32"}, {"f64"}};
constexpr std::string_view momentumKeys[] = {"mean", "variance"};
static_assert(std::size(phaseNames) == std::size(kPhases) + 1);

/// Anything longer is refused by the reader of documents; a device that never ends must not be read
/// to its end.
constexpr size_t maxFileBytes = (1 << 20) + 1;

struct FileCloser {
  void operator()(std::FILE *file) const { std::fclose(file); }
};

} // namespace

Spec Parser::parse(std::string_view sourceName) {
  readName(sourceName);
  readCount();
  readSemantics();
  readMode();
  readInput();
  if (const Entry *output = keys_.find("output"))
    readOutput(output->value);
  readDTypes();
  readAxis();
  checkGroups();
  readEpsilon();
  readMomentum();
  readRunningVariance();
  readFlag("center", spec_.center);
  readFlag("scale", spec_.scale);
  readPhases();
  readPopulation();
  readBackwardStatistics();
  readTrainable();
  readTraining();
  readUpdate();
  readWeights();
  readSteps();
  checkStoredSums();
  noteKeysWithoutEffect();
  foldValues();
  return std::move(spec_);
}

void Parser::error(const Value &value, std::string message) {
  diagnostics_.error(value.offset, std::move(message));
}

void Parser::readName(std::string_view sourceName) {
  if (const Entry *entry = keys_.find("name")) {
    std::optional<std::string_view> word = asWord(entry->value);
    const auto isControl = [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 127; };
    if (word && !word->empty() && word->size() <= maxName && std::ranges::none_of(*word, isControl))
      spec_.name = *word;
    else
      error(entry->value,
            fmt::format("name must be text of at most {} bytes without control characters, numbers "
                        "in quotation marks; found {}",
                        maxName, found(entry->value)));
    return;
  }
  size_t slash = sourceName.find_last_of('/');
  std::string_view stem = sourceName.substr(slash == std::string_view::npos ? 0 : slash + 1);
  size_t dot = stem.find_last_of('.');
  if (dot != std::string_view::npos && dot > 0)
    stem = stem.substr(0, dot);
  for (char c : stem)
    spec_.name += isIdentifier(std::string{'_', c}) ? c : '_';
  if (!isIdentifier(spec_.name))
    spec_.name.insert(spec_.name.begin(), '_');
  spec_.name.resize(std::min(spec_.name.size(), maxName));
}

void Parser::readCount() {
  const Entry *entry = keys_.find("count");
  if (!entry)
    return;
  const std::optional<Integer> count = asInteger(entry->value);
  if (count && !count->tooLarge && count->value >= 1)
    spec_.count = count->value;
  else
    error(entry->value,
          fmt::format("count must be a whole number of at least 1; found {}", found(entry->value)));
}

void Parser::readSemantics() {
  if (const Entry *entry = keys_.find("semantics")) {
    if (entry->value.isScalar())
      semanticsName_ = entry->value.text;
    if (std::optional<size_t> index =
            choose(entry->value, "semantics", semanticsNames, diagnostics_, semanticsAliases))
      spec_.semantics = static_cast<Semantics>(*index);
    else
      semanticsKnown_ = false;
  }
  preset_ = &presetOf(spec_.semantics);
  spec_.momentum.weighs = preset_->momentumWeighs;
  spec_.momentum.mean.value = spec_.momentum.variance.value = preset_->momentum;
  spec_.runningVariance = preset_->runningVariance;
  spec_.movingSpread = preset_->movingSpread;
}

void Parser::readMode() {
  const Entry *entry = keys_.find("mode");
  if (!entry) {
    modeName_ = "feature";
  } else if (std::optional<Integer> number = asInteger(entry->value)) {
    if (number->tooLarge || number->value < 0 || number->value > 2)
      error(entry->value,
            fmt::format("unknown mode {}; expected {}", found(entry->value), expectedModes));
    else
      modeName_ = modeNames[number->value].name;
  } else {
    if (entry->value.isScalar())
      modeName_ = entry->value.text;
    constexpr std::string_view layer[] = {"layer"}; // the field's name of it
    if (modeName_ == layer[0])
      modeName_ = "sample";
    else if (entry->value.isScalar() && nearest(modeName_, layer)) {
      error(entry->value,
            fmt::format("unknown mode {}; did you mean 'layer'?", found(entry->value)));
      modeKnown_ = false;
    } else if (!choose(entry->value, "mode", modeNames, diagnostics_, {}, expectedModes))
      modeKnown_ = false;
  }
  for (size_t i = 0; i < std::size(modeNames); ++i)
    if (modeNames[i].built && modeName_ == modeNames[i].name)
      spec_.mode = static_cast<Mode>(i);
  modeKnown_ = modeKnown_ && !modeName_.empty();
  // A preset's epsilon position in mode 1 is that of its framework's layer of that time.
  spec_.epsilonPosition =
      spec_.mode == Mode::Sample ? preset_->sampleEpsilonPosition
      : spec_.mode == Mode::Rms || spec_.mode == Mode::Instance || spec_.mode == Mode::Group
          ? EpsilonPosition::Inside
          : preset_->epsilonPosition;
  spec_.center = spec_.hasMean(); // unless it is written
}

void Parser::readDTypes() {
  if (const Entry *entry = keys_.find("parameter_dtype"))
    if (std::optional<DType> known = readDType(entry->value, "parameter_dtype"))
      spec_.parameterDType = *known;
  const Entry *entry = keys_.find("accumulate");
  const auto index =
      entry ? choose(entry->value, "accumulate", accumulators, diagnostics_) : std::nullopt;
  if (!index)
    return;
  spec_.accumulate = *parseDType(accumulators[*index].name);
  if (spec_.accumulate == DType::F32 && spec_.dtype == DType::F64)
    error(entry->value, "accumulate: f32 has fewer digits than dtype f64; expected f64");
}

/// A range has nothing to be moved from 0, no batch whose average is taken and no gradient.
void Parser::checkRange() {
  if (!modeKnown_ || !spec_.hasRange())
    return;
  for (const char *key : {"epsilon", "epsilon_position", "momentum", "running_variance",
                          "trainable", "optimizer", "backward_statistics"})
    if (const Entry *entry = keys_.find(key))
      diagnostics_.error(entry->offset,
                         fmt::format("'{}' does not belong to mode range, whose statistics are the "
                                     "least and greatest value that phase population has seen",
                                     key));
  if (const Entry *entry = keys_.find("statistics"); entry && !spec_.takesPopulation)
    error(entry->value, "statistics: mode range has those of phase population alone");
  spec_.takesPopulation = true;
  for (Phase phase : spec_.phases)
    if (!spec_.canHavePhase(phase))
      error(keys_.find("phases")->value,
            fmt::format("mode range has no phase {}: phase population takes its statistics, and "
                        "inference scales by them",
                        toString(phase)));
}

void Parser::readEpsilon() {
  if (const Entry *position = keys_.find("epsilon_position"))
    if (const auto index =
            choose(position->value, "epsilon_position", epsilonPositions, diagnostics_))
      spec_.epsilonPosition = static_cast<EpsilonPosition>(*index);
  spec_.epsilon.value = defaultEpsilon(*preset_, spec_.mode, spec_.dtype);
  const Entry *entry = keys_.find("epsilon");
  if (!entry)
    return;
  if (entry->value.isScalar() && entry->value.text == "argument") {
    spec_.epsilon = {0, true};
    return;
  }
  std::optional<double> number = asNumber(entry->value);
  if (!number || !(*number > 0)) {
    error(entry->value, fmt::format("epsilon must be a number above 0 or 'argument'; found {}",
                                    found(entry->value)));
    return;
  }
  // Kernels of f32 hold epsilon in f32, where these would be 0 or infinite.
  auto narrow = static_cast<float>(*number);
  if (spec_.accumulate == DType::F32 && (narrow == 0 || std::isinf(narrow))) {
    error(entry->value, fmt::format("epsilon {} is out of the range of f32", found(entry->value)));
    return;
  }
  spec_.epsilon = {*number, false};
  constexpr double leastOfCudnn = 1e-5;
  const std::string_view refuses =
      spec_.semantics == Semantics::Matlab ? "MATLAB"
      : spec_.semantics == Semantics::Keras_1_2 || spec_.semantics == Semantics::Keras_1_0_4
          ? "Theano with cuDNN"
          : "";
  if (*number < leastOfCudnn && !refuses.empty())
    spec_.notes.push_back(fmt::format("epsilon {} is computed as it is written; {} refuses less "
                                      "than 1e-5",
                                      found(entry->value), refuses));
}

void Parser::readRunningVariance() {
  if (const Entry *entry = keys_.find("running_variance")) {
    const auto index = choose(entry->value, "running_variance", runningVarianceNames, diagnostics_,
                              runningVarianceAliases);
    if (index)
      spec_.runningVariance = static_cast<RunningVariance>(*index);
    if (index && modeKnown_ && spec_.hasMovingStatistics() &&
        spec_.movingSpread == MovingSpread::Deviation)
      diagnostics_.error(entry->offset,
                         fmt::format("semantics {} keeps moving_stddev, an average of deviations; "
                                     "running_variance belongs to those that keep a variance",
                                     toString(spec_.semantics)));
  }
  readFused();
}

void Parser::readFused() {
  const Entry *entry = keys_.find("fused");
  const bool isTf = spec_.semantics == Semantics::TfKeras && semanticsKnown_;
  std::optional<bool> fused;
  if (entry) {
    const char *const note = "steps after gamma and beta are written under 'fuse'";
    fused = asBool(entry->value);
    if (!fused && !isNull(entry->value)) {
      error(entry->value,
            fmt::format("fused must be null, true or false; found {}", found(entry->value)));
      diagnostics_.note(entry->offset, note);
      return;
    }
    if (semanticsKnown_ && !isTf) {
      diagnostics_.error(entry->offset, fmt::format("'fused' belongs to semantics tf-keras; found "
                                                    "{}",
                                                    quoted(semanticsName_)));
      diagnostics_.note(entry->offset, note);
      return;
    }
  }
  if (!isTf || !modeKnown_ || !layoutKnown_ || !axesKnown_)
    return;
  // As _raise_if_fused_cannot_be_used and _fused_can_be_used of its BatchNormalizationBase.
  std::string whyNot;
  const int rank = spec_.rank();
  if (spec_.mode != Mode::Feature)
    whyNot = fmt::format("mode 0; found {}", toString(spec_.mode));
  else if (rank != 4 && rank != 5)
    whyNot = fmt::format("rank 4 or 5; found {}", rank);
  else if (spec_.axes.size() != 1)
    whyNot = fmt::format("one axis; found {}", spec_.axes.size());
  else if (spec_.axes[0] != 1 && spec_.axes[0] != rank - 1)
    whyNot = fmt::format("axis 1 or {}; found {}", rank - 1, spec_.axes[0]);
  else if (spec_.dtype == DType::F64)
    whyNot = "dtype f32, bf16 or f16; found f64";
  for (const char *key : {"renorm", "virtual_batch_size", "adjustment", "mask", "synchronized"})
    if (const Entry *other = keys_.find(key);
        other && !isNull(other->value) && asBool(other->value) != false)
      whyNot = fmt::format("a layer without {}", key);
  if (fused.value_or(false) && !whyNot.empty())
    error(entry->value, fmt::format("fused: true needs {}", whyNot));
  const bool fuses = fused.value_or(whyNot.empty()) && whyNot.empty();
  if (fuses && !keys_.find("running_variance"))
    spec_.runningVariance = RunningVariance::Bessel;
  constexpr double leastOfKernel = 1.001e-5;
  if (fuses && !spec_.epsilon.isArgument && spec_.epsilon.value < leastOfKernel)
    spec_.notes.push_back(fmt::format("epsilon {} is computed as it is written; tf.keras's fused "
                                      "kernel takes 1.001e-5 for less",
                                      spec_.epsilon.value));
}

void Parser::readPopulation() {
  if (const Entry *entry = keys_.find("statistics"))
    if (const auto index = choose(entry->value, "statistics", statisticsNames, diagnostics_))
      spec_.takesPopulation = *index == 1;
  checkRange();
  if (!modeKnown_ || spec_.canHavePhase(Phase::Population))
    return;
  const std::string why = fmt::format(
      "belongs to mode 0 (feature); mode {} keeps no moving statistics", toString(spec_.mode));
  if (spec_.takesPopulation)
    error(keys_.find("statistics")->value, "statistics: population " + why);
  if (spec_.hasPhase(Phase::Population))
    error(keys_.find("phases")->value, "phase population " + why);
}

void Parser::readTrainable() {
  const Entry *entry = keys_.find("trainable");
  const auto trainable = entry ? readBool(entry->value, "trainable", diagnostics_) : std::nullopt;
  if (!trainable || *trainable || !modeKnown_)
    return;
  spec_.frozen = spec_.hasMovingStatistics() ? preset_->frozen : Frozen::Parameters;
  if (spec_.frozen != Frozen::ParametersAndStatistics)
    return;
  const Entry *statistics = keys_.find("backward_statistics");
  if (statistics && spec_.backwardStatistics == BackwardStatistics::Batch)
    error(statistics->value, fmt::format("backward_statistics: batch contradicts trainable: false, "
                                         "with which {} takes the moving statistics",
                                         toString(spec_.semantics)));
  spec_.backwardStatistics = BackwardStatistics::Moving;
}

std::optional<double> Parser::readRatio(const Value &value) {
  std::optional<double> number = asNumber(value);
  return number && *number >= 0 && *number <= 1 ? number : std::nullopt;
}

void Parser::readMomentum() {
  const Entry *entry = keys_.find("momentum");
  if (!entry)
    return;
  const Value &value = entry->value;
  Momentum &momentum = spec_.momentum;
  if (value.isMapping()) {
    Keys keys(value, "momentum", momentumKeys, diagnostics_);
    for (std::string_view key : momentumKeys) {
      const Entry *part = keys.find(key);
      std::optional<double> ratio = part ? readRatio(part->value) : std::nullopt;
      if (!part)
        error(value, fmt::format("key 'momentum.{}' is missing", key));
      else if (!ratio)
        error(part->value, fmt::format("momentum.{} must be a number from 0 to 1; found {}", key,
                                       found(part->value)));
      else
        (key == "mean" ? momentum.mean : momentum.variance) = {*ratio, false};
    }
  } else if (value.isScalar() && value.text == "argument") {
    momentum.mean = momentum.variance = {0, true};
  } else if (value.isScalar() && value.text == "cumulative") {
    momentum.cumulative = true;
  } else if (std::optional<double> ratio = readRatio(value)) {
    momentum.mean = momentum.variance = {*ratio, false};
  } else if (isNull(value)) {
    error(value, "momentum is null; PyTorch's average over all batches is 'momentum: cumulative'");
  } else {
    error(value, fmt::format("momentum must be a number from 0 to 1, 'argument', 'cumulative' or "
                             "{{mean: ..., variance: ...}}; found {}",
                             found(value)));
  }
}

void Parser::readFlag(std::string_view key, bool &flag) {
  if (const Entry *entry = keys_.find(key))
    if (std::optional<bool> value = readBool(entry->value, key, diagnostics_))
      flag = *value;
}

void Parser::readBackwardStatistics() {
  const Entry *entry = keys_.find("backward_statistics");
  if (!entry)
    return;
  const auto index =
      choose(entry->value, "backward_statistics", backwardStatisticsNames, diagnostics_);
  if (!index)
    return;
  spec_.backwardStatistics = static_cast<BackwardStatistics>(*index);
  if (spec_.backwardStatistics == BackwardStatistics::Moving && modeKnown_ &&
      !spec_.hasMovingStatistics() && !spec_.hasRange())
    error(entry->value, fmt::format("backward_statistics: moving belongs to mode 0 (feature); mode "
                                    "{} keeps no moving statistics",
                                    toString(spec_.mode)));
}

void Parser::noteKeysWithoutEffect() {
  if (!modeKnown_ || spec_.hasRange()) // what a range cannot have is an error
    return;
  auto note = [&](const char *key, const std::string &why) {
    if (keys_.find(key))
      spec_.notes.push_back(fmt::format("{} has no effect: {}", key, why));
  };
  const bool hasMoving = spec_.hasMovingStatistics();
  const std::string noMoving =
      fmt::format("mode {} keeps no moving statistics", toString(spec_.mode));
  const bool keepsMoving = spec_.frozen == Frozen::ParametersAndStatistics;
  const bool isUpdated =
      spec_.updatesMovingStatistics(Phase::Training) && spec_.hasPhase(Phase::Training);
  for (const char *key : {"momentum", "running_variance"})
    if (!isUpdated &&
        !(key == std::string_view("running_variance") && spec_.hasPhase(Phase::Population)))
      note(key, !hasMoving              ? noMoving
                : keepsMoving           ? "trainable: false keeps the moving statistics as they are"
                : spec_.takesPopulation ? "statistics: population leaves nothing to average"
                                        : "training is none of the phases");
  if (!spec_.hasBackward())
    note("backward_statistics", "backward is none of the phases");
  for (const char *key : {"renorm", "virtual_batch_size", "adjustment", "mask", "synchronized"})
    if (keepsMoving)
      note(key, "trainable: false takes the moving statistics in training too");
    else if (hasMoving && !spec_.hasPhase(Phase::Training) && !spec_.hasPhase(Phase::Moments) &&
             (!spec_.hasBackward() || spec_.backwardStatistics == BackwardStatistics::Moving))
      note(key, "no phase takes the batch's statistics");
  if (!spec_.hasBackward() && spec_.frozen == Frozen::Parameters)
    note("trainable", "it keeps gradients from gamma and beta, and backward is none of the phases");
  const bool hasBias =
      std::ranges::any_of(spec_.prologue, [](const FuseStep &step) { return step.name == "bias"; });
  if (!spec_.scale && !spec_.center && !hasMoving && !hasBias && spec_.parameterDType != DType::F64)
    note("parameter_dtype", "there are no parameters");
}

void Parser::readPhases() {
  const Entry *entry = keys_.find("phases");
  if (!entry) {
    spec_.phases = {Phase::Inference};
    if (asked_ == Phase::Training || asked_ == Phase::Backward)
      for (Phase phase : {Phase::Training, Phase::Backward})
        if (spec_.canHavePhase(phase))
          spec_.phases.push_back(phase);
    return;
  }
  if (!entry->value.isList() || entry->value.items.empty()) {
    error(entry->value, fmt::format("phases must be a list such as [inference, training]; found {}",
                                    entry->value.isList() ? "an empty one" : found(entry->value)));
    return;
  }
  for (const Value &item : entry->value.items) {
    std::optional<size_t> index = choose(item, "phase", phaseNames, diagnostics_, phaseAliases);
    if (!index)
      continue;
    const bool hasKernel = *index < std::size(kPhases);
    if (hasKernel ? spec_.hasPhase(kPhases[*index]) : spec_.initializes)
      error(item, fmt::format("phase '{}' is listed twice", item.text));
    else if (hasKernel)
      spec_.phases.push_back(kPhases[*index]);
    else
      spec_.initializes = true;
  }
  if (spec_.phases.empty() && spec_.initializes)
    error(entry->value, "phases must have one with a kernel: initialize is done on the host, "
                        "beside it");
}

} // namespace spec

llvm::Expected<Spec> parseSpec(llvm::StringRef text, llvm::StringRef sourceName,
                               ReadArray readArray, std::optional<Phase> asked) {
  std::string owned = text.str(); // LLVM's scanner wants a byte behind the end
  if (llvm::StringRef(owned).starts_with("\xef\xbb\xbf"))
    owned.erase(0, 3);
  spec::Diagnostics diagnostics(owned, sourceName);
  spec::Value root;
  if (spec::readDocument(owned, diagnostics, root)) {
    Spec result = spec::Parser(root, diagnostics, readArray, asked).parse(sourceName);
    if (diagnostics.empty())
      return result;
  }
  return llvm::make_error<SpecError>(diagnostics.render());
}

llvm::Expected<Spec> readSpec(llvm::StringRef path, std::optional<Phase> asked) {
  auto fail = [&](int code) {
    return llvm::make_error<SpecError>(fmt::format("{}: error: cannot be read: {}", path.str(),
                                                   std::generic_category().message(code)));
  };
  std::unique_ptr<std::FILE, spec::FileCloser> file(std::fopen(path.str().c_str(), "rb"));
  if (!file)
    return fail(errno);
  std::string text(spec::maxFileBytes, '\0');
  size_t size = std::fread(text.data(), 1, text.size(), file.get());
  if (std::ferror(file.get()))
    return fail(errno);
  text.resize(size);
  return parseSpec(
      text, path, [&](const std::string &array) { return readNpy(beside(path, array)); }, asked);
}

} // namespace normforge
