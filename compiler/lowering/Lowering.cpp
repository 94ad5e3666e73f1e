#include "compiler/lowering/Lowering.h"

#include "compiler/lowering/StageBuilder.h"

#include "mlir/Dialect/Affine/IR/AffineOps.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

#include <array>
#include <limits>
#include <numeric>

using namespace mlir;

namespace normforge {

namespace {

using Index = llvm::function_ref<Value(unsigned)>;
using Values = llvm::SmallVector<Value>;

/// The neutral element: a reduction starts from it, and takes it for elements that do not exist.
double neutral(Reduce reduce) {
  return reduce == Reduce::Maximum ? -std::numeric_limits<double>::infinity() : 0;
}

/// Emits nodes of expressions as operations.
struct NodeEmitter {
  OpBuilder &b;
  Location loc;
  Type type; ///< that is computed in

  Value constant(double v) const {
    return arith::ConstantOp::create(b, loc, b.getFloatAttr(type, v));
  }
  Value add(Value x, Value y) const { return arith::AddFOp::create(b, loc, x, y); }
  Value sub(Value x, Value y) const { return arith::SubFOp::create(b, loc, x, y); }
  Value mul(Value x, Value y) const { return arith::MulFOp::create(b, loc, x, y); }
  Value div(Value x, Value y) const { return arith::DivFOp::create(b, loc, x, y); }
  Value fma(Value x, Value y, Value z) const { return math::FmaOp::create(b, loc, x, y, z); }
  Value negate(Value x) const { return arith::NegFOp::create(b, loc, x); }
  Value select(Value condition, Value yes, Value no) const {
    return arith::SelectOp::create(b, loc, condition, yes, no);
  }
  /// NaN where one is; -0 is less than 0.
  Value maximum(Value x, Value y) const { return arith::MaximumFOp::create(b, loc, x, y); }
  Value isNan(Value x) const {
    return arith::CmpFOp::create(b, loc, arith::CmpFPredicate::UNO, x, x);
  }
  Value zeroIfNan(Value x) const { return select(isNan(x), constant(0), x); }
  /// x/y, 0 where y is 0.
  Value divOrZero(Value x, Value y) const {
    Value isZero = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OEQ, y, constant(0));
    return select(isZero, constant(0), div(x, y));
  }

  /// A node that is no leaf but a constant; `in` are the values of what it is made of.
  Value emit(const Node &node, ArrayRef<Value> in) const {
    switch (node.op) {
    case ExprOp::Constant:
      return constant(node.number);
    case ExprOp::Add:
      return add(in[0], in[1]);
    case ExprOp::Sub:
      return sub(in[0], in[1]);
    case ExprOp::Mul:
      return mul(in[0], in[1]);
    case ExprOp::Div:
      return div(in[0], in[1]);
    case ExprOp::Fma:
      return fma(in[0], in[1], in[2]);
    case ExprOp::Neg:
      return negate(in[0]);
    case ExprOp::Abs:
      return math::AbsFOp::create(b, loc, in[0]);
    case ExprOp::Sqrt:
      return math::SqrtOp::create(b, loc, in[0]);
    case ExprOp::Exp:
      return math::ExpOp::create(b, loc, in[0]);
    case ExprOp::Expm1:
      return math::ExpM1Op::create(b, loc, in[0]);
    case ExprOp::Log:
      return math::LogOp::create(b, loc, in[0]);
    case ExprOp::Log1p:
      return math::Log1pOp::create(b, loc, in[0]);
    case ExprOp::Erf:
      return math::ErfOp::create(b, loc, in[0]);
    case ExprOp::Tanh:
      return math::TanhOp::create(b, loc, in[0]);
    case ExprOp::Floor:
      return math::FloorOp::create(b, loc, in[0]);
    case ExprOp::RoundEven:
      return math::RoundEvenOp::create(b, loc, in[0]);
    case ExprOp::Less:
      return arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OLT, in[0], in[1]);
    case ExprOp::LessEqual:
      return arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OLE, in[0], in[1]);
    case ExprOp::IsNan:
      return isNan(in[0]);
    case ExprOp::Not:
      return arith::XOrIOp::create(b, loc, in[0],
                                   arith::ConstantOp::create(b, loc, b.getBoolAttr(true)));
    case ExprOp::And:
      return arith::AndIOp::create(b, loc, in[0], in[1]);
    case ExprOp::Select:
      return select(in[0], in[1], in[2]);
    case ExprOp::Operand:
    case ExprOp::Known:
    case ExprOp::Result:
    case ExprOp::Scalar:
    case ExprOp::Size:
      break;
    }
    llvm_unreachable("a leaf is bound, not emitted");
  }
};

