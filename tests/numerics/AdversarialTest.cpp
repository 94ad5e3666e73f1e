// Data that a naive variance, a flushed denormal or a rounded mean would not survive.
#include "tests/numerics/PropertyCase.h"

#include <cmath>
#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

const Problem problems[] = {
    {"nchw", "N, 5, 7, 7", "c", "0", {{"N", 3}}},
    {"nchw", "N, 3, 56, 56", "c", "0", {{"N", 8}}},
    {"nchw", "N, 4, 1, 1", "c", "0", {{"N", 1}}}, // one element a group
    {"nhwc", "N, 14, 14, 37", "c", "0", {{"N", 6}}},
    {"nc", "N, 67", "c", "2", {{"N", 120}}},
    {"nc", "N, 67", "c", "0", {{"N", 5000}}},
    {"nc", "N, 3", "c", "2", {{"N", 2700}}}, // long columns, few of them
    {"nwc", "N, 50, 5", "c", "0", {{"N", 2000}}},
    {"nc", "1200, 16", "c", "0", {}},                    // one long sum a lane
    {"nc", "N, C", "c", "0", {{"N", 10392}, {"C", 44}}}, // the columns are not known either
    {"nCw16c", "50, 65, 24", "c", "0", {}},              // two loops of one sum
    {"ntc", "N, 9, 768", "c", "1", {{"N", 3}}},
    {"nChw16c", "N, 21, 9, 9", "c", "0", {{"N", 5}}},
    {"nchw", "N, 6, 56, 56", "c", "instance", {{"N", 2}}},
    {"nchw", "N, 30, 27, 29", "c", "group\ngroups: 5", {{"N", 2}}},
    {"nhwc", "N, 27, 29, 30", "c", "group\ngroups: 5", {{"N", 2}}},
    {"nhwc", "N, 3, 2, C", "c", "group\ngroups: 2", {{"N", 5}, {"C", 2000}}}, // many channels
    {"nChw16c", "N, 35, 9, 9", "c", "group\ngroups: 7", {{"N", 5}}},
    {"ntc", "N, 9, 768", "c", "rms", {{"N", 3}}},
};

} // namespace

TEST_CASE("squares that f32 cannot hold: beta of an infinite variance, or accumulate: f64") {
  for (const char *cpu : {"native", "haswell", "x86-64-v2"})
    for (const char *accumulate : {"f32", "f64"})
      for (const char *input : {"[2, 2], layout: nc", "[2, 3, 700], layout: ntc"}) {
        Session *session = sessionOrSkip(cpu);
        if (!session)
          continue;
        const Spec spec = specOf(fmt::format(
            "semantics: pytorch\ninput: {{shape: {}}}\naxis: c\nmode: layer\naccumulate: {}\n"
            "phases: [training]\n",
            input, accumulate));
        auto inputs =
            oracle::drawInputs(spec, Phase::Training, {}, testSeed(), oracle::Data::Large);
        for (int64_t i = 0; i < inputs.at("x").count(); ++i) // 3.24e38 each
          inputs.at("x").set(i, i % 2 ? -1.8e19 : 1.8e19);
        const TestKernel kernel(spec, Phase::Training, *session);
        const auto outputs = kernel.run({}, inputs);
        CHECK(disagreement(spec, Phase::Training, {}, inputs, outputs, {}) == "");
        const HostArray &y = outputs.at("y"), &gamma = inputs.at("gamma"),
                        &beta = inputs.at("beta");
        for (int64_t i = 0; i < y.count(); ++i) {
          const double b = beta.get(i % beta.count()), g = gamma.get(i % beta.count());
          const double exact = b + (i % 2 ? -g : g);
          CHECK(std::abs(y.get(i) - (std::string_view(accumulate) == "f32" ? b : exact)) <= 1e-6);
        }
        for (int64_t i = 0; i < outputs.at("batch_variance").count(); ++i)
          CHECK(std::isinf(outputs.at("batch_variance").get(i)) ==
                (std::string_view(accumulate) == "f32"));
      }
}

TEST_CASE("what an infinite error reaches is not held to none behind functions that clip") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  for (const char *fuse : {"relu", "relu6", "hard_sigmoid", "{expr: \"max(x, 0)\"}", "add, relu"}) {
    const Spec spec =
        specOf(fmt::format("semantics: pytorch\ninput: {{shape: [9, 40], layout: nc}}\n"
                           "axis: c\nphases: [training]\nfuse: [{}]\n",
                           fuse));
    INFO(repeatCommand("what an infinite error*"), " ", std::string(fuse));
    const auto inputs =
        oracle::drawInputs(spec, Phase::Training, {}, testSeed(), oracle::Data::Large);
    const auto outputs = TestKernel(spec, Phase::Training, *session).run({}, inputs);
    CHECK(disagreement(spec, Phase::Training, {}, inputs, outputs, {}) == "");
  }
}

TEST_CASE("adversarial data agree with the reference") {
  const std::string repeat = repeatCommand("adversarial data agree with the reference");
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const Problem &problem : problems)
      for (const char *dtype : {"f32", "f64"})
        for (Phase phase : {Phase::Inference, Phase::Training}) {
          const std::string text = fmt::format(
              "name: adversarial\nsemantics: onnx-15\ninput: {{shape: [{}], layout: {}, dtype: "
              "{}}}\naxis: {}\nmode: {}\nphases: [{}]\n",
              problem.shape, problem.layout, dtype, problem.axis, problem.mode, toString(phase));
          try {
            const Spec spec = specOf(text);
            const Operator op = makeOperator(spec, phase);
            // Both forms, each at a size that its guard allows: a fused kernel's running sums are
            // as long as the group.
            std::vector<int64_t> sizes;
            for (const std::string &name : op.sizes)
              sizes.push_back(problem.sizes.at(name));
            for (const ScheduleVariant &variant : selectSchedules(op, session->target())) {
              if (!variant.guard.holds(sizes))
                continue;
              const TestKernel kernel(op, always(variant.schedule), *session);
              using oracle::Data;
              for (Data data :
                   {Data::Offset, Data::Constant, Data::Outlier, Data::Denormal, Data::Large}) {
                INFO(repeat, " cpu ", std::string(cpu), " data ",
                     std::string(oracle::toString(data)), " ", describeSizes(problem.sizes), "\n",
                     variant.schedule.text(op), "\n", text);
                const auto inputs =
                    oracle::drawInputs(spec, phase, problem.sizes, testSeed(), data);
                const std::string wrong = wrongResults(kernel, spec, phase, problem.sizes, inputs);
                CHECK_MESSAGE(wrong.empty(), wrong);
              }
            }
          } catch (const std::exception &error) {
            FAIL_CHECK(repeat << "\n" << text << error.what());
          }
        }
  }
}
