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
  tile_ = static_cast<int64_t>(slots_.size());
  backwards_ = alternates_ && (reduces_ || element_) && passes_++ % 2 == 1;
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
  blocks_ = false;
  if (reduces_) {
    // Sums of f32 in f64 need no blocks.
    const Type sum = getElementTypeOrSelf(step.getResultTypes().front());
    for (const Access &input : inputs_)
      blocks_ |= input.base && (!sum.isF64() || getElementTypeOrSelf(input.base).isF64());
    for (Value init : step.getDpsInits()) {
      auto fill = init.getDefiningOp<linalg::FillOp>();
      if (!fill || !matchPattern(fill.getInputs()[0], m_AnyZeroFloat()))
        return step.emitError("a sum starts at zero");
      for (const Slot &slot : slots_) {
        const Width width = columns_ ? slot.width : laneLoop_ >= 0 ? width_ : Width{1};
        Type type = width.type(fill.getInputs()[0].getType());
        accumulators.append(static_cast<size_t>(inFlight_), constants_.zero(loc_, type));
      }
    }
    if (failed(checkSums(step)))
      return failure();
  }
  // Rows that are written bind them one by one.
  if (!isRows() || slots_.size() == 1 || reduces_)
    bindRegisters();
  accumulators = emitLoops(0, accumulators);
  if (!reduces_)
    return success();
  // Sums in flight, then lanes, pairwise: a fixed order.
  size_t next = 0;
  for (OpResult result : step->getResults()) {
    SmallVector<Value> bySlot;
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
      bySlot.push_back(sums[0]);
    }
    registers_[result] = columns_ ? bySlot : SmallVector<Value>{reduceRows(bySlot)};
  }
  return success();
}

/// `sums` are one vector, or two of which each holds as many sums, in groups of `width` lanes. The
/// halves of each group are added: groups of half the width, those of the first vector before those
/// of the second.
Value TileVectorizer::halve(ArrayRef<Value> sums, int64_t width) {
  const int64_t lanes = cast<VectorType>(sums[0].getType()).getNumElements();
  SmallVector<int64_t> low, high;
  for (int64_t group = 0; group < lanes * static_cast<int64_t>(sums.size()); group += width)
    for (int64_t i = 0; i < width / 2; ++i) {
      low.push_back(group + i);
      high.push_back(group + width / 2 + i);
    }
  Value first = vector::ShuffleOp::create(b_, loc_, sums.front(), sums.back(), low);
  Value second = vector::ShuffleOp::create(b_, loc_, sums.front(), sums.back(), high);
  return combine(first, second);
}

/// The sums of the lanes of each row, as a vector over the rows; a scalar for one row. Each is
/// added up pairwise; rows are packed into one vector as they shrink, which takes far fewer
/// operations than one after the other.
Value TileVectorizer::reduceRows(ArrayRef<Value> rows) {
  SmallVector<Value> sums(rows);
  const auto count = static_cast<int64_t>(rows.size());
  auto type = dyn_cast<VectorType>(rows[0].getType());
  if (type && type.isScalable()) { // an instruction does it, pairwise, whatever the length
    for (Value &sum : sums)
      sum = vector::ReductionOp::create(b_, loc_, vector::CombiningKind::ADD, sum,
                                        arith::FastMathFlags::reassoc);
    type = {};
  }
  int64_t width = type ? type.getNumElements() : 1;
  auto isPowerOf2 = [](int64_t v) { return llvm::isPowerOf2_64(static_cast<uint64_t>(v)); };
  if (isPowerOf2(count) && count <= width)
    for (; sums.size() > 1; width /= 2) {
      SmallVector<Value> halved;
      for (size_t i = 0; i < sums.size(); i += 2)
        halved.push_back(halve(ArrayRef(sums).slice(i, 2), width));
      sums = halved;
    }
  for (; width > 1; width /= 2)
    for (Value &sum : sums)
      sum = halve({sum}, width);
  if (count == 1 && type)
    return vector::ExtractOp::create(b_, loc_, sums[0], ArrayRef<int64_t>{0});
  if (static_cast<int64_t>(sums.size()) < count || count == 1)
    return sums[0];
  for (Value &sum : sums)
    if (type)
      sum = vector::ExtractOp::create(b_, loc_, sum, ArrayRef<int64_t>{0});
  Type element = sums[0].getType();
  return vector::FromElementsOp::create(b_, loc_, VectorType::get({count}, element), sums);
}

/// Makes ready what the step takes from registers: for rows, each row's own value out of the vector
/// over them, and a vector of copies of it; of row `row` alone where one is given.
void TileVectorizer::bindRegisters(int64_t row) {
  arguments_.assign(inputs_.size(), {});
  wideArguments_.assign(inputs_.size(), {});
  for (auto [i, input] : llvm::enumerate(step_.getInputs())) {
    if (inputs_[i].base)
      continue;
    arguments_[i] = registers_[input];
    if (!isRows())
      continue;
    Value packed = registers_[input][0];
    if (isa<VectorType>(packed.getType())) {
      arguments_[i].clear();
      if (row >= 0)
        arguments_[i].push_back(
            vector::ExtractOp::create(b_, loc_, packed, ArrayRef<int64_t>{row}));
      else
        for (const Slot &slot : slots_)
          arguments_[i].push_back(
              vector::ExtractOp::create(b_, loc_, packed, ArrayRef<int64_t>{slot.offset}));
    }
    wideArguments_[i] = arguments_[i];
    if (vector_ > 1)
      for (Value &value : wideArguments_[i])
        value = vector::BroadcastOp::create(b_, loc_, width_.vector(value.getType()), value);
  }
}

/// Stores statistics that are in registers.
LogicalResult TileVectorizer::writeRegisters(bufferization::MaterializeInDestinationOp write) {
  Value tensor = write.getSource();
  auto values = registers_.find(tensor);
  if (values == registers_.end())
    return success(); // an elementwise step has stored it
  auto step = tensor.getDefiningOp<linalg::GenericOp>();
  b_.setInsertionPoint(write);
  if (failed(findLoops(step)))
    return failure();
  reduces_ = element_ = false;
  makeSlots();
  AffineMap map = step.getIndexingMapMatchingResult(cast<OpResult>(tensor));
  outputs_.assign(1, accessOfMemory(write.getDest(), map));
  inputs_.clear();
  makeViews();
  for (size_t s = 0; s < slots_.size(); ++s)
    store(outputs_[0], -1, b_.getIndexAttr(0), b_.getIndexAttr(0), slots_[s], slots_[s].width,
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
        (op->use_empty() && isa<linalg::FillOp, tensor::EmptyOp, bufferization::ToTensorOp,
                                memref::SubViewOp, UnrealizedConversionCastOp>(op)))
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
      Constants constants(function.getBody().front());
      SetVector<Block *> blocks;
      function.walk([&](linalg::GenericOp step) { blocks.insert(step->getBlock()); });
      for (Block *block : blocks)
        if (failed(TileVectorizer(function, *block, constants).run()))
          return signalPassFailure();
      // Stores past the caches are ordered with what follows the stage by a fence alone.
      if (function->hasAttr(attr::kStreaming)) {
        OpBuilder b(function.getBody().back().getTerminator());
        LLVM::CallIntrinsicOp::create(b, function.getLoc(), b.getStringAttr("llvm.x86.sse.sfence"),
                                      ValueRange());
      }
      for (const char *name : attr::kOfTiles)
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
