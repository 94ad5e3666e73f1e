// Types and constants of a node's outputs, shapes as values among them: as much as norms are told
// by.
#include "compiler/model/Inference.h"
#include "compiler/model/Proto.h"

#include <algorithm>
#include <bit>

namespace normforge::model {

namespace {

Shape shapeOf(const std::vector<int64_t> &sizes) {
  Shape shape;
  for (int64_t size : sizes)
    shape.push_back({.size = size});
  return shape;
}

class Inference : NodeInference {
public:
  Inference(Graph &graph, Node &node) : NodeInference(graph, node) {}

  void run() {
    if (node_.output(0) < 0 || (!node_.domain.empty() && node_.domain != "com.microsoft"))
      return;
    type();
    constant();
    ints();
    inferShapes(graph_, node_);
  }

private:
  void type() {
    for (size_t i = 1; i < node_.outputs.size(); ++i)
      if ((node_.op == "Split" || isSkipSum(i)) && node_.output(i) >= 0 && in(0) &&
          out(i).type == 0)
        out(i).type = in(0)->type;
    if (out().type != 0)
      return;
    if (node_.op == "Cast")
      out().type = static_cast<int>(node_.integer("to", 0));
    else if (isOneOf({"Shape", "Size"}))
      out().type = kInt64;
    else if (node_.op == "CastLike" && in(1))
      out().type = in(1)->type;
    else if (isOneOf({"Where", "DequantizeLinear"}) && in(1))
      out().type = in(1)->type;
    else if (in(0) && !isOneOf({"Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not",
                                "And", "Or", "IsNaN", "IsInf", "ConstantOfShape", "Constant",
                                "ArgMax", "ArgMin", "NonZero", "If", "Loop", "Scan"}))
      out().type = in(0)->type;
  }

  void setConstant(Tensor tensor) {
    out().shape = shapeOf(tensor.shape);
    out().constant = std::move(tensor);
  }

  void constant() {
    if (node_.is("Constant"))
      return ofConstant();
    if (node_.is("ConstantOfShape"))
      return ofShape();
    std::vector<const Tensor *> inputs;
    for (size_t i = 0; i < node_.inputs.size(); ++i) {
      const Tensor *tensor = graph_.constant(node_.input(i));
      if (!tensor)
        return;
      inputs.push_back(tensor);
    }
    if (inputs.empty())
      return;
    if (node_.is("Identity"))
      return setConstant(*inputs[0]);
    if (isOneOf({"Cast", "CastLike"}))
      return converted(*inputs[0]);
    if (isOneOf({"Add", "Sub", "Mul", "Div", "Pow"}) && inputs.size() == 2)
      return arithmetic(*inputs[0], *inputs[1]);
    if (isOneOf({"Neg", "Sqrt", "Reciprocal"}))
      return unary(*inputs[0]);
    if (node_.is("Range") && inputs.size() == 3)
      return range(*inputs[0], *inputs[1], *inputs[2]);
    if (isOneOf({"Reshape", "Unsqueeze", "Squeeze", "Flatten"})) {
      inferShapes(graph_, node_);
      if (out().shape)
        if (auto sizes = sizesOf(*out().shape))
          if (Tensor tensor{*sizes, inputs[0]->values}; tensor.count() == inputs[0]->count())
            out().constant = std::move(tensor);
      return;
    }
    if (node_.is("Transpose") || node_.is("Expand"))
      return rearranged(*inputs[0]);
  }

  void ofConstant() {
    for (const onnx::AttributeProto &a : node_.proto->attribute()) {
      Tensor tensor;
      if (a.name() == "value")
        out().type = a.t().data_type(), tensor = tensorOf(a.t());
      else if (a.name() == "value_float")
        out().type = kFloat, tensor.values = {a.f()};
      else if (a.name() == "value_int")
        out().type = kInt64, tensor.values = {static_cast<double>(a.i())};
      else if (a.name() == "value_floats")
        out().type = kFloat, tensor = {{a.floats_size()}, {a.floats().begin(), a.floats().end()}};
      else if (a.name() == "value_ints")
        out().type = kInt64, tensor = {{a.ints_size()}, {a.ints().begin(), a.ints().end()}};
      else
        continue;
      setConstant(std::move(tensor));
    }
  }

