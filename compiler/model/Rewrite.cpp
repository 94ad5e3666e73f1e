#include "compiler/model/Rewrite.h"

#include "compiler/model/Proto.h"
#include "compiler/operator/Operator.h"
#include "compiler/spec/Parser.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringMap.h"

#include <fmt/format.h>

#include <climits>
#include <map>
#include <set>

namespace normforge::model {

namespace {

constexpr const char *kDomain = "normforge";

/// The value of the graph that a kernel's argument is; -1: none.
int valueOf(const Norm &norm, const Spec &spec, const Operand &operand) {
  if (operand.name == "x")
    return norm.x;
  if (operand.name == "gamma")
    return norm.gamma;
  if (operand.name == "beta")
    return norm.beta;
  if (operand.name == "moving_mean")
    return norm.mean;
  if (operand.name == "moving_variance")
    return norm.variance;
  if (operand.written)
    return operand.name == "y" ? norm.y : operand.name == "sum" ? norm.sum : -1;
  // Operands of steps, in their order.
  for (auto [own, steps] : {std::pair(&norm.prologue, &spec.prologue), {&norm.fuse, &spec.fuse}})
    for (size_t i = 0; i < own->size() && i < steps->size(); ++i)
      for (const StepOperand &of : (*steps)[i].operands)
        if (of.name == operand.name)
          return (*own)[i].operand;
  return -1;
}

class Rewriter {
public:
  explicit Rewriter(Model &model) : model_(model) {}

  llvm::Error add(const Layer &layer, Rewritten &result) {
    auto spec = parseSpec("name: " + layer.name + "\n" + layer.text, "spec");
    if (!spec)
      return spec.takeError();
    const Operator op = makeOperator(*spec, spec->phases.front());
    for (const Place &place : layer.places) {
      std::string why = replace(place, layer, *spec, op);
      if (why.empty())
        ++result.nodes;
      else
        result.kept.push_back({place.graph, place.norm.nodes.back(), std::move(why)});
    }
    return llvm::Error::success();
  }

  /// Puts the new nodes in and takes out what nobody takes any more.
  void finish() {
    for (auto &[graph, changes] : changes_)
      apply(model_.graphs[graph], changes);
    if (changes_.empty())
      return;
    for (const auto &import : model_.proto->opset_import())
      if (import.domain() == kDomain)
        return;
    auto *import = model_.proto->add_opset_import();
    import->set_domain(kDomain);
    import->set_version(1);
  }

private:
  struct Changes {
    std::map<int, onnx::NodeProto> added; ///< behind nodes, by their numbers in the protobuf
    std::set<int> candidates;             ///< numbers of nodes that may be of no use now
  };

  /// ONNX Runtime turns nodes of half precision into f32 where an operator takes that, too.
  static std::string operatorName(int type) {
    return type == kFloat ? "Normalization" : fmt::format("Normalization_{}", typeName(type));
  }

  /// One that no node and no value of the model has.
  std::string newName(const std::string &wanted) {
    if (names_.empty())
      for (const Graph &graph : model_.graphs) {
        for (const onnx::NodeProto &node : graph.proto->node())
          names_.insert(node.name());
        for (const Value &value : graph.values)
          names_.insert(value.name);
      }
    std::string name = wanted;
    for (int i = 2; !names_.insert(name).second; ++i)
      name = fmt::format("{}_{}", wanted, i);
    return name;
  }

  std::string replace(const Place &place, const Layer &layer, const Spec &spec,
                      const Operator &op) {
    const Graph &graph = model_.graphs[place.graph];
    const Norm &norm = place.norm;
    if (!norm.stays.empty())
      return norm.stays;
    if (graph.isOfFunction)
      return "it is within a function of the model";
    // Behind the last of its nodes; where its sum is taken, too, behind the first, for steps take
    // nothing else then.
    int at = -1;
    for (int node : norm.nodes) {
      const int number = graph.nodes[node].number;
      if (number < 0)
        return "it is within a function of the model";
      at = at < 0 ? number : norm.sum < 0 ? std::max(at, number) : std::min(at, number);
    }
    onnx::NodeProto node;
    node.set_domain(kDomain);
    node.set_op_type(operatorName(graph.values[norm.x].type));
    node.set_name(newName(graph.nodes[norm.nodes.back()].name + "/normforge"));
    for (const Operand &operand : op.operands) {
      const int value = valueOf(norm, spec, operand);
      if (value < 0)
        return fmt::format("its kernel takes '{}', which the model has not", operand.name);
      (operand.written ? node.add_output(graph.values[value].name)
                       : node.add_input(graph.values[value].name));
    }
    if (!op.scalars.empty())
      return "its kernel takes numbers";
    auto word = [&](const char *name, const std::string &text) {
      auto *attribute = node.add_attribute();
      attribute->set_name(name);
      attribute->set_type(onnx::AttributeProto::STRING);
      attribute->set_s(text);
    };
    word("spec", "name: " + layer.name + "\n" + layer.text);
    word("phase", std::string(toString(op.phase)));
    Changes &changes = changes_[place.graph];
    changes.added.emplace(at, std::move(node));
    for (int taken : norm.nodes)
      changes.candidates.insert(graph.nodes[taken].number);
    return {};
  }

