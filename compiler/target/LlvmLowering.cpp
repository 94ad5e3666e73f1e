#include "compiler/target/LlvmLowering.h"

#include "compiler/target/CodeGen.h"
#include "compiler/target/DeviceOps.h"
#include "compiler/target/HalfPrecision.h"
#include "compiler/target/PointerViews.h"
#include "compiler/target/VectorMathPatterns.h"

#include "mlir/Conversion/ArithToLLVM/ArithToLLVM.h"
#include "mlir/Conversion/ControlFlowToLLVM/ControlFlowToLLVM.h"
#include "mlir/Conversion/FuncToLLVM/ConvertFuncToLLVM.h"
#include "mlir/Conversion/IndexToLLVM/IndexToLLVM.h"
#include "mlir/Conversion/LLVMCommon/ConversionTarget.h"
#include "mlir/Conversion/LLVMCommon/TypeConverter.h"
#include "mlir/Conversion/MathToLLVM/MathToLLVM.h"
#include "mlir/Conversion/ReconcileUnrealizedCasts/ReconcileUnrealizedCasts.h"
#include "mlir/Conversion/SCFToControlFlow/SCFToControlFlow.h"
#include "mlir/Conversion/UBToLLVM/UBToLLVM.h"
#include "mlir/Conversion/VectorToLLVM/ConvertVectorToLLVM.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Vector/Transforms/LoweringPatterns.h"
#include "mlir/Dialect/Vector/Transforms/VectorRewritePatterns.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "mlir/Transforms/DialectConversion.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/InlineAsm.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/Module.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/Transforms/InstCombine/InstCombine.h"
#include "llvm/Transforms/Scalar/EarlyCSE.h"
#include "llvm/Transforms/Scalar/LICM.h"
#include "llvm/Transforms/Scalar/LoopPassManager.h"
#include "llvm/Transforms/Scalar/SimplifyCFG.h"
#include "llvm/Transforms/Utils/SimplifyCFGOptions.h"

namespace normforge {

using namespace mlir;

namespace {

/// x*y + z in two roundings, where the CPU has no instruction for one.
struct ExpandFma : OpConversionPattern<math::FmaOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(math::FmaOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    Value product = LLVM::FMulOp::create(b, op.getLoc(), adaptor.getA(), adaptor.getB());
    b.replaceOpWithNewOp<LLVM::FAddOp>(op, product, adaptor.getC());
    return success();
  }
};

/// The first lanes of a scalable vector, in SVE's one instruction; a comparison with the numbers of
/// the lanes would take five.
struct ScalableMask : OpConversionPattern<vector::CreateMaskOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(vector::CreateMaskOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    VectorType type = op.getType();
    if (type.getRank() != 1 || !type.isScalable())
      return failure();
    Value zero = LLVM::ConstantOp::create(b, op.getLoc(), b.getI64Type(), b.getI64IntegerAttr(0));
    b.replaceOpWithNewOp<LLVM::CallIntrinsicOp>(op, type,
                                                b.getStringAttr("llvm.aarch64.sve.whilelt"),
                                                ValueRange{zero, adaptor.getOperands()[0]});
    return success();
  }
};

} // namespace

struct LlvmConversion::State {
  const bool roundsBf16;
  LLVMTypeConverter types;
  LLVMConversionTarget target;
  FrozenRewritePatternSet patterns;

  State(MLIRContext &context, const TargetDescription &cpu)
      : roundsBf16(hasBf16Rounding(cpu)), types(&context), target(context) {
    RewritePatternSet set(&context);
    if (!cpu.fusedMultiplyAdd)
      set.add<ExpandFma>(types, &context, PatternBenefit(2));
    if (cpu.device) {
      populateDeviceOpPatterns(types, set);
    } else {
      populateHalfPrecisionPatterns(types, set, cpu);
      populateEmulatedOpPatterns(types, set);
    }
    populateVectorMathPatterns(set);
    if (cpu.scalableVectors)
      set.add<ScalableMask>(types, &context, PatternBenefit(2));
    populateSCFToControlFlowConversionPatterns(set);
    vector::populateVectorMaskOpLoweringPatterns(set);
    vector::populateVectorStepLoweringPatterns(set);
    vector::populateVectorMaskMaterializationPatterns(set, /*force32BitVectorIndices=*/false);
    cf::populateControlFlowToLLVMConversionPatterns(types, set);
    populateVectorToLLVMConversionPatterns(types, set);
    populatePointerViewPatterns(types, set, cpu.device.has_value());
    arith::populateArithToLLVMConversionPatterns(types, set);
    populateMathToLLVMConversionPatterns(types, set);
    populateFuncToLLVMConversionPatterns(types, set);
    index::populateIndexToLLVMConversionPatterns(types, set);
    ub::populateUBToLLVMConversionPatterns(types, set);
    patterns = FrozenRewritePatternSet(std::move(set));
    target.addLegalOp<ModuleOp>();
  }
};

