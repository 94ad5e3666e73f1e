// Runs the project's passes, one or several, on IR from a file, as mlir-opt does for MLIR's own:
//   normforge-opt --nf-form-tasks FILE.mlir | FileCheck FILE.mlir
#include "compiler/lowering/Lowering.h"
#include "compiler/passes/Passes.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/ControlFlow/IR/ControlFlow.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/Tools/mlir-opt/MlirOptMain.h"

#include "llvm/Support/LogicalResult.h"

namespace normforge {
#define GEN_PASS_REGISTRATION
#include "compiler/passes/Passes.h.inc"
} // namespace normforge

int main(int argc, char **argv) {
  normforge::registerNormforgePasses();
  mlir::DialectRegistry registry;
  normforge::registerLoweringDialects(registry);
  registry.insert<mlir::bufferization::BufferizationDialect, mlir::cf::ControlFlowDialect,
                  mlir::LLVM::LLVMDialect, mlir::memref::MemRefDialect, mlir::scf::SCFDialect,
                  mlir::vector::VectorDialect>();
  return mlir::asMainReturnCode(
      mlir::MlirOptMain(argc, argv, "The passes of Normforge\n", registry));
}
