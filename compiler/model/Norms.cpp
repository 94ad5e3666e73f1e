#include "compiler/model/Norms.h"

#include "llvm/ADT/STLExtras.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

namespace normforge::model {

std::string_view inWords(Kind kind) {
  constexpr std::string_view words[] = {"batch norm", "layer norm", "instance norm", "group norm",
                                        "RMS norm"};
  return words[static_cast<size_t>(kind)];
}

namespace {

class Finder {
public:
  explicit Finder(const Graph &graph) : graph_(graph) {}

  Found run() {
    // Operators first: those of decomposed forms are not within them.
    for (size_t i = 0; i < graph_.nodes.size(); ++i)
      ofOperator(static_cast<int>(i));
    for (size_t i = 0; i < graph_.nodes.size(); ++i)
      if (!taken_.contains(static_cast<int>(i)))
        ofRoot(static_cast<int>(i));
    llvm::erase_if(found_.left, [&](const Left &left) { return taken_.contains(left.node); });
    llvm::stable_sort(found_.norms,
                      [](const Norm &a, const Norm &b) { return a.nodes.back() < b.nodes.back(); });
    return std::move(found_);
  }

private:
  // ---- Looking through --------------------------------------------------------------------------

  const Node *producer(int value) const { return graph_.producer(value); }
  const Value &value(int v) const { return graph_.values[static_cast<size_t>(v)]; }

  /// The value that has the same numbers, element by element, before casts.
  int bare(int v) const {
    while (const Node *node = producer(v)) {
      if (node->input(0) < 0 || !(isWidening(*node) || isNothing(*node)))
        break;
      v = node->input(0);
    }
    return v;
  }
  /// A cast that loses no digit.
  bool isWidening(const Node &node) const {
    const int from = value(node.input(0)).type, to = value(node.output(0)).type;
    return node.is("Cast") && precisionOf(from) > 0 &&
           (from == to || precisionOf(to) > precisionOf(from));
  }
  /// A node that changes nothing, in inference.
  bool isNothing(const Node &node) const {
    if (node.is("Dropout"))
      return node.version >= 12 ? node.input(2) < 0 || graph_.scalar(node.input(2)) == 0.0
                                : node.version >= 7 || node.integer("is_test", 0) != 0;
    return node.is("Identity") ||
           (node.is("Cast") && value(node.input(0)).type == value(node.output(0)).type &&
            value(node.input(0)).type != 0);
  }
  bool same(int a, int b) const { return a >= 0 && b >= 0 && bare(a) == bare(b); }

  /// The only node that takes a value.
  const Node *onlyUser(int v) const {
    return value(v).hasOneUser() ? &graph_.nodes[value(v).users[0]] : nullptr;
  }

  /// The same, where it is of no other norm.
  const Node *freeUser(int v) const {
    return value(v).hasOneUser() && !taken_.contains(value(v).users[0]) ? onlyUser(v) : nullptr;
  }

  std::optional<int> rank(int v) const {
    const Shape *shape = graph_.shape(v);
    return shape ? std::optional(static_cast<int>(shape->size())) : std::nullopt;
  }

  static std::optional<std::vector<int64_t>> normalized(std::vector<int64_t> axes, int rank) {
    for (int64_t &axis : axes) {
      axis += axis < 0 ? rank : 0;
      if (axis < 0 || axis >= rank)
        return std::nullopt;
    }
    llvm::sort(axes);
    axes.erase(std::unique(axes.begin(), axes.end()), axes.end());
    return axes;
  }

  static constexpr int kMostDepth = 8; ///< of nodes that change nothing

  struct Mean {
    int of = -1; ///< the value
    std::vector<int64_t> axes;
  };

