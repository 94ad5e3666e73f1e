// Derivatives: of expressions by rule, and of the reference, against central differences in f64.
#include "compiler/expr/Functions.h"
#include "compiler/oracle/Coordinates.h"

#include <cmath>
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <limits>

using namespace normforge;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// An expression of operands in f64.
double evaluate(const Exprs &exprs, Expr root, std::span<const double> operands) {
  return exprs.evaluate(root, [&](const Node &leaf) {
    if (leaf.op != ExprOp::Operand)
      throw std::logic_error("no operand");
    return operands[leaf.index];
  });
}

FuseStep stepOf(const Function &function) {
  FuseStep step{std::string(function.name)};
  for (unsigned i = 0; i < function.parameters; ++i)
    step.parameters.push_back(i == 0 ? -0.75 : 1.25);
  return step;
}

/// seed times the derivative of a function at x, by its row.
double gradientOf(const Function &function, double x, double seed) {
  const FuseStep step = stepOf(function);
  Exprs exprs;
  const Term argument{&exprs, exprs.operand(0)};
  const Term y = function(argument, step.parameters);
  const auto gradients = exprs.gradients(y.expr, exprs.operand(1), std::span(&argument.expr, 1));
  const double values[] = {x, seed};
  return evaluate(exprs, gradients[0].value(), values);
}

bool isKink(const Function &function, double x) {
  for (double kink : {-3.0, -0.75, 0.0, 1.25, 3.0, 6.0})
    if (std::abs(x - kink) < 1e-3)
      return function.name.find("elu") != std::string_view::npos ||
             function.name.starts_with("hard_") || function.name == "clamp";
  return false;
}

} // namespace

TEST_CASE("every operation's rule agrees with central differences") {
  struct Row {
    const char *name;
    Term (*formula)(Term a, Term b);
  };
  const Row rows[] = {
      {"a + b", [](Term a, Term b) { return a + b; }},
      {"a - b", [](Term a, Term b) { return a - b; }},
      {"a * b", [](Term a, Term b) { return a * b; }},
      {"a / b", [](Term a, Term b) { return a / b; }},
      {"fma", [](Term a, Term b) { return fma(a, b, a) + fma(b, b, a); }},
      {"-a", [](Term a, Term b) { return -a * b; }},
      {"abs", [](Term a, Term b) { return abs(a) * abs(b - a); }},
      {"sqrt", [](Term a, Term b) { return sqrt(a * a + b); }},
      {"exp", [](Term a, Term b) { return exp(a - b); }},
      {"expm1", [](Term a, Term b) { return expm1(a * b); }},
      {"log", [](Term a, Term b) { return log(a * a + b); }},
      {"log1p", [](Term a, Term b) { return log1p(a * a * b); }},
      {"erf", [](Term a, Term b) { return erf(a + b); }},
      {"tanh", [](Term a, Term b) { return tanh(a * b); }},
      {"select", [](Term a, Term b) { return select(less(a, b), a * a, b * exp(a)); }},
      {"<=", [](Term a, Term b) { return select(lessEqual(a, b), a / b, a * b); }},
      {"isnan", [](Term a, Term b) { return select(isNan(a), b, a * b); }},
      {"shared",
       [](Term a, Term b) {
         const Term t = exp(a) * b;
         return t * t + t / a;
       }},
  };
  for (const Row &row : rows)
    for (double a : {-1.3, -0.2, 0.7, 2.9})
      for (double b : {0.3, 1.1, 2.2}) {
        INFO(row.name, " at ", a, ", ", b);
        Exprs exprs;
        const Term x{&exprs, exprs.operand(0)}, y{&exprs, exprs.operand(1)};
        const Expr of = row.formula(x, y).expr, by[] = {x.expr, y.expr};
        const auto gradients = exprs.gradients(of, exprs.operand(2), by);
        for (int i = 0; i < 2; ++i) {
          const double h = 1e-6;
          auto at = [&](double step) {
            const double values[] = {a + (i == 0 ? step : 0), b + (i == 1 ? step : 0), 1.5};
            return evaluate(exprs, of, values);
          };
          const double values[] = {a, b, 1.5};
          const double found = gradients[i] ? evaluate(exprs, *gradients[i], values) : 0;
          CHECK(found == doctest::Approx(1.5 * (at(h) - at(-h)) / (2 * h)).epsilon(1e-7));
        }
      }
}

TEST_CASE("every function's gradient agrees with central differences and with the reference") {
  for (const Function &function : functions()) {
    const FuseStep step = stepOf(function);
    for (double x = -12; x <= 12; x += 0.037) {
      INFO(function.name, " at ", x);
      const double found = gradientOf(function, x, 2), exact = oracle::derivative(step, x);
      CHECK(std::abs(found - 2 * exact) <= 1e-12);
      if (isKink(function, x))
        continue;
      const double h = 1e-5;
      const double slope =
          (oracle::applyFunction(step, x + h) - oracle::applyFunction(step, x - h)) / (2 * h);
      CHECK(std::abs(exact - slope) < 1e-8);
    }
  }
}

