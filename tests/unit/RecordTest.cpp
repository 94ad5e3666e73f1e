// Records of measurements: their lines, what they hold for, and how kernels come to use them.
#include "compiler/cli/TuneOptions.h"
#include "compiler/records/Choose.h"
#include "compiler/tune/Benchdnn.h"
#include "compiler/tune/RecordFile.h"
#include "compiler/tune/Report.h"
#include "compiler/tune/Search.h"
#include "tests/numerics/KernelCase.h"

#include "normforge/normforge.hpp"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <fstream>
#include <unistd.h>

using namespace normforge;
using namespace normforge::test;

namespace {

constexpr const char *kBatch = "input: {shape: [N, 64, 28, 28], layout: nchw}\naxis: c\n"
                               "phases: [inference, training]\n";
constexpr const char *kStatic = "input: {shape: [8, 64, 28, 28], layout: nchw}\naxis: c\n";

TargetDescription targetOf(const char *cpu) {
  auto target = describeTarget(cpu);
  REQUIRE(static_cast<bool>(target));
  return std::move(*target);
}

/// The heuristic's variant at these sizes.
const ScheduleVariant &variantAt(const std::vector<ScheduleVariant> &variants,
                                 std::span<const int64_t> sizes) {
  for (const ScheduleVariant &variant : variants)
    if (variant.guard.holds(sizes))
      return variant;
  FAIL("the last variant always holds");
  return variants.back();
}

/// A result of `op` at a size N (0: it has none) that prefers another schedule than the
/// heuristic's: its neighbor of this number.
ResultRecord resultOf(const Operator &op, const TargetDescription &target, int64_t n,
                      size_t neighbor = 0) {
  ResultRecord record;
  std::vector<int64_t> sizes;
  if (n > 0) {
    record.key.sizes["N"] = n;
    sizes = {n};
  }
  const ScheduleVariant variant = variantAt(selectSchedules(op, target), sizes);
  record.key.op = digestOf(signatureOf(op));
  record.key.family = digestOf(familyOf(op));
  record.key.phase = toString(op.phase);
  record.key.threads = 2;
  record.key.standard = variant.schedule.text(op);
  record.key.machine = MachineKey::of(target);
  record.name = op.name;
  record.elements = op.elements.evaluate(sizes).value();
  record.schedule =
      neighborSchedules(variant.schedule, op, target).at(1 + neighbor).text(op); // 0 is itself
  record.gain = {1.25, 1.2, 1.3};
  record.noise = {1, 0.99, 1.01};
  record.pairs = 40;
  record.microseconds = 8;
  record.standardMicroseconds = 10;
  record.counts = {{CandidateState::Measured, 30}, {CandidateState::Behind, 12}};
  record.date = "2026-11-26T12:00:00Z";
  return record;
}

TunedRecords recordsOf(std::vector<ResultRecord> results) {
  std::string text;
  for (const ResultRecord &result : results)
    text += toLine(result) + "\n";
  return {llvm::MemoryBuffer::getMemBufferCopy(text), "r.jsonl"};
}

std::string errorOf(const std::string &line) {
  auto parsed = parseLine(line);
  return parsed ? "" : llvm::toString(parsed.takeError());
}

std::string replaced(std::string text, const std::string &from, const std::string &to) {
  const size_t at = text.find(from);
  REQUIRE_MESSAGE(at != std::string::npos, from);
  return text.replace(at, from.size(), to);
}

} // namespace

TEST_CASE("records read back as they were written") {
  const TargetDescription target = targetOf("znver4");
  const Operator op = makeOperator(specOf(kBatch), Phase::Training);
  const ResultRecord result = resultOf(op, target, 32);
  auto line = parseLine(toLine(result));
  REQUIRE(static_cast<bool>(line));
  REQUIRE(line->result);
  CHECK(toLine(*line->result) == toLine(result));
  CHECK(line->result->key.id() == result.key.id());
  CHECK(line->result->schedule == result.schedule);
  CHECK(line->result->gain.low == result.gain.low);

  for (CandidateState state : kCandidateStates) {
    const CandidateRecord candidate{result.key.id(), result.schedule, state, {1.1, 1, 1.2}, 7, 12.5,
                                    "a \"note\""};
    auto read = parseLine(toLine(candidate));
    REQUIRE(static_cast<bool>(read));
    REQUIRE(read->candidate);
    CHECK(toLine(*read->candidate) == toLine(candidate));
    CHECK((read->candidate->state == state));
  }
}

