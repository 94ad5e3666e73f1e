// How a kernel computes: a plain value chosen before lowering.
//
// Enters: an Operator and a TargetDescription. Leaves: a few variants, each a Schedule with a
// guard over the sizes. Lowering and passes read a schedule and decide nothing; SelectSchedule
// decides and rewrites nothing.
#pragma once

#include "compiler/machine/Machine.h"
#include "compiler/operator/Operator.h"

#include <optional>
#include <string>
#include <vector>

namespace normforge {

/// The version of the language of schedules' texts. It grows when a text comes to mean another
/// kernel.
constexpr int kScheduleLanguage = 1;

/// The part of a step that a stage does.
enum class Part : uint8_t {
  Whole,   ///< all of it
  Partial, ///< a reduction over what a task has: a partial result for each chunk of the cut loops
  Merge,   ///< partial results to whole ones, in f64 and in a fixed order
};

/// How the elements of a tile's rows are gone through.
enum class Rows : uint8_t {
  /// Sums take a vector of each row at once; what is written is row after row.
  OneByOne,
  /// Elements are written a vector of each row at once, too: what the rows share is read once.
  Together,
  /// The rows lie one after the other and are taken as one run, so that a vector has several of
  /// them that are shorter than it.
  Packed,
};

struct StepPlan {
  uint32_t step = 0; ///< its index in Operator::steps
  Part part = Part::Whole;
  bool operator==(const StepPlan &) const = default;
};

/// One stage of a kernel: some steps, in order, over the stage's loops (stageLoops).
struct StagePlan {
  std::string name{}; ///< the end of the function's name
  std::vector<StepPlan> steps{};
  /// For each loop, the iterations of it that a task takes; 0: all of them. The number of tasks is
  /// the product of ceil(size/chunk) over the chunked loops.
  std::vector<int64_t> chunks{};
  /// The kept loop whose indices a tile covers; -1: none. A tile is within one index of every other
  /// kept loop, over which a task goes one by one. Says what is kept, too: keptLoops.
  int tiled = -1;
  int64_t vector = 1; ///< lanes of a vector
  /// Kept indices whose statistics are in registers at once: rows in flight where the innermost
  /// loop is not kept; lanes, a multiple of the vector, where it is.
  int64_t tile = 1;
  /// Iterations of the innermost reduced loop in flight, in vectors where that loop has the lanes.
  int64_t unroll = 1;
  /// Every other pass over a task's data goes through the outermost reduced loop backwards, and
  /// meets in cache what the pass before it read last.
  bool alternates = false;
  /// While elements are written, what the tile so many after this one reads is fetched into L2:
  /// memory then works through the passes that find their data in cache, too. 0: nothing is.
  int64_t prefetch = 0;
  Rows rows = Rows::OneByOne;
  /// A range of tasks that one call runs goes from the last to the first, beginning with those
  /// whose data a stage before this one has read last.
  bool reversed = false;
  /// Elements are written past the caches, where they are aligned to whole vectors.
  bool streams = false;
  /// On a GPU the threads that share a task, each with its part of every vector; 0: a CPU's.
  int64_t threads = 0;
  /// On a GPU, as many threads for each of `threads`, one under the other: each goes through every
  /// so many iterations of a step's innermost loop but that of the lanes.
  int64_t down = 1;
  int64_t groups = 1; ///< tasks side by side in a block of threads
  /// On a GPU, vectors that a thread keeps in registers from step to step, of each array of the
  /// data that several of them go through: its first ones. What is beyond is read again.
  int64_t held = 0;
  /// On a GPU, blocks that a multiprocessor can have at once, at least: what bounds a thread's
  /// registers.
  int64_t resident = 1;

  int64_t groupThreads() const { return threads * down; }

