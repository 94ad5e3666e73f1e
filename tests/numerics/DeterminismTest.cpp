// The same bits whatever the threads, the split and order of the tasks, the buffers and their
// addresses.
#include "tests/numerics/KernelCase.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

/// Problems with tasks enough for four threads; sizes odd, so that buffers that end at a page's end
/// are aligned to an element and no more.
struct Problem {
  const char *layout, *shape, *axis;
  const char *mode; ///< and what goes with it
  const char *dtype, *fuse;
  oracle::Sizes sizes;
};

const Problem problems[] = {
    {"nchw", "N, 19, 57, 57", "c", "0", "f32", "[relu]", {{"N", 5}}},
    {"nchw", "N, 37, 7, 7", "c", "0", "f32", "[add, relu]", {{"N", 33}}},
    {"nchw", "N, 21, 13, 13", "c", "2", "f64", "[]", {{"N", 9}}},
    {"nhwc", "N, 15, 15, 67", "c", "0", "f32", "[add]", {{"N", 11}}},
    {"nhwc", "N, 9, 9, 200", "c", "0", "f32", "[add, relu]", {{"N", 5}}},
    {"nhwc", "N, 29, 29, 3", "c", "0", "f64", "[relu]", {{"N", 5}}},
    {"nc", "N, 129", "c", "0", "f32", "[]", {{"N", 1237}}},
    {"cn", "131, N", "c", "0", "f32", "[relu, add]", {{"N", 1001}}},
    {"ntc", "N, 37, 77", "c", "1", "f32", "[]", {{"N", 7}}},
    {"nchw", "N, 5, 31, 33", "[c, h, w]", "1", "f32", "[add]", {{"N", 9}}},
    {"nchw", "N, 21, 17, 9", "c", "1", "f32", "[]", {{"N", 5}}},
    {"nChw16c", "N, 45, 13, 17", "c", "0", "f32", "[relu]", {{"N", 7}}},
    {"nChw8c", "N, 27, 13, 17", "c", "0", "f64", "[add]", {{"N", 7}}},
    {"nhwc", "N, 57, 57, 35", "c", "group\ngroups: 7", "f32", "[silu]", {{"N", 5}}},
    {"nChw8c", "N, 35, 57, 17", "c", "group\ngroups: 7", "f32", "[]", {{"N", 3}}},
};

std::string yaml(const Problem &problem, Phase phase) {
  return fmt::format("name: determinism\nsemantics: pytorch\ninput: {{shape: [{}], layout: {}, "
                     "dtype: {}}}\naxis: {}\nmode: {}\nphases: [{}]\nfuse: {}\n",
                     problem.shape, problem.layout, problem.dtype, problem.axis, problem.mode,
                     toString(phase), problem.fuse);
}

/// Other legal cuts of the same work: rows and chunks of other lengths than the heuristic's.
std::vector<ScheduleVariant> recut(const Operator &op, const std::vector<ScheduleVariant> &given) {
  std::vector<ScheduleVariant> result;
  for (const ScheduleVariant &variant : given) {
    Schedule schedule = variant.schedule;
    auto shrink = [&](StagePlan &stage) {
      const std::vector<bool> kept = keptLoops(op, stage);
      for (size_t i = 0; i < stage.chunks.size(); ++i) {
        auto &chunk = stage.chunks[i];
        if (kept[i] || chunk == 0)
          continue;
        chunk = i + 1 == stage.chunks.size() ? stage.vector * stage.unroll : 2;
      }
      if (stage.tiled >= 0 && stage.chunks[static_cast<size_t>(stage.tiled)] > 0)
        stage.chunks[static_cast<size_t>(stage.tiled)] = stage.tile;
    };
    for (StagePlan &stage : schedule.stages) {
      if (stage.merges() && stage.tiled >= 0)
        stage.chunks[static_cast<size_t>(stage.tiled)] = stage.tile = stage.vector;
      // A fused stage stays as it is: it needs its whole group.
      else if (!stage.merges() && op.isWhole(op.steps[stage.steps.front().step]) &&
               (schedule.stages.size() > 1 || !op.reduces()))
        shrink(stage);
    }
    result.push_back(always(schedule));
  }
  return result;
}

/// Runs one kernel in every way that must not change a bit.
void checkSameBits(const TestKernel &kernel, const Problem &problem, const Spec &spec,
                   Phase phase) {
  const auto inputs = oracle::drawInputs(spec, phase, problem.sizes, testSeed());
  const auto expected = kernel.run(problem.sizes, inputs);
  const std::string wrong = disagreement(spec, phase, problem.sizes, inputs, expected);
  CHECK_MESSAGE(wrong.empty(), wrong);
  auto same = [&](const RunOptions &options, const std::string &what) {
    CHECK_MESSAGE(sameBits(expected, kernel.run(problem.sizes, inputs, {}, options)), what);
  };
  for (int threads : {1, 2, 3, 4, 7, 16}) {
    RunOptions options;
    options.threads = threads;
    INFO(threads, " threads");
    same(options, "other bits with threads");
  }
  std::mt19937_64 random(testSeed());
  for (int threads : {1, 3}) {
    RunOptions options;
    options.split = &random;
    options.threads = threads;
    same(options, "other bits with another split of the tasks");
  }
  RunOptions aligned;
  aligned.guard = GuardedBuffer::Guard::Before; // at a page's start; otherwise at a page's end
  same(aligned, "other bits at other addresses");
  RunOptions inPlace;
  inPlace.split = &random;
  inPlace.threads = 2;
  for (size_t i : {0, 1}) {
    inPlace.inPlace = i;
    same(inPlace, "other bits in the buffers of inputs");
  }
}

void checkAll(const char *cpu, const std::string &repeat) {
  Session *session = sessionOrSkip(cpu);
  if (!session)
    return;
  int fused = 0, split = 0;
  for (const Problem &problem : problems)
    for (Phase phase : {Phase::Inference, Phase::Training, Phase::Backward}) {
      const std::string text = yaml(problem, phase);
      INFO(repeat, " cpu ", std::string(cpu), " ", describeSizes(problem.sizes), "\n", text);
      try {
        const Spec spec = specOf(text);
        const Operator op = makeOperator(spec, phase);
        auto variants = forms(op, session->target());
        for (const auto &variant :
             phase == Phase::Backward ? std::vector<ScheduleVariant>() : recut(op, variants))
          if (std::none_of(variants.begin(), variants.end(), [&](const ScheduleVariant &v) {
                return v.schedule.text(op) == variant.schedule.text(op);
              }))
            variants.push_back(variant);
        for (const ScheduleVariant &variant : variants) {
          INFO(variant.schedule.text(op));
          fused += op.reduces() && variant.schedule.stages.size() == 1;
          split += variant.schedule.stages.size() > 1;
          checkSameBits(TestKernel(op, variant, *session), problem, spec, phase);
        }
      } catch (const std::exception &error) {
        FAIL_CHECK(std::string(error.what()));
      }
    }
  CHECK(fused > 0);
  CHECK(split > 0);
}

} // namespace

TEST_CASE("determinism: this machine") {
  checkAll("native", repeatCommand("determinism: this machine"));
}

TEST_CASE("determinism: haswell") { checkAll("haswell", repeatCommand("determinism: haswell")); }
TEST_CASE("determinism: x86-64-v2") {
  checkAll("x86-64-v2", repeatCommand("determinism: x86-64-v2"));
}
