#ifndef NORMFORGE_PASSES
#define NORMFORGE_PASSES

include "mlir/Pass/PassBase.td"

def FormTasks : Pass<"nf-form-tasks", "mlir::ModuleOp"> {
  let summary = "Cut stages into tasks and tiles: loops around the steps";
  let description = [{
    Replaces the function of a stage on tensors by one on memory that runs a range of tasks: a loop
    over the tasks finds each task's part of every loop; a loop over tiles takes as many kept
    indices as the schedule keeps in flight. Inside it every step works on slices:
    `memref.subview` of the arrays, `bufferization.to_tensor` and
    `bufferization.materialize_in_destination`.
  }];
  let dependentDialects = [
    "mlir::arith::ArithDialect", "mlir::bufferization::BufferizationDialect",
    "mlir::memref::MemRefDialect", "mlir::scf::SCFDialect", "mlir::tensor::TensorDialect"
  ];
}

def BindCall : Pass<"nf-bind-call", "mlir::ModuleOp"> {
  let summary = "Give stages the kernel ABI of CPUs";
  let description = [{
    Replaces the arguments of a stage's function by `(call, first, last)` and loads from the call
    what the stage uses of its arrays, sizes and numbers.
  }];
  let dependentDialects = ["mlir::arith::ArithDialect", "mlir::LLVM::LLVMDialect"];
}

def BindKernel : Pass<"nf-bind-kernel", "mlir::ModuleOp"> {
  let summary = "Make stages kernels of a GPU";
  let description = [{
    Replaces the arguments of a stage's function by what it uses of them, in their order and by value:
    pointers, sizes and numbers; the task and the thread are found from the indices of the block and of the
    thread in it.
  }];
  let dependentDialects = [
    "mlir::arith::ArithDialect", "mlir::gpu::GPUDialect", "mlir::LLVM::LLVMDialect",
    "mlir::memref::MemRefDialect"
  ];
}

def VectorizeSteps : Pass<"nf-vectorize-steps", "mlir::ModuleOp"> {
  let summary = "Turn steps on slices into loops of vectors with accumulators in registers";
  let description = [{
    Reads maps, iterators and bodies of the steps generically. The tile's kept indices are unrolled:
    what depends on kept loops alone lives in SSA values, one a row or one a vector of columns.
    Reductions (sums and maxima) carry their accumulators through the loops; several iterations of the innermost
    reduced loop are in flight and are combined in a fixed order at the end.
  }];
  let options = [
    Option<"subgroup", "subgroup", "int64_t", /*default=*/"0",
           "Threads of a GPU that run together and exchange values">,
  ];
  let dependentDialects = [
    "mlir::arith::ArithDialect", "mlir::gpu::GPUDialect", "mlir::LLVM::LLVMDialect",
    "mlir::memref::MemRefDialect",
    "mlir::scf::SCFDialect", "mlir::vector::VectorDialect"
  ];
}

#endif
