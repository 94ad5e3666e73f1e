// The loop nest of an operator, and the schedules chosen for it.
#include "compiler/schedule/Schedule.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

using namespace normforge;

namespace {

Operator operatorOf(const std::string &input, const std::string &axis, int mode = 0,
                    Phase phase = Phase::Training, const std::string &more = "") {
  auto spec =
      parseSpec(fmt::format("name: test\nsemantics: pytorch\ninput: {{{}}}\naxis: {}\nmode: "
                            "{}\nphases: [inference, training, backward]\n{}",
                            input, axis, mode, more),
                "test.yaml");
  if (!spec)
    FAIL(llvm::toString(spec.takeError()));
  return makeOperator(*spec, phase);
}

/// "n(N) C(4)*p": the loops of a stage, kept ones with a star, those of gamma with a p.
std::string loopsText(const Operator &op, std::span<const StageLoop> loops) {
  std::string text;
  const Operand &gamma = op.operands[static_cast<size_t>(op.operand("gamma", false))];
  for (const StageLoop &loop : loops)
    text += fmt::format("{}{}({}){}{}", text.empty() ? "" : " ", loop.name,
                        loop.size.text(op.sizes), loop.kept ? "*" : "",
                        std::count(gamma.loops.begin(), gamma.loops.end(), loop.loop) ? "p" : "");
  return text;
}

/// The loops of a stage that merges nothing.
std::vector<StageLoop> plainLoops(const Operator &op) {
  Schedule schedule;
  schedule.stages.resize(1);
  for (uint32_t i = 0; i < op.steps.size(); ++i)
    schedule.stages[0].steps.push_back({i, Part::Whole});
  return stageLoops(op, schedule, 0);
}

std::string loopsOf(const std::string &input, const std::string &axis, int mode = 0) {
  const Operator op = operatorOf(input, axis, mode);
  return loopsText(op, plainLoops(op));
}

TargetDescription targetOf(const char *cpu) {
  auto target = describeTarget(cpu);
  if (!target)
    FAIL(llvm::toString(target.takeError()));
  return *target;
}

} // namespace

TEST_CASE("adjacent axes of one kind are one loop") {
  struct Row {
    const char *input, *axis;
    int mode;
    const char *loops;
  };
  const Row rows[] = {
      {"shape: [4, 64, 7, 9], layout: nchw", "c", 0, "n(4) c(64)*p hw(63)"},
      {"shape: [N, 64, 7, 9], layout: nchw", "c", 0, "n(N) c(64)*p hw(63)"},
      {"shape: [N, 64, H, W], layout: nchw", "c", 0, "n(N) c(64)*p hw(H * W)"},
      {"shape: [4, 7, 9, 64], layout: nhwc", "c", 0, "nhw(252) c(64)*p"},
      {"shape: [N, 7, 9, 64], layout: nhwc", "c", 2, "nhw(N * 63) c(64)*p"},
      {"shape: [2, 3, 4, 5, 6], layout: ncdhw", "[c, d]", 0, "n(2) cd(12)*p hw(30)"},
      {"shape: [2, 3, 4, 5], layout: nchw", "[n, h]", 0, "n(2)*p c(3) h(4)*p w(5)"},
      // Axes of size 1 are dropped as long as a loop of their kind remains.
      {"shape: [1, 64, 1, 9], layout: nchw", "c", 0, "c(64)*p w(9)"},
      {"shape: [5, 1, 7], layout: ncw", "c", 0, "c(1)*p nw(35)"},
      {"shape: [5, 7, 1], layout: nwc", "c", 0, "c(1)*p nw(35)"},
      {"shape: [5, 1, 7], layout: ncw", "[n, c]", 0, "n(5)*p w(7)"},
      {"shape: [1, 64], layout: nc", "c", 0, "n(1) c(64)*p"},
      // Mode 1: statistics for every index of the other axes, parameters along the reduced ones.
      {"shape: [2, 3, 5], layout: ntc", "c", 1, "nt(6)* c(5)p"},
      {"shape: [2, 3, 5, 7], layout: nchw", "[c, h, w]", 1, "n(2)* chw(105)p"},
      {"shape: [2, 3, 5], layout: ncw", "c", 1, "n(2)* c(3)p w(5)*"},
      {"shape: [9], layout: c", "c", 1, "c(9)p"},
      // A blocked axis is two loops that merge with nothing.
      {"shape: [2, 40, 3, 5], layout: nChw16c", "c", 0, "n(2) C(3)*p hw(15) c(16)*p"},
      // But where nothing lies between them.
      {"shape: [N, 48, 1, 1], layout: nChw16c", "c", 0, "n(N) c(48)*p"},
      {"shape: [N, 40, 1, 1], layout: nChw16c", "c", 0, "n(N) C(3)*p c(16)*p"},
      {"shape: [2, 40, 3, 5], layout: nChw8c", "[n, h]", 0, "n(2)*p C(5) h(3)*p w(5) c(8)"},
  };
  for (const Row &row : rows) {
    INFO(std::string(row.input), " axis ", std::string(row.axis), " mode ", row.mode);
    CHECK(loopsOf(row.input, row.axis, row.mode) == row.loops);
  }
}

