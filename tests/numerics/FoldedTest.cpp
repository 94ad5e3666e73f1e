// Values that a spec gives of gamma, beta and moving statistics, in kernels of inference alone.
#include "compiler/spec/Initialize.h"
#include "runtime/measure/Draw.h"
#include "tests/numerics/KernelCase.h"

#include <cmath>
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

using namespace normforge;
using namespace normforge::test;

namespace {

struct Folded {
  const char *layout, *shape, *axis, *mode;
  oracle::Sizes sizes;
  int64_t parameters; ///< elements of gamma
  const char *more = "";
};
const Folded kCases[] = {
    {"nchw", "N, 5, 7, 9", "c", "0", {{"N", 3}}, 5},
    {"nhwc", "N, 7, 9, 37", "c", "0", {{"N", 2}}, 37},
    {"nhwc", "N, 33, 35, 3", "c", "0", {{"N", 1}}, 3, "dtype: bf16\n"},
    {"nChw16c", "N, 35, 7, 3", "c", "0", {{"N", 3}}, 35, "fuse: [relu]\n"},
    {"nchw", "N, 4, 2, 3", "[c, w]", "0", {{"N", 3}}, 12, "epsilon: argument\n"},
    {"nc", "N, 251", "c", "0", {{"N", 17}}, 251, "dtype: f64\n"},
    {"nc", "N, 67", "c", "layer", {{"N", 5}}, 67},
    {"nhwc", "N, 3, 5, 12", "c", "group\ngroups: 3", {{"N", 2}}, 12},
    {"nchw", "N, 12, 5, 5", "c", "instance", {{"N", 2}}, 12, "parameter_dtype: bf16\n"},
    {"nc", "N, 40", "c", "rms", {{"N", 6}}, 40},
};

std::string specText(const Folded &of, const std::string &parameters) {
  const std::string more = of.more;
  const bool isInput = more.starts_with("dtype");
  return fmt::format("name: folded\nsemantics: pytorch\ninput: {{shape: [{}], layout: {}{}}}\n"
                     "axis: {}\nmode: {}\nphases: [inference]\n{}{}",
                     of.shape, of.layout,
                     isInput ? ", " + more.substr(0, more.size() - 1) : std::string(), of.axis,
                     of.mode, isInput ? "" : more, parameters);
}

/// A list of `count` numbers from `least` to `least` + 1.
std::string drawn(const Draw &draw, Stream stream, int64_t count, double least) {
  std::vector<double> numbers;
  for (int64_t i = 0; i < count; ++i)
    numbers.push_back(least + draw.uniform(stream, static_cast<uint64_t>(i)));
  return fmt::format("[{}]", fmt::join(numbers, ", "));
}

/// Key `parameters` with lists, or numbers, of those arrays that `has` says.
template <typename Has> std::string parametersOf(const Folded &of, bool lists, Has has) {
  const Spec plain = specOf(specText(of, ""));
  const Draw draw(testSeed());
  std::vector<std::string> keys;
  Stream stream = 0;
  for (const std::string &name : initialNames(plain)) {
    const double least = name == "moving_variance" ? 0.5 : -0.5;
    const std::string value = lists ? drawn(draw, stream, of.parameters, least)
                                    : fmt::format("{}", least + draw.uniform(stream, 0));
    if (has(stream++))
      keys.push_back(fmt::format("{}: {{value: {}}}", name, value));
  }
  return fmt::format("parameters: {{{}}}\n", fmt::join(keys, ", "));
}

void checkKernels(const Folded &of, const std::string &parameters) {
  const std::string yaml = specText(of, parameters);
  CAPTURE(yaml);
  const Spec spec = specOf(yaml);
  REQUIRE(!foldedNames(spec).empty());
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    CAPTURE(cpu);
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    const TestKernel kernel(spec, Phase::Inference, *session);
    for (const Argument &argument : kernel.artifact().arguments)
      for (const std::string &name : foldedNames(spec))
        CHECK(argument.name != name);
    const oracle::Numbers scalars{{"epsilon", 0.125}};
    const auto inputs = oracle::drawInputs(spec, Phase::Inference, of.sizes, testSeed());
    CHECK(wrongResults(kernel, spec, Phase::Inference, of.sizes, inputs,
                       spec.epsilon.isArgument ? scalars : oracle::Numbers()) == "");
  }
}

} // namespace