/// Arrays of the workspace by what they hold.
struct Workspace {
  SizeExpr bytes;
  std::map<uint32_t, WorkspaceArray> results, partials; ///< by result

  WorkspaceArray &allocate(WorkspaceArray &array, const std::vector<SizeExpr> &shape,
                           Type element) {
    array = {bytes, element};
    SizeExpr size(element.getIntOrFloatBitWidth() / 8);
    for (const SizeExpr &extent : shape)
      size = size * extent;
    take(size);
    return array;
  }
  WorkspaceArray &allocate(WorkspaceArray &array, const Operator::Dense &dense, Type element) {
    array = {bytes, element, dense.strides};
    take(dense.elements * SizeExpr(element.getIntOrFloatBitWidth() / 8));
    return array;
  }

private:
  void take(const SizeExpr &size) {
    bytes = bytes + ceilDivide(size, NF_WORKSPACE_ALIGNMENT) * SizeExpr(NF_WORKSPACE_ALIGNMENT);
  }
};

/// Lowers one stage: binds what its steps read, builds them, and writes what others read.
class StageLowering {
public:
  StageLowering(ModuleOp module, const Operator &op, const Schedule &schedule, size_t stage,
                llvm::StringRef symbol, Workspace &workspace)
      : op_(op), schedule_(schedule), index_(stage), plan_(schedule.stages[stage]),
        s_(module, op, schedule, stage, symbol), workspace_(workspace),
        type_(s_.typeOf(op.compute)),
        hasElements_(llvm::any_of(plan_.steps, [&](const StepPlan &plan) {
          return plan.part != Part::Merge && op.isWhole(op.steps[plan.step]);
        })) {}

  StageInfo run() {
    for (const StepPlan &step : plan_.steps)
      lower(step);
    SizeExpr bytes =
        partialBytes_ + bitBytes_ + op_.elements * SizeExpr(static_cast<int64_t>(bytesPerElement_));
    for (const auto &[elements, each] : small_)
      bytes = bytes + elements * SizeExpr(each);
    return s_.finish(bytes);
  }

private:
  void lower(const StepPlan &plan);
  void lowerMap(const Step &step);
  void lowerMoments(const Step &step, bool partial);
  void mergeMoments(const Step &step);
  void lowerSum(const Step &step, bool partial, bool carried);
  void mergeSum(const Step &step);
  /// Binds partial results of the stage before, indexed by the chunks and the statistics.
  llvm::SmallVector<Tensor> bindPartials(const Step &step, ArrayRef<uint32_t> results);
  /// Binds what formulas are made of.
  llvm::SmallVector<Tensor> bindAll(ArrayRef<Expr> leaves);

