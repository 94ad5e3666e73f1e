#include "runtime/artifact/SizeExpr.h"

#include <limits>
#include <utility>

namespace normforge {
namespace {

using Op = SizeExpr::Op;
using Node = SizeExpr::Node;

/// The value of `a op b`; empty when it exceeds int64_t or divides by 0.
std::optional<int64_t> apply(Op op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
  case Op::Add:
    if (__builtin_add_overflow(a, b, &result))
      return std::nullopt;
    return result;
  case Op::Multiply:
    if (__builtin_mul_overflow(a, b, &result))
      return std::nullopt;
    return result;
  case Op::CeilDivide:
    if (b == 0)
      return std::nullopt;
    return a / b + (a % b != 0); // a + b - 1 could overflow
  case Op::Constant:
  case Op::Size:
    break;
  }
  return std::nullopt;
}

std::vector<Node> join(std::span<const Node> a, std::span<const Node> b, Op op) {
  std::vector<Node> nodes;
  nodes.reserve(a.size() + b.size() + 1);
  nodes.insert(nodes.end(), a.begin(), a.end());
  nodes.insert(nodes.end(), b.begin(), b.end());
  nodes.push_back({op, 0});
  return nodes;
}

/// If `nodes` is `rest op constant`, the constant.
std::optional<int64_t> trailingConstant(std::span<const Node> nodes, Op op) {
  size_t n = nodes.size();
  if (n >= 3 && nodes[n - 1].op == op && nodes[n - 2].op == Op::Constant)
    return nodes[n - 2].value;
  return std::nullopt;
}

} // namespace

SizeExpr SizeExpr::size(uint32_t index) {
  SizeExpr expr;
  expr.nodes_ = {{Op::Size, index}};
  return expr;
}

std::optional<SizeExpr> SizeExpr::fromNodes(std::vector<Node> nodes, size_t sizeCount) {
  // The values on the stack, as far as they are known: a number, or nothing.
  std::vector<std::optional<int64_t>> stack;
  for (const Node &node : nodes) {
    switch (node.op) {
    case Op::Constant:
      if (node.value < 0)
        return std::nullopt;
      stack.push_back(node.value);
      break;
    case Op::Size:
      if (node.value < 0 || static_cast<uint64_t>(node.value) >= sizeCount)
        return std::nullopt;
      stack.push_back(std::nullopt);
      break;
    case Op::Add:
    case Op::Multiply:
    case Op::CeilDivide: {
      if (node.value != 0 || stack.size() < 2)
        return std::nullopt;
      std::optional<int64_t> b = stack.back();
      stack.pop_back();
      std::optional<int64_t> &a = stack.back();
      if (node.op == Op::CeilDivide && b && *b == 0)
        return std::nullopt;
      a = a && b ? apply(node.op, *a, *b) : std::nullopt;
      break;
    }
    default:
      return std::nullopt;
    }
  }
  if (stack.size() != 1)
    return std::nullopt;
  SizeExpr expr;
  expr.nodes_ = std::move(nodes);
  return expr;
}

std::optional<int64_t> SizeExpr::constant() const {
  if (nodes_.size() == 1 && nodes_[0].op == Op::Constant)
    return nodes_[0].value;
  return std::nullopt;
}

std::optional<size_t> SizeExpr::name() const {
  if (nodes_.size() == 1 && nodes_[0].op == Op::Size)
    return static_cast<size_t>(nodes_[0].value);
  return std::nullopt;
}

/// Folds `a op b` for a commutative op: constants move to the right end and meet there, so that
/// N * 4 * 8 becomes N * 32.
static std::optional<std::vector<Node>> foldCommutative(Op op, int64_t neutral, const SizeExpr &a,
                                                        const SizeExpr &b) {
  std::optional<int64_t> ca = a.constant(), cb = b.constant();
  if (ca && cb) {
    if (std::optional<int64_t> value = apply(op, *ca, *cb))
      return std::vector<Node>{{Op::Constant, *value}};
    return std::nullopt;
  }
  if (ca)
    return foldCommutative(op, neutral, b, a);
  auto copy = [](std::span<const Node> n) { return std::vector<Node>(n.begin(), n.end()); };
  if (cb) {
    if (*cb == neutral)
      return copy(a.nodes());
    if (std::optional<int64_t> last = trailingConstant(a.nodes(), op))
      if (std::optional<int64_t> value = apply(op, *last, *cb)) {
        std::vector<Node> nodes = copy(a.nodes());
        nodes[nodes.size() - 2].value = *value;
        return nodes;
      }
    return join(a.nodes(), b.nodes(), op);
  }
  // (a op c) op b: c goes last.
  if (std::optional<int64_t> last = trailingConstant(a.nodes(), op)) {
    SizeExpr constant(*last);
    std::span<const Node> rest = a.nodes().first(a.nodes().size() - 2);
    std::vector<Node> front = join(rest, b.nodes(), op);
    return join(front, constant.nodes(), op);
  }
  return std::nullopt;
}

