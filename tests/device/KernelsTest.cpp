// Kernels as their assembly's text, launched through the driver: what they give has the bits of the
// emulated ones, NaN apart.
#include "tests/device/Launch.h"
#include "tests/numerics/KernelCase.h"
#include "tests/numerics/SpecDraw.h"

#include <cmath>
#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

/// Where two results differ, NaN apart; empty: nowhere.
std::string difference(const oracle::Arrays &a, const oracle::Arrays &b) {
  for (const auto &[name, array] : a) {
    const HostArray &other = b.at(name);
    const size_t bytes = byteSize(array.dtype);
    for (size_t i = 0; i * bytes < array.bytes.size(); ++i) {
      uint64_t x = 0, y = 0;
      std::memcpy(&x, array.bytes.data() + i * bytes, bytes);
      std::memcpy(&y, other.bytes.data() + i * bytes, bytes);
      const bool areNan = array.dtype != DType::Bit && std::isnan(array.get(int64_t(i))) &&
                          std::isnan(other.get(int64_t(i)));
      if (x != y && !areNan)
        return fmt::format("{}[{}]: {:x} emulated, {:x} launched", name, i, x, y);
    }
  }
  return {};
}

/// One spec in all its phases.
void checkLaunches(const std::string &yaml, const oracle::Sizes &sizes, const std::string &cpu,
                   uint64_t seed, oracle::Data data = oracle::Data::Normal) {
  const oracle::Numbers &scalars = drawnScalars();
  auto spec = parseSpec(yaml, "launched.yaml");
  if (!spec)
    FAIL(llvm::toString(spec.takeError()));
  std::string whyNot;
  Session *emulated = TestKernel::session(cpu, whyNot);
  if (!emulated) {
    MESSAGE("SKIP: ", whyNot);
    return;
  }
  for (Phase phase : spec->phases) {
    INFO("NORMFORGE_TEST_SEED=", testSeed(), " ", cpu, " phase ", std::string(toString(phase)), " ",
         describeSizes(sizes), "\n", yaml);
    try {
      const Operator op = makeOperator(*spec, phase);
      for (const ScheduleVariant &variant : selectSchedules(op, emulated->target()))
        for (const Schedule &schedule : {variant.schedule, withScalarLanes(variant, op).schedule})
          CHECK_MESSAGE(llvm::toString(checkSchedule(schedule, op, emulated->target())) == "",
                        schedule.text(op));
      const oracle::Arrays inputs = oracle::drawInputs(*spec, phase, sizes, seed, data, scalars);
      const oracle::Arrays expected =
          TestKernel(*spec, phase, *emulated).run(sizes, inputs, scalars);
      CHECK(difference(expected, launch(*spec, phase, cpu, sizes, inputs, scalars, 0, false)) ==
            "");
      CHECK(difference(expected, launch(*spec, phase, cpu, sizes, inputs, scalars, 0, true)) == "");
      // Single elements at a time: sums in another order.
      CHECK(disagreement(*spec, phase, sizes, inputs,
                         launch(*spec, phase, cpu, sizes, inputs, scalars, 1, false),
                         scalars) == "");
    } catch (const std::exception &error) {
      FAIL_CHECK(std::string(error.what()));
    }
  }
}

} // namespace

/// Elements that are interpreted in a second or two.
static constexpr int64_t kMostElements = 6000;

TEST_CASE("the runtime knows the GPUs that the compiler does") {
  std::vector<std::string> names;
  for (int capability : cudaCapabilities)
    names.push_back(fmt::format("sm_{}", capability));
  CHECK(names == compilableGpus());
}

TEST_CASE("launched kernels have the emulated ones' bits: random specs") {
  const CudaContext context;
  const char *one = std::getenv("NORMFORGE_TEST_ONLY");
  const int first = one ? std::atoi(one) : 0, last = one ? first + 1 : 40;
  for (int i = first; i < last; ++i) {
    SpecDraw draw(testSeed() * 1000003 + static_cast<uint64_t>(i));
    const DrawnSpec drawn = draw.draw();
    INFO("NORMFORGE_TEST_ONLY=", i);
    int64_t elements = 1;
    for (const DrawnAxis &axis : drawn.axes)
      elements *= axis.size;
    if (!one && elements > kMostElements)
      continue;
    checkLaunches(drawn.yaml(), drawn.sizes(), i % 2 ? "sm_90" : "sm_80",
                  testSeed() + static_cast<uint64_t>(i));
  }
}

