// The pass that turns steps on slices into loops and vectors.
//
// The steps of a block, one tile of a stage, are vectorized one after the other. What depends on
// kept loops alone stays in registers from step to step. In brief, for one row of 32 elements,
//   %sum = linalg.generic ins(%x) outs(%zero) { addf }            // reduction over d1
//   %y = linalg.generic ins(%x, %sum) outs(%empty) { subf }
//   bufferization.materialize_in_destination %y in %to
// becomes
//   %sums = scf.for %i = 0 to 32 step 16 iter_args(%s = 0) { vector.load %x; addf }
//   %sum = the lanes of %sums, pairwise
//   scf.for %i = 0 to 32 step 16 { vector.load %x; subf; vector.store %to }
//
// Rules that a change must keep: a reduction's order depends on the schedule and the sizes alone,
// never on addresses or threads; stores of a point come after all of its loads, for an output may
// be an input's buffer; memory that does not exist is neither read nor written, not under a mask
// whose lanes are off either where the target has no masks.
#include "compiler/passes/Passes.h"
#include "compiler/passes/StepBody.h"
#include "compiler/passes/StepEmitter.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

namespace normforge {

#define GEN_PASS_DEF_VECTORIZESTEPS
#include "compiler/passes/Passes.h.inc"

namespace {

using namespace mlir;
using namespace tile;

/// The steps of one block: of one tile, or of the whole tiles' only one and what is left after it.
class TileVectorizer {
public:
  TileVectorizer(const Knobs &knobs, Block &block, Constants &constants, SharedMemory &shared)
      : knobs_(knobs), block_(block), constants_(constants), shared_(shared),
        b_(block.getParentOp()) {
    auto loop = dyn_cast<scf::ForOp>(block.getParentOp());
    if (knobs.held > 0 && loop && loop.getNumResults() == 0)
      carried_.loop = loop;
  }

  LogicalResult run();

private:
  LogicalResult vectorize(linalg::GenericOp step);
  LogicalResult write(bufferization::MaterializeInDestinationOp write);
  /// Where the array lies that a value is written to.
  LogicalResult findOutputs(StepContext &context, StepAnalysis &analysis);
  /// Whether a later step of the tile reads what this one, or this operation, has stored.
  static bool isReadBack(linalg::GenericOp step);
  static bool isReadBack(bufferization::MaterializeInDestinationOp write);
  void removeSteps(ArrayRef<Operation *> operations);
  /// Has the loop over tiles take sums along; the block is another one then.
  LogicalResult carrySums();

