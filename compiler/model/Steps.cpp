// The steps that follow a norm: additions, multiplications and activations that only it feeds.
#include "compiler/model/Norms.h"

#include "llvm/ADT/STLExtras.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <numbers>

namespace normforge::model {

std::string numberText(double number, int type) {
  return type == kDouble ? fmt::format("{}", number)
                         : fmt::format("{}", static_cast<float>(number));
}

namespace {

/// An activation's name and, of those with a number, which attribute it is and its default.
struct Function {
  std::string_view op, name;
  const char *attribute = nullptr;
  double otherwise = 0;
};
constexpr Function kFunctions[] = {
    {"Relu", "relu"},           {"LeakyRelu", "leaky_relu", "alpha", 0.01},
    {"Elu", "elu", "alpha", 1}, {"Sigmoid", "sigmoid"},
    {"Tanh", "tanh"},           {"Softplus", "softplus"},
    {"Mish", "mish"},           {"HardSwish", "hard_swish"}};

class Follower {
public:
  Follower(const Graph &graph, const std::set<int> &taken, bool operands, int y)
      : graph_(graph), taken_(taken), operands_(operands), y_(y) {}

  /// One more step; empty where nothing follows that could be one.
  std::optional<Step> next() {
    const Value &value = graph_.values[y_];
    if (value.isOutput || value.isUsedWithin)
      return stop(value.users.empty() ? -1 : value.users[0],
                  value.isOutput ? "the norm's result is an output of the graph, too"
                                 : "the norm's result is used within a body, too");
    if (auto step = sigmoidTimes())
      return step;
    if (auto step = errorGelu())
      return step;
    if (value.users.size() > 1)
      return stop(value.users[0],
                  fmt::format("the norm's result is used {} times", value.users.size()));
    if (value.users.empty() || taken_.contains(value.users[0]))
      return std::nullopt;
    const int index = value.users[0];
    const Node &node = graph_.nodes[index];
    // A call of a function is whole, or not taken at all.
    const Node *own = graph_.producer(y_);
    if (!node.domain.empty() || node.output(0) < 0 ||
        (own && (own->number < 0) != (node.number < 0)))
      return std::nullopt;
    if (auto step = activation(index))
      return step;
    if (node.op == "Add" || node.op == "Sum" || node.op == "Mul")
      return binary(index);
    if (node.op == "Sub" || node.op == "Div")
      return byNumber(index);
    return std::nullopt;
  }

  int y() const { return y_; }
  const std::optional<Left> &left() const { return left_; }

private:
  std::optional<Step> stop(int node, std::string why) {
    static constexpr std::string_view kStepLike[] = {
        "Add",       "Sum",         "Mul",  "Sub",     "Div",   "Relu",     "LeakyRelu",
        "Elu",       "Selu",        "Celu", "Sigmoid", "Tanh",  "Softplus", "Mish",
        "HardSwish", "HardSigmoid", "Clip", "Gelu",    "Swish", "PRelu"};
    if (node >= 0 && graph_.nodes[node].domain.empty() &&
        llvm::is_contained(kStepLike, graph_.nodes[node].op))
      left_ = Left{node, std::move(why)};
    return std::nullopt;
  }

  Step take(const Node &node, std::string text, int operand = -1) {
    y_ = node.output(0);
    return {std::move(text), operand};
  }

  std::optional<Step> activation(int index) {
    const Node &node = graph_.nodes[index];
    for (const Function &function : kFunctions) {
      if (node.op != function.op)
        continue;
      if (!function.attribute)
        return take(node, std::string(function.name));
      return take(node,
                  fmt::format("{{{}: {}}}", function.name,
                              numberText(node.number_(function.attribute, function.otherwise))));
    }
    if (node.op == "Gelu")
      return take(node, node.word("approximate", "none") == "tanh" ? "gelu_tanh" : "gelu");
    if (node.op == "Swish") {
      if (node.number_("alpha", 1) != 1)
        return stop(index, "a Swish whose alpha is not 1");
      return take(node, "silu");
    }
    if (node.op == "HardSigmoid") {
      const double alpha = node.number_("alpha", 0.2), beta = node.number_("beta", 0.5);
      if (std::abs(alpha - 1.0 / 6) > 1e-7 || beta != 0.5)
        return stop(index, fmt::format("a HardSigmoid of alpha {} and beta {}; steps have that of "
                                       "1/6 and 0.5",
                                       numberText(alpha), numberText(beta)));
      return take(node, "hard_sigmoid");
    }
    if (node.op == "Clip") {
      const bool isOld = node.version < 11;
      const auto low =
          isOld ? std::optional(node.number_("min", -INFINITY)) : bound(node, 1, -INFINITY);
      const auto high =
          isOld ? std::optional(node.number_("max", INFINITY)) : bound(node, 2, INFINITY);
      if (!low || !high)
        return stop(index, "the bounds of a Clip are not constant");
      if (*low == 0 && *high == 6)
        return take(node, "relu6");
      if (*low == 0 && (*high == INFINITY || *high >= 3.4e38))
        return take(node, "relu");
      if (*low > *high)
        return stop(index, fmt::format("a Clip from {} to {}, which is below", numberText(*low),
                                       numberText(*high)));
      if (!std::isfinite(*low) || !std::isfinite(*high))
        return stop(index, "a Clip without two finite bounds");
      return take(node, fmt::format("{{clamp: [{}, {}]}}", numberText(*low), numberText(*high)));
    }
    if (node.op == "PRelu" || node.op == "Selu" || node.op == "Celu")
      return stop(index, fmt::format("{} is no step that kernels have", node.op));
    return std::nullopt;
  }

