#include "tests/numerics/SpecDraw.h"

#include "compiler/expr/Functions.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge::test {

static char upper(char letter) { return static_cast<char>(letter - 'a' + 'A'); }

std::string DrawnAxis::name() const { return {upper(letter)}; }

std::string DrawnSpec::yaml() const {
  std::vector<std::string> shape;
  std::vector<int> listed;
  std::string layout;
  for (int i = 0; i < rank(); ++i) {
    const DrawnAxis &axis = axes[static_cast<size_t>(i)];
    shape.push_back(axis.named ? axis.name() : std::to_string(axis.size));
    layout += i == blockedAxis ? upper(axis.letter) : axis.letter;
    if (axis.listed)
      listed.push_back(i);
  }
  if (blockedAxis >= 0)
    layout += fmt::format("{}{}", block, axes[static_cast<size_t>(blockedAxis)].letter);

  std::string text = "name: drawn\n";
  if (semantics != Semantics::Keras_1_2)
    text += fmt::format("semantics: {}\n", toString(semantics));
  text += fmt::format("input: {{shape: [{}], layout: {}, dtype: {}}}\naxis: [{}]\n",
                      fmt::join(shape, ", "), layout, toString(dtype), fmt::join(listed, ", "));
  if (mode != Mode::Feature)
    text += mode > Mode::Batch ? fmt::format("mode: {}\n", toString(mode))
                               : fmt::format("mode: {}\n", static_cast<int>(mode));
  if (mode == Mode::Group)
    text += fmt::format("groups: {}\n", groups);
  if (parameterDType)
    text += fmt::format("parameter_dtype: {}\n", toString(*parameterDType));
  if (accumulatesF64)
    text += "accumulate: f64\n";
  std::vector<std::string_view> words;
  for (Phase phase : phases)
    words.push_back(toString(phase));
  text += fmt::format("phases: [{}]\n", fmt::join(words, ", "));
  if (center != (mode != Mode::Rms))
    text += fmt::format("center: {}\n", center);
  if (!scale)
    text += "scale: false\n";
  if (epsilon == DrawnEpsilon::Argument)
    text += "epsilon: argument\n";
  switch (momentum) {
  case DrawnMomentum::Default:
    break;
  case DrawnMomentum::Argument:
    text += "momentum: argument\n";
    break;
  case DrawnMomentum::Cumulative:
    text += "momentum: cumulative\n";
    break;
  case DrawnMomentum::Pair:
    text += "momentum: {mean: 0.25, variance: 0.75}\n";
    break;
  }
  if (runningVariance)
    text += fmt::format("running_variance: {}\n", toString(*runningVariance));
  if (epsilonPosition)
    text += fmt::format("epsilon_position: {}\n", toString(*epsilonPosition));
  if (!trainable)
    text += "trainable: false\n";
  if (renorm)
    text += clips ? "renorm: {r_max: 1.25, r_min: 0.75, d_max: 0.25, momentum: 0.875}\n"
                  : "renorm: true\n";
  if (adjustment)
    text += "adjustment: true\n";
  if (mask)
    text += "mask: true\n";
  if (synchronized)
    text += "synchronized: true\n";
  if (ghostBatch > 0)
    text += fmt::format("virtual_batch_size: {}\n", ghostBatch);
  if (!optimizer.empty())
    text += fmt::format("optimizer: {}\n", optimizer);
  if (!parameters.empty())
    text += fmt::format("parameters: {}\n", parameters);
  if (takesPopulation)
    text += "statistics: population\n";
  if (movingBackward)
    text += "backward_statistics: moving\n";
  std::vector<std::string> steps;
  for (const FuseStep &step : prologue)
    steps.push_back(step.text());
  if (!steps.empty())
    text += fmt::format("prologue: [{}]\n", fmt::join(steps, ", "));
  steps.clear();
  for (const FuseStep &step : fuse)
    steps.push_back(step.text());
  if (!steps.empty())
    text += fmt::format("fuse: [{}]\n", fmt::join(steps, ", "));
  return text;
}

oracle::Sizes DrawnSpec::sizes() const {
  oracle::Sizes sizes;
  for (const DrawnAxis &axis : axes)
    if (axis.named)
      sizes[axis.name()] = axis.size;
  return sizes;
}

const oracle::Numbers &drawnScalars() {
  static const oracle::Numbers scalars{
      {"epsilon", 1e-3},         {"momentum", 0.8125}, {"count", 3},     {"step", 5},
      {"learning_rate", 0.0625}, {"alpha", 0.75},      {"alpha2", -1.25}};
  return scalars;
}

