// The meaning of good specs, and the completeness of the networks' specs.
#include "compiler/spec/Spec.h"
#include "compiler/operator/Operator.h"

#include "llvm/ADT/StringRef.h"

#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace {

using namespace normforge;

Spec parse(const std::string &text, const std::string &sourceName = "dir/spec.yaml") {
  llvm::Expected<Spec> spec = parseSpec(text, sourceName);
  if (spec)
    return std::move(*spec);
  std::string message = llvm::toString(spec.takeError());
  FAIL_CHECK(text << "\n" << message);
  return {};
}

// Enums are compared in double parentheses: doctest would take our toString for its own.
const std::string nchw = "input: {shape: [N, 64, 56, 56], layout: nchw}\n";

TEST_CASE("the least a spec can say") {
  Spec spec = parse("input: {shape: [N, 64]}");
  CHECK(spec.name == "spec");
  CHECK((spec.semantics == Semantics::Keras_1_2));
  CHECK(spec.rank() == 2);
  CHECK(spec.shape[0] == Size{0, "N"});
  CHECK(spec.shape[1] == Size{64, ""});
  CHECK(spec.layout.text == "nc");
  CHECK_FALSE(spec.layout.isBlocked());
  CHECK((spec.dtype == DType::F32));
  CHECK((spec.parameterDType == DType::F32));
  CHECK((spec.mode == Mode::Feature));
  CHECK(spec.axes == std::vector<int>{1});
  CHECK(spec.epsilon.value == 1e-3);
  CHECK_FALSE(spec.epsilon.isArgument);
  CHECK((spec.epsilonPosition == EpsilonPosition::Inside));
  CHECK((spec.momentum.weighs == MomentumWeighs::Old));
  CHECK(spec.momentum.mean.value == 0.99);
  CHECK(spec.momentum.variance.value == 0.99);
  CHECK_FALSE(spec.momentum.cumulative);
  CHECK((spec.runningVariance == RunningVariance::Biased));
  CHECK(spec.center);
  CHECK(spec.scale);
  CHECK(spec.phases == std::vector<Phase>{Phase::Inference});
  CHECK(spec.fuse.empty());
  CHECK(spec.scalarNames(Phase::Training).empty());
}

TEST_CASE("everything a spec can say") {
  Spec spec = parse("name: bn_1\nsemantics: onnx-15\n"
                    "input: {shape: [N, T, N, 8, 9, 10], layout: ntCdhw8c, dtype: f64}\n"
                    "output: {layout: ntCdhw8c, dtype: f64}\n"
                    "axis: [w, -4]\nmode: batch\nepsilon: 0x1\n"
                    "momentum: {mean: 0, variance: 1}\nrunning_variance: keras-2\n"
                    "center: false\nscale: FALSE\nphases: [training, inference]\n"
                    "fuse: [relu, add, relu]\n");
  CHECK(spec.name == "bn_1");
  CHECK((spec.semantics == Semantics::Onnx_15));
  CHECK(spec.layout.text == "ntCdhw8c");
  CHECK(spec.layout.axes == "ntcdhw");
  CHECK(spec.layout.blockedAxis == 2);
  CHECK(spec.layout.block == 8);
  CHECK((spec.dtype == DType::F64));
  CHECK((spec.parameterDType == DType::F64));
  CHECK((spec.mode == Mode::Batch));
  CHECK(spec.axes == std::vector<int>{2, 5});
  CHECK(spec.isAxis(5));
  CHECK_FALSE(spec.isAxis(0));
  CHECK(spec.epsilon.value == 1);
  CHECK(spec.momentum.mean.value == 0);
  CHECK(spec.momentum.variance.value == 1);
  CHECK((spec.runningVariance == RunningVariance::Keras2));
  CHECK_FALSE(spec.center);
  CHECK_FALSE(spec.scale);
  CHECK(spec.phases == std::vector<Phase>{Phase::Training, Phase::Inference});
  CHECK(spec.fuse == std::vector<FuseStep>{{"relu"}, {"add"}, {"relu"}});
  CHECK(spec.sizeNames() == std::vector<std::string>{"N", "T"});
  CHECK_FALSE(spec.hasMovingStatistics());
}