  const Knobs &knobs_;
  Block &block_;
  Constants &constants_;
  SharedMemory &shared_;
  OpBuilder b_;
  Registers registers_;
  HeldVectors held_;
  CarriedSums carried_;
  int passes_ = 0; ///< over the tile's data so far
};

LogicalResult TileVectorizer::findOutputs(StepContext &context, StepAnalysis &analysis) {
  for (OpResult result : context.step->getResults()) {
    if (!result.hasOneUse())
      return context.step.emitError("each result of an elementwise step is stored, once");
    auto write = dyn_cast<bufferization::MaterializeInDestinationOp>(*result.getUsers().begin());
    if (!write)
      return context.step.emitError("the result of an elementwise step is not stored");
    context.outputs.push_back(analysis.accessOf(
        write.getDest(), context.step.getIndexingMapMatchingResult(result), context));
  }
  return success();
}

bool TileVectorizer::isReadBack(bufferization::MaterializeInDestinationOp write) {
  return llvm::any_of(write.getDest().getUsers(),
                      [](Operation *reader) { return isa<bufferization::ToTensorOp>(reader); });
}

bool TileVectorizer::isReadBack(linalg::GenericOp step) {
  for (OpResult result : step->getResults())
    for (Operation *user : result.getUsers())
      if (auto write = dyn_cast<bufferization::MaterializeInDestinationOp>(user))
        if (isReadBack(write))
          return true;
  return false;
}

LogicalResult TileVectorizer::vectorize(linalg::GenericOp step) {
  b_.setInsertionPoint(step);
  if (step->hasAttr(attr::kTileBegins))
    held_.clear();
  const Knobs knobs = held_.empty() ? knobs_ : knobs_.anew(b_, step.getLoc());
  StepAnalysis analysis(knobs, b_, constants_);
  FailureOr<StepContext> found = analysis.analyze(step);
  if (failed(found))
    return failure();
  StepContext &context = *found;
  if (step->hasAttr(attr::kTileBegins))
    passes_ = 0;
  if (context.kind != Kind::Registers)
    context.backwards = knobs_.alternates && passes_++ % 2 == 1;
  for (OpOperand *operand : step.getDpsInputOperands()) {
    if (registers_.contains(operand->get())) {
      context.inputs.emplace_back();
      continue;
    }
    auto memory = operand->get().getDefiningOp<bufferization::ToTensorOp>();
    if (!memory)
      return step.emitError("an input is neither in memory nor in registers");
    context.inputs.push_back(
        analysis.accessOf(memory.getBuffer(), step.getMatchingIndexingMap(operand), context));
  }
  if ((context.storesElements() || context.carries()) && failed(findOutputs(context, analysis)))
    return failure();
  context.streams = knobs_.streams && context.storesElements() && !isReadBack(step);
  if ((context.laneLoop >= 0 || !context.order.empty()) && !context.packs())
    context.inFlight = knobs_.unroll;
  if (context.reduces() && context.combiner == Combiner::Sum) {
    // Those of f32 in f64 need no blocks.
    const Type sum = getElementTypeOrSelf(step.getResultTypes().front());
    for (const Access &input : context.inputs)
      context.blocks |= input.base && (!sum.isF64() || input.element().isF64());
  }
  context.holds = knobs_.held > 0 && context.kind != Kind::Registers &&
                  (context.columns ? context.slotLoop >= 0
                                   : context.laneLoop >= 0 && context.slots.size() == 1);
  StepEmitter emitter(knobs, context, b_, constants_, registers_, held_, carried_, shared_);
  if (failed(emitter.emit()))
    return failure();
  if (context.storesElements() && isReadBack(step))
    emitter.awaitThreads();
  return success();
}

/// Stores statistics that are in registers.
LogicalResult TileVectorizer::write(bufferization::MaterializeInDestinationOp write) {
  const auto values = registers_.find(write.getSource());
  if (values == registers_.end())
    return success(); // the step has stored it
  auto step = write.getSource().getDefiningOp<linalg::GenericOp>();
  b_.setInsertionPoint(write);
  StepAnalysis analysis(knobs_, b_, constants_);
  FailureOr<StepContext> context = analysis.analyzeRegisters(step);
  if (failed(context))
    return failure();
  AffineMap map = step.getIndexingMapMatchingResult(cast<OpResult>(write.getSource()));
  const Access access = analysis.accessOf(write.getDest(), map, *context);
  StepEmitter emitter(knobs_, *context, b_, constants_, registers_, held_, carried_, shared_);
  emitter.storeRegisters(access, values->second);
  if (isReadBack(write)) // by threads that have not stored it
    emitter.awaitThreads();
  return success();
}

LogicalResult TileVectorizer::run() {
  SmallVector<Operation *> operations(llvm::make_pointer_range(block_));
  for (Operation *op : operations) {
    LogicalResult result = success();
    if (auto step = dyn_cast<linalg::GenericOp>(op))
      result = vectorize(step);
    else if (auto materialize = dyn_cast<bufferization::MaterializeInDestinationOp>(op))
      result = write(materialize);
    if (failed(result))
      return failure();
  }
  removeSteps(operations);
  return carrySums();
}

LogicalResult TileVectorizer::carrySums() {
  if (carried_.sums.empty())
    return success();
  IRRewriter rewriter(carried_.loop->getContext());
  rewriter.setInsertionPoint(carried_.loop);
  SmallVector<Value> begin, end;
  for (const CarriedSums::Sum &sum : carried_.sums) {
    begin.push_back(sum.begin);
    end.push_back(sum.after);
  }
  auto loop = carried_.loop.replaceWithAdditionalYields(
      rewriter, begin, /*replaceInitOperandUsesInLoop=*/false,
      [&](OpBuilder &, Location, ArrayRef<BlockArgument>) { return end; });
  if (failed(loop))
    return failure();
  for (auto [sum, taken] : llvm::zip(carried_.sums, loop->getRegionIterArgs())) {
    Operation *place = sum.before.getDefiningOp();
    sum.before.replaceAllUsesWith(taken);
    place->erase();
  }
  return success();
}

void TileVectorizer::removeSteps(ArrayRef<Operation *> operations) {
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
}

struct VectorizeSteps : impl::VectorizeStepsBase<VectorizeSteps> {
  using VectorizeStepsBase::VectorizeStepsBase;

  void runOnOperation() override {
    for (auto function : getOperation().getOps<func::FuncOp>()) {
      if (!function->hasAttr(attr::kTileLoop))
        continue;
      for (const char *name : attr::kOfStages)
        if (!function->hasAttr(name)) {
          function.emitError("a stage has no ") << name;
          return signalPassFailure();
        }
      Constants constants(function.getBody().front());
      const Knobs knobs = Knobs::of(function, subgroup);
      SharedMemory shared;
      SetVector<Block *> blocks;
      function.walk([&](linalg::GenericOp step) { blocks.insert(step->getBlock()); });
      for (Block *block : blocks)
        if (failed(TileVectorizer(knobs, *block, constants, shared).run()))
          return signalPassFailure();
      // Stores past the caches are ordered with what follows the stage by a fence alone.
      if (knobs.streams) {
        OpBuilder b(function.getBody().back().getTerminator());
        LLVM::CallIntrinsicOp::create(b, function.getLoc(), b.getStringAttr("llvm.x86.sse.sfence"),
                                      ValueRange());
      }
      for (const char *name : attr::kOfTiles)
        function->removeAttr(name);
      if (knobs.threads > 0) {
        Builder b(&getContext());
        function->setAttr(attr::kSubgroup, b.getI64IntegerAttr(subgroup));
        function->setAttr(attr::kShared, b.getI64IntegerAttr(shared.bytes));
      }
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
