// Gamma and beta after a step of each optimizer: by hand, and the reference on random numbers.
#include "tests/numerics/KernelCase.h"

#include <cmath>
#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

constexpr int64_t kChannels = 5;

/// The same number for every channel.
HostArray filled(DType dtype, double value) {
  HostArray array(dtype, {kChannels});
  for (int64_t i = 0; i < kChannels; ++i)
    array.set(i, value);
  return array;
}

struct ByHand {
  const char *semantics, *optimizer;
  /// The states of gamma 2 with gradient 0.5 before step 2; gamma and its states after it.
  std::map<std::string, double> before, after;
};

// 1 - 0.5^2 = 0.75, 1 - 0.75^2 = 0.4375. sqrt(0.75*0.25 + 0.25*0.25) = sqrt(0.25) = 0.5.
const double kRoot = std::sqrt(0.4375);
const ByHand kSteps[] = {
    // 2 - 0.25*0.5.
    {"keras-1.2", "{sgd: {learning_rate: 0.25}}", {}, {{"gamma", 1.875}}},
    // A rate of 0.25/(1 + 1*(2-1)) = 0.125: 2 - 0.125*0.5.
    {"keras-1.2", "{sgd: {learning_rate: 0.25, decay: 1}}", {}, {{"gamma", 1.9375}}},
    // v = 0.5*(-1) - 0.25*0.5 = -0.625.
    {"keras-1.2",
     "{sgd: {learning_rate: 0.25, momentum: 0.5}}",
     {{"gamma_momentum", -1}},
     {{"gamma", 1.375}, {"gamma_momentum", -0.625}}},
    // 2 + 0.5*(-0.625) - 0.125.
    {"tf-keras",
     "{sgd: {learning_rate: 0.25, momentum: 0.5, nesterov: true}}",
     {{"gamma_momentum", -1}},
     {{"gamma", 1.5625}, {"gamma_momentum", -0.625}}},
    {"matlab",
     "{momentum: {learning_rate: 0.25, momentum: 0.5, weight_decay: 0.5}}", // g = 0.5 + 0.5*2 = 1.5
     {{"gamma_momentum", -1}},
     {{"gamma", 1.125}, {"gamma_momentum", -0.875}}},
    // Decay apart: 2 - 0.25*0.5*2 = 1.75, and 0.25*0.5 less; v = 0.5*(-1) - 0.125 = -0.625.
    {"keras-3", "{sgd: {learning_rate: 0.25, weight_decay: 0.5}}", {}, {{"gamma", 1.625}}},
    {"tf-keras",
     "{sgd: {learning_rate: 0.25, weight_decay: 0.5, momentum: 0.5}}",
     {{"gamma_momentum", -1}},
     {{"gamma", 1.125}, {"gamma_momentum", -0.625}}},
    // v = 0.5*1 + 0.5 = 1; 2 - 0.25*1; with Nesterov 2 - 0.25*(0.5 + 0.5*1).
    {"pytorch",
     "{sgd: {learning_rate: 0.25, momentum: 0.5}}",
     {{"gamma_momentum", 1}},
     {{"gamma", 1.75}, {"gamma_momentum", 1}}},
    {"pytorch",
     "{sgd: {learning_rate: 0.25, momentum: 0.5, nesterov: true}}",
     {{"gamma_momentum", 1}},
     {{"gamma", 1.75}, {"gamma_momentum", 1}}},
    // s = 0.75*0.25 + 0.25*0.25 = 0.25; 2 - 0.25*0.5/(0.5 + 0.5).
    {"keras-1.2",
     "{rmsprop: {learning_rate: 0.25, rho: 0.75, epsilon: 0.5}}",
     {{"gamma_mean_square", 0.25}},
     {{"gamma", 1.875}, {"gamma_mean_square", 0.25}}},
    // In the root: 2 - 0.25*0.5/sqrt(0.25 + 0.75).
    {"keras-3",
     "{rmsprop: {learning_rate: 0.25, rho: 0.75, epsilon: 0.75}}",
     {{"gamma_mean_square", 0.25}},
     {{"gamma", 1.875}, {"gamma_mean_square", 0.25}}},
    {"tf-keras",
     "{rmsprop: {learning_rate: 0.25, rho: 0.75, epsilon: 0.75}}",
     {{"gamma_mean_square", 0.25}},
     {{"gamma", 1.875}, {"gamma_mean_square", 0.25}}},
    // v = 0.5*1 + 0.125 = 0.625.
    {"tf-keras",
     "{rmsprop: {learning_rate: 0.25, rho: 0.75, epsilon: 0.75, momentum: 0.5}}",
     {{"gamma_mean_square", 0.25}, {"gamma_momentum", 1}},
     {{"gamma", 1.375}, {"gamma_mean_square", 0.25}, {"gamma_momentum", 0.625}}},
    // a = 0.75*0 + 0.25*0.5 = 0.125; sqrt(0.25 - 0.015625) = sqrt(0.234375).
    {"pytorch",
     "{rmsprop: {learning_rate: 0.25, rho: 0.75, epsilon: 0.5, centered: true}}",
     {{"gamma_mean_square", 0.25}, {"gamma_mean_gradient", 0}},
     {{"gamma", 2 - 0.125 / (std::sqrt(0.234375) + 0.5)},
      {"gamma_mean_square", 0.25},
      {"gamma_mean_gradient", 0.125}}},
    // PyTorch's momentum has no rate in it: v = 0.5*1 + 0.5/(0.5 + 0.5) = 1, 2 - 0.25*1.
    {"pytorch",
     "{rmsprop: {learning_rate: 0.25, rho: 0.75, epsilon: 0.5, momentum: 0.5}}",
     {{"gamma_mean_square", 0.25}, {"gamma_momentum", 1}},
     {{"gamma", 1.75}, {"gamma_mean_square", 0.25}, {"gamma_momentum", 1}}},
    // a = 0.5*1 + 0.5*0.5 = 0.75, s = 0.25; 2 - 0.25*sqrt(0.4375)/0.75 * 0.75/(0.5 + 0.5).
    {"keras-1.2",
     "{adam: {learning_rate: 0.25, beta_1: 0.5, beta_2: 0.75, epsilon: 0.5}}",
     {{"gamma_mean_gradient", 1}, {"gamma_mean_square", 0.25}},
     {{"gamma", 2 - 0.25 * kRoot}, {"gamma_mean_gradient", 0.75}, {"gamma_mean_square", 0.25}}},
    // 2 - 0.25*0.5*2 first, though Adam's rate is another one.
    {"keras-3",
     "{adam: {learning_rate: 0.25, beta_1: 0.5, beta_2: 0.75, epsilon: 0.5, weight_decay: 0.5}}",
     {{"gamma_mean_gradient", 1}, {"gamma_mean_square", 0.25}},
     {{"gamma", 1.75 - 0.25 * kRoot}, {"gamma_mean_gradient", 0.75}, {"gamma_mean_square", 0.25}}},
    // The corrected root beside epsilon: 2 - 0.25/0.75 * 0.75/(0.5/sqrt(0.4375) + 0.5).
    {"pytorch",
     "{adam: {learning_rate: 0.25, beta_1: 0.5, beta_2: 0.75, epsilon: 0.5}}",
     {{"gamma_mean_gradient", 1}, {"gamma_mean_square", 0.25}},
     {{"gamma", 2 - 0.25 / (0.5 / kRoot + 0.5)},
      {"gamma_mean_gradient", 0.75},
      {"gamma_mean_square", 0.25}}},
    // The largest square so far, 2.25: 2 - 0.25*sqrt(0.4375)/(1.5 + 0.5).
    {"tf-keras",
     "{adam: {learning_rate: 0.25, beta_1: 0.5, beta_2: 0.75, epsilon: 0.5, amsgrad: true}}",
     {{"gamma_mean_gradient", 1}, {"gamma_mean_square", 0.25}, {"gamma_max_square", 2.25}},
     {{"gamma", 2 - 0.125 * kRoot},
      {"gamma_mean_gradient", 0.75},
      {"gamma_mean_square", 0.25},
      {"gamma_max_square", 2.25}}},
};