TEST_CASE("presets") {
  Spec keras = parse(nchw + "axis: c\n"), torch = parse(nchw + "semantics: pytorch\n"),
       onnx = parse(nchw + "semantics: onnx-15\n");
  CHECK(parse(nchw).axes == std::vector<int>{3});
  CHECK(torch.axes == std::vector<int>{1});
  CHECK(onnx.axes == std::vector<int>{1});
  CHECK(keras.epsilon.value == 1e-3);
  CHECK(torch.epsilon.value == 1e-5);
  CHECK(onnx.epsilon.value == 1e-5);
  CHECK((torch.momentum.weighs == MomentumWeighs::New));
  CHECK(torch.momentum.mean.value == 0.1);
  CHECK((onnx.momentum.weighs == MomentumWeighs::Old));
  CHECK(onnx.momentum.variance.value == 0.9);
  CHECK((torch.runningVariance == RunningVariance::Bessel));
  CHECK((onnx.runningVariance == RunningVariance::Biased));
  // Keras 1.2 counts epsilon twice in mode 1, others put it inside.
  CHECK((parse(nchw + "mode: 1\n").epsilonPosition == EpsilonPosition::Both));
  CHECK((parse(nchw + "mode: 2\n").epsilonPosition == EpsilonPosition::Inside));
  CHECK((parse(nchw + "mode: 1\nsemantics: pytorch\n").epsilonPosition == EpsilonPosition::Inside));
  // A preset counts wherever it stands; what the spec says wins.
  Spec late = parse("momentum: 0.25\nepsilon: 1e-2\n" + nchw + "semantics: pytorch\n");
  CHECK((late.momentum.weighs == MomentumWeighs::New));
  CHECK(late.momentum.mean.value == 0.25);
  CHECK(late.epsilon.value == 1e-2);
}

TEST_CASE("axis of mode 1") {
  CHECK(parse(nchw + "mode: sample\n").axes == std::vector<int>{3});
  CHECK((parse(nchw + "mode: layer\n").mode == Mode::Sample));
  CHECK(parse("input: {shape: [2, 3, 4], layout: blc}\naxis: c\n").layout.axes == "blc");
  CHECK(parse(nchw + "mode: 1\naxis: -1\n").axes == std::vector<int>{3});
  CHECK(parse(nchw + "mode: 1\naxis: [w]\n").axes == std::vector<int>{3});
  CHECK(parse(nchw + "mode: 1\nsemantics: pytorch\naxis: [w, h, c]\n").axes ==
        std::vector<int>{1, 2, 3});
  CHECK(parse("input: {shape: [64]}\nmode: 1\n").axes == std::vector<int>{0});
  CHECK(parse("input: {shape: [4, 8]}\nmode: 1\nsemantics: onnx-15\naxis: [0, 1]\n").axes ==
        std::vector<int>{0, 1});
}

TEST_CASE("run-time numbers") {
  Spec spec = parse(nchw + "axis: c\nepsilon: argument\nmomentum: argument\n");
  CHECK(spec.epsilon.isArgument);
  CHECK(spec.momentum.mean.isArgument);
  CHECK(spec.scalarNames(Phase::Inference) == std::vector<std::string>{"epsilon"});
  CHECK(spec.scalarNames(Phase::Training) == std::vector<std::string>{"epsilon", "momentum"});
  Spec cumulative = parse(nchw + "axis: c\nmomentum: cumulative\n");
  CHECK(cumulative.momentum.cumulative);
  CHECK(cumulative.scalarNames(Phase::Inference).empty());
  CHECK(cumulative.scalarNames(Phase::Training) == std::vector<std::string>{"count"});
  CHECK(
      parse(nchw + "mode: 2\naxis: c\nmomentum: argument\n").scalarNames(Phase::Training).empty());
}

TEST_CASE("dtypes of parameters, statistics and sums") {
  Spec spec = parse(nchw + "axis: c\nparameter_dtype: bf16\naccumulate: f64\n");
  CHECK((spec.dtype == DType::F32));
  CHECK((spec.parameterDType == DType::BF16));
  CHECK((spec.accumulate == DType::F64));
  CHECK((spec.statisticDType() == DType::F32));
  CHECK((parse(nchw + "axis: c\nparameter_dtype: f64\n").statisticDType() == DType::F64));
  CHECK(canonicalText(spec) != canonicalText(parse(nchw + "axis: c\nparameter_dtype: bf16\n")));
}

