// From the vector dialect to LLVM IR.
//
// Enters: the module after the passes. Leaves: the LLVM dialect, then an llvm::Module with the
// functions optimized as far as it pays for kernels.
#pragma once

#include "compiler/machine/Machine.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Rewrite/FrozenRewritePatternSet.h"

#include <memory>

namespace llvm {
class LLVMContext;
class Module;
class TargetMachine;
} // namespace llvm

namespace normforge {

/// One conversion with all patterns: some 30 % of the time that separate passes take. Built once a
/// context; not thread-safe.
class LlvmConversion {
public:
  LlvmConversion(mlir::MLIRContext &context, const TargetDescription &target);
  ~LlvmConversion();
  /// Converts in place to the LLVM dialect.
  llvm::LogicalResult run(mlir::ModuleOp module) const;

private:
  struct State;
  std::unique_ptr<State> state_;
};

void registerLlvmTranslation(mlir::DialectRegistry &registry);

/// Translates the LLVM dialect; nothing on failure, which is reported as diagnostics. The code has
/// no instruction of the features `useless`.
std::unique_ptr<llvm::Module> translate(mlir::ModuleOp module, llvm::LLVMContext &context,
                                        const TargetDescription &target,
                                        llvm::TargetMachine &machine,
                                        llvm::ArrayRef<std::string> useless);

/// EarlyCSE, InstCombine, SimplifyCFG and LICM: LLVM's vectorizers would vectorize tails again.
void optimize(llvm::Module &module, llvm::TargetMachine &machine);

} // namespace normforge
