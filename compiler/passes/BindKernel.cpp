// The pass that makes a stage a kernel of a GPU.
//
// A stage's function takes arrays, sizes and numbers one by one, a range of tasks, and a thread of
// the group that shares a task:
//   func.func @stage(%n: index {nf.size = 0}, %x: memref<f32> {nf.argument = 0},
//                    %first: index {nf.first}, %last: index {nf.last}, %thread: index {nf.thread})
// becomes
//   func.func @stage(%x: !llvm.ptr<1> {nf.argument = 0}, %n: i64 {nf.size = 0}, %tasks: i64
//   {nf.last})
// where the group's task and the thread are found from the indices of the block and of the thread
// in it. Blocks have as many groups as the schedule says, one task a group; each has its part of
// the block's shared memory. Attributes nf.threads, nf.down, nf.groups, nf.resident and nf.shared
// stay; nf.reversed has the groups count their tasks from the last one.
//
// Rules that a change must keep: parameters are what the stage uses and no more, in the order of
// the stage's arguments, by value; numbers are of the type that is computed in.
#include "compiler/passes/Passes.h"

#include "compiler/lowering/Attributes.h"
#include "compiler/passes/KnownArrays.h"
#include "compiler/passes/SizeArithmetic.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"

#include <algorithm>

namespace normforge {

#define GEN_PASS_DEF_BINDKERNEL
#include "compiler/passes/Passes.h.inc"

using namespace mlir;

namespace {

class KernelBinder {
public:
  KernelBinder(func::FuncOp stage, KnownArrays &known)
      : stage_(stage), known_(known), b_(stage.getContext()), loc_(stage.getLoc()),
        constants_(stage.getBody().front()) {}

  LogicalResult run();

private:
  /// A parameter of the kernel with what says where it is from.
  Value parameter(Type type, const char *name, Attribute value) {
    attributes_.push_back(b_.getDictionaryAttr(b_.getNamedAttr(name, value)));
    return stage_.getBody().front().addArgument(type, loc_);
  }
  Value index(Value integer) {
    return arith::IndexCastOp::create(b_, loc_, b_.getIndexType(), integer);
  }
  /// The value that the argument stands for, or null.
  Value bind(BlockArgument argument, DictionaryAttr attributes);
  int64_t integer(const char *name) { return stage_->getAttrOfType<IntegerAttr>(name).getInt(); }
  int64_t groupThreads() { return integer(attr::kThreads) * integer(attr::kDown); }
  /// The number of the thread's group in its block.
  Value group();
  /// Gives each group its part of the block's memory.
  void shareMemory();