  /// The value whose mean `v` is, over axes that it still has, with 1 element each. `why` gets what
  /// is in the way where it is one after all.
  std::optional<Mean> meanOf(int v, std::string &why) const {
    v = bare(v);
    const Node *node = producer(v);
    if (!node)
      return std::nullopt;
    // Axes that were dropped are put back by what follows, the outermost first here.
    std::vector<const Node *> behind;
    while (node && (node->is("Unsqueeze") || node->is("Reshape") || node->is("Expand"))) {
      behind.push_back(node);
      v = bare(node->input(0));
      node = producer(v);
    }
    if (!node)
      return std::nullopt;
    double factor = 1;
    if (node->is("Mul") || node->is("Div")) { // of a sum, by its count
      const auto number = graph_.scalar(node->input(1));
      const Node *sum = producer(bare(node->input(0)));
      if (!number || !sum || !sum->is("ReduceSum"))
        return std::nullopt;
      factor = node->is("Mul") ? *number : 1 / *number;
      node = sum;
    } else if (!node->is("ReduceMean")) {
      return std::nullopt;
    }
    const int of = node->input(0);
    const auto all = rank(of);
    std::optional<std::vector<int64_t>> axes;
    const int last = node->op == "ReduceSum" ? 13 : 18;
    if (node->version < last) {
      axes = node->integers("axes");
    } else if (node->input(1) >= 0) {
      if (const Tensor *tensor = graph_.constant(node->input(1));
          tensor && tensor->hasValues() &&
          llvm::all_of(tensor->values, [](double axis) { return std::abs(axis) < 1024; }))
        axes = std::vector<int64_t>(tensor->values.begin(), tensor->values.end());
    }
    if (!axes) {
      why = "the axes of a mean are not constant, or all of them";
      return std::nullopt;
    }
    if (!all) {
      why = "the rank of what it normalizes is not known";
      return std::nullopt;
    }
    axes = normalized(*axes, *all);
    if (!axes || axes->empty())
      return std::nullopt;
    if (node->op == "ReduceSum") {
      double count = 1;
      for (int64_t axis : *axes) {
        const Dim &dim = (*graph_.shape(of))[static_cast<size_t>(axis)];
        if (!dim.isKnown())
          return std::nullopt;
        count *= static_cast<double>(*dim.size);
      }
      if (std::abs(factor * count - 1) > 1e-6)
        return std::nullopt;
    }
    // With all axes again, a mean may be expanded: each number stays in its place.
    const Shape &own = *graph_.shape(of);
    bool hasAll = node->integer("keepdims", 1) != 0;
    auto isOneEach = [&](const Shape *shape) {
      bool is = shape && shape->size() == own.size();
      for (size_t i = 0; is && i < own.size(); ++i)
        is = llvm::is_contained(*axes, static_cast<int64_t>(i)) ? (*shape)[i].size == 1
                                                                : (*shape)[i].same(own[i]);
      return is;
    };
    for (const Node *further : llvm::reverse(behind)) {
      if (!further->is("Expand"))
        hasAll = isOneEach(graph_.shape(further->output(0)));
      if (!hasAll)
        break;
    }
    if (!hasAll) {
      why = behind.empty() ? "a mean drops its axes (keepdims=0)"
                           : "a mean is reshaped, and its axes are not where they were";
      return std::nullopt;
    }
    return Mean{of, *axes};
  }

  /// d of d * d or d ** 2.
  std::optional<int> rootOf(int v) const {
    const Node *node = producer(bare(v));
    if (!node)
      return std::nullopt;
    if (node->is("Mul") && same(node->input(0), node->input(1)))
      return node->input(0);
    if (node->is("Pow") && graph_.scalar(node->input(1)) == 2.0)
      return node->input(0);
    return std::nullopt;
  }

  struct Spread {
    int x = -1;
    std::vector<int64_t> axes;
    bool hasMean = false;
  };

  /// The value whose variance, or mean of squares, `v` is.
  std::optional<Spread> spreadOf(int v, std::string &why, int depth = 0) const {
    if (auto mean = meanOf(v, why)) {
      const auto d = rootOf(mean->of);
      if (!d)
        return std::nullopt;
      if (const Node *sub = producer(bare(*d)); sub && sub->is("Sub")) {
        std::string inner;
        if (auto about = meanOf(sub->input(1), inner);
            about && same(about->of, sub->input(0)) && about->axes == mean->axes)
          return Spread{sub->input(0), mean->axes, true};
        if (!inner.empty())
          why = inner;
      }
      return Spread{*d, mean->axes, false};
    }
    const Node *node = producer(bare(v));
    if (!node)
      return std::nullopt;
    if (node->is("Max") && node->inputs.size() == 2)
      for (int i : {0, 1})
        if (graph_.scalar(node->input(i)) == 0.0)
          return depth < kMostDepth ? spreadOf(node->input(1 - i), why, depth + 1) : std::nullopt;
    if (node->is("Relu"))
      return depth < kMostDepth ? spreadOf(node->input(0), why, depth + 1) : std::nullopt;
    if (!node->is("Sub"))
      return std::nullopt;
    // The mean of squares less the square of the mean.
    const auto squares = meanOf(node->input(0), why);
    const auto root = rootOf(node->input(1));
    const auto of = squares ? rootOf(squares->of) : std::nullopt;
    const auto mean = root ? meanOf(*root, why) : std::nullopt;
    if (!squares || !of || !mean || !same(*of, mean->of) || squares->axes != mean->axes)
      return std::nullopt;
    return Spread{mean->of, mean->axes, true};
  }