SizeExpr operator+(const SizeExpr &a, const SizeExpr &b) {
  SizeExpr expr;
  if (auto folded = foldCommutative(Op::Add, 0, a, b))
    expr.nodes_ = std::move(*folded);
  else
    expr.nodes_ = join(a.nodes_, b.nodes_, Op::Add);
  return expr;
}

SizeExpr operator*(const SizeExpr &a, const SizeExpr &b) {
  SizeExpr expr;
  if (a.constant() == 0 || b.constant() == 0)
    return expr;
  if (auto folded = foldCommutative(Op::Multiply, 1, a, b))
    expr.nodes_ = std::move(*folded);
  else
    expr.nodes_ = join(a.nodes_, b.nodes_, Op::Multiply);
  return expr;
}

SizeExpr ceilDivide(const SizeExpr &a, const SizeExpr &b) {
  std::optional<int64_t> ca = a.constant(), cb = b.constant();
  if (cb == 1)
    return a;
  if (ca && cb && *cb != 0)
    return SizeExpr(*apply(Op::CeilDivide, *ca, *cb));
  SizeExpr expr;
  expr.nodes_ = join(a.nodes_, b.nodes_, Op::CeilDivide);
  return expr;
}

std::optional<int64_t> SizeExpr::evaluate(std::span<const int64_t> sizes) const {
  auto leaf = [&](const Node &node) -> std::optional<int64_t> {
    if (node.op == Op::Constant)
      return node.value;
    size_t index = static_cast<size_t>(node.value);
    if (index >= sizes.size() || sizes[index] < 0)
      return std::nullopt;
    return sizes[index];
  };
  if (nodes_.size() == 1)
    return leaf(nodes_[0]);
  std::vector<int64_t> stack;
  stack.reserve(nodes_.size());
  for (const Node &node : nodes_) {
    std::optional<int64_t> value;
    if (node.op == Op::Constant || node.op == Op::Size) {
      value = leaf(node);
    } else {
      int64_t b = stack.back();
      stack.pop_back();
      int64_t a = stack.back();
      stack.pop_back();
      value = apply(node.op, a, b);
    }
    if (!value)
      return std::nullopt;
    stack.push_back(*value);
  }
  return stack.back();
}

std::string SizeExpr::text(std::span<const std::string> sizeNames) const {
  // How tightly a piece of text binds.
  enum Binding { Sum, Product, Atom };
  struct Piece {
    std::string text;
    Binding binding;
  };
  auto bound = [](Piece piece, Binding least) {
    return piece.binding < least ? "(" + piece.text + ")" : std::move(piece.text);
  };
  std::vector<Piece> stack;
  for (const Node &node : nodes_) {
    if (node.op == Op::Constant) {
      stack.push_back({std::to_string(node.value), Atom});
      continue;
    }
    if (node.op == Op::Size) {
      size_t index = static_cast<size_t>(node.value);
      stack.push_back(
          {index < sizeNames.size() ? sizeNames[index] : "size" + std::to_string(index), Atom});
      continue;
    }
    Piece b = std::move(stack.back());
    stack.pop_back();
    Piece a = std::move(stack.back());
    stack.pop_back();
    if (node.op == Op::Add)
      stack.push_back({a.text + " + " + b.text, Sum});
    else if (node.op == Op::Multiply)
      stack.push_back(
          {bound(std::move(a), Product) + " * " + bound(std::move(b), Product), Product});
    else
      stack.push_back(
          {"ceil(" + bound(std::move(a), Product) + " / " + bound(std::move(b), Atom) + ")", Atom});
  }
  return stack.back().text;
}

} // namespace normforge