TEST_CASE("values are in the kernels of inference alone") {
  for (const Folded &of : kCases)
    for (const bool lists : {true, false}) {
      checkKernels(of, parametersOf(of, lists, [](Stream) { return true; }));
      checkKernels(of, parametersOf(of, lists, [](Stream i) { return i == 0; }));
      if (of.mode[0] == '0')
        checkKernels(of, parametersOf(of, lists, [](Stream i) { return i >= 2; }));
    }
}

TEST_CASE("values in a kernel, by hand") {
  Session *session = sessionOrSkip("native");
  REQUIRE(session);
  HostArray x(DType::F32, {2, 3});
  for (int64_t i = 0; i < 6; ++i)
    x.set(i, i < 3 ? 0 : 4);
  // (0-10)/sqrt(20+5)*24+1 = -47 and (4-10)/5*24+1 = -27.8; channel 1: (0-2)/sqrt(11+5)*2 = -1
  // and (4-2)/4*2 = 1; channel 2: (0-0)/sqrt(4+5)*3-1 = -1 and 4/3*3-1 = 3.
  const Spec spec = specOf("semantics: pytorch\ninput: {shape: [2, 3], layout: nc}\nepsilon: 5\n"
                           "parameters: {gamma: {value: [24, 2, 3]}, beta: {value: [1, 0, -1]}, "
                           "moving_mean: {value: [10, 2, 0]}, "
                           "moving_variance: {value: [20, 11, 4]}}\n");
  const HostArray y = TestKernel(spec, Phase::Inference, *session).run({}, {{"x", x}}).at("y");
  const double expected[] = {-47, -1, -1, -27.8, 1, 3};
  for (int64_t i = 0; i < 6; ++i)
    CHECK(y.get(i) == doctest::Approx(expected[i]).epsilon(1e-6));
}

TEST_CASE("operands are not mistaken for what is made of values") {
  for (const char *name : {"mean", "scale", "shift"})
    for (const bool lists : {true, false}) {
      const std::string more = fmt::format("fuse: [{{mul: {{axes: [c], name: {}}}}}]\n", name);
      const Folded of{"nhwc", "N, 3, 5, 12", "c", "0", {{"N", 2}}, 12, more.c_str()};
      checkKernels(of, parametersOf(of, lists, [](Stream) { return true; }));
    }
}

TEST_CASE("values are arguments where anything else is done with them") {
  const std::string text = "semantics: pytorch\ninput: {shape: [N, 2], layout: nc}\n"
                           "parameters: {gamma: {value: [1, 2]}, beta: {initializer: ones}}\n";
  for (const auto &[phases, folded] : {std::pair("", 1), std::pair("phases: [inference]\n", 1),
                                       std::pair("phases: [inference, initialize]\n", 0),
                                       std::pair("phases: [training, inference]\n", 0)}) {
    CAPTURE(phases);
    const Spec spec = specOf(text + phases);
    CHECK(foldedNames(spec).size() == static_cast<size_t>(folded));
    const Operator op = makeOperator(spec, Phase::Inference);
    CHECK((op.operand("gamma", false) >= 0) == (folded == 0));
    CHECK(op.operand("beta", false) >= 0); // drawn, not a value
  }
  // Kernels of other values are other kernels.
  auto textOf = [&](const char *gamma) {
    return canonicalText(
        specOf(fmt::format("semantics: pytorch\ninput: {{shape: [N, 2], layout: nc}}\n"
                           "parameters: {{gamma: {{value: {}}}}}\n",
                           gamma)));
  };
  CHECK(textOf("[1, 2]") == textOf("[1.0, 2]"));
  CHECK(textOf("[1, 2]") != textOf("[1, 3]"));
  CHECK(textOf("1") != textOf("2"));
}
