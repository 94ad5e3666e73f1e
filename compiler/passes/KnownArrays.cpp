#include "compiler/passes/KnownArrays.h"

namespace normforge {

using namespace mlir;

Value KnownArrays::addressOf(OpBuilder &b, Operation *stage, DenseElementsAttr elements) {
  LLVM::GlobalOp &global = known_[elements];
  if (!global) {
    constexpr uint64_t kAlignment = 64; // a cache line, and the widest vector
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPoint(stage);
    global = LLVM::GlobalOp::create(
        b, stage->getLoc(),
        LLVM::LLVMArrayType::get(elements.getElementType(), elements.getNumElements()),
        /*isConstant=*/true, LLVM::Linkage::Private, "known" + std::to_string(known_.size()),
        elements, kAlignment, addressSpace_);
  }
  return LLVM::AddressOfOp::create(b, stage->getLoc(), global);
}

} // namespace normforge
