// A named batch: the sizes choose between a kernel's variants, and both are right. What takes too
// much stack is made with less.
#include "tests/numerics/KernelCase.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <set>

using namespace normforge;
using namespace normforge::test;

namespace {

struct Problem {
  const char *layout, *shape, *axis;
  const char *mode; ///< and what goes with it
};

const Problem problems[] = {
    {"nchw", "N, 3, 56, 56", "c", "0"},     {"nchw", "N, 5, 27, 29", "c", "2"},
    {"nhwc", "N, 7, 9, 31", "c", "0"},      {"nc", "N, 67", "c", "0"},
    {"nChw16c", "N, 19, 15, 15", "c", "0"}, {"nChw8c", "N, 16, 14, 14", "c", "2"},
};

std::string yaml(const Problem &problem, const char *dtype) {
  return fmt::format("name: variants\nsemantics: pytorch\ninput: {{shape: [{}], layout: {}, dtype: "
                     "{}}}\naxis: {}\nmode: {}\nphases: [inference, training]\n",
                     problem.shape, problem.layout, dtype, problem.axis, problem.mode);
}

} // namespace

TEST_CASE("the sizes choose the variant at its guard") {
  const std::string repeat = repeatCommand("the sizes choose the variant*");
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const Problem &problem : problems)
      for (const char *dtype : {"f32", "f64"}) {
        const std::string text = yaml(problem, dtype);
        INFO(repeat, " cpu ", std::string(cpu), "\n", text);
        try {
          const Spec spec = specOf(text);
          const TestKernel kernel(spec, Phase::Training, *session);
          const auto &variants = kernel.artifact().variants;
          REQUIRE(variants.size() >= 2);
          REQUIRE(variants.size() <= 4);
          CHECK(variants.front().schedule.find(" fused(") != std::string::npos);
          CHECK(variants.back().schedule.find(" merge(") != std::string::npos);
          CHECK(variants.back().guard.limit == INT64_MAX);
          std::set<int64_t> batches = {1};
          for (const Variant &variant : variants) {
            if (variant.guard.limit == INT64_MAX)
              continue;
            const std::vector<int64_t> one = {1}, two = {2};
            const int64_t slope =
                *variant.guard.value.evaluate(two) - *variant.guard.value.evaluate(one);
            REQUIRE(slope > 0);
            const int64_t last = variant.guard.limit / slope; // the largest batch that it takes
            REQUIRE(last >= 1);
            batches.insert({std::max<int64_t>(1, last - 1), last, last + 1, last + 2});
          }
          std::set<size_t> taken;
          for (int64_t n : batches) {
            const oracle::Sizes sizes = {{"N", n}};
            const std::vector<int64_t> values = {n};
            INFO("N=", n);
            size_t expected = 0;
            while (*variants[expected].guard.value.evaluate(values) >
                   variants[expected].guard.limit)
              ++expected;
            taken.insert(expected);
            CHECK(kernel.variantFor(sizes) == expected);
            const auto inputs = oracle::drawInputs(spec, Phase::Training, sizes, testSeed());
            const std::string wrong = wrongResults(kernel, spec, Phase::Training, sizes, inputs);
            CHECK_MESSAGE(wrong.empty(), wrong);
          }
          CHECK(taken.size() == variants.size()); // each is of use at some size
        } catch (const std::exception &error) {
          FAIL_CHECK(std::string(error.what()));
        }
      }
  }
}

TEST_CASE("a size of 0 does nothing in inference and is an error in training") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  for (const Problem &problem : problems) {
    const std::string text = yaml(problem, "f32");
    INFO(text);
    const Spec spec = specOf(text);
    const oracle::Sizes none = {{"N", 0}}, some = {{"N", 1}};
    const TestKernel inference(spec, Phase::Inference, *session);
    auto inputs = oracle::drawInputs(spec, Phase::Inference, some, testSeed());
    inputs.at("x") = HostArray(DType::F32, oracle::argumentShape(spec, "x", none));
    for (int threads : {0, 2}) {
      RunOptions options;
      options.threads = threads;
      CHECK(inference.run(none, inputs, {}, options).at("y").count() == 0);
    }
    const TestKernel training(spec, Phase::Training, *session);
    std::string message;
    try {
      training.variantFor(none);
    } catch (const std::exception &error) {
      message = error.what();
    }
    INFO(message);
    CHECK(message.find("N") != std::string::npos);
    CHECK(message.find("0") != std::string::npos);
  }
}

