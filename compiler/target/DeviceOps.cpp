#include "compiler/target/DeviceOps.h"

#include "compiler/emulator/Emulator.h"
#include "compiler/lowering/Attributes.h"

#include "mlir/Conversion/LLVMCommon/Pattern.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/IR/Matchers.h"

namespace normforge {

using namespace mlir;

namespace {

/// An index that hardware has in a register of 32 bits.
template <typename Op> struct Index : ConvertOpToLLVMPattern<Op> {
  const char *intrinsic; ///< without the axis
  Index(const LLVMTypeConverter &types, const char *intrinsic)
      : ConvertOpToLLVMPattern<Op>(types), intrinsic(intrinsic) {}

  LogicalResult matchAndRewrite(Op op, typename Op::Adaptor,
                                ConversionPatternRewriter &b) const override {
    const std::string name =
        std::string(intrinsic) + "xyz"[static_cast<unsigned>(op.getDimension())];
    Value number = LLVM::CallIntrinsicOp::create(b, op.getLoc(), b.getI32Type(),
                                                 b.getStringAttr(name), ValueRange())
                       .getResult(0);
    b.replaceOpWithNewOp<LLVM::ZExtOp>(op, b.getI64Type(), number);
    return success();
  }
};

/// The bits of a number in words of 32, and back.
SmallVector<Value> wordsOf(OpBuilder &b, Location loc, Value number) {
  const unsigned width = number.getType().getIntOrFloatBitWidth();
  Value bits = LLVM::BitcastOp::create(b, loc, b.getIntegerType(width), number);
  if (width < 32)
    return {LLVM::ZExtOp::create(b, loc, b.getI32Type(), bits)};
  if (width == 32)
    return {bits};
  Value shift = LLVM::ConstantOp::create(b, loc, b.getI64IntegerAttr(32));
  Value high = LLVM::LShrOp::create(b, loc, bits, shift);
  return {LLVM::TruncOp::create(b, loc, b.getI32Type(), bits),
          LLVM::TruncOp::create(b, loc, b.getI32Type(), high)};
}
Value numberOf(OpBuilder &b, Location loc, ArrayRef<Value> words, Type type) {
  const unsigned width = type.getIntOrFloatBitWidth();
  Value bits = words[0];
  if (width < 32) {
    bits = LLVM::TruncOp::create(b, loc, b.getIntegerType(width), bits);
  } else if (width == 64) {
    Value low = LLVM::ZExtOp::create(b, loc, b.getI64Type(), words[0]);
    Value high = LLVM::ZExtOp::create(b, loc, b.getI64Type(), words[1]);
    Value shift = LLVM::ConstantOp::create(b, loc, b.getI64IntegerAttr(32));
    bits = LLVM::OrOp::create(b, loc, low, LLVM::ShlOp::create(b, loc, high, shift));
  }
  return LLVM::BitcastOp::create(b, loc, type, bits);
}

/// An exchange with thread (own number) xor a constant, within groups of a constant width.
struct Exchange : ConvertOpToLLVMPattern<gpu::ShuffleOp> {
  using ConvertOpToLLVMPattern::ConvertOpToLLVMPattern;

  virtual Value exchange(ConversionPatternRewriter &b, Location loc, Value value, uint32_t distance,
                         uint32_t width) const = 0;