TEST_CASE("a blocked axis") {
  const Operator padded = operatorOf("shape: [N, 40, 3, 5], layout: nChw16c", "c");
  REQUIRE(padded.blocked);
  CHECK(padded.blocked->outer == 1);
  CHECK(padded.blocked->inner == 3);
  CHECK(padded.blocked->block == 16);
  CHECK(padded.blocked->padded);
  const std::vector<int64_t> four = {4};
  CHECK(padded.groupSize.evaluate(four) == 4 * 15);
  CHECK(padded.elements.evaluate(four) == 4 * 48 * 15);
  CHECK(padded.statistics().evaluate(four) == 48);
  CHECK_FALSE(operatorOf("shape: [N, 32, 3, 5], layout: nChw16c", "c").blocked->padded);
  CHECK(operatorOf("shape: [N, C, 3, 5], layout: nChw16c", "c").blocked->padded);
}

TEST_CASE("arguments and their aliases") {
  const Operator op =
      operatorOf("shape: [N, 8, 3], layout: ncw", "c", 0, Phase::Training, "fuse: [add]\n");
  std::string text;
  for (const Operand &argument : op.operands) {
    text += fmt::format("{}{}", argument.name, argument.written ? "'" : "");
    for (uint32_t alias : argument.mayAlias)
      text += fmt::format("={}", alias);
    text += " ";
  }
  CHECK(text == "x gamma beta moving_mean moving_variance addend y'=0=5 moving_mean'=3 "
                "moving_variance'=4 batch_mean' batch_variance' ");
}

TEST_CASE("bits are kept where backward need not read an operand of x's shape for them") {
  // The shape of the bits, or nothing.
  auto bitsOf = [](const std::string &more, const std::string &input) -> std::string {
    auto spec = parseSpec("name: test\nsemantics: pytorch\ninput: {" + input + "}\n" + more, "");
    if (!spec)
      FAIL(llvm::toString(spec.takeError()));
    std::string text;
    for (Phase phase : spec->phases) {
      const Operator op = makeOperator(*spec, phase);
      std::vector<std::string> shapes; // of bits, read or written
      for (const Operand &operand : op.operands)
        if (operand.isBits()) {
          CHECK((operand.role == Role::Mask));
          CHECK(operand.written == (phase == Phase::Training));
          std::vector<std::string> sizes;
          for (const SizeExpr &size : operand.shape)
            sizes.push_back(size.text(op.sizes));
          shapes.push_back(fmt::format("{}", fmt::join(sizes, ", ")));
        }
      CHECK(shapes.size() <= 1);
      if (phase == Phase::Inference) {
        CHECK(shapes.empty());
        continue;
      }
      if (!text.empty() && !shapes.empty())
        CHECK(text == shapes[0]); // of training, and of backward
      if (!shapes.empty())
        text = shapes[0];
    }
    return text;
  };
  const std::string all = "phases: [inference, training, backward]\n";
  const std::string nhwc = "shape: [N, 5, 7, 20], layout: nhwc", c = "axis: c\n";
  CHECK(bitsOf(all + c + "fuse: [add, relu]\n", nhwc) == "N, 5, 7, 32");
  CHECK(bitsOf(all + c + "fuse: [add, relu]\n", "shape: [N, 20, 7, 7], layout: nchw") ==
        "N, 20, 64");
  CHECK(bitsOf(all + c + "fuse: [add, relu]\n", "shape: [N, 20, 7, 7], layout: nChw8c") ==
        "N, 3, 7, 7, 16");
  CHECK(bitsOf(all + "mode: layer\naxis: [c, h, w]\nfuse: [add, relu]\n",
               "shape: [N, 4, 3, 3], layout: nchw") == "N, 48");
  CHECK(bitsOf(all + c + "fuse: [gelu, {add: {axes: [c], name: s}}, add, relu6]\n", nhwc) ==
        "N, 5, 7, 32");
  CHECK(bitsOf(all + c + "mode: group\ngroups: 4\nfuse: [add, relu]\n",
               "shape: [N, 20, 7, 7], layout: nchw") == "N, 20, 64");
  for (const std::string &more :
       {all + c + "fuse: [relu]\n",                              // x is read in any case
        all + c + "fuse: [{add: {axes: [c], name: s}}, relu]\n", // and so is less than x
        all + c + "fuse: [add, silu]\n",                         // no bit decides
        all + c + "fuse: [mul, relu]\n",                         // the factor is needed
        all + c + "fuse: [relu, add]\n", all + c + "fuse: [add, relu6, relu]\n", // two decide

        all + c + "backward_statistics: moving\nfuse: [add, relu]\n",
        "phases: [training]\n" + c + "fuse: [add, relu]\n",
        "phases: [inference, backward]\n" + c + "fuse: [add, relu]\n"}) {
    INFO(more);
    CHECK(bitsOf(more, nhwc).empty());
  }
  // Training's innermost loop is n, backward's the one of size 1 that sums of channels go over.
  CHECK(bitsOf(all + "axis: [0]\nmode: group\ngroups: 3\nfuse: [add, relu]\n",
               "shape: [33, N, 1, 1], layout: dnht")
            .empty());
}

