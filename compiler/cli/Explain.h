// The parts of `normforge explain`.
#pragma once

#include "compiler/cli/Command.h"
#include "runtime/kernel/Kernel.h"

#include "llvm/Support/JSON.h"

namespace normforge::cli {

/// Values of the named sizes, in the operator's order, where they are known.
using SizeValues = std::optional<std::vector<int64_t>>;

/// All that explain tells of.
struct Explained {
  const Spec &spec;
  const Operator &op;
  const TargetDescription &target;
  llvm::ArrayRef<ScheduleVariant> variants; ///< as they came to be
  const Artifact &artifact;
  SizeValues values;
  int threads = 1; ///< of estimates

  /// The variant that the sizes take; empty where they are not known.
  std::optional<size_t> taken() const;
};

/// The formula that the semantics, and what the spec says beside them, come to.
void printFormula(const Spec &whole, Phase phase);

/// The loops of a stage as they are run, indented: tasks, tiles, passes, steps.
std::string pseudocode(const Operator &op, const Schedule &schedule, size_t stage,
                       const SizeValues &values);

/// Another schedule, and how long a model says that it takes, over the time of the one taken.
struct Alternative {
  std::string schedule;
  double ratio = 0;
};
/// The forms that the heuristic chose between, and what each is estimated to take; the fastest
/// first, without those that are the one taken. Empty where sizes are not known.
std::vector<Alternative> alternatives(const Explained &explained);
/// Nanoseconds by the same model, of the variant taken.
double estimateOfTaken(const Explained &explained);

/// Operands of `fuse` and `prologue`, which move beside x and y.
std::vector<const Operand *> operandsOfSteps(const Explained &explained);

llvm::json::Object jsonOf(const Explained &explained);

} // namespace normforge::cli