  LogicalResult matchAndRewrite(gpu::ShuffleOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    constexpr uint64_t kSubgroup = 32;
    APInt distance, width;
    if (op.getMode() != gpu::ShuffleMode::XOR || !op.getValid().use_empty() ||
        !matchPattern(op.getOffset(), m_ConstantInt(&distance)) ||
        !matchPattern(op.getWidth(), m_ConstantInt(&width)) || width.ugt(kSubgroup))
      return failure();
    Value given =
        exchange(b, op.getLoc(), adaptor.getValue(), static_cast<uint32_t>(distance.getZExtValue()),
                 static_cast<uint32_t>(width.getZExtValue()));
    b.replaceOp(op, {given, Value()});
    return success();
  }
};

Value i32Constant(OpBuilder &b, Location loc, uint32_t n) {
  return LLVM::ConstantOp::create(b, loc, b.getI32IntegerAttr(static_cast<int32_t>(n)));
}

Value threadOfBlock(OpBuilder &b, Location loc) {
  return LLVM::CallIntrinsicOp::create(
             b, loc, b.getI32Type(), b.getStringAttr("llvm.nvvm.read.ptx.sreg.tid.x"), ValueRange())
      .getResult(0);
}

/// The threads of a group of `width` in their subgroup, a bit each: others of it may have no task.
Value membersOf(OpBuilder &b, Location loc, uint32_t width) {
  if (width == 32)
    return i32Constant(b, loc, UINT32_MAX);
  Value first = LLVM::AndOp::create(b, loc, threadOfBlock(b, loc), i32Constant(b, loc, 32 - width));
  return LLVM::ShlOp::create(b, loc, i32Constant(b, loc, (1u << width) - 1), first);
}

struct SubgroupExchange : Exchange {
  using Exchange::Exchange;
  Value exchange(ConversionPatternRewriter &b, Location loc, Value value, uint32_t distance,
                 uint32_t width) const override {
    Value members = membersOf(b, loc, width);
    SmallVector<Value> words = wordsOf(b, loc, value);
    for (Value &word : words)
      word = LLVM::CallIntrinsicOp::create(
                 b, loc, b.getI32Type(), b.getStringAttr("llvm.nvvm.shfl.sync.bfly.i32"),
                 ValueRange{members, word, i32Constant(b, loc, distance), i32Constant(b, loc, 31)})
                 .getResult(0);
    return numberOf(b, loc, words, value.getType());
  }
};

/// Of the threads of a group, which are those of a block, some of a subgroup, or some whole
/// subgroups.
struct GroupBarrier : ConvertOpToLLVMPattern<gpu::BarrierOp> {
  using ConvertOpToLLVMPattern::ConvertOpToLLVMPattern;
  LogicalResult matchAndRewrite(gpu::BarrierOp op, OpAdaptor,
                                ConversionPatternRewriter &b) const override {
    Operation *function = op->getParentOfType<FunctionOpInterface>();
    auto number = [&](const char *name) {
      return static_cast<uint32_t>(function->getAttrOfType<IntegerAttr>(name).getInt());
    };
    const Location loc = op.getLoc();
    const uint32_t threads = number(attr::kThreads) * number(attr::kDown);
    const char *intrinsic = "llvm.nvvm.barrier.cta.sync.aligned.all";
    SmallVector<Value> arguments{i32Constant(b, loc, 0)};
    if (threads <= 32) {
      intrinsic = "llvm.nvvm.bar.warp.sync";
      arguments = {membersOf(b, loc, threads)};
    } else if (number(attr::kGroups) > 1) { // a barrier of its own; a block has 16
      intrinsic = "llvm.nvvm.barrier.cta.sync.aligned.count";
      Value size = i32Constant(b, loc, threads);
      arguments = {LLVM::UDivOp::create(b, loc, threadOfBlock(b, loc), size), size};
    }
    LLVM::CallIntrinsicOp::create(b, loc, b.getStringAttr(intrinsic), arguments);
    b.eraseOp(op);
    return success();
  }
};

constexpr const char *kSharedMemory = "nf_shared";

struct SharedMemory : ConvertOpToLLVMPattern<gpu::DynamicSharedMemoryOp> {
  using ConvertOpToLLVMPattern::ConvertOpToLLVMPattern;
  LogicalResult matchAndRewrite(gpu::DynamicSharedMemoryOp op, OpAdaptor,
                                ConversionPatternRewriter &b) const override {
    constexpr unsigned kSpace = 3, kAlignment = 16;
    auto module = op->getParentOfType<ModuleOp>();
    const Type bytes = LLVM::LLVMArrayType::get(b.getI8Type(), 0);
    if (!module.lookupSymbol(kSharedMemory)) {
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPointToStart(module.getBody());
      LLVM::GlobalOp::create(b, module.getLoc(), bytes, /*isConstant=*/false,
                             LLVM::Linkage::External, kSharedMemory, Attribute(), kAlignment,
                             kSpace);
    }
    b.replaceOpWithNewOp<LLVM::AddressOfOp>(op, LLVM::LLVMPointerType::get(b.getContext(), kSpace),
                                            kSharedMemory);
    return success();
  }
};

/// A call of a function of this process.
LLVM::CallOp callHere(OpBuilder &b, Location loc, const void *function, Type result,
                      ValueRange arguments) {
  Value address = LLVM::ConstantOp::create(
      b, loc, b.getI64IntegerAttr(static_cast<int64_t>(reinterpret_cast<intptr_t>(function))));
  SmallVector<Value> operands{
      LLVM::IntToPtrOp::create(b, loc, LLVM::LLVMPointerType::get(b.getContext()), address)};
  operands.append(arguments.begin(), arguments.end());
  return LLVM::CallOp::create(
      b, loc, LLVM::LLVMFunctionType::get(result, SmallVector<Type>(arguments.getTypes())),
      operands);
}

struct EmulatedBarrier : ConvertOpToLLVMPattern<gpu::BarrierOp> {
  using ConvertOpToLLVMPattern::ConvertOpToLLVMPattern;
  LogicalResult matchAndRewrite(gpu::BarrierOp op, OpAdaptor,
                                ConversionPatternRewriter &b) const override {
    callHere(b, op.getLoc(), reinterpret_cast<const void *>(&emulator::barrier),
             LLVM::LLVMVoidType::get(b.getContext()), {});
    b.eraseOp(op);
    return success();
  }
};

struct EmulatedSharedMemory : ConvertOpToLLVMPattern<gpu::DynamicSharedMemoryOp> {
  using ConvertOpToLLVMPattern::ConvertOpToLLVMPattern;
  LogicalResult matchAndRewrite(gpu::DynamicSharedMemoryOp op, OpAdaptor,
                                ConversionPatternRewriter &b) const override {
    b.replaceOp(op,
                callHere(b, op.getLoc(), reinterpret_cast<const void *>(&emulator::sharedMemory),
                         LLVM::LLVMPointerType::get(b.getContext()), {}));
    return success();
  }
};

/// A load or store of a number in shared memory, told to the emulator first; the pattern for other
/// memory makes the access itself.
template <typename Op> struct EmulatedAccess : ConvertOpToLLVMPattern<Op> {
  EmulatedAccess(const LLVMTypeConverter &types)
      : ConvertOpToLLVMPattern<Op>(types, PatternBenefit(10)) {}
  LogicalResult matchAndRewrite(Op op, typename Op::Adaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    constexpr bool isStore = std::is_same_v<Op, memref::StoreOp>;
    if (!gpu::GPUDialect::hasWorkgroupMemoryAddressSpace(op.getMemRefType()))
      return failure();
    const Location loc = op.getLoc();
    const Type element = op.getMemRefType().getElementType();
    Value pointer =
        LLVM::GEPOp::create(b, loc, LLVM::LLVMPointerType::get(b.getContext()), element,
                            adaptor.getMemref(), ArrayRef<LLVM::GEPArg>{adaptor.getIndices()[0]});
    auto constant = [&](int64_t n) -> Value {
      return LLVM::ConstantOp::create(b, loc, b.getI64IntegerAttr(n));
    };
    callHere(b, loc, reinterpret_cast<const void *>(&emulator::access),
             LLVM::LLVMVoidType::get(b.getContext()),
             {pointer, constant(element.getIntOrFloatBitWidth() / 8), constant(isStore)});
    if constexpr (isStore)
      b.replaceOpWithNewOp<LLVM::StoreOp>(op, adaptor.getValue(), pointer);
    else
      b.replaceOpWithNewOp<LLVM::LoadOp>(op, element, pointer);
    return success();
  }
};

struct EmulatedExchange : Exchange {
  using Exchange::Exchange;
  Value exchange(ConversionPatternRewriter &b, Location loc, Value value, uint32_t distance,
                 uint32_t width) const override {
    const Type i64 = b.getI64Type(), type = value.getType();
    const unsigned bitWidth = type.getIntOrFloatBitWidth();
    const Type integer = b.getIntegerType(bitWidth);
    auto constant = [&](int64_t n) -> Value {
      return LLVM::ConstantOp::create(b, loc, b.getI64IntegerAttr(n));
    };
    Value bits = LLVM::BitcastOp::create(b, loc, integer, value);
    if (bitWidth < 64)
      bits = LLVM::ZExtOp::create(b, loc, i64, bits);
    Value given = callHere(b, loc, reinterpret_cast<const void *>(&emulator::exchange), i64,
                           {bits, constant(distance), constant(width)})
                      .getResult();
    if (bitWidth < 64)
      given = LLVM::TruncOp::create(b, loc, integer, given);
    return LLVM::BitcastOp::create(b, loc, type, given);
  }
};

} // namespace

void populateDeviceOpPatterns(LLVMTypeConverter &types, RewritePatternSet &patterns) {
  patterns.add<Index<gpu::ThreadIdOp>>(types, "llvm.nvvm.read.ptx.sreg.tid.");
  patterns.add<Index<gpu::BlockIdOp>>(types, "llvm.nvvm.read.ptx.sreg.ctaid.");
  patterns.add<SubgroupExchange, GroupBarrier, SharedMemory>(types);
}

void populateEmulatedOpPatterns(LLVMTypeConverter &types, RewritePatternSet &patterns) {
  patterns.add<EmulatedExchange, EmulatedBarrier, EmulatedSharedMemory,
               EmulatedAccess<memref::LoadOp>, EmulatedAccess<memref::StoreOp>>(types);
}

} // namespace normforge
