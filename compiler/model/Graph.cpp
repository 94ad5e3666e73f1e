#include "compiler/model/Graph.h"

#include "compiler/model/Proto.h"

#include "llvm/ADT/STLExtras.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <set>
#include <unistd.h>

namespace normforge::model {

std::string text(const Shape &shape) {
  std::vector<std::string> words;
  for (const Dim &dim : shape)
    words.push_back(dim.text());
  return fmt::format("({})", fmt::join(words, ", "));
}

int64_t Tensor::count() const {
  int64_t count = 1;
  for (int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(count, size, &count))
      return INT64_MAX;
  return count;
}

std::optional<double> Tensor::scalar() const {
  return count() == 1 && values.size() == 1 ? std::optional(values[0]) : std::nullopt;
}

bool Tensor::isAll(double value) const {
  return hasValues() && llvm::all_of(values, [&](double v) { return v == value; });
}

std::string_view typeName(int type) {
  switch (type) {
  case kFloat:
    return "f32";
  case kDouble:
    return "f64";
  case kFloat16:
    return "f16";
  case kBFloat16:
    return "bf16";
  }
  return "";
}

int precisionOf(int type) {
  return type == kDouble ? 3 : type == kFloat ? 2 : type == kFloat16 || type == kBFloat16 ? 1 : 0;
}

// ---- Nodes --------------------------------------------------------------------------------------

const onnx::AttributeProto *Node::find(std::string_view attribute) const {
  for (const onnx::AttributeProto &a : proto->attribute())
    if (a.name() == attribute)
      return &a;
  return nullptr;
}
bool Node::has(std::string_view attribute) const { return find(attribute) != nullptr; }
int64_t Node::integer(std::string_view attribute, int64_t otherwise) const {
  const onnx::AttributeProto *a = find(attribute);
  return a ? a->i() : otherwise;
}
double Node::number_(std::string_view attribute, double otherwise) const {
  const onnx::AttributeProto *a = find(attribute);
  return a ? a->f() : otherwise;
}
std::string Node::word(std::string_view attribute, const std::string &otherwise) const {
  const onnx::AttributeProto *a = find(attribute);
  return a ? a->s() : otherwise;
}
std::optional<std::vector<int64_t>> Node::integers(std::string_view attribute) const {
  const onnx::AttributeProto *a = find(attribute);
  if (!a)
    return std::nullopt;
  return std::vector<int64_t>(a->ints().begin(), a->ints().end());
}

std::optional<double> Graph::scalar(int value) const {
  const Tensor *tensor = constant(value);
  return tensor ? tensor->scalar() : std::nullopt;
}

// ---- Reading ------------------------------------------------------------------------------------

namespace {

using Functions = std::map<std::pair<std::string, std::string>, const onnx::FunctionProto *>;
using Opsets = std::map<std::string, int64_t>;

std::string domainOf(const std::string &domain) { return domain == "ai.onnx" ? "" : domain; }

template <typename Imports> Opsets opsetsOf(const Imports &imports) {
  Opsets opsets;
  for (const auto &import : imports)
    opsets[domainOf(import.domain())] = import.version();
  return opsets;
}

Dim dimOf(const onnx::TensorShapeProto::Dimension &dim) {
  if (dim.has_dim_value() && dim.dim_value() >= 0)
    return {.size = dim.dim_value()};
  return dim.has_dim_param() ? Dim{.name = dim.dim_param()} : Dim{};
}

class Builder {
public:
  Builder(Model &model, const Functions &functions) : model_(model), functions_(functions) {}

  llvm::Error run() {
    onnx::ModelProto &proto = *model_.proto;
    return addGraph(*proto.mutable_graph(), "", opsetsOf(proto.opset_import()), nullptr);
  }

private:
  using Names = std::map<std::string, int>;

  struct Scope {
    Graph &graph;
    Names names;
    const Opsets &opsets;
    Scope *outer; ///< whose values it may take; or null
  };

  static bool knows(const Scope &scope, const std::string &name) {
    return scope.names.contains(name) || (scope.outer && knows(*scope.outer, name));
  }

  int add(Scope &scope, const std::string &name) {
    auto [found, isNew] = scope.names.emplace(name, static_cast<int>(scope.graph.values.size()));
    if (!isNew)
      return found->second;
    Value value;
    value.name = name;
    if (scope.outer && knows(*scope.outer, name)) {
      Value &of = scope.outer->graph.values[add(*scope.outer, name)];
      of.isUsedWithin = true;
      value.type = of.type;
      value.shape = of.shape;
      value.constant = of.constant;
      value.ints = of.ints;
    }
    scope.graph.values.push_back(std::move(value));
    return found->second;
  }

  void describe(Value &value, const onnx::ValueInfoProto &info) {
    if (!info.type().has_tensor_type())
      return;
    const auto &type = info.type().tensor_type();
    value.type = type.elem_type();
    if (!type.has_shape())
      return;
    value.shape.emplace();
    for (const auto &dim : type.shape().dim())
      value.shape->push_back(dimOf(dim));
  }