DrawnSpec SpecDraw::draw() {
  for (;;) {
    DrawnSpec spec;
    spec.axes.resize(static_cast<size_t>(pick({1, 2, 2, 3, 3, 4, 4, 4, 5, 6})));
    // A shuffle of our own: std::shuffle's order is the library's.
    std::string letters = "nctdhw";
    for (size_t i = letters.size(); i > 1; --i)
      std::swap(letters[i - 1], letters[random_() % i]);
    for (size_t i = 0; i < spec.axes.size(); ++i)
      spec.axes[i].letter = letters[i];
    spec.mode = static_cast<Mode>(pick({0, 0, 1, 2, 3, 4, 5, 5, 6}));
    if (!chance(3))
      spec.semantics =
          pick({Semantics::PyTorch, Semantics::PyTorch, Semantics::Onnx_15, Semantics::Keras_1_0_4,
                Semantics::TfKeras, Semantics::Keras_3, Semantics::Matlab});
    if (!listAxes(spec))
      continue;
    if (chance(4)) {
      spec.blockedAxis = static_cast<int>(random_() % spec.axes.size());
      spec.block = pick({2, 4, 8, 8, 16, 16, 32});
    }
    drawSizes(spec);
    if (spec.mode == Mode::Group)
      drawGroups(spec);
    drawOptions(spec);
    if (spec.mode == Mode::Range) {
      keepRange(spec);
      return spec;
    }
    if (chance(6)) {
      foldValues(spec);
      return spec;
    }
    drawTraining(spec);
    drawUpdate(spec);
    return spec;
  }
}

/// Inference alone, with values of some arrays in the kernel: a number each, or a list.
void SpecDraw::foldValues(DrawnSpec &spec) {
  const DrawnSpec usual;
  spec.phases = {Phase::Inference};
  spec.movingBackward = usual.movingBackward;
  spec.momentum = usual.momentum;
  spec.runningVariance = usual.runningVariance;
  int64_t count = 1;
  bool isNamed = false;
  for (const DrawnAxis &axis : spec.axes)
    if (axis.listed) {
      count *= axis.size;
      isNamed |= axis.named;
    }
  const bool lists = !isNamed && count <= 4096;
  std::vector<std::string> keys;
  auto add = [&](std::string_view name, bool exists, double least) {
    if (!exists || chance(4))
      return;
    auto number = [&] { return least + static_cast<double>(random_() % 1024) / 1024; };
    std::vector<double> numbers(lists && !chance(4) ? static_cast<size_t>(count) : 0);
    std::ranges::generate(numbers, number);
    keys.push_back(numbers.empty()
                       ? fmt::format("{}: {{value: {}}}", name, number())
                       : fmt::format("{}: {{value: [{}]}}", name, fmt::join(numbers, ", ")));
  };
  add("gamma", spec.scale, 0.5);
  add("beta", spec.center, -0.5);
  add("moving_mean", spec.mode == Mode::Feature, -0.5);
  add(spec.semantics == Semantics::Keras_1_0_4 ? "moving_stddev" : "moving_variance",
      spec.mode == Mode::Feature, 0.5);
  if (!keys.empty())
    spec.parameters = fmt::format("{{{}}}", fmt::join(keys, ", "));
}

/// A range is of phase population, and knows nothing of epsilons and averages.
void SpecDraw::keepRange(DrawnSpec &spec) {
  const DrawnSpec usual;
  spec.phases = {Phase::Inference, Phase::Population};
  spec.epsilon = usual.epsilon;
  spec.epsilonPosition = usual.epsilonPosition;
  spec.momentum = usual.momentum;
  spec.runningVariance = usual.runningVariance;
  spec.trainable = usual.trainable;
  spec.movingBackward = usual.movingBackward;
}

bool SpecDraw::listAxes(DrawnSpec &spec) {
  const bool sample = spec.mode == Mode::Sample;
  const bool isKeras1 =
      spec.semantics == Semantics::Keras_1_2 || spec.semantics == Semantics::Keras_1_0_4;
  if (sample && isKeras1) { // whatever axis says, it is the last one
    spec.axes.back().listed = true;
    return true;
  }
  size_t listed = 0;
  for (DrawnAxis &axis : spec.axes)
    if (chance(spec.rank() > 2 ? 3 : 2)) {
      axis.listed = true;
      ++listed;
    }
  if (listed == 0) {
    spec.axes[random_() % spec.axes.size()].listed = true;
    ++listed;
  }
  if (spec.mode == Mode::Instance || spec.mode == Mode::Group) {
    auto samples = std::ranges::find(spec.axes, 'n', &DrawnAxis::letter);
    if (samples == spec.axes.end())
      samples = spec.axes.begin();
    listed -= samples->listed;
    samples->listed = false;
    if (spec.mode == Mode::Group)
      return listed == 1;
    return listed > 0 && listed + 1 < spec.axes.size();
  }
  if (sample || spec.mode == Mode::Rms || listed < spec.axes.size())
    return true;
  // Modes 0 and 2 reduce over the others; rank 1 has none.
  spec.axes.back().listed = false;
  return listed > 1;
}

