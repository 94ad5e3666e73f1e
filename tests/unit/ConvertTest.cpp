// Saved layers of one framework as another's: values by hand, the same y of inference for all
// pairs, what is refused; and .npz files.
#include "compiler/spec/Convert.h"
#include "compiler/cli/Npz.h"
#include "compiler/spec/Npy.h"
#include "tests/numerics/KernelCase.h"

#include <cmath>
#include <doctest/doctest.h>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <random>
#include <unistd.h>

using namespace normforge;
using namespace normforge::test;
namespace fs = std::filesystem;

namespace {

using Arrays = std::map<std::string, HostArray>;

HostArray arrayOf(const std::vector<double> &values, DType dtype = DType::F32) {
  HostArray array(dtype, {static_cast<int64_t>(values.size())});
  for (size_t i = 0; i < values.size(); ++i)
    array.set(static_cast<int64_t>(i), values[i]);
  return array;
}

/// A layer of two channels by its framework's names.
Arrays layerOf(Semantics semantics, const std::vector<double> &spread = {4, 0.25},
               const std::string &prefix = "") {
  const std::vector<std::string> names = savedNames(semantics, Mode::Feature);
  return {{prefix + names[0], arrayOf({2, -0.5})},
          {prefix + names[1], arrayOf({0.25, 3})},
          {prefix + names[2], arrayOf({1, -2})},
          {prefix + names[3], arrayOf(spread)}};
}

Converted converted(const Conversion &conversion, const Arrays &arrays) {
  auto result = convert(conversion, arrays);
  if (!result)
    FAIL(llvm::toString(result.takeError()));
  return std::move(*result);
}
std::string refusal(const Conversion &conversion, const Arrays &arrays) {
  auto result = convert(conversion, arrays);
  return result ? "" : llvm::toString(result.takeError());
}
const HostArray &made(const Converted &result, const std::string &name) {
  for (const ConvertedLayer &layer : result.layers)
    for (const auto &[own, array] : layer.made)
      if (own == name)
        return array;
  FAIL("no array " << name);
  std::abort();
}
bool has(const std::vector<std::string> &texts, std::string_view part) {
  return std::ranges::any_of(texts, [&](auto &text) { return text.find(part) != text.npos; });
}

constexpr Semantics kAll[] = {Semantics::Keras_1_2, Semantics::Keras_1_0_4, Semantics::TfKeras,
                              Semantics::Keras_3,   Semantics::Matlab,      Semantics::PyTorch,
                              Semantics::Onnx_15};

} // namespace

TEST_CASE("saved layers by hand") {
  // The same formula: nothing changes but names, and the layer must have the epsilon.
  const Converted same = converted({.from = Semantics::Keras_1_2, .to = Semantics::PyTorch},
                                   layerOf(Semantics::Keras_1_2));
  CHECK(same.epsilon == 1e-3);
  for (auto [name, first] : {std::pair("weight", 2.0), std::pair("bias", 0.25),
                             std::pair("running_mean", 1.0), std::pair("running_var", 4.0)})
    CHECK(made(same, name).get(0) == first);
  CHECK(has(same.notes, "0.99 is 0.01"));
  CHECK(has(same.notes, "N/(N-1)"));

  // sqrt(4 + 0.5) = sqrt(3 + 1.5).
  const Converted moved = converted({.from = Semantics::Keras_1_2,
                                     .to = Semantics::PyTorch,
                                     .fromEpsilon = 0.5,
                                     .toEpsilon = 1.5},
                                    layerOf(Semantics::Keras_1_2, {4, 1}));
  CHECK(made(moved, "running_var").get(0) == 3);
  CHECK(made(moved, "running_var").get(1) == 0);
  CHECK(has(moved.notes, "not to go on training"));

  // Keras 1.0.4 divides by running_std + epsilon: (1.5 + 0.5)^2 = 3.75 + 0.25.
  const Converted squared = converted({.from = Semantics::Keras_1_0_4,
                                       .to = Semantics::TfKeras,
                                       .fromEpsilon = 0.5,
                                       .toEpsilon = 0.25},
                                      layerOf(Semantics::Keras_1_0_4, {1.5, 0}));
  CHECK(made(squared, "moving_variance").get(0) == 3.75);
  CHECK(made(squared, "moving_variance").get(1) == 0);
  // And back: sqrt(3.75 + 0.25) = 1.5 + 0.5.
  const Converted root = converted({.from = Semantics::TfKeras,
                                    .to = Semantics::Keras_1_0_4,
                                    .fromEpsilon = 0.25,
                                    .toEpsilon = 0.5},
                                   layerOf(Semantics::TfKeras, {3.75, 0}));
  CHECK(made(root, "running_std").get(0) == 1.5);
  CHECK(made(root, "running_std").get(1) == 0);
}

