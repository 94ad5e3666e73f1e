// Norms of ONNX models: which nodes are one, which are not and why, and specs of them. Models of
// ONNX's own test data give what ONNX says that they give.
#include "compiler/model/Proto.h"
#include "compiler/model/Rewrite.h"
#include "compiler/oracle/Oracle.h"
#include "compiler/records/Choose.h"
#include "compiler/session/Session.h"
#include "compiler/spec/Parser.h"
#include "runtime/artifact/Element.h"
#include "runtime/measure/KernelCall.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

using namespace normforge;
using namespace normforge::model;
namespace fs = std::filesystem;

namespace {

constexpr const char *kTestData = "/usr/share/libonnx-testdata/data";

/// A model that is written down node by node.
class Written {
public:
  explicit Written(int64_t opset = 17) : proto_(std::make_shared<onnx::ModelProto>()) {
    proto_->set_ir_version(8);
    auto *import = proto_->add_opset_import();
    import->set_version(opset);
    auto *microsoft = proto_->add_opset_import();
    microsoft->set_domain("com.microsoft");
    microsoft->set_version(1);
    graph_ = proto_->mutable_graph();
  }

  /// Sizes are numbers or names.
  Written &input(const std::string &name, const std::vector<std::string> &shape,
                 int type = kFloat) {
    auto *info = graph_->add_input();
    info->set_name(name);
    auto *tensor = info->mutable_type()->mutable_tensor_type();
    tensor->set_elem_type(type);
    tensor->mutable_shape();
    for (const std::string &size : shape) {
      auto *dim = tensor->mutable_shape()->add_dim();
      if (std::isdigit(static_cast<unsigned char>(size[0])))
        dim->set_dim_value(std::stoll(size));
      else
        dim->set_dim_param(size);
    }
    return *this;
  }
  Written &constant(const std::string &name, const std::vector<int64_t> &shape,
                    const std::vector<double> &values, int type = kFloat) {
    auto *tensor = graph_->add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(type);
    for (int64_t size : shape)
      tensor->add_dims(size);
    for (double value : values)
      type == kInt64   ? tensor->add_int64_data(static_cast<int64_t>(value))
      : type == kFloat ? tensor->add_float_data(static_cast<float>(value))
                       : tensor->add_double_data(value);
    return *this;
  }
  Written &parameter(const std::string &name, const std::vector<int64_t> &shape) {
    int64_t count = 1;
    for (int64_t size : shape)
      count *= size;
    return constant(name, shape, std::vector<double>(static_cast<size_t>(count), 0.5));
  }
  onnx::NodeProto &node(const std::string &op, const std::vector<std::string> &inputs,
                        const std::vector<std::string> &outputs) {
    auto *node = graph_->add_node();
    node->set_op_type(op);
    node->set_name(op + "_" + outputs[0]);
    for (const std::string &name : inputs)
      node->add_input(name);
    for (const std::string &name : outputs)
      node->add_output(name);
    return *node;
  }
  Written &add(const std::string &op, const std::vector<std::string> &inputs,
               const std::string &output) {
    node(op, inputs, {output});
    return *this;
  }
  Written &output(const std::string &name) {
    graph_->add_output()->set_name(name);
    return *this;
  }
  std::shared_ptr<onnx::ModelProto> proto() const { return proto_; }

private:
  std::shared_ptr<onnx::ModelProto> proto_;
  onnx::GraphProto *graph_;
};

void set(onnx::NodeProto &node, const char *name, int64_t value) {
  auto *attribute = node.add_attribute();
  attribute->set_name(name);
  attribute->set_type(onnx::AttributeProto::INT);
  attribute->set_i(value);
}
void set(onnx::NodeProto &node, const char *name, float value) {
  auto *attribute = node.add_attribute();
  attribute->set_name(name);
  attribute->set_type(onnx::AttributeProto::FLOAT);
  attribute->set_f(value);
}
void set(onnx::NodeProto &node, const char *name, const std::vector<int64_t> &values) {
  auto *attribute = node.add_attribute();
  attribute->set_name(name);
  attribute->set_type(onnx::AttributeProto::INTS);
  for (int64_t value : values)
    attribute->add_ints(value);
}

Model modelOf(const Written &written) {
  auto model = makeModel(written.proto(), "m.onnx");
  REQUIRE_MESSAGE(bool(model), llvm::toString(model.takeError()));
  return std::move(*model);
}

/// "layer norm of (2, 5, 8) f32, then relu", or why it was left.
std::string toldOf(const Written &written) {
  const Model model = modelOf(written);
  const Imported imported = importNorms(model);
  std::vector<std::string> told;
  for (const Layer &layer : imported.layers)
    told.push_back(fmt::format("{} x {}", layer.places.size(), layer.what));
  for (const auto &refused : imported.refused)
    told.push_back(refused.left.why);
  return fmt::format("{}", fmt::join(told, "; "));
}

/// The variations of a layer norm that is made of its parts by hand.
struct Form {
  std::string divide = "Div"; ///< or Reciprocal, One, Power
  double exponent = 2;
  int64_t keepdims = 1;
  bool isReversed = false, hasMean = true, hasTwoSubs = false, timesItself = false;
  std::vector<int64_t> axes{-1};
  std::vector<int64_t> gamma{8}, beta{8};
};

/// x of (2, 5, 8); y is its norm.
Written byHand(const Form &form) {
  Written w;
  w.input("x", {"2", "5", "8"}).constant("two", {}, {form.exponent}).constant("eps", {}, {1e-6});
  w.constant("one", {}, {1}).constant("half", {}, {form.divide == "Power" ? -0.5 : 0.5});
  std::string d = "x";
  if (form.hasMean) {
    auto &mean = w.node("ReduceMean", {"x"}, {"mean"});
    set(mean, "axes", form.axes);
    set(mean, "keepdims", form.keepdims);
    w.add("Sub",
          form.isReversed ? std::vector<std::string>{"mean", "x"}
                          : std::vector<std::string>{"x", "mean"},
          "d");
    d = "d";
    if (form.hasTwoSubs)
      w.add("Sub", {"x", "mean"}, "d2");
  }
  form.timesItself ? w.add("Mul", {d, d}, "squares") : w.add("Pow", {d, "two"}, "squares");
  auto &variance = w.node("ReduceMean", {"squares"}, {"variance"});
  set(variance, "axes", form.axes);
  set(variance, "keepdims", form.keepdims);
  w.add("Add", {"variance", "eps"}, "v");
  const std::string n = form.hasTwoSubs ? "d2" : d;
  if (form.divide == "Power") {
    w.add("Pow", {"v", "half"}, "inverse").add("Mul", {n, "inverse"}, "n");
  } else {
    w.add("Sqrt", {"v"}, "root");
    if (form.divide == "Div")
      w.add("Div", {n, "root"}, "n");
    else if (form.divide == "Reciprocal")
      w.add("Reciprocal", {"root"}, "inverse").add("Mul", {"inverse", n}, "n");
    else
      w.add("Div", {"one", "root"}, "inverse").add("Mul", {n, "inverse"}, "n");
  }
  w.parameter("gamma", form.gamma).parameter("beta", form.beta);
  w.add("Mul", {"gamma", "n"}, "scaled");
  return form.hasMean ? w.add("Add", {"scaled", "beta"}, "y") : w.add("Identity", {"scaled"}, "y");
}

std::string slurp(const fs::path &path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

} // namespace

TEST_CASE("layer norm and RMS norm by hand, in their forms") {
  const std::string layer = "1 x layer norm of (2, 5, 8) f32",
                    rms = "1 x RMS norm of (2, 5, 8) f32";
  for (const char *divide : {"Div", "Reciprocal", "One", "Power"})
    for (bool hasMean : {true, false}) {
      CAPTURE(divide);
      CHECK(toldOf(byHand({.divide = divide, .hasMean = hasMean}).output("y")) ==
            (hasMean ? layer : rms));
    }
  CHECK(toldOf(byHand({.timesItself = true}).output("y")) == layer);
  CHECK(toldOf(byHand({.hasTwoSubs = true}).output("y")) == layer);
  CHECK(toldOf(byHand({.axes = {1, 2}, .gamma = {5, 8}, .beta = {5, 8}}).output("y")) == layer);
  // Channels second, parameters of (C, 1).
  CHECK(toldOf(byHand({.axes = {1}, .gamma = {5, 1}, .beta = {5, 1}}).output("y")) == layer);
  const Model model = modelOf(byHand({.axes = {1}, .gamma = {5, 1}, .beta = {5, 1}}).output("y"));
  CHECK(importNorms(model).layers[0].text == "semantics: onnx-15\n"
                                             "input: {shape: [2, 5, 8], layout: ncl, dtype: f32}\n"
                                             "mode: layer\naxis: [1]\nepsilon: 1e-06\n"
                                             "parameter_dtype: f32\nphases: [inference]\n");
}

TEST_CASE("what is nearly a norm is none, and the reason is told") {
  CHECK(toldOf(byHand({.exponent = 3}).output("y")) == "");
  CHECK(toldOf(byHand({.keepdims = 0}).output("y")) == "a mean drops its axes (keepdims=0)");
  // mean - x over the root of its squares' mean is a norm, but another one.
  CHECK(toldOf(byHand({.isReversed = true}).output("y")) == "1 x RMS norm of (2, 5, 8) f32");
  // One number for all, and one for each row: no parameters of this norm, but steps behind it.
  CHECK(toldOf(byHand({.gamma = {5, 1}}).output("y")) ==
        "1 x layer norm of (2, 5, 8) f32, then mul, add");
  {
    Written w; // epsilon beside the root
    w.input("x", {"2", "8"}).constant("two", {}, {2}).constant("eps", {}, {1e-6});
    set(w.node("ReduceMean", {"x"}, {"mean"}), "axes", std::vector<int64_t>{-1});
    w.add("Sub", {"x", "mean"}, "d").add("Pow", {"d", "two"}, "squares");
    set(w.node("ReduceMean", {"squares"}, {"variance"}), "axes", std::vector<int64_t>{-1});
    w.add("Sqrt", {"variance"}, "root")
        .add("Add", {"root", "eps"}, "s")
        .add("Div", {"d", "s"}, "y");
    CHECK(toldOf(w.output("y")) == "no epsilon is within the root of its variance");
  }
  {
    Written w(18); // axes that are computed
    w.input("x", {"2", "8"}).input("axes", {"1"}, kInt64).constant("two", {}, {2});
    w.constant("eps", {}, {1e-6}).add("Pow", {"x", "two"}, "squares");
    w.add("ReduceMean", {"squares", "axes"}, "variance").add("Add", {"variance", "eps"}, "v");
    w.add("Sqrt", {"v"}, "root").add("Div", {"x", "root"}, "y");
    CHECK(toldOf(w.output("y")) == "the axes of a mean are not constant, or all of them");
  }
  {
    Written w(6); // statistics of each place
    w.input("x", {"2", "3", "4"});
    for (const char *name : {"s", "b", "m", "v"})
      w.parameter(name, {3, 4});
    auto &node = w.node("BatchNormalization", {"x", "s", "b", "m", "v"}, {"y"});
    set(node, "spatial", int64_t(0));
    CHECK(toldOf(w.output("y")) == "spatial=0: statistics of each place, which no mode has");
  }
  {
    Written w; // a scale that broadcasts over rows
    w.input("x", {"2", "5", "8"}).parameter("s", {1});
    w.add("LayerNormalization", {"x", "s"}, "y");
    CHECK(toldOf(w.output("y")) ==
          "a scale of shape (1) that broadcasts over x of shape (2, 5, 8)");
  }
  {
    Written w; // x in half precision, y in f32
    w.input("x", {"2", "8"}, kFloat16).parameter("s", {8});
    w.add("RMSNormalization", {"x", "s"}, "y");
    w.proto()->mutable_graph()->add_value_info()->set_name("y");
    w.proto()
        ->mutable_graph()
        ->mutable_value_info(0)
        ->mutable_type()
        ->mutable_tensor_type()
        ->set_elem_type(kFloat);
    CHECK(toldOf(w.output("y")) == "casts between: y has another type than x");
  }
  Written unknown; // no rank
  unknown.proto()->mutable_graph()->add_input()->set_name("x");
  unknown.parameter("s", {8}).add("LayerNormalization", {"x", "s"}, "y").output("y");
  CHECK(toldOf(unknown) == "the rank of x is not known");
}

TEST_CASE("what follows a norm is taken where only the norm feeds it") {
  auto image = [](auto follow) {
    Written w;
    w.input("x", {"N", "4", "6", "7"}).input("z", {"N", "4", "6", "7"});
    for (const char *name : {"s", "b", "m", "v"})
      w.parameter(name, {4});
    w.add("BatchNormalization", {"x", "s", "b", "m", "v"}, "n");
    follow(w);
    return toldOf(w);
  };
  const std::string norm = "1 x batch norm of (N, 4, 6, 7) f32";
  CHECK(image([](Written &w) { w.add("Relu", {"n"}, "y").output("y"); }) == norm + ", then relu");
  CHECK(image([](Written &w) {
          w.add("Add", {"z", "n"}, "a").add("Relu", {"a"}, "y").output("y");
        }) == norm + ", then add, relu");
  CHECK(image([](Written &w) {
          w.add("Sigmoid", {"n"}, "g").add("Mul", {"n", "g"}, "y").output("y");
        }) == norm + ", then silu");
  CHECK(image([](Written &w) {
          w.constant("c", {}, {-0.5}).parameter("p", {4, 1, 1});
          w.add("Mul", {"n", "p"}, "a").add("Add", {"a", "c"}, "y").output("y");
        }) == norm + ", then mul, expr");
  CHECK(image([](Written &w) {
          w.constant("low", {}, {0}).constant("high", {}, {6});
          w.add("Clip", {"n", "low", "high"}, "y").output("y");
        }) == norm + ", then relu6");
  CHECK(image([](Written &w) {
          w.constant("root", {}, {1.4142135}).constant("one", {}, {1}).constant("half", {}, {0.5});
          w.add("Div", {"n", "root"}, "a").add("Erf", {"a"}, "e").add("Add", {"e", "one"}, "sum");
          w.add("Mul", {"n", "sum"}, "t").add("Mul", {"t", "half"}, "y").output("y");
        }) == norm + ", then gelu");
  CHECK(image([](Written &w) {
          w.constant("c", {}, {-0.5}).constant("d", {1}, {3});
          w.add("Sub", {"n", "c"}, "a").add("Div", {"d", "a"}, "y").output("y");
        }) == norm + ", then expr, expr");
  // Not taken.
  CHECK(image([](Written &w) {
          w.add("Sub", {"n", "z"}, "y").output("y");
        }) == norm + "; " + "a Sub of no constant number is no step that kernels have");
  CHECK(image([](Written &w) {
          w.constant("c", {}, {INFINITY}).add("Mul", {"n", "c"}, "y").output("y");
        }) == norm + "; " + "a Mul of inf");
  CHECK(image([](Written &w) {
          w.constant("low", {}, {1}).constant("high", {}, {-1});
          w.add("Clip", {"n", "low", "high"}, "y").output("y");
        }) == norm + "; " + "a Clip from 1 to -1, which is below");
  CHECK(image([](Written &w) { w.add("Relu", {"n"}, "y").output("y").output("n"); }) ==
        norm + "; " + "the norm's result is an output of the graph, too");
  CHECK(image([](Written &w) {
          w.add("Relu", {"n"}, "y").add("Tanh", {"n"}, "t").output("y").output("t");
        }) == norm + "; " + "the norm's result is used 2 times");
  CHECK(image([](Written &w) {
          w.input("wide", {"3", "N", "4", "6", "7"}).add("Add", {"n", "wide"}, "y").output("y");
        }) == norm + "; " + "an operand of shape (3, N, 4, 6, 7) beside the norm's (N, 4, 6, 7)");
  CHECK(image([](Written &w) {
          w.add("Add", {"n", "n"}, "y").output("y");
        }) == norm + "; " + "the norm's result is used 2 times");
  CHECK(image([](Written &w) {
          set(w.node("HardSigmoid", {"n"}, {"y"}), "alpha", 0.2f);
          w.output("y");
        }) ==
        norm + "; " + "a HardSigmoid of alpha 0.2 and beta 0.5; steps have that of 1/6 and 0.5");
  // An addition of two norms is one's alone.
  Written two;
  two.input("x", {"N", "4", "6", "7"});
  for (const char *name : {"s", "b", "m", "v"})
    two.parameter(name, {4});
  two.add("BatchNormalization", {"x", "s", "b", "m", "v"}, "n1");
  two.add("BatchNormalization", {"x", "s", "b", "m", "v"}, "n2");
  two.add("Add", {"n1", "n2"}, "y").output("y");
  CHECK(toldOf(two) == norm + "; " + norm + ", then add");
}

TEST_CASE("groups by reshapes, and norms in bodies and functions of a model") {
  Written groups;
  groups.input("x", {"N", "8", "5", "6"}).constant("in", {3}, {0, 2, -1}, kInt64);
  groups.constant("ones", {2}, {1, 1}).constant("zeros", {2}, {0, 0});
  groups.parameter("g", {8, 1, 1}).parameter("b", {8, 1, 1}).add("Reshape", {"x", "in"}, "r");
  groups.add("InstanceNormalization", {"r", "ones", "zeros"}, "n").add("Shape", {"x"}, "shape");
  groups.add("Reshape", {"n", "shape"}, "back").add("Mul", {"back", "g"}, "scaled");
  groups.add("Add", {"scaled", "b"}, "y").output("y");
  CHECK(toldOf(groups) == "1 x group norm of (N, 8, 5, 6) f32");

  // One in a branch, of a value outside.
  Written branches;
  branches.input("x", {"2", "8"}).input("c", {}, onnx::TensorProto::BOOL).parameter("s", {8});
  auto &choose = branches.node("If", {"c"}, {"y"});
  auto *attribute = choose.add_attribute();
  attribute->set_name("then_branch");
  attribute->set_type(onnx::AttributeProto::GRAPH);
  auto *body = attribute->mutable_g()->add_node();
  body->set_op_type("LayerNormalization");
  for (const char *name : {"x", "s"})
    body->add_input(name);
  body->add_output("inner");
  attribute->mutable_g()->add_output()->set_name("inner");
  CHECK(toldOf(branches.output("y")) == "1 x layer norm of (2, 8) f32");

  // A function whose epsilon is the call's.
  Written functions;
  functions.input("x", {"2", "8"}).parameter("s", {8});
  auto *function = functions.proto()->add_functions();
  function->set_domain("mine");
  function->set_name("Norm");
  function->add_input("a");
  function->add_input("w");
  function->add_output("b");
  function->add_opset_import()->set_version(17);
  auto *inner = function->add_node();
  inner->set_op_type("LayerNormalization");
  inner->add_input("a");
  inner->add_input("w");
  inner->add_output("b");
  auto *reference = inner->add_attribute();
  reference->set_name("epsilon");
  reference->set_ref_attr_name("eps");
  auto &call = functions.node("Norm", {"x", "s"}, {"y"});
  call.set_domain("mine");
  set(call, "eps", 0.25f);
  const Model model = modelOf(functions.output("y"));
  const Imported imported = importNorms(model);
  REQUIRE(imported.layers.size() == 1);
  CHECK(imported.layers[0].text.find("epsilon: 0.25\n") != std::string::npos);
}

TEST_CASE("norms that only look like one are none: of other axes, ranks, digits and numbers") {
  const std::string rms = "1 x RMS norm of (4, 4) f32";
  auto rows = [](int64_t ir, auto change) {
    Written w;
    w.proto()->set_ir_version(ir);
    w.input("x", {"4", "4"}).constant("two", {}, {2}).add("Pow", {"x", "two"}, "squares");
    change(w);
    return toldOf(w.output("y"));
  };
  auto mean = [](Written &w, int64_t keepdims) {
    auto &node = w.node("ReduceMean", {"squares"}, {"mean"});
    set(node, "axes", std::vector<int64_t>{-1});
    set(node, "keepdims", keepdims);
  };
  auto end = [](Written &w, const std::string &variance, const std::string &epsilon = "eps") {
    w.add("Add", {variance, epsilon}, "v").add("Sqrt", {"v"}, "root");
    w.add("Div", {"x", "root"}, "y");
  };
  CHECK(rows(8, [&](Written &w) {
          w.constant("eps", {}, {1e-5});
          mean(w, 1);
          end(w, "mean");
        }) == rms);
  // A mean that is put back is one for each row; one that is expanded over rows is not.
  CHECK(rows(8, [&](Written &w) {
          w.constant("eps", {}, {1e-5}).constant("to", {2}, {4, 1}, kInt64);
          mean(w, 0);
          w.add("Reshape", {"mean", "to"}, "back");
          end(w, "back");
        }) == rms);
  for (const char *op : {"Expand", "Reshape"})
    CHECK(rows(8, [&](Written &w) {
            w.constant("eps", {}, {1e-5});
            w.constant("to", {2}, {op[0] == 'E' ? 4.0 : 1.0, 4}, kInt64);
            mean(w, 0);
            w.add(op, {"mean", "to"}, "back");
            end(w, "back");
          }) == "a mean is reshaped, and its axes are not where they were");
  // An epsilon of more axes than x has makes a result of as many.
  CHECK(rows(8, [&](Written &w) {
          w.constant("eps", {1, 1, 1, 1}, {1e-5});
          mean(w, 1);
          end(w, "mean");
        }) == "y of shape (1, 1, 4, 4) beside x of shape (4, 4)");
  // Casts lose digits on their way down, and numbers become others.
  CHECK(rows(8, [&](Written &w) {
          w.constant("eps", {}, {1e-5});
          mean(w, 1);
          set(w.node("Cast", {"mean"}, {"half"}), "to", int64_t(kFloat16));
          set(w.node("Cast", {"half"}, {"back"}), "to", int64_t(kFloat));
          end(w, "back");
        }) == "");
  CHECK(rows(8, [&](Written &w) {
          w.constant("c", {}, {0.7});
          set(w.node("Cast", {"c"}, {"whole"}), "to", int64_t(kInt64));
          set(w.node("Cast", {"whole"}, {"eps"}), "to", int64_t(kFloat));
          mean(w, 1);
          end(w, "mean");
        }) == "its epsilon is 0");
  // From IR 4 on a call may replace an initializer that is an input.
  for (int64_t ir : {3, 8})
    CHECK(rows(ir, [&](Written &w) {
            w.constant("eps", {}, {1e-5}).input("eps", {});
            mean(w, 1);
            end(w, "mean");
          }) == (ir == 3 ? rms : "its epsilon is not constant"));
  // Graphs that could make the command crash or grow.
  CHECK(rows(8, [&](Written &w) {
          w.constant("eps", {}, {1e-5})
              .constant("none", {0}, {})
              .add("Add", {"eps", "none"}, "empty");
          w.constant("from", {}, {1e17}, kInt64).constant("till", {}, {1e17 + 64}, kInt64);
          w.constant("one", {}, {1}, kInt64).add("Range", {"from", "till", "one"}, "range");
          mean(w, 1);
          end(w, "mean");
        }) == rms);
}

TEST_CASE("functions whose bodies have bodies stay as they are in a rewritten model") {
  Written w;
  w.input("x", {"2", "8"}).input("c", {}, onnx::TensorProto::BOOL).parameter("s", {8});
  auto *function = w.proto()->add_functions();
  function->set_domain("mine");
  function->set_name("Choose");
  for (const char *name : {"a", "b"})
    function->add_input(name);
  function->add_output("o");
  function->add_opset_import()->set_version(17);
  auto *choose = function->add_node();
  choose->set_op_type("If");
  choose->add_input("b");
  choose->add_output("o");
  auto *attribute = choose->add_attribute();
  attribute->set_name("then_branch");
  attribute->set_type(onnx::AttributeProto::GRAPH);
  auto *body = attribute->mutable_g()->add_node();
  body->set_op_type("Relu");
  body->add_input("a");
  body->add_output("inner");
  attribute->mutable_g()->add_output()->set_name("inner");
  w.add("LayerNormalization", {"x", "s"}, "n");
  w.node("Choose", {"n", "c"}, {"y"}).set_domain("mine");
  Model model = modelOf(w.output("y"));
  auto rewritten = rewrite(model, importNorms(model));
  REQUIRE(bool(rewritten));
  CHECK(rewritten->nodes == 1);
  onnx::ModelProto proto;
  REQUIRE(proto.ParseFromString(rewritten->bytes));
  CHECK(proto.functions(0).node(0).attribute(0).g().node(0).op_type() == "Relu");
}

TEST_CASE("norms of nothing and for nobody are passed over") {
  for (const char *op : {"BatchNormalization", "LayerNormalization", "RMSNormalization",
                         "InstanceNormalization", "GroupNormalization"}) {
    Written w;
    w.input("x", {"2", "8", "4"}).parameter("s", {8});
    onnx::NodeProto &node = w.node(op, {"x", "s", "s", "s", "s"}, {"y"});
    node.clear_output();
    CHECK(toldOf(w) == "");
    node.add_output("");
    CHECK(toldOf(w) == "");
    w.node(op, {"", "s", "s", "s", "s"}, {"z"});
    CHECK(toldOf(w) == "");
  }
  Written skip;
  skip.input("x", {"2", "8"}).parameter("s", {8});
  onnx::NodeProto &node =
      skip.node("SkipLayerNormalization", {"x", "x", "s"}, {"y", "", "", "sum"});
  node.set_domain("com.microsoft");
  node.set_output(0, "");
  CHECK(toldOf(skip) == "");
}

TEST_CASE("the sum that a skip norm gives has x's shape") {
  Written w;
  w.input("x", {"N", "5", "8"}).input("z", {"N", "5", "8"}).parameter("s", {8});
  w.node("SkipLayerNormalization", {"x", "z", "s", "s"}, {"a", "", "", "sum"})
      .set_domain("com.microsoft");
  w.node("SkipSimplifiedLayerNormalization", {"sum", "a", "s"}, {"y"}).set_domain("com.microsoft");
  const Model model = modelOf(w.output("y"));
  CHECK(importNorms(model).layers.size() == 2);
}

TEST_CASE("steps that a model rounds between in half precision have a note") {
  for (int type : {kFloat, kFloat16}) {
    Written w;
    w.input("x", {"N", "8"}, type).input("s", {"8"}, type);
    w.add("LayerNormalization", {"x", "s"}, "n").add("Relu", {"n"}, "y").output("y");
    const Model model = modelOf(w);
    const Imported imported = importNorms(model);
    REQUIRE(imported.layers.size() == 1);
    CHECK(imported.layers[0].places[0].norm.notes.size() == (type == kFloat ? 0 : 1));
  }
}

TEST_CASE("equal layers are one spec, however often they stand in the model") {
  Written w;
  w.input("x", {"batch", "time", "8"}).parameter("s", {8}).parameter("t", {8});
  w.add("LayerNormalization", {"x", "s", "t"}, "a").add("LayerNormalization", {"a", "s", "t"}, "b");
  set(w.node("LayerNormalization", {"b", "s", "t"}, {"c"}), "epsilon", 1e-3f);
  const Model model = modelOf(w.output("c"));
  const Imported imported = importNorms(model);
  REQUIRE(imported.layers.size() == 2);
  CHECK(imported.layers[0].places.size() == 2);
  CHECK(imported.layers[0].name == "layer_norm_8");
  CHECK(imported.layers[1].name == "layer_norm_8_2");
  CHECK(imported.layers[0].text.find("[N, B, 8], layout: nbc") != std::string::npos);
}

TEST_CASE("a rewritten model has nodes of ours, and none that are of no use") {
  Written w = byHand({});
  w.input("z", {"2", "5", "8"}).add("Add", {"y", "z"}, "sum").add("Relu", {"sum"}, "out");
  w.add("Sqrt", {"mean"}, "other").output("out").output("other"); // the mean is wanted, too
  Model model = modelOf(w);
  const Imported imported = importNorms(model);
  auto rewritten = rewrite(model, imported);
  REQUIRE(bool(rewritten));
  CHECK(rewritten->nodes == 1);
  onnx::ModelProto proto;
  REQUIRE(proto.ParseFromString(rewritten->bytes));
  std::vector<std::string> ops;
  for (const auto &node : proto.graph().node())
    ops.push_back(node.op_type());
  CHECK(ops == std::vector<std::string>{"ReduceMean", "Normalization", "Sqrt"});
  const auto &ours = proto.graph().node(1);
  CHECK(std::vector<std::string>(ours.input().begin(), ours.input().end()) ==
        std::vector<std::string>{"x", "gamma", "beta", "z"});
  CHECK(ours.output(0) == "out");
  CHECK(bool(parseSpec(ours.attribute(0).s(), "spec")));
  for (const auto &weight : proto.graph().initializer())
    CHECK((weight.name() == "gamma" || weight.name() == "beta" || weight.name() == "one" ||
           weight.name() == "half"));
}

TEST_CASE("files that are no models are refused") {
  const fs::path folder = fs::temp_directory_path() / fmt::format("normforge-model-{}", getpid());
  fs::create_directories(folder);
  auto refused = [&](const std::string &bytes, const std::string &why) {
    const std::string path = folder / "m.onnx";
    std::ofstream(path, std::ios::binary) << bytes;
    auto model = readModel(path);
    REQUIRE(!model);
    CHECK(llvm::toString(model.takeError()) == path + ": error: " + why);
  };
  refused("", "expected an ONNX model, found no graph with nodes in it");
  refused("no model at all\n", "expected an ONNX model, found something else than its protobuf");
  Written cycle;
  cycle.add("Relu", {"b"}, "a").add("Relu", {"a"}, "b").output("a");
  refused(cycle.proto()->SerializeAsString(), "the nodes that make 'a' need each other");
  Written twice;
  twice.add("Relu", {"x"}, "a").add("Tanh", {"x"}, "a").output("a");
  refused(twice.proto()->SerializeAsString(), "two nodes make the value 'a'");
  // Cut anywhere, or with a byte changed, a model is refused or read, and nothing else happens.
  const std::string whole = byHand({}).output("y").proto()->SerializeAsString();
  for (size_t i = 0; i < whole.size(); i += 3) {
    std::string bytes = whole;
    i % 2 ? bytes.resize(i) : static_cast<void>(bytes[i] ^= static_cast<char>(1 << (i % 8)));
    const std::string path = folder / "m.onnx";
    std::ofstream(path, std::ios::binary) << bytes;
    if (auto model = readModel(path))
      importNorms(*model);
    else
      llvm::consumeError(model.takeError());
  }
  auto missing = readModel(folder / "none.onnx");
  REQUIRE(!missing);
  CHECK(llvm::toString(missing.takeError()).ends_with("cannot be read: No such file or directory"));
  fs::remove_all(folder);
}

TEST_CASE("norms of ONNX's test data give what ONNX says") {
  if (!fs::exists(kTestData)) {
    MESSAGE("SKIP: ONNX's test data (Debian's libonnx-testdata) are not installed");
    return;
  }
  auto target = describeTarget("native");
  REQUIRE(bool(target));
  Session session(*target);
  size_t checked = 0, models = 0;
  std::vector<std::string> without;
  for (const auto &entry : fs::recursive_directory_iterator(kTestData)) {
    if (entry.path().filename() != "model.onnx")
      continue;
    ++models;
    const std::string name = entry.path().parent_path().filename();
    CAPTURE(name);
    auto model = readModel(entry.path());
    REQUIRE_MESSAGE(bool(model), llvm::toString(model.takeError()));
    const Imported imported = importNorms(*model);
    const bool isNorm = name.find("layer_normalization") != std::string::npos ||
                        name.find("instancenorm") != std::string::npos ||
                        name.find("atchnorm") != std::string::npos ||
                        name.find("BatchNorm") != std::string::npos;
    if (isNorm && imported.layers.empty())
      without.push_back(name);
    const Graph &graph = model->graphs.front();
    if (imported.layers.size() != 1 || imported.layers[0].places[0].norm.isTraining)
      continue;
    const Norm &norm = imported.layers[0].places[0].norm;
    if (!graph.values[norm.y].isOutput)
      continue; // a reshape is behind it
    // Arrays of the test, by the names of values.
    std::map<std::string, std::vector<double>> arrays;
    auto read = [&](const std::string &file, const std::string &of) {
      onnx::TensorProto tensor;
      if (tensor.ParseFromString(slurp(entry.path().parent_path() / "test_data_set_0" / file)))
        arrays[of] = tensorOf(tensor).values;
    };
    int next = 0;
    for (const auto &info : graph.proto->input()) {
      const bool isWeight = std::ranges::any_of(
          graph.proto->initializer(), [&](const auto &w) { return w.name() == info.name(); });
      if (!isWeight)
        read(fmt::format("input_{}.pb", next++), info.name());
    }
    for (int i = 0; i < graph.proto->output_size(); ++i)
      read(fmt::format("output_{}.pb", i), graph.proto->output(i).name());
    auto valuesOf = [&](int v) -> std::vector<double> {
      if (const Tensor *tensor = graph.constant(v); tensor && tensor->hasValues())
        return tensor->values;
      // Through what changes no element's place.
      while (graph.producer(v) && !arrays.contains(graph.values[v].name))
        v = graph.producer(v)->input(0);
      return arrays[graph.values[v].name];
    };
    auto spec = parseSpec("name: model\n" + imported.layers[0].text, "spec");
    REQUIRE(bool(spec));
    const Operator op = makeOperator(*spec, Phase::Inference);
    auto artifact = session.compile(op, llvm::cantFail(chooseSchedules(op, *target)));
    REQUIRE(bool(artifact));
    Failure failure;
    auto kernel = Kernel::load(std::move(*artifact), {}, failure);
    REQUIRE_MESSAGE(kernel, failure.message);
    REQUIRE(op.sizes.empty());
    auto call = KernelCall::make(std::move(kernel), {}, failure);
    REQUIRE(call);
    call->allocate();
    for (const Operand &operand : op.operands) {
      if (operand.written)
        continue;
      const int v = operand.name == "x"             ? norm.x
                    : operand.name == "gamma"       ? norm.gamma
                    : operand.name == "beta"        ? norm.beta
                    : operand.name == "moving_mean" ? norm.mean
                                                    : norm.variance;
      const std::vector<double> values = valuesOf(v);
      std::vector<float> floats(values.begin(), values.end());
      REQUIRE(floats.size() * 4 ==
              call->array(static_cast<size_t>(op.operand(operand.name, false))).size());
      call->set(operand.name, std::as_bytes(std::span(floats)));
    }
    const nf_executor alone{sizeof(nf_executor), nullptr, nullptr};
    REQUIRE(call->run(alone, failure));
    const std::vector<double> expected = arrays[graph.values[norm.y].name];
    const auto found = call->array(static_cast<size_t>(op.operand("y", true)));
    REQUIRE(expected.size() * 4 == found.size());
    for (size_t i = 0; i < expected.size(); ++i)
      CHECK(elementOf(DType::F32, found, i) == doctest::Approx(expected[i]).epsilon(1e-5).scale(1));
    ++checked;
  }
  CHECK(without == std::vector<std::string>{});
  CHECK(models > 1000);
  CHECK(checked > 30);
  MESSAGE(models, " models read, ", checked, " computed");
}
