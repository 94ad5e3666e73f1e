// The passes from linalg on tensors to the vector dialect.
//
// Enters: the module that the lowering made. Leaves: functions of the kernel ABI in loops of
// native-width vectors, ready for conversion. The passes run in this order: FormTasks,
// VectorizeSteps, BindCall (of a GPU: BindKernel). They read the schedule from the attributes of a
// stage's function and decide nothing.
#pragma once

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

#include <memory>

namespace normforge {

#define GEN_PASS_DECL
#include "compiler/passes/Passes.h.inc"

} // namespace normforge
