// Any schedule whatever is refused in words, or gives right results: knobs of schedules are mutated
// at random, and what is still legal is run.
#include "compiler/records/Choose.h"
#include "tests/numerics/KernelCase.h"
#include "tests/numerics/SpecDraw.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <set>

using namespace normforge;
using namespace normforge::test;

namespace {

class Mutator {
public:
  explicit Mutator(std::mt19937_64 &random) : random_(random) {}

  void mutate(Schedule &schedule) {
    for (uint64_t n = 1 + random_() % 3; n > 0; --n)
      change(schedule);
  }
  /// A character of a text taken out, doubled or replaced.
  void mutate(std::string &text) {
    const size_t at = random_() % text.size();
    switch (random_() % 4) {
    case 0:
      text.erase(at, 1 + random_() % 4);
      break;
    case 1:
      text.insert(at, 1, text[random_() % text.size()]);
      break;
    case 2:
      text[at] = static_cast<char>(random_());
      break;
    default:
      text.insert(at, "99999999999999999999");
    }
  }

private:
  int64_t number() {
    constexpr int64_t values[] = {-1, 0,  1,  2,  3,  4,  5,   6,       7,
                                  8,  12, 16, 17, 32, 64, 100, 1 << 20, INT64_MAX};
    return values[random_() % std::size(values)];
  }
  template <typename T> T &any(std::vector<T> &list) { return list[random_() % list.size()]; }

  void change(Schedule &schedule) {
    StagePlan &stage = any(schedule.stages);
    switch (random_() % 16) {
    case 0:
    case 1:
    case 2:
      if (!stage.chunks.empty())
        any(stage.chunks) = number();
      break;
    case 3:
      stage.vector = number();
      break;
    case 4:
    case 5:
      stage.tile = number();
      break;
    case 6:
      stage.unroll = number();
      break;
    case 7:
      stage.tiled = static_cast<int>(random_() % (stage.chunks.size() + 2)) - 1;
      break;
    case 8:
      if (random_() % 2)
        stage.alternates = !stage.alternates;
      else
        *std::array{&stage.threads, &stage.down, &stage.groups,
                    &stage.held,    &stage.held, &stage.resident}[random_() % 6] = number();
      break;
    case 9:
      stage.streams = !stage.streams;
      break;
    case 10:
      stage.prefetch = random_() % 2 ? 0 : number();
      stage.rows = static_cast<Rows>(random_() % 3);
      stage.reversed = !stage.reversed;
      break;
    case 11:
      *std::array{&schedule.maskedTails, &schedule.maskedLoads,
                  &schedule.pairsHalves}[random_() % 3] ^= true;
      break;
    case 12:
      if (!stage.steps.empty())
        any(stage.steps).part = static_cast<Part>(random_() % 3);
      break;
    case 13: { // a step to another stage
      if (stage.steps.empty())
        break;
      const StepPlan step = stage.steps.back();
      stage.steps.pop_back();
      std::vector<StepPlan> &other = any(schedule.stages).steps;
      other.insert(random_() % 2 ? other.begin() : other.end(), step);
      break;
    }
    case 14:
      if (random_() % 2)
        stage.chunks.push_back(1);
      else if (stage.chunks.size() > 1)
        stage.chunks.pop_back();
      break;
    default:
      if (random_() % 2)
        schedule.stages.push_back(stage);
      else if (schedule.stages.size() > 1)
        schedule.stages.pop_back();
    }
  }