  /// Whether a value is a variance times or over something.
  bool isScaledSpread(int v) const {
    for (int i = 0; i < 2; ++i) {
      const Node *node = producer(bare(v));
      if (!node || !(node->is("Mul") || node->is("Div")))
        return false;
      std::string why;
      v = node->input(0);
      if (spreadOf(v, why))
        return true;
    }
    return false;
  }

  /// Whether a value is what is divided: x less its mean, or x.
  bool isCentered(int v, const Spread &spread) const {
    if (!spread.hasMean)
      return same(v, spread.x);
    const Node *sub = producer(bare(v));
    std::string why;
    if (!sub || !sub->is("Sub") || !same(sub->input(0), spread.x))
      return false;
    const auto mean = meanOf(sub->input(1), why);
    return mean && same(mean->of, spread.x) && mean->axes == spread.axes;
  }

  // ---- Decomposed norms -------------------------------------------------------------------------

  void leave(int node, std::string why) {
    if (!why.empty())
      found_.left.push_back({node, std::move(why)});
  }

  /// From sqrt(variance + epsilon), or that to the power of -1.
  void ofRoot(int index) {
    const Node &node = graph_.nodes[index];
    bool isInverse = false;
    if (node.is("Pow")) {
      const auto power = graph_.scalar(node.input(1));
      if (power != 0.5 && power != -0.5)
        return;
      isInverse = power == -0.5;
    } else if (!node.is("Sqrt")) {
      return;
    }
    const Node *add = producer(bare(node.input(0)));
    std::string why;
    if (!add || !add->is("Add")) {
      if (spreadOf(node.input(0), why))
        leave(index, "no epsilon is within the root of its variance");
      else if (isScaledSpread(node.input(0)))
        leave(index,
              "its variance is scaled, by N/(N-1) perhaps, and no epsilon is within the root");
      return;
    }
    std::optional<Spread> spread;
    std::optional<double> epsilon;
    for (int i : {0, 1}) {
      std::string wrong;
      auto found = spreadOf(add->input(i), wrong);
      if (!found) {
        why = wrong.empty() ? why : wrong;
        continue;
      }
      spread = found;
      epsilon = graph_.scalar(add->input(1 - i));
    }
    if (!spread && why.empty() && (isScaledSpread(add->input(0)) || isScaledSpread(add->input(1))))
      why = "its variance is scaled, by N/(N-1) perhaps";
    if (!spread)
      return leave(index, why);
    if (!epsilon)
      return leave(index, "its epsilon is not constant");
    if (!(*epsilon > 0))
      return leave(index, fmt::format("its epsilon is {}", *epsilon));
    Norm norm;
    norm.kind = spread->hasMean ? Kind::Layer : Kind::Rms;
    norm.axes = spread->axes;
    norm.epsilon = *epsilon;
    norm.x = spread->x;
    if (!divide(node.output(0), isInverse, *spread, norm))
      return leave(index, "nothing is divided by it that is normalized");
    norm.form = fmt::format("{}, ...", producer(norm.y)->op);
    finish(std::move(norm));
  }