TEST_CASE("inference of converted layers is the same") {
  constexpr int64_t kChannels = 5;
  std::mt19937_64 engine(testSeed());
  std::uniform_real_distribution<double> draw(0.1, 2);
  auto drawn = [&](int64_t count) {
    std::vector<double> values;
    for (int64_t i = 0; i < count; ++i)
      values.push_back(draw(engine));
    return arrayOf(values);
  };
  auto y = [&](Semantics semantics, double epsilon, const Arrays &arrays, const HostArray &x) {
    auto spec = parseSpec(fmt::format("semantics: {}\ninput: {{shape: [4, 5], layout: nc}}\n"
                                      "axis: c\nepsilon: {}\n",
                                      toString(semantics), epsilon),
                          "a.yaml");
    if (!spec)
      FAIL(llvm::toString(spec.takeError()));
    const std::vector<std::string> theirs = savedNames(semantics, Mode::Feature);
    oracle::Arrays inputs{{"x", x}};
    const std::string ours[] = {"gamma", "beta", "moving_mean",
                                std::string(spec->movingSpreadName())};
    for (size_t i = 0; i < 4; ++i)
      inputs.emplace(ours[i], arrays.at(theirs[i]));
    inputs.at("x").shape = {4, kChannels};
    return oracle::reference(*spec, Phase::Inference, {}, inputs, {}).at("y");
  };
  for (Semantics from : kAll)
    for (Semantics to : kAll)
      for (std::optional<double> epsilon : {std::optional<double>(), std::optional(5e-3)}) {
        INFO("NORMFORGE_TEST_SEED=", testSeed(), " ", toString(from), " to ", toString(to));
        Arrays before;
        for (const std::string &name : savedNames(from, Mode::Feature))
          before.emplace(name, drawn(kChannels));
        const Conversion conversion{
            .from = from, .to = to, .fromEpsilon = 1e-2, .toEpsilon = epsilon};
        const Converted result = converted(conversion, before);
        CHECK((!epsilon || result.epsilon == *epsilon));
        REQUIRE(result.layers.size() == 1);
        Arrays after;
        for (const auto &[name, array] : result.layers[0].made)
          after.emplace(name, array);
        HostArray x = drawn(4 * kChannels);
        const HostArray expected = y(from, 1e-2, before, x),
                        found = y(to, result.epsilon, after, x);
        for (int64_t i = 0; i < expected.count(); ++i)
          CHECK(found.get(i) == doctest::Approx(expected.get(i)).epsilon(1e-5));
      }
}

TEST_CASE("layers that another framework cannot have are refused") {
  const Arrays keras = layerOf(Semantics::Keras_1_2);
  auto check = [](const std::string &found, std::string_view part) {
    INFO(found);
    CHECK(found.find(part) != std::string::npos);
  };
  check(refusal({.from = Semantics::Keras_1_2, .to = Semantics::PyTorch, .toEpsilon = 0.5}, keras),
        "running_std[1] is 0.25: keras-1.2 divides by");
  check(refusal({.from = Semantics::Keras_1_2, .to = Semantics::PyTorch, .mode = Mode::Sample},
                keras),
        "keras-1.2 divides by sqrt(v + epsilon) + epsilon and pytorch by sqrt(v + epsilon), v "
        "taken of the data");
  check(refusal({.from = Semantics::PyTorch,
                 .to = Semantics::Keras_3,
                 .mode = Mode::Sample,
                 .toEpsilon = 0.5},
                layerOf(Semantics::PyTorch)),
        "epsilon 1e-05 cannot be 0.5: statistics are taken of the data");
  check(refusal({.from = Semantics::PyTorch, .to = Semantics::TfKeras, .mode = Mode::Group},
                layerOf(Semantics::PyTorch)),
        "tf-keras has no group normalization");
  check(
      refusal({.from = Semantics::Keras_1_2, .to = Semantics::Matlab, .fromEpsilon = 1e-6}, keras),
      "MATLAB takes no epsilon below 1e-5; found 1e-06");
  check(refusal({.from = Semantics::Keras_1_2, .to = Semantics::PyTorch},
                layerOf(Semantics::Keras_1_2, {4, -1})),
        "running_std[1] is -1; expected a variance of at least 0");
  check(refusal({.from = Semantics::Keras_1_2, .to = Semantics::PyTorch},
                layerOf(Semantics::Keras_1_2, {4, 1, 1})),
        "running_mean has shape (2) and running_std (3); expected one");
  Arrays lacks = layerOf(Semantics::PyTorch, {1, 1}, "bn1.");
  lacks.erase("bn1.running_var");
  check(refusal({.from = Semantics::PyTorch, .to = Semantics::Keras_3}, lacks),
        "bn1.running_mean has no bn1.running_var beside it");
  check(refusal({.from = Semantics::PyTorch, .to = Semantics::Keras_3}, {{"fc.weight", {}}}),
        "no layer of pytorch; expected arrays weight, bias, running_mean, running_var, alone or "
        "behind a prefix, found fc.weight");
  Arrays twice = layerOf(Semantics::PyTorch);
  twice.emplace("gamma", arrayOf({1, 1}));
  check(refusal({.from = Semantics::PyTorch, .to = Semantics::Keras_3}, twice),
        "gamma and weight are the same array of one layer");
  Arrays renorm = layerOf(Semantics::TfKeras);
  renorm.emplace("renorm_mean", arrayOf({1, 1}));
  check(refusal({.from = Semantics::TfKeras, .to = Semantics::Keras_3}, renorm),
        "renorm_mean: keras-3 has no renorm");
  CHECK(refusal({.from = Semantics::TfKeras, .to = Semantics::Keras_3, .forInference = true},
                renorm) == "");
}

