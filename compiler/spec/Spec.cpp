#include "compiler/spec/Initialize.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/BLAKE3.h"
#include "llvm/Support/raw_ostream.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <limits>

namespace normforge {

char SpecError::ID = 0;

void SpecError::log(llvm::raw_ostream &os) const { os << text_; }

std::string_view toString(Semantics semantics) {
  switch (semantics) {
  case Semantics::Keras_1_2:
    return "keras-1.2";
  case Semantics::Keras_1_0_4:
    return "keras-1.0.4";
  case Semantics::TfKeras:
    return "tf-keras";
  case Semantics::Keras_3:
    return "keras-3";
  case Semantics::Matlab:
    return "matlab";
  case Semantics::PyTorch:
    return "pytorch";
  case Semantics::Onnx_15:
    return "onnx-15";
  }
  return "";
}

std::string_view toString(Phase phase) {
  switch (phase) {
  case Phase::Inference:
    return "inference";
  case Phase::Training:
    return "training";
  case Phase::Backward:
    return "backward";
  case Phase::Population:
    return "population";
  case Phase::Update:
    return "update";
  case Phase::BackwardUpdate:
    return "backward+update";
  case Phase::Moments:
    return "moments";
  case Phase::GradientSums:
    return "gradient_sums";
  }
  return "";
}

std::optional<Phase> parsePhase(std::string_view text) {
  for (Phase phase : kPhases)
    if (toString(phase) == text)
      return phase;
  return std::nullopt;
}

std::string_view toString(Mode mode) {
  switch (mode) {
  case Mode::Feature:
    return "feature";
  case Mode::Sample:
    return "sample";
  case Mode::Batch:
    return "batch";
  case Mode::Instance:
    return "instance";
  case Mode::Rms:
    return "rms";
  case Mode::Group:
    return "group";
  case Mode::Range:
    return "range";
  }
  return "";
}

std::string_view toString(EpsilonPosition position) {
  switch (position) {
  case EpsilonPosition::Inside:
    return "inside";
  case EpsilonPosition::Outside:
    return "outside";
  case EpsilonPosition::Both:
    return "both";
  }
  return "";
}

std::string_view toString(RunningVariance variance) {
  switch (variance) {
  case RunningVariance::Biased:
    return "biased";
  case RunningVariance::Bessel:
    return "bessel";
  case RunningVariance::Keras2:
    return "keras-2";
  }
  return "";
}

/// The axes where they are not all, the name, what is stored: as a mapping, or nothing.
static std::string operandText(const StepOperand &operand, std::string_view store) {
  std::string text;
  if (!operand.whole)
    text += fmt::format("axes: [{}], ", fmt::join(operand.axes, ", "));
  text += "name: " + operand.name;
  if (!store.empty())
    text += fmt::format(", store: {}", store);
  return "{" + text + "}";
}

std::string FuseStep::text() const {
  if (formula) {
    std::string text = fmt::format("{{expr: \"{}\"", expression);
    std::vector<std::string> named;
    for (const StepOperand &operand : operands)
      named.push_back(
          fmt::format("{}: {}", operand.name,
                      operand.whole ? "x" : fmt::format("[{}]", fmt::join(operand.axes, ", "))));
    if (!named.empty())
      text += fmt::format(", operands: {{{}}}", fmt::join(named, ", "));
    if (!scalars.empty())
      text += fmt::format(", scalars: [{}]", fmt::join(scalars, ", "));
    return text + "}";
  }
  if (!operands.empty()) {
    constexpr std::pair<std::string_view, std::string_view> usual[] = {
        {"add", "addend"}, {"mul", "factor"}, {"bias", "bias"}};
    for (auto [step, argument] : usual)
      if (store.empty() && name == step && operands[0].name == argument &&
          (operands[0].whole || step == "bias"))
        return name;
    return name == "bias" ? name : fmt::format("{{{}: {}}}", name, operandText(operands[0], store));
  }
  if (parameters.empty())
    return name;
  if (parameters.size() == 1)
    return fmt::format("{{{}: {}}}", name, parameters[0]);
  return fmt::format("{{{}: [{}]}}", name, fmt::join(parameters, ", "));
}

bool Spec::isAxis(int i) const { return std::binary_search(axes.begin(), axes.end(), i); }

int Spec::samplesAxis() const {
  for (char letter : {'n', 'b'})
    if (const size_t found = layout.axes.find(letter); found != std::string::npos)
      return static_cast<int>(found);
  return 0;
}

bool Spec::indexesStatistics(int i) const {
  switch (mode) {
  case Mode::Feature:
  case Mode::Batch:
  case Mode::Range:
    return isAxis(i);
  case Mode::Sample:
  case Mode::Rms:
    return !isAxis(i);
  case Mode::Instance:
    return isAxis(i) || i == samplesAxis();
  case Mode::Group:
    return i == samplesAxis();
  }
  return false;
}

int Spec::storedStep() const {
  for (int i = static_cast<int>(prologue.size()); i-- > 0;)
    if (!prologue[static_cast<size_t>(i)].store.empty())
      return i;
  return -1;
}

bool Spec::hasPhase(Phase phase) const {
  return std::find(phases.begin(), phases.end(), phase) != phases.end();
}

bool Spec::takesMovingStatistics(Phase phase) const {
  if (hasRange())
    return phase == Phase::Inference;
  if (!hasMovingStatistics())
    return false;
  switch (phase) {
  case Phase::Inference:
    return true;
  case Phase::Training:
    return frozen == Frozen::ParametersAndStatistics;
  case Phase::Backward:
  case Phase::BackwardUpdate:
  case Phase::GradientSums:
    return backwardStatistics == BackwardStatistics::Moving;
  case Phase::Population:
  case Phase::Update:
  case Phase::Moments:
    return false;
  }
  return false;
}

std::string_view Spec::movingSpreadName() const {
  return movingSpread == MovingSpread::Deviation ? "moving_stddev" : "moving_variance";
}

bool Spec::spreadTakesEpsilon() const {
  return runningVariance == RunningVariance::Keras2 ||
         (movingSpread == MovingSpread::Deviation && epsilonPosition != EpsilonPosition::Outside);
}

std::vector<std::string> Spec::sizeNames() const {
  std::vector<std::string> names;
  for (const Size &size : shape)
    if (size.isNamed() && std::find(names.begin(), names.end(), size.name) == names.end())
      names.push_back(size.name);
  return names;
}

std::vector<Scalar> Spec::scalars(Phase phase) const {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Spec seen = ofPhase(*this, phase);
  const DType type = seen.accumulate;
  std::vector<Scalar> scalars;
  if (epsilon.isArgument && phase != Phase::Update && phase != Phase::Moments &&
      (phase != Phase::Population || spreadTakesEpsilon()))
    scalars.push_back({"epsilon", type, 0, kInfinity, /*open=*/true});
  if (updatesMovingStatistics(phase)) {
    if (momentum.cumulative)
      scalars.push_back({"count", type, 1, kInfinity, /*open=*/false, /*whole=*/true});
    else if (momentum.mean.isArgument || momentum.variance.isArgument)
      scalars.push_back({"momentum", type, 0, 1});
  }
  for (const std::vector<FuseStep> *steps : {&seen.prologue, &seen.fuse})
    for (const FuseStep &step : *steps)
      for (const std::string &name : step.scalars)
        scalars.push_back({name, type, -kInfinity, kInfinity});
  if (isUpdate(phase) && optimizer) {
    if (optimizer->learningRate.isArgument)
      scalars.push_back({"learning_rate", type, 0, kInfinity});
    if (optimizer->takesStep())
      scalars.push_back({"step", type, 1, kInfinity, /*open=*/false, /*whole=*/true});
  }
  return scalars;
}

std::vector<std::string> Spec::scalarNames(Phase phase) const {
  std::vector<std::string> names;
  for (const Scalar &scalar : scalars(phase))
    names.push_back(scalar.name);
  return names;
}

Spec ofPhase(Spec spec, Phase phase) {
  if (spec.takesMovingStatistics(phase)) {
    spec.renorm.reset();
    spec.ghostBatch = 0;
    spec.adjustment = spec.mask = spec.synchronized = false;
  }
  if (phase == Phase::Moments) {
    spec.renorm.reset();
    spec.adjustment = spec.center = spec.scale = false;
    spec.fuse.clear();
  }
  if (phase == Phase::Population) {
    spec.renorm.reset();
    spec.ghostBatch = 0;
    spec.adjustment = spec.center = spec.scale = spec.synchronized = false;
    spec.fuse.clear();
    if (!spec.hasRange())
      spec.accumulate = DType::F64;
  }
  if (phase == Phase::Update) {
    Layout layout;
    std::vector<Size> shape;
    for (const int axis : spec.axes) {
      layout.axes += spec.layout.axes[static_cast<size_t>(axis)];
      shape.push_back(spec.shape[static_cast<size_t>(axis)]);
    }
    layout.text = layout.axes;
    spec.layout = std::move(layout);
    spec.shape = std::move(shape);
    for (size_t i = 0; i < spec.axes.size(); ++i)
      spec.axes[i] = static_cast<int>(i);
    spec.mode = Mode::Sample;
    spec.groups = spec.ghostBatch = 0;
    spec.renorm.reset();
    spec.adjustment = spec.mask = spec.synchronized = false;
    spec.dtype = spec.parameterDType;
    spec.prologue.clear();
    spec.fuse.clear();
  }
  if (isUpdate(phase) && spec.parameterDType == DType::F64)
    spec.accumulate = DType::F64;
  return spec;
}

namespace {

/// A number, or of many a hash.
std::string textOf(const Initial &folded) {
  if (folded.kind == Initial::Kind::Constant)
    return fmt::format("{}", folded.first);
  const llvm::ArrayRef values(folded.values);
  const auto hash = llvm::BLAKE3::hash<32>(llvm::ArrayRef(
      reinterpret_cast<const uint8_t *>(values.data()), values.size() * sizeof(double)));
  return fmt::format("{} of {}", values.size(), llvm::toHex(hash, /*LowerCase=*/true));
}

} // namespace

std::string canonicalText(const Spec &spec) {
  auto number = [](const Number &n) {
    // All digits: two numbers that differ are never one.
    return n.isArgument ? std::string("argument") : fmt::format("{}", n.value);
  };
  std::string text =
      fmt::format("semantics={} layout={}/{}/{}/{} dtype={}/{} mode={}", toString(spec.semantics),
                  spec.layout.text, spec.layout.axes, spec.layout.blockedAxis, spec.layout.block,
                  toString(spec.dtype), toString(spec.parameterDType), toString(spec.mode));
  text += " shape=";
  for (const Size &size : spec.shape)
    text += (size.isNamed() ? size.name : std::to_string(size.value)) + ",";
  text += " axes=";
  for (int axis : spec.axes)
    text += std::to_string(axis) + ",";
  if (spec.groups > 0)
    text += fmt::format(" groups={}", spec.groups);
  text += fmt::format(" epsilon={} {}", number(spec.epsilon), toString(spec.epsilonPosition));
  text += fmt::format(" momentum={} {} {}/{}",
                      spec.momentum.weighs == MomentumWeighs::Old ? "old" : "new",
                      spec.momentum.cumulative ? "cumulative" : "fixed", number(spec.momentum.mean),
                      number(spec.momentum.variance));
  text +=
      fmt::format(" running_variance={} center={} scale={} fuse=", toString(spec.runningVariance),
                  spec.center, spec.scale);
  for (const FuseStep &step : spec.fuse)
    text += step.text() + ",";
  if (!spec.prologue.empty())
    text += " prologue=";
  for (const FuseStep &step : spec.prologue)
    text += step.text() + ",";
  if (spec.backwardStatistics == BackwardStatistics::Moving)
    text += " backward_statistics=moving";
  if (spec.takesPopulation)
    text += " statistics=population";
  if (spec.frozen == Frozen::Parameters)
    text += " frozen=parameters";
  else if (spec.frozen == Frozen::ParametersAndStatistics)
    text += " frozen=parameters,statistics";
  if (spec.renorm)
    text += fmt::format(" renorm={},{},{},{}", spec.renorm->rMin, spec.renorm->rMax,
                        spec.renorm->dMax, spec.renorm->momentum);
  if (spec.ghostBatch > 0)
    text += fmt::format(" ghost_batch={}", spec.ghostBatch);
  if (spec.adjustment)
    text += " adjustment";
  if (spec.mask)
    text += " mask";
  if (spec.synchronized)
    text += " synchronized";
  if (spec.accumulate != computeDType(spec.dtype))
    text += fmt::format(" accumulate={}", toString(spec.accumulate));
  if (spec.optimizer)
    text += fmt::format(" optimizer={} gamma {} beta {}", textOf(*spec.optimizer),
                        textOf(spec.gammaLearned), textOf(spec.betaLearned));
  for (const std::string &name : foldedNames(spec))
    text += fmt::format(" {}={}", name, textOf(*initialOf(spec, name)));
  text += " phases=";
  for (Phase phase : kPhases)
    if (spec.hasPhase(phase))
      text += std::string(toString(phase)) + ",";
  return text;
}

} // namespace normforge
