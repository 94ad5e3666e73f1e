// The results of each framework, with numbers that are worked out here by hand.
//
// x is 0 and 4: mean 2, variance 4, and with epsilon 5 the root sqrt(4+5) is 3. The moving mean was
// 10, what the second moving vector holds 20, and sqrt(20+5) is 5. Momentum is 0.75.
#include "compiler/spec/Presets.h"
#include "tests/numerics/KernelCase.h"

#include <cfloat>
#include <cmath>
#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

using Row = std::vector<double>;

struct PresetCase {
  const char *semantics;
  // Results of mode 0 with gamma 24 and beta 1.
  Row training, inference;
  double movingMean, movingSpread;
  // Results of mode 1 without gamma and beta.
  Row sample;
  // Defaults.
  double epsilon, momentum, rmsEpsilon;
  int axis; ///< of [N, C, H, W]
};

constexpr double kThird = 1.0 / 3;
const PresetCase kCases[] = {
    // (0-2)/3*24+1 = -15; (0-10)/5*24+1 = -47 and (4-10)/5*24+1 = -27.8; 0.75*10 + 0.25*2 = 8;
    // 0.75*20 + 0.25*4 = 16. Mode 1: (0-2)/(3+5) = -0.25.
    {"keras-1.2", {-15, 17}, {-47, -27.8}, 8, 16, {-0.25, 0.25}, 1e-3, 0.99, 1e-3, 3},
    // (0-2)/(3+5)*24+1 = -5; a stored deviation: (0-10)/(20+5)*24+1 = -8.6, (4-10)/25*24+1 = -4.76;
    // 0.75*20 + 0.25*3 = 15.75. Mode 1: (0-2)/(sqrt(4)+5) = -2/7.
    {"keras-1.0.4", {-5, 7}, {-8.6, -4.76}, 8, 15.75, {-2.0 / 7, 2.0 / 7}, 1e-6, 0.9, 1e-6, 3},
    // Rank 2: not its fused kernel. Mode 1: (0-2)/3.
    {"tf-keras", {-15, 17}, {-47, -27.8}, 8, 16, {-2 * kThird, 2 * kThird}, 1e-3, 0.99, 1e-3, 3},
    {"keras-3", {-15, 17}, {-47, -27.8}, 8, 16, {-2 * kThird, 2 * kThird}, 1e-3, 0.99, 1e-6, 3},
    // 0.25*10 + 0.75*2 = 4; 0.25*20 + 0.75*4 = 8.
    {"matlab", {-15, 17}, {-47, -27.8}, 4, 8, {-2 * kThird, 2 * kThird}, 1e-5, 0.1, 1e-5, 1},
    // 4*2/(2-1) = 8, and 0.25*20 + 0.75*8 = 11.
    {"pytorch",
     {-15, 17},
     {-47, -27.8},
     4,
     11,
     {-2 * kThird, 2 * kThird},
     1e-5,
     0.1,
     FLT_EPSILON,
     1},
    {"onnx-15", {-15, 17}, {-47, -27.8}, 8, 16, {-2 * kThird, 2 * kThird}, 1e-5, 0.9, 1e-5, 1},
};

HostArray array(std::vector<int64_t> shape, const Row &values) {
  HostArray result(DType::F32, std::move(shape));
  for (size_t i = 0; i < values.size(); ++i)
    result.set(static_cast<int64_t>(i), values[i]);
  return result;
}

void checkValues(const oracle::Arrays &outputs, const std::string &name, const Row &expected) {
  INFO(name);
  REQUIRE(outputs.contains(name));
  const HostArray &array = outputs.at(name);
  REQUIRE(array.count() == static_cast<int64_t>(expected.size()));
  for (size_t i = 0; i < expected.size(); ++i)
    CHECK(array.get(static_cast<int64_t>(i)) == doctest::Approx(expected[i]).epsilon(1e-6));
}