  Tensor bind(Expr leaf);
  /// Adds what a stage moves of an operand, of an array over statistics; beside elements these are
  /// nothing.
  void countBytes(const Operand &operand) {
    if (op_.isWhole(operand)) {
      if (operand.isBits())
        bitBytes_ = bitBytes_ + operand.bytes();
      else
        bytesPerElement_ += byteSize(operand.dtype);
      return;
    }
    SizeExpr elements(1);
    for (const SizeExpr &size : operand.shape)
      elements = elements * size;
    countBytes(elements, byteSize(operand.dtype));
  }
  void countBytes(const SizeExpr &elements, size_t bytes) {
    if (hasElements_)
      return;
    const auto same = llvm::find_if(small_, [&](const auto &one) { return one.first == elements; });
    if (same == small_.end())
      small_.emplace_back(elements, static_cast<int64_t>(bytes));
    else
      same->second += static_cast<int64_t>(bytes);
  }
  Value uniform(Expr expr, Type type);
  /// The operands and results that these are made of, in the order in which formulas name them.
  std::vector<Expr> leavesOf(ArrayRef<Expr> roots) const;
  /// Values of `roots` in a step's body, whose first arguments are those of `leaves`.
  Values emit(OpBuilder &b, Location loc, ArrayRef<Expr> roots, ArrayRef<Expr> leaves,
              ValueRange arguments) const;
  /// Emits before a step what of its formulas is one value for all elements.
  void prepare(ArrayRef<Expr> roots);

  bool isPadded() const { return op_.blocked && op_.blocked->padded; }
  /// Whether the step reduces over a blocked axis whose padding does not count.
  bool reducesPadding(const Step &step) const {
    return isPadded() && step.reduce != Reduce::None &&
           llvm::is_contained(step.loops, op_.blocked->inner) &&
           !llvm::is_contained(step.results[0].loops, op_.blocked->inner);
  }
  /// Whether element (index of the blocks, index of the lanes) of the blocked axis exists, in a
  /// step over the stage's loops.
  Value exists(OpBuilder &b, Location loc, Index loop, Value axisSize) const;
  /// `value`, or `none` where its element of the blocked axis does not exist; without an axisSize
  /// all do.
  Value pad(OpBuilder &b, Location loc, Index loop, Value axisSize, Value value,
            TypedAttr none) const {
    if (!axisSize)
      return value;
    Value padding = arith::ConstantOp::create(b, loc, none);
    return arith::SelectOp::create(b, loc, exists(b, loc, loop, axisSize), value, padding);
  }
  /// Pads with 0; `value` may be a bit.
  Value zeroPadding(OpBuilder &b, Location loc, Index loop, Value axisSize, Value value) const {
    return pad(b, loc, loop, axisSize, value, b.getZeroAttr(value.getType()));
  }
  /// The index of a step's results; of its partials, the chunks come first.
  std::vector<AffineExpr> spaceOf(const Step &step, bool partial = false) const {
    return s_.space(step.results[0].loops, partial);
  }
  void setLeaf(const Step &step, size_t result, const Tensor &value) {
    if (const auto leaf =
            op_.exprs.find(ExprOp::Result, step.firstResult + static_cast<uint32_t>(result)))
      leaves_[*leaf] = value;
  }
  /// Whether a later stage reads a result.
  bool isReadLater(uint32_t result) const;
  struct ChunkSizes {
    Values cut; ///< sizes of the reduced loops that are cut
    Value rest; ///< product of the others, without padding
  };
  const StagePlan &partials() const {
    return plan_.merges() ? schedule_.stages[static_cast<size_t>(partialStage(schedule_, index_))]
                          : plan_;
  }
  ChunkSizes chunkSizes(const Step &step);
  /// Elements of the chunks that the step's first loops count: min(chunk, what is left) each.
  Value chunkCount(OpBuilder &b, Location loc, const Step &step, const ChunkSizes &sizes,
                   Index loop, Type type) const;

  const Operator &op_;
  const Schedule &schedule_;
  size_t index_;
  const StagePlan &plan_;
  StageBuilder s_;
  Workspace &workspace_;
  Type type_;                                       ///< that is computed in
  size_t bytesPerElement_ = 0;                      ///< of whole operands that the stage moves
  SizeExpr partialBytes_;                           ///< of partial results that it reads
  SizeExpr bitBytes_;                               ///< of bits of elements that it moves
  std::vector<std::pair<SizeExpr, int64_t>> small_; ///< arrays and bytes an element, beside no data
  bool hasElements_ = false;                        ///< whether a step runs over the data
  std::map<Expr, Tensor> leaves_;
  std::map<Expr, Value> uniforms_;
};