  /// Finds what is divided by a root, or multiplied with its inverse.
  bool divide(int root, bool isInverse, const Spread &spread, Norm &norm, int depth = 0) const {
    if (depth > kMostDepth)
      return false;
    for (int user : value(root).users) {
      const Node &node = graph_.nodes[user];
      const int out = node.output(0);
      if (out < 0)
        continue;
      // Rounded to x's own type at most.
      const bool isCast = node.is("Cast") && precisionOf(value(out).type) > 0 &&
                          precisionOf(value(out).type) >= precisionOf(value(spread.x).type);
      if ((isCast || node.is("Identity")) && divide(out, isInverse, spread, norm, depth + 1))
        return true;
      if (!isInverse) {
        const bool isNumerator = same(node.input(0), root);
        if (node.is("Div") && !isNumerator && isCentered(node.input(0), spread)) {
          norm.y = out;
          return true;
        }
        const bool inverts = node.is("Reciprocal") || (node.is("Div") && !isNumerator &&
                                                       graph_.scalar(node.input(0)) == 1.0);
        if (inverts && divide(out, /*isInverse=*/true, spread, norm, depth + 1))
          return true;
        continue;
      }
      if (!node.is("Mul"))
        continue;
      const int other = same(node.input(0), root) ? node.input(1) : node.input(0);
      if (isCentered(other, spread)) {
        norm.y = out;
        return true;
      }
      // gamma first.
      norm.gamma = other;
      if (scale(out, spread, norm))
        return true;
      norm.gamma = -1;
    }
    return false;
  }

  /// The same by `s`, gamma over the root.
  bool scale(int s, const Spread &spread, Norm &norm) const {
    for (int user : value(s).users) {
      const Node &node = graph_.nodes[user];
      if (!node.is("Mul"))
        continue;
      const int other = same(node.input(0), s) ? node.input(1) : node.input(0);
      if (isCentered(other, spread)) {
        norm.y = node.output(0);
        return true;
      }
      // x * s + (beta - mean * s)
      if (!spread.hasMean || !same(other, spread.x))
        continue;
      const Node *sum = onlyUser(node.output(0));
      if (!sum || !sum->is("Add"))
        continue;
      const int rest = sum->input(0) == node.output(0) ? sum->input(1) : sum->input(0);
      const Node *sub = producer(bare(rest));
      const Node *shift = sub && sub->is("Sub") ? producer(bare(sub->input(1))) : nullptr;
      std::string why;
      if (!shift || !shift->is("Mul"))
        continue;
      for (int i : {0, 1}) {
        const auto mean = meanOf(shift->input(i), why);
        if (mean && same(mean->of, spread.x) && same(shift->input(1 - i), s)) {
          norm.beta = sub->input(0);
          norm.y = sum->output(0);
          return true;
        }
      }
    }
    return false;
  }

  // ---- Parameters -------------------------------------------------------------------------------

  /// Whether a value has one number for each index of the axes, and the same for all others.
  bool isParameter(int v, int x, const std::vector<int64_t> &axes) const {
    const Shape *own = graph_.shape(v), *data = graph_.shape(x);
    if (!own || !data || own->size() > data->size())
      return false;
    const size_t offset = data->size() - own->size();
    for (size_t i = 0; i < data->size(); ++i) {
      const Dim one{.size = 1};
      const Dim &dim = i < offset ? one : (*own)[i - offset];
      const bool isOf = llvm::is_contained(axes, static_cast<int64_t>(i));
      if (isOf ? !dim.same((*data)[i]) : dim.size != 1)
        return false;
    }
    return true;
  }
  std::vector<int64_t> parameterAxes(const Norm &norm) const {
    return norm.kind == Kind::Layer || norm.kind == Kind::Rms ? norm.axes : std::vector<int64_t>{1};
  }

  /// A Mul and an Add behind y, where they are gamma and beta.
  void takeAffine(Norm &norm) const {
    const std::vector<int64_t> axes = parameterAxes(norm);
    auto take = [&](const char *op, int &parameter) {
      const Node *user = freeUser(norm.y);
      if (parameter >= 0 || !user || !user->is(op) || user->version < 7)
        return;
      const int other = user->input(0) == norm.y ? user->input(1) : user->input(0);
      if (other != norm.y && isParameter(other, norm.x, axes)) {
        parameter = other;
        norm.y = user->output(0);
      }
    };
    if (norm.beta < 0)
      take("Mul", norm.gamma);
    take("Add", norm.beta);
  }

  /// Nodes that change nothing.
  void passIdentities(Norm &norm) const {
    auto passes = [&](const Node *node) {
      return node && node->input(0) >= 0 && node->output(0) >= 0 && isNothing(*node);
    };
    while (passes(producer(norm.x)))
      norm.x = producer(norm.x)->input(0);
    while (passes(freeUser(norm.y)))
      norm.y = freeUser(norm.y)->output(0);
  }

