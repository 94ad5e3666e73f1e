// The f64 reference against numbers worked out by hand; drawn inputs;
// tolerances and comparison.

#include "compiler/oracle/Oracle.h"

#include "llvm/Support/Error.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

using namespace normforge;
using namespace normforge::oracle;

namespace {

constexpr double notANumber = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

Spec specOf(const std::string &text) {
  auto spec = parseSpec(text, "test.yaml");
  if (!spec)
    FAIL("the test's spec is wrong: " << llvm::toString(spec.takeError()));
  return *spec;
}

HostArray array(std::vector<int64_t> shape, const std::vector<double> &values,
                DType dtype = DType::F32) {
  HostArray result(dtype, std::move(shape));
  REQUIRE(result.count() == static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i)
    result.set(i, values[i]);
  return result;
}

std::vector<double> values(const HostArray &array) {
  std::vector<double> result;
  for (int64_t i = 0; i < array.count(); ++i)
    result.push_back(array.get(i));
  return result;
}

using Values = std::vector<double>;

/// Two values, 1 and 3: mean 2, variance 1. epsilon is 3, so that the root
/// is 2.
Arrays twoValues() {
  return {{"x", array({2, 1}, {1, 3})},
          {"gamma", array({1}, {4})},
          {"beta", array({1}, {1})},
          {"moving_mean", array({1}, {10})},
          {"moving_variance", array({1}, {13})},
          {"addend", array({2, 1}, {-4, 2})}};
}

const std::string twoValuesSpec = "input: {shape: [2, 1], layout: nc}\n"
                                  "epsilon: 3.0\n"
                                  "momentum: 0.75\n"
                                  "phases: [inference, training]\n";

} // namespace

TEST_CASE("reference: training normalizes with the batch and updates the "
          "moving statistics") {
  const Arrays out = reference(specOf(twoValuesSpec), Phase::Training, {}, twoValues());
  CHECK(values(out.at("y")) == Values{-1, 3}); // (1-2)/2*4+1, (3-2)/2*4+1
  CHECK(values(out.at("batch_mean")) == Values{2});
  CHECK(values(out.at("batch_variance")) == Values{1});
  CHECK(values(out.at("moving_mean")) == Values{8});      // 0.75*10 + 0.25*2
  CHECK(values(out.at("moving_variance")) == Values{10}); // 0.75*13 + 0.25*1
  CHECK(out.size() == 5);
}

TEST_CASE("reference: inference takes the moving statistics") {
  const Arrays out = reference(specOf(twoValuesSpec), Phase::Inference, {}, twoValues());
  CHECK(values(out.at("y")) == Values{-8, -6}); // (1-10)/4*4+1, (3-10)/4*4+1
  CHECK(out.size() == 1);
}

TEST_CASE("reference: mode 2 takes the batch's statistics in inference and "
          "moves nothing") {
  const Spec spec = specOf(twoValuesSpec + "mode: 2\n");
  CHECK(values(reference(spec, Phase::Inference, {}, twoValues()).at("y")) == Values{-1, 3});
  const Arrays out = reference(spec, Phase::Training, {}, twoValues());
  CHECK(values(out.at("y")) == Values{-1, 3});
  CHECK(out.count("moving_mean") == 0);
  CHECK(out.size() == 3);
}

TEST_CASE("reference: mode 1 takes statistics over its axis, one for each "
          "other index") {
  const Spec spec = specOf("semantics: pytorch\n"
                           "input: {shape: [2, 2], layout: nc}\n"
                           "mode: 1\naxis: c\nepsilon: 3.0\nphases: [inference, training]\n");
  // The rows' means are 2 and 5, their variances 1 and 1.
  const Arrays in{{"x", array({2, 2}, {1, 3, 6, 4})},
                  {"gamma", array({2}, {2, 4})},
                  {"beta", array({2}, {0, 1})}};
  CHECK(values(reference(spec, Phase::Inference, {}, in).at("y")) == Values{-1, 3, 1, -1});
  const Arrays out = reference(spec, Phase::Training, {}, in);
  CHECK(values(out.at("batch_mean")) == Values{2, 5});
  CHECK(values(out.at("batch_variance")) == Values{1, 1});
  CHECK(out.count("moving_mean") == 0);
}