  void ofShape() {
    double fill = 0;
    out().type = kFloat;
    for (const onnx::AttributeProto &a : node_.proto->attribute())
      if (a.name() == "value" && a.has_t()) {
        out().type = a.t().data_type();
        const Tensor value = tensorOf(a.t());
        if (value.values.size() != 1)
          return;
        fill = value.values[0];
      }
    const Value *shape = in(0);
    if (!shape || !shape->constant || !shape->constant->hasValues() ||
        !llvm::all_of(shape->constant->values, isWhole))
      return;
    Tensor tensor;
    for (double size : shape->constant->values)
      tensor.shape.push_back(static_cast<int64_t>(size));
    if (tensor.count() <= kMostValues)
      tensor.values.assign(static_cast<size_t>(tensor.count()), fill);
    setConstant(std::move(tensor));
  }

  /// As ONNX casts: whole numbers cut off, others rounded to the nearest.
  void converted(Tensor tensor) {
    using Data = onnx::TensorProto;
    for (double &value : tensor.values)
      switch (out().type) {
      case Data::DOUBLE:
        break;
      case Data::FLOAT:
        value = static_cast<float>(value);
        break;
      case Data::FLOAT16:
        value = static_cast<double>(static_cast<_Float16>(value));
        break;
      case Data::BFLOAT16: {
        uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(value));
        bits += 0x7fff + (bits >> 16 & 1);
        value = std::bit_cast<float>(bits & 0xffff0000u);
        break;
      }
      case Data::INT64:
      case Data::INT32:
        value = std::trunc(value);
        break;
      case Data::BOOL:
        value = value != 0;
        break;
      default:
        return; // the shape alone is of use
      }
    setConstant(std::move(tensor));
  }

  static double apply(const std::string &op, double a, double b, bool isWhole) {
    if (op == "Add")
      return a + b;
    if (op == "Sub")
      return a - b;
    if (op == "Mul")
      return a * b;
    if (op == "Pow")
      return std::pow(a, b);
    return isWhole ? (b == 0 ? 0 : std::trunc(a / b)) : a / b;
  }

  void arithmetic(const Tensor &a, const Tensor &b) {
    if (!a.hasValues() || !b.hasValues() || a.count() == 0 || b.count() == 0 ||
        (a.count() != 1 && b.count() != 1 && a.shape != b.shape))
      return;
    const Tensor &large = a.count() >= b.count() ? a : b;
    const size_t rank = std::max(a.shape.size(), b.shape.size());
    Tensor made{std::vector<int64_t>(rank - large.shape.size(), 1), {}};
    made.shape.insert(made.shape.end(), large.shape.begin(), large.shape.end());
    const bool isWhole = in(0)->type == kInt64 || in(0)->type == onnx::TensorProto::INT32;
    for (int64_t i = 0; i < large.count(); ++i)
      made.values.push_back(apply(node_.op, a.values[a.count() == 1 ? 0 : i],
                                  b.values[b.count() == 1 ? 0 : i], isWhole));
    setConstant(std::move(made));
  }

  void unary(const Tensor &a) {
    if (!a.hasValues())
      return;
    Tensor made = a;
    for (double &value : made.values)
      value = node_.op == "Neg" ? -value : node_.op == "Sqrt" ? std::sqrt(value) : 1 / value;
    setConstant(std::move(made));
  }

  void range(const Tensor &start, const Tensor &limit, const Tensor &step) {
    const auto first = start.scalar(), last = limit.scalar(), by = step.scalar();
    if (!first || !last || !by || *by == 0 || std::abs((*last - *first) / *by) > kMostValues)
      return;
    Tensor made;
    const auto count = static_cast<int64_t>(std::max(0.0, std::ceil((*last - *first) / *by)));
    for (int64_t i = 0; i < count; ++i)
      made.values.push_back(*first + static_cast<double>(i) * *by);
    made.shape = {static_cast<int64_t>(made.values.size())};
    setConstant(std::move(made));
  }

  /// Constants that are one value all over stay so; others keep their shape alone.
  void rearranged(const Tensor &a) {
    inferShapes(graph_, node_);
    const auto sizes = out().shape ? sizesOf(*out().shape) : std::nullopt;
    if (!sizes)
      return;
    Tensor made{*sizes, {}};
    if (!a.values.empty() && a.isAll(a.values[0]) && made.count() <= kMostValues)
      made.values.assign(static_cast<size_t>(made.count()), a.values[0]);
    out().constant = std::move(made);
  }

  // ---- Shapes as values -------------------------------------------------------------------------