  /// x from and y to half precision, where one cast is before and one behind all.
  void takeCasts(Norm &norm) const {
    const Node *before = producer(norm.x), *behind = freeUser(norm.y);
    if (!behind || !behind->is("Cast"))
      return;
    auto isWide = [](int type) { return type == kFloat || type == kDouble; };
    if (isWide(value(norm.y).type) && !isWide(value(norm.x).type) &&
        value(norm.x).type == value(behind->output(0)).type) {
      norm.y = behind->output(0);
      norm.notes.push_back("subtracts the mean in f32, where the model does in half precision");
      return;
    }
    if (!before || !before->is("Cast"))
      return;
    const int from = value(before->input(0)).type, to = value(behind->output(0)).type;
    if (from != to || from == value(norm.x).type || typeName(from).empty() ||
        !isWide(value(norm.x).type) || isWide(from))
      return;
    norm.x = before->input(0);
    norm.y = behind->output(0);
    if (norm.gamma < 0 && norm.beta < 0)
      if (const Node *user = onlyUser(norm.y); user && (user->is("Mul") || user->is("Add")))
        norm.notes.push_back("rounded once behind gamma and beta, where the model rounds before");
  }

  /// x by a Reshape or Flatten of another value, and y back: groups of channels, or axes as one.
  void takeReshapes(Norm &norm) const {
    const Node *before = producer(norm.x), *behind = freeUser(norm.y);
    if (!before || !behind || !(before->is("Reshape") || before->is("Flatten")) ||
        !behind->is("Reshape"))
      return;
    const int to = behind->output(0);
    const Shape *inner = graph_.shape(norm.x), *back = graph_.shape(to);
    if (!inner || norm.prologue.size() + norm.fuse.size() > 0)
      return;
    // Through several in a row, to the value whose shape is given back.
    int from = before->input(0);
    auto isBack = [&] {
      const Shape *outer = graph_.shape(from);
      return outer && outer->size() >= 2 &&
             ((behind->input(1) >= 0 && value(behind->input(1)).shapeOf == from) ||
              (back && back->size() == outer->size() &&
               llvm::all_of(llvm::zip(*back, *outer),
                            [](auto pair) { return std::get<0>(pair).same(std::get<1>(pair)); })));
    };
    while (!isBack()) {
      const Node *further = producer(bare(from));
      if (!further || !(further->is("Reshape") || further->is("Flatten")))
        return;
      from = further->input(0);
    }
    const Shape *outer = graph_.shape(from);
    const bool isPlain = norm.gamma < 0 && norm.beta < 0;
    std::vector<int64_t> trailing(inner->size() - std::min<size_t>(2, inner->size()));
    std::iota(trailing.begin(), trailing.end(), 2);
    const bool isRows =
        norm.kind == Kind::Instance || (norm.kind == Kind::Layer && norm.axes == trailing);
    // (N, groups, all the rest).
    if (isRows && isPlain && inner->size() >= 3 && (*inner)[1].isKnown() && (*outer)[1].isKnown() &&
        (*inner)[0].same((*outer)[0]) && *(*inner)[1].size > 0 &&
        *(*outer)[1].size % *(*inner)[1].size == 0) {
      norm.kind = Kind::Group;
      norm.groups = *(*inner)[1].size;
      norm.axes = {1};
    } else if ((norm.kind == Kind::Layer || norm.kind == Kind::Rms) && inner->size() == 2 &&
               norm.axes == std::vector<int64_t>{1} && (*inner)[1].isKnown()) {
      // (rows, the last axes as one).
      int64_t count = 1;
      size_t first = outer->size();
      while (first > 1 && count < *(*inner)[1].size && (*outer)[first - 1].isKnown())
        count *= *(*outer)[--first].size;
      if (count != *(*inner)[1].size || first == outer->size())
        return;
      for (int v : {norm.gamma, norm.beta})
        if (v >= 0 && !isParameter(v, norm.x, {1}))
          return;
      norm.isFlattened = true;
      norm.axes.resize(outer->size() - first);
      std::iota(norm.axes.begin(), norm.axes.end(), static_cast<int64_t>(first));
    } else {
      return;
    }
    norm.x = from;
    norm.y = to;
  }