TEST_CASE("names are text") {
  for (const char *name : {"layer1.0.bn1", "a b", "blocks/0/norm", "größe", "\"50\""})
    CHECK(parse("name: " + std::string(name) + "\ninput: {shape: [4, 8]}\n").name ==
          (name[0] == '"' ? "50" : name));
}

TEST_CASE("a spec without phases has those that are asked for") {
  using Phases = std::vector<Phase>;
  const auto phases = [](const std::string &text, std::optional<Phase> asked) {
    auto spec = parseSpec(text, "spec.yaml", {}, asked);
    return spec ? spec->phases : Phases{};
  };
  const Phases all{Phase::Inference, Phase::Training, Phase::Backward};
  const std::string plain = nchw + "axis: c\n";
  CHECK((phases(plain, std::nullopt) == Phases{Phase::Inference}));
  CHECK((phases(plain, Phase::Inference) == Phases{Phase::Inference}));
  CHECK((phases(plain, Phase::Training) == all));
  CHECK((phases(plain, Phase::Backward) == all));
  CHECK((phases(plain, Phase::Update) == Phases{Phase::Inference}));
  CHECK((phases(plain + "mode: range\n", Phase::Training) == Phases{Phase::Inference}));
  CHECK((phases(plain + "phases: [inference]\n", Phase::Training) == Phases{Phase::Inference}));
  // Kernels see the same spec as where the phases are listed.
  auto asked = parseSpec(plain, "spec.yaml", {}, Phase::Training);
  REQUIRE(asked);
  CHECK(canonicalText(*asked) ==
        canonicalText(parse(plain + "phases: [inference, training, backward]\n")));
}

TEST_CASE("notes on what does nothing, and on an axis that is seldom meant") {
  const auto notes = [](const std::string &text) { return parse(text).notes; };
  using Notes = std::vector<std::string>;
  CHECK(notes(nchw + "axis: c\nphases: [training]\nmomentum: 0.5\n").empty());
  CHECK(notes(nchw + "axis: c\nmomentum: 0.5\nbackward_statistics: moving\n") ==
        Notes{"momentum has no effect: training is none of the phases",
              "backward_statistics has no effect: backward is none of the phases"});
  CHECK(notes(nchw + "axis: c\nmode: 2\ncenter: false\nscale: false\nparameter_dtype: bf16\n") ==
        Notes{"parameter_dtype has no effect: there are no parameters"});
  CHECK(notes(nchw + "axis: c\nmode: 2\nmomentum: 0.5\nrunning_variance: bessel\n") ==
        Notes{"momentum has no effect: mode batch keeps no moving statistics",
              "running_variance has no effect: mode batch keeps no moving statistics"});
  const std::string factor =
      nchw + "axis: c\nphases: [update]\nparameters: {gamma: {l2_factor: 2}}\n";
  CHECK(notes(factor + "optimizer: {sgd: {weight_decay: 0.1}}\n").empty());
  CHECK(notes(factor + "optimizer: sgd\n") ==
        Notes{"parameters.gamma.l2_factor has no effect: the optimizer's weight_decay, which it "
              "multiplies, is 0"});
  CHECK(notes(nchw) ==
        Notes{"no axis is given, and keras-1.2 takes the last, w; for channels write "
              "axis: c"});
  CHECK(notes(nchw + "mode: rms\n") ==
        Notes{"no axis is given, and mode rms takes the last, w; for channels write axis: c"});
  CHECK(notes(nchw + "semantics: pytorch\n").empty());
  CHECK(notes("input: {shape: [4, 8]}\n").empty());
}

