#include "compiler/model/Inference.h"

#include <algorithm>
#include <numeric>

namespace normforge::model {

namespace {

class Shapes : NodeInference {
public:
  Shapes(Graph &graph, Node &node) : NodeInference(graph, node) {}
  void run() { shape(); }

private:
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
    for (size_t i = 1; i < node_.outputs.size(); ++i)
      if (isSkipSum(i) && node_.output(i) >= 0 && !out(i).shape)
        out(i).shape = x->shape;
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
};

} // namespace

void inferShapes(Graph &graph, Node &node) { Shapes(graph, node).run(); }

} // namespace normforge::model
