#include "compiler/passes/StepBody.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/IRMapping.h"
#include "mlir/IR/Matchers.h"

#include <optional>

using namespace mlir;

namespace normforge {

SmallVector<Value> emitStepBody(OpBuilder &b, Constants &constants, Block &body,
                                ValueRange arguments, Width width,
                                llvm::function_ref<Value(unsigned)> loopIndex) {
  IRMapping mapping;
  for (auto [argument, value] : llvm::zip(body.getArguments(), arguments))
    mapping.map(argument, value);
  auto isVector = [](Value value) { return isa<VectorType>(value.getType()); };
  auto widen = [&](Value value) -> Value {
    if (isVector(value) || width.isScalar())
      return value;
    auto type = width.vector(value.getType());
    TypedAttr constant;
    if (matchPattern(value, m_Constant(&constant)))
      return constants.get(value.getLoc(), DenseElementsAttr::get(type, Attribute(constant)));
    return vector::BroadcastOp::create(b, value.getLoc(), type, value);
  };
  for (Operation &op : body.without_terminator()) {
    if (auto index = dyn_cast<linalg::IndexOp>(op)) {
      mapping.map(index.getResult(), loopIndex(static_cast<unsigned>(index.getDim())));
      continue;
    }
    if (auto constant = dyn_cast<arith::ConstantOp>(op)) {
      mapping.map(constant.getResult(), constants.get(op.getLoc(), constant.getValue()));
      continue;
    }
    bool wide = false;
    for (Value operand : op.getOperands())
      wide = wide || isVector(mapping.lookupOrDefault(operand));
    if (!wide) {
      b.clone(op, mapping);
      continue;
    }
    IRMapping operands;
    for (Value operand : op.getOperands())
      operands.map(operand, widen(mapping.lookupOrDefault(operand)));
    Operation *clone = b.clone(op, operands);
    for (auto [from, to] : llvm::zip(op.getResults(), clone->getResults())) {
      to.setType(width.vector(from.getType()));
      mapping.map(from, to);
    }
  }
  SmallVector<Value> results;
  for (Value value : body.getTerminator()->getOperands())
    results.push_back(widen(mapping.lookupOrDefault(value)));
  return results;
}

FailureOr<Combiner> combinerOf(linalg::GenericOp step) {
  Block &body = *step.getBlock();
  std::optional<Combiner> ofAll;
  for (unsigned r = 0; r < step.getNumDpsInits(); ++r) {
    Value accumulator = body.getArgument(step.getNumDpsInputs() + r);
    Operation *last = body.getTerminator()->getOperand(r).getDefiningOp();
    std::optional<Combiner> own;
    if (isa_and_nonnull<arith::AddFOp, arith::MaximumFOp>(last) &&
        llvm::is_contained(last->getOperands(), accumulator))
      own = isa<arith::AddFOp>(last) ? Combiner::Sum : Combiner::Maximum;
    else if (auto fma = dyn_cast_or_null<math::FmaOp>(last); fma && fma.getC() == accumulator)
      own = Combiner::Sum;
    if (!own || !accumulator.hasOneUse())
      return step.emitError("a reduction's result is no sum or maximum of its accumulator");
    if (ofAll && own != ofAll)
      return step.emitError("a reduction's results are sums and maxima");
    ofAll = own;
  }
  return *ofAll;
}

} // namespace normforge
