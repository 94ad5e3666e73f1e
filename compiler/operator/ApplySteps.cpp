// The steps of `prologue` and `fuse` as expressions, and gradients through them.
#include "compiler/expr/Functions.h"
#include "compiler/operator/OperatorBuilder.h"

#include <map>

namespace normforge {

/// A formula of the spec; `operands` are x and those that it names.
Term OperatorBuilder::build(const Formula &formula, std::span<const Term> operands,
                            std::span<const Term> scalars) {
  const Term &x = operands[0];
  switch (formula.kind) {
  case Formula::Kind::Number:
    return x.constant(formula.number);
  case Formula::Kind::Operand:
    return operands[formula.index];
  case Formula::Kind::Scalar:
    return scalars[formula.index];
  case Formula::Kind::Call:
    break;
  }
  std::vector<Term> in;
  for (const Formula &argument : formula.arguments)
    in.push_back(build(argument, operands, scalars));
  const std::string &call = formula.call;
  struct Row {
    const char *call;
    Term (*make)(std::span<const Term> in);
  };
  using In = std::span<const Term>;
  // NaN stays where either of two is one.
  static constexpr Row kRows[] = {
      {"+", [](In in) { return in[0] + in[1]; }},
      {"-", [](In in) { return in[0] - in[1]; }},
      {"*", [](In in) { return in[0] * in[1]; }},
      {"/", [](In in) { return in[0] / in[1]; }},
      {"neg", [](In in) { return -in[0]; }},
      {"<", [](In in) { return less(in[0], in[1]); }},
      {"<=", [](In in) { return lessEqual(in[0], in[1]); }},
      {">", [](In in) { return less(in[1], in[0]); }},
      {">=", [](In in) { return lessEqual(in[1], in[0]); }},
      {"where", [](In in) { return select(in[0], in[1], in[2]); }},
      {"abs", [](In in) { return abs(in[0]); }},
      {"min",
       [](In in) { return select(isNan(in[0]), in[0], select(less(in[0], in[1]), in[0], in[1])); }},
      {"max",
       [](In in) { return select(isNan(in[0]), in[0], select(less(in[1], in[0]), in[0], in[1])); }},
      {"sqrt", [](In in) { return sqrt(in[0]); }},
      {"exp", [](In in) { return exp(in[0]); }},
      {"log", [](In in) { return log(in[0]); }},
      {"erf", [](In in) { return erf(in[0]); }},
      {"floor", [](In in) { return apply(ExprOp::Floor, in[0]); }},
      {"round", [](In in) { return apply(ExprOp::RoundEven, in[0]); }},
  };
  for (const Row &row : kRows)
    if (call == row.call)
      return row.make(in);
  return (*findFunction(call))(in[0], {});
}

Term OperatorBuilder::applyStep(const FuseStep &step, Term value, std::span<const Term> operands,
                                std::optional<Term> bit) {
  if (step.isAdd())
    return value + operands[0];
  if (step.isMul())
    return value * operands[0];
  if (bit)
    return (*findFunction(step.name))(value, step.parameters, *bit);
  if (!step.formula)
    return (*findFunction(step.name))(value, step.parameters);
  std::vector<Term> all{value}, scalars;
  all.insert(all.end(), operands.begin(), operands.end());
  for (const std::string &name : step.scalars)
    scalars.push_back({value.in, value.in->scalar(scalarIndex(name))});
  return build(*step.formula, all, scalars);
}

Term OperatorBuilder::applySteps(std::span<const FuseStep> steps, Term value) {
  for (const FuseStep &step : steps) {
    std::vector<Term> operands;
    for (const StepOperand &taken : step.operands)
      operands.push_back(operand(taken.name));
    value = applyStep(step, value, operands);
  }
  return value;
}

Term OperatorBuilder::prologue() {
  Term value = operand("x");
  for (const FuseStep &step : spec_.prologue) {
    value = applySteps(std::span(&step, 1), value);
    if (!step.store.empty())
      value = addStep(step.store.c_str(), Reduce::None, allLoops(), allLoops(),
                      {{step.store, value, step.store}})[0];
  }
  return value;
}

std::optional<KeptBits> OperatorBuilder::keptBits() {
  if (!spec_.hasPhase(Phase::Training) || !spec_.hasBackward() ||
      spec_.backwardStatistics != BackwardStatistics::Batch)
    return std::nullopt;
  auto wholeOf = [&](const Needs &needs) {
    size_t count = 0;
    for (const FuseStep &step : spec_.fuse)
      for (const StepOperand &operand : step.operands)
        count += operand.whole && needs.operands.contains(operand.name);
    return count;
  };
  const size_t without = wholeOf(needsOf(spec_.fuse));
  for (size_t i = 0; without > 0 && i < spec_.fuse.size(); ++i) {
    const Function *function = findFunction(spec_.fuse[i].name);
    if (!function || !function->decides || wholeOf(needsOf(spec_.fuse, i)) == without)
      continue;
    makeLoops(/*keepsBlocks=*/true);
    // The forward phases of groups have loops of their own over channels.
    const RawLoop::Part last = loops_.back().part;
    if (last == RawLoop::Within || last == RawLoop::Ghosts || last == RawLoop::OfGhost)
      return std::nullopt;
    // So may backward, whose sums over channels need a reduced loop, of size 1 if there is no
    // other.
    OperatorBuilder backward(spec_, Phase::Backward);
    backward.makeLoops(/*keepsBlocks=*/true);
    if (backward.loops_.back().axes != loops_.back().axes)
      return std::nullopt;
    return KeptBits{i, loops_.back().axes};
  }
  return std::nullopt;
}

OperatorBuilder::Needs OperatorBuilder::needsOf(std::span<const FuseStep> steps,
                                                std::optional<size_t> bitOf) const {
  // With other leaves in place of what they stand for.
  OperatorBuilder scratch(spec_, op_.phase);
  Exprs exprs;
  std::map<Expr, std::string> names;
  const Term value{&exprs, exprs.operand(0)};
  std::vector<Expr> by{value.expr};
  Term y = value;
  for (size_t i = 0; i < steps.size(); ++i) {
    const FuseStep &step = steps[i];
    std::vector<Term> operands;
    for (const StepOperand &operand : step.operands) {
      operands.push_back({&exprs, exprs.operand(static_cast<uint32_t>(by.size()))});
      by.push_back(operands.back().expr);
      names[by.back()] = operand.name;
    }
    y = scratch.applyStep(step, y, operands,
                          i == bitOf ? std::optional(Term{&exprs, exprs.result(0)}) : std::nullopt);
  }
  Needs needs{.bitOf = bitOf};
  const Expr seed = exprs.operand(static_cast<uint32_t>(by.size()));
  for (const std::optional<Expr> &gradient : exprs.gradients(y.expr, seed, by))
    for (Expr expr : gradient ? exprs.nodesOf(std::span(&*gradient, 1)) : std::vector<Expr>()) {
      needs.value |= expr == value.expr;
      if (const auto found = names.find(expr); found != names.end())
        needs.operands.insert(found->second);
    }
  return needs;
}

OperatorBuilder::Gradients OperatorBuilder::gradientsOf(std::span<const FuseStep> steps,
                                                        std::optional<Term> value, Term seed,
                                                        const Needs &needs) {
  // A number of its own stands for each value that is not needed.
  double standIn = 0.5;
  auto leaf = [&] { return constant(standIn += 0.0625); };
  const Term from = value ? *value : leaf();
  std::vector<const StepOperand *> taken;
  std::vector<Expr> by{from.expr};
  Term y = from;
  for (size_t i = 0; i < steps.size(); ++i) {
    const FuseStep &step = steps[i];
    std::vector<Term> operands;
    for (const StepOperand &one : step.operands) {
      operands.push_back(needs.operands.contains(one.name) ? operand(one.name) : leaf());
      taken.push_back(&one);
      by.push_back(operands.back().expr);
    }
    y = applyStep(step, y, operands,
                  i == needs.bitOf ? std::optional(operand(kBitsName)) : std::nullopt);
  }
  const auto found = op_.exprs.gradients(y.expr, seed.expr, by);
  auto term = [&](const std::optional<Expr> &gradient) {
    return gradient ? Term{&op_.exprs, *gradient} : constant(0);
  };
  Gradients gradients{term(found[0])};
  for (size_t i = 0; i < taken.size(); ++i)
    gradients.operands.emplace_back(taken[i], term(found[i + 1]));
  return gradients;
}

} // namespace normforge
