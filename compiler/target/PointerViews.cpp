#include "compiler/target/PointerViews.h"

#include "mlir/Conversion/LLVMCommon/Pattern.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

#include <algorithm>

namespace normforge {

using namespace mlir;

namespace {

/// Above upstream's patterns for the vector operations, which expect descriptors.
constexpr unsigned kBenefit = 2;

unsigned alignmentOf(Type element) { return element.getIntOrFloatBitWidth() / 8; }

/// The type as which fixed vectors of half-precision numbers are loaded and stored under a mask:
/// without AVX512-BF16, LLVM knows masks of 16-bit integers alone.
VectorType integersOf(VectorType type) {
  const bool half = type.getElementType().isBF16() || type.getElementType().isF16();
  return half && !type.isScalable() ? type.clone(IntegerType::get(type.getContext(), 16))
                                    : VectorType();
}

template <typename Op> struct ViewPattern : ConvertOpToLLVMPattern<Op> {
  const bool aligned; ///< vectors lie at multiples of their size, or of 16 bytes
  ViewPattern(const LLVMTypeConverter &types, bool aligned)
      : ConvertOpToLLVMPattern<Op>(types, PatternBenefit(kBenefit)), aligned(aligned) {}

  unsigned alignmentOfVector(VectorType type) const {
    constexpr unsigned kMost = 16; // of a base pointer
    const unsigned element = alignmentOf(type.getElementType());
    return aligned ? std::min(kMost, element * static_cast<unsigned>(type.getNumElements()))
                   : element;
  }

  /// The pointer to element `index` of a view; `index` may be a vector.
  static Value elementAt(ConversionPatternRewriter &b, Location loc, Type element, Value pointer,
                         Value index) {
    Type type = pointer.getType();
    if (auto vector = dyn_cast<VectorType>(index.getType()))
      type = VectorType::get(vector.getShape(), type, vector.getScalableDims());
    return LLVM::GEPOp::create(b, loc, type, element, pointer, ArrayRef<LLVM::GEPArg>{index});
  }
  static Value elementAt(ConversionPatternRewriter &b, Location loc, MemRefType type, Value pointer,
                         ValueRange indices) {
    return indices.empty() ? pointer
                           : elementAt(b, loc, type.getElementType(), pointer, indices[0]);
  }
};

struct ReinterpretCast : ViewPattern<memref::ReinterpretCastOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(memref::ReinterpretCastOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    Value pointer = adaptor.getSource();
    if (!adaptor.getOffsets().empty()) {
      pointer = elementAt(b, op.getLoc(), op.getType().getElementType(), pointer,
                          adaptor.getOffsets()[0]);
    } else if (const int64_t offset = adaptor.getStaticOffsets()[0]) {
      Value index =
          LLVM::ConstantOp::create(b, op.getLoc(), b.getI64Type(), b.getI64IntegerAttr(offset));
      pointer = elementAt(b, op.getLoc(), op.getType().getElementType(), pointer, index);
    }
    b.replaceOp(op, pointer);
    return success();
  }
};

struct View : ViewPattern<memref::ViewOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(memref::ViewOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    b.replaceOp(
        op, elementAt(b, op.getLoc(), b.getI8Type(), adaptor.getSource(), adaptor.getByteShift()));
    return success();
  }
};

struct PointerAsIndex : ViewPattern<memref::ExtractAlignedPointerAsIndexOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(memref::ExtractAlignedPointerAsIndexOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    b.replaceOpWithNewOp<LLVM::PtrToIntOp>(op, b.getI64Type(), adaptor.getSource());
    return success();
  }
};

/// Halves as the integers of their bits: LLVM merges what branches store, and where a CPU has no
/// numbers of the type it moves those by functions of a library.
Type storedAs(Type type) {
  if (auto vector = dyn_cast<VectorType>(type))
    return integersOf(vector) ? Type(integersOf(vector)) : type;
  return type.isBF16() || type.isF16() ? Type(IntegerType::get(type.getContext(), 16)) : type;
}

void load(ConversionPatternRewriter &b, Operation *op, Type type, Value pointer,
          unsigned alignment) {
  Value loaded = LLVM::LoadOp::create(b, op->getLoc(), storedAs(type), pointer, alignment);
  if (storedAs(type) != type)
    loaded = LLVM::BitcastOp::create(b, op->getLoc(), type, loaded);
  b.replaceOp(op, loaded);
}

Value asStored(ConversionPatternRewriter &b, Location loc, Value value) {
  const Type type = storedAs(value.getType());
  return type == value.getType() ? value : LLVM::BitcastOp::create(b, loc, type, value);
}

struct ScalarLoad : ViewPattern<memref::LoadOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(memref::LoadOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    Value pointer =
        elementAt(b, op.getLoc(), op.getMemRefType(), adaptor.getMemref(), adaptor.getIndices());
    load(b, op, op.getType(), pointer, alignmentOf(op.getType()));
    return success();
  }
};

struct ScalarStore : ViewPattern<memref::StoreOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(memref::StoreOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    Value pointer =
        elementAt(b, op.getLoc(), op.getMemRefType(), adaptor.getMemref(), adaptor.getIndices());
    b.replaceOpWithNewOp<LLVM::StoreOp>(op, asStored(b, op.getLoc(), adaptor.getValue()), pointer,
                                        alignmentOf(op.getMemRefType().getElementType()));
    return success();
  }
};