  static void apply(Graph &graph, Changes &changes) {
    onnx::GraphProto &proto = *graph.proto;
    llvm::StringMap<int> users; // of values by names
    std::set<std::string> made;
    for (const auto &info : proto.output())
      ++users[info.name()];
    for (const Value &value : graph.values)
      if (value.isUsedWithin)
        ++users[value.name];
    for (const onnx::NodeProto &node : proto.node())
      for (const std::string &input : node.input())
        ++users[input];
    for (const auto &[behind, node] : changes.added) {
      for (const std::string &input : node.input())
        ++users[input];
      made.insert(node.output().begin(), node.output().end());
    }
    // Nodes whose values new nodes make go; then those that only they took, from the end on.
    std::set<int> gone;
    const std::vector<int> lastFirst(changes.candidates.rbegin(), changes.candidates.rend());
    for (bool isMore = true; isMore;) {
      isMore = false;
      for (int number : lastFirst) {
        const onnx::NodeProto &node = proto.node(number);
        const bool isUseless = llvm::all_of(node.output(), [&](const std::string &output) {
          return output.empty() || made.contains(output) || users[output] == 0;
        });
        if (!isUseless || !gone.insert(number).second)
          continue;
        for (const std::string &input : node.input())
          --users[input];
        isMore = true;
      }
    }
    google::protobuf::RepeatedPtrField<onnx::NodeProto> nodes;
    std::set<std::string> wasTaken;
    for (int i = 0; i < proto.node_size(); ++i) {
      if (gone.contains(i))
        wasTaken.insert(proto.node(i).input().begin(), proto.node(i).input().end());
      else
        nodes.Add()->Swap(proto.mutable_node(i));
      if (const auto added = changes.added.find(i); added != changes.added.end())
        nodes.Add()->Swap(&added->second);
    }
    proto.mutable_node()->Swap(&nodes);
    // Weights that only they took.
    google::protobuf::RepeatedPtrField<onnx::TensorProto> weights;
    std::set<std::string> inputs;
    for (const auto &info : proto.input())
      inputs.insert(info.name());
    for (int i = 0; i < proto.initializer_size(); ++i) {
      const std::string &name = proto.initializer(i).name();
      if (users[name] > 0 || !wasTaken.contains(name) || inputs.contains(name))
        weights.Add()->Swap(proto.mutable_initializer(i));
    }
    proto.mutable_initializer()->Swap(&weights);
  }

  Model &model_;
  std::map<size_t, Changes> changes_; ///< by graphs
  std::set<std::string> names_;
};

} // namespace

llvm::Expected<Rewritten> rewrite(Model &model, const Imported &imported) {
  Rewritten result;
  Rewriter rewriter(model);
  for (const Layer &layer : imported.layers)
    if (llvm::Error error = rewriter.add(layer, result))
      return error;
  rewriter.finish();
  if (model.proto->ByteSizeLong() > INT_MAX)
    return llvm::createStringError("the model is larger than 2 GiB; expected one whose weights lie "
                                   "in a file of their own (external data)");
  model.proto->SerializeToString(&result.bytes);
  return result;
}

std::vector<std::string> externalFiles(const Model &model) {
  std::set<std::string> files;
  auto add = [&](const onnx::TensorProto &tensor) {
    if (tensor.data_location() != onnx::TensorProto::EXTERNAL)
      return;
    for (const auto &entry : tensor.external_data())
      if (entry.key() == "location")
        files.insert(entry.value());
  };
  for (const Graph &graph : model.graphs) {
    for (const onnx::TensorProto &tensor : graph.proto->initializer())
      add(tensor);
    for (const onnx::NodeProto &node : graph.proto->node())
      for (const onnx::AttributeProto &attribute : node.attribute())
        if (attribute.has_t())
          add(attribute.t());
  }
  return {files.begin(), files.end()};
}

} // namespace normforge::model