  std::optional<double> bound(const Node &node, size_t input, double otherwise) const {
    return node.input(input) < 0 ? std::optional(otherwise) : graph_.scalar(node.input(input));
  }

  /// Less a number, or over one.
  std::optional<Step> byNumber(int index) {
    const Node &node = graph_.nodes[index];
    const bool isFirst = node.input(0) == y_;
    const int other = isFirst ? node.input(1) : node.input(0);
    const double number = other == y_ ? NAN : graph_.scalar(other).value_or(NAN);
    const Shape *own = graph_.shape(y_), *of = graph_.shape(other);
    if (std::isnan(number) || !own || !of)
      return stop(index,
                  fmt::format("a {} of no constant number is no step that kernels have", node.op));
    if (std::isinf(number) || of->size() > own->size())
      return stop(index, fmt::format("a {} of {}", node.op, numberText(number)));
    const std::string text =
        number < 0 ? fmt::format("({})", numberText(number)) : numberText(number);
    const char *sign = node.op == "Sub" ? "-" : "/";
    return take(node, isFirst ? fmt::format("{{expr: \"x {} {}\"}}", sign, text)
                              : fmt::format("{{expr: \"{} {} x\"}}", text, sign));
  }

  std::optional<Step> binary(int index) {
    const Node &node = graph_.nodes[index];
    const bool isAdd = node.op != "Mul";
    if (node.inputs.size() == 1)
      return take(node, "{expr: x}");
    if (node.inputs.size() != 2)
      return stop(index, fmt::format("a {} of {} values", node.op, node.inputs.size()));
    const bool isFirst = node.input(0) == y_;
    const int other = isFirst ? node.input(1) : node.input(0);
    if (other == y_ || other < 0)
      return stop(index, "it takes the norm's result twice");
    const Shape *own = graph_.shape(y_), *of = graph_.shape(other);
    if (const auto number = graph_.scalar(other); number && own && std::isfinite(*number))
      if (of && of->size() <= own->size())
        return take(node, fmt::format("{{expr: \"x {} {}\"}}", isAdd ? "+" : "*",
                                      *number < 0 ? fmt::format("({})", numberText(*number))
                                                  : numberText(*number)));
    if (const double number = graph_.scalar(other).value_or(0); !std::isfinite(number))
      return stop(index, fmt::format("a {} of {}", node.op, numberText(number)));
    if (!own || !of)
      return stop(index, "the shape of its other operand is not known");
    const int type = graph_.values[other].type;
    if (type != 0 && type != graph_.values[y_].type)
      return stop(index, "casts between: its other operand has another type");
    // Which axes the other one has.
    size_t offset = own->size() - std::min(own->size(), of->size());
    if (node.version < 7) { // the second is brought to the first by an attribute
      if (!isFirst && !sameShape(*own, *of))
        return stop(index, "before opset 7 the first operand broadcasts to nothing");
      if (node.integer("broadcast", 0) != 0 && node.has("axis"))
        offset = static_cast<size_t>(std::max<int64_t>(0, node.integer("axis", 0)));
    }
    std::vector<int64_t> axes;
    bool fits = of->size() <= own->size() && offset + of->size() <= own->size();
    for (size_t i = 0; fits && i < of->size(); ++i) {
      if ((*of)[i].size == 1 && (*own)[offset + i].size != 1)
        continue;
      fits = (*of)[i].same((*own)[offset + i]);
      axes.push_back(static_cast<int64_t>(offset + i));
    }
    if (!fits)
      return stop(
          index, fmt::format("an operand of shape {} beside the norm's {}", text(*of), text(*own)));
    const char *name = isAdd ? "add" : "mul";
    if (!operands_)
      return stop(index, "the norm's sum is used, too, perhaps before this operand is there");
    if (axes.size() == own->size())
      return take(node, name, other);
    if (axes.empty())
      return stop(index, "its other operand is one number that is not constant");
    return take(node, fmt::format("{{{}: {{axes: [{}]}}}}", name, fmt::join(axes, ", ")), other);
  }

  static bool sameShape(const Shape &a, const Shape &b) {
    return a.size() == b.size() && llvm::all_of(llvm::zip(a, b), [](auto pair) {
             return std::get<0>(pair).same(std::get<1>(pair));
           });
  }