struct Prefetch : ViewPattern<memref::PrefetchOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(memref::PrefetchOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    Value pointer =
        elementAt(b, op.getLoc(), op.getMemRefType(), adaptor.getMemref(), adaptor.getIndices());
    b.replaceOpWithNewOp<LLVM::Prefetch>(
        op, pointer, b.getI32IntegerAttr(op.getIsWrite()),
        b.getI32IntegerAttr(static_cast<int32_t>(op.getLocalityHint())),
        b.getI32IntegerAttr(op.getIsDataCache()));
    return success();
  }
};

struct Load : ViewPattern<vector::LoadOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(vector::LoadOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    Value pointer =
        elementAt(b, op.getLoc(), op.getMemRefType(), adaptor.getBase(), adaptor.getIndices());
    load(b, op, op.getVectorType(), pointer, alignmentOfVector(op.getVectorType()));
    return success();
  }
};

struct Store : ViewPattern<vector::StoreOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(vector::StoreOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    Value pointer =
        elementAt(b, op.getLoc(), op.getMemRefType(), adaptor.getBase(), adaptor.getIndices());
    const auto alignment =
        static_cast<unsigned>(op.getAlignment().value_or(alignmentOfVector(op.getVectorType())));
    b.replaceOpWithNewOp<LLVM::StoreOp>(op, asStored(b, op.getLoc(), adaptor.getValueToStore()),
                                        pointer, alignment, /*isVolatile=*/false,
                                        op.getNontemporal());
    return success();
  }
};

struct MaskedLoad : ViewPattern<vector::MaskedLoadOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(vector::MaskedLoadOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    Value pointer =
        elementAt(b, op.getLoc(), op.getMemRefType(), adaptor.getBase(), adaptor.getIndices());
    const unsigned alignment = alignmentOf(op.getVectorType().getElementType());
    auto integers = integersOf(op.getVectorType());
    Value passThrough = adaptor.getPassThru();
    if (integers)
      passThrough = LLVM::BitcastOp::create(b, op.getLoc(), integers, passThrough);
    Value loaded =
        LLVM::MaskedLoadOp::create(b, op.getLoc(), integers ? integers : op.getVectorType(),
                                   pointer, adaptor.getMask(), passThrough, alignment);
    if (integers)
      loaded = LLVM::BitcastOp::create(b, op.getLoc(), op.getVectorType(), loaded);
    b.replaceOp(op, loaded);
    return success();
  }
};

struct MaskedStore : ViewPattern<vector::MaskedStoreOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(vector::MaskedStoreOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    Value pointer =
        elementAt(b, op.getLoc(), op.getMemRefType(), adaptor.getBase(), adaptor.getIndices());
    Value stored = adaptor.getValueToStore();
    if (auto integers = integersOf(op.getVectorType()))
      stored = LLVM::BitcastOp::create(b, op.getLoc(), integers, stored);
    b.replaceOpWithNewOp<LLVM::MaskedStoreOp>(op, stored, pointer, adaptor.getMask(),
                                              alignmentOf(op.getVectorType().getElementType()));
    return success();
  }
};

struct Gather : ViewPattern<vector::GatherOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(vector::GatherOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    const Type element = op.getVectorType().getElementType();
    Value first = elementAt(b, op.getLoc(), cast<MemRefType>(op.getBaseType()), adaptor.getBase(),
                            adaptor.getOffsets());
    Value pointers = elementAt(b, op.getLoc(), element, first, adaptor.getIndices());
    auto integers = integersOf(op.getVectorType());
    Value passThrough = adaptor.getPassThru();
    if (integers)
      passThrough = LLVM::BitcastOp::create(b, op.getLoc(), integers, passThrough);
    Value loaded = LLVM::masked_gather::create(
        b, op.getLoc(), integers ? integers : op.getVectorType(), pointers, adaptor.getMask(),
        ValueRange{passThrough}, alignmentOf(element));
    if (integers)
      loaded = LLVM::BitcastOp::create(b, op.getLoc(), op.getVectorType(), loaded);
    b.replaceOp(op, loaded);
    return success();
  }
};

struct Scatter : ViewPattern<vector::ScatterOp> {
  using ViewPattern::ViewPattern;
  LogicalResult matchAndRewrite(vector::ScatterOp op, OpAdaptor adaptor,
                                ConversionPatternRewriter &b) const override {
    const Type element = op.getVectorType().getElementType();
    Value first = elementAt(b, op.getLoc(), cast<MemRefType>(op.getBaseType()), adaptor.getBase(),
                            adaptor.getOffsets());
    Value pointers = elementAt(b, op.getLoc(), element, first, adaptor.getIndices());
    Value stored = adaptor.getValueToStore();
    if (auto integers = integersOf(op.getVectorType()))
      stored = LLVM::BitcastOp::create(b, op.getLoc(), integers, stored);
    b.replaceOpWithNewOp<LLVM::masked_scatter>(op, stored, pointers, adaptor.getMask(),
                                               alignmentOf(element));
    return success();
  }
};

} // namespace

void populatePointerViewPatterns(LLVMTypeConverter &types, RewritePatternSet &patterns,
                                 bool isDevice) {
  types.addConversion([isDevice](MemRefType type) -> Type {
    constexpr unsigned kGlobal = 1, kOfBlock = 3;
    const bool isShared = gpu::GPUDialect::hasWorkgroupMemoryAddressSpace(type);
    return LLVM::LLVMPointerType::get(type.getContext(), !isDevice  ? 0
                                                         : isShared ? kOfBlock
                                                                    : kGlobal);
  });
  patterns.add<ReinterpretCast, View, PointerAsIndex, ScalarLoad, ScalarStore, Prefetch, Load,
               Store, MaskedLoad, MaskedStore, Gather, Scatter>(types, isDevice);
}

} // namespace normforge
