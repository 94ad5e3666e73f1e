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

StageBuilder::StageBuilder(ModuleOp module, const Operator &op, std::string symbol,
                           std::vector<Loop> loops, const StageSchedule &stage,
                           const Schedule &schedule)
    : op_(op), schedule_(schedule), symbol_(std::move(symbol)), loops_(std::move(loops)),
      stage_(stage), context_(module.getContext()), builder_(context_),
      loc_(builder_.getUnknownLoc()) {
  const Type types[dtypeCount] = {builder_.getF32Type(), builder_.getF64Type(),
                                  builder_.getBF16Type(), builder_.getF16Type()};
  stored_ = types[static_cast<unsigned>(op.spec.dtype)];
  element_ = types[static_cast<unsigned>(computeDType(op.spec.dtype))];
  builder_.setInsertionPointToEnd(module.getBody());
  function_ = func::FuncOp::create(builder_, loc_, symbol_, builder_.getFunctionType({}, {}));
  function_.addEntryBlock();
  builder_.setInsertionPointToStart(&function_.getBody().front());
  for (size_t i = 0; i < op.sizes.size(); ++i)
    sizeArguments_.push_back(
        addArgument(builder_.getIndexType(), {{attr::kSize, builder_.getI64IntegerAttr(i)}}));

  std::vector<SizeExpr> sizes;
  llvm::SmallVector<bool> kept;
  for (const Loop &loop : loops_) {
    sizes.push_back(loop.size);
    kept.push_back(loop.kept);
  }
  function_->setAttr(attr::kLoops, AffineMapAttr::get(sizesMap(sizes)));
  function_->setAttr(attr::kKept, builder_.getDenseBoolArrayAttr(kept));
  function_->setAttr(attr::kChunks, builder_.getDenseI64ArrayAttr(stage.chunks));
  function_->setAttr(attr::kTileLoop, builder_.getI64IntegerAttr(tileLoop(loops_)));
  function_->setAttr(attr::kTile, builder_.getI64IntegerAttr(stage.tile));
  function_->setAttr(attr::kUnroll, builder_.getI64IntegerAttr(stage.unroll));
  function_->setAttr(attr::kVector, builder_.getI64IntegerAttr(stage.vector));
  function_->setAttr(attr::kMaskedTails, builder_.getBoolAttr(schedule.maskedTails));
  function_->setAttr(attr::kMaskedLoads, builder_.getBoolAttr(schedule.maskedLoads));
  if (schedule.scalable > 0)
    function_->setAttr(attr::kScalable, builder_.getI64IntegerAttr(schedule.scalable));
  if (stage.alternates)
    function_->setAttr(attr::kAlternates, builder_.getUnitAttr());
  if (stage.prefetches)
    function_->setAttr(attr::kPrefetches, builder_.getUnitAttr());
  if (stage.reversed)
    function_->setAttr(attr::kReversed, builder_.getUnitAttr());
}