  // ---- Operators --------------------------------------------------------------------------------

  void ofOperator(int index) {
    const Node &node = graph_.nodes[index];
    if (node.input(0) < 0 || node.output(0) < 0)
      return; // no norm of anything, or one that nobody wants
    const bool isOwn = node.domain.empty(), isMicrosoft = node.domain == "com.microsoft";
    if (isOwn && node.op == "BatchNormalization")
      return batch(index);
    if (isOwn && node.op == "InstanceNormalization")
      return instance(index);
    if (isOwn && node.op == "GroupNormalization")
      return group(index);
    if (isOwn && node.op == "LayerNormalization")
      return layer(index, Kind::Layer);
    if ((isOwn && node.op == "RMSNormalization") ||
        ((isOwn || isMicrosoft) && node.op == "SimplifiedLayerNormalization"))
      return layer(index, Kind::Rms);
    if (isMicrosoft &&
        (node.op == "SkipLayerNormalization" || node.op == "SkipSimplifiedLayerNormalization"))
      return skip(index);
    if (isMicrosoft && node.op == "GroupNorm")
      return leave(index, "GroupNorm of com.microsoft is not imported");
    if (isOwn && (node.op == "MeanVarianceNormalization" || node.op == "LRN" ||
                  node.op == "LpNormalization"))
      return leave(index,
                   node.op == "MeanVarianceNormalization"
                       ? "its epsilon is beside the root, and no kernel has that in this norm"
                       : "a norm of another kind");
  }

  Norm ofNode(const Node &node, Kind kind) const {
    Norm norm;
    norm.kind = kind;
    norm.form = node.op;
    norm.x = node.input(0);
    norm.y = node.output(0);
    norm.epsilon = node.number_("epsilon", 1e-5);
    norm.axes = {1};
    return norm;
  }

  void batch(int index) {
    const Node &node = graph_.nodes[index];
    if (node.version < 9 && node.integer("spatial", 1) == 0)
      return leave(index, "spatial=0: statistics of each place, which no mode has");
    Norm norm = ofNode(node, Kind::Batch);
    norm.momentum = node.number_("momentum", 0.9);
    norm.gamma = node.input(1);
    norm.beta = node.input(2);
    norm.mean = node.input(3);
    norm.variance = node.input(4);
    const auto outputs = llvm::count_if(node.outputs, [](int v) { return v >= 0; });
    norm.isTraining = node.version >= 14  ? node.integer("training_mode", 0) != 0
                      : node.version >= 7 ? outputs > 1
                                          : outputs > 1 && node.integer("is_test", 0) == 0;
    if (norm.isTraining) {
      norm.newMean = node.output(1);
      norm.newVariance = node.output(2);
      norm.stays = "it trains, and rewritten nodes have inference alone";
    } else if (node.version < 7 && node.integer("is_test", 0) == 0) {
      norm.notes.push_back("is_test=0 with one output: taken for inference");
    }
    for (int v : {norm.mean, norm.variance})
      if (!norm.isTraining && v >= 0 && value(v).producer >= 0 && !graph_.constant(v)) {
        norm.notes.push_back("its mean and variance are computed in the model");
        break;
      }
    const auto all = rank(norm.x);
    if (all && *all < 2)
      return leave(index, fmt::format("x of rank {}", *all));
    finish(std::move(norm));
  }

  void instance(int index) {
    const Node &node = graph_.nodes[index];
    Norm norm = ofNode(node, Kind::Instance);
    norm.gamma = node.input(1);
    norm.beta = node.input(2);
    // Ones and zeros change nothing: it may be a group norm.
    const Tensor *gamma = graph_.constant(norm.gamma), *beta = graph_.constant(norm.beta);
    const Node *before = producer(norm.x);
    if (gamma && beta && gamma->isAll(1) && beta->isAll(0) && before && before->is("Reshape")) {
      Norm plain = norm;
      plain.gamma = plain.beta = -1;
      takeReshapes(plain);
      if (plain.kind == Kind::Group)
        norm = std::move(plain);
    }
    finish(std::move(norm));
  }

