// Tolerances: wide enough for plain f32 code of the kernels' kind, too narrow
// for a wrong formula.

#include "compiler/oracle/Oracle.h"

#include "llvm/Support/Error.h"

#include <doctest/doctest.h>

#include <cmath>

using namespace normforge;
using namespace normforge::oracle;

namespace {

Spec specOf(const std::string &text) {
  auto spec = parseSpec(text, "test.yaml");
  if (!spec)
    FAIL("the test's spec is wrong: " << llvm::toString(spec.takeError()));
  return *spec;
}

/// Sum in eight f32 lanes, as the narrowest vector kernel has them.
template <typename Term> float laneSum(int64_t n, Term term) {
  float lanes[8] = {};
  for (int64_t i = 0; i < n; ++i)
    lanes[i % 8] += term(i);
  float sum = 0;
  for (float lane : lanes)
    sum += lane;
  return sum;
}

/// Training of an [N, 1] problem in f32 by the corrected two-pass algorithm.
Arrays trainInF32(const Spec &spec, const Arrays &in) {
  const auto n = in.at("x").count();
  const auto *x = in.at("x").data<float>();
  const auto count = static_cast<float>(n);
  const float first = laneSum(n, [&](int64_t i) { return x[i]; }) / count;
  const float residual = laneSum(n, [&](int64_t i) { return x[i] - first; });
  const float squares = laneSum(n, [&](int64_t i) { return (x[i] - first) * (x[i] - first); });
  const float mean = first + residual / count;
  const float variance = (squares - residual * residual / count) / count;
  const auto gamma = static_cast<float>(in.at("gamma").get(0));
  const auto beta = static_cast<float>(in.at("beta").get(0));
  const float a = gamma / std::sqrt(variance + static_cast<float>(spec.epsilon.value));
  const auto momentum = static_cast<float>(spec.momentum.mean.value);
  const auto rest = static_cast<float>(1 - spec.momentum.mean.value);
  const auto update = [&](const char *name, float batch) {
    HostArray result(DType::F32, {1});
    result.set(0, momentum * static_cast<float>(in.at(name).get(0)) + rest * batch);
    return result;
  };
  Arrays out;
  out["y"] = HostArray(DType::F32, in.at("x").shape);
  for (int64_t i = 0; i < n; ++i)
    out["y"].set(i, (x[i] - mean) * a + beta);
  out["batch_mean"] = HostArray(DType::F32, {1});
  out["batch_mean"].set(0, mean);
  out["batch_variance"] = HostArray(DType::F32, {1});
  out["batch_variance"].set(0, variance);
  out["moving_mean"] = update("moving_mean", mean);
  out["moving_variance"] = update("moving_variance", variance);
  return out;
}

const char *text = "input: {shape: [N, 1], layout: nc}\naxis: c\nepsilon: "
                   "1.0e-3\nmomentum: 0.99\n"
                   "phases: [inference, training]\n";

} // namespace

TEST_CASE("tolerance: plain f32 code passes on every kind of data and length") {
  const Spec spec = specOf(text);
  for (Data data : {Data::Normal, Data::Offset, Data::Constant, Data::Outlier, Data::Denormal})
    for (int64_t n : {1, 2, 7, 64, 3136, 200000})
      for (uint64_t seed : {1, 2, 3}) {
        const Sizes sizes{{"N", n}};
        const Arrays in = drawInputs(spec, Phase::Training, sizes, seed, data);
        const Arrays expected = reference(spec, Phase::Training, sizes, in);
        const Arrays actual = trainInF32(spec, in);
        const auto all = tolerances(spec, Phase::Training, sizes, in);
        for (const std::string &name : outputNames(spec, Phase::Training)) {
          const Tolerance &allowed = all.at(name);
          const Comparison result = compare(actual.at(name), expected.at(name), allowed);
          INFO(toString(data), " N=", n, " seed=", seed, " ", name, ": ", result.actual, " and ",
               result.expected, ", allowed ", result.allowed);
          CHECK(result.agrees());
          CHECK(!allowed.why.empty());
        }
      }
}