TEST_CASE("no task takes part of a word of bits") {
  auto spec =
      parseSpec("name: test\nsemantics: pytorch\ninput: {shape: [N, 5, 7, 40], layout: nhwc}\n"
                "axis: c\nfuse: [add, relu]\nphases: [training, backward]\n",
                "");
  REQUIRE(static_cast<bool>(spec));
  for (const char *cpu : {"znver4", "haswell", "x86-64-v2", "neoverse-v1"}) {
    const TargetDescription target = targetOf(cpu);
    for (Phase phase : spec->phases) {
      const Operator op = makeOperator(*spec, phase);
      Schedule schedule = scheduleForms(op, target).front();
      CHECK(schedule.scalable == 0);
      CHECK(llvm::toString(checkSchedule(schedule, op, target)) == "");
      StagePlan &stage = schedule.stages.front();
      stage.tile = stage.vector = 4;
      stage.chunks.back() = 24;
      CHECK(llvm::toString(checkSchedule(schedule, op, target))
                .find("a task takes 24 of loop c, of which a step has bits; expected a multiple of "
                      "16, or all") != std::string::npos);
    }
  }
}

TEST_CASE("task counts are products of rounded-up quotients") {
  const Operator op = operatorOf("shape: [N, 64, 7, 9], layout: nchw", "c");
  StagePlan stage;
  stage.chunks = {3, 4, 0};
  const SizeExpr tasks = taskCount(plainLoops(op), stage);
  for (int64_t n : {1, 2, 3, 4, 6, 7, 100}) {
    const std::vector<int64_t> sizes = {n};
    CHECK(tasks.evaluate(sizes) == (n + 2) / 3 * 16);
  }
  stage.chunks = {0, 0, 0};
  CHECK(taskCount(plainLoops(op), stage).constant() == 1);
  stage.chunks = {0, 5, 10};
  CHECK(taskCount(plainLoops(op), stage).constant() == 13 * 7);
}

TEST_CASE("the merge loops over the chunks and the kept loops") {
  const Operator op = operatorOf("shape: [N, 64, 7, 9], layout: nchw", "c");
  Schedule schedule;
  schedule.stages.resize(2);
  schedule.stages[0].steps = {{0, Part::Partial}};
  schedule.stages[0].chunks = {3, 1, 0};
  schedule.stages[1].steps = {{0, Part::Merge}};
  CHECK(loopsText(op, stageLoops(op, schedule, 1)) == "n(ceil(N / 3)) c(64)*p");
  schedule.stages[0].chunks = {3, 1, 32};
  CHECK(loopsText(op, stageLoops(op, schedule, 1)) == "n(ceil(N / 3)) hw(2) c(64)*p");
}

TEST_CASE("the loop that a tile covers") {
  auto tile = [](const char *input, const char *axis, int mode = 0) {
    return tileLoop(plainLoops(operatorOf(input, axis, mode)));
  };
  CHECK(tile("shape: [2, 3, 5], layout: ncw", "c") == 1);
  CHECK(tile("shape: [2, 5, 3], layout: nwc", "c") == 1);
  CHECK(tile("shape: [2, 40, 5], layout: nCw8c", "c") == 3);
  CHECK(tile("shape: [9], layout: c", "c", 1) == -1);
}