TEST_CASE("gradients at kinks are PyTorch's, NaN passes, and nothing overflows") {
  struct Row {
    const char *name;
    double x, expected;
  };
  const Row rows[] = {{"relu", 0, 0},         {"relu", -0.0, 0},        {"relu6", 0, 0},
                      {"relu6", 6, 0},        {"leaky_relu", 0, -0.75}, {"elu", 0, -0.75},
                      {"clamp", -0.75, 1},    {"clamp", 1.25, 1},       {"hard_sigmoid", -3, 0},
                      {"hard_sigmoid", 3, 0}, {"hard_swish", 3, 1},     {"hard_swish", -3, 0}};
  for (const Row &row : rows) {
    INFO(row.name, " at ", row.x);
    CHECK(gradientOf(*findFunction(row.name), row.x, 1) == row.expected);
    CHECK(oracle::derivative(stepOf(*findFunction(row.name)), row.x) == row.expected);
  }
  for (const Function &function : functions()) {
    INFO(function.name);
    for (double x : {-1e30, -1e5, -88.0, 88.0, 1e5, 1e30}) {
      const double found = gradientOf(function, x, 1);
      CHECK(std::isfinite(found));
      CHECK(found == doctest::Approx(oracle::derivative(stepOf(function), x)).epsilon(1e-12));
    }
    // Nothing is left of a gradient that is cut off, not even of an infinite one.
    const double cut = gradientOf(function, -1e5, kInfinity);
    const bool cuts = function.name.starts_with("relu") || function.name == "clamp" ||
                      function.name.starts_with("hard_");
    CHECK((cuts ? cut == 0 : !std::isnan(cut) || function.name != "leaky_relu"));
    CHECK((std::isnan(gradientOf(function, kNan, 1)) || gradientOf(function, kNan, 1) == 1 ||
           std::abs(gradientOf(function, kNan, 1)) < 1));
  }
  CHECK(gradientOf(*findFunction("relu"), kNan, 3) == 3);
}

TEST_CASE("a kept bit gives the gradient that its argument does") {
  int withBits = 0;
  for (const Function &function : functions()) {
    CHECK((function.decides == nullptr) == (function.gradientOfBit == nullptr));
    if (!function.decides)
      continue;
    ++withBits;
    const FuseStep step = stepOf(function);
    Exprs exprs;
    const Term argument{&exprs, exprs.operand(0)}, bit{&exprs, exprs.operand(2)};
    const Expr decision = function.decides(argument, step.parameters).expr;
    const Term y = function(argument, step.parameters, bit);
    const auto gradients = exprs.gradients(y.expr, exprs.operand(1), std::span(&argument.expr, 1));
    for (double x : {-kInfinity, -1e30, -3.0, -0.75, -0.5, -0.0, 0.0, 1e-300, 0.5, 1.25, 3.0, 4.0,
                     6.0, 7.0, kInfinity, kNan})
      for (double seed : {2.0, kInfinity}) {
        INFO(function.name, " of ", x, ", ", seed);
        const double decided = evaluate(exprs, decision, std::span(&x, 1));
        const double values[] = {kNan, seed, decided}; // the argument does not matter
        const double found = evaluate(exprs, gradients[0].value(), values);
        const double expected = gradientOf(function, x, seed);
        CHECK((found == expected || (std::isnan(found) && std::isnan(expected))));
      }
  }
  CHECK(withBits == 5);
}

TEST_CASE("the reference's gradients of a renorm are those of an adjustment by r and d") {
  using namespace oracle;
  auto specOf = [](const char *key) {
    auto spec =
        parseSpec("input: {shape: [5, 4, 3], layout: ncw, dtype: f64}\naxis: c\nfuse: [silu]\n"
                  "phases: [training, backward]\n" +
                      std::string(key),
                  "spec.yaml");
    REQUIRE(spec);
    return std::move(*spec);
  };
  const Spec renorm = specOf("renorm: true\n"), adjustment = specOf("adjustment: true\n");
  Arrays given = drawInputs(renorm, Phase::Backward, {}, 4);
  const Arrays found = reference(renorm, Phase::Backward, {}, given);
  given.emplace("adjust_scale", given.at("renorm_r"));
  given.emplace("adjust_bias", given.at("renorm_d"));
  const Arrays expected = reference(adjustment, Phase::Backward, {}, given);
  REQUIRE(found.size() == expected.size());
  for (const auto &[name, array] : expected)
    CHECK(array.bytes == found.at(name).bytes);
}

