#include "compiler/target/DeviceOps.h"

#include "compiler/emulator/Emulator.h"

#include "mlir/Conversion/LLVMCommon/Pattern.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
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

/// Only the threads of the group take part: others of the subgroup may have no task.
struct SubgroupExchange : Exchange {
  using Exchange::Exchange;
  Value exchange(ConversionPatternRewriter &b, Location loc, Value value, uint32_t distance,
                 uint32_t width) const override {
    auto constant = [&](uint32_t n) -> Value {
      return LLVM::ConstantOp::create(b, loc, b.getI32IntegerAttr(static_cast<int32_t>(n)));
    };
    Value members = constant(UINT32_MAX);
    if (width < 32) {
      Value thread = LLVM::CallIntrinsicOp::create(b, loc, b.getI32Type(),
                                                   b.getStringAttr("llvm.nvvm.read.ptx.sreg.tid.x"),
                                                   ValueRange())
                         .getResult(0);
      Value first = LLVM::AndOp::create(b, loc, thread, constant(32 - width));
      members = LLVM::ShlOp::create(b, loc, constant((1u << width) - 1), first);
    }
    SmallVector<Value> words = wordsOf(b, loc, value);
    for (Value &word : words)
      word = LLVM::CallIntrinsicOp::create(
                 b, loc, b.getI32Type(), b.getStringAttr("llvm.nvvm.shfl.sync.bfly.i32"),
                 ValueRange{members, word, constant(distance), constant(31)})
                 .getResult(0);
    return numberOf(b, loc, words, value.getType());
  }
};

struct EmulatedExchange : Exchange {
  using Exchange::Exchange;
  Value exchange(ConversionPatternRewriter &b, Location loc, Value value, uint32_t distance,
                 uint32_t) const override {
    const Type i64 = b.getI64Type(), type = value.getType();
    const unsigned bitWidth = type.getIntOrFloatBitWidth();
    const Type integer = b.getIntegerType(bitWidth);
    auto constant = [&](int64_t n) -> Value {
      return LLVM::ConstantOp::create(b, loc, b.getI64IntegerAttr(n));
    };
    Value bits = LLVM::BitcastOp::create(b, loc, integer, value);
    if (bitWidth < 64)
      bits = LLVM::ZExtOp::create(b, loc, i64, bits);
    Value function =
        LLVM::IntToPtrOp::create(b, loc, LLVM::LLVMPointerType::get(b.getContext()),
                                 constant(reinterpret_cast<int64_t>(&emulator::exchange)));
    Value given = LLVM::CallOp::create(b, loc, LLVM::LLVMFunctionType::get(i64, {i64, i64}),
                                       ValueRange{function, bits, constant(distance)})
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
  patterns.add<SubgroupExchange>(types);
}

void populateEmulatedOpPatterns(LLVMTypeConverter &types, RewritePatternSet &patterns) {
  patterns.add<EmulatedExchange>(types);
}

} // namespace normforge