std::vector<Expr> StageLowering::leavesOf(ArrayRef<Expr> roots) const {
  std::vector<Expr> leaves;
  for (Expr expr : op_.exprs.nodesOf(roots))
    if (isArray(op_.exprs[expr].op))
      leaves.push_back(expr);
  return leaves;
}

Tensor StageLowering::bind(Expr leaf) {
  if (const auto found = leaves_.find(leaf); found != leaves_.end())
    return found->second;
  const Node &node = op_.exprs[leaf];
  if (const Operand *array = op_.arrayOf(leaf)) {
    countBytes(*array);
    return leaves_[leaf] = node.op == ExprOp::Known ? s_.known(node.index) : s_.operand(node.index);
  }
  // Values of elements are read back from where they are stored.
  if (const Result &result = op_.result(node.index); op_.isWhole(result.loops))
    return leaves_[leaf] = s_.operand(static_cast<uint32_t>(result.operand));
  countBytes(op_.dense(op_.result(node.index).loops).elements, byteSize(op_.compute));
  return leaves_[leaf] = s_.workspace(workspace_.results.at(node.index),
                                      s_.space(op_.result(node.index).loops, false));
}

Value StageLowering::uniform(Expr expr, Type type) {
  Value &value = uniforms_[expr];
  if (value)
    return value;
  const Node &node = op_.exprs[expr];
  if (node.op == ExprOp::Scalar)
    return value = s_.scalar(node.index, type);
  if (node.op == ExprOp::Size)
    return value = s_.number(op_.exprs.sizeOf(expr), type);
  Values in;
  for (unsigned k = 0; k < arityOf(node.op); ++k)
    in.push_back(uniform(node.in[k], type));
  return uniforms_[expr] = NodeEmitter{s_.builder(), s_.location(), type}.emit(node, in);
}

void StageLowering::prepare(ArrayRef<Expr> roots) {
  for (Expr expr : op_.exprs.nodesOf(roots))
    if (op_.exprs.isUniform(expr) && op_.exprs[expr].op != ExprOp::Constant)
      uniform(expr, type_);
}

Values StageLowering::emit(OpBuilder &b, Location loc, ArrayRef<Expr> roots, ArrayRef<Expr> leaves,
                           ValueRange arguments) const {
  const NodeEmitter emitter{b, loc, type_};
  std::map<Expr, Value> values;
  for (auto [leaf, argument] : llvm::zip(leaves, arguments))
    values[leaf] = argument;
  for (Expr expr : op_.exprs.nodesOf(roots)) {
    const Node &node = op_.exprs[expr];
    if (values.count(expr))
      continue;
    if (node.op != ExprOp::Constant && op_.exprs.isUniform(expr)) {
      values[expr] = uniforms_.at(expr);
      continue;
    }
    Values in;
    for (unsigned k = 0; k < arityOf(node.op); ++k)
      in.push_back(values.at(node.in[k]));
    values[expr] = emitter.emit(node, in);
  }
  Values results;
  for (Expr root : roots)
    results.push_back(values.at(root));
  return results;
}

Value StageLowering::exists(OpBuilder &b, Location loc, Index loop, Value axisSize) const {
  Value block = arith::ConstantIndexOp::create(b, loc, op_.blocked->block);
  auto at = [&](int of) { return loop(static_cast<unsigned>(s_.stageLoop(of))); };
  Value first = arith::MulIOp::create(b, loc, at(op_.blocked->outer), block);
  Value index = arith::AddIOp::create(b, loc, first, at(op_.blocked->inner));
  return arith::CmpIOp::create(b, loc, arith::CmpIPredicate::slt, index, axisSize);
}

bool StageLowering::isReadLater(uint32_t result) const {
  for (size_t i = index_ + 1; i < schedule_.stages.size(); ++i)
    for (const StepPlan &step : schedule_.stages[i].steps) {
      if (step.part == Part::Merge) // reads partials alone
        continue;
      for (Expr leaf : leavesOf(op_.steps[step.step].values()))
        if (op_.exprs[leaf].op == ExprOp::Result && op_.exprs[leaf].index == result)
          return true;
    }
  return false;
}