TEST_CASE("static sizes have one variant") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  for (const auto &[n, form] : {std::pair{2, " fused("}, std::pair{200, " merge("}}) {
    const TestKernel kernel(
        specOf(fmt::format("name: one\ninput: {{shape: [{}, 2, 64, 64], layout: nchw}}\naxis: c\n"
                           "phases: [training]\n",
                           n)),
        Phase::Training, *session);
    REQUIRE(kernel.artifact().variants.size() == 1);
    CHECK(kernel.artifact().variants[0].schedule.find(form) != std::string::npos);
  }
}

TEST_CASE("what is chosen and takes too much stack is made with less in flight") {
  Session *session = sessionOrSkip("x86-64-v4");
  if (!session)
    return;
  const char *yaml = "input: {shape: [D, 31], layout: dw, dtype: f16}\n"
                     "axis: [0]\n"
                     "phases: [backward]\n"
                     "prologue: [bias, {expr: \"log(1.5 + x * x) - erf(p) * sqrt(0.5 + abs(x))\",\n"
                     "  operands: {p: [0]}}, silu, tanh]\n"
                     "fuse: [relu, add]\n";
  auto spec = parseSpec(yaml, "dear.yaml");
  if (!spec)
    FAIL(llvm::toString(spec.takeError()));
  const Operator op = makeOperator(*spec, Phase::Backward);
  std::vector<ScheduleVariant> variants = selectSchedules(op, session->target());
  StagePlan &stage = variants.front().schedule.stages.front();
  stage.tile = stage.chunks[0] = 16; // some 17 KB
  REQUIRE(llvm::toString(checkSchedule(variants.front().schedule, op, session->target())) == "");

  variants.front().isGiven = true;
  CHECK(llvm::toString(session->compile(op, variants).takeError()).find("bytes of stack") !=
        std::string::npos);
  variants.front().isGiven = false;
  auto artifact = session->compile(op, variants);
  if (!artifact)
    FAIL(llvm::toString(artifact.takeError()));
  CHECK(artifact->variants.front().schedule != variants.front().schedule.text(op));
  CHECK(artifact->variants.front().reason.find("less in flight") != std::string::npos);
  auto object = session->compileObject({{op, variants, "dear"}}, /*withAssembly=*/false);
  if (!object)
    FAIL(llvm::toString(object.takeError()));
  for (size_t i = 0; i < variants.size(); ++i)
    CHECK(object->kernels.front().variants[i].schedule == artifact->variants[i].schedule);

  // Everything can be halved, down to nothing.
  Schedule schedule = variants.front().schedule;
  int halvings = 0;
  while (const auto less = withLessInFlight(schedule, op, session->target())) {
    schedule = *less;
    REQUIRE(llvm::toString(checkSchedule(schedule, op, session->target())) == "");
    REQUIRE(++halvings < 64);
  }
  for (const StagePlan &last : schedule.stages)
    CHECK(last.vector * last.tile * last.unroll == 1);
}

TEST_CASE("rows are not packed beside statistics that lie otherwise") {
  // With blocks of samples the data's lanes are the innermost, those of statistics follow the
  // blocks.
  const Spec spec = specOf("semantics: pytorch\ninput: {shape: [48, 49, 1, 1], layout: Ncdh4n}\n"
                           "axis: [1]\nmode: group\ngroups: 7\nphases: [backward]\n"
                           "prologue: [bias]\nfuse: [relu]\n");
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    CAPTURE(cpu);
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    const oracle::Arrays inputs = oracle::drawInputs(spec, Phase::Backward, {}, testSeed());
    CHECK(wrongResults(TestKernel(spec, Phase::Backward, *session), spec, Phase::Backward, {},
                       inputs) == "");
  }
}

TEST_CASE("a step of gamma is beside its own sums, where others have more loops") {
  const Spec spec = specOf("semantics: matlab\ninput: {shape: [7, 1, 67, 67], layout: cthd}\n"
                           "axis: [1]\nmode: rms\nphases: [training, backward+update]\n"
                           "optimizer: sgd\nfuse: [{add: {axes: [1, 2], name: f}}]\n");
  const Operator op = makeOperator(spec, Phase::BackwardUpdate);
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    CAPTURE(cpu);
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const ScheduleVariant &variant : selectSchedules(op, session->target()))
      CHECK(llvm::toString(checkSchedule(variant.schedule, op, session->target())) == "");
  }
}