LlvmConversion::LlvmConversion(MLIRContext &context, const TargetDescription &cpu)
    : state_(std::make_unique<State>(context, cpu)) {}
LlvmConversion::~LlvmConversion() = default;

LogicalResult LlvmConversion::run(ModuleOp module) const {
  convertPairedHalves(module, state_->roundsBf16);
  if (failed(applyPartialConversion(module, state_->target, state_->patterns)))
    return failure();
  SmallVector<UnrealizedConversionCastOp> casts;
  module.walk([&](UnrealizedConversionCastOp cast) { casts.push_back(cast); });
  SmallVector<UnrealizedConversionCastOp> remaining;
  reconcileUnrealizedCasts(casts, &remaining);
  return success(remaining.empty());
}

void registerLlvmTranslation(DialectRegistry &registry) {
  registerBuiltinDialectTranslation(registry);
  registerLLVMDialectTranslation(registry);
}

std::unique_ptr<llvm::Module> translate(ModuleOp module, llvm::LLVMContext &context,
                                        const TargetDescription &target,
                                        llvm::TargetMachine &machine,
                                        llvm::ArrayRef<std::string> useless) {
  std::string features = machine.getTargetFeatureString().str();
  for (const std::string &name : useless)
    features += ",-" + name;
  std::unique_ptr<llvm::Module> llvmModule = translateModuleToLLVMIR(module, context, "normforge");
  if (!llvmModule)
    return nullptr;
  llvmModule->setDataLayout(machine.createDataLayout());
  llvmModule->setTargetTriple(machine.getTargetTriple());
  for (llvm::Function &function : *llvmModule) {
    if (function.isDeclaration())
      continue;
    function.setDSOLocal(true);
    function.addFnAttr(llvm::Attribute::NoUnwind);
    if (target.device) {
      function.setCallingConv(llvm::CallingConv::PTX_Kernel);
      continue;
    }
    function.addFnAttr("frame-pointer", "all");
    function.addFnAttr("target-cpu", target.cpu);
    function.addFnAttr("target-features", features);
    if (target.isX86()) {
      function.addFnAttr("prefer-vector-width", llvm::utostr(target.vectorBits));
      function.addFnAttr("min-legal-vector-width", llvm::utostr(target.vectorBits));
    }
    if (target.scalableVectors) // 128 to 2048 bits
      function.addFnAttr(llvm::Attribute::getWithVScaleRangeArgs(context, 1, 16));
  }
  if (!target.device)
    protectBranches(*llvmModule);
  return llvmModule;
}

/// LLVM 22's x86 backend has no non-temporal stores of bf16, and none of what has been narrowed on
/// the way to them: it makes plain ones. So they store f32's of the same bits, which an empty piece
/// of assembly hides the making of.
static void hideStreamedHalves(llvm::Function &function) {
  for (llvm::Instruction &instruction : llvm::instructions(function)) {
    auto *store = llvm::dyn_cast<llvm::StoreInst>(&instruction);
    if (!store || !store->getMetadata(llvm::LLVMContext::MD_nontemporal))
      continue;
    llvm::Value *value = store->getValueOperand();
    auto *type = llvm::dyn_cast<llvm::FixedVectorType>(value->getType());
    const auto bits = type ? type->getPrimitiveSizeInBits().getFixedValue() : 0;
    if (bits < 128 || type->getScalarSizeInBits() != 16)
      continue;
    llvm::IRBuilder<> b(store);
    auto *words = llvm::FixedVectorType::get(b.getFloatTy(), static_cast<unsigned>(bits / 32));
    auto *hidden = llvm::InlineAsm::get(llvm::FunctionType::get(words, {words}, /*isVarArg=*/false),
                                        "", "=v,0", /*hasSideEffects=*/false);
    store->setOperand(0, b.CreateCall(hidden, {b.CreateBitCast(value, words)}));
  }
}

void optimize(llvm::Module &module, llvm::TargetMachine &machine) {
  llvm::LoopAnalysisManager loops;
  llvm::FunctionAnalysisManager functions;
  llvm::CGSCCAnalysisManager graph;
  llvm::ModuleAnalysisManager modules;
  llvm::PassBuilder builder(&machine);
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(graph);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, graph, modules);
  llvm::FunctionPassManager pipeline;
  pipeline.addPass(llvm::EarlyCSEPass());
  pipeline.addPass(llvm::InstCombinePass());
  pipeline.addPass(llvm::SimplifyCFGPass());
  pipeline.addPass(llvm::createFunctionToLoopPassAdaptor(llvm::LICMPass(llvm::LICMOptions()),
                                                         /*UseMemorySSA=*/true));
  for (llvm::Function &function : module)
    if (!function.isDeclaration()) {
      pipeline.run(function, functions);
      if (machine.getTargetTriple().isX86())
        hideStreamedHalves(function);
    }
}

} // namespace normforge