StageLowering::ChunkSizes StageLowering::chunkSizes(const Step &step) {
  ChunkSizes sizes;
  SizeExpr rest(1);
  for (int i = 0; i < op_.rank(); ++i) {
    if (llvm::is_contained(step.results[0].loops, i))
      continue;
    if (partials().chunks[i] > 0)
      sizes.cut.push_back(s_.size(op_.loops[i].size));
    else if (reducesPadding(step) && i == op_.blocked->outer)
      rest = rest * op_.blocked->size;
    else if (!(reducesPadding(step) && i == op_.blocked->inner))
      rest = rest * op_.loops[i].size;
  }
  sizes.rest = s_.size(rest);
  return sizes;
}

Value StageLowering::chunkCount(OpBuilder &b, Location loc, const Step &step,
                                const ChunkSizes &sizes, Index loop, Type type) const {
  Value count = sizes.rest;
  Values indices;
  for (unsigned i = 0; i < sizes.cut.size(); ++i)
    indices.push_back(loop(i));
  size_t next = 0;
  for (int i = 0; i < op_.rank(); ++i) {
    const int64_t chunk = partials().chunks[i];
    if (llvm::is_contained(step.results[0].loops, i) || chunk == 0)
      continue;
    Value size = arith::ConstantIndexOp::create(b, loc, chunk);
    Value first = arith::MulIOp::create(b, loc, indices[next], size);
    Value left = arith::SubIOp::create(b, loc, sizes.cut[next], first);
    Value taken = arith::MinSIOp::create(b, loc, size, left);
    count = arith::MulIOp::create(b, loc, count, taken);
    ++next;
  }
  Value integer = arith::IndexCastOp::create(b, loc, b.getI64Type(), count);
  return arith::SIToFPOp::create(b, loc, type, integer);
}

void StageLowering::lower(const StepPlan &plan) {
  const Step &step = op_.steps[plan.step];
  const Part part = plan.part;
  switch (step.reduce) {
  case Reduce::None:
    return lowerMap(step);
  case Reduce::Moments:
    return part == Part::Merge ? mergeMoments(step) : lowerMoments(step, part == Part::Partial);
  case Reduce::Sum:
  case Reduce::Maximum:
    return part == Part::Merge ? mergeSum(step)
                               : lowerSum(step, part == Part::Partial, isCarried(op_, plan_, plan));
  }
}

llvm::SmallVector<Tensor> StageLowering::bindAll(ArrayRef<Expr> leaves) {
  llvm::SmallVector<Tensor> tensors;
  for (Expr leaf : leaves)
    tensors.push_back(bind(leaf));
  return tensors;
}

llvm::SmallVector<Tensor> StageLowering::bindPartials(const Step &step,
                                                      ArrayRef<uint32_t> results) {
  std::vector<AffineExpr> index;
  SizeExpr bytes(static_cast<int64_t>(results.size() * byteSize(op_.compute)));
  for (size_t i = 0; i < s_.loops().size(); ++i) {
    bytes = bytes * s_.loops()[i].size;
    if (!s_.loops()[i].kept)
      index.push_back(s_.loop(static_cast<int>(i)));
  }
  partialBytes_ = partialBytes_ + bytes;
  const auto space = spaceOf(step);
  index.insert(index.end(), space.begin(), space.end());
  llvm::SmallVector<Tensor> tensors;
  for (uint32_t result : results)
    tensors.push_back(s_.workspace(workspace_.partials.at(result), index));
  return tensors;
}