  llvm::Error addGraph(onnx::GraphProto &proto, const std::string &path, const Opsets &opsets,
                       Scope *outer, bool isOfFunction = false) {
    auto graph = std::make_unique<Graph>();
    graph->isOfFunction = isOfFunction || (outer && outer->graph.isOfFunction);
    graph->path = path;
    graph->proto = &proto;
    Scope scope{*graph, {}, opsets, outer};
    // Names of its own first, so that none is taken for an outer one's.
    scope.outer = nullptr;
    for (const auto &tensor : proto.initializer()) {
      Value &value = graph->values[add(scope, tensor.name())];
      value.type = tensor.data_type();
      value.constant = tensorOf(tensor);
      value.shape.emplace();
      for (int64_t size : tensor.dims())
        value.shape->push_back({.size = size});
    }
    for (const auto &info : proto.input()) {
      Value &value = graph->values[add(scope, info.name())];
      if (!value.constant)
        describe(value, info);
      else if (model_.proto->ir_version() >= 4) // a default, which a call may replace
        value.constant.reset();
    }
    for (const auto &node : proto.node())
      for (const std::string &output : node.output())
        if (!output.empty())
          add(scope, output);
    scope.outer = outer;
    for (const auto &list : {&proto.value_info(), &proto.output()})
      for (const auto &info : *list)
        if (const auto found = scope.names.find(info.name()); found != scope.names.end())
          describe(graph->values[found->second], info);
    for (const auto &info : proto.output())
      graph->values[add(scope, info.name())].isOutput = true;

    auto order = inOrder(proto);
    if (!order)
      return order.takeError();
    for (int number : *order)
      if (llvm::Error error = addNode(scope, *proto.mutable_node(number), number, {}, 0))
        return error;
    model_.graphs.push_back(std::move(*graph));
    return llvm::Error::success();
  }

  /// The nodes, each after those whose outputs it takes.
  static llvm::Expected<std::vector<int>> inOrder(const onnx::GraphProto &proto) {
    std::map<std::string, int> makers;
    for (int i = 0; i < proto.node_size(); ++i)
      for (const std::string &output : proto.node(i).output())
        if (!output.empty() && !makers.emplace(output, i).second)
          return llvm::createStringError(fmt::format("two nodes make the value '{}'", output));
    std::vector<int> order;
    std::vector<int> state(static_cast<size_t>(proto.node_size()), 0); // 1: begun, 2: there
    for (int first = 0; first < proto.node_size(); ++first) {
      std::vector<std::pair<int, int>> stack{{first, 0}}; // nodes, and which input is next
      while (!stack.empty()) {
        auto &[node, next] = stack.back();
        if (state[node] == 2) {
          stack.pop_back();
          continue;
        }
        state[node] = 1;
        if (next == proto.node(node).input_size()) {
          state[node] = 2;
          order.push_back(node);
          stack.pop_back();
          continue;
        }
        const auto found = makers.find(proto.node(node).input(next++));
        if (found == makers.end() || state[found->second] == 2)
          continue;
        if (state[found->second] == 1)
          return llvm::createStringError(
              fmt::format("the nodes that make '{}' need each other", found->first));
        stack.emplace_back(found->second, 0);
      }
    }
    return order;
  }

  /// A node, or what the function is made of that it calls. `prefix` tells names of functions'
  /// bodies apart.
  llvm::Error addNode(Scope &scope, onnx::NodeProto &proto, int number, const std::string &prefix,
                      int depth) {
    if (++nodes_ > kMostNodes)
      return llvm::createStringError(
          fmt::format("more than {} nodes, functions expanded", kMostNodes));
    const std::string domain = domainOf(proto.domain());
    if (const auto function = functions_.find({domain, proto.op_type()});
        function != functions_.end())
      return expand(scope, proto, *function->second, prefix, depth);
    Node node;
    node.op = proto.op_type();
    node.domain = domain;
    const auto version = scope.opsets.find(domain);
    node.version = version == scope.opsets.end() ? 1 : static_cast<int>(version->second);
    node.proto = std::make_shared<onnx::NodeProto>(proto);
    node.number = number;
    const int index = static_cast<int>(scope.graph.nodes.size());
    for (const std::string &name : proto.input()) {
      node.inputs.push_back(name.empty() ? -1 : add(scope, name));
      if (!name.empty())
        scope.graph.values[node.inputs.back()].users.push_back(index);
    }
    for (const std::string &name : proto.output()) {
      node.outputs.push_back(name.empty() ? -1 : add(scope, name));
      if (!name.empty())
        scope.graph.values[node.outputs.back()].producer = index;
    }
    node.name = !proto.name().empty() ? prefix + proto.name()
                : node.output(0) >= 0 ? scope.graph.values[node.output(0)].name
                                      : node.op;
    infer(scope.graph, node);
    scope.graph.nodes.push_back(std::move(node));
    for (int i = 0; i < proto.attribute_size(); ++i) {
      onnx::AttributeProto &attribute = *proto.mutable_attribute(i);
      const std::string path =
          fmt::format("{} of {}", attribute.name(), scope.graph.nodes[index].name);
      if (attribute.has_g())
        if (llvm::Error error =
                addGraph(*attribute.mutable_g(), path, scope.opsets, &scope, number < 0))
          return error;
      for (int k = 0; k < attribute.graphs_size(); ++k)
        if (llvm::Error error =
                addGraph(*attribute.mutable_graphs(k), path, scope.opsets, &scope, number < 0))
          return error;
    }
    return llvm::Error::success();
  }