/// The step of gamma 2 and gradient 0.5 by a spec's optimizer.
oracle::Arrays step(const std::string &keys, const std::map<std::string, double> &before,
                    Session &session, double gamma = 2) {
  const Spec spec = specOf("input: {shape: [N, 5], layout: nc}\naxis: c\ncenter: false\n"
                           "phases: [update]\n" +
                           keys);
  oracle::Arrays inputs{{"gamma", filled(DType::F32, gamma)}, {"dgamma", filled(DType::F32, 0.5)}};
  for (const auto &[name, value] : before)
    inputs.emplace(name, filled(DType::F32, value));
  const TestKernel kernel(spec, Phase::Update, session);
  RunOptions options;
  options.inPlace = 0;
  return kernel.run({}, inputs, {{"step", 2}, {"learning_rate", 0.25}}, options);
}

void checkAll(const oracle::Arrays &outputs, const std::map<std::string, double> &after) {
  for (const auto &[name, expected] : after) {
    INFO(name);
    REQUIRE(outputs.contains(name));
    for (int64_t i = 0; i < outputs.at(name).count(); ++i)
      CHECK(outputs.at(name).get(i) == doctest::Approx(expected).epsilon(1e-6));
  }
}

} // namespace

TEST_CASE("optimizers by hand") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  for (const ByHand &of : kSteps) {
    INFO(std::string(of.semantics), " ", std::string(of.optimizer));
    const oracle::Arrays outputs =
        step(fmt::format("semantics: {}\noptimizer: {}\n{}", of.semantics, of.optimizer,
                         std::string_view(of.optimizer).find("decay") != std::string_view::npos
                             ? ""
                             : "parameters: {gamma: {l2_factor: 7}}\n"), // of a decay of 0
             of.before, *session);
    CHECK(outputs.size() == of.after.size());
    checkAll(outputs, of.after);
  }
}

