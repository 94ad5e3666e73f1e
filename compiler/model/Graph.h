// ONNX models as graphs that norms are looked for in.
//
// Enters: a model's protobuf. Leaves: nodes and values with what is known of their types, shapes
// and constants. Functions of the model are expanded; the bodies of If, Loop and Scan are graphs of
// their own, whose outer values have no producer there.
//
//   Graph graph = ...; for each node n: value v of n.inputs; graph.values[v].producer is a node
#pragma once

#include "llvm/Support/Error.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace onnx {
class AttributeProto;
class GraphProto;
class ModelProto;
class NodeProto;
} // namespace onnx

namespace normforge::model {

/// A number, a name, or neither.
struct Dim {
  std::optional<int64_t> size{};
  std::string name{};

  bool isKnown() const { return size.has_value(); }
  /// Whether they are surely the same.
  bool same(const Dim &other) const {
    return size ? size == other.size : !name.empty() && !other.size && name == other.name;
  }
  std::string text() const { return size ? std::to_string(*size) : name.empty() ? "?" : name; }
};
using Shape = std::vector<Dim>;
std::string text(const Shape &shape); ///< "(N, 64, 7, 7)"

/// A value that is known before the model runs.
struct Tensor {
  std::vector<int64_t> shape;
  /// In memory order; empty where there are too many to look at, or they lie in another file.
  std::vector<double> values;

  int64_t count() const;
  bool hasValues() const { return static_cast<int64_t>(values.size()) == count(); }
  /// The one element of a tensor of one.
  std::optional<double> scalar() const;
  bool isAll(double value) const;
};

/// Types by ONNX's numbers, TensorProto.DataType; 0 is unknown.
enum Type : int { kFloat = 1, kInt64 = 7, kFloat16 = 10, kDouble = 11, kBFloat16 = 16 };
std::string_view typeName(int type); ///< "f32", ... of those that kernels have; else ""
int precisionOf(int type);           ///< of these: 1 half, 2 single, 3 double; else 0

struct Value {
  std::string name;
  int type = 0;
  std::optional<Shape> shape;
  std::optional<Tensor> constant;
  /// A vector of whole numbers of which some may be known: a shape.
  std::optional<std::vector<Dim>> ints;
  /// Where it is the shape of another value: that value. -1: it is not.
  int shapeOf = -1;
  int producer = -1;
  std::vector<int> users;    ///< nodes, once for each input that it is
  bool isOutput = false;     ///< of the graph
  bool isUsedWithin = false; ///< by the body of a node

  bool hasOneUser() const { return users.size() == 1 && !isOutput && !isUsedWithin; }
};

struct Node {
  std::string name; ///< for people: its own, or after its first output
  std::string op;
  std::string domain;               ///< "" is ONNX's own
  int version = 0;                  ///< of the operator set that the model takes it from
  std::vector<int> inputs, outputs; ///< values; -1 where one is left out
  std::shared_ptr<const onnx::NodeProto> proto;
  /// Its number in the graph's protobuf; -1: it came of a function.
  int number = -1;

  bool is(std::string_view name) const { return domain.empty() && op == name; }
  int input(size_t i) const { return i < inputs.size() ? inputs[i] : -1; }
  int output(size_t i) const { return i < outputs.size() ? outputs[i] : -1; }
  bool has(std::string_view attribute) const;
  int64_t integer(std::string_view attribute, int64_t otherwise) const;
  double number_(std::string_view attribute, double otherwise) const;
  std::string word(std::string_view attribute, const std::string &otherwise) const;
  std::optional<std::vector<int64_t>> integers(std::string_view attribute) const;

private:
  const onnx::AttributeProto *find(std::string_view attribute) const;
};

struct Graph {
  std::string path; ///< "" of the model's own; "then_branch of If_12"
  onnx::GraphProto *proto = nullptr;
  bool isOfFunction = false; ///< the body of a node that came of a function
  std::vector<Value> values;
  std::vector<Node> nodes; ///< each after those whose outputs it takes

  const Node *producer(int value) const {
    return value < 0 || values[value].producer < 0 ? nullptr : &nodes[values[value].producer];
  }
  const Shape *shape(int value) const {
    return value < 0 || !values[value].shape ? nullptr : &*values[value].shape;
  }
  const Tensor *constant(int value) const {
    return value < 0 || !values[value].constant ? nullptr : &*values[value].constant;
  }
  /// The number that a value is, where it is a known one.
  std::optional<double> scalar(int value) const;
};

struct Model {
  std::shared_ptr<onnx::ModelProto> proto;
  std::vector<std::shared_ptr<onnx::NodeProto>> expanded; ///< of functions, with their bodies
  int64_t opset = 0;                                      ///< of ONNX's own operators
  std::vector<Graph> graphs;                              ///< the model's own first
};

/// Reads a model's file. Values of other files (external data) stay unknown; their shapes do not.
llvm::Expected<Model> readModel(const std::string &path);
/// The same for a model in memory.
llvm::Expected<Model> makeModel(std::shared_ptr<onnx::ModelProto> proto, const std::string &path);

/// Infers constants, types and shapes of a node's outputs from its inputs.
void infer(Graph &graph, Node &node);

} // namespace normforge::model