  bool merges() const { return !steps.empty() && steps.front().part == Part::Merge; }
  std::vector<uint32_t> stepNumbers() const;
  bool operator==(const StagePlan &) const = default;
};

struct Schedule {
  bool maskedTails = true; ///< as TargetDescription::maskedTails
  bool maskedLoads = true; ///< as TargetDescription::maskedLoads
  /// Vectors are scalable, and StagePlan::vector is what this many times their least length has;
  /// 0: they are not. Any other length takes the same tasks in other steps.
  int64_t scalable = 0;
  /// Two vectors of bf16 side by side are one in memory: one register has the even elements, which
  /// a shift widens, the other the odd ones, which need but a mask. (One by one, each is spread
  /// over a register first.)
  bool pairsHalves = false;
  std::vector<StagePlan> stages; ///< in the order in which they run

  /// One line: "tails=masked moments(partial moments; take=[1,1,all] tiled=c vector=16 ...) ...".
  std::string text(const Operator &op) const;
  bool operator==(const Schedule &) const = default;
};

/// Parses a text that Schedule::text wrote; the schedule need not be legal. An error says at which
/// column what was expected and found.
llvm::Expected<Schedule> parseSchedule(llvm::StringRef text, const Operator &op);

/// Whether kernels can be made by it: an error in words that names the stage, the loop or step, and
/// the value. A legal schedule changes at most in which order sums are taken.
llvm::Error checkSchedule(const Schedule &schedule, const Operator &op,
                          const TargetDescription &target);

struct ScheduleVariant {
  Schedule schedule;
  Guard guard;
  std::string reason;   ///< in words, for `explain`
  bool isGiven = false; ///< a user's own: it is made as it is, or not at all
};

/// The machine as schedules of an operator see it: bits ask for vectors of a fixed length.
TargetDescription targetFor(const Operator &op, const TargetDescription &target);

/// Whether Schedule::pairsHalves may be: of bf16, on x86. (NEON and SVE widen either half of a
/// register by one instruction.)
bool mayPairHalves(const Operator &op, const TargetDescription &target);

/// By loop of the operator, whether it indexes what the stage's tiles have in registers: as
/// Operator::kept of its steps. Of a stage that makes elements alone, out of what is in memory, and
/// whose innermost loop is kept, tiles may be rows instead: where another loop is tiled, that and
/// all loops around the innermost are kept, and what a column needs is read beside each element.
std::vector<bool> keptLoops(const Operator &op, const StagePlan &stage);

/// A loop of a stage.
struct StageLoop {
  std::string name;
  SizeExpr size;
  bool kept = false; ///< indexes what the stage's tiles have in registers
  int loop = -1;     ///< the operator's
};

/// The loops of stage `index`: those of its steps, in the operator's order; of one that merges, a
/// loop over the chunks of each loop that partials were cut along, then the kept ones.
std::vector<StageLoop> stageLoops(const Operator &op, const Schedule &schedule, size_t index);

/// The stage that makes the partials that stage `index` merges; -1: none does.
int partialStage(const Schedule &schedule, size_t index);

/// Whether a step's sums are carried: the tiles of the stage keep other loops than the step does,
/// and each tile adds to partial results that its task has in memory.
bool isCarried(const Operator &op, const StagePlan &stage, const StepPlan &plan);

/// The innermost loop when it is kept, else the last kept one; -1 when no loop is kept.
int tileLoop(std::span<const StageLoop> loops);

/// The name of an array of a step whose rows, which the elements of `inner` are, do not lie one
/// after the other along `outer`: of an operand, a known array, or statistics, whose blocks lie
/// otherwise than the data's. Nothing: those of all do.
std::optional<std::string> apartRows(const Operator &op, const Step &step, int outer, int inner);

/// Product of ceil(size/chunk) over the chunked loops.
SizeExpr taskCount(std::span<const StageLoop> loops, const StagePlan &stage);

/// Whether a tile's indices are columns: the innermost loop is tiled.
bool hasColumns(const StagePlan &stage, std::span<const StageLoop> loops);
/// Vectors or rows that a tile has at once.
int64_t slotsOf(const StagePlan &stage, std::span<const StageLoop> loops);
/// Bytes of vectors that a step of a stage has in flight, on a GPU those of a thread.
int64_t bytesInFlight(const StagePlan &stage, const Operator &op, std::span<const StageLoop> loops);
/// On a GPU, bytes of registers that a thread has at most where blocks are so large.
int64_t mostRegisterBytes(const StagePlan &stage, const Device &device);
/// Blocks of a stage that a multiprocessor can have at once, by threads and shared memory.
int64_t mostResident(const StagePlan &stage, const Operator &op, std::span<const StageLoop> loops,
                     const Device &device);
/// The arrays of the data that steps of a stage go through more than once, whose vectors a thread
/// may hold: operands' elements, and those that a step has made. Bits are none of them.
std::vector<Expr> heldArrays(const Operator &op, const StagePlan &stage);
/// Vectors that a thread may hold of each array: each is code.
constexpr int64_t kMostHeld = 64;
/// Vectors that a thread of a GPU has of each array in a task; nothing: of a named size.
std::optional<int64_t> vectorsOfThread(const StagePlan &stage, std::span<const StageLoop> loops);
/// How often a stage loads each element of an operand of the data, bits apart: all of them, and
/// those beyond StagePlan::held.
struct Loads {
  const Operand *array = nullptr;
  int ofAll = 0, beyondHeld = 0;
};
std::vector<Loads> loadsOf(const Operator &op, const StagePlan &stage,
                           std::span<const StageLoop> loops);
/// Bytes of registers that a thread holds by StagePlan::held.
int64_t bytesHeld(const StagePlan &stage, const Operator &op);
/// What all groups of a block have of shared memory, at most: a number for each subgroup of what it
/// sums (passes/GroupSums.cpp).
int64_t sharedBytes(const StagePlan &stage, const Operator &op, std::span<const StageLoop> loops,
                    const Device &device);

/// The heuristic. The variants are in the order in which their guards are tried; the last one's
/// always holds.
std::vector<ScheduleVariant> selectSchedules(const Operator &op, const TargetDescription &target);

/// The stages in which a GPU may do an operator's steps. What a task takes is as for some CPU.
struct StageForms {
  /// One for all that is done with the data, and small ones after it; none where there can be no
  /// such stage, or it would carry sums over columns.
  std::optional<Schedule> fused;
  Schedule split;      ///< partials, their merges, then elements
  bool splits = false; ///< whether the second form cuts sums that the first one has whole
};
StageForms formsOfStages(const Operator &op);

/// The same for a GPU; see SelectDeviceSchedule.cpp.
std::vector<ScheduleVariant> selectDeviceSchedules(const Operator &op,
                                                   const TargetDescription &target);

/// The same schedule of a GPU in which a thread loads and stores single elements, so that arrays
/// need no alignment but that of these; for all sizes.
ScheduleVariant withScalarLanes(ScheduleVariant variant, const Operator &op);

/// The forms that the heuristic chooses between, each as it would be for its own sizes: one stage,
/// several (partials and their merge; what columns need, and rows), and each with streaming stores.
std::vector<Schedule> scheduleForms(const Operator &op, const TargetDescription &target);

/// Legal schedules to choose from, each once: those of the heuristic, and neighbors that differ in
/// form, vectors, tiles, what is in flight and what tasks take: some 20 of each stage of each form.
std::vector<Schedule> scheduleSpace(const Operator &op, const TargetDescription &target);

/// Legal schedules that differ from this one in one knob, of one stage or of all. `isWide`: in more
/// values of it, for who has time.
std::vector<Schedule> neighborSchedules(const Schedule &schedule, const Operator &op,
                                        const TargetDescription &target, bool isWide = false);

/// The legal schedule with half as much in flight in every stage: iterations, else rows or columns,
/// else lanes. None where nothing is left to halve.
std::optional<Schedule> withLessInFlight(const Schedule &schedule, const Operator &op,
                                         const TargetDescription &target);

/// Whether kernels by these two give the same bits: they do the same steps in the same stages, and
/// a stage that reduces has the same vectors, of as many rows, iterations in flight, order of
/// passes and parts of what it reduces over. What a task has of anything else, the rows or columns
/// that are in flight, rows written together, the order of tasks, fetching ahead and streaming
/// change none, and paired halves change none of a stage that reduces nothing.
bool haveSameBits(const Schedule &a, const Schedule &b, const Operator &op);

} // namespace normforge
