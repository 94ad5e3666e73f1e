#include "compiler/operator/Operator.h"

#include "llvm/ADT/STLExtras.h"

#include <numeric>

namespace normforge {

std::vector<Expr> Step::values() const {
  std::vector<Expr> values;
  for (const Result &result : results)
    values.push_back(result.value);
  return values;
}

SizeExpr Operand::bytes() const { return arrayBytes(shape, dtype); }

int Operator::operand(std::string_view name, bool written) const {
  for (size_t i = 0; i < operands.size(); ++i)
    if (operands[i].name == name && operands[i].written == written)
      return static_cast<int>(i);
  return -1;
}

const Operand *Operator::arrayOf(Expr leaf) const {
  const Node &node = exprs[leaf];
  return node.op == ExprOp::Operand ? &operands[node.index]
         : node.op == ExprOp::Known ? &known[node.index].array
                                    : nullptr;
}

std::vector<std::string> Operator::scalarNames() const {
  std::vector<std::string> names;
  for (const Scalar &scalar : scalars)
    names.push_back(scalar.name);
  return names;
}

std::vector<Argument> Operator::arguments() const {
  std::vector<Argument> arguments;
  for (const Operand &operand : operands)
    arguments.push_back({operand.name, operand.role, operand.written, operand.dtype, operand.shape,
                         operand.old, operand.mayAlias});
  return arguments;
}

const Step &Operator::stepOf(uint32_t result) const {
  const auto after =
      llvm::partition_point(steps, [&](const Step &step) { return step.firstResult <= result; });
  return *std::prev(after);
}

const Result &Operator::result(uint32_t number) const {
  const Step &step = stepOf(number);
  return step.results[number - step.firstResult];
}

std::vector<int> Operator::seenFrom(std::span<const int> from, std::vector<int> of) const {
  if (!grouped)
    return of;
  const bool ofData = llvm::all_of(from, [&](int loop) { return loop < rank(); });
  for (const GroupedStatistics::Axis &axis : grouped->axes) {
    const std::vector<int> &gone = ofData ? axis.own : axis.whole;
    if (!llvm::all_of(gone, [&](int loop) { return llvm::is_contained(of, loop); }))
      continue;
    llvm::erase_if(of, [&](int loop) { return llvm::is_contained(gone, loop); });
    llvm::append_range(of, ofData ? axis.whole : axis.own);
  }
  llvm::sort(of);
  return of;
}

SizeExpr Operator::terms(const Step &step) const {
  const std::vector<int> &kept = step.results[0].loops;
  if (isWhole(step) && !grouped)
    return groupSize;
  auto isReduced = [&](int loop) {
    return llvm::is_contained(step.loops, loop) && !llvm::is_contained(kept, loop);
  };
  SizeExpr product(1);
  for (int loop : step.loops) {
    if (!isReduced(loop) || (blocked && loop == blocked->inner))
      continue;
    product = product * (blocked && loop == blocked->outer ? blocked->size : loops[loop].size);
  }
  return product;
}

Operator::Dense Operator::dense(std::vector<int> of) const {
  of = seenFrom(std::vector<int>{0}, std::move(of)); // as the data has them
  std::vector<int> order;
  for (int loop : of) {
    if (blocked && loop == blocked->inner)
      continue;
    order.push_back(loop);
    if (blocked && loop == blocked->outer)
      order.push_back(blocked->inner);
  }
  Dense dense{std::vector<SizeExpr>(loops.size(), SizeExpr(0)), SizeExpr(1)};
  for (size_t i = order.size(); i-- > 0;) {
    dense.strides[order[i]] = dense.elements;
    dense.elements = loops[order[i]].size * dense.elements;
  }
  for (size_t i = 0; grouped && i < grouped->axes.size(); ++i) {
    const auto &[whole, own] = grouped->axes[i];
    if (!llvm::is_contained(of, whole.back()))
      continue;
    SizeExpr stride = dense.strides[whole.back()];
    for (size_t loop = own.size(); loop-- > 0; stride = loops[own[loop]].size * stride)
      dense.strides[own[loop]] = stride;
  }
  return dense;
}

size_t Operator::leastElementBytes() const {
  size_t least = byteSize(dtype);
  for (const Operand &operand : operands)
    if (!operand.isBits())
      least = std::min(least, byteSize(operand.dtype));
  return least;
}

bool Operator::takesBits(const Step &step) const {
  const std::vector<Expr> nodes = exprs.nodesOf(step.values());
  return llvm::any_of(nodes,
                      [&](Expr expr) {
                        const Operand *array = arrayOf(expr);
                        return array && array->isBits();
                      }) ||
         llvm::any_of(step.results, [&](const Result &result) {
           return result.operand >= 0 && operands[result.operand].isBits();
         });
}

bool Operator::takesBits() const {
  return llvm::any_of(operands, [](const Operand &operand) { return operand.isBits(); });
}

bool Operator::hasArrayOf(DType dtype) const {
  return llvm::any_of(operands, [&](const Operand &operand) { return operand.dtype == dtype; }) ||
         llvm::any_of(known, [&](const KnownArray &array) { return array.array.dtype == dtype; });
}

bool Operator::reduces() const {
  return llvm::any_of(steps, [](const Step &step) { return step.reduce != Reduce::None; });
}

std::vector<bool> Operator::kept(std::span<const uint32_t> of) const {
  const std::vector<int> *found = nullptr;
  auto consider = [&](const std::vector<int> &loops) {
    if (!found && !isWhole(loops))
      found = &loops;
  };
  for (uint32_t i : of)
    for (const Result &result : steps[i].results)
      consider(result.loops);
  for (ExprOp leaf : {ExprOp::Result, ExprOp::Known})
    for (uint32_t i : of)
      for (Expr expr : exprs.nodesOf(steps[i].values()))
        if (exprs[expr].op == leaf)
          consider(leaf == ExprOp::Result ? result(exprs[expr].index).loops
                                          : known[exprs[expr].index].array.loops);
  std::vector<bool> kept(loops.size());
  if (!found)
    return kept;
  const auto whole = llvm::find_if(of, [&](uint32_t i) { return isWhole(steps[i]); });
  const Step &seeing = steps[whole == of.end() ? of.front() : *whole];
  for (int loop : seenFrom(seeing.loops, *found))
    kept[loop] = true;
  return kept;
}

std::vector<bool> Operator::kept() const {
  std::vector<uint32_t> all(steps.size());
  std::iota(all.begin(), all.end(), 0);
  return kept(all);
}

SizeExpr Operator::statistics() const {
  const std::vector<bool> kept = this->kept();
  SizeExpr product(1);
  for (int i = 0; i < rank(); ++i)
    if (kept[i])
      product = product * loops[i].size;
  return product;
}

SizeExpr Operator::slabBytes() const {
  const std::vector<bool> kept = this->kept();
  SizeExpr product(static_cast<int64_t>(byteSize(dtype)));
  for (int i = 0; i < rank(); ++i)
    if (!kept[i])
      product = product * loops[i].size;
  return product;
}

SizeExpr Operator::minimumBytes() const {
  int64_t perElement = 0;
  SizeExpr bits(0);
  for (const Operand &operand : operands)
    if (isWhole(operand) && operand.isBits())
      bits = bits + operand.bytes();
    else if (isWhole(operand))
      perElement += static_cast<int64_t>(byteSize(operand.dtype));
  return elements * SizeExpr(perElement) + bits;
}

SizeExpr Operator::flops() const {
  int64_t perElement = 0; // what runs over fewer loops does not count
  for (const Step &step : steps) {
    if (!isWhole(step))
      continue;
    perElement += exprs.flops(step.values());
    if (step.reduce == Reduce::Moments) // an addition; a subtraction, an FMA and an addition
      perElement += 5;
    else if (step.reduce != Reduce::None)
      perElement += static_cast<int64_t>(step.results.size());
  }
  return elements * SizeExpr(perElement);
}

Exprs::Names Operator::names() const {
  Exprs::Names names{{}, {}, scalarNames(), sizes, {}};
  for (const KnownArray &of : known)
    names.known.push_back(of.array.name);
  for (const Operand &operand : operands)
    names.operands.push_back(operand.name + (operand.written ? "'" : ""));
  for (const Step &step : steps)
    for (const Result &result : step.results)
      names.results.push_back(result.name);
  return names;
}

} // namespace normforge
