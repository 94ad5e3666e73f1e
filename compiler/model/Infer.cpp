// Constants, types and shapes of a node's outputs: as much as norms are told by.
#include "compiler/model/Proto.h"
#include "runtime/artifact/Element.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringRef.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

namespace normforge::model {

namespace {

/// Elements of a constant that are looked at: parameters of a layer are, tables of words are not.
constexpr int64_t kMostValues = 1 << 16;

template <typename T> void takeRaw(const std::string &raw, auto convert, std::vector<double> &out) {
  for (size_t at = 0; at + sizeof(T) <= raw.size(); at += sizeof(T)) {
    T value;
    std::memcpy(&value, raw.data() + at, sizeof value);
    out.push_back(static_cast<double>(convert(value)));
  }
}

} // namespace

Tensor tensorOf(const onnx::TensorProto &proto) {
  using Data = onnx::TensorProto;
  Tensor tensor;
  tensor.shape.assign(proto.dims().begin(), proto.dims().end());
  if (proto.data_location() == Data::EXTERNAL || tensor.count() > kMostValues)
    return tensor;
  std::vector<double> &values = tensor.values;
  auto same = [](auto value) { return value; };
  const std::string &raw = proto.raw_data();
  switch (proto.data_type()) {
  case Data::FLOAT:
    raw.empty() ? values.assign(proto.float_data().begin(), proto.float_data().end())
                : takeRaw<float>(raw, same, values);
    break;
  case Data::DOUBLE:
    raw.empty() ? values.assign(proto.double_data().begin(), proto.double_data().end())
                : takeRaw<double>(raw, same, values);
    break;
  case Data::INT64:
    raw.empty() ? values.assign(proto.int64_data().begin(), proto.int64_data().end())
                : takeRaw<int64_t>(raw, same, values);
    break;
  case Data::INT32:
    raw.empty() ? values.assign(proto.int32_data().begin(), proto.int32_data().end())
                : takeRaw<int32_t>(raw, same, values);
    break;
  case Data::BOOL:
  case Data::UINT8:
    raw.empty() ? values.assign(proto.int32_data().begin(), proto.int32_data().end())
                : takeRaw<uint8_t>(raw, same, values);
    break;
  case Data::FLOAT16:
  case Data::BFLOAT16: {
    const DType dtype = proto.data_type() == Data::FLOAT16 ? DType::F16 : DType::BF16;
    auto convert = [&](uint16_t bits) {
      return elementOf(dtype, std::as_bytes(std::span(&bits, 1)), 0);
    };
    if (raw.empty())
      for (int32_t bits : proto.int32_data())
        values.push_back(convert(static_cast<uint16_t>(bits)));
    else
      takeRaw<uint16_t>(raw, convert, values);
    break;
  }
  default:
    break;
  }
  // The message contradicts itself, or its type is not read.
  if (!tensor.hasValues())
    values.clear();
  return tensor;
}

namespace {

/// Saturates: sizes of a file may be anything.
int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}
/// A number that an int64_t has exactly.
bool isWhole(double number) { return std::abs(number) <= 0x1p53 && number == std::trunc(number); }

Shape shapeOf(const std::vector<int64_t> &sizes) {
  Shape shape;
  for (int64_t size : sizes)
    shape.push_back({.size = size});
  return shape;
}

std::optional<std::vector<int64_t>> sizesOf(const Shape &shape) {
  std::vector<int64_t> sizes;
  for (const Dim &dim : shape) {
    if (!dim.isKnown())
      return std::nullopt;
    sizes.push_back(*dim.size);
  }
  return sizes;
}

/// An axis from 0 on; -1 where it is none.
int64_t axisOf(int64_t axis, size_t rank) {
  const auto all = static_cast<int64_t>(rank);
  axis += axis < 0 ? all : 0;
  return axis >= 0 && axis < all ? axis : -1;
}

class Inference {
public:
  Inference(Graph &graph, Node &node) : graph_(graph), node_(node) {}