TEST_CASE("regularizers, constraints and factors by hand") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  const std::string sgd = "optimizer: {sgd: {learning_rate: argument}}\nparameters: {gamma: ";
  const double root5 = std::sqrt(5.0);
  struct Case {
    const char *keys;
    double gamma;
    std::map<std::string, double> after;
  };
  const Case cases[] = {
      // Gradient 0.5 + 0.25 + 2*0.125*2 = 1.25; penalty 5*(0.25*2 + 0.125*4).
      {"{regularizer: {l1: 0.25, l2: 0.125}}", 2, {{"gamma", 1.6875}, {"penalty", 5}}},
      // The gradient of a negative weight, -2: 0.5 - 0.25 - 0.5 = -0.25.
      {"{regularizer: {l1: 0.25, l2: 0.125}}", -2, {{"gamma", -1.9375}, {"penalty", 5}}},
      {"{regularizer: {l1: 0.25}}", 0, {{"gamma", -0.125}, {"penalty", 0}}},
      {"{learn_rate_factor: 2}", 2, {{"gamma", 1.75}}},
      // 1.875 each: their norm is 1.875*sqrt(5).
      {"{constraint: {max_norm: 2}}", 2, {{"gamma", 2 / root5}}},
      {"{constraint: {max_norm: 20}}", 2, {{"gamma", 1.875}}},
      {"{constraint: unit_norm}", 2, {{"gamma", 1 / root5}}},
      {"{constraint: {min_max_norm: {min: 8, max: 9}}}", 2, {{"gamma", 8 / root5}}},
      {"{constraint: {min_max_norm: {min: 1, max: 2, rate: 0.5}}}",
       2,
       {{"gamma", 0.5 * 2 / root5 + 0.5 * 1.875}}},
      {"{constraint: non_neg}", 2, {{"gamma", 1.875}}},
      {"{constraint: non_neg}", 0.0625, {{"gamma", 0}}},
  };
  for (const Case &of : cases) {
    INFO(std::string(of.keys), " of ", of.gamma);
    const oracle::Arrays outputs = step(sgd + of.keys + "}\n", {}, *session, of.gamma);
    CHECK(outputs.size() == of.after.size());
    checkAll(outputs, of.after);
  }
  // Keras's gamma of several axes, or of ghost batches, has a first axis of 1, along which its norm
  // is: |w| of each element, here 1.875.
  const std::pair<const char *, double> elements[] = {
      {"{constraint: {max_norm: 1.5}}", 1.5},
      {"{constraint: {max_norm: 20}}", 1.875},
      {"{constraint: unit_norm}", 1},
      {"{constraint: {min_max_norm: {min: 8, max: 9, rate: 0.5}}}", 0.5 * 8 + 0.5 * 1.875}};
  for (const auto &[keys, expected] : elements)
    for (const char *layer : {"axis: [1, 2]\n", "axis: [1]\nvirtual_batch_size: 2\n"}) {
      INFO(std::string(keys), " ", std::string(layer));
      const Spec spec = specOf("semantics: tf-keras\ninput: {shape: [N, 5, 1], layout: nwc}\n"
                               "center: false\nphases: [training, update]\n" +
                               (layer + sgd) + keys + "}\n");
      const HostArray one(DType::F32, spec.axes.size() == 2 ? std::vector<int64_t>{5, 1}
                                                            : std::vector<int64_t>{5});
      oracle::Arrays inputs{{"gamma", one}, {"dgamma", one}};
      for (int64_t i = 0; i < 5; ++i) {
        inputs.at("gamma").set(i, 2);
        inputs.at("dgamma").set(i, 0.5);
      }
      checkAll(TestKernel(spec, Phase::Update, *session)
                   .run({{"N", 4}}, inputs, {{"learning_rate", 0.25}}),
               {{"gamma", expected}});
    }
}