  std::mt19937_64 &random_;
};

/// The steps of a stage may be none, and then it has no text.
bool hasText(const Schedule &schedule) {
  for (size_t i = 0; i < schedule.stages.size(); ++i)
    if (schedule.stages[i].steps.empty() || (i == 0 && schedule.stages[i].merges()))
      return false;
  return true;
}

void tryMutations(const char *cpu, int wanted) {
  Session *session = sessionOrSkip(cpu);
  if (!session)
    return;
  SpecDraw draw(testSeed());
  Mutator mutator(draw.engine());
  int legal = 0, illegal = 0;
  while (legal < wanted) {
    const DrawnSpec drawn = draw.draw();
    const Spec spec = specOf(drawn.yaml());
    const Phase phase = spec.phases[draw.engine()() % spec.phases.size()];
    const Operator op = makeOperator(spec, phase);
    const auto forms = scheduleForms(op, session->target());
    for (int i = 0; i < 20; ++i) {
      Schedule schedule = forms[draw.engine()() % forms.size()];
      mutator.mutate(schedule);
      if (llvm::Error error = checkSchedule(schedule, op, session->target())) {
        const std::string words = llvm::toString(std::move(error));
        CHECK_MESSAGE(words.starts_with("schedule is not legal: "), words);
        ++illegal;
        continue;
      }
      REQUIRE(hasText(schedule));
      INFO(repeatCommand("mutated schedules*"), " cpu ", std::string(cpu), "\n", schedule.text(op),
           "\n", drawn.yaml(), describeSizes(drawn.sizes()));
      const oracle::Arrays inputs = oracle::drawInputs(spec, phase, drawn.sizes(), draw.engine()(),
                                                       oracle::Data::Normal, drawnScalars());
      try {
        const TestKernel kernel(op, always(schedule), *session);
        const std::string wrong =
            wrongResults(kernel, spec, phase, drawn.sizes(), inputs, drawnScalars());
        CHECK_MESSAGE(wrong.empty(), wrong);
      } catch (const TestKernel::TooMuchStack &) {
        continue; // known once it is compiled
      } catch (const std::exception &error) {
        FAIL_CHECK(std::string(error.what()));
      }
      ++legal;
    }
  }
  CHECK(illegal > wanted);
}

Operator operatorOf(const char *yaml, Phase phase = Phase::Training) {
  return makeOperator(specOf(yaml), phase);
}
const char *const kNchw = "semantics: pytorch\ninput: {shape: [N, 64, 7, 9], layout: nchw}\n"
                          "axis: c\nphases: [inference, training]\n";

} // namespace

TEST_CASE("mutated schedules are refused or right: native") { tryMutations("native", 60); }
TEST_CASE("mutated schedules are refused or right: haswell") { tryMutations("haswell", 40); }
TEST_CASE("mutated schedules are refused or right: x86-64-v2") { tryMutations("x86-64-v2", 40); }
TEST_CASE("mutated schedules are refused or right: sm_90") { tryMutations("sm_90", 40); }

/// The last element of a padded axis is at the end of what is not padded: parameters, statistics.
TEST_CASE("single lanes stop where a padded axis ends") {
  struct Row {
    const char *cpu, *yaml, *schedule;
  };
  const char *columns = "name: columns\ninput: {shape: [2, 15, 49], layout: Hwt4h, dtype: f16}\n"
                        "axis: [0, 2]\nphases: [training]\n";
  const char *rows = "name: rows\nsemantics: pytorch\n"
                     "input: {shape: [3, 6, 5, 7], layout: nChw4c}\naxis: [c, h, w]\nmode: 1\n"
                     "phases: [training]\n";
  const char *parts = "name: parts\nsemantics: pytorch\n"
                      "input: {shape: [3, 7, 5, 7], layout: nChw4c}\naxis: [c, h, w]\nmode: 1\n"
                      "phases: [training]\n";
  const char *blocks = "name: blocks\nsemantics: pytorch\n"
                       "input: {shape: [3, 12, 5, 7], layout: nChw8c}\naxis: c\n"
                       "phases: [training]\nfuse: [add]\n";
  const Row cases[] = {
      {"x86-64-v4", columns,
       "fused(moments + finalize + normalize; take=[1,all,1,4] tiled=h vector=1 tile=4 unroll=4)"},
      {"x86-64-v2", columns,
       "fused(moments + finalize + normalize; take=[1,all,1,4] tiled=h vector=1 tile=2 unroll=1)"},
      {"x86-64-v2", rows,
       "moments(partial moments; take=[1,all,8,all] tiled=n vector=4 tile=1 unroll=1) "
       "merge(merge moments + finalize; take=[all,2] tiled=n vector=2 tile=2 unroll=1) "
       "normalize(normalize; take=[1,all,8,3] tiled=n vector=4 tile=1 unroll=1)"},
      // Parts of several blocks' lanes.
      {"x86-64-v2", parts,
       "moments(partial moments; take=[1,all,8,all] tiled=n vector=4 tile=1 unroll=1) "
       "merge(merge moments + finalize; take=[all,2] tiled=n vector=2 tile=2 unroll=1) "
       "normalize(normalize; take=[1,all,8,3] tiled=n vector=4 tile=1 unroll=1)"},
      {"x86-64-v2", blocks,
       "fused(moments + finalize; take=[all,1,all,8] tiled=c vector=4 tile=8 unroll=1) "
       "normalize(normalize; take=[1,2,1,4] tiled=C vector=4 tile=2 unroll=1)"},
  };
  for (const Row &row : cases) {
    Session *session = sessionOrSkip(row.cpu);
    if (!session)
      continue;
    const Spec spec = specOf(row.yaml);
    const Operator op = makeOperator(spec, Phase::Training);
    // The heads that the CPUs take.
    const Schedule form = scheduleForms(op, session->target()).front();
    auto schedule = parseSchedule(std::string("tails=narrower ") + row.schedule, op);
    REQUIRE(schedule);
    schedule->maskedTails = form.maskedTails;
    schedule->maskedLoads = form.maskedLoads;
    REQUIRE(llvm::toString(checkSchedule(*schedule, op, session->target())) == "");
    INFO(repeatCommand("single lanes*"), " cpu ", std::string(row.cpu), "\n", schedule->text(op));
    const oracle::Arrays inputs = oracle::drawInputs(spec, Phase::Training, {}, testSeed());
    const std::string wrong = wrongResults(TestKernel(op, always(*schedule), *session), spec,
                                           Phase::Training, {}, inputs);
    CHECK_MESSAGE(wrong.empty(), wrong);
  }
}

