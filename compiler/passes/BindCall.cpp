// The pass that gives a stage the kernel ABI of CPUs.
//
// A stage's function takes arrays, sizes and numbers one by one, and a range of tasks. Hosts hand
// over one nf_call (normforge/abi.h) with all of them:
//   func.func @stage(%n: index {nf.size = 0}, %x: memref<f32> {nf.argument = 0},
//                    %first: index {nf.first}, %last: index {nf.last})
// becomes
//   func.func @stage(%call: !llvm.ptr, %first: i64, %last: i64)
// with loads from %call, at its beginning, of what the function took. An array that is known,
// %scale: memref<f32> {nf.known = dense<...>}, becomes a constant of the module.
//
// A stage of a GPU, which takes a thread, %thread: index {nf.thread}, besides, becomes a function
// of one task and one thread, which a stage has the emulator run for all of them
// (emulator/Emulator.h).
//
// Rules that a change must keep: only what the stage uses is loaded, for a host may leave pointers
// that it does not use undefined; numbers are f64 in the call and are rounded here.
#include "compiler/passes/Passes.h"

#include "compiler/emulator/Emulator.h"
#include "compiler/lowering/Attributes.h"
#include "compiler/passes/KnownArrays.h"
#include "compiler/passes/SizeArithmetic.h"
#include "normforge/abi.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"

namespace normforge {

#define GEN_PASS_DEF_BINDCALL
#include "compiler/passes/Passes.h.inc"

using namespace mlir;

namespace {

/// The end of the name of a function of one task and thread.
constexpr const char *kOfThread = "__thread";

/// Offsets of nf_call's fields, in bytes, on the targets that kernels are compiled for.
constexpr int32_t kArgsOffset = 8, kSizesOffset = 16, kScalarsOffset = 24, kWorkspaceOffset = 32;
static_assert(sizeof(void *) != 8 ||
              (offsetof(nf_call, args) == kArgsOffset && offsetof(nf_call, sizes) == kSizesOffset &&
               offsetof(nf_call, scalars) == kScalarsOffset &&
               offsetof(nf_call, workspace) == kWorkspaceOffset));

class CallBinder {
public:
  /// `isOfThread`: the function is to be one of a task and a thread instead.
  CallBinder(func::FuncOp stage, KnownArrays &known, bool isOfThread)
      : stage_(stage), known_(known), isOfThread_(isOfThread), b_(stage.getContext()),
        loc_(stage.getLoc()), pointer_(LLVM::LLVMPointerType::get(stage.getContext())),
        constants_(stage.getBody().front()) {}

  LogicalResult run();

private:
  Value load(Value from, int64_t offset, Type type);
  /// One of the call's arrays of pointers or numbers, loaded once.
  Value field(int32_t offset);
  Value element(int32_t fieldOffset, IntegerAttr index, Type type) {
    return load(field(fieldOffset), index.getInt() * 8, type);
  }
  /// The value that the argument stands for, or null.
  Value bind(BlockArgument argument, DictionaryAttr attributes);
  Value memref(Value pointer, Type type) {
    return UnrealizedConversionCastOp::create(b_, loc_, type, pointer).getResult(0);
  }