/// Numbers that a spec's kernel writes, and its reference.
void checkRun(const std::string &yaml, Phase phase, const oracle::Arrays &inputs,
              const std::map<std::string, Row> &expected, Session &session) {
  const Spec spec = specOf(yaml);
  const oracle::Arrays kernel = TestKernel(spec, phase, session).run({}, inputs);
  const oracle::Arrays reference = oracle::reference(spec, phase, {}, inputs);
  CHECK(kernel.size() == expected.size());
  for (const auto &[name, values] : expected) {
    checkValues(kernel, name, values);
    checkValues(reference, name, values);
  }
}

const HostArray kX = array({2, 1}, {0, 4});
oracle::Arrays inputsOf(const std::string &spreadName) {
  return {{"x", kX},
          {"gamma", array({1}, {24})},
          {"beta", array({1}, {1})},
          {"moving_mean", array({1}, {10})},
          {spreadName, array({1}, {20})}};
}

} // namespace

TEST_CASE("presets: statistics, moving statistics and defaults of each") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  for (const PresetCase &item : kCases) {
    INFO(item.semantics);
    const std::string head = fmt::format("semantics: {}\n", item.semantics);
    const std::string text = head + "input: {shape: [2, 1], layout: nc}\naxis: c\nepsilon: 5\n"
                                    "momentum: 0.75\nphases: [inference, training]\n";
    const Spec spec = specOf(text);
    const std::string spread(spec.movingSpreadName());
    CHECK(spread ==
          (item.semantics == std::string("keras-1.0.4") ? "moving_stddev" : "moving_variance"));
    checkRun(text, Phase::Inference, inputsOf(spread), {{"y", item.inference}}, *session);
    checkRun(text, Phase::Training, inputsOf(spread),
             {{"y", item.training},
              {"moving_mean", {item.movingMean}},
              {spread, {item.movingSpread}},
              {"batch_mean", {2}},
              {"batch_variance", {4}}},
             *session);
    checkRun(head + "input: {shape: [1, 2], layout: nc}\nmode: 1\nepsilon: 5\naxis: c\n"
                    "scale: false\ncenter: false\n",
             Phase::Inference, {{"x", array({1, 2}, {0, 4})}}, {{"y", item.sample}}, *session);

    const Spec plain = specOf(head + "input: {shape: [2, 3, 5, 7], layout: nchw}\n");
    CHECK(plain.epsilon.value == item.epsilon);
    CHECK(plain.momentum.mean.value == item.momentum);
    CHECK(plain.axes == std::vector<int>{item.axis});
    CHECK(specOf(head + "input: {shape: [2, 3], layout: nc}\nmode: rms\n").epsilon.value ==
          item.rmsEpsilon);
    CHECK(specOf(head + "input: {shape: [2, 3], layout: nc}\nmode: rms\naccumulate: f64\n")
              .epsilon.value == item.rmsEpsilon);
    CHECK(specOf(head + "input: {shape: [2, 4], layout: nc}\nmode: group\ngroups: 2\naxis: c\n")
              .epsilon.value == item.epsilon);
  }
  CHECK(specOf("semantics: pytorch\ninput: {shape: [2, 3], layout: nc, dtype: f64}\nmode: rms\n")
            .epsilon.value == DBL_EPSILON);
}