  llvm::Error expand(Scope &scope, const onnx::NodeProto &call, const onnx::FunctionProto &function,
                     const std::string &prefix, int depth) {
    if (depth > 16)
      return llvm::createStringError(
          fmt::format("the function '{}' calls itself", function.name()));
    const Opsets opsets = opsetsOf(function.opset_import());
    const std::string own =
        fmt::format("{}{}/", prefix, call.name().empty() ? function.name() : call.name());
    std::map<std::string, std::string> names; // of the function, in the graph
    for (int i = 0; i < function.input_size(); ++i)
      names[function.input(i)] = i < call.input_size() ? call.input(i) : "";
    for (int i = 0; i < function.output_size(); ++i)
      if (i < call.output_size() && !call.output(i).empty())
        names[function.output(i)] = call.output(i);
    auto nameOf = [&](const std::string &name) {
      if (name.empty())
        return name;
      const auto found = names.find(name);
      return found != names.end() ? found->second : names.emplace(name, own + name).first->second;
    };
    Scope inner{scope.graph, {}, opsets, scope.outer};
    inner.names.swap(scope.names);
    llvm::Error failed = llvm::Error::success();
    for (const onnx::NodeProto &body : function.node()) {
      // Bodies within it are graphs, which keep a pointer to it.
      model_.expanded.push_back(std::make_shared<onnx::NodeProto>(body));
      onnx::NodeProto &node = *model_.expanded.back();
      for (std::string &name : *node.mutable_input())
        name = nameOf(name);
      for (std::string &name : *node.mutable_output())
        name = nameOf(name);
      node.clear_attribute();
      for (const onnx::AttributeProto &attribute : body.attribute()) {
        if (attribute.ref_attr_name().empty()) {
          *node.add_attribute() = attribute;
          continue;
        }
        for (const onnx::AttributeProto &given : call.attribute())
          if (given.name() == attribute.ref_attr_name()) {
            onnx::AttributeProto &made = *node.add_attribute();
            made = given;
            made.set_name(attribute.name());
          }
      }
      if (llvm::Error error = addNode(inner, node, -1, own, depth + 1)) {
        llvm::consumeError(std::move(failed));
        failed = std::move(error);
        break;
      }
    }
    inner.names.swap(scope.names);
    return failed;
  }

  static constexpr size_t kMostNodes = 1000000;

  Model &model_;
  const Functions &functions_;
  size_t nodes_ = 0;
};

} // namespace

llvm::Expected<Model> makeModel(std::shared_ptr<onnx::ModelProto> proto, const std::string &path) {
  auto wrong = [&](const std::string &text) {
    return llvm::createStringError(fmt::format("{}: error: {}", path, text));
  };
  if (!proto->has_graph() || proto->graph().node_size() + proto->graph().output_size() == 0)
    return wrong("expected an ONNX model, found no graph with nodes in it");
  Model model;
  model.proto = std::move(proto);
  const Opsets opsets = opsetsOf(model.proto->opset_import());
  model.opset = opsets.contains("") ? opsets.at("") : 1;
  Functions functions;
  for (const onnx::FunctionProto &function : model.proto->functions())
    functions[{domainOf(function.domain()), function.name()}] = &function;
  if (llvm::Error error = Builder(model, functions).run())
    return wrong(llvm::toString(std::move(error)));
  // The model's own graph is made last, for bodies come before their nodes end.
  std::rotate(model.graphs.begin(), model.graphs.end() - 1, model.graphs.end());
  return model;
}

llvm::Expected<Model> readModel(const std::string &path) {
  auto wrong = [&](const std::string &text) {
    return llvm::createStringError(fmt::format("{}: error: {}", path, text));
  };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0)
    return wrong(fmt::format("cannot be read: {}", std::strerror(errno)));
  google::protobuf::io::FileInputStream stream(file);
  stream.SetCloseOnDelete(true);
  google::protobuf::io::CodedInputStream coded(&stream);
  coded.SetTotalBytesLimit(INT_MAX);
  auto proto = std::make_shared<onnx::ModelProto>();
  const bool isModel = proto->ParseFromCodedStream(&coded);
  if (stream.GetErrno() != 0)
    return wrong(fmt::format("cannot be read: {}", std::strerror(stream.GetErrno())));
  if (!isModel)
    return wrong("expected an ONNX model, found something else than its protobuf");
  return makeModel(std::move(proto), path);
}

} // namespace normforge::model