TEST_CASE("the reference's gradients agree with central differences") {
  using namespace oracle;
  const char *const specs[] = {
      "input: {shape: [3, 4, 2, 3], layout: nchw, dtype: f64}\naxis: c\n",
      "input: {shape: [3, 2, 3, 5], layout: nhwc, dtype: f64}\naxis: c\nfuse: [add, silu]\n",
      "input: {shape: [3, 5, 2, 3], layout: nChw4c, dtype: f64}\naxis: c\nfuse: [gelu, add]\n",
      "input: {shape: [7, 4], layout: nc, dtype: f64}\nmode: 2\nfuse: [softplus]\nscale: false\n",
      "input: {shape: [4, 6], layout: nc, dtype: f64}\nmode: 1\nfuse: [tanh]\n", // epsilon twice
      "semantics: pytorch\ninput: {shape: [3, 4, 5], layout: nhc, dtype: f64}\nmode: layer\n"
      "axis: [h, c]\nfuse: [mish]\n",
      "semantics: pytorch\ninput: {shape: [3, 4, 5], layout: nch, dtype: f64}\nmode: layer\n"
      "axis: c\ncenter: false\n",
      "input: {shape: [4, 6], layout: nc, dtype: f64}\nmode: rms\n",
      "input: {shape: [4, 6], layout: nc, dtype: f64}\nmode: rms\ncenter: true\nfuse: [sigmoid]\n",
      "input: {shape: [3, 4, 2, 3], layout: nchw, dtype: f64}\naxis: c\nmode: instance\n"
      "fuse: [gelu_tanh]\n",
      "input: {shape: [3, 6, 2, 3], layout: nchw, dtype: f64}\naxis: c\nmode: group\ngroups: 2\n"
      "fuse: [silu]\n",
      "input: {shape: [2, 2, 3, 10], layout: nhwc, dtype: f64}\naxis: c\nmode: group\ngroups: 2\n"
      "fuse: [{mul: {axes: [n, c]}}]\n",
      "input: {shape: [3, 4, 2, 3], layout: nchw, dtype: f64}\naxis: c\n"
      "backward_statistics: moving\nfuse: [add, elu: 0.5]\n",
      // With weights, some of them 0, and changes of xhat.
      "input: {shape: [3, 4, 2, 3], layout: nchw, dtype: f64}\naxis: c\nmask: true\n",
      "input: {shape: [3, 2, 3, 5], layout: nhwc, dtype: f64}\nmode: 2\nmask: true\nfuse: [silu]\n",
      "input: {shape: [6, 4], layout: nc, dtype: f64}\nadjustment: true\nfuse: [tanh]\n",
      "input: {shape: [5, 4], layout: nc, dtype: f64}\nadjustment: true\nmask: true\n",
      "input: {shape: [6, 4, 2], layout: ncw, dtype: f64}\naxis: c\nvirtual_batch_size: 2\n"
      "fuse: [gelu]\n",
      "input: {shape: [4, 6], layout: cn, dtype: f64}\naxis: c\nvirtual_batch_size: 3\n",
      // By bits that training has kept.
      "input: {shape: [2, 3, 5, 4], layout: nhwc, dtype: f64}\naxis: c\n"
      "fuse: [add, {leaky_relu: 0.3}]\n",
      "input: {shape: [2, 5, 2, 3], layout: nChw4c, dtype: f64}\naxis: c\nmode: rms\n"
      "fuse: [silu, add, {clamp: [-0.5, 1]}]\n",
  };
  for (std::string text : specs) {
    if (const size_t at = text.find("elu: 0.5"); at != std::string::npos)
      text.replace(at, 8, "{elu: 0.5}");
    text += "phases: [inference, training, backward]\n";
    INFO(text);
    auto spec = parseSpec(text, "spec.yaml");
    REQUIRE(spec);
    const bool moving = spec->backwardStatistics == BackwardStatistics::Moving;
    const Phase forward = moving ? Phase::Inference : Phase::Training;
    Arrays inputs = drawInputs(*spec, Phase::Training, {}, 3);
    Arrays given = inputs;
    const Arrays saved = reference(*spec, forward, {}, inputs);
    if (const auto bits = saved.find("relu_mask"); bits != saved.end())
      given.insert(*bits);
    given.merge(drawInputs(*spec, Phase::Backward, {}, 3));
    const HostArray &dy = given.at("dy");
    const Coordinates at(*spec, {});
    auto loss = [&](const Arrays &in) {
      const Arrays out = reference(*spec, forward, {}, in);
      long double sum = 0;
      at.forEach([&](Place p) {
        sum += static_cast<long double>(out.at("y").get(p.offset)) * dy.get(p.offset);
      });
      return sum;
    };
    const Arrays gradients = reference(*spec, Phase::Backward, {}, given);
    CHECK(gradients.size() == outputNames(*spec, Phase::Backward).size());
    for (const auto &[name, gradient] : gradients) {
      const std::string of = name.substr(1);
      HostArray &varied = inputs.at(of);
      double largest = 0;
      for (int64_t i = 0; i < gradient.count(); ++i)
        largest = std::max(largest, std::abs(gradient.get(i)));
      for (int64_t i = 0; i < gradient.count(); ++i) {
        const double before = varied.get(i), h = 1e-5;
        if (std::isnan(before)) { // padding
          CHECK(gradient.get(i) == 0);
          continue;
        }
        varied.set(i, before + h);
        const long double above = loss(inputs);
        varied.set(i, before - h);
        const long double below = loss(inputs);
        varied.set(i, before);
        const double slope = static_cast<double>((above - below) / (2 * h));
        INFO(name, " ", i, ": ", gradient.get(i), " and ", slope);
        CHECK(std::abs(gradient.get(i) - slope) <= 2e-8 * (1 + largest));
      }
    }
  }
}
