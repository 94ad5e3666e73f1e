// Compiles specs: owns what is costly to make and reusable.
#pragma once

#include "compiler/machine/Machine.h"
#include "compiler/operator/Operator.h"
#include "compiler/schedule/Schedule.h"
#include "runtime/artifact/Artifact.h"

#include <memory>
#include <string>
#include <vector>

namespace normforge {

/// The stages that `compile --emit` can show, in the order in which they come to be.
enum class EmitStage : uint8_t { Linalg, Scheduled, Vector, LlvmMlir, Llvm, Assembly };
std::optional<EmitStage> parseEmitStage(std::string_view text);
std::string_view emitStageNames(); ///< "linalg, scheduled, ..."

/// Milliseconds of one compilation, summed over its variants.
struct CompileTimes {
  double lower = 0, passes = 0, convert = 0, translate = 0, optimize = 0, codegen = 0, image = 0;
  double total() const { return lower + passes + convert + translate + optimize + codegen + image; }
};

/// A defect of the compiler, where every other error is about what it was given.
class InternalError : public llvm::ErrorInfo<InternalError> {
public:
  static char ID;
  explicit InternalError(std::string text) : text_(std::move(text)) {}
  void log(llvm::raw_ostream &os) const override;
  std::error_code convertToErrorCode() const override { return llvm::inconvertibleErrorCode(); }

private:
  std::string text_;
};

/// One kernel to be compiled into an object.
struct ObjectKernel {
  Operator op;
  std::vector<ScheduleVariant> variants;
  std::string symbol; ///< what the names of its functions begin with
};

/// Kernels as a relocatable object: nothing in it is undefined.
struct KernelObject {
  std::vector<Artifact> kernels; ///< the manifests, without images
  std::string object;            ///< the ELF file's bytes; the same for the same kernels
  std::string assembly;          ///< where it was asked for
};

/// Not thread-safe: one session a thread. Making one costs some 5 ms; a session that is used again
/// saves them. What MLIR and LLVM keep for good is let go of after some hundreds of kernels.
class Session {
public:
  /// `verify` runs the MLIR and LLVM verifiers after every step. A session for a GPU makes texts
  /// alone, unless it `emulates`: then kernels are this machine's, and do what the GPU would.
  explicit Session(TargetDescription target, bool verify = false, bool emulates = false);
  ~Session();

  const TargetDescription &target() const { return target_; }
  /// What code is made for: the target, or the CPU that emulates it.
  const TargetDescription &code() const { return code_; }

  /// Compiles one phase of a spec with all variants of its schedule. Where a schedule takes more
  /// stack than a kernel may, one with less in flight takes its place, and the artifact says so; of
  /// one that is given, that is a StackError of CodeGen.h. Other errors are InternalErrors.
  llvm::Expected<Artifact> compile(const Spec &spec, Phase phase, CompileTimes *times = nullptr);
  /// The same for schedules chosen by the caller, the guard of the last one always holding.
  llvm::Expected<Artifact> compile(const Operator &op, llvm::ArrayRef<ScheduleVariant> variants,
                                   CompileTimes *times = nullptr);
  /// The text of a stage for each variant.
  llvm::Expected<std::vector<std::string>>
  emit(const Operator &op, llvm::ArrayRef<ScheduleVariant> variants, EmitStage stage);
  /// Kernels as one object, all their variants in it, and as assembly too.
  llvm::Expected<KernelObject> compileObject(llvm::ArrayRef<ObjectKernel> kernels,
                                             bool withAssembly) {
    return compileObject(kernels, withAssembly, /*isFitting=*/false);
  }

private:
  struct State;
  State &state();
  /// `isFitting`: the variants are those that the stack was found to hold.
  llvm::Expected<KernelObject> compileObject(llvm::ArrayRef<ObjectKernel> kernels,
                                             bool withAssembly, bool isFitting);

  TargetDescription target_;
  TargetDescription code_;
  std::string whyNot_; ///< why no code is made; else empty
  bool verify_;
  int kernels_ = 0; ///< that state_ has compiled
  std::unique_ptr<State> state_;
};

} // namespace normforge