/// Lowers a sum or a maximum. A product is added in one rounding.
void StageLowering::lowerSum(const Step &step, bool partial, bool carried) {
  std::vector<Expr> roots; // of a product, its factors
  const bool isSum = step.reduce == Reduce::Sum;
  for (Expr value : step.values()) {
    const Node &node = op_.exprs[value];
    if (isSum && node.op == ExprOp::Mul)
      roots.insert(roots.end(), {node.in[0], node.in[1]});
    else
      roots.push_back(value);
  }
  const std::vector<Expr> leaves = leavesOf(roots);
  const llvm::SmallVector<Tensor> inputs = bindAll(leaves);
  const auto space = spaceOf(step, partial);
  const auto count = static_cast<unsigned>(step.results.size());
  prepare(roots);
  Value axisSize = reducesPadding(step) ? s_.size(op_.blocked->size) : Value();
  const auto sums = s_.sum(
      inputs, space, count, type_,
      [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
        const NodeEmitter e{b, loc, type_};
        Values values = emit(b, loc, roots, leaves, v);
        for (Value &value : values)
          value = pad(b, loc, loop, axisSize, value, b.getFloatAttr(type_, neutral(step.reduce)));
        Values totals;
        const Value *next = values.begin();
        for (unsigned i = 0; i < count; ++i) {
          Value total = v[leaves.size() + i];
          if (isSum && op_.exprs[step.results[i].value].op == ExprOp::Mul) {
            totals.push_back(e.fma(next[0], next[1], total));
            next += 2;
          } else {
            totals.push_back(isSum ? e.add(*next++, total) : e.maximum(*next++, total));
          }
        }
        return totals;
      },
      carried, neutral(step.reduce));
  for (unsigned i = 0; i < count; ++i) {
    if (!partial) {
      setLeaf(step, i, sums[i]);
      continue;
    }
    s_.writeWorkspace(sums[i], workspace_.allocate(workspace_.partials[step.firstResult + i],
                                                   s_.shapeOf(space), type_));
  }
}

void StageLowering::mergeSum(const Step &step) {
  const auto space = spaceOf(step);
  std::vector<uint32_t> results(step.results.size());
  std::iota(results.begin(), results.end(), step.firstResult);
  const llvm::SmallVector<Tensor> partials = bindPartials(step, results);
  const Type wide = s_.typeOf(DType::F64);
  const auto count = static_cast<unsigned>(results.size());
  const auto sums = s_.sum(
      partials, space, count, wide,
      [&](OpBuilder &b, Location loc, ValueRange v, Index) {
        const NodeEmitter e{b, loc, wide};
        Values totals;
        for (unsigned i = 0; i < count; ++i)
          totals.push_back(step.reduce == Reduce::Sum ? e.add(v[i], v[count + i])
                                                      : e.maximum(v[i], v[count + i]));
        return totals;
      },
      /*carried=*/false, neutral(step.reduce));
  const auto rounded =
      s_.map(sums, space, llvm::SmallVector<Type>(count, type_), wide,
             [&](OpBuilder &, Location, ValueRange v, Index) { return Values(v); });
  for (unsigned i = 0; i < count; ++i)
    setLeaf(step, i, rounded[i]);
}

void StageLowering::lowerMap(const Step &step) {
  const std::vector<Expr> roots = step.values();
  llvm::SmallVector<Type> types;
  for (const Result &result : step.results)
    types.push_back(result.operand < 0 ? type_ : s_.typeOf(op_.operands[result.operand].dtype));
  const std::vector<Expr> leaves = leavesOf(roots);
  const llvm::SmallVector<Tensor> inputs = bindAll(leaves);
  prepare(roots);
  const bool isWhole = op_.isWhole(step);
  // Padding is written as zeros.
  Value axisSize = isWhole && isPadded() ? s_.size(op_.blocked->size) : Value();
  const auto outputs = s_.map(inputs, isWhole ? s_.allLoops() : spaceOf(step), types, type_,
                              [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
                                Values values = emit(b, loc, roots, leaves, v);
                                for (Value &value : values)
                                  value = zeroPadding(b, loc, loop, axisSize, value);
                                return values;
                              });
  for (auto [result, output] : llvm::zip(step.results, outputs)) {
    if (result.operand < 0)
      continue;
    const Operand &operand = op_.operands[result.operand];
    s_.writeOperand(output, static_cast<uint32_t>(result.operand));
    countBytes(operand);
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    const uint32_t number = step.firstResult + static_cast<uint32_t>(i);
    setLeaf(step, i, outputs[i]);
    if (!isReadLater(number) || isWhole)
      continue;
    const Operator::Dense dense = op_.dense(step.results[i].loops);
    countBytes(dense.elements, byteSize(op_.compute));
    s_.writeWorkspace(outputs[i], workspace_.allocate(workspace_.results[number], dense, types[i]));
  }
}