  void run() {
    if (node_.output(0) < 0 || (!node_.domain.empty() && node_.domain != "com.microsoft"))
      return;
    type();
    constant();
    ints();
    shape();
  }

private:
  Value &out(size_t i = 0) { return graph_.values[node_.output(i)]; }
  const Value *in(size_t i) const {
    return node_.input(i) < 0 ? nullptr : &graph_.values[node_.input(i)];
  }
  bool isOneOf(std::initializer_list<std::string_view> names) const {
    return llvm::is_contained(names, node_.op);
  }

  void type() {
    for (size_t i = 1; i < node_.outputs.size(); ++i)
      if (node_.op == "Split" && node_.output(i) >= 0 && in(0) && out(i).type == 0)
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

  // ---- Constants --------------------------------------------------------------------------------

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
      shape();
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
    shape();
    const auto sizes = out().shape ? sizesOf(*out().shape) : std::nullopt;
    if (!sizes)
      return;
    Tensor made{*sizes, {}};
    if (!a.values.empty() && a.isAll(a.values[0]) && made.count() <= kMostValues)
      made.values.assign(static_cast<size_t>(made.count()), a.values[0]);
    out().constant = std::move(made);
  }

  // ---- Shapes as values -------------------------------------------------------------------------

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

  // ---- Shapes -----------------------------------------------------------------------------------

  void setShape(Shape shape) {
    if (!out().shape) {
      out().shape = std::move(shape);
      return;
    }
    // The model's word wins, and where it says nothing what is found here.
    if (out().shape->size() == shape.size())
      for (size_t i = 0; i < shape.size(); ++i)
        if (!(*out().shape)[i].isKnown() && (shape[i].isKnown() || (*out().shape)[i].name.empty()))
          (*out().shape)[i] = shape[i];
  }

  static std::optional<Shape> broadcast(const Shape &a, const Shape &b) {
    Shape made(std::max(a.size(), b.size()));
    for (size_t i = 0; i < made.size(); ++i) {
      const Dim one{.size = 1};
      const Dim &x = i < made.size() - a.size() ? one : a[i - (made.size() - a.size())];
      const Dim &y = i < made.size() - b.size() ? one : b[i - (made.size() - b.size())];
      made[i] = x.size == 1                ? y
                : y.size == 1 || x.same(y) ? x
                : x.isKnown()              ? x
                : y.isKnown()              ? y
                                           : Dim{};
    }
    return made;
  }

  std::optional<std::vector<int64_t>> axes(size_t input, int lastOfAttributes) const {
    if (node_.version < lastOfAttributes)
      return node_.integers("axes");
    const auto all = intsOf(input);
    if (!all)
      return std::nullopt;
    std::vector<int64_t> axes;
    for (const Dim &dim : *all) {
      if (!dim.isKnown())
        return std::nullopt;
      axes.push_back(*dim.size);
    }
    return axes;
  }

