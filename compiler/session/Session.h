// Compiles specs: owns what is costly to make and reusable.
#pragma once

#include "compiler/operator/Operator.h"
#include "compiler/schedule/Schedule.h"
#include "compiler/target/Target.h"
#include "runtime/artifact/Artifact.h"

#include <memory>
#include <string>
#include <vector>

namespace normforge {

/// What `compile --emit` can show, in the order in which it comes to be.
enum class EmitStage : uint8_t { Linalg, Scheduled, Vector, LlvmMlir, Llvm, Assembly, Object };
std::optional<EmitStage> parseEmitStage(std::string_view text);
std::string_view emitStageNames(); ///< "linalg, scheduled, ..."

/// Milliseconds of one compilation, summed over its variants.
struct CompileTimes {
  double lower = 0, passes = 0, convert = 0, translate = 0, optimize = 0, codegen = 0, image = 0;
  double total() const {
    return lower + passes + convert + translate + optimize + codegen + image;
  }
};

/// Not thread-safe: one session a thread. Making one costs some 5 ms, a kernel less when it is
/// reused.
class Session {
public:
  /// `verify` runs the MLIR and LLVM verifiers after every step.
  explicit Session(TargetDescription target, bool verify = false);
  ~Session();

  const TargetDescription &target() const { return target_; }

  /// Compiles one phase of a spec with all variants of its schedule.
  llvm::Expected<Artifact> compile(const Spec &spec, Phase phase, CompileTimes *times = nullptr);
  /// The same for schedules chosen by the caller, the guard of the last one always holding.
  llvm::Expected<Artifact> compile(const Operator &op, llvm::ArrayRef<ScheduleVariant> variants,
                                   CompileTimes *times = nullptr);
  /// The text (or object's bytes) of a stage for each variant.
  llvm::Expected<std::vector<std::string>> emit(const Operator &op,
                                                llvm::ArrayRef<ScheduleVariant> variants,
                                                EmitStage stage);

private:
  struct State;
  TargetDescription target_;
  std::unique_ptr<State> state_;
};

/// Name of a kernel's functions, without the stage: "nf_bn_training_f32_nchw".
std::string kernelSymbol(const Operator &op);

} // namespace normforge