TEST_CASE("tolerance: a wrong formula does not pass") {
  const Spec spec = specOf(text);
  const Sizes sizes{{"N", 3136}};
  const Arrays in = drawInputs(spec, Phase::Training, sizes, 1);
  const Arrays expected = reference(spec, Phase::Training, sizes, in);
  const auto disagrees = [&](const Spec &wrong, const char *output) {
    const Arrays actual = reference(wrong, Phase::Training, sizes, in);
    const Tolerance allowed = tolerances(spec, Phase::Training, sizes, in).at(output);
    return !compare(actual.at(output), expected.at(output), allowed).agrees();
  };
  Spec wrong = spec;
  CHECK(!disagrees(wrong, "y"));
  wrong.runningVariance = RunningVariance::Bessel; // 3e-4 of the variance, of which 1 % is seen
  CHECK(disagrees(wrong, "moving_variance"));
  wrong = spec;
  wrong.epsilonPosition = EpsilonPosition::Outside;
  CHECK(disagrees(wrong, "y"));
  wrong = spec;
  wrong.epsilon.value = 1.1e-3;
  CHECK(disagrees(wrong, "y"));
  wrong = spec;
  wrong.momentum.mean.value = 0.9901;
  CHECK(disagrees(wrong, "moving_mean"));

  // One element of the sum left out.
  Arrays less = in;
  less.at("x").set(5, expected.at("batch_mean").get(0));
  const Arrays actual = reference(spec, Phase::Training, sizes, less);
  for (const char *name : {"batch_mean", "batch_variance"})
    CHECK(!compare(actual.at(name), expected.at(name),
                   tolerances(spec, Phase::Training, sizes, in).at(name))
               .agrees());
}

TEST_CASE("tolerance: inference allows a few roundings, f64 far less than f32") {
  const Sizes sizes{{"N", 3136}};
  const Spec f32 = specOf(text);
  Arrays in = drawInputs(f32, Phase::Inference, sizes, 1);
  auto largest = [](const Tolerance &t) {
    return *std::max_element(t.elements->begin(), t.elements->end());
  };
  const double a = largest(tolerances(f32, Phase::Inference, sizes, in).at("y"));
  CHECK(a > 1e-7);
  CHECK(a < 2e-5);

  const Spec f64 = specOf("input: {shape: [N, 1], layout: nc, dtype: f64}\naxis: c\n");
  in = drawInputs(f64, Phase::Inference, sizes, 1);
  CHECK(largest(tolerances(f64, Phase::Inference, sizes, in).at("y")) < 1e-13);
}

TEST_CASE("tolerance: a group with NaN does not loosen the others") {
  const Spec spec = specOf("input: {shape: [100, 2], layout: nc}\naxis: c\nphases: [training]\n");
  Arrays in = drawInputs(spec, Phase::Training, {}, 1);
  in.at("x").set(0, std::nan(""));
  const Arrays expected = reference(spec, Phase::Training, {}, in);
  for (const std::string &name : outputNames(spec, Phase::Training)) {
    const auto allowed = tolerances(spec, Phase::Training, {}, in).at(name).elements;
    for (size_t i = 1; i < allowed->size(); i += 2) // of the other channel
      CHECK((*allowed)[i] < 1e-4);
    CHECK(std::isnan(expected.at(name).get(0)));
    CHECK(std::isfinite(expected.at(name).get(1)));
  }
}

TEST_CASE("tolerance: oneDNN's own error comes on top, and its relu may make 0 "
          "of NaN") {
  const Spec spec = specOf(std::string(text) + "fuse: [relu]\n");
  const Sizes sizes{{"N", 3136}};
  const Arrays in = drawInputs(spec, Phase::Training, sizes, 1, Data::Offset);
  const Tolerance ours = tolerances(spec, Phase::Training, sizes, in).at("y");
  const Tolerance both = oneDnnTolerances(spec, Phase::Training, sizes, in).at("y");
  const HostArray y = reference(spec, Phase::Training, sizes, in).at("y");
  for (int64_t i = 0; i < y.count(); ++i)
    if (y.get(i) > 0) // relu's 0 is exact
      CHECK(both.allowed(i, 1) > ours.allowed(i, 1));
  CHECK(both.zeroForNaN);
  CHECK(!ours.zeroForNaN);
}