  void shape() {
    const Value *x = in(0);
    if (isOneOf({"Constant", "ConstantOfShape", "Shape", "Size", "Range"}) || !x)
      return;
    if (isOneOf({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu", "Where",
                 "Equal", "Less", "Greater", "And", "Or", "BiasGelu"})) {
      std::optional<Shape> made = x->shape;
      for (size_t i = 1; i < node_.inputs.size() && made; ++i) {
        const Value *other = in(i);
        made = other && other->shape ? broadcast(*made, *other->shape) : std::nullopt;
      }
      if (node_.version < 7 && node_.domain.empty()) // the second is brought to the first's
        made = x->shape;
      if (made)
        setShape(std::move(*made));
      return;
    }
    if (node_.op == "Reshape")
      return reshape();
    if (node_.op == "Expand") {
      if (const auto to = intsOf(1); to && x->shape)
        if (auto made = broadcast(*x->shape, *to))
          setShape(std::move(*made));
      return;
    }
    if (!x->shape)
      return;
    if (isOneOf({"Relu",
                 "Identity",
                 "Dropout",
                 "Softmax",
                 "LogSoftmax",
                 "Clip",
                 "Cast",
                 "CastLike",
                 "BatchNormalization",
                 "InstanceNormalization",
                 "LayerNormalization",
                 "GroupNormalization",
                 "RMSNormalization",
                 "SimplifiedLayerNormalization",
                 "SkipLayerNormalization",
                 "SkipSimplifiedLayerNormalization",
                 "GroupNorm",
                 "LRN",
                 "MeanVarianceNormalization",
                 "LpNormalization",
                 "Erf",
                 "Exp",
                 "Log",
                 "Sqrt",
                 "Reciprocal",
                 "Neg",
                 "Abs",
                 "Tanh",
                 "Sigmoid",
                 "HardSigmoid",
                 "HardSwish",
                 "Elu",
                 "Selu",
                 "Celu",
                 "LeakyRelu",
                 "ThresholdedRelu",
                 "Softplus",
                 "Softsign",
                 "Mish",
                 "Gelu",
                 "FastGelu",
                 "QuickGelu",
                 "Swish",
                 "Floor",
                 "Ceil",
                 "Round",
                 "Sign",
                 "Not",
                 "Sin",
                 "Cos",
                 "DequantizeLinear",
                 "QuantizeLinear",
                 "Trilu",
                 "CumSum"}))
      return setShape(*x->shape);
    const Shape &shape = *x->shape;
    if (node_.op.starts_with("Reduce"))
      return reduce(shape);
    if (node_.op == "Transpose") {
      Shape made;
      const auto order = node_.integers("perm");
      for (size_t i = 0; i < shape.size(); ++i) {
        const int64_t from = order ? (i < order->size() ? (*order)[i] : -1)
                                   : static_cast<int64_t>(shape.size() - 1 - i);
        if (from < 0 || from >= static_cast<int64_t>(shape.size()))
          return;
        made.push_back(shape[static_cast<size_t>(from)]);
      }
      return setShape(std::move(made));
    }
    if (node_.op == "Flatten") {
      const auto rank = static_cast<int64_t>(shape.size());
      int64_t axis = node_.integer("axis", 1);
      axis += axis < 0 ? rank : 0;
      auto product = [&](int64_t first, int64_t last) {
        Dim all{.size = 1};
        for (int64_t i = first; i < last; ++i) {
          const Dim &dim = shape[static_cast<size_t>(i)];
          all = all.size == 1 ? dim
                : dim.size == 1
                    ? all
                    : (all.isKnown() && dim.isKnown() ? Dim{.size = times(*all.size, *dim.size)}
                                                      : Dim{});
        }
        return all;
      };
      if (axis >= 0 && axis <= rank)
        setShape({product(0, axis), product(axis, rank)});
      return;
    }
    if (isOneOf({"Unsqueeze", "Squeeze"}))
      return squeeze(shape);
    if (node_.op == "Concat")
      return concat();
    if (isOneOf({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool",
                 "GlobalMaxPool", "Upsample", "Resize"}))
      return images(shape);
    if (node_.op == "MatMul" || node_.op == "Gemm")
      return product(shape);
    if (node_.op == "Gather") {
      const int64_t axis = axisOf(node_.integer("axis", 0), shape.size());
      if (axis < 0 || !in(1) || !in(1)->shape)
        return;
      Shape made(shape.begin(), shape.begin() + axis);
      made.insert(made.end(), in(1)->shape->begin(), in(1)->shape->end());
      made.insert(made.end(), shape.begin() + axis + 1, shape.end());
      return setShape(std::move(made));
    }
    if (node_.op == "Slice" || node_.op == "Pad" || node_.op == "Split") {
      // The rank, and axes that surely stay.
      Shape made(shape.size());
      if (node_.op == "Split") {
        const int64_t axis = axisOf(node_.integer("axis", 0), shape.size());
        for (size_t i = 0; i < shape.size(); ++i)
          if (static_cast<int64_t>(i) != axis)
            made[i] = shape[i];
        for (size_t i = 0; i < node_.outputs.size(); ++i)
          if (node_.output(i) >= 0 && !out(i).shape)
            out(i).shape = made;
        return;
      }
      if (node_.op == "Slice")
        if (const auto cut = axes(3, 10))
          for (size_t i = 0; i < shape.size(); ++i)
            if (llvm::none_of(*cut, [&](int64_t axis) {
                  return axisOf(axis, shape.size()) == static_cast<int64_t>(i);
                }))
              made[i] = shape[i];
      setShape(std::move(made));
    }
  }