TEST_CASE("reference: mode 1 over every axis has one group") {
  const Spec spec = specOf("semantics: onnx-15\n"
                           "input: {shape: [2, 2], layout: nc}\n"
                           "mode: 1\naxis: [0, 1]\nepsilon: 3.0\nphases: [training]\n");
  const Arrays in{{"x", array({2, 2}, {1, 3, 3, 1})},
                  {"gamma", array({2, 2}, {2, 4, 6, 8})},
                  {"beta", array({2, 2}, {0, 0, 0, 0})}};
  const Arrays out = reference(spec, Phase::Training, {}, in);
  CHECK(values(out.at("y")) == Values{-1, 2, 3, -4});
  CHECK(values(out.at("batch_mean")) == Values{2});
  CHECK(out.at("batch_mean").shape.empty());
}

TEST_CASE("reference: where epsilon stands") {
  Spec spec = specOf(twoValuesSpec + "mode: 2\ncenter: false\nscale: false\n");
  spec.epsilonPosition = EpsilonPosition::Inside;
  CHECK(values(reference(spec, Phase::Inference, {}, twoValues()).at("y")) == Values{-0.5, 0.5});
  spec.epsilonPosition = EpsilonPosition::Outside;
  CHECK(values(reference(spec, Phase::Inference, {}, twoValues()).at("y")) == Values{-0.25, 0.25});
  spec.epsilonPosition = EpsilonPosition::Both;
  CHECK(values(reference(spec, Phase::Inference, {}, twoValues()).at("y")) == Values{-0.2, 0.2});
}

TEST_CASE("reference: center and scale") {
  const Spec unscaled = specOf(twoValuesSpec + "scale: false\n");
  CHECK(values(reference(unscaled, Phase::Training, {}, twoValues()).at("y")) == Values{0.5, 1.5});
  const Spec uncentered = specOf(twoValuesSpec + "center: false\n");
  CHECK(values(reference(uncentered, Phase::Training, {}, twoValues()).at("y")) == Values{-2, 2});
}

TEST_CASE("reference: fused steps in their order, and NaN passes relu") {
  CHECK(values(reference(specOf(twoValuesSpec + "fuse: [add, relu]\n"), Phase::Training, {},
                         twoValues())
                   .at("y")) == Values{0, 5});
  CHECK(values(reference(specOf(twoValuesSpec + "fuse: [relu]\n"), Phase::Training, {}, twoValues())
                   .at("y")) == Values{0, 3});
  Arrays in = twoValues();
  in["x"].set(0, notANumber);
  const Arrays out = reference(specOf(twoValuesSpec + "fuse: [relu]\n"), Phase::Inference, {}, in);
  CHECK(std::isnan(out.at("y").get(0)));
  CHECK(out.at("y").get(1) == 0);
}

TEST_CASE("reference: the moving variance's corrections") {
  Spec spec = specOf(twoValuesSpec);
  spec.runningVariance = RunningVariance::Bessel; // 1 * 2/(2-1)
  CHECK(values(reference(spec, Phase::Training, {}, twoValues()).at("moving_variance")) ==
        Values{10.25});
  CHECK(values(reference(spec, Phase::Training, {}, twoValues()).at("batch_variance")) ==
        Values{1});
  spec.runningVariance = RunningVariance::Keras2;
  spec.epsilon.value = 0.5; // 1 * 2/(2-1.5)
  CHECK(values(reference(spec, Phase::Training, {}, twoValues()).at("moving_variance")) ==
        Values{10.75});
  spec.epsilon.value = 1; // 2/0: the biased one
  CHECK(values(reference(spec, Phase::Training, {}, twoValues()).at("moving_variance")) ==
        Values{10});
}