TEST_CASE("what is wrong with a line is said in words") {
  const std::string line =
      toLine(resultOf(makeOperator(specOf(kBatch), Phase::Training), targetOf("znver4"), 32));
  CHECK(errorOf("{\"record\":").starts_with("no JSON: "));
  CHECK(errorOf("[1]") == "expected an object");
  CHECK(errorOf(replaced(line, "\"version\":1", "\"version\":2")) ==
        "is of version 2, from the future; this normforge reads up to 1");
  CHECK(errorOf(replaced(line, "\"record\":\"result\"", "\"record\":\"other\"")) ==
        "\"record\": expected candidate or result, found \"other\"");
  CHECK(errorOf(replaced(line, "\"threads\":2", "\"threads\":0")) ==
        "\"threads\": expected a whole number of at least 1, found 0");
  CHECK(errorOf(replaced(line, "\"cache\":\"warm\"", "\"cache\":\"hot\"")) ==
        "\"cache\": expected one of warm, cold, found \"hot\"");
  CHECK(errorOf(replaced(line, "\"l2\":", "\"no\":")) ==
        "machine: \"l2\": expected a whole number of at least 0, found nothing");
  CHECK(errorOf(replaced(line, "\"threads\":2", "\"threads\":3"))
            .find("but what it is made of gives") != std::string::npos);
}

TEST_CASE("a record of another machine, compiler or language is stale, and why is said") {
  const TargetDescription target = targetOf("znver4");
  ResultRecord record = resultOf(makeOperator(specOf(kBatch), Phase::Training), target, 32);
  CHECK(stalenessOf(record, target) == "");
  CHECK(stalenessOf(record, targetOf("haswell")).starts_with("CPU znver4, here haswell"));
  TargetDescription other = target;
  other.l3Bytes *= 2;
  CHECK(stalenessOf(record, other) == "L3 33554432, here 67108864");
  other = target;
  std::erase(other.features, "avx512f");
  CHECK(stalenessOf(record, other) == "features avx512f, which are not here");
  record.key.compiler = "normforge 0.0, LLVM 21";
  record.key.language = 7;
  CHECK(stalenessOf(record, target) ==
        fmt::format("schedules' language 7, here {}; compiler normforge 0.0, LLVM 21, here {}",
                    kScheduleLanguage, compilerKey()));
}

TEST_CASE("operators that differ in numbers alone have one signature") {
  auto signature = [](const std::string &more, const char *shape = "[N, 64, 28, 28]") {
    return signatureOf(makeOperator(
        specOf(fmt::format("input: {{shape: {}, layout: nchw}}\naxis: c\n{}", shape, more)),
        Phase::Training));
  };
  const std::string own = signature("phases: [training]\n");
  CHECK(own == signature("name: other\nepsilon: 0.5\nmomentum: 0.5\nphases: [training]\n"));
  CHECK(own != signature("fuse: [relu]\nphases: [training]\n"));
  CHECK(own != signature("scale: false\nphases: [training]\n"));
  CHECK(own != signature("phases: [training]\n", "[N, 64, 28, 27]"));
  auto family = [](const char *shape) {
    return familyOf(
        makeOperator(specOf(fmt::format("input: {{shape: {}, layout: nchw}}\naxis: c\n", shape)),
                     Phase::Inference));
  };
  CHECK(family("[8, 64, 28, 28]") == family("[9, 32, 7, 7]"));
}

TEST_CASE("a flag comes before a record, and a record before the heuristic") {
  const TargetDescription target = targetOf("znver4");
  const Operator op = makeOperator(specOf(kStatic), Phase::Inference);
  const ResultRecord record = resultOf(op, target, 0);
  const TunedRecords tuned = recordsOf({record});
  auto chosen = chooseSchedules(op, target, {.tuned = &tuned});
  REQUIRE(static_cast<bool>(chosen));
  REQUIRE(chosen->size() == 1);
  CHECK(chosen->front().schedule.text(op) == record.schedule);
  CHECK(chosen->front().reason.starts_with("tuned: 1.25 (1.20 to 1.30) times as fast"));
  auto forced = chooseSchedules(op, target, {.forced = record.key.standard, .tuned = &tuned});
  REQUIRE(static_cast<bool>(forced));
  CHECK(forced->front().schedule.text(op) == record.key.standard);
  CHECK(forced->front().reason == "given");
  auto alone = chooseSchedules(op, target, {.tuned = &tuned, .heuristicAlone = true});
  REQUIRE(static_cast<bool>(alone));
  CHECK(alone->front().schedule.text(op) == record.key.standard);
  // Not on another machine.
  const TargetDescription other = targetOf("znver5");
  auto elsewhere = chooseSchedules(op, other, {.tuned = &tuned});
  REQUIRE(static_cast<bool>(elsewhere));
  CHECK(elsewhere->front().schedule == selectSchedules(op, other).front().schedule);
}