void SpecDraw::drawSizes(DrawnSpec &spec) {
  int64_t budget = pick({200, 3000, 40000, 300000});
  for (DrawnAxis &axis : spec.axes) {
    const int64_t size = pick({1,  2,  3,  5,  7,  8,  13, 15,  16,  17,  31,  32,   33,
                               48, 49, 63, 64, 65, 67, 96, 128, 129, 251, 257, 1000, 3136});
    axis.size = std::max<int64_t>(1, std::min(size, budget));
    budget /= axis.size;
    axis.named = chance(4);
  }
}

/// A divisor of the axis, each as likely as the others.
void SpecDraw::drawGroups(DrawnSpec &spec) {
  const int64_t size = std::ranges::find(spec.axes, true, &DrawnAxis::listed)->size;
  std::vector<int64_t> divisors;
  for (int64_t i = 1; i <= size; ++i)
    if (size % i == 0)
      divisors.push_back(i);
  spec.groups = divisors[random_() % divisors.size()];
}

void SpecDraw::drawUpdate(DrawnSpec &spec) {
  if (!chance(4) || !spec.trainable || !(spec.center || spec.scale))
    return;
  spec.phases.push_back(Phase::Update);
  if (!spec.synchronized && chance(2) &&
      std::ranges::find(spec.phases, Phase::Backward) != spec.phases.end())
    spec.phases.push_back(Phase::BackwardUpdate);
  spec.optimizer = pick({"sgd", "{sgd: {momentum: 0.5, nesterov: true, decay: 0.25}}",
                         "{momentum: {weight_decay: 0.125, learning_rate: argument}}", "rmsprop",
                         "{rmsprop: {centered: true, momentum: 0.75}}", "adam",
                         "{adam: {amsgrad: true, weight_decay: 0.125}}"});
  if (!chance(2))
    return;
  const char *beside = pick({"{regularizer: l1_l2}", "{constraint: {max_norm: 2}}",
                             "{constraint: non_neg, learn_rate_factor: 2}",
                             "{constraint: unit_norm, regularizer: {l2: 0.25}}"});
  // Keras's norms along the first of several axes are not built.
  const bool isKeras = spec.semantics == Semantics::TfKeras || spec.semantics == Semantics::Keras_3;
  if (isKeras && (spec.mode == Mode::Sample || spec.mode == Mode::Rms) &&
      std::ranges::count(spec.axes, true, &DrawnAxis::listed) > 1)
    beside = "{constraint: non_neg}";
  spec.parameters = fmt::format("{{{}: {}}}", spec.scale && !chance(3) ? "gamma" : "beta", beside);
}

void SpecDraw::drawTraining(DrawnSpec &spec) {
  if (spec.mode == Mode::Feature && chance(3))
    spec.phases.push_back(Phase::Population);
  if ((spec.mode != Mode::Feature && spec.mode != Mode::Batch) || !chance(3))
    return;
  spec.mask = chance(3);
  spec.synchronized =
      chance(3) && std::ranges::find(spec.phases, Phase::Population) == spec.phases.end() &&
      std::ranges::all_of(spec.prologue, [](const FuseStep &step) { return step.store.empty(); });
  if (spec.mode == Mode::Batch)
    return;
  spec.adjustment = chance(3);
  spec.renorm = spec.semantics != Semantics::Keras_1_0_4 && chance(2);
  if (spec.renorm) { // it averages the root of the biased variance and epsilon
    spec.epsilonPosition.reset();
    spec.runningVariance.reset();
  }
  spec.clips = chance(2);
  spec.takesPopulation = !spec.renorm && chance(2);
  auto samples = std::ranges::find(spec.axes, 'n', &DrawnAxis::letter);
  if (samples == spec.axes.end())
    samples = spec.axes.begin();
  const bool isBlocked = samples - spec.axes.begin() == spec.blockedAxis;
  if (spec.mask || spec.synchronized || spec.adjustment || spec.renorm || samples->listed ||
      isBlocked)
    return;
  std::vector<int64_t> divisors;
  for (int64_t i = 1; i <= samples->size; ++i)
    if (samples->size % i == 0)
      divisors.push_back(i);
  spec.ghostBatch = divisors[random_() % divisors.size()];
}