TEST_CASE("reference: a group of one value has no correction") {
  Spec spec = specOf("input: {shape: [1, 1], layout: nc}\n"
                     "epsilon: 1.0\nmomentum: 0.5\nphases: [training]\n");
  spec.runningVariance = RunningVariance::Bessel;
  const Arrays in{{"x", array({1, 1}, {7})},
                  {"gamma", array({1}, {2})},
                  {"beta", array({1}, {3})},
                  {"moving_mean", array({1}, {1})},
                  {"moving_variance", array({1}, {4})}};
  const Arrays out = reference(spec, Phase::Training, {}, in);
  CHECK(values(out.at("y")) == Values{3});
  CHECK(values(out.at("moving_mean")) == Values{4});
  CHECK(values(out.at("moving_variance")) == Values{2});
}

TEST_CASE("reference: what momentum weighs, and scalars given at the call") {
  Spec spec = specOf(twoValuesSpec);
  spec.momentum.weighs = MomentumWeighs::New; // 0.25*10 + 0.75*2
  CHECK(values(reference(spec, Phase::Training, {}, twoValues()).at("moving_mean")) == Values{4});

  spec.momentum.cumulative = true; // 3/4*10 + 1/4*2
  CHECK(
      values(reference(spec, Phase::Training, {}, twoValues(), {{"count", 4}}).at("moving_mean")) ==
      Values{8});
  CHECK(
      values(reference(spec, Phase::Training, {}, twoValues(), {{"count", 1}}).at("moving_mean")) ==
      Values{2});

  spec = specOf(twoValuesSpec);
  spec.momentum.mean.value = 0; // the last batch's
  spec.momentum.variance.value = 1;
  const Arrays out = reference(spec, Phase::Training, {}, twoValues());
  CHECK(values(out.at("moving_mean")) == Values{2});
  CHECK(values(out.at("moving_variance")) == Values{13});

  spec.epsilon.isArgument = true;
  spec.momentum.mean.isArgument = spec.momentum.variance.isArgument = true;
  const Arrays late =
      reference(spec, Phase::Training, {}, twoValues(), {{"epsilon", 15}, {"momentum", 0.5}});
  CHECK(values(late.at("y")) == Values{0, 2});
  CHECK(values(late.at("moving_variance")) == Values{7});
}

TEST_CASE("reference: a blocked layout is the plain one with padding unread "
          "and zero") {
  const std::string rest = "axis: c\nphases: [training]\nfuse: [add]\n";
  const Spec plain = specOf("input: {shape: [N, 9, 2, 3], layout: nchw}\n" + rest);
  const Spec blocked = specOf("input: {shape: [N, 9, 2, 3], layout: nChw8c}\n" + rest);
  const Sizes sizes{{"N", 2}};
  const Arrays a =
      reference(plain, Phase::Training, sizes, drawInputs(plain, Phase::Training, sizes, 1));
  const Arrays b =
      reference(blocked, Phase::Training, sizes, drawInputs(blocked, Phase::Training, sizes, 1));
  REQUIRE(b.at("y").shape == std::vector<int64_t>{2, 2, 2, 3, 8});
  int64_t i = 0;
  for (int64_t n = 0; n < 2; ++n)
    for (int64_t c = 0; c < 16; ++c)
      for (int64_t pixel = 0; pixel < 6; ++pixel) {
        const double value = b.at("y").get(((n * 2 + c / 8) * 6 + pixel) * 8 + c % 8);
        CHECK(value == (c < 9 ? a.at("y").get(i++) : 0));
      }
  CHECK(values(a.at("moving_variance")) == values(b.at("moving_variance")));
  CHECK(b.at("batch_mean").shape == std::vector<int64_t>{9});
}