TEST_CASE("an engine takes schedules from its records") {
  auto native = describeTarget("native");
  if (!native) {
    MESSAGE("SKIP: no kernels for this machine: " << llvm::toString(native.takeError()));
    return;
  }
  const Operator op = makeOperator(specOf(kStatic), Phase::Inference);
  const ResultRecord record = resultOf(op, *native, 0);
  const std::string path = "/tmp/normforge-records-" + std::to_string(getpid()) + ".jsonl";
  const CandidateRecord candidate{record.key.id(), record.schedule};
  std::ofstream(path) << toLine(candidate) << "\nno record\n" << toLine(record) << "\n";
  for (const bool inChild : {false, true}) {
    const nf::Engine engine(
        {.cacheDirectory = "", .compileInChild = inChild, .tunedRecords = path});
    const nf::Kernel kernel = engine.compile(kStatic);
    REQUIRE(kernel.variantCount() == 1);
    CHECK(kernel.schedule(0) == record.schedule);
    CHECK(std::string(kernel.reason(0)).starts_with("tuned: 1.25 (1.20 to 1.30)"));
    CHECK(std::string(kernel.reason(0)).ends_with(path));
  }
  // Without them, and with others, it is another kernel, from the same directory of kernels too.
  const std::string folder = "/tmp/normforge-records-" + std::to_string(getpid());
  for (const char *tuned : {path.c_str(), "", path.c_str()}) {
    const nf::Engine engine({.cacheDirectory = folder, .tunedRecords = tuned});
    const std::string schedule(engine.compile(kStatic).schedule(0));
    CHECK((schedule == record.schedule) == (*tuned != '\0'));
  }
  std::filesystem::remove_all(folder);
  std::filesystem::remove(path);
  try {
    const nf::Engine engine({.tunedRecords = path});
    FAIL("records that are not there were read");
  } catch (const nf::Error &error) {
    CHECK(error.code() == NF_SYSTEM_ERROR);
    CHECK(std::string(error.what()) == path + ": cannot be read: No such file or directory");
  }
}

TEST_CASE("records that do not hold any more are left out") {
  const TargetDescription target = targetOf("znver4");
  const Operator op = makeOperator(specOf(kStatic), Phase::Inference);
  auto isUsed = [&](const ResultRecord &record) {
    const TunedRecords tuned = recordsOf({record});
    auto chosen = chooseSchedules(op, target, {.tuned = &tuned});
    REQUIRE(static_cast<bool>(chosen));
    return chosen->front().reason.starts_with("tuned");
  };
  ResultRecord record = resultOf(op, target, 0);
  CHECK(isUsed(record));
  SUBCASE("measured against another default") { record.key.standard = record.schedule; }
  SUBCASE("no schedule any more") { record.schedule = "tails=masked something else"; }
  SUBCASE("not legal") { record.schedule = replaced(record.schedule, "vector=", "vector=3"); }
  SUBCASE("another phase") { record.key.phase = "training"; }
  SUBCASE("another language") { ++record.key.language; }
  CHECK_FALSE(isUsed(record));
}

TEST_CASE("a record holds for sizes near its own, and between two the nearer one's") {
  const TargetDescription target = targetOf("znver4");
  const Operator op = makeOperator(specOf(kBatch), Phase::Training);
  const auto heuristic = selectSchedules(op, target);
  const ResultRecord two = resultOf(op, target, 2, 0), eight = resultOf(op, target, 8, 2);
  REQUIRE(two.key.standard == eight.key.standard);
  REQUIRE(two.schedule != eight.schedule);
  const TunedRecords tuned = recordsOf({two, eight});
  auto chosen = chooseSchedules(op, target, {.tuned = &tuned});
  REQUIRE(static_cast<bool>(chosen));
  CHECK(chosen->size() <= kMostVariants);
  CHECK(chosen->back().guard.limit == INT64_MAX);
  auto at = [&](int64_t n) {
    const int64_t sizes[] = {n};
    return variantAt(*chosen, sizes).schedule.text(op);
  };
  CHECK(at(1) == two.schedule);
  CHECK(at(2) == two.schedule);
  CHECK(at(3) == two.schedule);
  CHECK(at(5) == eight.schedule);
  CHECK(at(8) == eight.schedule);
  for (int64_t n : {1, 2, 8, 16, 33, 64, 256}) {
    const int64_t sizes[] = {n};
    const std::string own = variantAt(heuristic, sizes).schedule.text(op);
    if (n > 8 * kRelatives || own != two.key.standard)
      CHECK_MESSAGE(at(n) == own, n);
  }
}