  bool rankStays(const Node *before, const Node *behind) const {
    const Shape *a = graph_.shape(before->output(0)), *b = graph_.shape(behind->output(0));
    return a && b && a->size() == b->size();
  }
  const Node *user(int value, size_t i) const {
    const auto &users = graph_.values[value].users;
    return i < users.size() && !taken_.contains(users[i]) ? &graph_.nodes[users[i]] : nullptr;
  }
  bool isOwned(int value) const { return graph_.values[value].hasOneUser(); }

  /// x * sigmoid(x).
  std::optional<Step> sigmoidTimes() {
    if (graph_.values[y_].users.size() != 2)
      return std::nullopt;
    for (size_t i : {0, 1}) {
      const Node *sigmoid = user(y_, i), *times = user(y_, 1 - i);
      if (!sigmoid || !times || !sigmoid->is("Sigmoid") || !times->is("Mul") ||
          !isOwned(sigmoid->output(0)))
        continue;
      const int s = sigmoid->output(0);
      if ((times->input(0) == s && times->input(1) == y_) ||
          (times->input(1) == s && times->input(0) == y_))
        return take(*times, "silu");
    }
    return std::nullopt;
  }

  std::string numberText(double number) const {
    return normforge::model::numberText(number, graph_.values[y_].type);
  }

  /// The number that a node multiplies a value by, which gets no further axes.
  std::optional<double> factorOf(const Node *node, int of) const {
    if (!node || (!node->is("Mul") && !node->is("Div")))
      return std::nullopt;
    const Shape *before = graph_.shape(of), *behind = graph_.shape(node->output(0));
    if (!before || !behind || before->size() != behind->size())
      return std::nullopt;
    if (node->is("Div"))
      return node->input(0) == of && graph_.scalar(node->input(1))
                 ? std::optional(1 / *graph_.scalar(node->input(1)))
                 : std::nullopt;
    return graph_.scalar(node->input(0) == of ? node->input(1) : node->input(0));
  }

  /// 0.5 x (1 + erf(x / sqrt(2))), multiplied in any order.
  std::optional<Step> errorGelu() {
    if (graph_.values[y_].users.size() != 2)
      return std::nullopt;
    const double rounding = precisionOf(graph_.values[y_].type) < 2 ? 1e-3 : 1e-6;
    auto near = [&](std::optional<double> a, double b) { return a && std::abs(*a - b) < rounding; };
    for (size_t i : {0, 1}) {
      const Node *inner = user(y_, i), *other = user(y_, 1 - i);
      if (!other || !near(factorOf(inner, y_), std::numbers::sqrt2 / 2) ||
          !isOwned(inner->output(0)))
        continue;
      const Node *erf = user(inner->output(0), 0);
      if (!erf || !erf->is("Erf") || !isOwned(erf->output(0)))
        continue;
      const Node *one = user(erf->output(0), 0);
      if (!one || !one->is("Add") || !isOwned(one->output(0)) || !rankStays(erf, one) ||
          (graph_.scalar(one->input(0)) != 1.0 && graph_.scalar(one->input(1)) != 1.0))
        continue;
      // Three factors are left: x, 1 + erf, 0.5.
      int half = -1, sum = one->output(0), x = y_;
      const Node *last = user(sum, 0);
      auto halves = [&](const Node *node, int of) {
        return near(factorOf(node, of), 0.5) && isOwned(node->output(0));
      };
      if (halves(last, sum)) { // 0.5 (1 + erf), times x
        half = sum = last->output(0);
        last = user(sum, 0);
      } else if (halves(other, y_)) { // 0.5 x, times 1 + erf
        half = x = other->output(0);
      }
      if (!last || !last->is("Mul") ||
          !((last->input(0) == sum && last->input(1) == x) ||
            (last->input(1) == sum && last->input(0) == x)))
        continue;
      if (half >= 0)
        return take(*last, "gelu");
      if (const Node *end = user(last->output(0), 0);
          isOwned(last->output(0)) && near(factorOf(end, last->output(0)), 0.5))
        return take(*end, "gelu");
    }
    return std::nullopt;
  }

  const Graph &graph_;
  const std::set<int> &taken_;
  const bool operands_;
  int y_;
  std::optional<Left> left_;
};

} // namespace

void takeSteps(const Graph &graph, const std::set<int> &taken, bool operands, int &y,
               std::vector<Step> &steps, std::vector<Left> &left) {
  constexpr size_t kMostSteps = 8;
  Follower follower(graph, taken, operands, y);
  while (steps.size() < kMostSteps) {
    auto step = follower.next();
    if (!step)
      break;
    if (step->text != "{expr: x}") // a sum of one
      steps.push_back(std::move(*step));
  }
  y = follower.y();
  if (follower.left())
    left.push_back(*follower.left());
}

} // namespace normforge::model