TEST_CASE("reference: several axes, and NaN stays in its group") {
  const Spec spec = specOf("input: {shape: [2, 2, 2], layout: ncw}\n"
                           "axis: [n, w]\nepsilon: 3.0\nphases: [training]\nscale: false\n"
                           "center: false\nmode: 2\n");
  // Groups (n, w): (1, 3), (NaN, 5), (9, 7), (2, 4), over c.
  const Arrays in{{"x", array({2, 2, 2}, {1, notANumber, 3, 5, 9, 2, 7, 4})}};
  const Arrays out = reference(spec, Phase::Training, {}, in);
  const Values y = values(out.at("y"));
  CHECK(y[0] == -0.5);
  CHECK(y[2] == 0.5);
  CHECK(std::isnan(y[1]));
  CHECK(std::isnan(y[3]));
  CHECK(Values(y.begin() + 4, y.end()) == Values{0.5, -0.5, -0.5, 0.5});
  CHECK(out.at("batch_mean").shape == std::vector<int64_t>{2, 2});
}

TEST_CASE("arguments: names in the manifest's order and shapes in memory") {
  const Spec spec = specOf("input: {shape: [N, 20, 5], layout: nCw16c}\naxis: c\nfuse: [add]\n"
                           "phases: [inference, training]\n");
  using Names = std::vector<std::string>;
  CHECK(inputNames(spec, Phase::Inference) ==
        Names{"x", "gamma", "beta", "moving_mean", "moving_variance", "addend"});
  CHECK(outputNames(spec, Phase::Inference) == Names{"y"});
  CHECK(outputNames(spec, Phase::Training) ==
        Names{"y", "moving_mean", "moving_variance", "batch_mean", "batch_variance"});
  CHECK(argumentShape(spec, "addend", {{"N", 3}}) == std::vector<int64_t>{3, 2, 5, 16});
  CHECK(argumentShape(spec, "gamma", {{"N", 3}}) == std::vector<int64_t>{20});

  const Spec layer = specOf("semantics: pytorch\ninput: {shape: [N, 4, 5], layout: ntc}\n"
                            "mode: 1\naxis: c\nscale: false\nphases: [training]\n");
  CHECK(inputNames(layer, Phase::Training) == Names{"x", "beta"});
  CHECK(outputNames(layer, Phase::Training) == Names{"y", "batch_mean", "batch_variance"});
  CHECK(argumentShape(layer, "batch_mean", {{"N", 3}}) == std::vector<int64_t>{3, 4});
  CHECK(argumentShape(layer, "beta", {{"N", 3}}) == std::vector<int64_t>{5});
}

TEST_CASE("drawn inputs: the same everywhere, different for each seed, as "
          "their name says") {
  const Spec spec = specOf("input: {shape: [50, 3, 20], layout: ncw}\naxis: c\n"
                           "phases: [training]\n");
  const auto draw = [&](uint64_t seed, Data data) {
    return drawInputs(spec, Phase::Training, {}, seed, data);
  };
  const Arrays normal = draw(7, Data::Normal);
  CHECK(normal.size() == 5);
  CHECK(normal.at("x").bytes == draw(7, Data::Normal).at("x").bytes);
  CHECK(normal.at("x").bytes != draw(8, Data::Normal).at("x").bytes);
  // Pinned: a change here makes every printed seed mean something else.
  CHECK(normal.at("x").get(0) == doctest::Approx(-3.26448).epsilon(1e-5));
  CHECK(normal.at("gamma").get(2) == doctest::Approx(0.558988).epsilon(1e-5));

  Arrays out = reference(spec, Phase::Training, {}, normal);
  for (int64_t c = 0; c < 3; ++c) {
    CHECK(out.at("batch_mean").get(c) == doctest::Approx(0.5).epsilon(0.8));
    CHECK(out.at("batch_variance").get(c) == doctest::Approx(4).epsilon(0.8));
  }
  out = reference(spec, Phase::Training, {}, draw(7, Data::Offset));
  CHECK(out.at("batch_mean").get(0) / std::sqrt(out.at("batch_variance").get(0)) > 5e3);
  out = reference(spec, Phase::Training, {}, draw(7, Data::Constant));
  CHECK(out.at("batch_variance").get(1) == 0);
  CHECK(out.at("batch_mean").get(0) != out.at("batch_mean").get(1));
  const Arrays outlier = draw(7, Data::Outlier);
  int spots[3] = {};
  for (int64_t i = 0; i < 3000; ++i)
    spots[i / 20 % 3] += outlier.at("x").get(i) == 1e6;
  CHECK((spots[0] == 1 && spots[1] == 1 && spots[2] == 1));
  for (double x : values(draw(7, Data::Denormal).at("x")))
    CHECK(std::abs(x) < 1e-38);

  for (Data data : {Data::Normal, Data::Offset, Data::Constant, Data::Outlier, Data::Denormal})
    CHECK((parseData(toString(data)) == data));
  CHECK(!parseData("Normal"));
}