TEST_CASE("a relative's record holds within its distance alone") {
  const TargetDescription target = targetOf("znver4");
  auto operatorOf = [](int64_t n) {
    return makeOperator(
        specOf(fmt::format("input: {{shape: [{}, 64, 28, 28], layout: nchw}}\naxis: c\n", n)),
        Phase::Inference);
  };
  const TunedRecords tuned = recordsOf({resultOf(operatorOf(4), target, 0)});
  for (int64_t n : {1, 3, 5, 8, 16, 17, 64}) {
    const Operator op = operatorOf(n);
    auto chosen = chooseSchedules(op, target, {.tuned = &tuned});
    REQUIRE(static_cast<bool>(chosen));
    const bool isNear = n <= 16;
    const bool isSame = selectSchedules(op, target).front().schedule.text(op) ==
                        selectSchedules(operatorOf(4), target).front().schedule.text(operatorOf(4));
    CHECK_MESSAGE(chosen->front().reason.starts_with("tuned") == (isNear && isSame), n);
  }
}

TEST_CASE("of several records of one case the surest is taken") {
  const TargetDescription target = targetOf("znver4");
  const Operator op = makeOperator(specOf(kStatic), Phase::Inference);
  ResultRecord quick = resultOf(op, target, 0, 0), full = resultOf(op, target, 0, 1);
  full.effort = Effort::Full;
  quick.date = "2027-01-01T00:00:00Z";
  ResultRecord wide = resultOf(op, target, 0, 2);
  for (const auto &order : {std::vector{quick, full}, std::vector{full, quick}}) {
    const TunedRecords tuned = recordsOf(order);
    auto chosen = chooseSchedules(op, target, {.tuned = &tuned});
    REQUIRE(static_cast<bool>(chosen));
    CHECK(chosen->front().schedule.text(op) == full.schedule);
  }
  wide.key.threads = 64;
  const TunedRecords tuned = recordsOf({quick, full, wide});
  auto chosen = chooseSchedules(op, target, {.tuned = &tuned});
  REQUIRE(static_cast<bool>(chosen));
  CHECK(chosen->front().schedule.text(op) == wide.schedule);
}

TEST_CASE("what a search tries: once each, of the same bits where asked, and all if exhaustive") {
  const TargetDescription target = targetOf("znver4");
  auto caseOf = [&](BitsPolicy bits) {
    tune::Case of;
    of.spec = specOf(kStatic);
    of.phase = Phase::Training;
    of.threads = 2;
    of.bits = bits;
    complete(of, target);
    return of;
  };
  // Where no candidate gains, up to `most` of them.
  auto triedOf = [&](const tune::Case &of, Effort effort, size_t most) {
    tune::Search search(of, target, effort);
    std::set<std::string> tried;
    while (tried.size() < most) {
      const auto text = search.next();
      if (!text)
        break;
      CHECK_MESSAGE(tried.insert(*text).second, *text);
      search.tell(*text, 0);
    }
    return tried;
  };
  auto othersOf = [](const tune::Case &of, const std::set<std::string> &texts) {
    return std::ranges::count_if(texts, [&](const std::string &text) {
      auto schedule = parseSchedule(text, of.op);
      REQUIRE_MESSAGE(static_cast<bool>(schedule), text);
      return !haveSameBits(*schedule, of.standard, of.op);
    });
  };
  // More rows are taken, and carried, than there are.
  tune::Case few;
  few.spec =
      specOf("input: {shape: [T, 64], layout: tc}\naxis: c\nmode: rms\nphases: [backward]\n");
  few.phase = Phase::Backward;
  few.threads = 2;
  few.sizes = {{"T", 8}};
  complete(few, target);
  CHECK(triedOf(few, Effort::Quick, SIZE_MAX).size() > 10);
  const tune::Case any = caseOf(BitsPolicy::Any), fixed = caseOf(BitsPolicy::Fixed);
  const auto quick = triedOf(any, Effort::Quick, SIZE_MAX);
  const auto full = triedOf(any, Effort::Full, SIZE_MAX);
  CHECK(quick.size() > 10);
  CHECK(full.size() > quick.size());
  CHECK(triedOf(any, Effort::Exhaustive, full.size() + 1).size() > full.size());
  CHECK(othersOf(any, full) > 0);
  const auto same = triedOf(fixed, Effort::Full, SIZE_MAX);
  CHECK(same.size() > 5);
  CHECK(othersOf(fixed, same) == 0);
}