TEST_CASE("numbers as YAML 1.2 has them") {
  for (auto [text, value] :
       std::vector<std::pair<std::string, double>>{{"1e-5", 1e-5},
                                                   {"1.0e-3", 1e-3},
                                                   {"1E-3", 1e-3},
                                                   {"+.5", .5},
                                                   {"1.", 1},
                                                   {"0o17", 15},
                                                   {"0x1F", 31},
                                                   {"+3", 3},
                                                   {"007", 7},
                                                   {"20000000000000000000", 2e19}})
    CHECK_MESSAGE(parse("input: {shape: [4, 8]}\nepsilon: " + text).epsilon.value == value, text);
  for (std::string text : {"1e", ".", "e5", "0x", "0xg", "--1", "+-1", "1e+", "0b1", "1:30", "١"}) {
    llvm::Expected<Spec> spec = parseSpec("input: {shape: [4, 8]}\nepsilon: " + text, "a.yaml");
    CHECK_MESSAGE(!spec, text);
    llvm::consumeError(spec.takeError());
  }
}

TEST_CASE("the name comes from the file") {
  std::string text = "input: {shape: [4, 8]}\n";
  CHECK(parse(text, "specs/conv1_bn.yaml").name == "conv1_bn");
  CHECK(parse(text, "a-b.c.yaml").name == "a_b_c");
  CHECK(parse(text, "3x3.yaml").name == "_3x3");
  CHECK(parse(text, "<stdin>").name == "_stdin_");
  CHECK(parse(text, "").name == "_");
  CHECK(parse(text, ".yaml").name == "_yaml");
}

TEST_CASE("ways to write the same") {
  CHECK(parse("\xef\xbb\xbfinput: {shape: [4, 8]}\n").rank() == 2);
  CHECK(parse("%YAML 1.2\n---\ninput: {shape: [4, 8]}\n...\n").rank() == 2);
  CHECK(parse("{\"input\": {\"shape\": [4, \"N\"], \"layout\": \"nc\"}, \"mode\": 2}").rank() == 2);
  CHECK(parse("input:\r\n  shape:\r\n  - 4\r\n  - 8\r\n").rank() == 2);
  CHECK(parse("# c\n\ninput:   # d\n  {shape:\n     [4,  # e\n 8]}").rank() == 2);
}

TEST_CASE("text forms") {
  CHECK(toString(Semantics::Keras_1_2) == "keras-1.2");
  CHECK(toString(Mode::Sample) == "sample");
  CHECK(toString(EpsilonPosition::Both) == "both");
  CHECK(toString(RunningVariance::Keras2) == "keras-2");
  CHECK(FuseStep{"relu"}.text() == "relu");
  CHECK(FuseStep{"leaky_relu", {0.1}}.text() == "{leaky_relu: 0.1}");
  CHECK(FuseStep{"clamp", {-1, 6}}.text() == "{clamp: [-1, 6]}");
}

/// The specs in a folder, and the layers that their comments name: "#   layer" after "# Layers:".
struct Network {
  std::vector<Spec> specs;
  std::vector<std::string> layers;
};

Network readNetwork(const std::string &name) {
  Network network;
  auto folder = std::filesystem::path(NORMFORGE_TEST_DATA_DIR).parent_path() / "specs" / name;
  for (auto &entry : std::filesystem::directory_iterator(folder)) {
    INFO(entry.path().string());
    REQUIRE(entry.path().extension() == ".yaml");
    llvm::Expected<Spec> spec = readSpec(entry.path().string());
    if (!spec)
      FAIL(llvm::toString(spec.takeError()));
    network.specs.push_back(std::move(*spec));
    std::ifstream file(entry.path());
    size_t before = network.layers.size();
    for (std::string line; std::getline(file, line);)
      if (llvm::StringRef text = line; text.consume_front("#   "))
        network.layers.push_back(text.str());
    CHECK(network.layers.size() > before);
  }
  return network;
}