TEST_CASE("optimizers agree with the reference") {
  const std::string repeat = repeatCommand("optimizers agree with*");
  const char *const optimizers[] = {
      "sgd",
      "{sgd: {momentum: 0.9, nesterov: true, decay: 0.01}}",
      "{momentum: {weight_decay: 0.01}}",
      "rmsprop",
      "{rmsprop: {momentum: 0.5, centered: true}}",
      "{rmsprop: {centered: true, learning_rate: argument}}",
      "adam",
      "{adam: {amsgrad: true, weight_decay: 0.1, decay: 0.001}}",
  };
  const char *const besides[] = {
      "{}",
      "{gamma: {regularizer: l1_l2, constraint: {max_norm: 2}}}",
      "{gamma: {constraint: unit_norm}, beta: {regularizer: l2, constraint: min_max_norm}}",
      "{gamma: {constraint: non_neg, learn_rate_factor: 2}, beta: {l2_factor: 0.5}}",
  };
  const char *const shapes[] = {
      "{shape: [N, 37], layout: nc}",
      "{shape: [N, 4099, 2, 2], layout: nchw}",
      "{shape: [N, C], layout: nc}",
      "{shape: [N, 19, 16], layout: ntc, dtype: bf16}\nparameter_dtype: bf16\nmode: 2",
      "{shape: [N, 7], layout: nc, dtype: f64}",
      "{shape: [N, 20, 5], layout: nCw8c}",
  };
  const char *const semantics[] = {"keras-1.2", "tf-keras", "keras-3", "matlab", "pytorch"};
  size_t turn = testSeed() % 3;
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const char *framework : semantics)
      for (const char *optimizer : optimizers)
        for (const char *beside : besides)
          for (const char *shape : shapes) {
            if (!isTaken(turn++) || (turn / 3) % 4 != 0)
              continue;
            const std::string yaml = fmt::format(
                "semantics: {}\ninput: {}\naxis: {}\nphases: [inference, update]\noptimizer: {}\n"
                "parameters: {}\n",
                framework, shape,
                std::string_view(shape).find("ntc") != std::string_view::npos ? "[1, 2]" : "c",
                optimizer, beside);
            INFO(repeat, " ", std::string(cpu), "\n", yaml);
            const Spec spec = specOf(yaml);
            const oracle::Sizes sizes{{"N", 3}, {"C", 1025}};
            const oracle::Numbers scalars{{"step", 7}, {"learning_rate", 0.03125}};
            const oracle::Arrays inputs = oracle::drawInputs(
                spec, Phase::Update, sizes, testSeed() + turn, oracle::Data::Normal, scalars);
            const TestKernel kernel(spec, Phase::Update, *session);
            const oracle::Arrays once = kernel.run(sizes, inputs, scalars);
            const std::string wrong =
                disagreement(spec, Phase::Update, sizes, inputs, once, scalars);
            CHECK_MESSAGE(wrong.empty(), wrong);
            RunOptions options;
            options.inPlace = 0;
            options.threads = 3;
            CHECK(sameBits(once, kernel.run(sizes, inputs, scalars, options)));
          }
  }
}