TEST_CASE("elements alone are made in rows where another loop than the columns' is tiled") {
  const Operator op = operatorOf("shape: [N, 5, 5, 300], layout: nhwc", "c", 0, Phase::Inference);
  REQUIRE(op.steps.size() == 2);
  auto keptBy = [&](std::vector<StepPlan> steps, int tiled) {
    return keptLoops(op, {.steps = std::move(steps), .tiled = tiled});
  };
  const StepPlan finalize{0, Part::Whole}, normalize{1, Part::Whole};
  CHECK(keptBy({normalize}, 1) == std::vector<bool>{false, true});
  CHECK(keptBy({normalize}, 0) == std::vector<bool>{true, false});
  // The step finalize makes what columns need in registers: it says what is kept.
  CHECK(keptBy({finalize, normalize}, 0) == std::vector<bool>{false, true});
  // Rows as the layout has them, and a statistic a row.
  const Operator rows = operatorOf("shape: [N, 300], layout: nc", "c", 1, Phase::Inference);
  CHECK(keptLoops(rows, {.steps = {{uint32_t(rows.steps.size() - 1), Part::Whole}}, .tiled = 0}) ==
        std::vector<bool>{true, false});
}

TEST_CASE("rows of more columns than a tile has are written row by row") {
  const TargetDescription target = targetOf("znver4");
  auto elements = [&](const char *shape, Phase phase) {
    const Operator op = operatorOf(fmt::format("shape: {}, layout: nhwc", shape), "c", 0, phase);
    std::vector<std::string> stages;
    for (const ScheduleVariant &variant : selectSchedules(op, target)) {
      const Schedule &schedule = variant.schedule;
      const std::vector<StageLoop> loops = stageLoops(op, schedule, schedule.stages.size() - 1);
      stages.push_back(fmt::format("{} of {}", schedule.stages.size(),
                                   loops[schedule.stages.back().tiled].name));
    }
    return fmt::format("{}", fmt::join(stages, ", "));
  };
  CHECK(elements("[32, 28, 28, 128]", Phase::Inference) == "1 of c");
  CHECK(elements("[32, 28, 28, 144]", Phase::Inference) == "2 of nhw");
  CHECK(elements("[32, 28, 28, 144]", Phase::Training) == "3 of nhw");
  // Data in L2 is one stage, less of it with rows a multiple of a page apart; the call tells how
  // many rows there are.
  CHECK(elements("[2, 14, 14, 251]", Phase::Inference) == "1 of c");
  CHECK(elements("[1, 2, 2, 1024]", Phase::Inference) == "1 of c");
  CHECK(elements("[4, 7, 7, 1024]", Phase::Inference) == "2 of nhw");
  CHECK(elements("[N, 2, 2, 1024]", Phase::Inference) == "1 of c, 2 of nhw, 2 of nhw");
}

TEST_CASE("a schedule's text") {
  const Operator op = operatorOf("shape: [N, 64, 7, 9], layout: nchw", "c");
  Schedule schedule;
  schedule.stages = {{.name = "moments",
                      .steps = {{0, Part::Partial}},
                      .chunks = {3, 1, 0},
                      .tiled = 1,
                      .vector = 16,
                      .unroll = 4,
                      .alternates = true},
                     {.name = "merge",
                      .steps = {{0, Part::Merge}, {1, Part::Whole}},
                      .chunks = {0, 8},
                      .tiled = 1,
                      .vector = 8,
                      .tile = 8},
                     {.name = "normalize",
                      .steps = {{2, Part::Whole}},
                      .chunks = {1, 1, 0},
                      .reversed = true,
                      .streams = true}};
  schedule.maskedTails = false;
  CHECK(schedule.text(op) ==
        "tails=narrower moments(partial moments; take=[3,1,all] tiled=c vector=16 tile=1 unroll=4 "
        "passes=alternating) merge(merge moments + finalize; take=[all,8] tiled=c vector=8 tile=8 "
        "unroll=1) normalize(normalize; take=[1,1,all] vector=1 tile=1 unroll=1 tasks=reversed "
        "stores=streaming)");
}