TEST_CASE("drawn inputs: padding of a blocked layout is NaN") {
  const Spec spec = specOf("input: {shape: [1, 3, 1, 2], layout: nChw8c}\naxis: c\nfuse: [add]\n");
  const Arrays in = drawInputs(spec, Phase::Inference, {}, 1);
  for (const char *name : {"x", "addend"})
    for (int64_t i = 0; i < 16; ++i)
      CHECK(std::isnan(in.at(name).get(i)) == (i % 8 >= 3));
}

TEST_CASE("compare") {
  const Tolerance loose{0.5, 0.1, false, ""};
  const auto run = [&](double a, double b, const Tolerance &tolerance) {
    return compare(array({2}, {1, a}, DType::F64), array({2}, {1, b}, DType::F64), tolerance);
  };
  SUBCASE("the excess is a part of what is allowed") {
    const Comparison result = run(11, 10, loose); // allowed: 0.5 + 0.1*10
    CHECK(result.agrees());
    CHECK(result.largestError == 1);
    CHECK(result.largestExcess == doctest::Approx(1 / 1.5));
    CHECK(result.worst == 1);
    CHECK(result.actual == 11);
    CHECK(result.expected == 10);
    CHECK(!run(11.6, 10, loose).agrees());
  }
  SUBCASE("nothing allowed") {
    CHECK(run(3, 3, {}).agrees());
    CHECK(!run(3, std::nextafter(3.0, 4), {}).agrees());
    CHECK(run(0.0, -0.0, {}).agrees());
  }
  SUBCASE("NaN and Inf") {
    CHECK(run(notANumber, notANumber, {}).agrees());
    CHECK(run(infinity, infinity, {}).agrees());
    CHECK(!run(infinity, -infinity, loose).agrees());
    CHECK(!run(notANumber, 3, loose).agrees());
    CHECK(run(notANumber, 3, loose).largestError == infinity);
    CHECK(!run(3, notANumber, loose).agrees());
    CHECK(!run(3, infinity, loose).agrees());
    CHECK(!run(infinity, 3, loose).agrees());
  }
  SUBCASE("0 for NaN, where oneDNN's relu may have made it") {
    Tolerance relu = loose;
    relu.zeroForNaN = true;
    CHECK(run(notANumber, 0, relu).agrees());
    CHECK(!run(notANumber, 3, relu).agrees());
    CHECK(!run(0, notANumber, relu).agrees());
    CHECK(!run(notANumber, 0, loose).agrees());
  }
  SUBCASE("counts and empty arrays") {
    CHECK(!compare(array({1}, {1}), array({2}, {1, 1}), loose).agrees());
    CHECK(compare(array({0}, {}), array({0}, {}), loose).agrees());
  }
}
