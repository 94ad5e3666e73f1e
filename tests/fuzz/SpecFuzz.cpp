// Bytes of a stranger as a spec: a Spec, or an error that can be read; of a Spec, an operator and
// schedules for every kind of CPU. libFuzzer's; nothing is compiled.
#include "compiler/schedule/Schedule.h"
#include "compiler/spec/Spec.h"
#include "tests/fuzz/Require.h"

using namespace normforge;

namespace {

/// 20 errors, each with a note, both with their line and a caret, and a last line that counts the
/// others. The longest line is one of 160 characters of the spec.
constexpr size_t kMaxLines = 20 * 2 * 3 + 1, kMaxLineBytes = 160 * 4;

/// Each kind of vectors: SSE4.2, AVX2, AVX-512, AVX-512 with streaming stores beyond L3, NEON, SVE.
const std::vector<TargetDescription> &targets() {
  static const std::vector<TargetDescription> described = [] {
    std::vector<TargetDescription> targets;
    for (const char *cpu :
         {"x86-64-v2", "haswell", "x86-64-v4", "znver4", "neoverse-n1", "neoverse-v1"})
      targets.push_back(llvm::cantFail(describeTarget(cpu)));
    return targets;
  }();
  return described;
}

void checkStage(const StagePlan &stage, std::span<const StageLoop> loops) {
  require(stage.chunks.size() == loops.size(), "a stage has a chunk for each of its loops");
  require(stage.vector >= 1 && stage.tile >= 1 && stage.unroll >= 1,
          "something is in flight in every stage");
  for (int64_t chunk : stage.chunks)
    require(chunk >= 0, "a chunk is not negative");
  (void)taskCount(loops, stage).constant();
}

void schedule(const Operator &op, const TargetDescription &target) {
  const std::vector<ScheduleVariant> variants = selectSchedules(op, target);
  require(!variants.empty() && variants.size() <= 4, "there are one to four variants");
  require(variants.back().guard.limit == INT64_MAX, "the last variant's guard always holds");
  for (const ScheduleVariant &variant : variants) {
    const Schedule &schedule = variant.schedule;
    require(!schedule.text(op).empty() && !variant.reason.empty(), "a schedule has words");
    for (size_t i = 0; i < schedule.stages.size(); ++i)
      checkStage(schedule.stages[i], stageLoops(op, schedule, i));
  }
}

void build(const Spec &spec) {
  for (Phase phase : spec.phases) {
    const Operator op = makeOperator(spec, phase);
    require(!op.loops.empty() && !op.operands.empty(), "an operator has loops and arguments");
    (void)op.minimumBytes().text(op.sizes);
    (void)op.flops().text(op.sizes);
    for (const TargetDescription &target : targets())
      schedule(op, target);
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const llvm::StringRef text(reinterpret_cast<const char *>(data), size);
  llvm::Expected<Spec> spec = parseSpec(text, "fuzz.yaml");
  if (!spec) {
    llvm::handleAllErrors(
        spec.takeError(),
        [](const SpecError &error) { requireReadable(error.text(), kMaxLines, kMaxLineBytes); },
        [](const llvm::ErrorInfoBase &error) {
          require(false, "every error of a spec is a SpecError", error.message());
        });
    return 0;
  }
  llvm::Expected<Spec> again = parseSpec(text, "fuzz.yaml");
  require(static_cast<bool>(again), "what is a spec once is one again");
  require(canonicalText(*spec) == canonicalText(*again), "a spec that is read twice is the same");
  build(*spec);
  return 0;
}