  void setInts(std::vector<Dim> dims, bool isScalar = false) {
    Shape shape = isScalar ? Shape{} : Shape{{.size = static_cast<int64_t>(dims.size())}};
    if (llvm::all_of(dims, [](const Dim &dim) { return dim.isKnown(); })) {
      Tensor tensor{isScalar ? std::vector<int64_t>{} : std::vector{int64_t(dims.size())}, {}};
      for (const Dim &dim : dims)
        tensor.values.push_back(static_cast<double>(*dim.size));
      out().constant = std::move(tensor);
    }
    out().shape = std::move(shape);
    out().ints = std::move(dims);
  }

  void ints() {
    if (node_.is("Shape") && in(0)) {
      if (node_.integer("start", 0) == 0 && !node_.has("end"))
        out().shapeOf = node_.input(0);
      if (const auto &shape = in(0)->shape) {
        const auto rank = static_cast<int64_t>(shape->size());
        auto clamp = [&](int64_t at) {
          return std::clamp(at < 0 ? at + rank : at, int64_t(0), rank);
        };
        const int64_t first = clamp(node_.integer("start", 0));
        const int64_t last = std::max(first, clamp(node_.integer("end", rank)));
        setInts({shape->begin() + first, shape->begin() + last});
      }
      return;
    }
    if (node_.is("Size") && in(0) && in(0)->shape) {
      // The size of a shape is the rank.
      int64_t count = 1;
      for (const Dim &dim : *in(0)->shape)
        count = dim.isKnown() && count >= 0 ? times(count, *dim.size) : -1;
      if (count >= 0)
        setInts({{.size = count}}, /*isScalar=*/true);
      return;
    }
    if (out().constant)
      return;
    if (isOneOf({"Identity", "Cast"}) && in(0)) {
      out().ints = in(0)->ints;
      out().shapeOf = in(0)->shapeOf;
    } else if (node_.is("Concat")) {
      std::vector<Dim> all;
      for (size_t i = 0; i < node_.inputs.size(); ++i) {
        const auto part = intsOf(i);
        if (!part)
          return;
        all.insert(all.end(), part->begin(), part->end());
      }
      setInts(std::move(all));
    } else if (node_.is("Gather")) {
      const auto all = intsOf(0);
      const auto at = intsOf(1);
      if (!all || !at || node_.integer("axis", 0) != 0)
        return;
      std::vector<Dim> taken;
      for (const Dim &index : *at) {
        const int64_t position = index.isKnown() ? axisOf(*index.size, all->size()) : -1;
        if (position < 0)
          return;
        taken.push_back((*all)[static_cast<size_t>(position)]);
      }
      setInts(std::move(taken), in(1)->shape && in(1)->shape->empty());
    } else if (node_.is("Slice")) {
      const auto all = intsOf(0);
      const bool isOld = node_.version < 10;
      auto bound = [&](const char *attribute, size_t input) -> std::vector<int64_t> {
        if (isOld)
          return node_.integers(attribute).value_or(std::vector<int64_t>{});
        const auto number = numberOf(input);
        return number ? std::vector<int64_t>{*number} : std::vector<int64_t>{};
      };
      const std::vector<int64_t> start = bound("starts", 1), end = bound("ends", 2);
      if (!all || start.size() != 1 || end.size() != 1 || (!isOld && in(4) && numberOf(4) != 1))
        return;
      const auto count = static_cast<int64_t>(all->size());
      auto clamp = [&](int64_t at) {
        return std::clamp(at < 0 ? at + count : at, int64_t(0), count);
      };
      const int64_t first = clamp(start[0]), last = std::max(first, clamp(end[0]));
      setInts({all->begin() + first, all->begin() + last});
    } else if (isOneOf({"Unsqueeze", "Squeeze"})) {
      if (const auto all = intsOf(0); all && all->size() == 1)
        setInts(*all, node_.op == "Squeeze");
    } else if (isOneOf({"Add", "Sub", "Mul", "Div"})) {
      const auto a = intsOf(0), b = intsOf(1);
      if (!a || !b || a->size() != 1 || b->size() != 1)
        return;
      const auto x = (*a)[0].size, y = (*b)[0].size;
      const double made =
          x && y ? apply(node_.op, static_cast<double>(*x), static_cast<double>(*y), true) : NAN;
      setInts({isWhole(made) ? Dim{.size = static_cast<int64_t>(made)} : Dim{}},
              in(0)->shape && in(0)->shape->empty());
    }
  }
};

} // namespace

void infer(Graph &graph, Node &node) { Inference(graph, node).run(); }

} // namespace normforge::model