TEST_CASE("guards over one number ascend") {
  const std::tuple<const char *, const char *, int> inputs[] = {
      {"shape: [N, 512], layout: nc", "c", 1},
      {"shape: [N, 64, 14, 14], layout: nchw", "c", 0},
      {"shape: [N, 14, 14, 640], layout: nhwc", "c", 0},
      {"shape: [N, 64, 2, 2], layout: nchw", "c", 0}};
  for (const std::string &cpu : compilableCpus())
    for (const auto &[input, axis, mode] : inputs)
      for (Phase phase : {Phase::Inference, Phase::Training, Phase::Backward}) {
        INFO(cpu, ": ", std::string(input), ", ", std::string(toString(phase)));
        const auto variants =
            selectSchedules(operatorOf(input, axis, mode, phase), targetOf(cpu.c_str()));
        REQUIRE(!variants.empty());
        for (size_t i = 1; i < variants.size(); ++i)
          if (variants[i].guard.value == variants[i - 1].guard.value)
            CHECK(variants[i].guard.limit > variants[i - 1].guard.limit);
      }
}

TEST_CASE("the heuristic's schedules are legal and do not depend on the host's threads") {
  const char *const inputs[] = {
      "shape: [N, 64, 56, 56], layout: nchw",
      "shape: [N, 2048, 7, 7], layout: nchw",
      "shape: [N, 56, 56, 64], layout: nhwc",
      "shape: [N, 1000], layout: nc",
      "shape: [N, 45, 14, 14], layout: nChw16c",
      "shape: [8, 64, 28, 28], layout: nchw, dtype: f64",
      "shape: [N, 7, 7, 3], layout: nhwc",
      "shape: [64, 512, 7, 7], layout: nchw",
      "shape: [N, 7, 7, C], layout: nhwc",
      "shape: [N, 9, 9, 200], layout: nhwc, dtype: bf16",
      "shape: [64, 512, 7, 7], layout: nchw, dtype: bf16",
      "shape: [N, 128, 28, 28], layout: nchw, dtype: bf16",
      "shape: [1, 1152921504606846975], layout: nc",
  };
  for (const char *cpu :
       {"haswell", "skylake-avx512", "znver4", "x86-64-v2", "neoverse-n1", "a64fx"}) {
    const TargetDescription target = targetOf(cpu);
    for (const char *input : inputs)
      for (Phase phase : {Phase::Inference, Phase::Training, Phase::Backward}) {
        INFO(std::string(cpu), ": ", std::string(input), ", ", std::string(toString(phase)));
        const Operator op = operatorOf(input, "c", 0, phase);
        const auto variants = selectSchedules(op, target);
        REQUIRE(variants.size() >= 1);
        REQUIRE(variants.size() <= 4);
        CHECK(variants.back().guard.limit == INT64_MAX);
        for (const Schedule &form : scheduleForms(op, target)) {
          INFO(form.text(op));
          CHECK(llvm::toString(checkSchedule(form, op, target)) == "");
        }
        for (const ScheduleVariant &variant : variants) {
          const Schedule &s = variant.schedule;
          INFO(s.text(op));
          CHECK_FALSE(variant.reason.empty());
          CHECK(s.maskedTails == target.maskedTails);
          CHECK(op.reduces() == (phase != Phase::Inference));
          CHECK(llvm::toString(checkSchedule(s, op, target)) == "");
          auto checkStage = [&](std::span<const StageLoop> loops, const StagePlan &stage) {
            REQUIRE(stage.chunks.size() == loops.size());
            CHECK(stage.tile >= 1);
            CHECK(stage.unroll >= 1);
            CHECK(stage.vector >= 1);
            CHECK(stage.vector * static_cast<int64_t>(byteSize(op.dtype)) * 8 <= target.vectorBits);
            const int tiled = stage.tiled;
            CHECK(tiled == tileLoop(loops));
            for (size_t i = 0; i < loops.size(); ++i)
              CHECK(stage.chunks[i] >= 0);
            if (tiled == static_cast<int>(loops.size()) - 1)
              CHECK(stage.tile % stage.vector == 0);
            if (tiled >= 0)
              CHECK(stage.chunks[static_cast<size_t>(tiled)] % stage.tile == 0);
          };
          for (size_t i = 0; i < s.stages.size(); ++i)
            checkStage(stageLoops(op, s, i), s.stages[i]);
          // A fused task needs its whole group: no reduced loop is cut.
          if (op.reduces() && s.stages.size() == 1)
            for (size_t i = 0; i < op.loops.size(); ++i)
              if (!op.kept()[i])
                CHECK(s.stages[0].chunks[i] == 0);
        }
      }
  }
}