TEST_CASE("problems of benchdnn become specs") {
  auto read = [](const std::string &text) {
    auto problems = tune::parseBenchdnnList(text, "list.txt");
    REQUIRE_MESSAGE(static_cast<bool>(problems), text);
    std::vector<std::string> texts;
    for (const tune::ListedProblem &problem : *problems) {
      const Spec &spec = problem.spec;
      std::vector<int64_t> shape;
      for (const Size &size : spec.shape)
        shape.push_back(size.value);
      std::vector<std::string> fuse;
      for (const FuseStep &step : spec.fuse)
        fuse.push_back(step.text());
      texts.push_back(fmt::format(
          "{} {} {} {} [{}] {} {}{} {} eps {}", problem.place, spec.name, toString(problem.phase),
          spec.layout.text, fmt::join(shape, ","), toString(spec.mode), spec.scale ? "s" : "-",
          spec.center ? "c" : "-", fmt::join(fuse, ","), spec.epsilon.value));
    }
    return texts;
  };
  using Texts = std::vector<std::string>;
  CHECK(
      read("--dir=FWD_I\n--flags=GS\n--tag=nhwc\n--mb=1\n"
           "ic64_ih112iw112_n\"resnet_50:bn_conv1\"\n") ==
      Texts{"list.txt:5 resnet_50_bn_conv1 inference nhwc [1,112,112,64] feature sc  eps 0.0625"});
  CHECK(read("--dir=FWD_D,BWD_DW --flags=CHR --tag=abx,aBx16b mb96ic3ih7eps0.5") ==
        Texts{"list.txt:1 mb96ic3ih7eps0_5 training nchw [96,3,7,7] feature sc relu eps 0.5",
              "list.txt:1 mb96ic3ih7eps0_5 training nChw16c [96,3,7,7] feature sc relu eps 0.5",
              "list.txt:1 mb96ic3ih7eps0_5 backward nchw [96,3,7,7] feature sc relu eps 0.5",
              "list.txt:1 mb96ic3ih7eps0_5 backward nChw16c [96,3,7,7] feature sc relu eps 0.5"});
  CHECK(read("--dir=FWD_I --flags=C ic8 # own statistics\n--flags=H ic8iw5") ==
        Texts{"list.txt:1 ic8 inference nc [2,8] batch s-  eps 0.0625",
              "list.txt:2 ic8iw5 inference ncw [2,8,5] batch -c  eps 0.0625"});
  CHECK(read("--lnorm --flags=S 4096x768 --gnorm --flags=CH --tag=axb g4mb2ic8ih3iw5") ==
        Texts{"list.txt:1 n4096x768 training nc [4096,768] sample sc  eps 0.0625",
              "list.txt:1 g4mb2ic8ih3iw5 training nhwc [2,3,5,8] group sc  eps 0.0625"});
  CHECK(read("--attr-post-ops=relu --inplace=false -v1 id2ic8\n--reset ic8") ==
        Texts{"list.txt:1 id2ic8 training ncdhw [2,8,2,2,2] feature -- relu eps 0.0625",
              "list.txt:2 ic8 training nc [2,8] feature --  eps 0.0625"});
}