TEST_CASE("launched kernels have the emulated ones' bits: groups of all kinds") {
  const CudaContext context;
  const std::string phases = "phases: [inference, training, backward]\n";
  for (const char *dtype : {"f32", "bf16", "f16", "f64"}) {
    const std::string type = std::string(", dtype: ") + dtype + "}\n";
    const uint64_t seed = testSeed();
    // Rows of a subgroup, of a block and of 1024 threads.
    checkLaunches("mode: layer\naxis: c\ninput: {shape: [N, 256], layout: nc" + type + phases,
                  {{"N", 5}}, "sm_90", seed);
    checkLaunches("mode: rms\naxis: c\ninput: {shape: [N, 6144], layout: nc" + type + phases,
                  {{"N", 3}}, "sm_90", seed);
    // Columns in partials, and rows with threads one under the other.
    checkLaunches("axis: c\ninput: {shape: [N, 9, 9, 24], layout: nhwc" + type + phases, {{"N", 7}},
                  "sm_90", seed);
    checkLaunches("axis: c\ninput: {shape: [N, 6, 8, 12], layout: nchw" + type + phases, {{"N", 9}},
                  "sm_90", seed);
    checkLaunches("mode: group\ngroups: 4\naxis: c\ninput: {shape: [N, 16, 7, 5], layout: nchw" +
                      type + phases,
                  {{"N", 2}}, "sm_80", seed);
    // Bits of a mask, of rows and of columns.
    const std::string masked = "mask: true\nfuse: [relu]\n";
    checkLaunches("axis: c\ninput: {shape: [N, 6, 5, 7], layout: nchw" + type + masked + phases,
                  {{"N", 4}}, "sm_90", seed);
    checkLaunches("axis: c\ninput: {shape: [N, 5, 7, 24], layout: nhwc" + type + masked + phases,
                  {{"N", 6}}, "sm_80", seed);
    // Padded blocks are not cut.
    checkLaunches("mode: group\ngroups: 1\naxis: t\ninput: {shape: [31, C, W, 1, T, 1], "
                  "layout: Hcwntd32h" +
                      type + phases,
                  {{"C", 40}, {"W", 1}, {"T", 1}}, "sm_90", seed);
  }
}

TEST_CASE("launched kernels have the emulated ones' bits: denormal and large numbers") {
  const CudaContext context;
  for (oracle::Data data : {oracle::Data::Denormal, oracle::Data::Large, oracle::Data::Outlier})
    checkLaunches("mode: layer\naxis: c\ninput: {shape: [N, 96], layout: nc, dtype: f32}\n"
                  "fuse: [mish, {clamp: [-1, 2]}]\nphases: [inference, training]\n",
                  {{"N", 4}}, "sm_90", testSeed(), data);
}

TEST_CASE("arrays are loaded as often as explain says, and stored once") {
  const CudaContext context;
  const std::string phases = "phases: [inference, training, backward]\n";
  struct Row {
    const char *yaml;
    oracle::Sizes sizes;
  };
  const Row rows[] = {
      // Held: part of a subgroup, some subgroups, more than registers have.
      {"mode: layer\naxis: c\ninput: {shape: [N, 96], layout: nc, dtype: f32}\n", {{"N", 5}}},
      {"mode: rms\naxis: c\ninput: {shape: [N, 1000], layout: nc, dtype: bf16}\n", {{"N", 3}}},
      {"mode: layer\naxis: c\ninput: {shape: [300, 40], layout: nc, dtype: f16}\nfuse: [add]\n",
       {}},
      {"mode: instance\naxis: c\ninput: {shape: [2, 3, 9, 8], layout: nchw, dtype: f32}\n", {}},
      // Of as many rows as there are.
      {"axis: c\ninput: {shape: [N, 4, 6, 6], layout: nchw, dtype: f32}\n", {{"N", 300}}},
      {"axis: c\ninput: {shape: [N, 4, 6, 6], layout: nchw, dtype: f32}\n", {{"N", 7}}},
      // Columns.
      {"axis: c\ninput: {shape: [N, 5, 7, 24], layout: nhwc, dtype: f64}\n", {{"N", 6}}},
      {"axis: c\nfuse: [relu]\ninput: {shape: [9, 5, 7, 16], layout: nhwc, dtype: bf16}\n", {}},
  };
  for (const Row &row : rows) {
    auto spec = parseSpec(row.yaml + phases, "loads.yaml");
    if (!spec)
      FAIL(llvm::toString(spec.takeError()));
    for (Phase phase : spec->phases) {
      INFO(std::string(toString(phase)), " ", describeSizes(row.sizes), "\n", row.yaml);
      const Operator op = makeOperator(*spec, phase);
      const std::vector<int64_t> sizes = [&] {
        std::vector<int64_t> values;
        for (const std::string &name : op.sizes)
          values.push_back(row.sizes.at(name));
        return values;
      }();
      const auto variants = selectSchedules(op, *describeTarget("sm_90"));
      const auto taken = std::ranges::find_if(
          variants, [&](const ScheduleVariant &variant) { return variant.guard.holds(sizes); });
      REQUIRE(taken != variants.end());
      std::map<std::string, std::pair<int, int>> expected; // at least, at most
      for (size_t i = 0; i < taken->schedule.stages.size(); ++i)
        for (const Loads &loads :
             loadsOf(op, taken->schedule.stages[i], stageLoops(op, taken->schedule, i))) {
          expected[loads.array->name].first += loads.ofAll;
          expected[loads.array->name].second += loads.ofAll + loads.beyondHeld;
        }
      Traffic traffic;
      launch(*spec, phase, "sm_90", row.sizes,
             oracle::drawInputs(*spec, phase, row.sizes, testSeed(), oracle::Data::Normal,
                                drawnScalars()),
             drawnScalars(), 0, false, {}, &traffic);
      if (traffic.empty()) {
        MESSAGE("SKIP: the driver counts no bytes");
        return;
      }
      for (const Operand &operand : op.operands) {
        if (!op.isWhole(operand))
          continue;
        INFO(operand.name, " ", taken->schedule.text(op));
        const auto bytes = static_cast<uint64_t>(*operand.bytes().evaluate(sizes));
        const auto [loaded, stored] = traffic.at(operand.name);
        CHECK(stored == (operand.written ? bytes : 0));
        CHECK(loaded >= bytes * static_cast<uint64_t>(expected[operand.name].first));
        CHECK(loaded <= bytes * static_cast<uint64_t>(expected[operand.name].second));
      }
    }
  }
}