TEST_CASE("what cannot be converted exactly is refused") {
  const Conversion plain{.from = Semantics::PyTorch, .to = Semantics::Keras_3};
  auto check = [](llvm::Expected<Converted> result, std::string_view part) {
    const std::string text = result ? "" : llvm::toString(result.takeError());
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  // An array that cannot be read is one of the layer.
  Arrays lacks = layerOf(Semantics::PyTorch, {1, 1}, "bn.");
  lacks.erase("bn.weight");
  check(convert(plain, lacks, {{"bn.weight", "a.npz(bn.weight): error: is of integers"}}),
        "a.npz(bn.weight): error: is of integers");
  CHECK(bool(convert(plain, lacks, {{"conv.weight", "is of integers"}})));
  // f16 has no such variance: 1e-4 + 1e-6 squared is 1.02e-8.
  Arrays half = layerOf(Semantics::Keras_1_0_4);
  half.at("running_std") = arrayOf({1e-4, 1e-3}, DType::F16);
  check(
      convert({.from = Semantics::Keras_1_0_4, .to = Semantics::PyTorch, .toEpsilon = 1e-12}, half),
      "which f16 rounds to 0");
  // Instance normalization that keeps statistics is another formula.
  check(convert({.from = Semantics::PyTorch, .to = Semantics::Onnx_15, .mode = Mode::Instance},
                layerOf(Semantics::PyTorch)),
        "running_mean: a layer of mode instance takes the statistics of its data");
  Arrays wide = layerOf(Semantics::PyTorch);
  for (auto &[name, array] : wide)
    array.shape = {1, 2};
  check(convert(plain, wide), "has shape (1, 2); expected one axis, of channels");
  Arrays none = layerOf(Semantics::PyTorch);
  for (auto &[name, array] : none)
    array = HostArray(DType::F32, {0});
  check(convert(plain, none), "has shape (0); expected one axis, of channels");

  // The prefixes name the layers of a model that are meant.
  Arrays model{{"ln.weight", arrayOf({1, 2})}, {"fc.weight", HostArray(DType::F32, {2, 2})}};
  Conversion named{.from = Semantics::PyTorch, .to = Semantics::Keras_3, .mode = Mode::Sample};
  named.prefixes = {"ln."};
  const Converted result = converted(named, model);
  REQUIRE(result.layers.size() == 1);
  CHECK(result.layers[0].taken == std::vector<std::string>{"ln.weight"});
  named.prefixes = {"no."};
  check(convert(named, model), "no layer of pytorch behind 'no.'");
  // Epsilon is the distance from 1 to the next number of the type that the layer computes in.
  const Conversion rms{.from = Semantics::PyTorch, .to = Semantics::Onnx_15, .mode = Mode::Rms};
  CHECK(converted(rms, {{"weight", arrayOf({1}, DType::F64)}}).epsilon == 0x1p-52);
  CHECK(converted(rms, {{"weight", arrayOf({1})}}).epsilon == 0x1p-23);
  CHECK(shownName("a\nb") == "'a\\nb'");
  CHECK(shownName("bn1.weight") == "bn1.weight");
}

TEST_CASE("layers are told by their names, and get what their framework always has") {
  Arrays arrays = layerOf(Semantics::TfKeras, {1, 1}, "a/");
  arrays.merge(layerOf(Semantics::TfKeras, {4, 4}, "b/c_"));
  arrays.erase("a/gamma");
  auto node = arrays.extract("a/moving_mean");
  node.key() = "a/moving_mean:0";
  arrays.insert(std::move(node));
  arrays.emplace("dense/kernel", arrayOf({1}));
  arrays.emplace("d/beta", arrayOf({1})); // of no layer of mode 0
  const Converted result =
      converted({.from = Semantics::TfKeras, .to = Semantics::PyTorch}, arrays);
  REQUIRE(result.layers.size() == 2);
  CHECK(result.layers[0].prefix == "a/");
  CHECK(result.layers[0].taken ==
        std::vector<std::string>{"a/beta", "a/moving_mean:0", "a/moving_variance"});
  CHECK(made(result, "a/weight").get(1) == 1);
  CHECK(made(result, "a/bias").get(1) == 3);
  CHECK(made(result, "b/c_running_var").get(0) == 4);

  // MATLAB's arrays have the rank of its data.
  Arrays matlab = layerOf(Semantics::Matlab);
  for (auto &[name, array] : matlab)
    array.shape = {1, 1, 2};
  CHECK(made(converted({.from = Semantics::Matlab, .to = Semantics::Onnx_15}, matlab), "scale")
            .shape == std::vector<int64_t>{2});
}

TEST_CASE(".npz files are read, written and told when they are damaged") {
  const std::string path = std::string(NORMFORGE_TEST_DATA_DIR) + "/data/npz/model.npz";
  auto members = readNpz(path); // by np.savez_compressed
  if (!members)
    FAIL(llvm::toString(members.takeError()));
  REQUIRE(members->size() == 6);
  CHECK((*members)[0].name == "bn1.weight");
  auto weight = parseNpy((*members)[0].bytes, "weight");
  REQUIRE(bool(weight));
  CHECK(weight->shape == std::vector<int64_t>{3});
  CHECK(weight->get(2) == -0.5);

  auto written = npzOf(*members), again = npzOf(*members);
  REQUIRE(bool(written));
  REQUIRE(bool(again));
  CHECK(*written == *again);
  std::string folder = (fs::temp_directory_path() / "npz-test-XXXXXX").string();
  REQUIRE(mkdtemp(folder.data()));
  const std::string copy = folder + "/copy.npz";
  auto read = [&](const std::string &bytes) {
    std::ofstream(copy, std::ios::binary) << bytes;
    return readNpz(copy);
  };
  auto same = read(*written);
  REQUIRE(bool(same));
  REQUIRE(same->size() == members->size());
  for (size_t i = 0; i < same->size(); ++i) {
    CHECK((*same)[i].name == (*members)[i].name);
    CHECK((*same)[i].bytes == (*members)[i].bytes);
  }
  auto wrong = [&](const std::string &bytes) {
    auto result = read(bytes);
    return result ? "" : llvm::toString(result.takeError());
  };
  CHECK(wrong("other bytes") ==
        copy + ": error: expected an .npz file, which is a ZIP archive; found other bytes");
  std::string flipped = *written;
  flipped[flipped.find("NUMPY") + 100] ^= 1; // of the first array's data or head
  CHECK(wrong(flipped).find("'bn1.weight.npy' is damaged") != std::string::npos);
  CHECK(wrong(written->substr(0, written->size() / 2)) != "");
  std::mt19937_64 engine(testSeed());
  for (int i = 0; i < 300; ++i) { // any bytes give arrays or an error
    std::string bytes = *written;
    for (int k = 0; k < 4; ++k)
      bytes[engine() % bytes.size()] = static_cast<char>(engine());
    if (auto result = read(bytes); !result)
      llvm::consumeError(result.takeError());
  }
  CHECK(llvm::toString(readNpz(folder).takeError()) ==
        folder + ": error: expected an .npz file, found a directory");
  fs::remove_all(folder);
  CHECK(llvm::toString(readNpz(copy).takeError()) ==
        copy + ": error: cannot be read: No such file or directory");
}