TEST_CASE("presets: what tf.keras's fused kernel stores") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  // The variance of four values 0, 4, 0, 4 is 4, and 4*4/3 without bias: 0.75*20 + 0.25*16/3.
  oracle::Arrays inputs = inputsOf("moving_variance");
  inputs.at("x") = array({2, 1, 2, 1}, {0, 4, 0, 4});
  const std::string head = "semantics: tf-keras\ninput: {shape: [2, 1, 2, 1], layout: nhwc}\n"
                           "epsilon: 5\nmomentum: 0.75\nphases: [training]\n";
  for (auto [key, stored] :
       {std::pair<const char *, double>{"", 15 + 4.0 * kThird},
        {"fused: null\n", 15 + 4.0 * kThird},
        {"fused: true\n", 15 + 4.0 * kThird},
        {"fused: false\n", 16},
        {"renorm: null\nvirtual_batch_size: null\nadjustment: null\n", 15 + 4.0 * kThird},
        {"renorm: false\nadjustment: false\n", 15 + 4.0 * kThird},
        {"virtual_batch_size: 2\n", 16}, // not its fused kernel
        {"running_variance: biased\n", 16}}) {
    INFO(key);
    checkRun(head + key, Phase::Training, inputs,
             {{"y", {-15, 17, -15, 17}},
              {"moving_mean", {8}},
              {"moving_variance", {stored}},
              {"batch_mean", {2}},
              {"batch_variance", {4}}},
             *session);
  }
}

TEST_CASE("presets: trainable: false") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  for (const PresetCase &item : kCases) {
    INFO(item.semantics);
    const std::string text =
        fmt::format("semantics: {}\ninput: {{shape: [2, 1], layout: nc}}\naxis: c\nepsilon: 5\n"
                    "momentum: 0.75\nphases: [inference, training, backward]\ntrainable: false\n",
                    item.semantics);
    const std::string spread(specOf(text).movingSpreadName());
    oracle::Arrays inputs = inputsOf(spread);
    const bool keepsStatistics =
        item.semantics == std::string("tf-keras") || item.semantics == std::string("keras-3");
    if (keepsStatistics) // TensorFlow 2: it runs in inference mode
      checkRun(text, Phase::Training, inputs, {{"y", item.inference}}, *session);
    else
      checkRun(text, Phase::Training, inputs,
               {{"y", item.training},
                {"moving_mean", {item.movingMean}},
                {spread, {item.movingSpread}},
                {"batch_mean", {2}},
                {"batch_variance", {4}}},
               *session);
    // The sum of dy is 6, that of dy*(x-2) 2*(5-1) = 8. Through moving statistics dx = 24*dy/5.
    // Else, with d the divisor and r = 3 the root, dx = 24*(dy/d - 3/d - (x-2)*8/(2*r*d*d)):
    // d = r: 24*(1 - 3 + 2*8/(2*9))/3 = -8.88889; d = 8: 24*(-2/8 + 16/(6*64)) = -5.
    inputs.emplace("dy", array({2, 1}, {1, 5}));
    inputs.emplace("batch_mean", array({1}, {2}));
    inputs.emplace("batch_variance", array({1}, {4}));
    const bool adds = item.semantics == std::string("keras-1.0.4");
    const Spec spec = specOf(text);
    oracle::Arrays read;
    for (const std::string &name : oracle::inputNames(spec, Phase::Backward))
      read.emplace(name, inputs.at(name));
    const Row dx = keepsStatistics ? Row{4.8, 24} : adds ? Row{-5, 5} : Row{-80.0 / 9, 80.0 / 9};
    checkRun(text, Phase::Backward, read, {{"dx", dx}}, *session);
  }
}

