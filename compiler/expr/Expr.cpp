#include "compiler/expr/Expr.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <fmt/format.h>

namespace normforge {

namespace {

struct OpTraits {
  ExprOp op;
  unsigned arity;
  int64_t cost;               ///< instructions on a vector; of functions, counted in VectorMath.h
  const char *name = nullptr; ///< of what is written as a function
};
constexpr OpTraits kOps[] = {
    {ExprOp::Constant, 0, 0},
    {ExprOp::Operand, 0, 0},
    {ExprOp::Result, 0, 0},
    {ExprOp::Scalar, 0, 0},
    {ExprOp::Size, 0, 0},
    {ExprOp::Add, 2, 1},
    {ExprOp::Sub, 2, 1},
    {ExprOp::Mul, 2, 1},
    {ExprOp::Div, 2, 4},
    {ExprOp::Fma, 3, 1},
    {ExprOp::Neg, 1, 1},
    {ExprOp::Abs, 1, 1, "abs"},
    {ExprOp::Sqrt, 1, 4, "sqrt"},
    {ExprOp::Exp, 1, 18, "exp"},
    {ExprOp::Expm1, 1, 22, "expm1"},
    {ExprOp::Log, 1, 30, "log"},
    {ExprOp::Log1p, 1, 38, "log1p"},
    {ExprOp::Erf, 1, 42, "erf"},
    {ExprOp::Tanh, 1, 34, "tanh"},
    {ExprOp::Floor, 1, 2, "floor"},
    {ExprOp::RoundEven, 1, 2, "round"},
    {ExprOp::Less, 2, 1},
    {ExprOp::LessEqual, 2, 1},
    {ExprOp::IsNan, 1, 1, "isnan"},
    {ExprOp::Not, 1, 1, "not"},
    {ExprOp::And, 2, 1},
    {ExprOp::Select, 3, 1},
    {ExprOp::Known, 0, 0},
};
constexpr bool isInOrder() {
  for (size_t i = 0; i < std::size(kOps); ++i)
    if (static_cast<size_t>(kOps[i].op) != i)
      return false;
  return std::size(kOps) == static_cast<size_t>(ExprOp::Known) + 1;
}
static_assert(isInOrder(), "a row for every operation, in the order of ExprOp");

const OpTraits &traitsOf(ExprOp op) { return kOps[static_cast<size_t>(op)]; }

} // namespace

unsigned arityOf(ExprOp op) { return traitsOf(op).arity; }

Expr Exprs::intern(const Node &node) {
  const Key key{node.op,   node.in[0], node.in[1], node.in[2], std::bit_cast<uint64_t>(node.number),
                node.index};
  const auto [found, isNew] = interned_.try_emplace(key, static_cast<Expr>(nodes_.size()));
  if (isNew) {
    nodes_.push_back(node);
    bool uniform = !isArray(node.op);
    for (unsigned k = 0; k < arityOf(node.op); ++k)
      uniform = uniform && uniform_[node.in[k]];
    uniform_.push_back(uniform);
  }
  return found->second;
}

std::optional<Expr> Exprs::find(ExprOp leaf, uint32_t index) const {
  const auto found = interned_.find({leaf, 0, 0, 0, 0, index});
  return found == interned_.end() ? std::nullopt : std::optional(found->second);
}

Expr Exprs::size(const SizeExpr &size) {
  const auto found = std::find(sizes_.begin(), sizes_.end(), size);
  const auto index = static_cast<uint32_t>(found - sizes_.begin());
  if (found == sizes_.end())
    sizes_.push_back(size);
  return intern({ExprOp::Size, {}, 0, index});
}

Expr Exprs::make(ExprOp op, Expr a, Expr b, Expr c) { return intern({op, {a, b, c}, 0, 0}); }

std::vector<std::optional<Expr>> Exprs::gradients(Expr of, Expr seed, std::span<const Expr> by) {
  std::map<Expr, Expr, std::greater<>> open{{of, seed}}; ///< gradients not handed on yet, by node
  std::map<Expr, Expr> found;
  while (!open.empty()) {
    // The highest: all that use it, which have higher numbers, have added to it.
    const auto [expr, gradient] = *open.begin();
    open.erase(open.begin());
    found[expr] = gradient;
    if (std::find(by.begin(), by.end(), expr) != by.end())
      continue;
    const Node node = nodes_[expr]; // a copy: nodes are added
    // Conditions under which the gradient is not 0, outermost first: a factor that is no number
    // there must not show.
    std::vector<std::pair<Expr, bool>> taken;
    Expr inner = gradient;
    auto isZero = [&](Expr of) {
      return nodes_[of].op == ExprOp::Constant && nodes_[of].number == 0;
    };
    while (nodes_[inner].op == ExprOp::Select &&
           (isZero(nodes_[inner].in[1]) || isZero(nodes_[inner].in[2]))) {
      const bool when = isZero(nodes_[inner].in[2]);
      taken.emplace_back(nodes_[inner].in[0], when);
      inner = nodes_[inner].in[when ? 1 : 2];
    }
    const Term g{this, inner}, self{this, expr};
    auto in = [&](unsigned k) { return Term{this, node.in[k]}; };
    auto give = [&](Expr to, Term part) {
      for (auto condition = taken.rbegin(); condition != taken.rend(); ++condition) {
        const Term is{this, condition->first}, none = part.constant(0);
        part = condition->second ? select(is, part, none) : select(is, none, part);
      }
      const auto [before, isNew] = open.try_emplace(to, part.expr);
      if (!isNew)
        before->second = (Term{this, before->second} + part).expr;
    };
    auto add = [&](unsigned k, Term part) { give(node.in[k], part); };
    const Term zero = g.constant(0);
    if (const auto rule = rules_.find(expr); rule != rules_.end()) {
      const auto [argument, own] = rule->second; // a copy as well
      give(argument, {this, own(*this, inner)});
      continue;
    }
    switch (node.op) {
    case ExprOp::Constant:
    case ExprOp::Operand:
    case ExprOp::Known:
    case ExprOp::Result:
    case ExprOp::Scalar:
    case ExprOp::Size:
    case ExprOp::Floor:
    case ExprOp::RoundEven:
    case ExprOp::Less:
    case ExprOp::LessEqual:
    case ExprOp::IsNan:
    case ExprOp::Not:
    case ExprOp::And:
      break;
    case ExprOp::Add:
      add(0, g);
      add(1, g);
      break;
    case ExprOp::Sub:
      add(0, g);
      add(1, -g);
      break;
    case ExprOp::Mul:
      add(0, g * in(1));
      add(1, g * in(0));
      break;
    case ExprOp::Div:
      add(0, g / in(1));
      add(1, -(g * self / in(1)));
      break;
    case ExprOp::Fma:
      add(0, g * in(1));
      add(1, g * in(0));
      add(2, g);
      break;
    case ExprOp::Neg:
      add(0, -g);
      break;
    case ExprOp::Abs:
      add(0, select(less(in(0), zero), -g, g));
      break;
    case ExprOp::Sqrt:
      add(0, g * (g.constant(0.5) / self));
      break;
    case ExprOp::Exp:
      add(0, g * self);
      break;
    case ExprOp::Expm1:
      add(0, g * exp(in(0)));
      break;
    case ExprOp::Log:
      add(0, g / in(0));
      break;
    case ExprOp::Log1p:
      add(0, g / (g.constant(1) + in(0)));
      break;
    case ExprOp::Erf: // 2/sqrt(pi) exp(-x^2)
      add(0, g * (g.constant(1.12837916709551257390) * exp(-(in(0) * in(0)))));
      break;
    case ExprOp::Tanh:
      add(0, g * fma(-self, self, g.constant(1)));
      break;
    case ExprOp::Select:
      add(1, select(in(0), g, zero));
      add(2, select(in(0), zero, g));
      break;
    }
  }
  std::vector<std::optional<Expr>> gradients;
  for (Expr node : by) {
    const auto gradient = found.find(node);
    gradients.push_back(gradient == found.end() ? std::nullopt : std::optional(gradient->second));
  }
  return gradients;
}

std::vector<Expr> Exprs::nodesOf(std::span<const Expr> roots) const {
  std::vector<bool> needed(nodes_.size());
  for (Expr root : roots)
    needed[root] = true;
  for (size_t i = nodes_.size(); i-- > 0;)
    for (unsigned k = 0; needed[i] && k < arityOf(nodes_[i].op); ++k)
      needed[nodes_[i].in[k]] = true;
  std::vector<Expr> nodes;
  for (size_t i = 0; i < nodes_.size(); ++i)
    if (needed[i])
      nodes.push_back(static_cast<Expr>(i));
  return nodes;
}

int64_t Exprs::cost(std::span<const Expr> roots) const {
  int64_t sum = 0;
  for (Expr expr : nodesOf(roots))
    if (!isUniform(expr))
      sum += traitsOf(nodes_[expr].op).cost;
  return sum;
}

int64_t Exprs::flops(std::span<const Expr> roots) const {
  int64_t sum = 0;
  for (Expr expr : nodesOf(roots)) {
    const ExprOp op = nodes_[expr].op;
    const bool isCondition = op >= ExprOp::Less && op <= ExprOp::And;
    if (arityOf(op) == 0 || isCondition || isUniform(expr))
      continue;
    sum += op == ExprOp::Fma ? 2 : 1;
  }
  return sum;
}

double Exprs::evaluate(Expr root, const std::function<double(const Node &)> &leaf) const {
  std::map<Expr, double> values;
  auto valueOf = [&](const Node &node) -> double {
    auto in = [&](unsigned k) { return values.at(node.in[k]); };
    switch (node.op) {
    case ExprOp::Constant:
      return node.number;
    case ExprOp::Operand:
    case ExprOp::Known:
    case ExprOp::Result:
    case ExprOp::Scalar:
    case ExprOp::Size:
      return leaf(node);
    case ExprOp::Add:
      return in(0) + in(1);
    case ExprOp::Sub:
      return in(0) - in(1);
    case ExprOp::Mul:
      return in(0) * in(1);
    case ExprOp::Div:
      return in(0) / in(1);
    case ExprOp::Fma:
      return std::fma(in(0), in(1), in(2));
    case ExprOp::Neg:
      return -in(0);
    case ExprOp::Abs:
      return std::abs(in(0));
    case ExprOp::Sqrt:
      return std::sqrt(in(0));
    case ExprOp::Exp:
      return std::exp(in(0));
    case ExprOp::Expm1:
      return std::expm1(in(0));
    case ExprOp::Log:
      return std::log(in(0));
    case ExprOp::Log1p:
      return std::log1p(in(0));
    case ExprOp::Erf:
      return std::erf(in(0));
    case ExprOp::Tanh:
      return std::tanh(in(0));
    case ExprOp::Floor:
      return std::floor(in(0));
    case ExprOp::RoundEven:
      return std::nearbyint(in(0));
    case ExprOp::Less:
      return in(0) < in(1);
    case ExprOp::LessEqual:
      return in(0) <= in(1);
    case ExprOp::IsNan:
      return std::isnan(in(0));
    case ExprOp::Not:
      return in(0) == 0;
    case ExprOp::And:
      return in(0) != 0 && in(1) != 0;
    case ExprOp::Select:
      return in(0) != 0 ? in(1) : in(2);
    }
    std::abort();
  };
  for (Expr expr : nodesOf(std::span(&root, 1)))
    values[expr] = valueOf(nodes_[expr]);
  return values.at(root);
}

std::string Exprs::text(Expr expr, const Names &names) const { return text(expr, names, {}, 0); }

std::vector<std::string> Exprs::lines(std::span<const std::pair<std::string, Expr>> roots,
                                      const Names &names, std::string_view reduction) const {
  std::vector<Expr> values;
  std::map<Expr, int> uses;
  for (const auto &[name, value] : roots) {
    values.push_back(value);
    ++uses[value];
  }
  const std::vector<Expr> nodes = nodesOf(values);
  for (Expr expr : nodes)
    for (unsigned k = 0; k < arityOf(nodes_[expr].op); ++k)
      ++uses[nodes_[expr].in[k]];
  std::vector<std::string> lines;
  Shared shared;
  for (Expr expr : nodes) {
    if (arityOf(nodes_[expr].op) == 0 || uses[expr] < 2)
      continue;
    // One that is a result lends its name.
    const auto root = std::find_if(roots.begin(), roots.end(),
                                   [&](const auto &named) { return named.second == expr; });
    const std::string name = root != roots.end() && reduction.empty()
                                 ? root->first
                                 : fmt::format("t{}", shared.size() + 1);
    lines.push_back(name + " = " + text(expr, names, shared, 0));
    shared[expr] = name;
  }
  for (const auto &[name, value] : roots)
    if (const auto found = shared.find(value); found == shared.end() || found->second != name)
      lines.push_back(fmt::format("{} = {}{}", name, reduction, text(value, names, shared, 0)));
  return lines;
}

/// `precedence` is that of the place where the text stands: 0 anything, 1 a condition, 2 a sum, 3 a
/// product, 4 a factor.
std::string Exprs::text(Expr expr, const Names &names, const Shared &shared, int precedence) const {
  if (const auto found = shared.find(expr); found != shared.end())
    return found->second;
  const Node &node = nodes_[expr];
  auto in = [&](unsigned k, int wanted) { return text(node.in[k], names, shared, wanted); };
  auto wrap = [&](int own, const std::string &text) {
    return own < precedence ? "(" + text + ")" : text;
  };
  switch (node.op) {
  case ExprOp::Constant:
    return fmt::format("{}", node.number);
  case ExprOp::Operand:
    return names.operands[node.index];
  case ExprOp::Known:
    return names.known[node.index];
  case ExprOp::Result:
    return names.results[node.index];
  case ExprOp::Scalar:
    return names.scalars[node.index];
  case ExprOp::Size: {
    const std::string text = sizes_[node.index].text(names.sizes);
    return text.find(' ') == std::string::npos ? text : "(" + text + ")";
  }
  case ExprOp::Add:
    return wrap(2, in(0, 2) + " + " + in(1, 3));
  case ExprOp::Sub:
    return wrap(2, in(0, 2) + " - " + in(1, 3));
  case ExprOp::Mul:
    return wrap(3, in(0, 3) + " * " + in(1, 4));
  case ExprOp::Div:
    return wrap(3, in(0, 3) + " / " + in(1, 4));
  case ExprOp::Fma:
    return wrap(2, in(0, 3) + " * " + in(1, 4) + " + " + in(2, 3));
  case ExprOp::Neg:
    return wrap(3, "-" + in(0, 4));
  case ExprOp::Less:
    return wrap(1, in(0, 2) + " < " + in(1, 2));
  case ExprOp::LessEqual:
    return wrap(1, in(0, 2) + " <= " + in(1, 2));
  case ExprOp::And:
    return wrap(1, in(0, 1) + " and " + in(1, 1));
  case ExprOp::Abs:
  case ExprOp::Sqrt:
  case ExprOp::Exp:
  case ExprOp::Expm1:
  case ExprOp::Log:
  case ExprOp::Log1p:
  case ExprOp::Erf:
  case ExprOp::Tanh:
  case ExprOp::Floor:
  case ExprOp::RoundEven:
  case ExprOp::IsNan:
  case ExprOp::Not:
    return std::string(traitsOf(node.op).name) + "(" + in(0, 0) + ")";
  case ExprOp::Select:
    return wrap(0, in(0, 1) + " ? " + in(1, 1) + " : " + in(2, 0));
  }
  return "";
}

} // namespace normforge
