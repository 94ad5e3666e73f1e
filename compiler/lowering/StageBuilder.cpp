#include "compiler/lowering/StageBuilder.h"

#include "compiler/lowering/Attributes.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

using namespace mlir;

namespace normforge {

AffineExpr toAffine(const SizeExpr &size, MLIRContext *context) {
  llvm::SmallVector<AffineExpr> stack;
  for (const SizeExpr::Node &node : size.nodes()) {
    auto binary = [&](auto combine) {
      AffineExpr right = stack.pop_back_val();
      stack.back() = combine(stack.back(), right);
    };
    switch (node.op) {
    case SizeExpr::Op::Constant:
      stack.push_back(getAffineConstantExpr(node.value, context));
      break;
    case SizeExpr::Op::Size:
      stack.push_back(getAffineSymbolExpr(static_cast<unsigned>(node.value), context));
      break;
    case SizeExpr::Op::Add:
      binary([](AffineExpr a, AffineExpr b) { return a + b; });
      break;
    case SizeExpr::Op::Multiply:
      binary([](AffineExpr a, AffineExpr b) { return a * b; });
      break;
    case SizeExpr::Op::CeilDivide:
      binary([](AffineExpr a, AffineExpr b) { return a.ceilDiv(b); });
      break;
    }
  }
  return stack.back();
}

SizeExpr sizeOf(AffineExpr expr) {
  if (auto constant = dyn_cast<AffineConstantExpr>(expr))
    return constant.getValue();
  if (auto symbol = dyn_cast<AffineSymbolExpr>(expr))
    return SizeExpr::size(symbol.getPosition());
  auto binary = cast<AffineBinaryOpExpr>(expr);
  const SizeExpr left = sizeOf(binary.getLHS()), right = sizeOf(binary.getRHS());
  switch (binary.getKind()) {
  case AffineExprKind::Add:
    return left + right;
  case AffineExprKind::Mul:
    return left * right;
  case AffineExprKind::CeilDiv:
    return ceilDivide(left, right);
  default:
    llvm_unreachable("an expression that sizes do not make");
  }
}

StageBuilder::StageBuilder(ModuleOp module, const Operator &op, const Schedule &schedule,
                           size_t stage, llvm::StringRef symbol)
    : op_(op), stage_(schedule.stages[stage]), symbol_(symbol.str() + "_" + stage_.name),
      loops_(stageLoops(op, schedule, stage)), context_(module.getContext()), builder_(context_),
      loc_(builder_.getUnknownLoc()) {
  builder_.setInsertionPointToEnd(module.getBody());
  function_ = func::FuncOp::create(builder_, loc_, symbol_, builder_.getFunctionType({}, {}));
  function_.addEntryBlock();
  builder_.setInsertionPointToStart(&function_.getBody().front());
  for (size_t i = 0; i < op.sizes.size(); ++i)
    sizeArguments_.push_back(
        addArgument(builder_.getIndexType(), {{attr::kSize, builder_.getI64IntegerAttr(i)}}));

  std::vector<SizeExpr> sizes;
  llvm::SmallVector<bool> kept;
  for (const StageLoop &loop : loops_) {
    sizes.push_back(loop.size);
    kept.push_back(loop.kept);
  }
  function_->setAttr(attr::kLoops, AffineMapAttr::get(sizesMap(sizes)));
  function_->setAttr(attr::kKept, builder_.getDenseBoolArrayAttr(kept));
  function_->setAttr(attr::kChunks, builder_.getDenseI64ArrayAttr(stage_.chunks));
  function_->setAttr(attr::kTileLoop, builder_.getI64IntegerAttr(stage_.tiled));
  function_->setAttr(attr::kTile, builder_.getI64IntegerAttr(stage_.tile));
  function_->setAttr(attr::kUnroll, builder_.getI64IntegerAttr(stage_.unroll));
  function_->setAttr(attr::kVector, builder_.getI64IntegerAttr(stage_.vector));
  function_->setAttr(attr::kRows, builder_.getI64IntegerAttr(static_cast<int64_t>(stage_.rows)));
  function_->setAttr(attr::kPrefetch, builder_.getI64IntegerAttr(stage_.prefetch));
  function_->setAttr(attr::kMaskedTails, builder_.getBoolAttr(schedule.maskedTails));
  function_->setAttr(attr::kMaskedLoads, builder_.getBoolAttr(schedule.maskedLoads));
  if (schedule.scalable > 0)
    function_->setAttr(attr::kScalable, builder_.getI64IntegerAttr(schedule.scalable));
  if (stage_.threads > 0) {
    function_->setAttr(attr::kThreads, builder_.getI64IntegerAttr(stage_.threads));
    function_->setAttr(attr::kDown, builder_.getI64IntegerAttr(stage_.down));
    function_->setAttr(attr::kGroups, builder_.getI64IntegerAttr(stage_.groups));
    function_->setAttr(attr::kHeld, builder_.getI64IntegerAttr(stage_.held));
    function_->setAttr(attr::kResident, builder_.getI64IntegerAttr(stage_.resident));
  }
  const std::pair<const char *, bool> flags[] = {{attr::kAlternates, stage_.alternates},
                                                 {attr::kReversed, stage_.reversed},
                                                 {attr::kStreaming, stage_.streams},
                                                 {attr::kPairsHalves, schedule.pairsHalves}};
  for (auto [name, isSet] : flags)
    if (isSet)
      function_->setAttr(name, builder_.getUnitAttr());
}

Type StageBuilder::typeOf(DType dtype) const {
  Builder b(context_);
  const Type types[dtypeCount] = {b.getF32Type(), b.getF64Type(), b.getBF16Type(), b.getF16Type(),
                                  b.getI1Type()};
  return types[static_cast<unsigned>(dtype)];
}

Value StageBuilder::addArgument(Type type, Attributes attributes) {
  llvm::SmallVector<NamedAttribute> named;
  for (auto [name, value] : attributes)
    named.push_back(builder_.getNamedAttr(name, value));
  argumentAttributes_.push_back(builder_.getDictionaryAttr(named));
  return function_.getBody().front().addArgument(type, loc_);
}

void StageBuilder::addResult(Value value, Attributes attributes) {
  llvm::SmallVector<NamedAttribute> named;
  for (auto [name, attribute] : attributes)
    named.push_back(builder_.getNamedAttr(name, attribute));
  resultAttributes_.push_back(builder_.getDictionaryAttr(named));
  results_.push_back(value);
}

AffineMap StageBuilder::sizesMap(llvm::ArrayRef<SizeExpr> sizes) const {
  llvm::SmallVector<AffineExpr> exprs;
  for (const SizeExpr &size : sizes)
    exprs.push_back(toAffine(size, context_));
  return AffineMap::get(0, static_cast<unsigned>(op_.sizes.size()), exprs, context_);
}

RankedTensorType StageBuilder::tensorType(llvm::ArrayRef<SizeExpr> shape, Type element) const {
  llvm::SmallVector<int64_t> sizes;
  for (const SizeExpr &size : shape)
    sizes.push_back(size.constant().value_or(ShapedType::kDynamic));
  return RankedTensorType::get(sizes, element);
}

AffineExpr StageBuilder::loop(int i) const {
  return getAffineDimExpr(static_cast<unsigned>(i), context_);
}

std::vector<AffineExpr> StageBuilder::allLoops() const {
  std::vector<AffineExpr> exprs;
  for (size_t i = 0; i < loops_.size(); ++i)
    exprs.push_back(loop(static_cast<int>(i)));
  return exprs;
}

int StageBuilder::stageLoop(int loop) const {
  for (int i = 0; i < static_cast<int>(loops_.size()); ++i)
    if (loops_[i].loop == loop)
      return i;
  return -1;
}

std::vector<int> StageBuilder::ownLoops() const {
  std::vector<int> own;
  for (const StageLoop &loop : loops_)
    own.push_back(loop.loop);
  return own;
}

std::vector<AffineExpr> StageBuilder::space(llvm::ArrayRef<int> loops, bool chunks) const {
  const std::vector<int> of = op_.seenFrom(ownLoops(), loops.vec());
  std::vector<AffineExpr> exprs;
  for (size_t i = 0; chunks && i < loops_.size(); ++i)
    if (!llvm::is_contained(of, loops_[i].loop) && stage_.chunks[i] > 0)
      exprs.push_back(loop(static_cast<int>(i)).floorDiv(stage_.chunks[i]));
  for (int i : of) {
    if (op_.blocked && i == op_.blocked->inner)
      continue;
    exprs.push_back(loop(stageLoop(i)));
    if (op_.blocked && i == op_.blocked->outer)
      exprs.push_back(loop(stageLoop(op_.blocked->inner)));
  }
  return exprs;
}

std::vector<SizeExpr> StageBuilder::shapeOf(llvm::ArrayRef<AffineExpr> index) const {
  std::vector<SizeExpr> shape;
  for (AffineExpr expr : index) {
    if (auto dim = dyn_cast<AffineDimExpr>(expr)) {
      shape.push_back(loops_[dim.getPosition()].size);
      continue;
    }
    auto division = cast<AffineBinaryOpExpr>(expr);
    shape.push_back(ceilDivide(loops_[cast<AffineDimExpr>(division.getLHS()).getPosition()].size,
                               cast<AffineConstantExpr>(division.getRHS()).getValue()));
  }
  return shape;
}

std::vector<AffineExpr> StageBuilder::indexOf(const Operand &operand) const {
  std::vector<AffineExpr> index;
  for (int i : op_.seenFrom(ownLoops(), operand.loops))
    index.push_back(loop(stageLoop(i)));
  return index;
}

llvm::SmallVector<std::pair<const char *, Attribute>>
StageBuilder::accessOf(const Operand &operand, std::pair<const char *, Attribute> place,
                       llvm::ArrayRef<AffineExpr> axes) const {
  Builder b(context_);
  std::vector<SizeExpr> strides;
  int64_t outer = -1, inner = -1; // axes of the blocks and of their lanes
  for (AffineExpr axis : axes) {
    const int loop = loops_[cast<AffineDimExpr>(axis).getPosition()].loop;
    if (op_.blocked && loop == op_.blocked->outer)
      outer = static_cast<int64_t>(strides.size());
    if (op_.blocked && loop == op_.blocked->inner)
      inner = static_cast<int64_t>(strides.size());
    strides.push_back(operand.strides[loop]);
  }
  llvm::SmallVector<std::pair<const char *, Attribute>> access{
      place,
      {attr::kShape, AffineMapAttr::get(sizesMap(shapeOf(axes)))},
      {attr::kStrides, AffineMapAttr::get(sizesMap(strides))}};
  const auto &blocked = op_.blocked;
  if (outer < 0 || !blocked->padded || operand.padded)
    return access;
  access.push_back({attr::kPadding, b.getDenseI64ArrayAttr({outer, inner, blocked->block})});
  access.push_back({attr::kLimit, AffineMapAttr::get(sizesMap({blocked->size}))});
  return access;
}

llvm::SmallVector<std::pair<const char *, Attribute>>
StageBuilder::accessOf(const WorkspaceArray &array, llvm::ArrayRef<AffineExpr> axes) const {
  const std::vector<SizeExpr> shape = shapeOf(axes);
  std::vector<SizeExpr> strides(shape.size(), SizeExpr(1));
  for (size_t i = shape.size(); array.strides.empty() && i-- > 1;)
    strides[i - 1] = shape[i] * strides[i];
  for (size_t i = 0; !array.strides.empty() && i < shape.size(); ++i)
    strides[i] = array.strides[loops_[cast<AffineDimExpr>(axes[i]).getPosition()].loop];
  return {{attr::kWorkspace, AffineMapAttr::get(sizesMap({array.offset}))},
          {attr::kShape, AffineMapAttr::get(sizesMap(shape))},
          {attr::kStrides, AffineMapAttr::get(sizesMap(strides))}};
}

std::pair<const char *, Attribute> StageBuilder::argument(uint32_t index) const {
  return {attr::kArgument, Builder(context_).getI64IntegerAttr(index)};
}

Tensor StageBuilder::arrayAt(const Operand &array, std::pair<const char *, Attribute> place) {
  const std::vector<AffineExpr> index = indexOf(array);
  return {
      addArgument(tensorType(shapeOf(index), typeOf(array.dtype)), accessOf(array, place, index)),
      index};
}

Tensor StageBuilder::operand(uint32_t index) {
  return arrayAt(op_.operands[index], argument(index));
}

Tensor StageBuilder::known(uint32_t index) {
  const auto &[array, values] = op_.known[index];
  const auto type = RankedTensorType::get({values.count()}, typeOf(array.dtype));
  const llvm::ArrayRef bytes(reinterpret_cast<const char *>(values.bytes.data()),
                             values.bytes.size());
  return arrayAt(array, {attr::kKnown, DenseElementsAttr::getFromRawBuffer(type, bytes)});
}

Tensor StageBuilder::workspace(const WorkspaceArray &array, std::vector<AffineExpr> index) {
  Value value = addArgument(tensorType(shapeOf(index), array.element), accessOf(array, index));
  return {value, std::move(index)};
}

void StageBuilder::writeWorkspace(const Tensor &value, const WorkspaceArray &array) {
  addResult(value.value, accessOf(array, value.index));
}

void StageBuilder::writeOperand(const Tensor &value, uint32_t number) {
  addResult(value.value, accessOf(op_.operands[number], argument(number), value.index));
}

Value StageBuilder::scalar(uint32_t index, Type type) {
  return addArgument(type, {{attr::kScalar, builder_.getI64IntegerAttr(index)}});
}

Value StageBuilder::constant(double value, Type type) {
  return arith::ConstantOp::create(builder_, loc_, builder_.getFloatAttr(type, value));
}

Value StageBuilder::size(const SizeExpr &size) {
  llvm::SmallVector<Value> stack;
  for (const SizeExpr::Node &node : size.nodes()) {
    if (node.op == SizeExpr::Op::Constant) {
      stack.push_back(arith::ConstantIndexOp::create(builder_, loc_, node.value));
      continue;
    }
    if (node.op == SizeExpr::Op::Size) {
      stack.push_back(sizeArguments_[static_cast<size_t>(node.value)]);
      continue;
    }
    Value right = stack.pop_back_val(), left = stack.pop_back_val();
    if (node.op == SizeExpr::Op::Add)
      stack.push_back(arith::AddIOp::create(builder_, loc_, left, right));
    else if (node.op == SizeExpr::Op::Multiply)
      stack.push_back(arith::MulIOp::create(builder_, loc_, left, right));
    else {
      Value one = arith::ConstantIndexOp::create(builder_, loc_, 1);
      Value most = arith::SubIOp::create(builder_, loc_, right, one);
      Value sum = arith::AddIOp::create(builder_, loc_, left, most);
      stack.push_back(arith::DivUIOp::create(builder_, loc_, sum, right));
    }
  }
  return stack.back();
}

Value StageBuilder::number(const SizeExpr &count, Type type) {
  if (auto value = count.constant())
    return constant(static_cast<double>(*value), type);
  Value integer = arith::IndexCastOp::create(builder_, loc_, builder_.getI64Type(), size(count));
  return arith::SIToFPOp::create(builder_, loc_, type, integer);
}

Value StageBuilder::empty(llvm::ArrayRef<AffineExpr> index, Type type) {
  llvm::SmallVector<OpFoldResult> sizes;
  for (const SizeExpr &s : shapeOf(index))
    sizes.push_back(s.constant() ? OpFoldResult(builder_.getIndexAttr(*s.constant()))
                                 : OpFoldResult(size(s)));
  return tensor::EmptyOp::create(builder_, loc_, sizes, type);
}

/// A number rounded to `type`, or widened to it; between half precision and f64 by f32, which is
/// all that machines have. A condition stays one.
static Value convert(OpBuilder &b, Location loc, Value value, Type type) {
  if (value.getType().isInteger(1))
    return value;
  const unsigned from = value.getType().getIntOrFloatBitWidth(), to = type.getIntOrFloatBitWidth();
  if (std::max(from, to) == 4 * std::min(from, to))
    value = convert(b, loc, value, b.getF32Type());
  if (value.getType() == type)
    return value;
  return from < to ? Value(arith::ExtFOp::create(b, loc, type, value))
                   : Value(arith::TruncFOp::create(b, loc, type, value));
}

llvm::SmallVector<Tensor>
StageBuilder::generic(llvm::ArrayRef<Tensor> inputs, llvm::ArrayRef<AffineExpr> domain,
                      llvm::ArrayRef<AffineExpr> resultIndex, llvm::ArrayRef<Type> types,
                      std::optional<double> reducesFrom, Type compute, const Body &body) {
  // Indices are given over the stage's loops; the step's own loops are the domain's expressions.
  const auto rank = static_cast<unsigned>(domain.size());
  auto mapOf = [&](llvm::ArrayRef<AffineExpr> index) {
    llvm::SmallVector<AffineExpr> exprs;
    for (AffineExpr expr : index) {
      const auto it = llvm::find(domain, expr);
      exprs.push_back(it == domain.end()
                          ? expr
                          : getAffineDimExpr(static_cast<unsigned>(it - domain.begin()), context_));
    }
    return AffineMap::get(rank, 0, exprs, context_);
  };
  llvm::SmallVector<Value> ins, outs;
  llvm::SmallVector<Type> tensorTypes;
  llvm::SmallVector<AffineMap> maps;
  for (const Tensor &input : inputs) {
    ins.push_back(input.value);
    maps.push_back(mapOf(input.index));
  }
  for (Type type : types) {
    Value init = empty(resultIndex, type);
    if (reducesFrom) {
      Value first =
          arith::ConstantOp::create(builder_, loc_, builder_.getFloatAttr(type, *reducesFrom));
      init =
          linalg::FillOp::create(builder_, loc_, ValueRange{first}, ValueRange{init}).getResult(0);
    }
    outs.push_back(init);
    tensorTypes.push_back(init.getType());
    maps.push_back(mapOf(resultIndex));
  }
  llvm::SmallVector<utils::IteratorType> iterators(rank, utils::IteratorType::parallel);
  if (reducesFrom)
    for (unsigned i = 0; i < rank; ++i)
      if (!llvm::is_contained(resultIndex, domain[i]))
        iterators[i] = utils::IteratorType::reduction;
  auto op = linalg::GenericOp::create(
      builder_, loc_, tensorTypes, ins, outs, maps, iterators,
      [&](OpBuilder &b, Location loc, ValueRange args) {
        auto loopIndex = [&](unsigned i) -> Value { return linalg::IndexOp::create(b, loc, i); };
        llvm::SmallVector<Value> values(reducesFrom ? args : args.take_front(ins.size()));
        for (Value &value : values)
          value = convert(b, loc, value, compute);
        llvm::SmallVector<Value> yielded = body(b, loc, values, loopIndex);
        for (auto [value, type] : llvm::zip(yielded, types))
          value = convert(b, loc, value, type);
        linalg::YieldOp::create(b, loc, yielded);
      });
  op->setAttr(attr::kDomain, AffineMapAttr::get(AffineMap::get(static_cast<unsigned>(loops_.size()),
                                                               0, domain, context_)));
  llvm::SmallVector<Tensor> results;
  for (Value result : op.getResults())
    results.push_back({result, std::vector<AffineExpr>(resultIndex)});
  return results;
}

llvm::SmallVector<Tensor> StageBuilder::map(llvm::ArrayRef<Tensor> inputs,
                                            llvm::ArrayRef<AffineExpr> space,
                                            llvm::ArrayRef<Type> types, Type compute,
                                            const Body &body) {
  return generic(inputs, space, space, types, std::nullopt, compute, body);
}

llvm::SmallVector<Tensor> StageBuilder::sum(llvm::ArrayRef<Tensor> inputs,
                                            llvm::ArrayRef<AffineExpr> space, unsigned results,
                                            Type compute, const Body &body, bool carried,
                                            double from) {
  auto sums = generic(inputs, allLoops(), space, llvm::SmallVector<Type>(results, compute), from,
                      compute, body);
  if (carried)
    sums.front().value.getDefiningOp()->setAttr(attr::kCarried, builder_.getUnitAttr());
  return sums;
}

StageInfo StageBuilder::finish(const SizeExpr &bytes) {
  func::ReturnOp::create(builder_, loc_, results_);
  Block &entry = function_.getBody().front();
  function_.setFunctionType(
      builder_.getFunctionType(entry.getArgumentTypes(), ValueRange(results_).getTypes()));
  function_.setAllArgAttrs(argumentAttributes_);
  function_.setAllResultAttrs(resultAttributes_);
  const SizeExpr tasks = taskCount(loops_, stage_);
  return {symbol_, tasks, ceilDivide(bytes, tasks)};
}

} // namespace normforge