/// The sum of a value, then that of what remains of it beside the mean, and of its squares, over
/// what a task has. The mean is divided by, not multiplied with its inverse: a sum of n equal
/// numbers gives that number back. With weights all of these are weighed, n is their sum, and the
/// mean of what weighs nothing is 0.
void StageLowering::lowerMoments(const Step &step, bool partial) {
  const bool isWeighted = step.results.size() > 3;
  std::vector<Expr> roots{step.results[0].value};
  if (isWeighted)
    roots.push_back(step.results[3].value);
  const std::vector<Expr> leaves = leavesOf(roots);
  llvm::SmallVector<Tensor> inputs = bindAll(leaves);
  const auto space = spaceOf(step, partial);
  const ChunkSizes sizes = partial ? chunkSizes(step) : ChunkSizes();
  Value whole = partial || isWeighted ? Value() : s_.number(op_.terms(step), type_);
  auto count = [&](OpBuilder &b, Location loc, Index loop) -> Value {
    return partial ? chunkCount(b, loc, step, sizes, loop, type_) : whole;
  };
  prepare(roots);
  Value axisSize = reducesPadding(step) ? s_.size(op_.blocked->size) : Value();
  const size_t values = leaves.size();
  const auto first = s_.sum(
      inputs, space, roots.size(), type_,
      [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
        const NodeEmitter e{b, loc, type_};
        const Values value = emit(b, loc, roots, leaves, v);
        if (!isWeighted)
          return Values{e.add(zeroPadding(b, loc, loop, axisSize, value[0]), v[values])};
        Value weight = zeroPadding(b, loc, loop, axisSize, value[1]);
        return Values{e.fma(weight, zeroPadding(b, loc, loop, axisSize, value[0]), v[values]),
                      e.add(weight, v[values + 1])};
      });
  const Tensor mean =
      s_.map(first, space, type_, type_, [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
        const NodeEmitter e{b, loc, type_};
        return Values{isWeighted ? e.divOrZero(v[0], v[1]) : e.div(v[0], count(b, loc, loop))};
      })[0];
  inputs.push_back(mean);
  const auto second =
      s_.sum(inputs, space, 2, type_, [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
        const NodeEmitter e{b, loc, type_};
        const Values value = emit(b, loc, roots, leaves, v);
        Value residual = zeroPadding(b, loc, loop, axisSize, e.sub(value[0], v[values]));
        Value weighed = isWeighted ? e.mul(residual, value[1]) : residual;
        return Values{e.fma(residual, weighed, v[values + 1]), e.add(weighed, v[values + 2])};
      });
  llvm::SmallVector<Tensor> results{mean, second[1], second[0]};
  if (isWeighted)
    results.push_back(first[1]);
  for (uint32_t i = 0; i < results.size(); ++i) {
    if (!partial)
      setLeaf(step, i, results[i]);
    else
      s_.writeWorkspace(results[i], workspace_.allocate(workspace_.partials[step.firstResult + i],
                                                        s_.shapeOf(space), type_));
  }
}

