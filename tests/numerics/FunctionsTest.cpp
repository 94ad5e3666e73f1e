// The functions of `fuse` on every kind of number, through kernels that compute nothing else:
// epsilon 1 and a variance of 0 make y = f(x).
#include "tests/numerics/KernelCase.h"

#include "compiler/expr/Functions.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <bit>
#include <cmath>

using namespace normforge;
using namespace normforge::test;

namespace {

FuseStep stepOf(const Function &function) {
  FuseStep step{std::string(function.name)};
  const double values[] = {-0.75, 1.5};
  for (unsigned i = 0; i < function.parameters; ++i)
    step.parameters.push_back(values[i]);
  return step;
}

/// NaN, infinities, zeros, denormals, the edges of formulas, and numbers of every size.
std::vector<double> specialNumbers(DType dtype, std::mt19937_64 &random) {
  std::vector<double> numbers = {
      NAN,   INFINITY, -INFINITY, 0.0, -0.0, 1,    -1,    0.625, 0.92, -0.92, 2,     4,
      6,     -6,       3,         -3,  10,   -10,  88.7,  -88.7, 104,  -104,  1e-40, -1e-40,
      1e-45, 3e38,     -3e38,     17,  -17,  1e-4, -1e-4, 709,   -709, -745,  1e300};
  for (int i = 0; i < 400; ++i) {
    const uint64_t bits = random();
    numbers.push_back(dtype == DType::F64 ? std::bit_cast<double>(bits)
                                          : std::bit_cast<float>(static_cast<uint32_t>(bits)));
    numbers.push_back(static_cast<double>(static_cast<int64_t>(bits)) * 0x1p-59); // -16 to 16
  }
  return numbers;
}

void checkFunctions(const char *cpu) {
  Session *session = sessionOrSkip(cpu);
  if (!session)
    return;
  std::mt19937_64 random(testSeed());
  for (DType dtype : {DType::F32, DType::F64, DType::BF16})
    for (const Function &function : functions()) {
      const FuseStep step = stepOf(function);
      const std::vector<double> numbers = specialNumbers(dtype, random);
      const std::string yaml = fmt::format(
          "semantics: pytorch\ninput: {{shape: [{}, 1], layout: nc, dtype: {}}}\naxis: c\n"
          "epsilon: 1\ncenter: false\nscale: false\nphases: [inference]\nfuse: [{}]\n",
          numbers.size(), toString(dtype), step.text());
      INFO(repeatCommand("functions on every*"), " cpu ", std::string(cpu), "\n", yaml);
      const Spec spec = specOf(yaml);
      oracle::Arrays inputs = oracle::drawInputs(spec, Phase::Inference, {}, 1);
      inputs.at("moving_mean").set(0, 0);
      inputs.at("moving_variance").set(0, 0);
      for (size_t i = 0; i < numbers.size(); ++i)
        inputs.at("x").set(static_cast<int64_t>(i), numbers[i]);
      const std::string wrong = wrongResults(TestKernel(spec, Phase::Inference, *session), spec,
                                             Phase::Inference, {}, inputs);
      CHECK_MESSAGE(wrong.empty(), wrong);
    }
}

} // namespace

TEST_CASE("functions on every kind of number: native") { checkFunctions("native"); }
TEST_CASE("functions on every kind of number: haswell") { checkFunctions("haswell"); }
TEST_CASE("functions on every kind of number: x86-64-v2") { checkFunctions("x86-64-v2"); }
TEST_CASE("functions on every kind of number: sm_90") { checkFunctions("sm_90"); }

TEST_CASE("what functions are, at points that anyone can check") {
  struct Row {
    const char *name;
    double x, y;
  };
  const Row rows[] = {
      {"relu", -2, 0},
      {"relu6", 7, 6},
      {"leaky_relu", -2, 1.5}, // slope -0.75
      {"elu", 3, 3},
      {"gelu", 1, 0.8413447460685429},
      {"gelu_tanh", 1, 0.8411919906082768},
      {"sigmoid", 0, 0.5},
      {"silu", 2, 1.7615941559557649},
      {"tanh", 0.5, 0.46211715726000975},
      {"softplus", 0, 0.6931471805599453},
      {"mish", 1, 0.8650983882673103},
      {"hard_sigmoid", 1.5, 0.75},
      {"hard_swish", 1.5, 1.125},
      {"clamp", 9, 1.5}, // to -0.75 ... 1.5
  };
  CHECK(std::size(rows) == functions().size());
  Session *session = sessionOrSkip("native");
  REQUIRE(session);
  for (const Row &row : rows) {
    INFO(std::string(row.name));
    const Function *function = findFunction(row.name);
    REQUIRE(function);
    const Spec spec = specOf(fmt::format(
        "semantics: pytorch\ninput: {{shape: [1, 1], layout: nc, dtype: f64}}\naxis: c\n"
        "epsilon: 1\ncenter: false\nscale: false\nphases: [inference]\nfuse: [{}]\n",
        stepOf(*function).text()));
    oracle::Arrays inputs = oracle::drawInputs(spec, Phase::Inference, {}, 1);
    inputs.at("moving_mean").set(0, 0);
    inputs.at("moving_variance").set(0, 0);
    inputs.at("x").set(0, row.x);
    const auto outputs = TestKernel(spec, Phase::Inference, *session).run({}, inputs);
    CHECK(outputs.at("y").get(0) == doctest::Approx(row.y).epsilon(1e-14));
    CHECK(oracle::reference(spec, Phase::Inference, {}, inputs).at("y").get(0) ==
          doctest::Approx(row.y).epsilon(1e-14));
  }
}
