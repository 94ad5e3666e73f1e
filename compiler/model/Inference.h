// Shared by what is inferred of a node: constants (Infer.cpp) and shapes (InferShapes.cpp).
#pragma once

#include "compiler/model/Graph.h"

#include "llvm/ADT/STLExtras.h"

#include <cmath>

namespace normforge::model {

/// Elements of a constant that are looked at: parameters of a layer are, tables of words are not.
constexpr int64_t kMostValues = 1 << 16;

/// Saturates: sizes of a file may be anything.
inline int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}
/// A number that an int64_t has exactly.
inline bool isWhole(double number) {
  return std::abs(number) <= 0x1p53 && number == std::trunc(number);
}

inline std::optional<std::vector<int64_t>> sizesOf(const Shape &shape) {
  std::vector<int64_t> sizes;
  for (const Dim &dim : shape) {
    if (!dim.isKnown())
      return std::nullopt;
    sizes.push_back(*dim.size);
  }
  return sizes;
}

/// An axis from 0 on; -1 where it is none.
inline int64_t axisOf(int64_t axis, size_t rank) {
  const auto all = static_cast<int64_t>(rank);
  axis += axis < 0 ? all : 0;
  return axis >= 0 && axis < all ? axis : -1;
}

/// A node, and what is known of its inputs.
class NodeInference {
protected:
  NodeInference(Graph &graph, Node &node) : graph_(graph), node_(node) {}

  Value &out(size_t i = 0) { return graph_.values[node_.output(i)]; }
  const Value *in(size_t i) const {
    return node_.input(i) < 0 ? nullptr : &graph_.values[node_.input(i)];
  }
  bool isOneOf(std::initializer_list<std::string_view> names) const {
    return llvm::is_contained(names, node_.op);
  }

  /// Whether an output is the sum that ONNX Runtime's skip norms give beside y, of x's shape.
  bool isSkipSum(size_t output) const {
    return output == 3 && node_.domain == "com.microsoft" && node_.op.starts_with("Skip");
  }

  /// An input's elements where they are whole numbers, some of which may be known.
  std::optional<std::vector<Dim>> intsOf(size_t i) const {
    const Value *value = in(i);
    if (!value)
      return std::nullopt;
    if (value->ints)
      return value->ints;
    if (!value->constant || !value->constant->hasValues() ||
        !llvm::all_of(value->constant->values, isWhole) || value->constant->shape.size() > 1 ||
        value->constant->values.size() > 64)
      return std::nullopt;
    std::vector<Dim> dims;
    for (double number : value->constant->values)
      dims.push_back({.size = static_cast<int64_t>(number)});
    return dims;
  }
  std::optional<int64_t> numberOf(size_t i, size_t at = 0) const {
    const auto all = intsOf(i);
    return all && at < all->size() ? (*all)[at].size : std::nullopt;
  }

  Graph &graph_;
  Node &node_;
};

/// The shapes of a node's outputs, beside what the model says of them.
void inferShapes(Graph &graph, Node &node);

} // namespace normforge::model