Value StageBuilder::addArgument(Type type,
                                llvm::ArrayRef<std::pair<const char *, Attribute>> attributes) {
  llvm::SmallVector<NamedAttribute> named;
  for (auto [name, value] : attributes)
    named.push_back(builder_.getNamedAttr(name, value));
  argumentAttributes_.push_back(builder_.getDictionaryAttr(named));
  return function_.getBody().front().addArgument(type, loc_);
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
  return RankedTensorType::get(sizes, element ? element : element_);
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

std::vector<AffineExpr> StageBuilder::statisticSpace(bool chunks) const {
  std::vector<AffineExpr> exprs;
  for (size_t i = 0; chunks && i < loops_.size(); ++i)
    if (!loops_[i].kept && stage_.chunks[i] > 0)
      exprs.push_back(loop(static_cast<int>(i)).floorDiv(stage_.chunks[i]));
  // The lanes of a blocked axis follow its blocks, as parameters and statistics have them in
  // memory.
  const int inner = blockedLoop(/*inner=*/true), outer = blockedLoop(/*inner=*/false);
  for (int i = 0; i < static_cast<int>(loops_.size()); ++i) {
    if (!loops_[i].kept || i == inner)
      continue;
    exprs.push_back(loop(i));
    if (i == outer)
      exprs.push_back(loop(inner));
  }
  return exprs;
}

int StageBuilder::blockedLoop(bool inner) const {
  if (!op_.blocked)
    return -1;
  const Loop &wanted = op_.loops[inner ? op_.blocked->inner : op_.blocked->outer];
  for (int i = 0; i < static_cast<int>(loops_.size()); ++i)
    if (loops_[i].axes == wanted.axes && loops_[i].kept == wanted.kept)
      return i;
  return -1;
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

std::vector<SizeExpr> StageBuilder::memoryShape(llvm::function_ref<bool(const Loop &)> uses) const {
  std::vector<SizeExpr> shape;
  const int inner = blockedLoop(true), outer = blockedLoop(false);
  for (int i = 0; i < static_cast<int>(loops_.size()); ++i)
    if (uses(loops_[i]) && i != inner)
      shape.push_back(i == outer ? op_.blocked->size : loops_[i].size);
  return shape;
}

Operand StageBuilder::argument(llvm::StringRef name, llvm::function_ref<bool(const Loop &)> uses) {
  const bool data = name == "x" || name == "addend";
  std::vector<SizeExpr> shape;
  Operand operand;
  const auto &blocked = op_.blocked;
  int splitAxis = -1;
  if (data) {
    for (const Loop &loop : loops_)
      shape.push_back(loop.size);
    operand.index = allLoops();
  } else {
    shape = memoryShape(uses);
    const int inner = blockedLoop(true), outer = blockedLoop(false);
    for (int i = 0; i < static_cast<int>(loops_.size()); ++i) {
      if (!uses(loops_[i]) || i == inner)
        continue;
      operand.index.push_back(loop(i));
      if (i == outer) {
        splitAxis = static_cast<int>(operand.index.size()) - 1;
        operand.index.push_back(loop(inner));
      }
    }
  }
  const int index = op_.argument(name, false);
  operand.tensor = addArgument(tensorType(shape, data ? stored_ : element_),
                               {{attr::kArgument, builder_.getI64IntegerAttr(index)},
                                {attr::kShape, AffineMapAttr::get(sizesMap(shape))}});
  if (splitAxis < 0)
    return operand;

  // The blocked axis of a parameter: pad to whole blocks, then split in two.
  const SizeExpr blocks = ceilDivide(blocked->size, blocked->block);
  if (blocked->padded) {
    std::vector<SizeExpr> padded = shape;
    padded[splitAxis] = blocks * SizeExpr(blocked->block);
    llvm::SmallVector<OpFoldResult> low(shape.size(), builder_.getIndexAttr(0)), high = low;
    if (auto constant = blocked->size.constant())
      high[splitAxis] = builder_.getIndexAttr(*blocks.constant() * blocked->block - *constant);
    else
      high[splitAxis] =
          arith::SubIOp::create(builder_, loc_, size(padded[splitAxis]), size(blocked->size))
              .getResult();
    operand.tensor = tensor::PadOp::create(builder_, loc_, tensorType(padded), operand.tensor, low,
                                           high, constant(0));
    shape = padded;
  }
  llvm::SmallVector<ReassociationIndices> groups;
  std::vector<SizeExpr> split;
  llvm::SmallVector<OpFoldResult> splitSizes;
  for (size_t i = 0; i < shape.size(); ++i) {
    groups.push_back({static_cast<int64_t>(split.size())});
    if (static_cast<int>(i) == splitAxis) {
      split.push_back(blocks);
      groups.back().push_back(static_cast<int64_t>(split.size()));
      split.push_back(SizeExpr(blocked->block));
    } else {
      split.push_back(shape[i]);
    }
  }
  for (const SizeExpr &s : split)
    splitSizes.push_back(s.constant() ? OpFoldResult(builder_.getIndexAttr(*s.constant()))
                                      : OpFoldResult(size(s)));
  operand.tensor = tensor::ExpandShapeOp::create(builder_, loc_, tensorType(split), operand.tensor,
                                                 groups, splitSizes);
  return operand;
}

Operand StageBuilder::workspace(const WorkspaceArray &array, std::vector<AffineExpr> index) {
  Value tensor = addArgument(tensorType(array.shape),
                             {{attr::kWorkspace, AffineMapAttr::get(sizesMap({array.offset}))},
                              {attr::kShape, AffineMapAttr::get(sizesMap(array.shape))}});
  return {tensor, std::move(index)};
}

Value StageBuilder::scalar(llvm::StringRef name) {
  const auto it = llvm::find(op_.scalars, name.str());
  return addArgument(element_,
                     {{attr::kScalar, builder_.getI64IntegerAttr(it - op_.scalars.begin())}});
}

Value StageBuilder::constant(double value) {
  return arith::ConstantOp::create(builder_, loc_, builder_.getFloatAttr(element_, value));
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
  if (!type)
    type = element_;
  if (auto value = count.constant())
    return arith::ConstantOp::create(builder_, loc_,
                                     builder_.getFloatAttr(type, static_cast<double>(*value)));
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

llvm::SmallVector<Operand> StageBuilder::generic(llvm::ArrayRef<Operand> inputs,
                                                 llvm::ArrayRef<AffineExpr> domain,
                                                 llvm::ArrayRef<AffineExpr> resultIndex,
                                                 unsigned results, bool reduces, const Body &body,
                                                 Type type) {
  if (!type)
    type = element_;
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
  llvm::SmallVector<Type> types;
  llvm::SmallVector<AffineMap> maps;
  for (const Operand &input : inputs) {
    ins.push_back(input.tensor);
    maps.push_back(mapOf(input.index));
  }
  for (unsigned r = 0; r < results; ++r) {
    Value init = empty(resultIndex, type);
    if (reduces) {
      Value zero = arith::ConstantOp::create(builder_, loc_, builder_.getZeroAttr(type));
      init =
          linalg::FillOp::create(builder_, loc_, ValueRange{zero}, ValueRange{init}).getResult(0);
    }
    outs.push_back(init);
    types.push_back(init.getType());
    maps.push_back(mapOf(resultIndex));
  }
  llvm::SmallVector<utils::IteratorType> iterators(rank, utils::IteratorType::parallel);
  if (reduces)
    for (unsigned i = 0; i < rank; ++i)
      if (!llvm::is_contained(resultIndex, domain[i]))
        iterators[i] = utils::IteratorType::reduction;
  auto op = linalg::GenericOp::create(
      builder_, loc_, types, ins, outs, maps, iterators,
      [&](OpBuilder &b, Location loc, ValueRange args) {
        auto loopIndex = [&](unsigned i) -> Value { return linalg::IndexOp::create(b, loc, i); };
        llvm::SmallVector<Value> values(reduces ? args : args.take_front(ins.size()));
        for (Value &value : values) // half precision is for memory alone
          if (value.getType() != element_ && value.getType() == stored_)
            value = arith::ExtFOp::create(b, loc, element_, value);
        llvm::SmallVector<Value> yielded = body(b, loc, values, loopIndex);
        for (Value &value : yielded)
          if (type == stored_ && value.getType() != type)
            value = arith::TruncFOp::create(b, loc, type, value);
        linalg::YieldOp::create(b, loc, yielded);
      });
  op->setAttr(attr::kDomain, AffineMapAttr::get(AffineMap::get(static_cast<unsigned>(loops_.size()),
                                                               0, domain, context_)));
  llvm::SmallVector<Operand> operands;
  for (Value result : op.getResults())
    operands.push_back({result, std::vector<AffineExpr>(resultIndex)});
  return operands;
}

llvm::SmallVector<Operand> StageBuilder::map(llvm::ArrayRef<Operand> inputs,
                                             llvm::ArrayRef<AffineExpr> space, unsigned results,
                                             const Body &body, Type type) {
  return generic(inputs, space, space, results, false, body, type);
}

llvm::SmallVector<Operand> StageBuilder::sum(llvm::ArrayRef<Operand> inputs,
                                             llvm::ArrayRef<AffineExpr> space, unsigned results,
                                             const Body &body, Type type) {
  return generic(inputs, allLoops(), space, results, true, body, type);
}

void StageBuilder::addResult(Value value,
                             llvm::ArrayRef<std::pair<const char *, Attribute>> attributes) {
  llvm::SmallVector<NamedAttribute> named;
  for (auto [name, attribute] : attributes)
    named.push_back(builder_.getNamedAttr(name, attribute));
  resultAttributes_.push_back(builder_.getDictionaryAttr(named));
  results_.push_back(value);
}

void StageBuilder::writeWorkspace(const Operand &value, const WorkspaceArray &array) {
  addResult(value.tensor, {{attr::kWorkspace, AffineMapAttr::get(sizesMap({array.offset}))},
                           {attr::kShape, AffineMapAttr::get(sizesMap(array.shape))}});
}

void StageBuilder::writeArgument(const Operand &value, llvm::StringRef name) {
  const int index = op_.argument(name, true);
  Value tensor = value.tensor;
  std::vector<SizeExpr> shape = shapeOf(value.index);
  const auto &blocked = op_.blocked;
  if (name != "y" && blocked && !value.index.empty()) {
    // The two loops of the blocked axis become one again, and its padding is left behind.
    const int outerLoop = blockedLoop(false);
    const auto it = outerLoop < 0 ? value.index.end() : llvm::find(value.index, loop(outerLoop));
    if (it != value.index.end()) {
      const int outer = static_cast<int>(it - value.index.begin()), inner = outer + 1;
      llvm::SmallVector<ReassociationIndices> groups;
      std::vector<SizeExpr> merged;
      for (int i = 0; i < static_cast<int>(shape.size()); ++i) {
        if (i == inner) {
          groups.back().push_back(i);
          merged.back() = merged.back() * shape[i];
          continue;
        }
        groups.push_back({i});
        merged.push_back(shape[i]);
      }
      tensor = tensor::CollapseShapeOp::create(builder_, loc_, tensorType(merged), tensor, groups);
      shape = merged;
      if (blocked->padded) {
        shape[outer] = blocked->size;
        llvm::SmallVector<OpFoldResult> offsets(shape.size(), builder_.getIndexAttr(0)), sizes,
            strides(shape.size(), builder_.getIndexAttr(1));
        for (const SizeExpr &s : shape)
          sizes.push_back(s.constant() ? OpFoldResult(builder_.getIndexAttr(*s.constant()))
                                       : OpFoldResult(size(s)));
        tensor = tensor::ExtractSliceOp::create(builder_, loc_, tensorType(shape), tensor, offsets,
                                                sizes, strides);
      }
    }
  }
  if (name == "y" && schedule_.streamingStores)
    function_->setAttr(attr::kStreaming, builder_.getUnitAttr());
  addResult(tensor, {{attr::kArgument, builder_.getI64IntegerAttr(index)},
                     {attr::kShape, AffineMapAttr::get(sizesMap(shape))}});
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