/// Partial moments to whole ones. A chunk of n_i elements has a mean m_i as rounded, the sum r_i of
/// what remains beside it and that of its squares, q_i. Near the mean is m = sum(n_i m_i)/n. With
/// d = m_i - m, what remains of a chunk's elements beside m is w = n_i d + r_i in all, and its
/// squares are q_i + d (w + r_i): as within a chunk, the sum of the first corrects m. Both are at
/// last taken about m as rounded to the type of what follows.
void StageLowering::mergeMoments(const Step &step) {
  const auto space = spaceOf(step);
  const bool isWeighted = step.results.size() > 3;
  const ChunkSizes sizes = isWeighted ? ChunkSizes() : chunkSizes(step);
  std::vector<uint32_t> numbers(step.results.size());
  std::iota(numbers.begin(), numbers.end(), step.firstResult);
  llvm::SmallVector<Tensor> inputs = bindPartials(step, numbers);
  const auto partials = static_cast<unsigned>(inputs.size());

  // In f64: there may be hundreds of thousands of partials, and they are few beside the data.
  const Type wide = s_.typeOf(DType::F64);
  auto count = [&](OpBuilder &b, Location loc, Index loop, ValueRange v) {
    return isWeighted ? v[3] : chunkCount(b, loc, step, sizes, loop, wide);
  };
  llvm::SmallVector<Tensor> means{inputs[0]};
  if (isWeighted)
    means.append({inputs[1], inputs[2], inputs[3]});
  const auto first = s_.sum(means, space, isWeighted ? 2 : 1, wide,
                            [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
                              const NodeEmitter e{b, loc, wide};
                              const size_t own = means.size();
                              Values sums{e.fma(count(b, loc, loop, v), v[0], v[own])};
                              if (isWeighted)
                                sums.push_back(e.add(v[3], v[own + 1]));
                              return sums;
                            });
  Value whole = isWeighted ? Value() : s_.number(op_.terms(step), wide);
  const Tensor near =
      s_.map(first, space, wide, wide, [&](OpBuilder &b, Location loc, ValueRange v, Index) {
        const NodeEmitter e{b, loc, wide};
        return Values{isWeighted ? e.divOrZero(v[0], v[1]) : e.div(v[0], whole)};
      })[0];
  inputs.push_back(near);
  const auto second =
      s_.sum(inputs, space, 2, wide, [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
        const NodeEmitter e{b, loc, wide};
        Value rest = e.zeroIfNan(v[1]);
        Value difference = e.sub(v[0], v[partials]);
        Value together = e.fma(count(b, loc, loop, v), difference, rest);
        Value squares = e.fma(difference, e.add(together, rest), v[2]);
        return Values{e.add(squares, v[partials + 1]), e.add(together, v[partials + 2])};
      });
  llvm::SmallVector<Tensor> merged{near, second[0], second[1]};
  if (isWeighted)
    merged.push_back(first[1]);
  const auto rounded =
      s_.map(merged, space, llvm::SmallVector<Type>(merged.size(), type_), wide,
             [&](OpBuilder &b, Location loc, ValueRange v, Index) {
               const NodeEmitter e{b, loc, wide};
               const bool narrows = type_ != wide;
               Value mean = narrows ? Value(arith::TruncFOp::create(b, loc, type_, v[0])) : v[0];
               Value widened = narrows ? Value(arith::ExtFOp::create(b, loc, wide, mean)) : mean;
               Value rest = e.sub(v[0], widened);
               Value residual = e.fma(rest, isWeighted ? v[3] : whole, v[2]);
               Value m2 = e.fma(rest, e.add(residual, v[2]), v[1]);
               Values results{mean, residual, m2};
               if (isWeighted)
                 results.push_back(v[3]);
               return results;
             });
  for (uint32_t i = 0; i < rounded.size(); ++i)
    setLeaf(step, i, rounded[i]);
}

} // namespace

void registerLoweringDialects(DialectRegistry &registry) {
  registry.insert<affine::AffineDialect, arith::ArithDialect, func::FuncDialect,
                  linalg::LinalgDialect, math::MathDialect, tensor::TensorDialect>();
}

LoweredKernel lowerToLinalg(MLIRContext &context, const Operator &op, const Schedule &schedule,
                            llvm::StringRef symbol) {
  LoweredKernel kernel;
  kernel.module = ModuleOp::create(UnknownLoc::get(&context));
  Workspace workspace;
  for (size_t i = 0; i < schedule.stages.size(); ++i)
    kernel.stages.push_back(
        StageLowering(*kernel.module, op, schedule, i, symbol, workspace).run());
  kernel.workspaceBytes = workspace.bytes;
  return kernel;
}

} // namespace normforge