  void reshape() {
    const Value *x = in(0);
    std::optional<std::vector<Dim>> to = intsOf(1);
    if (node_.version < 5)
      if (const auto attribute = node_.integers("shape")) {
        to.emplace();
        for (int64_t size : *attribute)
          to->push_back({.size = size});
      }
    if (!to)
      return;
    Shape made;
    int64_t known = 1;
    std::optional<size_t> rest;
    bool isKnown = true;
    for (size_t i = 0; i < to->size(); ++i) {
      Dim dim = (*to)[i];
      if (dim.size == 0 && node_.integer("allowzero", 0) == 0)
        dim = x->shape && i < x->shape->size() ? (*x->shape)[i] : Dim{};
      if (dim.size == -1) {
        rest = i;
        dim = {};
      } else if (dim.isKnown()) {
        known = times(known, *dim.size);
      } else {
        isKnown = false;
      }
      made.push_back(dim);
    }
    if (rest && x->shape) {
      // By numbers where all are; else what is left when what is the same on both sides is gone.
      if (const auto sizes = sizesOf(*x->shape); sizes && isKnown && known > 0) {
        int64_t all = 1;
        for (int64_t size : *sizes)
          all = times(all, size);
        made[*rest].size = all / known;
      } else {
        Shape from = *x->shape;
        bool all = true;
        int64_t divisor = 1;
        for (size_t i = 0; i < made.size(); ++i) {
          if (i == *rest)
            continue;
          const auto same = llvm::find_if(from, [&](const Dim &dim) { return dim.same(made[i]); });
          if (same != from.end())
            from.erase(same);
          else if (made[i].isKnown())
            divisor = times(divisor, *made[i].size);
          else
            all = false;
        }
        const auto left = sizesOf(from);
        if (all && left) {
          int64_t count = 1;
          for (int64_t size : *left)
            count = times(count, size);
          if (divisor > 0 && count % divisor == 0)
            made[*rest].size = count / divisor;
        } else if (all && from.size() == 1 && divisor == 1) {
          made[*rest] = from[0];
        }
      }
    }
    setShape(std::move(made));
  }

  void reduce(const Shape &shape) {
    const bool isSum = node_.op == "ReduceSum";
    const auto found = axes(1, isSum ? 13 : 18);
    const bool keeps = node_.integer("keepdims", 1) != 0;
    if (!found && in(1))
      return;
    std::vector<int64_t> cut;
    for (int64_t axis : found.value_or(std::vector<int64_t>{}))
      cut.push_back(axisOf(axis, shape.size()));
    if (cut.empty()) {
      if (node_.integer("noop_with_empty_axes", 0) != 0)
        return setShape(shape);
      cut.resize(shape.size());
      std::iota(cut.begin(), cut.end(), 0);
    }
    Shape made;
    for (size_t i = 0; i < shape.size(); ++i)
      if (!llvm::is_contained(cut, static_cast<int64_t>(i)))
        made.push_back(shape[i]);
      else if (keeps)
        made.push_back({.size = 1});
    setShape(std::move(made));
  }

  void squeeze(const Shape &shape) {
    const auto found = axes(1, 13);
    Shape made;
    if (node_.op == "Squeeze") {
      for (size_t i = 0; i < shape.size(); ++i) {
        const bool isCut =
            found ? llvm::any_of(*found,
                                 [&](int64_t axis) {
                                   return axisOf(axis, shape.size()) == static_cast<int64_t>(i);
                                 })
                  : shape[i].size == 1;
        if (!isCut)
          made.push_back(shape[i]);
      }
      return setShape(std::move(made));
    }
    if (!found)
      return;
    const size_t rank = shape.size() + found->size();
    size_t next = 0;
    for (size_t i = 0; i < rank; ++i) {
      const bool isNew = llvm::any_of(
          *found, [&](int64_t axis) { return axisOf(axis, rank) == static_cast<int64_t>(i); });
      if (!isNew && next == shape.size())
        return;
      made.push_back(isNew ? Dim{.size = 1} : shape[next++]);
    }
    setShape(std::move(made));
  }