  func::FuncOp stage_;
  KnownArrays &known_;
  OpBuilder b_;
  Location loc_;
  Constants constants_;
  Value tasks_; ///< how many there are
  SmallVector<DictionaryAttr> attributes_;
};

Value KernelBinder::bind(BlockArgument argument, DictionaryAttr attributes) {
  const Type type = argument.getType();
  const Type pointer = LLVM::LLVMPointerType::get(b_.getContext(), /*addressSpace=*/1);
  auto memref = [&](Value address) {
    return UnrealizedConversionCastOp::create(b_, loc_, type, address).getResult(0);
  };
  if (Attribute number = attributes.get(attr::kSize))
    return index(parameter(b_.getI64Type(), attr::kSize, number));
  if (Attribute number = attributes.get(attr::kScalar))
    return parameter(type, attr::kScalar, number);
  for (const char *name : {attr::kArgument, attr::kWorkspace})
    if (Attribute value = attributes.get(name))
      return memref(parameter(pointer, name, value));
  if (auto elements = attributes.getAs<DenseElementsAttr>(attr::kKnown))
    return memref(known_.addressOf(b_, stage_, elements));
  if (Attribute unit = attributes.get(attr::kLast))
    return tasks_ = index(parameter(b_.getI64Type(), attr::kLast, unit));
  const int64_t threads = groupThreads(), groups = integer(attr::kGroups);
  auto thread = [&] { return gpu::ThreadIdOp::create(b_, loc_, gpu::Dimension::x).getResult(); };
  auto constant = [&](int64_t n) { return constants_.index(loc_, n); };
  if (attributes.get(attr::kFirst)) {
    Value task = gpu::BlockIdOp::create(b_, loc_, gpu::Dimension::x);
    if (groups > 1) {
      task = arith::MulIOp::create(b_, loc_, task, constant(groups));
      task = arith::AddIOp::create(b_, loc_, task, group());
    }
    if (!stage_->hasAttr(attr::kReversed))
      return task;
    // Of groups without a task the number is less than 0: as an unsigned one, beyond all.
    Value last = arith::SubIOp::create(b_, loc_, tasks_, constant(1));
    return arith::SubIOp::create(b_, loc_, last, task);
  }
  if (attributes.get(attr::kThread))
    return groups == 1 ? thread()
                       : Value(arith::RemUIOp::create(b_, loc_, thread(), constant(threads)));
  return {};
}

Value KernelBinder::group() {
  Value thread = gpu::ThreadIdOp::create(b_, loc_, gpu::Dimension::x);
  return arith::DivUIOp::create(b_, loc_, thread, constants_.index(loc_, groupThreads()));
}

void KernelBinder::shareMemory() {
  const int64_t bytes = integer(attr::kShared);
  if (bytes == 0 || integer(attr::kGroups) == 1)
    return;
  Value first = arith::MulIOp::create(b_, loc_, group(), constants_.index(loc_, bytes));
  stage_.walk([&](memref::ViewOp view) {
    if (!view.getSource().getDefiningOp<gpu::DynamicSharedMemoryOp>())
      return;
    OpBuilder b(view);
    view.getByteShiftMutable().assign(
        arith::AddIOp::create(b, loc_, first, view.getByteShift()).getResult());
  });
}

LogicalResult KernelBinder::run() {
  Block &body = stage_.getBody().front();
  const auto arguments = static_cast<unsigned>(body.getNumArguments());
  b_.setInsertionPointToStart(&body);
  // The task last: it may be counted from the number of them, which is a parameter.
  SmallVector<BlockArgument> order(body.getArguments());
  std::stable_partition(order.begin(), order.end(), [&](BlockArgument argument) {
    return !stage_.getArgAttr(argument.getArgNumber(), attr::kFirst);
  });
  for (BlockArgument argument : order) {
    if (argument.use_empty())
      continue;
    DictionaryAttr attributes = stage_.getArgAttrDict(argument.getArgNumber());
    Value value = attributes ? bind(argument, attributes) : Value();
    if (!value)
      return stage_.emitError("argument ")
             << argument.getArgNumber() << " is no parameter of a kernel";
    argument.replaceAllUsesWith(value);
  }
  shareMemory();
  body.eraseArguments(0, arguments);
  stage_.removeArgAttrsAttr();
  stage_.setFunctionType(b_.getFunctionType(body.getArgumentTypes(), {}));
  stage_.setAllArgAttrs(attributes_);
  const int64_t threads = groupThreads() * integer(attr::kGroups);
  const std::string most = std::to_string(threads) + ",1,1";
  const std::string resident = std::to_string(integer(attr::kResident));
  stage_->setAttr("passthrough",
                  b_.getArrayAttr({b_.getStrArrayAttr({"nvvm.maxntid", most}),
                                   b_.getStrArrayAttr({"nvvm.minctasm", resident})}));
  return success();
}

struct BindKernel : impl::BindKernelBase<BindKernel> {
  void runOnOperation() override {
    KnownArrays known(/*addressSpace=*/1);
    for (auto function : getOperation().getOps<func::FuncOp>())
      if (failed(KernelBinder(function, known).run()))
        return signalPassFailure();
  }
};

} // namespace

} // namespace normforge