TEST_CASE("presets: Keras 3's mask") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  // x is 0, 4, 100 and 8, and weighs 1, 1, 0 and 0.5: the mean is 8/2.5 = 3.2 and the variance
  // (3.2^2 + 0.8^2 + 0.5*4.8^2)/2.5 = 8.96. With epsilon 7.04 the root is 4. What weighs 0 is
  // normalized too. 0.75*10 + 0.25*3.2 = 8.3; 0.75*20 + 0.25*8.96 = 17.24.
  const std::string head = "semantics: keras-3\ninput: {shape: [2, 1, 2], layout: ncw}\naxis: c\n"
                           "epsilon: 7.04\nmomentum: 0.75\nmask: true\nphases: [training]\n";
  oracle::Arrays inputs = inputsOf("moving_variance");
  inputs.at("x") = array({2, 1, 2}, {0, 4, 100, 8});
  inputs.emplace("mask", array({2, 2}, {1, 1, 0, 0.5}));
  checkRun(head, Phase::Training, inputs,
           {{"y", {-0.8 * 24 + 1, 0.2 * 24 + 1, 24.2 * 24 + 1, 1.2 * 24 + 1}},
            {"moving_mean", {8.3}},
            {"moving_variance", {17.24}},
            {"batch_mean", {3.2}},
            {"batch_variance", {8.96}}},
           *session);
  // Where nothing weighs anything mean and variance are 0, as Keras 3 has it.
  inputs.at("mask") = array({2, 2}, {0, 0, 0, 0});
  const double root = std::sqrt(7.04);
  checkRun(head, Phase::Training, inputs,
           {{"y", {1, 4 / root * 24 + 1, 100 / root * 24 + 1, 8 / root * 24 + 1}},
            {"moving_mean", {7.5}},
            {"moving_variance", {15}},
            {"batch_mean", {0}},
            {"batch_variance", {0}}},
           *session);
}

TEST_CASE("presets: renorm, adjustment and ghost batches of tf.keras") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  const std::string head = "semantics: tf-keras\ninput: {shape: [2, 1], layout: nc}\naxis: c\n"
                           "epsilon: 5\nmomentum: 0.75\nphases: [training, backward]\n";
  oracle::Arrays inputs = inputsOf("moving_variance");
  inputs.erase("moving_variance");
  inputs.emplace("moving_stddev", array({1}, {7}));
  inputs.emplace("renorm_mean", array({1}, {8}));
  inputs.emplace("renorm_stddev", array({1}, {6}));
  // r = 3/6, d = (2-8)/6 = -1: ((0-2)/3*0.5 - 1)*24 + 1 = -31. 0.75*7 + 0.25*3 = 6, and 6^2-5 = 31;
  // renorm's own momentum 0.5: 0.5*8 + 0.5*2 = 5, 0.5*6 + 0.5*3 = 4.5.
  std::map<std::string, Row> expected{{"y", {-31, -15}},      {"moving_mean", {8}},
                                      {"moving_stddev", {6}}, {"moving_variance", {31}},
                                      {"renorm_mean", {5}},   {"renorm_stddev", {4.5}},
                                      {"batch_mean", {2}},    {"batch_variance", {4}},
                                      {"renorm_r", {0.5}},    {"renorm_d", {-1}}};
  checkRun(head + "renorm: {momentum: 0.5}\n", Phase::Training, inputs, expected, *session);
  // Clipped: ((0-2)/3*0.75 - 0.5)*24 + 1 = -23.
  expected.at("y") = {-23, 1};
  expected.at("renorm_r") = {0.75};
  expected.at("renorm_d") = {-0.5};
  checkRun(head + "renorm: {momentum: 0.5, r_min: 0.75, d_max: 0.5}\n", Phase::Training, inputs,
           expected, *session);
  // ((0-2)/3*3 + 0.5)*24 + 1 = -35.
  inputs = inputsOf("moving_variance");
  inputs.emplace("adjust_scale", array({1}, {3}));
  inputs.emplace("adjust_bias", array({1}, {0.5}));
  checkRun(head + "adjustment: true\n", Phase::Training, inputs,
           {{"y", {-35, 61}},
            {"moving_mean", {8}},
            {"moving_variance", {16}},
            {"batch_mean", {2}},
            {"batch_variance", {4}}},
           *session);
  // Samples 0 and 2 are a ghost, 1 and 3 another: means 2 and 5, variances 4 and 11; with epsilon 5
  // roots 3 and 4. Moving ones take 3.5 and 7.5: 0.75*10 + 0.25*3.5, 0.75*20 + 0.25*7.5.
  const double more = std::sqrt(11.0);
  inputs = inputsOf("moving_variance");
  inputs.at("x") = array({4, 1}, {0, 5 - more, 4, 5 + more});
  const std::string ghosts = "semantics: tf-keras\ninput: {shape: [4, 1], layout: nc}\naxis: c\n"
                             "epsilon: 5\nmomentum: 0.75\nphases: [training]\n"
                             "virtual_batch_size: 2\n";
  checkRun(ghosts, Phase::Training, inputs,
           {{"y", {-15, -more * 6 + 1, 17, more * 6 + 1}},
            {"moving_mean", {8.375}},
            {"moving_variance", {16.875}},
            {"batch_mean", {2, 5}},
            {"batch_variance", {4, 11}}},
           *session);
}

