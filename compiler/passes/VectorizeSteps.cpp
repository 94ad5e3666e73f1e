// The pass that turns steps on tensors into loops and vectors: each step of a block in turn, its
// results kept in registers or stored.
#include "compiler/passes/Passes.h"
#include "compiler/passes/StepBody.h"
#include "compiler/passes/TileVectorizer.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/IR/Matchers.h"

namespace normforge {

#define GEN_PASS_DEF_VECTORIZESTEPS
#include "compiler/passes/Passes.h.inc"

namespace tile {

LogicalResult TileVectorizer::vectorize(linalg::GenericOp step) {
  step_ = step;
  b_.setInsertionPoint(step);
  if (failed(findLoops(step)))
    return failure();
  makeSlots();
  position_.assign(loops_.size(), OpFoldResult());
  inputs_.clear();
  outputs_.clear();
  for (OpOperand *operand : step.getDpsInputOperands())
    inputs_.push_back(registers_.contains(operand->get())
                          ? Access()
                          : accessOf(operand->get(), step.getMatchingIndexingMap(operand)));
  if (element_) {
    if (step.getNumResults() != 1 || !step.getResult(0).hasOneUse())
      return step.emitError("an elementwise step has one result, and it is stored");
    auto write =
        dyn_cast<bufferization::MaterializeInDestinationOp>(*step.getResult(0).getUsers().begin());
    if (!write)
      return step.emitError("the result of an elementwise step is not stored");
    outputs_.push_back(
        accessOfMemory(write.getDest(), step.getIndexingMapMatchingResult(step->getResult(0))));
  }
  const bool loops = laneLoop_ >= 0 || !order_.empty();
  inFlight_ = loops ? unroll_ : 1;
  SmallVector<Value> accumulators;
  if (reduces_) {
    for (Value init : step.getDpsInits()) {
      auto fill = init.getDefiningOp<linalg::FillOp>();
      if (!fill || !matchPattern(fill.getInputs()[0], m_AnyZeroFloat()))
        return step.emitError("a sum starts at zero");
      for (const Slot &slot : slots_) {
        const int64_t lanes = columns_ ? slot.lanes : (laneLoop_ >= 0 ? vector_ : 1);
        Value zero = fill.getInputs()[0];
        if (lanes > 1)
          zero = arith::ConstantOp::create(
              b_, loc_, b_.getZeroAttr(VectorType::get({lanes}, zero.getType())));
        accumulators.append(static_cast<size_t>(inFlight_), zero);
      }
    }
    if (failed(checkSums(step)))
      return failure();
  }
  accumulators = emitLoops(0, accumulators);
  if (!reduces_)
    return success();
  // Sums in flight, then lanes, pairwise: a fixed order.
  size_t next = 0;
  for (OpResult result : step->getResults())
    for (size_t s = 0; s < slots_.size(); ++s) {
      SmallVector<Value> sums(accumulators.begin() + next,
                              accumulators.begin() + next + static_cast<size_t>(inFlight_));
      next += static_cast<size_t>(inFlight_);
      while (sums.size() > 1) {
        SmallVector<Value> halved;
        for (size_t i = 0; i + 1 < sums.size(); i += 2)
          halved.push_back(combine(sums[i], sums[i + 1]));
        if (sums.size() % 2)
          halved.push_back(sums.back());
        sums = halved;
      }
      Value sum = sums[0];
      if (!columns_)
        while (auto type = dyn_cast<VectorType>(sum.getType())) {
          const int64_t lanes = type.getNumElements();
          if (lanes == 1) {
            sum = vector::ExtractOp::create(b_, loc_, sum, ArrayRef<int64_t>{0});
            break;
          }
          SmallVector<int64_t> first, second;
          for (int64_t i = 0; i < lanes / 2; ++i) {
            first.push_back(i);
            second.push_back(lanes / 2 + i);
          }
          Value low = vector::ShuffleOp::create(b_, loc_, sum, sum, first);
          Value high = vector::ShuffleOp::create(b_, loc_, sum, sum, second);
          sum = combine(low, high);
        }
      registers_[result].push_back(sum);
    }
  return success();
}

/// Stores statistics that are in registers.
LogicalResult TileVectorizer::writeRegisters(bufferization::MaterializeInDestinationOp write) {
  Value tensor = write.getSource();
  int splitAxis = -1;
  int64_t block = 0;
  if (auto slice = tensor.getDefiningOp<tensor::ExtractSliceOp>()) {
    auto collapse = slice.getSource().getDefiningOp<tensor::CollapseShapeOp>();
    tensor = collapse.getSrc();
    std::tie(splitAxis, block) = splitOf(collapse.getReassociationIndices(), collapse.getSrcType());
  }
  auto values = registers_.find(tensor);
  if (values == registers_.end())
    return success(); // an elementwise step has stored it
  auto step = tensor.getDefiningOp<linalg::GenericOp>();
  b_.setInsertionPoint(write);
  if (failed(findLoops(step)))
    return failure();
  makeSlots();
  AffineMap map = step.getIndexingMapMatchingResult(cast<OpResult>(tensor));
  outputs_.assign(1, accessOfMemory(write.getDest(), map, splitAxis, block));
  inputs_.clear();
  makeViews();
  for (size_t s = 0; s < slots_.size(); ++s)
    store(outputs_[0], -1, b_.getIndexAttr(0), 0, slots_[s], columns_ ? slots_[s].lanes : 1,
          slots_[s].mask, values->second[values->second.size() == 1 ? 0 : s]);
  return success();
}

LogicalResult TileVectorizer::run() {
  SmallVector<Operation *> operations;
  for (Operation &op : block_)
    operations.push_back(&op);
  for (Operation *op : operations) {
    LogicalResult result = success();
    if (auto step = dyn_cast<linalg::GenericOp>(op))
      result = vectorize(step);
    else if (auto write = dyn_cast<bufferization::MaterializeInDestinationOp>(op))
      result = writeRegisters(write);
    if (failed(result))
      return failure();
  }
  for (Operation *op : llvm::reverse(operations))
    if (isa<linalg::GenericOp, bufferization::MaterializeInDestinationOp>(op) ||
        (op->use_empty() &&
         isa<linalg::FillOp, tensor::EmptyOp, tensor::PadOp, tensor::ExtractSliceOp,
             tensor::ExpandShapeOp, tensor::CollapseShapeOp, bufferization::ToTensorOp,
             memref::DimOp, memref::SubViewOp>(op)))
      op->erase();
  // Sizes that fed only those.
  SmallVector<Operation *> left(llvm::make_pointer_range(block_));
  for (Operation *op : llvm::reverse(left))
    if (isOpTriviallyDead(op))
      op->erase();
  return success();
}

} // namespace tile

namespace {

using namespace mlir;
using tile::TileVectorizer;

struct VectorizeSteps : impl::VectorizeStepsBase<VectorizeSteps> {
  void runOnOperation() override {
    for (auto function : getOperation().getOps<func::FuncOp>()) {
      if (!function->hasAttr(attr::kTileLoop))
        continue;
      SetVector<Block *> blocks;
      function.walk([&](linalg::GenericOp step) { blocks.insert(step->getBlock()); });
      for (Block *block : blocks)
        if (failed(TileVectorizer(function, *block).run()))
          return signalPassFailure();
      // Stores past the caches are ordered with what follows the stage by a fence alone.
      if (function->hasAttr(attr::kStreaming)) {
        OpBuilder b(function.getBody().back().getTerminator());
        LLVM::CallIntrinsicOp::create(b, function.getLoc(), b.getStringAttr("llvm.x86.sse.sfence"),
                                      ValueRange());
      }
      for (const char *name : {attr::kTileLoop, attr::kUnroll, attr::kVector, attr::kMaskedTails,
                               attr::kKept, attr::kStreaming})
        function->removeAttr(name);
      SmallVector<Operation *> casts;
      function.walk([&](memref::ReinterpretCastOp cast) {
        if (cast->use_empty())
          casts.push_back(cast);
      });
      for (Operation *cast : casts)
        cast->erase();
    }
  }
};

} // namespace

} // namespace normforge