TEST_CASE("rows shorter than a vector are several in one") {
  // Rows are images, or the samples' own features; tiles have what is left of them at the end.
  const char *shapes[] = {"input: {shape: [3, 37, 1, %], layout: nchw}\naxis: c\nmode: 0\n",
                          "input: {shape: [2, 21, %, 1], layout: nchw}\naxis: c\nmode: instance\n",
                          "input: {shape: [83, %], layout: nc}\nmode: 1\n",
                          "input: {shape: [5, 7, %], layout: nhc}\naxis: c\nmode: rms\n"};
  const char *fusions[] = {"", "fuse: [add, relu]\n",
                           "fuse: [{expr: x * sigmoid(f) + f, operands: {f: [c]}}]\n",
                           "fuse: [gelu]\n"};
  size_t turn = testSeed() % 12;
  for (const char *cpu : {"native", "haswell", "x86-64-v2", "skylake-avx512"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    int packed = 0;
    for (int64_t length = 2; length <= 15; ++length)
      for (std::string yaml : shapes) {
        ++turn;
        yaml.replace(yaml.find('%'), 1, std::to_string(length));
        yaml += fusions[turn % 4];
        yaml += "phases: [inference, training, backward]\n";
        const char *dtypes[] = {"f32", "bf16", "f64", "f16"};
        yaml.insert(yaml.find('}'), std::string(", dtype: ") + dtypes[turn / 4 % 4]);
        const Phase phase =
            std::array{Phase::Inference, Phase::Training, Phase::Backward}[turn % 3];
        const Spec spec = specOf(yaml);
        const Operator op = makeOperator(spec, phase);
        for (const Schedule &form : scheduleForms(op, session->target())) {
          if (std::ranges::none_of(form.stages,
                                   [](auto &stage) { return stage.rows == Rows::Packed; }))
            continue;
          ++packed;
          INFO(repeatCommand("rows shorter*"), " cpu ", std::string(cpu), "\n", yaml, "\n",
               form.text(op));
          const oracle::Arrays inputs = oracle::drawInputs(spec, phase, {}, testSeed() + turn);
          const std::string wrong =
              wrongResults(TestKernel(op, always(form), *session), spec, phase, {}, inputs);
          CHECK_MESSAGE(wrong.empty(), wrong);
        }
      }
    CHECK(packed > 0);
  }
}

TEST_CASE("vectors of bf16 are paired") {
  // Rows, columns, rows whose sums are carried, and beside bf16 what is f32; an odd number of
  // vectors, and what they leave.
  const char *shapes[] = {"input: {shape: [2, 5, 7, %], layout: nchw, dtype: bf16}\naxis: c\n",
                          "input: {shape: [2, 3, 5, %], layout: nhwc, dtype: bf16}\naxis: c\n",
                          "input: {shape: [13, %], layout: nc, dtype: bf16}\nmode: layer\n",
                          ("input: {shape: [11, %], layout: nc, dtype: bf16}\n"
                           "mode: rms\nparameter_dtype: bf16\n"),
                          "input: {shape: [3, 40, 2, %], layout: nhcw, dtype: bf16}\naxis: c\n",
                          "input: {shape: [2, 64, 1, %], layout: nchw, dtype: bf16}\naxis: c\n"};
  const char *fusions[] = {"", "fuse: [add, relu]\n",
                           "fuse: [{expr: x * sigmoid(f) + f, operands: {f: [c]}}]\n"};
  size_t turn = testSeed() % 54;
  for (const char *cpu : {"native", "haswell", "x86-64-v2", "skylake-avx512", "cooperlake"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    int paired = 0, narrow = 0;
    for (int64_t length : {32, 49, 64, 83, 96, 160})
      for (std::string yaml : shapes) {
        ++turn;
        yaml.replace(yaml.find('%'), 1, std::to_string(length));
        yaml += fusions[turn % 3];
        yaml += "phases: [inference, training, backward]\n";
        const Phase phase =
            std::array{Phase::Inference, Phase::Training, Phase::Backward}[turn / 3 % 3];
        const Spec spec = specOf(yaml);
        const Operator op = makeOperator(spec, phase);
        const oracle::Arrays inputs = oracle::drawInputs(spec, phase, {}, testSeed() + turn);
        const TargetDescription target = targetFor(op, session->target());
        for (Schedule form : scheduleForms(op, target))
          for (int64_t unroll : {0, 2, 3}) { // the heuristic's, and others with small vectors
            CHECK(form.pairsHalves == mayPairHalves(op, target));
            for (StagePlan &stage : form.stages)
              if (unroll > 0) {
                stage.unroll = unroll;
                stage.vector = unroll == 2 ? 2 : stage.vector;
              }
            llvm::Error error = checkSchedule(form, op, target);
            if (error && unroll > 0) {
              llvm::consumeError(std::move(error));
              continue;
            }
            REQUIRE(llvm::toString(std::move(error)) == "");
            paired += form.pairsHalves;
            narrow += unroll == 2;
            INFO(repeatCommand("vectors of bf16*"), " cpu ", std::string(cpu), "\n", yaml, "\n",
                 form.text(op));
            const std::string wrong =
                wrongResults(TestKernel(op, always(form), *session), spec, phase, {}, inputs);
            CHECK_MESSAGE(wrong.empty(), wrong);
          }
      }
    CHECK(paired > 0);
    CHECK(narrow > 0);
  }
}

TEST_CASE("kept bits lie where their layout says") {
  // Blocks beside which other axes lie that everything indexes alike.
  for (const char *yaml :
       {"input: {shape: [7, 13, 64], layout: hnC16c}\naxis: h\n",
        "input: {shape: [5, 6, 64], layout: nhC16c}\nmode: rms\naxis: [h, c]\n",
        "input: {shape: [5, 6, 64], layout: nhC16c}\nmode: 1\nsemantics: pytorch\naxis: [h, c]\n",
        "input: {shape: [1, 64, 1, 1], layout: nChw16c}\naxis: c\n",
        "input: {shape: [3, 64, 1, 1], layout: nChw16c}\naxis: c\n"}) {
    const std::string text =
        std::string(yaml) + "phases: [inference, training, backward]\nfuse: [add, relu]\n";
    Session *session = sessionOrSkip("native");
    if (!session)
      return;
    const Spec spec = specOf(text);
    for (Phase phase : spec.phases) {
      INFO(repeatCommand("kept bits lie*"), "\n", text, toString(phase));
      const auto inputs = oracle::drawInputs(spec, phase, {}, testSeed());
      const std::string wrong =
          wrongResults(TestKernel(spec, phase, *session), spec, phase, {}, inputs);
      CHECK_MESSAGE(wrong.empty(), wrong);
    }
  }
}

TEST_CASE("rows are packed where they can be") {
  auto target = describeTarget("znver4");
  REQUIRE(target);
  const std::string stage =
      "tails=masked normalize(finalize + normalize; take=[1,all,all] tiled=c ";
  auto refusal = [&](const std::string &shape, const std::string &knobs) {
    const Operator op = makeOperator(specOf("input: " + shape + "\naxis: c\n"), Phase::Inference);
    auto schedule = parseSchedule(stage + knobs + ")", op);
    REQUIRE(schedule);
    return llvm::toString(checkSchedule(*schedule, op, *target));
  };
  const std::string rows = "{shape: [N, 64, 2, 2], layout: nchw}";
  CHECK(refusal(rows, "vector=16 tile=16 unroll=1 rows=packed") == "");
  CHECK(
      refusal(rows, "vector=16 tile=6 unroll=1 rows=packed").find("expected whole vectors of 16") !=
      std::string::npos);
  CHECK(refusal("{shape: [N, 64, H, 2], layout: nchw}", "vector=16 tile=16 unroll=1 rows=packed")
            .find("expected 2 to 16, as a vector has") != std::string::npos);
  CHECK(refusal("{shape: [N, 64, 5, 5], layout: nchw}", "vector=16 tile=16 unroll=1 rows=packed")
            .find("a row has 25 elements; expected 2 to 16") != std::string::npos);
  CHECK(refusal(rows, "vector=16 tile=16 unroll=1 prefetch=65").find("expected 1 to 64") !=
        std::string::npos);
}

TEST_CASE("all schedules to choose from are right") {
  for (const char *cpu : {"native", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    SpecDraw draw(testSeed());
    for (int i = 0; i < 4; ++i) {
      const DrawnSpec drawn = draw.draw();
      const Spec spec = specOf(drawn.yaml());
      const Phase phase = spec.phases.back();
      const Operator op = makeOperator(spec, phase);
      const std::vector<Schedule> space = scheduleSpace(op, session->target());
      const std::vector<Schedule> forms = scheduleForms(op, session->target());
      CHECK(space.size() >= 4);
      // The knobs' neighbors one by one, not their product: some 40 of each stage.
      size_t stages = 0;
      for (const Schedule &form : forms)
        stages += form.stages.size();
      CHECK(space.size() <= 40 * stages);
      const oracle::Arrays inputs =
          oracle::drawInputs(spec, phase, drawn.sizes(), 3, oracle::Data::Normal, drawnScalars());
      std::set<std::string> texts;
      for (size_t s = 0; s < space.size(); ++s) {
        const std::string text = space[s].text(op);
        CHECK(texts.insert(text).second);
        if (draw.engine()() % 4 != 0) // every fourth of them
          continue;
        INFO(repeatCommand("all schedules*"), " cpu ", std::string(cpu), "\n", text, "\n",
             drawn.yaml(), describeSizes(drawn.sizes()));
        try {
          const TestKernel kernel(op, always(space[s]), *session);
          const std::string wrong =
              wrongResults(kernel, spec, phase, drawn.sizes(), inputs, drawnScalars());
          CHECK_MESSAGE(wrong.empty(), wrong);
        } catch (const TestKernel::TooMuchStack &) {
          CHECK(!llvm::is_contained(forms, space[s])); // the heuristic's never does
        }
      }
    }
  }
}

TEST_CASE("schedules that are said to have the same bits have them") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  SpecDraw draw(testSeed());
  int same = 0;
  auto tryNeighbors = [&](const std::string &yaml, const oracle::Sizes &sizes) {
    const Spec spec = specOf(yaml);
    const Phase phase = spec.phases.back();
    const Operator op = makeOperator(spec, phase);
    const oracle::Arrays inputs =
        oracle::drawInputs(spec, phase, sizes, 3, oracle::Data::Normal, drawnScalars());
    for (const Schedule &form : scheduleForms(op, session->target())) {
      const oracle::Arrays expected =
          TestKernel(op, always(form), *session).run(sizes, inputs, drawnScalars());
      for (const Schedule &other : neighborSchedules(form, op, session->target(), true)) {
        if (!haveSameBits(form, other, op) || draw.engine()() % 8 != 0)
          continue;
        INFO(repeatCommand("schedules that are said*"), "\n", form.text(op), "\n", other.text(op),
             "\n", yaml, describeSizes(sizes));
        try {
          const TestKernel kernel(op, always(other), *session);
          CHECK(sameBits(expected, kernel.run(sizes, inputs, drawnScalars())));
          ++same;
        } catch (const TestKernel::TooMuchStack &) {
          continue;
        }
      }
    }
  };
  for (int i = 0; i < 5; ++i) {
    const DrawnSpec drawn = draw.draw();
    tryNeighbors(drawn.yaml(), drawn.sizes());
  }
  // Halves in pairs: rows, columns, carried sums.
  for (const char *yaml : {"input: {shape: [2, 5, 3, 70], layout: nchw, dtype: bf16}\naxis: c\n",
                           "input: {shape: [5, 7, 70], layout: nhc, dtype: bf16}\naxis: c\n",
                           "input: {shape: [9, 70], layout: nc, dtype: bf16}\nmode: layer\n"})
    tryNeighbors(std::string(yaml) + "phases: [backward]\n", {});
  CHECK(same > 5);
}

TEST_CASE("what is left of the tiles goes through its data as whole tiles do") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  const Spec spec =
      specOf("input: {shape: [2, 15, 3, 4], layout: nchw}\nmode: rms\naxis: [h, w]\n"
             "phases: [backward]\nfuse: [{mul: [n, h]}]\n"); // sums of products are not exact
  const Operator op = makeOperator(spec, Phase::Backward);
  const oracle::Arrays inputs = oracle::drawInputs(spec, Phase::Backward, {}, testSeed());
  int tried = 0;
  for (const Schedule &form : scheduleForms(op, session->target()))
    for (size_t i = 0; i < form.stages.size(); ++i) {
      const StagePlan &stage = form.stages[i];
      if (stage.tiled < 0 || stage.tiled + 1 == static_cast<int>(stage.chunks.size()))
        continue;
      auto withRows = [&](int64_t rows) {
        Schedule schedule = form;
        schedule.stages[i].alternates = true;
        schedule.stages[i].rows = Rows::OneByOne;
        schedule.stages[i].tile = schedule.stages[i].chunks[stage.tiled] = rows;
        return schedule;
      };
      const Schedule one = withRows(1), two = withRows(2); // of three
      if (auto error = llvm::toString(checkSchedule(two, op, session->target())); !error.empty())
        continue;
      REQUIRE(haveSameBits(one, two, op));
      INFO(repeatCommand("what is left of*"), "\n", two.text(op));
      CHECK(sameBits(TestKernel(op, always(one), *session).run({}, inputs),
                     TestKernel(op, always(two), *session).run({}, inputs)));
      for (int64_t taken : {0, 4}) { // a tile and what is left, in one task
        Schedule whole = two;
        whole.stages[i].chunks[stage.tiled] = taken;
        INFO(whole.text(op));
        CHECK(sameBits(TestKernel(op, always(one), *session).run({}, inputs),
                       TestKernel(op, always(whole), *session).run({}, inputs)));
      }
      ++tried;
    }
  CHECK(tried > 0);
}

TEST_CASE("texts that are no schedules are refused with their place") {
  const Operator op = operatorOf(kNchw);
  auto target = describeTarget("znver4");
  REQUIRE(target);
  std::mt19937_64 random(testSeed());
  Mutator mutator(random);
  int refused = 0;
  for (const Schedule &form : scheduleForms(op, *target))
    for (int i = 0; i < 2000; ++i) {
      std::string text = form.text(op);
      mutator.mutate(text);
      INFO(text);
      auto parsed = parseSchedule(text, op);
      if (parsed) {
        // A schedule's text reads back as the same schedule.
        CHECK(*parseSchedule(parsed->text(op), op) == *parsed);
        llvm::consumeError(checkSchedule(*parsed, op, *target));
        continue;
      }
      ++refused;
      const std::string words = llvm::toString(parsed.takeError());
      CHECK_MESSAGE(words.starts_with("schedule, column "), words);
    }
  CHECK(refused > 1000);
}

TEST_CASE("what is wrong with a schedule is said in words") {
  struct Row {
    const char *text, *expected;
  };
  const Row rows[] = {
      {"tails=some", "schedule, column 7: expected masked or narrower, found 'some'"},
      {"tails=masked", "schedule, column 13: expected a stage, found the end"},
      {"tails=masked fused(moments; take=[1,2] vector=16 tile=1 unroll=1)",
       "schedule, column 39: expected 3 numbers in take=[...], one a loop, found ' vector=16 "
       "tile=1 unroll...'"},
      {"tails=masked a(moments; take=[all,1,0] tiled=c vector=16 tile=1 unroll=1)",
       "schedule, column 38: expected a number above 0, or all, found '] tiled=c vector=16 tile..."
       "'"},
      {"tails=masked a(moments + finalize + normalize; take=[all,1,all] tiled=x vector=16)",
       "schedule, column 71: expected a loop (n, c, hw), found 'x vector=16)'"},
      {"tails=masked a(moments + finalize + normalize; take=[all,1,all] tiled=c tile=1 tile=4)",
       "schedule, column 80: expected each knob once; tile is given already, found 'tile=4)'"},
      {"tails=masked m(merge moments; take=[all] vector=8)",
       "schedule, column 41: expected a stage of partials before one that merges, found ' "
       "vector=8)'"},
      {"tails=masked a(moments + finalize + normalize; take=[all,4,all] tiled=c vector=3 tile=4 "
       "unroll=1)",
       "schedule is not legal: stage a: vector=3: expected a power of two from 1 to 16"},
      {"tails=masked a(moments + finalize + normalize; take=[2,4,all] tiled=c vector=16 tile=4 "
       "unroll=1)",
       "schedule is not legal: stage a: a task takes 2 of loop n, which a step of the stage "
       "reduces "
       "over; expected all"},
      {"tails=masked a(moments + finalize + normalize; take=[all,6,all] tiled=c vector=16 tile=4 "
       "unroll=1)",
       "schedule is not legal: stage a: a task takes 6 of loop c; expected a multiple of the tile, "
       "4"},
      {"tails=masked a(finalize + moments + normalize; take=[all,4,all] tiled=c vector=16 tile=4 "
       "unroll=1)",
       "schedule is not legal: stage a: step finalize reads rounded_mean before step moments has "
       "made it"},
      {"tails=masked a(moments; take=[all,4,all] tiled=c vector=16 tile=4 unroll=1) b(finalize + "
       "normalize; take=[all,4,all] tiled=c vector=16 tile=4 unroll=1)",
       "schedule is not legal: stage b: step finalize reads rounded_mean of step moments, which is "
       "kept within its stage alone"},
      {"tails=masked a(partial moments; take=[2,4,all] tiled=c vector=16 tile=4 unroll=1) b(merge "
       "moments; take=[all,8] tiled=c vector=8 tile=8 unroll=1) c(finalize + normalize; "
       "take=[1,4,all] tiled=c vector=16 tile=4 unroll=1)",
       "schedule is not legal: stage c: step finalize reads rounded_mean of step moments, which is "
       "kept within its stage alone"},
      {"tails=masked a(partial moments; take=[all,4,all] tiled=c vector=16 tile=4 unroll=1) "
       "b(merge "
       "moments + finalize; take=[8] tiled=c vector=8 tile=8 unroll=1) c(normalize; "
       "take=[1,4,all] tiled=c vector=16 tile=4 unroll=1)",
       "schedule is not legal: stage a: partials of no loop: a task takes all of every loop that "
       "is "
       "reduced over"},
      {"tails=masked a(moments + finalize + normalize; take=[all,4,all] tiled=c vector=16 tile=4 "
       "unroll=64)",
       "schedule is not legal: stage a: 4 slots with unroll=64 are 32768 bytes of vectors in "
       "flight; "
       "expected at most 4096"},
      {"tails=masked a(moments + finalize; take=[all,4,all] tiled=c vector=16 tile=4 unroll=1)",
       "schedule is not legal: no stage does step normalize"},
      {"tails=narrower a(moments + finalize + normalize; take=[all,4,all] vector=16 tile=4 "
       "unroll=1)",
       "schedule is not legal: stage a: no loop is tiled; expected tiled=c"},
  };
  const Operator op = operatorOf(kNchw);
  auto target = describeTarget("znver4");
  REQUIRE(target);
  for (const Row &row : rows) {
    auto variants = chooseSchedules(op, *target, {.forced = row.text});
    REQUIRE_FALSE(variants);
    CHECK(llvm::toString(variants.takeError()) == row.expected);
  }
  // Schedules that other machines refuse.
  auto arm = describeTarget("neoverse-n1"), sve = describeTarget("neoverse-v1");
  REQUIRE(arm);
  REQUIRE(sve);
  const Operator inference = operatorOf(kNchw, Phase::Inference);
  auto refused = [&](const TargetDescription &of, const char *text) {
    auto variants = chooseSchedules(inference, of, {.forced = text});
    return variants ? "" : llvm::toString(variants.takeError());
  };
  CHECK(refused(*arm, "tails=narrower loads=whole a(finalize + normalize; take=[1,4,all] tiled=c "
                      "vector=4 tile=4 unroll=1 stores=streaming)") ==
        "schedule is not legal: stage a: stores=streaming: not for neoverse-n1");
  CHECK(refused(*arm, "tails=masked a(finalize + normalize; take=[1,4,all] tiled=c vector=4 tile=4 "
                      "unroll=1)") ==
        "schedule is not legal: tails=masked: neoverse-n1 has no masks that cost nothing");
  CHECK(refused(*sve,
                "tails=masked a(finalize + normalize; take=[1,4,all] tiled=c vector=4 tile=4 "
                "unroll=1)") == "schedule is not legal: scalable=0: expected 2 for neoverse-v1");
  CHECK(refused(*target, "tails=masked halves=paired a(finalize + normalize; take=[1,4,all] "
                         "tiled=c vector=16 tile=4 unroll=1)") ==
        "schedule is not legal: halves=paired: f32 for " + target->cpu +
            ": expected vectors of x86 and data of bf16");
  // Every task would write the moving statistics.
  CHECK(refused(*target, "tails=masked a(finalize; take=[4] tiled=c vector=4 tile=4 "
                         "unroll=1) b(finalize + normalize; take=[1,4,all] tiled=c vector=16 "
                         "tile=4 unroll=1)") ==
        "schedule is not legal: stage b: step finalize is done twice");
  CHECK(refused(*target, "tails=masked a(finalize + normalize; take=[all,4,all] tiled=c vector=16 "
                         "tile=4 unroll=1) b(normalize; take=[1,4,all] tiled=c vector=16 tile=4 "
                         "unroll=1)") ==
        "schedule is not legal: stage a: stage b reads x after y may have been written over it");
  const Operator layerRows = operatorOf("semantics: pytorch\ninput: {shape: [N, 20], layout: nc}\n"
                                        "mode: layer\nphases: [training]\n");
  auto single = chooseSchedules(
      layerRows, *target,
      {.forced = "tails=masked a(partial moments; take=[1,1] tiled=n vector=16 "
                 "tile=1 unroll=1) b(merge moments + finalize; take=[all,8] tiled=n "
                 "vector=8 tile=8 unroll=1) c(normalize; take=[1,all] tiled=n "
                 "vector=16 tile=1 unroll=1)"});
  REQUIRE_FALSE(single);
  CHECK(llvm::toString(single.takeError()) ==
        "schedule is not legal: stage a: a task takes 1 of loop c, which has the lanes of a step "
        "that reduces over it; expected 2 or more, or all");
  // Errors in schedules of gradients, and of columns.
  const Operator frozen = operatorOf("input: {shape: [N, 20, 6, 6], layout: nchw}\naxis: c\n"
                                     "backward_statistics: moving\nphases: [backward]\n",
                                     Phase::Backward);
  const Operator layer = operatorOf("semantics: pytorch\ninput: {shape: [N, 20], layout: nc}\n"
                                    "mode: layer\nphases: [backward]\n",
                                    Phase::Backward);
  const Operator columns = operatorOf("semantics: pytorch\ninput: {shape: [N, 300], layout: nc}\n"
                                      "axis: c\nphases: [inference]\n",
                                      Phase::Inference);
  auto refusedOf = [&](const Operator &of, const char *text) {
    auto variants = chooseSchedules(of, *target, {.forced = text});
    return variants ? "" : llvm::toString(variants.takeError());
  };
  CHECK(refusedOf(frozen, "tails=masked a(prepare + gradient; take=[1,4,all] tiled=c vector=16 "
                          "tile=4 unroll=1) b(sums + finalize; take=[all,4,all] tiled=c vector=16 "
                          "tile=4 unroll=1)") ==
        "schedule is not legal: stage a: tasks that take 1 of loop n would all write deviation, "
        "which the loop does not index");
  CHECK(refusedOf(frozen, "tails=masked a(prepare + gradient; take=[all,4,all] tiled=c vector=16 "
                          "tile=4 unroll=1) b(sums + finalize; take=[all,4,all] tiled=c vector=16 "
                          "tile=4 unroll=1)") ==
        "schedule is not legal: stage a: stage b reads dy after dx may have been written over it");
  CHECK(refusedOf(columns, "tails=masked a(finalize + normalize; take=[8,all] tiled=n vector=16 "
                           "tile=1 unroll=1)") ==
        "schedule is not legal: stage a: tiled=n: the loop is reduced over; expected tiled=c");
  CHECK(refusedOf(layer, "tails=masked a(prepare + sums + finalize + gradient + partial parameters;"
                         " take=[8,all] tiled=n vector=16 tile=4 unroll=1) b(merge parameters + "
                         "store; take=[all,8] tiled=c vector=8 tile=8 unroll=1)") ==
        "schedule is not legal: stage a: stage a reads dy after dx may have been written over it");
  CHECK(refusedOf(layer, "tails=masked a(prepare + sums + finalize + parameters + gradient; "
                         "take=[8,all] tiled=n vector=16 tile=4 unroll=1) b(store; take=[8] "
                         "tiled=c vector=8 tile=8 unroll=1)") ==
        "schedule is not legal: stage a: a task takes 8 of loop n, which a step of the stage "
        "reduces over; expected all");
  CHECK(refusedOf(layer, "tails=masked a(prepare + sums + finalize + parameters + gradient; "
                         "take=[all,all] tiled=n vector=16 tile=4 unroll=1) b(store; take=[8] "
                         "tiled=c vector=8 tile=8 unroll=1)") ==
        "schedule is not legal: stage a: step parameters keeps other loops than the stage does");
}