  func::FuncOp stage_;
  KnownArrays &known_;
  const bool isOfThread_;
  OpBuilder b_;
  Location loc_;
  Type pointer_;
  Constants constants_;
  Value call_, first_, last_; ///< of a thread: its task, and its number
  DenseMap<int32_t, Value> fields_;
  SmallVector<Value> sizes_;
};

Value CallBinder::load(Value from, int64_t offset, Type type) {
  Value address = LLVM::GEPOp::create(b_, loc_, pointer_, b_.getI8Type(), from,
                                      ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(offset)});
  return LLVM::LoadOp::create(b_, loc_, type, address);
}

Value CallBinder::field(int32_t offset) {
  Value &value = fields_[offset];
  if (!value)
    value = load(call_, offset, pointer_);
  return value;
}

Value CallBinder::bind(BlockArgument argument, DictionaryAttr attributes) {
  if (!attributes)
    return {};
  const Type type = argument.getType();
  if (auto index = attributes.getAs<IntegerAttr>(attr::kSize)) {
    sizes_.push_back(arith::IndexCastOp::create(b_, loc_, b_.getIndexType(),
                                                element(kSizesOffset, index, b_.getI64Type())));
    return sizes_.back();
  }
  if (auto index = attributes.getAs<IntegerAttr>(attr::kScalar)) {
    Value number = element(kScalarsOffset, index, b_.getF64Type());
    return type.isF64() ? number : Value(arith::TruncFOp::create(b_, loc_, type, number));
  }
  if (auto index = attributes.getAs<IntegerAttr>(attr::kArgument))
    return memref(element(kArgsOffset, index, pointer_), type);
  if (auto values = attributes.getAs<DenseElementsAttr>(attr::kKnown))
    return memref(known_.addressOf(b_, stage_, values), type);
  if (auto offset = attributes.getAs<AffineMapAttr>(attr::kWorkspace)) {
    const SizeArithmetic sizes{b_, loc_, constants_};
    Value bytes = arith::IndexCastOp::create(
        b_, loc_, b_.getI64Type(),
        sizes.value(sizes.evaluate(offset.getValue().getResult(0), sizes_)));
    Value address = LLVM::GEPOp::create(b_, loc_, pointer_, b_.getI8Type(), field(kWorkspaceOffset),
                                        ArrayRef<LLVM::GEPArg>{bytes});
    return memref(address, type);
  }
  if (attributes.get(attr::kFirst))
    return arith::IndexCastOp::create(b_, loc_, b_.getIndexType(), first_);
  if (attributes.get(attr::kThread))
    return arith::IndexCastOp::create(b_, loc_, b_.getIndexType(), last_);
  if (attributes.get(attr::kLast)) {
    Value last =
        arith::IndexCastOp::create(b_, loc_, b_.getIndexType(), isOfThread_ ? first_ : last_);
    return isOfThread_ ? Value(arith::AddIOp::create(b_, loc_, last, constants_.index(loc_, 1)))
                       : last;
  }
  return {};
}

LogicalResult CallBinder::run() {
  Block &body = stage_.getBody().front();
  const auto arguments = static_cast<unsigned>(body.getNumArguments());
  call_ = body.addArgument(pointer_, loc_);
  first_ = body.addArgument(b_.getI64Type(), loc_);
  last_ = body.addArgument(b_.getI64Type(), loc_);
  b_.setInsertionPointToStart(&body);
  for (unsigned i = 0; i < arguments; ++i) {
    BlockArgument argument = body.getArgument(i);
    DictionaryAttr attributes = stage_.getArgAttrDict(i);
    // Workspace offsets are made of sizes.
    if (argument.use_empty() && !(attributes && attributes.get(attr::kSize)))
      continue;
    Value value = bind(argument, attributes);
    if (!value)
      return stage_.emitError("argument ") << i << " has no place in nf_call";
    argument.replaceAllUsesWith(value);
  }
  body.eraseArguments(0, arguments);
  stage_.removeArgAttrsAttr();
  stage_.setFunctionType(b_.getFunctionType(body.getArgumentTypes(), {}));
  return success();
}

/// Adds the stage that has the emulator run all threads of each task of a range, by `one`, the
/// bound function of a task and a thread.
void addThreads(func::FuncOp one, StringRef name, const emulator::Launch &launch) {
  OpBuilder b(one);
  const Location loc = one.getLoc();
  auto stage = func::FuncOp::create(b, loc, name, one.getFunctionType());
  b.setInsertionPointToStart(stage.addEntryBlock());
  const Type pointer = LLVM::LLVMPointerType::get(b.getContext());
  auto constant = [&](int64_t n) -> Value {
    return LLVM::ConstantOp::create(b, loc, b.getI64IntegerAttr(n));
  };
  Value run = LLVM::IntToPtrOp::create(b, loc, pointer,
                                       constant(reinterpret_cast<int64_t>(&emulator::runTasks)));
  Value function =
      UnrealizedConversionCastOp::create(
          b, loc, pointer,
          func::ConstantOp::create(b, loc, one.getFunctionType(), name.str() + kOfThread)
              .getResult())
          .getResult(0);
  const Type i64 = b.getI64Type();
  auto type = LLVM::LLVMFunctionType::get(LLVM::LLVMVoidType::get(b.getContext()),
                                          {pointer, pointer, i64, i64, i64, i64, i64});
  LLVM::CallOp::create(b, loc, type,
                       ValueRange{run, function, stage.getArgument(0), stage.getArgument(1),
                                  stage.getArgument(2), constant(launch.threads),
                                  constant(launch.subgroup), constant(launch.sharedBytes)});
  func::ReturnOp::create(b, loc);
}

struct BindCall : impl::BindCallBase<BindCall> {
  void runOnOperation() override {
    KnownArrays known(/*addressSpace=*/0);
    for (auto function : llvm::make_early_inc_range(getOperation().getOps<func::FuncOp>())) {
      const bool isOfThread = function->hasAttr(attr::kThreads);
      const std::string name = function.getName().str();
      auto integer = [&](const char *of) {
        return function->getAttrOfType<IntegerAttr>(of).getInt();
      };
      emulator::Launch launch;
      if (isOfThread) {
        launch = {integer(attr::kThreads) * integer(attr::kDown), integer(attr::kSubgroup),
                  integer(attr::kShared)};
        function.setName(name + kOfThread);
        for (const char *attribute : attr::kOfGroups)
          function->removeAttr(attribute);
      }
      if (failed(CallBinder(function, known, isOfThread).run()))
        return signalPassFailure();
      if (isOfThread)
        addThreads(function, name, launch);
    }
  }
};

} // namespace

} // namespace normforge