TEST_CASE("MATLAB's labels are layouts, the innermost first") {
  struct Case {
    const char *shape, *labels, *layout;
    std::vector<int64_t> memory;
    int channels; ///< index in memory
  };
  for (const Case &item :
       {Case{"[28, 27, 3, 16]", "SSCB", "nchw", {16, 3, 27, 28}, 1},
        Case{"[3, 16, 9]", "CBT", "tnc", {9, 16, 3}, 2},
        Case{"[5, 6, 7, 3, 2]", "SSSCB", "ncdhw", {2, 3, 7, 6, 5}, 1},
        Case{"[3, 16]", "CB", "nc", {16, 3}, 1}, Case{"[3, 4, 5]", "CUU", "vuc", {5, 4, 3}, 2}}) {
    INFO(item.labels);
    const Spec spec = specOf(fmt::format("semantics: matlab\ninput: {{shape: {}, layout: {}}}\n",
                                         item.shape, item.labels));
    CHECK(spec.layout.text == item.layout);
    std::vector<int64_t> sizes;
    for (const Size &size : spec.shape)
      sizes.push_back(size.value);
    CHECK(sizes == item.memory);
    CHECK(spec.axes == std::vector<int>{item.channels});
  }
  // Indices count as the labels do.
  const std::string head = "semantics: matlab\ninput: {shape: [28, 27, 3, 16], layout: SSCB}\n";
  CHECK(specOf(head + "axis: 2\n").axes == std::vector<int>{1});
  CHECK(specOf(head + "axis: -2\n").axes == std::vector<int>{1});
  CHECK(specOf(head + "axis: C\n").axes == std::vector<int>{1});
  CHECK(specOf(head + "axis: [0, 2]\n").axes == std::vector<int>{1, 3});
}

TEST_CASE("a group of equal values has a gradient where epsilon stands beside the root") {
  // y = gamma (x - m)/(sqrt(v) + e): at v = 0 each x goes through 1/e and its mean alone.
  Session *session = sessionOrSkip("native");
  REQUIRE(session);
  HostArray x(DType::F32, {2, 4}), dy(DType::F32, {2, 4});
  for (int64_t i = 0; i < 8; ++i) {
    x.set(i, i < 4 ? 1 : static_cast<double>(i * i));
    dy.set(i, static_cast<double>(i % 4)); // mean 1.5
  }
  const Spec spec = specOf("semantics: keras-1.0.4\ninput: {shape: [2, 4], layout: nc}\nmode: 1\n"
                           "scale: false\ncenter: false\nepsilon: 0.5\n"
                           "phases: [training, backward]\n");
  const oracle::Arrays saved = TestKernel(spec, Phase::Training, *session).run({}, {{"x", x}});
  const oracle::Arrays inputs{{"x", x},
                              {"dy", dy},
                              {"batch_mean", saved.at("batch_mean")},
                              {"batch_variance", saved.at("batch_variance")}};
  const TestKernel kernel(spec, Phase::Backward, *session);
  const HostArray dx = kernel.run({}, inputs).at("dx");
  for (int64_t i = 0; i < 4; ++i)
    CHECK(dx.get(i) == doctest::Approx((static_cast<double>(i) - 1.5) / 0.5));
  CHECK(wrongResults(kernel, spec, Phase::Backward, {}, inputs) == "");
}