  void concat() {
    Shape made = *in(0)->shape;
    const int64_t axis = axisOf(node_.integer("axis", 0), made.size());
    if (axis < 0)
      return;
    Dim &sum = made[static_cast<size_t>(axis)];
    for (size_t i = 1; i < node_.inputs.size(); ++i) {
      const Value *part = in(i);
      const Dim dim = part && part->shape && part->shape->size() == made.size()
                          ? (*part->shape)[static_cast<size_t>(axis)]
                          : Dim{};
      sum = sum.isKnown() && dim.isKnown() ? Dim{.size = *sum.size + *dim.size} : Dim{};
    }
    setShape(std::move(made));
  }

  /// Convolutions and pools: channels by the weights, places by their windows.
  void images(const Shape &shape) {
    if (shape.size() < 3)
      return;
    Shape made(shape.size());
    made[0] = shape[0];
    made[1] = shape[1];
    const Shape *weights = graph_.shape(node_.input(1));
    if (node_.op.starts_with("Conv")) {
      made[1] = {};
      if (weights && weights->size() == shape.size()) {
        if (node_.op == "Conv")
          made[1] = (*weights)[0];
        else if ((*weights)[1].isKnown())
          made[1].size = *(*weights)[1].size * node_.integer("group", 1);
      }
    }
    const bool isWhole = node_.op.starts_with("Global");
    const auto strides = node_.integers("strides"), pads = node_.integers("pads"),
               dilations = node_.integers("dilations");
    auto window = node_.integers("kernel_shape");
    if (!window && node_.op == "Conv" && weights)
      if (const auto sizes = sizesOf(*weights); sizes && sizes->size() > 2)
        window = std::vector<int64_t>(sizes->begin() + 2, sizes->end());
    const bool isSame = node_.word("auto_pad", "NOTSET").starts_with("SAME");
    const size_t places = shape.size() - 2;
    for (size_t i = 0; i < places; ++i) {
      const Dim &from = shape[2 + i];
      if (isWhole) {
        made[2 + i].size = 1;
        continue;
      }
      if (!from.isKnown() || !window || i >= window->size() || node_.op == "ConvTranspose" ||
          node_.op == "Upsample" || node_.op == "Resize")
        continue;
      const int64_t stride = strides && i < strides->size() ? (*strides)[i] : 1;
      const int64_t dilation = dilations && i < dilations->size() ? (*dilations)[i] : 1;
      const int64_t padding =
          pads && pads->size() == 2 * places ? (*pads)[i] + (*pads)[i + places] : 0;
      if (stride < 1)
        continue;
      const int64_t span = *from.size + padding - dilation * ((*window)[i] - 1) - 1;
      const bool ceil = node_.integer("ceil_mode", 0) != 0;
      made[2 + i].size = isSame ? (*from.size + stride - 1) / stride
                                : (ceil ? (span + stride - 1) / stride : span / stride) + 1;
    }
    setShape(std::move(made));
  }

  void product(const Shape &a) {
    const Shape *b = graph_.shape(node_.input(1));
    if (!b || a.empty() || b->empty())
      return;
    if (node_.op == "Gemm") {
      if (a.size() == 2 && b->size() == 2)
        setShape({a[node_.integer("transA", 0) ? 1 : 0], (*b)[node_.integer("transB", 0) ? 0 : 1]});
      return;
    }
    if (a.size() < 2 || b->size() < 2)
      return;
    auto made = broadcast({a.begin(), a.end() - 2}, {b->begin(), b->end() - 2});
    made->push_back(a[a.size() - 2]);
    made->push_back(b->back());
    setShape(std::move(*made));
  }

  Graph &graph_;
  Node &node_;
};

} // namespace

void infer(Graph &graph, Node &node) { Inference(graph, node).run(); }

} // namespace normforge::model