  void group(int index) {
    const Node &node = graph_.nodes[index];
    Norm norm = ofNode(node, Kind::Group);
    norm.groups = node.integer("num_groups", 0);
    norm.gamma = node.input(1);
    norm.beta = node.input(2);
    if (norm.groups < 1)
      return leave(index, fmt::format("num_groups is {}", norm.groups));
    if (node.version < 21) {
      norm.notes.push_back(
          "gamma and beta of opset 18 are of groups: repeat each over its channels");
      norm.stays = "its gamma and beta are of groups (opset 18)";
    }
    finish(std::move(norm));
  }

  void layer(int index, Kind kind) {
    const Node &node = graph_.nodes[index];
    Norm norm = ofNode(node, kind);
    norm.gamma = node.input(1);
    norm.beta = kind == Kind::Layer ? node.input(2) : -1;
    const auto all = rank(norm.x);
    if (!all)
      return leave(index, "the rank of x is not known");
    int64_t axis = node.integer("axis", -1);
    axis += axis < 0 ? *all : 0;
    if (axis < 0 || axis >= *all)
      return leave(index, fmt::format("axis {} of x of rank {}", node.integer("axis", -1), *all));
    norm.axes.resize(static_cast<size_t>(*all - axis));
    std::iota(norm.axes.begin(), norm.axes.end(), axis);
    for (size_t i = 1; i < node.outputs.size(); ++i)
      if (node.output(i) >= 0 &&
          (!value(node.output(i)).users.empty() || value(node.output(i)).isOutput ||
           value(node.output(i)).isUsedWithin))
        norm.stays = "its mean or deviation is used, too";
    finish(std::move(norm));
  }

  void skip(int index) {
    const Node &node = graph_.nodes[index];
    const bool isRms = node.op == "SkipSimplifiedLayerNormalization";
    Norm norm = ofNode(node, isRms ? Kind::Rms : Kind::Layer);
    norm.epsilon = node.number_("epsilon", 1e-12);
    norm.gamma = node.input(2);
    norm.beta = isRms ? -1 : node.input(3);
    const int bias = node.input(isRms ? 3 : 4), addend = node.input(1);
    const auto all = rank(norm.x);
    if (!all)
      return leave(index, "the rank of x is not known");
    norm.axes = {*all - 1};
    const Shape *own = graph_.shape(norm.x), *other = graph_.shape(addend);
    if (!other)
      return leave(index, "the shape of what is added is not known");
    if (other->size() != own->size() || !llvm::all_of(llvm::zip(*own, *other), [](auto pair) {
          return std::get<0>(pair).same(std::get<1>(pair));
        }))
      return leave(index, fmt::format("what is added has shape {} beside x of shape {}",
                                      text(*other), text(*own)));
    if (bias >= 0)
      norm.prologue.push_back({"bias", bias});
    for (size_t i : {1, 2})
      if (const int v = node.output(i);
          v >= 0 && (!value(v).users.empty() || value(v).isOutput || value(v).isUsedWithin))
        norm.stays = "its mean or deviation is used, too";
    const int sum = node.output(3);
    const bool isWanted =
        sum >= 0 && (!value(sum).users.empty() || value(sum).isOutput || value(sum).isUsedWithin);
    norm.sum = isWanted ? sum : -1;
    norm.prologue.push_back({isWanted ? "{add: {store: sum}}" : "add", addend});
    finish(std::move(norm));
  }

  // ---- What all end with ------------------------------------------------------------------------

  void finish(Norm norm) {
    const int first = value(norm.y).producer;
    // Casts and reshapes are before or behind gamma and beta.
    for (int round = 0; round < 2; ++round) {
      passIdentities(norm);
      takeReshapes(norm);
      takeCasts(norm);
      passIdentities(norm);
      takeAffine(norm);
    }
    if (const std::string why = problemOf(norm); !why.empty())
      return leave(first, why);
    // Who takes a stored sum may come before what the steps take.
    takeSteps(graph_, taken_, /*operands=*/norm.sum < 0, norm.y, norm.fuse, found_.left);
    if (precisionOf(value(norm.x).type) == 1 && !norm.fuse.empty())
      norm.notes.push_back("rounded once behind its steps, where the model rounds before each");
    norm.nodes = cone(norm);
    for (int node : norm.nodes)
      taken_.insert(node);
    found_.norms.push_back(std::move(norm));
  }