TEST_CASE("shards come from a flag, or from what batch systems tell") {
  using namespace normforge::cli;
  std::map<std::string, std::string> variables;
  auto choose = [&](const char *word = "") {
    return chooseShard(word, [&](const char *name) {
      const auto found = variables.find(name);
      return found == variables.end() ? nullptr : found->second.c_str();
    });
  };
  auto is = [&](size_t index, size_t count, const char *source, const char *word = "") {
    auto shard = choose(word);
    REQUIRE(static_cast<bool>(shard));
    CHECK(shard->index == index);
    CHECK(shard->count == count);
    CHECK(shard->source == source);
  };
  auto fails = [&](const char *words) {
    auto shard = choose();
    REQUIRE_FALSE(static_cast<bool>(shard));
    CHECK(llvm::toString(shard.takeError()) == words);
  };
  is(1, 1, "");
  is(3, 16, "--shard", "3/16");
  variables = {{"SLURM_ARRAY_TASK_ID", "5"},   {"SLURM_ARRAY_TASK_MIN", "1"},
               {"SLURM_ARRAY_TASK_STEP", "2"}, {"SLURM_ARRAY_TASK_COUNT", "8"},
               {"SLURM_PROCID", "0"},          {"SLURM_NTASKS", "1"}};
  is(3, 8, "SLURM_ARRAY_TASK_ID");
  is(2, 4, "--shard", "2/4");
  variables = {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "4"}};
  is(1, 4, "OMPI_COMM_WORLD_RANK");
  variables = {{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}};
  is(4, 4, "PMI_RANK");
  variables = {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}};
  is(2, 2, "SLURM_PROCID");
  variables = {{"JOB_COMPLETION_INDEX", "2"}, {"JOB_COMPLETIONS", "3"}};
  is(3, 3, "JOB_COMPLETION_INDEX");
  variables = {{"JOB_COMPLETION_INDEX", "2"}};
  fails("normforge: error: JOB_COMPLETION_INDEX is '2', which is no part of a sweep of an unknown "
        "number; give --shard INDEX/COUNT");
  variables = {{"OMPI_COMM_WORLD_RANK", "4"}, {"OMPI_COMM_WORLD_SIZE", "4"}};
  fails("normforge: error: OMPI_COMM_WORLD_RANK is '4', which is no part of a sweep of 4; give "
        "--shard INDEX/COUNT");
  CHECK(shardFile("a/all.jsonl", {3, 16}) == "a/all.3-of-16.jsonl");
  CHECK(shardFile("all", {1, 1}) == "all");
}

TEST_CASE("what schedules differ in is told by knob") {
  const std::string one =
      "tails=masked a(moments + b; take=[all,1] tiled=c vector=16 tile=1 unroll=2) "
      "n(normalize; take=[1,all] vector=16 tile=1 unroll=1 stores=streaming)";
  using Names = std::vector<std::string>;
  CHECK(tune::differingKnobs(one, one) == Names{});
  CHECK(tune::differingKnobs(one, replaced(one, "take=[1,all]", "take=[4,all]")) == Names{"take"});
  CHECK(tune::differingKnobs(one, replaced(one, " stores=streaming", "")) == Names{"stores"});
  CHECK(tune::differingKnobs(replaced(one, "unroll=2", "unroll=4"),
                             replaced(one, "tile=1 unroll=1", "tile=2 unroll=1")) ==
        Names{"tile", "unroll"});
  CHECK(tune::differingKnobs(one, replaced(one, "masked", "masked halves=paired")) ==
        Names{"halves"});
  CHECK(tune::differingKnobs(one, replaced(one, "moments + b", "moments")) == Names{"stages"});
  CHECK(tune::differingKnobs(one, "tails=masked n(normalize; take=[1] vector=16)") ==
        Names{"stages"});
}

TEST_CASE("times are read with their units") {
  using namespace normforge::cli;
  for (auto [word, seconds] :
       {std::pair{"90s", 90.0}, {"10m", 600.0}, {"1.5h", 5400.0}, {"7", 7.0}}) {
    auto read = parseDuration("--budget", word);
    REQUIRE(static_cast<bool>(read));
    CHECK(*read == seconds);
  }
  for (const char *word : {"", "0", "0s", "-3s", "10x", "m", "1e3", "nan"}) {
    auto read = parseDuration("--budget", word);
    CHECK_MESSAGE(!read, word);
    llvm::consumeError(read.takeError());
  }
  CHECK(durationInWords(59.4) == "59 s");
  CHECK(durationInWords(61) == "1 min 01 s");
  CHECK(durationInWords(7500) == "2 h 05 min");
}

TEST_CASE("paired ratios have the interval of their ranks") {
  std::vector<double> a(25, 1.0), b;
  for (int i = 0; i < 25; ++i)
    b.push_back(1 + 0.01 * i);
  const Ratio ratio = pairedRatio(a, b);
  CHECK(ratio.value == doctest::Approx(1.12));
  CHECK(ratio.low == doctest::Approx(1.07)); // ranks 12.5 -+ 4.9
  CHECK(ratio.high == doctest::Approx(1.17));
  const Ratio few = pairedRatio(std::vector<double>{1, 1, 1}, std::vector<double>{2, 3, 4});
  CHECK(few.low == 2);
  CHECK(few.value == 3);
  CHECK(few.high == 4);
}
