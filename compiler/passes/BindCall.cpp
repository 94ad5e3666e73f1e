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
// Rules that a change must keep: only what the stage uses is loaded, for a host may leave pointers
// that it does not use undefined; numbers are f64 in the call and are rounded here.
#include "compiler/passes/Passes.h"

#include "compiler/lowering/Attributes.h"
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

/// Offsets of nf_call's fields, in bytes, on the targets that kernels are compiled for.
constexpr int32_t kArgsOffset = 8, kSizesOffset = 16, kScalarsOffset = 24, kWorkspaceOffset = 32;
static_assert(sizeof(void *) != 8 ||
              (offsetof(nf_call, args) == kArgsOffset && offsetof(nf_call, sizes) == kSizesOffset &&
               offsetof(nf_call, scalars) == kScalarsOffset &&
               offsetof(nf_call, workspace) == kWorkspaceOffset));

/// The constants of a module, each once.
using KnownArrays = DenseMap<Attribute, LLVM::GlobalOp>;

class CallBinder {
public:
  CallBinder(func::FuncOp stage, KnownArrays &known)
      : stage_(stage), known_(known), b_(stage.getContext()), loc_(stage.getLoc()),
        pointer_(LLVM::LLVMPointerType::get(stage.getContext())),
        constants_(stage.getBody().front()) {}

  LogicalResult run();

private:
  Value load(Value from, int64_t offset, Type type);
  /// One of the call's arrays of pointers or numbers, loaded once.
  Value field(int32_t offset);
  Value element(int32_t fieldOffset, IntegerAttr index, Type type) {
    return load(field(fieldOffset), index.getInt() * 8, type);
  }
  LLVM::GlobalOp globalOf(DenseElementsAttr values);
  /// The value that the argument stands for, or null.
  Value bind(BlockArgument argument, DictionaryAttr attributes);
  Value memref(Value pointer, Type type) {
    return UnrealizedConversionCastOp::create(b_, loc_, type, pointer).getResult(0);
  }

  func::FuncOp stage_;
  KnownArrays &known_;
  OpBuilder b_;
  Location loc_;
  Type pointer_;
  Constants constants_;
  Value call_, first_, last_;
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

LLVM::GlobalOp CallBinder::globalOf(DenseElementsAttr values) {
  LLVM::GlobalOp &global = known_[values];
  if (global)
    return global;
  constexpr uint64_t kAlignment = 64; // a cache line, and the widest vector
  OpBuilder::InsertionGuard guard(b_);
  b_.setInsertionPoint(stage_);
  return global = LLVM::GlobalOp::create(
             b_, loc_, LLVM::LLVMArrayType::get(values.getElementType(), values.getNumElements()),
             /*isConstant=*/true, LLVM::Linkage::Private, "known" + std::to_string(known_.size()),
             values, kAlignment);
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
    return memref(LLVM::AddressOfOp::create(b_, loc_, globalOf(values)), type);
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
  if (attributes.get(attr::kLast))
    return arith::IndexCastOp::create(b_, loc_, b_.getIndexType(), last_);
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

struct BindCall : impl::BindCallBase<BindCall> {
  void runOnOperation() override {
    KnownArrays known;
    for (auto function : getOperation().getOps<func::FuncOp>())
      if (failed(CallBinder(function, known).run()))
        return signalPassFailure();
  }
};

} // namespace

} // namespace normforge