TEST_CASE("the networks' specs are complete") {
  // GoogLeNet v2: 3 in the stem, 7 in each of the 8 modules with a 1x1 and a pooling branch, 5 in
  // each of the 2 modules of stride 2 (Ioffe and Szegedy 2015, figure 5). BERT-base: one after the
  // embeddings, 2 in each of 12 layers. OPT-6.7B: 2 in each of 32 layers, one at the end.
  const std::map<std::string, size_t> counts = {{"resnet50", 53},
                                                {"mobilenet_v2", 52},
                                                {"googlenet_v2", 3 + 8 * 7 + 2 * 5},
                                                {"bert_base", 1 + 12 * 2},
                                                {"transformer_4096", 32 * 2 + 1}};
  std::set<std::string> names;
  for (auto &[name, count] : counts) {
    INFO(name);
    Network network = readNetwork(name);
    CHECK(network.layers.size() == count);
    CHECK(std::set<std::string>(network.layers.begin(), network.layers.end()).size() == count);
    std::set<std::string> operators;
    for (const Spec &spec : network.specs) {
      CHECK_MESSAGE(names.insert(spec.name).second, spec.name);
      CHECK(spec.sizeNames().front() == "N");
      CHECK(spec.hasPhase(Phase::Inference));
      CHECK(spec.hasPhase(Phase::Training));
      std::string key;
      for (const Size &size : spec.shape)
        key += size.name + std::to_string(size.value) + ",";
      for (const FuseStep &step : spec.fuse)
        key += step.text();
      CHECK_MESSAGE(operators.insert(key).second, spec.name << " is the same operator as another");
    }
  }
}

TEST_CASE("elements that ResNet-50 normalizes") {
  // Outputs of its 53 convolutions at 224x224, counted by hand from the architecture: stem, then
  // a stage's blocks n times (f + f + 4f) channels and its shortcut's 4f.
  int64_t expected = 64 * 112 * 112;
  for (auto [blocks, f, s] : {std::tuple{3, 64, 56}, {4, 128, 28}, {6, 256, 14}, {3, 512, 7}})
    expected += (blocks * 6 * f + 4 * f) * s * s;
  int64_t elements = 0;
  auto folder = std::filesystem::path(NORMFORGE_TEST_DATA_DIR).parent_path() / "specs/resnet50";
  for (auto &entry : std::filesystem::directory_iterator(folder)) {
    Spec spec = llvm::cantFail(readSpec(entry.path().string()));
    std::ifstream file(entry.path());
    for (std::string line; std::getline(file, line);)
      if (llvm::StringRef(line).starts_with("#   "))
        elements += spec.shape[1].value * spec.shape[2].value * spec.shape[3].value;
    CHECK(spec.epsilon.value == 1.001e-5);
    CHECK(spec.axes == std::vector<int>{1});
  }
  CHECK(elements == expected);
}

} // namespace

TEST_CASE("no operand has the name of an argument of any phase") {
  const char *const specs[] = {
      R"(phases: [inference, training, backward, population, update, backward+update]
optimizer: {adam: {amsgrad: true, learning_rate: argument}}
adjustment: true
parameters: {gamma: {regularizer: l2}}
momentum: argument
epsilon: argument
)",
      R"(phases: [training, backward]
mask: true
synchronized: true
momentum: cumulative
)",
      R"(phases: [inference, training, backward, backward+update]
renorm: true
optimizer: {rmsprop: {momentum: 0.5, centered: true}}
)",
      R"(mode: range
phases: [inference, population]
)",
      R"(semantics: keras-1.0.4
phases: [inference, training]
)",
      R"(phases: [training, backward]
fuse: [relu, {add: [c]}]
)",
  };
  const std::string input = "input: {shape: [N, 8], layout: nc}\n";
  std::set<std::string> names;
  for (const char *text : specs) {
    CAPTURE(text);
    const Spec spec = parse(input + text);
    for (Phase phase : spec.phases) {
      const Operator op = makeOperator(spec, phase);
      for (const Operand &operand : op.operands)
        if (operand.name.find("addend") == std::string::npos)
          names.insert(operand.name);
      for (const std::string &scalar : op.scalarNames())
        names.insert(scalar);
    }
  }
  CHECK(names.size() >= 45);
  for (const std::string word : {"int", "workspace", "stage", "o"})
    names.insert(word);
  for (const std::string &name : names) {
    CAPTURE(name);
    auto spec = parseSpec(input + "fuse: [{mul: {name: " + name + "}}]\n", "a.yaml");
    REQUIRE_FALSE(spec);
    const std::string message = llvm::toString(spec.takeError());
    CHECK((message.find("is an argument already") != std::string::npos ||
           message.find("cannot name an argument: C headers have") != std::string::npos));
  }
}