TEST_CASE("what a step reads and writes") {
  // Both parameters, neither of the other's state.
  const Spec spec = specOf("input: {shape: [N, 5], layout: nc}\naxis: c\n"
                           "phases: [inference, update]\noptimizer: adam\n");
  using Names = std::vector<std::string>;
  CHECK(oracle::inputNames(spec, Phase::Update) == Names{"dgamma", "dbeta", "gamma", "beta",
                                                         "gamma_mean_gradient", "gamma_mean_square",
                                                         "beta_mean_gradient", "beta_mean_square"});
  CHECK(oracle::outputNames(spec, Phase::Update) == Names{"gamma", "beta", "gamma_mean_gradient",
                                                          "gamma_mean_square", "beta_mean_gradient",
                                                          "beta_mean_square"});
  CHECK(spec.scalarNames(Phase::Update) == Names{"step"});
  CHECK(spec.scalarNames(Phase::Inference).empty());
}

TEST_CASE("backward and update in one are one after the other") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  // Where gamma and beta have the statistics' axes, others, all of the data's, and groups.
  for (const char *layer :
       {"input: {shape: [6, 20, 3, 3], layout: nchw, dtype: f64}\naxis: c\n",
        "input: {shape: [6, 3, 3, 20], layout: nhwc, dtype: f64}\naxis: c\nfuse: [relu]\n",
        "input: {shape: [6, 20, 3, 3], layout: nChw16c, dtype: f64}\naxis: c\n",
        "input: {shape: [6, 3, 15], layout: nhc, dtype: f64}\naxis: c\nvirtual_batch_size: 2\n",
        "input: {shape: [6, 3, 15], layout: nhc, dtype: f64}\naxis: c\nrenorm: true\n",
        "input: {shape: [37, 40], layout: nc, dtype: f64}\naxis: c\nmode: sample\nfuse: [silu]\n",
        "input: {shape: [7, 40], layout: hc, dtype: f64}\naxis: [h, c]\nmode: sample\n",
        "input: {shape: [6, 20, 3, 3], layout: nchw, dtype: f64}\naxis: c\nmode: instance\n",
        "input: {shape: [6, 20, 3, 3], layout: nchw, dtype: f64}\naxis: c\nmode: group\ngroups: "
        "5\n"})
    for (const char *optimizer :
         {"optimizer: {sgd: {learning_rate: 0.25}}\nparameters: {beta: {regularizer: l1}}\n",
          "optimizer: {adam: {amsgrad: true}}\nparameters: {gamma: {constraint: {max_norm: 2}, "
          "regularizer: l2}}\n"}) {
      // Keras's norms along the first of several axes are not built.
      const bool hasSeveral = std::string_view(layer).find("[h, c]") != std::string_view::npos;
      const std::string text =
          std::string(hasSeveral ? "semantics: pytorch\n" : "semantics: tf-keras\n") +
          "parameter_dtype: f64\n" + layer + optimizer +
          "phases: [training, backward, update, backward+update]\n";
      INFO(text);
      const Spec spec = specOf(text);
      const oracle::Numbers scalars = oracle::usualNumbers(spec, Phase::BackwardUpdate);
      const oracle::Arrays inputs = oracle::drawInputs(spec, Phase::BackwardUpdate, {}, testSeed());
      const Operator op = makeOperator(spec, Phase::BackwardUpdate);
      for (const ScheduleVariant &variant : selectSchedules(op, session->target()))
        CHECK(llvm::toString(checkSchedule(variant.schedule, op, session->target())) == "");
      const TestKernel fused(spec, Phase::BackwardUpdate, *session);
      const oracle::Arrays made = fused.run({}, inputs, scalars);
      CHECK_FALSE(made.contains("dgamma"));

      oracle::Arrays between = inputs;
      oracle::Arrays expected = TestKernel(spec, Phase::Backward, *session).run({}, inputs);
      for (const char *name : {"dgamma", "dbeta"})
        between.insert(expected.extract(name));
      expected.merge(TestKernel(spec, Phase::Update, *session).run({}, between, scalars));
      CHECK(made.size() == expected.size());
      for (const auto &[name, array] : expected) {
        INFO(name);
        REQUIRE(made.contains(name));
        for (int64_t i = 0; i < array.count(); ++i)
          CHECK(made.at(name).get(i) == doctest::Approx(array.get(i)).epsilon(1e-12));
      }
      for (size_t i = 0; i < 4; ++i) {
        INFO("in the buffer of input " << i);
        RunOptions options;
        options.inPlace = i;
        options.threads = 2;
        CHECK(sameBits(made, fused.run({}, inputs, scalars, options)));
      }
    }
}
