// The values that layers begin with: the generator by its published values, distributions, and
// specs.
#include "compiler/spec/Initialize.h"
#include "tests/numerics/KernelHarness.h"

#include <cmath>
#include <doctest/doctest.h>

using namespace normforge;

namespace {

Spec specOf(const std::string &keys) {
  auto spec = parseSpec("semantics: tf-keras\ninput: {shape: [N, C], layout: nc}\naxis: c\n"
                        "phases: [inference, initialize]\n" +
                            keys,
                        "a.yaml");
  if (!spec)
    FAIL(llvm::toString(spec.takeError()));
  return std::move(*spec);
}

llvm::Expected<HostArray> noFile(const std::string &path) {
  return llvm::createStringError(path + ": not asked for");
}

HostArray made(const Spec &spec, const char *name, int64_t channels, uint64_t seed) {
  auto array = initialValue(spec, name, {{"C", channels}}, seed, noFile);
  if (!array)
    FAIL(llvm::toString(array.takeError()));
  REQUIRE(array->shape == std::vector<int64_t>{channels});
  return std::move(*array);
}

std::string errorOf(llvm::Expected<HostArray> array) {
  return array ? "" : llvm::toString(array.takeError());
}

} // namespace

TEST_CASE("initialize: Philox4x32-10 as published") {
  using Words = std::array<uint32_t, 4>;
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint32_t ones = 0xffffffff;
  CHECK(philox({ones, ones, ones, ones}, {ones, ones}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("initialize: the quantile is the inverse of the distribution") {
  CHECK(normalQuantile(0.5) == 0);
  CHECK(normalQuantile(0.975) == doctest::Approx(1.959963984540054).epsilon(1e-15));
  for (double p = 1e-300; p < 0.5; p *= 1.37) {
    const double z = normalQuantile(p);
    INFO("p " << p << " z " << z);
    CHECK(std::erfc(-z / std::sqrt(2.0)) / 2 == doctest::Approx(p).epsilon(2e-13));
    if (p > 1e-3) // 1 - p is near
      CHECK(normalQuantile(1 - p) == doctest::Approx(-z).epsilon(1e-11));
  }
}

TEST_CASE("initialize: what layers begin with by themselves") {
  const Spec spec = specOf("");
  CHECK(initialNames(spec) ==
        std::vector<std::string>{"gamma", "beta", "moving_mean", "moving_variance"});
  const std::pair<const char *, double> values[] = {
      {"gamma", 1}, {"beta", 0}, {"moving_mean", 0}, {"moving_variance", 1}};
  for (const auto &[name, value] : values)
    for (int64_t i = 0; i < 3; ++i)
      CHECK(made(spec, name, 3, 7).get(i) == value);
  auto keras = parseSpec("semantics: keras-1.0.4\ninput: {shape: [2, 3], layout: nc}\naxis: c\n"
                         "center: false\nphases: [inference, initialize]\n",
                         "a.yaml");
  REQUIRE(bool(keras));
  CHECK(initialNames(*keras) == std::vector<std::string>{"gamma", "moving_mean", "moving_stddev"});
}

TEST_CASE("initialize: distributions") {
  constexpr int64_t n = 20000;
  struct Moments {
    const char *initializer;
    double mean, deviation, least, most;
  };
  // A normal one cut at two deviations has 1 - 4 f(2) / (1 - 2 P(-2)) of the variance, 0.7737.
  const double cut = std::sqrt(0.7737413035499234);
  for (const Moments &of : {Moments{"uniform", 0, 0.1 / std::sqrt(12.0), -0.05, 0.05},
                            {"{uniform: {min: 1, max: 3}}", 2, 2 / std::sqrt(12.0), 1, 3},
                            {"normal", 0, 0.05, -1, 1},
                            {"{normal: {mean: 4, stddev: 0.5}}", 4, 0.5, 0, 8},
                            {"{truncated_normal: {mean: 1, stddev: 2}}", 1, 2 * cut, -3, 5}}) {
    INFO(std::string(of.initializer) << " NORMFORGE_TEST_SEED=" << test::testSeed());
    const Spec spec =
        specOf(std::string("parameters: {gamma: {initializer: ") + of.initializer + "}}\n");
    const HostArray array = made(spec, "gamma", n, test::testSeed());
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) {
      CHECK((of.least <= array.get(i) && array.get(i) <= of.most));
      sum += array.get(i);
      squares += (array.get(i) - of.mean) * (array.get(i) - of.mean);
    }
    // Six deviations of the mean, and of the variance of what is at most normal.
    CHECK(std::abs(sum / n - of.mean) < 6 * of.deviation / std::sqrt(double(n)));
    CHECK(std::abs(squares / n / (of.deviation * of.deviation) - 1) <
          6 * std::sqrt(2.0 / double(n)));
  }
}

TEST_CASE("initialize: the same numbers everywhere") {
  const Spec spec =
      specOf("parameters: {gamma: {initializer: normal}, beta: {initializer: normal}, "
             "moving_mean: {initializer: truncated_normal}}\n");
  const HostArray gamma = made(spec, "gamma", 4, 7);
  // 0.05 times the quantile of ((w1 * 2^32 + w0) / 2^12 + 0.5) / 2^52, w the words of counter
  // {i, 0, 0, 0} and key {7, 0}: as Python's statistics.NormalDist has it.
  const float expected[] = {0x1.14779ep-5F, 0x1.51e060p-5F, -0x1.e936d0p-4F, -0x1.141afep-5F};
  for (int64_t i = 0; i < 4; ++i)
    CHECK(gamma.data<float>()[i] == expected[i]);
  const HostArray longer = made(spec, "gamma", 1000, 7), other = made(spec, "gamma", 1000, 8),
                  beta = made(spec, "beta", 1000, 7);
  int64_t same = 0;
  for (int64_t i = 0; i < 4; ++i)
    CHECK(longer.get(i) == gamma.get(i));
  for (int64_t i = 0; i < 1000; ++i)
    same += longer.get(i) == other.get(i) || longer.get(i) == beta.get(i);
  CHECK(same == 0);
}

TEST_CASE("initialize: values, files and weights") {
  const Spec lists = specOf("parameters: {gamma: {value: [1, 2, 3.5]}, beta: {value: -2}}\n");
  const HostArray gamma = made(lists, "gamma", 3, 0);
  CHECK(gamma.get(0) == 1);
  CHECK(gamma.get(2) == 3.5);
  CHECK(made(lists, "beta", 2, 0).get(1) == -2);
  CHECK(errorOf(initialValue(lists, "gamma", {{"C", 4}}, 0, noFile)) ==
        "parameters.gamma.value has 3 numbers; gamma of shape (4) has 4");
  CHECK(errorOf(initialValue(lists, "gamma", {}, 0, noFile)) ==
        "no value for size C, which gamma has");
  CHECK(errorOf(initialValue(lists, "y", {{"C", 4}}, 0, noFile)) == "the layer has no y");

  auto keras = parseSpec("semantics: keras-1.2\ninput: {shape: [N, 2], layout: nc}\naxis: c\n"
                         "phases: [inference, initialize]\nweights: [[1, 2], 3, [4, 5], 6]\n"
                         "parameters: {gamma: {initializer: ones}}\n",
                         "a.yaml");
  REQUIRE(bool(keras));
  const std::map<std::string, std::array<double, 2>> expected{
      {"gamma", {1, 2}}, {"beta", {3, 3}}, {"moving_mean", {4, 5}}, {"moving_variance", {6, 6}}};
  for (const auto &[name, values] : expected)
    for (int64_t i = 0; i < 2; ++i)
      CHECK(made(*keras, name.c_str(), 2, 0).get(i) == values[static_cast<size_t>(i)]);
}