void SpecDraw::drawOptions(DrawnSpec &spec) {
  spec.dtype = chance(4)   ? DType::F64
               : chance(6) ? DType::BF16
               : chance(6) ? DType::F16
                           : DType::F32;
  if (chance(6))
    spec.parameterDType = pick({DType::F32, DType::F64, DType::BF16, DType::F16});
  spec.accumulatesF64 = chance(8);
  spec.center = !chance(4);
  spec.scale = !chance(4);
  if (chance(5))
    spec.epsilon = DrawnEpsilon::Argument;
  if (chance(5))
    spec.momentum = DrawnMomentum::Argument;
  else if (chance(6))
    spec.momentum = DrawnMomentum::Cumulative;
  else if (chance(6))
    spec.momentum = DrawnMomentum::Pair;
  if (chance(4) && (spec.semantics != Semantics::Keras_1_0_4 || spec.mode != Mode::Feature))
    spec.runningVariance = chance(2) ? RunningVariance::Bessel : RunningVariance::Keras2;
  const FuseStep add{"add"}, relu{"relu"};
  spec.fuse = pick<std::vector<FuseStep>>({{add}, {relu}, {add, relu}, {relu, add}, {}});
  if (chance(3)) {
    const auto all = functions();
    const Function &function = all[random_() % all.size()];
    FuseStep step{std::string(function.name)};
    for (unsigned i = 0; i < function.parameters; ++i)
      step.parameters.push_back(i - 0.25 * static_cast<double>(random_() % 4));
    spec.fuse.insert(chance(2) ? spec.fuse.begin() : spec.fuse.end(), step);
    // relu after relu is refused.
    spec.fuse.erase(std::unique(spec.fuse.begin(), spec.fuse.end()), spec.fuse.end());
  }
  if (chance(6))
    spec.epsilonPosition =
        pick({EpsilonPosition::Inside, EpsilonPosition::Outside, EpsilonPosition::Both});
  spec.trainable = !chance(6);
  spec.movingBackward = spec.mode == Mode::Feature && chance(4);
  if (chance(4))
    spec.fuse.insert(chance(2) ? spec.fuse.begin() : spec.fuse.end(), drawOperandStep(spec, "f"));
  if (!chance(4))
    return;
  if (chance(3))
    spec.prologue.push_back({"bias"});
  if (chance(2))
    spec.prologue.push_back(drawOperandStep(spec, "p"));
  if (chance(3))
    spec.prologue.push_back({"silu"});
  if (chance(2)) {
    FuseStep stored{"add"};
    stored.operands.push_back({"q", {}, true});
    stored.store = "sum";
    spec.prologue.push_back(stored);
  }
  if (chance(4))
    spec.prologue.push_back({"tanh"});
}

FuseStep SpecDraw::drawOperandStep(const DrawnSpec &spec, const std::string &name) {
  auto drawOperand = [&](const std::string &of) {
    StepOperand operand{of, {}, chance(4)};
    for (int i = 0; i < spec.rank(); ++i)
      if (operand.whole || chance(2))
        operand.axes.push_back(i);
    if (operand.axes.empty())
      operand.axes.push_back(0);
    operand.whole = operand.axes.size() == spec.axes.size();
    return operand;
  };
  const char *const expressions[] = {
      "x * sigmoid(1.5 * x) + {0}",
      "where(x > {0}, x, 0.5 * x)",
      "x * (1 + {0}) + {1}",
      "tanh(x) - max({0}, {1}) * x",
      "min(x, {0}) + abs({1}) / (1 + exp(-x))",
      "log(1.5 + x * x) - erf({0}) * sqrt(0.5 + abs(x)) + {2}",
      "softplus(x) * {2} + relu({0} - 0.25) * x + floor({0}) - round({0})"};
  FuseStep step;
  if (chance(2)) {
    step.name = chance(2) ? "add" : "mul";
    step.operands.push_back(drawOperand(name));
    return step;
  }
  const std::string text = expressions[random_() % std::size(expressions)];
  step.name = "expr";
  step.formula = std::make_shared<Formula>(); // the text is read again
  step.operands.push_back(drawOperand(name));
  if (text.find("{1}") != std::string::npos)
    step.operands.push_back(drawOperand(name + "2"));
  const std::string scalar = name == "p" ? "alpha" : "alpha2";
  if (text.find("{2}") != std::string::npos)
    step.scalars.push_back(scalar);
  step.expression = fmt::format(fmt::runtime(text), name, name + "2", scalar);
  return step;
}

} // namespace normforge::test
