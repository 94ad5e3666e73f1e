// Scalar expressions as data: the formulas of an operator.
//
// One expression gives the body of a linalg.generic, the formula that `explain` prints, its cost,
// and a bound of its error. Expressions are hash-consed: equal ones are one node, so that
// what two results share is computed once, and a node's number is above those that it is made of.
#pragma once

#include "runtime/artifact/SizeExpr.h"

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace normforge {

enum class ExprOp : uint8_t {
  // Leaves.
  Constant, ///< Node::number
  Operand,  ///< an element of the operator's operand Node::index; of bits it is a condition
  Result,   ///< an element of the result Node::index, counted over all steps
  Scalar,   ///< the operator's run-time number Node::index
  Size,     ///< Exprs::sizes[Node::index] as a number
  // Arithmetic, IEEE-754 in the type of the step; nothing is reassociated.
  Add,
  Sub,
  Mul,
  Div,
  Fma, ///< in[0]*in[1] + in[2], rounded once
  Neg,
  Abs,
  Sqrt,
  // Functions; their errors are in compiler/target/VectorMath.h.
  Exp,
  Expm1, ///< exp(x) - 1
  Log,
  Log1p, ///< log(1 + x)
  Erf,
  Tanh,
  Floor,
  RoundEven, ///< to the nearest whole number, ties to even
  // Conditions, and what takes one.
  Less,      ///< false for NaN
  LessEqual, ///< false for NaN
  IsNan,     ///< of in[0]
  Not,       ///< of a condition
  And,       ///< of two
  Select,    ///< in[0] ? in[1] : in[2]
  // Numbers of operations are in the digests of records: what is new goes to the end.
  Known, ///< a leaf: an element of the operator's known array Node::index
};

/// The number of a node in its Exprs.
using Expr = uint32_t;

struct Node {
  ExprOp op;
  std::array<Expr, 3> in{}; ///< arityOf(op) of them
  double number = 0;
  uint32_t index = 0;
};

unsigned arityOf(ExprOp op);
/// Whether a leaf is an element of an array.
inline bool isArray(ExprOp op) {
  return op == ExprOp::Operand || op == ExprOp::Known || op == ExprOp::Result;
}

class Exprs {
public:
  Expr constant(double value) { return intern({ExprOp::Constant, {}, value, 0}); }
  Expr operand(uint32_t index) { return intern({ExprOp::Operand, {}, 0, index}); }
  Expr known(uint32_t index) { return intern({ExprOp::Known, {}, 0, index}); }
  Expr result(uint32_t index) { return intern({ExprOp::Result, {}, 0, index}); }
  Expr scalar(uint32_t index) { return intern({ExprOp::Scalar, {}, 0, index}); }
  Expr size(const SizeExpr &size);
  /// `op` of as many nodes as it takes. Numbers are not computed here: they are rounded as the
  /// step's type says.
  Expr make(ExprOp op, Expr a, Expr b = 0, Expr c = 0);

  /// `seed` times the derivatives of `of` by the nodes `by`, each of which counts as a variable:
  /// the chain rule from the end, sums in the order of the nodes. Empty where `of` does not depend
  /// on the node. Through a condition goes no gradient, through a Select that of the branch that is
  /// taken, and the other branch gets 0, whatever the seed.
  std::vector<std::optional<Expr>> gradients(Expr of, Expr seed, std::span<const Expr> by);
  /// Seed to seed times derivative, in a given Exprs.
  using Gradient = std::function<Expr(Exprs &, Expr seed)>;
  /// From now on the gradient of node `root` goes to node `argument` by this rule alone, and not to
  /// what it is made of.
  void setGradient(Expr root, Expr argument, Gradient gradient) {
    rules_[root] = {argument, std::move(gradient)};
  }

  /// The leaf that stands for operand, result or number `index`, if any formula has it.
  std::optional<Expr> find(ExprOp leaf, uint32_t index) const;

  const Node &operator[](Expr expr) const { return nodes_[expr]; }
  const SizeExpr &sizeOf(Expr expr) const { return sizes_[nodes_[expr].index]; }
  size_t size() const { return nodes_.size(); }

  /// The nodes that these are made of, themselves included, each once, inputs before users.
  std::vector<Expr> nodesOf(std::span<const Expr> roots) const;
  /// Its value in f64, where that of every leaf but constants is what `leaf` says.
  double evaluate(Expr root, const std::function<double(const Node &)> &leaf) const;
  /// Whether no array is in it: one value for all elements.
  bool isUniform(Expr expr) const { return uniform_[expr]; }
  /// Instructions on a vector, about; what is uniform costs nothing.
  int64_t cost(std::span<const Expr> roots) const;
  /// Floating-point operations, an FMA counted as two; what is uniform costs nothing.
  int64_t flops(std::span<const Expr> roots) const;
  /// Names of what leaves stand for.
  struct Names {
    std::vector<std::string> operands, results, scalars, sizes, known;
  };
  /// In infix, with the fewest parentheses: "(x - mean) * scale + shift".
  std::string text(Expr expr, const Names &names) const;
  /// The same of several, as lines "name = ..."; what is used more than once has a line of its own
  /// before, named t1, t2, ... Of a reduction, "sum of " say, it stands before what is reduced.
  std::vector<std::string> lines(std::span<const std::pair<std::string, Expr>> roots,
                                 const Names &names, std::string_view reduction = {}) const;

private:
  Expr intern(const Node &node);
  using Shared = std::map<Expr, std::string>;
  std::string text(Expr expr, const Names &names, const Shared &shared, int precedence) const;

  std::vector<Node> nodes_;
  std::vector<bool> uniform_; ///< by node
  std::vector<SizeExpr> sizes_;
  using Key = std::tuple<ExprOp, Expr, Expr, Expr, uint64_t, uint32_t>;
  std::map<Key, Expr> interned_;
  std::map<Expr, std::pair<Expr, Gradient>> rules_;
};

/// A node with what it is in, so that formulas in C++ read as such.
struct Term {
  Exprs *in;
  Expr expr;

  Term make(ExprOp op, Term b) const { return {in, in->make(op, expr, b.expr)}; }
  Term constant(double value) const { return {in, in->constant(value)}; }
};
inline Term operator+(Term a, Term b) { return a.make(ExprOp::Add, b); }
inline Term operator-(Term a, Term b) { return a.make(ExprOp::Sub, b); }
inline Term operator*(Term a, Term b) { return a.make(ExprOp::Mul, b); }
inline Term operator/(Term a, Term b) { return a.make(ExprOp::Div, b); }
inline Term operator-(Term a) { return {a.in, a.in->make(ExprOp::Neg, a.expr)}; }
inline Term fma(Term a, Term b, Term c) {
  return {a.in, a.in->make(ExprOp::Fma, a.expr, b.expr, c.expr)};
}
inline Term apply(ExprOp op, Term a) { return {a.in, a.in->make(op, a.expr)}; }
inline Term abs(Term a) { return apply(ExprOp::Abs, a); }
inline Term sqrt(Term a) { return apply(ExprOp::Sqrt, a); }
inline Term exp(Term a) { return apply(ExprOp::Exp, a); }
inline Term expm1(Term a) { return apply(ExprOp::Expm1, a); }
inline Term log(Term a) { return apply(ExprOp::Log, a); }
inline Term log1p(Term a) { return apply(ExprOp::Log1p, a); }
inline Term erf(Term a) { return apply(ExprOp::Erf, a); }
inline Term tanh(Term a) { return apply(ExprOp::Tanh, a); }
inline Term less(Term a, Term b) { return a.make(ExprOp::Less, b); }
inline Term lessEqual(Term a, Term b) { return a.make(ExprOp::LessEqual, b); }
inline Term isNan(Term a) { return {a.in, a.in->make(ExprOp::IsNan, a.expr)}; }
inline Term negation(Term condition) { return apply(ExprOp::Not, condition); }
inline Term both(Term a, Term b) { return a.make(ExprOp::And, b); }
inline Term select(Term condition, Term yes, Term no) {
  return {yes.in, yes.in->make(ExprOp::Select, condition.expr, yes.expr, no.expr)};
}

} // namespace normforge