  std::string problemOf(const Norm &norm) const {
    const Shape *shape = graph_.shape(norm.x);
    if (!shape)
      return "the rank of x is not known";
    if (shape->size() > 6)
      return fmt::format("x of rank {}; specs have 6 axes at most", shape->size());
    const int type = value(norm.x).type;
    if (typeName(type).empty())
      return type == 0 ? "the type of x is not known" : "x of a type that no kernel has";
    if (value(norm.y).type != 0 && value(norm.y).type != type)
      return "casts between: y has another type than x";
    if (const Shape *result = graph_.shape(norm.y); result && result->size() != shape->size())
      return fmt::format("y of shape {} beside x of shape {}", text(*result), text(*shape));
    int parameters = 0;
    for (int v : {norm.gamma, norm.beta, norm.mean, norm.variance}) {
      if (v < 0)
        continue;
      const int own = value(v).type;
      if (own != 0 && typeName(own).empty())
        return "a parameter of a type that no kernel has";
      if (parameters != 0 && own != 0 && own != parameters)
        return "casts between: its parameters have two types";
      parameters = own != 0 ? own : parameters;
    }
    const bool isOfRows = norm.kind == Kind::Layer || norm.kind == Kind::Rms;
    if (shape->size() < 2 && !isOfRows)
      return fmt::format("x of rank {}", shape->size());
    // Specs say the size of what parameters index.
    for (int64_t axis : isOfRows ? norm.axes : std::vector<int64_t>{1})
      if (!(*shape)[static_cast<size_t>(axis)].isKnown() &&
          (*shape)[static_cast<size_t>(axis)].name.empty())
        return fmt::format("the size of axis {} of x is not known", axis);
    const bool isOfGroups = norm.kind == Kind::Group && !norm.stays.empty();
    for (auto [v, word] : {std::pair(norm.gamma, "scale"), {norm.beta, "bias"}}) {
      if (v < 0 || isOfGroups)
        continue;
      const Shape *own = graph_.shape(v);
      if (!own)
        return fmt::format("the shape of its {} is not known", word);
      const bool isFlat = !isOfRows && own->size() == 1 && (*own)[0].same((*shape)[1]);
      if (!isFlat && !isParameter(v, norm.x, parameterAxes(norm)) &&
          !(norm.isFlattened && isFlattened(*own, norm)))
        return fmt::format("a {} of shape {} {} x of shape {}", word, text(*own),
                           isOfRows ? "that broadcasts over" : "beside", text(*shape));
    }
    return {};
  }

  /// (1, the axes as one), as a Flatten leaves it.
  bool isFlattened(const Shape &own, const Norm &norm) const {
    int64_t count = 1;
    for (int64_t axis : norm.axes) {
      const Dim &dim = (*graph_.shape(norm.x))[static_cast<size_t>(axis)];
      if (!dim.isKnown())
        return false;
      count *= *dim.size;
    }
    return !own.empty() && own.back().size == count &&
           llvm::all_of(llvm::ArrayRef(own).drop_back(),
                        [](const Dim &dim) { return dim.size == 1; });
  }

  /// All nodes between what a norm takes and what it gives, in order.
  std::vector<int> cone(const Norm &norm) const {
    std::set<int> ends{norm.x, norm.gamma, norm.beta, norm.mean, norm.variance};
    for (const std::vector<Step> *steps : {&norm.prologue, &norm.fuse})
      for (const Step &step : *steps)
        ends.insert(step.operand);
    std::set<int> nodes;
    std::vector<int> open{norm.y};
    while (!open.empty()) {
      const int v = open.back();
      open.pop_back();
      const int node = v < 0 || ends.contains(v) || graph_.constant(v) ? -1 : value(v).producer;
      if (node < 0 || !nodes.insert(node).second)
        continue;
      const Node &of = graph_.nodes[node];
      for (int input : of.inputs)
        open.push_back(input);
    }
    // Shapes are of no norm, wherever they come from.
    std::vector<int> all;
    for (int node : nodes)
      if (!llvm::is_contained({"Shape", "Size", "Gather", "Concat", "Slice"},
                              graph_.nodes[node].op))
        all.push_back(node);
    return all;
  }

  const Graph &graph_;
  Found found_;
  std::set<int> taken_;
};

} // namespace

Found findNorms(const Graph &graph) { return Finder(graph).run(); }

} // namespace normforge::model
