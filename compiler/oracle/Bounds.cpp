// How far a kernel's outputs may lie from the exact ones, element by element: the operator's own
// formulas, each value carried with a bound of its error.
//
// The values of the reference are not these: the reference has formulas of its own. Here the
// operator that kernels are made from is evaluated in f64, and every operation adds what its
// rounding and the errors of its operands may come to (running error analysis; Wilkinson 1986,
// Higham 2002, section 3.3). u is the unit roundoff of the accumulators, 2^-24 for f32 and 2^-53
// for f64; m, v and s are a group's mean, variance and deviation; n is its size.
//
// Growth with n. A sum of n terms rounds at most n times, each time by at most u times the partial
// sum. Roundings of drawn data have no common sign, so their sum grows like a random walk: its
// standard deviation is at most u * sqrt(n/3) * sum|x| for one accumulator, which is what a group
// has where the lanes of a vector are different groups. 2.5 * sqrt(n) is four of them. Roundings do
// have a common sign where one and the same number is added over and over to a sum that dwarfs it:
// in a group that is constant up to a few roundings, and in one where a single element makes up the
// variance. There the growth is the n/8 additions of one of eight lanes; beside a single element
// n/2, for rows of two elements have two lanes (244 such rows in one group: 100 roundings). oneDNN
// sums long groups into one accumulator, which in the end dwarfs every term: n/8 for it too (2e5
// terms and more show it, 1e6 err by n/20). 8 more are for what does not grow: divisions, the merge
// of partial results, the conversion to the result's dtype.
//
// Moments. The mean that x is subtracted from is any number near the mean: what it lacks is in the
// sum of residuals, whose error is what counts, u*growth*n*(s + f) with f = u*growth*(|m| + s) for
// how far off that number may be, and 4u|m|n for the merge, in which each partial mean is off by a
// rounding of m. The sum of squares errs by u*growth*(n v + n f^2), and by 4u|m|s n in the merge.
// oneDNN sums once: its mean errs by u*growth*(|m| + s), and its variance by the square of that
// too.

#include "compiler/oracle/Oracle.h"

#include "compiler/operator/Operator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace normforge::oracle {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double unitRoundoff(DType dtype) {
  constexpr double units[dtypeCount] = {0x1p-24, 0x1p-53, 0x1p-8, 0x1p-11, 0};
  return units[static_cast<unsigned>(dtype)];
}
/// The absolute error of an operation whose result is denormal, twice. Of bf16 it is the denormals
/// themselves: AVX512-BF16's conversion makes them 0.
double tiny(DType dtype) {
  constexpr double errors[dtypeCount] = {0x1p-148, 0x1p-1073, 0x1p-126, 0x1p-24, 0};
  return errors[static_cast<unsigned>(dtype)];
}

double largest(DType dtype) {
  constexpr double numbers[dtypeCount] = {0x1.fffffep127, 0x1.fffffffffffffp1023, 0x1.fep127, 65504,
                                          kInfinity};
  return numbers[static_cast<unsigned>(dtype)];
}

/// A value and how far off a kernel's may be. A condition is 0 or 1, and off by 1 where it may be
/// either.
struct Bounded {
  double value = 0, error = 0;
};

class Evaluator {
public:
  Evaluator(const Operator &op, const Sizes &sizes, const Arrays &inputs, const Numbers &scalars,
            bool corrected);

  /// The tolerances, by written operand.
  std::map<std::string, Tolerance> run();

private:
  using Array = std::vector<Bounded>;
  /// Calls body() for every index of these loops that exists, with it in index_.
  template <typename Body> void forEach(const std::vector<int> &loops, Body body);
  bool exists() const {
    return !op_.blocked ||
           index_[op_.blocked->outer] * op_.blocked->block + index_[op_.blocked->inner] < limit_;
  }
  /// A dense array of values, as the operator has them.
  struct Extent {
    std::vector<int64_t> strides; ///< by loop
    size_t elements = 0;
  };
  Extent extentOf(const std::vector<int> &loops) const {
    const Operator::Dense dense = op_.dense(loops);
    Extent extent;
    for (const SizeExpr &stride : dense.strides)
      extent.strides.push_back(stride.evaluate(sizes_).value());
    extent.elements = static_cast<size_t>(dense.elements.evaluate(sizes_).value());
    return extent;
  }
  /// Position of the current index in it.
  size_t position(const Extent &extent) const {
    int64_t at = 0;
    for (size_t loop = 0; loop < extent.strides.size(); ++loop)
      at += index_[loop] * extent.strides[loop];
    return static_cast<size_t>(at);
  }
  int64_t count(const std::vector<int> &loops) const {
    int64_t product = 1;
    for (int loop : loops)
      product *= extents_[loop];
    return product;
  }
  int64_t elements(const Operand &operand) const {
    int64_t product = 1;
    for (const SizeExpr &size : operand.shape)
      product *= size.evaluate(sizes_).value();
    return product;
  }
  int64_t offset(size_t array) const {
    int64_t at = 0;
    for (size_t loop = 0; loop < index_.size(); ++loop)
      at += index_[loop] * strides_[array][loop];
    return at;
  }
  Bounded rounded(double value, double error, double roundings = 1) const {
    return {value, error + roundings * u_ * (std::abs(value) + error) + least_ + lost(value)};
  }
  Bounded approximated(double value, double error) const { return rounded(value, error, 8); }
  /// A value that a kernel cannot hold is infinite to it, and may be anything later.
  double lost(double value) const {
    const bool isHeld = op_.compute == DType::F64 || !std::isfinite(value) ||
                        std::abs(value) <= largest(DType::F32);
    return isHeld ? 0 : kInfinity;
  }
  /// The nodes that these are made of, but for those of one value for all elements.
  std::vector<Expr> nodesOf(std::span<const Expr> roots) const;
  /// The formulas of `nodes` at the current index, into values_.
  void evaluate(const std::vector<Expr> &nodes);
  Bounded evaluate(Expr expr);
  void takeMoments(const Step &step);
  void takeSum(const Step &step);
  void takeMaximum(const Step &step);
  void takeMap(const Step &step);
  std::string why() const;

  const Operator &op_;
  const bool corrected_; ///< whether the mean is, by the sum of the residuals
  double u_, least_;
  std::vector<int64_t> sizes_, extents_;
  std::vector<double> scalars_;
  std::vector<std::vector<int64_t>> strides_; ///< by array and loop: operands, then known ones
  std::vector<const HostArray *> inputsOf_;   ///< by array; null for written operands
  int64_t limit_ = 0;                         ///< of the blocked axis
  std::vector<int64_t> index_;                ///< by loop
  std::vector<Bounded> values_;               ///< by node
  std::vector<bool> isRead_;                  ///< by result, whether another step reads it
  std::vector<Extent> extentOfResult_;        ///< by result
  std::vector<Array> results_;                ///< by result, of those that are read
  std::map<std::string, Tolerance> tolerances_;
  int64_t terms_ = 0; ///< of the longest sum
};

Evaluator::Evaluator(const Operator &op, const Sizes &sizes, const Arrays &inputs,
                     const Numbers &scalars, bool corrected)
    : op_(op), corrected_(corrected), u_(unitRoundoff(op.compute)), least_(tiny(op.compute)),
      index_(op.loops.size()), values_(op.exprs.size()) {
  for (const std::string &name : op.sizes)
    sizes_.push_back(sizes.at(name));
  for (const Scalar &scalar : op.scalars)
    scalars_.push_back(scalars.at(scalar.name));
  for (const Loop &loop : op.loops)
    extents_.push_back(loop.size.evaluate(sizes_).value());
  if (op.blocked)
    limit_ = op.blocked->size.evaluate(sizes_).value();
  auto addArray = [&](const Operand &array, const HostArray *values) {
    inputsOf_.push_back(values);
    std::vector<int64_t> &strides = strides_.emplace_back();
    for (const SizeExpr &stride : array.strides)
      strides.push_back(stride.evaluate(sizes_).value());
  };
  for (const Operand &operand : op.operands)
    addArray(operand, operand.written ? nullptr : &inputs.at(operand.name));
  for (const KnownArray &known : op.known)
    addArray(known.array, &known.values);
}

template <typename Body> void Evaluator::forEach(const std::vector<int> &loops, Body body) {
  std::fill(index_.begin(), index_.end(), 0);
  if (count(loops) == 0)
    return;
  for (;;) {
    if (exists())
      body();
    size_t i = loops.size();
    while (i > 0 && ++index_[loops[i - 1]] == extents_[loops[i - 1]])
      index_[loops[--i]] = 0;
    if (i == 0)
      return;
  }
}

Bounded Evaluator::evaluate(Expr expr) {
  const Node &node = op_.exprs[expr];
  const auto in = [&](unsigned k) -> const Bounded & { return values_[node.in[k]]; };
  const Bounded a = arityOf(node.op) > 0 ? in(0) : Bounded();
  const Bounded b = arityOf(node.op) > 1 ? in(1) : Bounded();
  auto product = [](Bounded x, Bounded y) {
    return std::abs(x.value) * y.error + std::abs(y.value) * x.error + x.error * y.error;
  };
  auto given = [&](double value) {
    const bool isHeld = op_.compute == DType::F64 || static_cast<float>(value) == value;
    return Bounded{value, isHeld ? 0 : u_ * std::abs(value)};
  };
  switch (node.op) {
  case ExprOp::Constant:
    return given(node.number);
  case ExprOp::Operand: { // a kernel computes with what is stored, or as much as it has digits
    const double value = inputsOf_[node.index]->get(offset(node.index));
    const Operand &operand = op_.operands[node.index];
    const bool isExact = operand.isBits() || unitRoundoff(operand.dtype) >= u_;
    return isExact ? Bounded{value, 0} : given(value);
  }
  case ExprOp::Known: { // as a kernel of more digits would have computed it
    const size_t array = op_.operands.size() + node.index;
    const double value = inputsOf_[array]->get(offset(array));
    return {value, u_ * std::abs(value)};
  }
  case ExprOp::Result: {
    return results_[node.index][position(extentOfResult_[node.index])];
  }
  case ExprOp::Scalar:
    return given(scalars_[node.index]);
  case ExprOp::Size:
    return given(static_cast<double>(op_.exprs.sizeOf(expr).evaluate(sizes_).value()));
  case ExprOp::Add:
    return rounded(a.value + b.value, a.error + b.error);
  case ExprOp::Sub:
    if (a.error == 0 && b.error == 0 && a.value == b.value) // exactly
      return {0, 0};
    return rounded(a.value - b.value, a.error + b.error);
  case ExprOp::Mul:
    return rounded(a.value * b.value, product(a, b));
  case ExprOp::Div: {
    const double value = a.value / b.value, least = std::abs(b.value) - b.error;
    return rounded(value, least > 0 ? (a.error + std::abs(value) * b.error) / least : kInfinity);
  }
  case ExprOp::Fma:
    // CPUs without the instruction round the product, too.
    return rounded(std::fma(a.value, b.value, in(2).value),
                   product(a, b) + u_ * std::abs(a.value * b.value) + in(2).error);
  case ExprOp::Neg:
    return {-a.value, a.error};
  case ExprOp::Abs:
    return {std::abs(a.value), a.error};
  // Functions err by 2 units in the last place, erf and tanh in f64 by 4: at most 8 roundings.
  case ExprOp::Exp: {
    const double value = std::exp(a.value);
    return approximated(value, value * std::expm1(a.error));
  }
  case ExprOp::Expm1:
    return approximated(std::expm1(a.value), std::exp(a.value) * std::expm1(a.error));
  case ExprOp::Log:
  case ExprOp::Log1p: {
    const double of = node.op == ExprOp::Log ? a.value : 1 + a.value;
    return approximated(node.op == ExprOp::Log ? std::log(a.value) : std::log1p(a.value),
                        of > a.error   ? a.error / (of - a.error)
                        : a.error == 0 ? 0
                                       : kInfinity);
  }
  case ExprOp::Erf: {
    const double nearest = std::max(0.0, std::abs(a.value) - a.error);
    return approximated(std::erf(a.value),
                        a.error * std::min(2.0, 1.2 * std::exp(-nearest * nearest)));
  }
  case ExprOp::Tanh: {
    const double nearest = std::tanh(std::max(0.0, std::abs(a.value) - a.error));
    return approximated(std::tanh(a.value), a.error * (1 - nearest * nearest));
  }
  case ExprOp::Floor:
  case ExprOp::RoundEven: {
    auto of = [&](double v) {
      return node.op == ExprOp::Floor ? std::floor(v) : std::nearbyint(v);
    };
    const double value = of(a.value);
    return {value, std::max(of(a.value + a.error) - value, value - of(a.value - a.error))};
  }
  case ExprOp::Sqrt: {
    const double value = std::sqrt(a.value);
    return rounded(value, std::max(std::sqrt(a.value + a.error) - value,
                                   value - std::sqrt(std::max(0.0, a.value - a.error))));
  }
  case ExprOp::Less:
  case ExprOp::LessEqual: {
    const double errors = a.error + b.error;
    // Two exact numbers compare as they do.
    const bool isKnown = errors == 0 || std::abs(a.value - b.value) > errors;
    const bool either = !isKnown && !std::isnan(a.value) && !std::isnan(b.value);
    const bool holds = node.op == ExprOp::Less ? a.value < b.value : a.value <= b.value;
    return {holds ? 1.0 : 0.0, either ? 1.0 : 0.0};
  }
  case ExprOp::IsNan:
    return {std::isnan(a.value) ? 1.0 : 0.0, 0};
  case ExprOp::Not:
    return {1 - a.value, a.error};
  case ExprOp::And: {
    auto never = [](const Bounded &x) { return x.value == 0 && x.error == 0; };
    return {a.value * b.value, never(a) || never(b) ? 0 : std::max(a.error, b.error)};
  }
  case ExprOp::Select: {
    const Bounded taken = a.value != 0 ? b : in(2), other = a.value != 0 ? in(2) : b;
    if (a.error == 0)
      return taken;
    return {taken.value, std::max(taken.error, std::abs(taken.value - other.value) + other.error)};
  }
  }
  return {};
}

std::vector<Expr> Evaluator::nodesOf(std::span<const Expr> roots) const {
  std::vector<Expr> nodes = op_.exprs.nodesOf(roots);
  std::erase_if(nodes, [&](Expr expr) { return op_.exprs.isUniform(expr); });
  return nodes;
}

void Evaluator::evaluate(const std::vector<Expr> &nodes) {
  for (Expr expr : nodes) {
    values_[expr] = evaluate(expr);
    if (std::isnan(values_[expr].error)) // infinite errors that meet
      values_[expr].error = kInfinity;
  }
}

void Evaluator::takeMoments(const Step &step) {
  const Expr root = step.results[0].value;
  const bool isWeighted = step.results.size() > 3;
  std::vector<Expr> roots{root};
  if (isWeighted)
    roots.push_back(step.results[3].value);
  auto weight = [&] { return isWeighted ? values_[roots[1]].value : 1.0; };
  const std::vector<Expr> nodes = nodesOf(roots);
  const Extent &kept = extentOfResult_[step.firstResult];
  struct Group {
    long double sum = 0, residuals = 0, squares = 0, weights = 0;
    double n = 0, errors = 0, largest = 0, mean = 0;
  };
  std::vector<Group> groups(kept.elements);
  forEach(step.loops, [&] {
    evaluate(nodes);
    Group &g = groups[position(kept)];
    g.sum += weight() * static_cast<long double>(values_[root].value);
    g.weights += weight();
    g.errors += weight() * values_[root].error;
    g.n += 1;
  });
  for (Group &g : groups) {
    g.mean = g.weights == 0 ? 0 : static_cast<double>(g.sum / g.weights);
    if (op_.compute == DType::F32)
      g.mean = static_cast<float>(g.mean);
  }
  forEach(step.loops, [&] {
    evaluate(nodes);
    Group &g = groups[position(kept)];
    const double residual = values_[root].value - g.mean;
    g.residuals += weight() * static_cast<long double>(residual);
    g.squares += weight() * static_cast<long double>(residual) * residual;
    if (const double size = std::abs(residual); size > g.largest || std::isnan(size))
      g.largest = size; // a NaN stays
  });
  Array *arrays[4];
  for (uint32_t i = 0; i < step.results.size(); ++i) {
    arrays[i] = &results_[step.firstResult + i];
    arrays[i]->resize(groups.size());
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    const Group &g = groups[i];
    const double n = g.n, m = std::abs(g.mean);
    const double squares = static_cast<double>(g.squares),
                 s = g.weights == 0 ? 0 : std::sqrt(squares / static_cast<double>(g.weights));
    const bool isConstant = s <= 8 * u_ * m;
    const bool isOneElement = 4 * g.largest * g.largest >= squares;
    // Data with few digits have the same values again and again, whose squares round alike. (In f32
    // sums are of blocks.)
    const bool isCoarse = op_.compute == DType::F64 && byteSize(op_.dtype) == 2;
    const double growth =
        8 + std::max(2.5 * std::sqrt(n), isOneElement                            ? n / 2
                                         : isConstant || isCoarse || !corrected_ ? n / 8
                                                                                 : 0);
    // A weighed term rounds once more.
    const double grown = u_ * (growth + isWeighted), first = grown * (m + s);
    const double mean = corrected_ ? grown * (s + first) + 4 * u_ * m : first;
    (*arrays[0])[i] = {g.mean, 0};
    if (n == 1 && !isWeighted) { // of one element nothing is rounded
      (*arrays[1])[i] = {static_cast<double>(g.residuals), g.errors};
      (*arrays[2])[i] = {squares, (2 * g.largest + g.errors) * g.errors + lost(squares)};
      continue;
    }
    (*arrays[1])[i] = {static_cast<double>(g.residuals), g.errors + n * (mean + least_)};
    (*arrays[2])[i] = {squares, grown * (squares + n * first * first) +
                                    n * (4 * u_ * m * s + mean * mean + least_) +
                                    2 * (g.largest + first) * g.errors + lost(squares)};
    if (isWeighted) {
      const double weights = static_cast<double>(g.weights);
      (*arrays[3])[i] = {weights, u_ * (8 + n / 8) * weights};
    }
    terms_ = std::max(terms_, static_cast<int64_t>(n));
  }
}

/// u*growth of the sum of absolute values, and the terms' own errors.
void Evaluator::takeSum(const Step &step) {
  const std::vector<Expr> roots = step.values();
  const std::vector<Expr> nodes = nodesOf(roots);
  const Extent &kept = extentOfResult_[step.firstResult];
  struct Total {
    long double sum = 0, absolute = 0;
    double n = 0, errors = 0, largest = 0;
  };
  const size_t count = kept.elements;
  std::vector<Total> totals(roots.size() * count);
  forEach(step.loops, [&] {
    evaluate(nodes);
    for (size_t r = 0; r < roots.size(); ++r) {
      Total &total = totals[r * count + position(kept)];
      const Bounded &term = values_[roots[r]];
      total.sum += term.value;
      total.absolute += std::abs(term.value);
      total.errors += term.error;
      total.n += 1;
      total.largest = std::max(total.largest, std::abs(term.value));
    }
  });
  for (size_t r = 0; r < roots.size(); ++r)
    results_[step.firstResult + r].resize(count);
  for (size_t i = 0; i < totals.size(); ++i) {
    const Total &total = totals[i];
    const double absolute = static_cast<double>(total.absolute);
    // Terms of one size round with one sign, as where a single term is all of the sum.
    const bool isEven = absolute >= 0.99 * total.n * total.largest;
    const bool isOneElement = 4 * total.largest >= absolute;
    const double growth = 8 + std::max(2.5 * std::sqrt(total.n), isOneElement ? total.n / 2
                                                                 : isEven     ? total.n / 8
                                                                              : 0);
    results_[step.firstResult + i / count][i % count] = {static_cast<double>(total.sum),
                                                         total.errors + u_ * growth * absolute +
                                                             total.n * least_ + lost(absolute)};
    terms_ = std::max(terms_, static_cast<int64_t>(total.n));
  }
}

/// The greatest is one of the values, and as far off as the most inexact of them may be.
void Evaluator::takeMaximum(const Step &step) {
  const std::vector<Expr> roots = step.values();
  const std::vector<Expr> nodes = nodesOf(roots);
  const Extent &kept = extentOfResult_[step.firstResult];
  for (size_t r = 0; r < roots.size(); ++r)
    results_[step.firstResult + r].assign(kept.elements,
                                          {-std::numeric_limits<double>::infinity(), 0});
  forEach(step.loops, [&] {
    evaluate(nodes);
    for (size_t r = 0; r < roots.size(); ++r) {
      Bounded &greatest = results_[step.firstResult + r][position(kept)];
      const Bounded &value = values_[roots[r]];
      if (!std::isnan(greatest.value) && !(value.value <= greatest.value))
        greatest.value = value.value;
      greatest.error = std::max(greatest.error, value.error);
    }
  });
}

void Evaluator::takeMap(const Step &step) {
  const std::vector<Expr> roots = step.values();
  const std::vector<Expr> nodes = nodesOf(roots);
  std::vector<std::shared_ptr<std::vector<double>>> allowed(step.results.size());
  for (size_t i = 0; i < step.results.size(); ++i) {
    const Result &result = step.results[i];
    if (isRead_[step.firstResult + i])
      results_[step.firstResult + i].resize(extentOfResult_[step.firstResult + i].elements);
    if (result.operand >= 0)
      allowed[i] = std::make_shared<std::vector<double>>(
          static_cast<size_t>(elements(op_.operands[result.operand])));
  }
  forEach(step.loops, [&] {
    evaluate(nodes);
    for (size_t i = 0; i < step.results.size(); ++i) {
      const Result &result = step.results[i];
      const Bounded found = values_[roots[i]];
      const bool isRead = isRead_[step.firstResult + i];
      if (isRead)
        results_[step.firstResult + i][position(extentOfResult_[step.firstResult + i])] = found;
      if (result.operand < 0)
        continue;
      // It is rounded once more where it is stored in fewer digits, and read as it is stored.
      const DType stored = op_.operands[result.operand].dtype;
      // The reference reads it as it rounds it, too: the two may be a unit in the last place apart.
      if (isRead && op_.isWhole(op_.operands[result.operand]))
        results_[step.firstResult + i][position(extentOfResult_[step.firstResult + i])].error +=
            2 * unitRoundoff(stored) * (std::abs(found.value) + found.error) + tiny(stored);
      // The reference rounds, too, in f64.
      double error = found.error * (1 + unitRoundoff(DType::F64) / u_);
      if (unitRoundoff(stored) > u_) {
        // From f64 to half precision it goes by f32.
        const double unit =
            unitRoundoff(stored) +
            (byteSize(stored) < 4 ? std::max(0.0, unitRoundoff(DType::F32) - u_) : 0);
        error += unit * (std::abs(found.value) + error) + tiny(stored);
        if (std::abs(found.value) + error >= largest(stored))
          error = kInfinity; // it may be stored as one
      }
      if (stored == DType::Bit && error > 0)
        error = kInfinity; // either bit is right
      // Where not even the exact value is a number there is nothing to be far from.
      (*allowed[i])[static_cast<size_t>(offset(static_cast<size_t>(result.operand)))] =
          std::isnan(error) ? kInfinity : error;
    }
  });
  for (size_t i = 0; i < step.results.size(); ++i) {
    const Result &result = step.results[i];
    if (result.operand < 0)
      continue;
    Tolerance tolerance;
    tolerance.elements = allowed[i];
    tolerance.why = why();
    for (Expr expr : op_.exprs.nodesOf(std::span(&roots[i], 1)))
      tolerance.zeroForNaN |= !corrected_ && op_.isWhole(op_.operands[result.operand]) &&
                              op_.exprs[expr].op == ExprOp::Select;
    tolerances_[op_.operands[result.operand].name] = std::move(tolerance);
  }
}

std::string Evaluator::why() const {
  const char *unit = op_.compute == DType::F64 ? "2^-53" : "2^-24";
  if (terms_ == 0)
    return fmt::format("roundings of {}, carried through the formula", unit);
  return fmt::format("roundings of {}, carried through sums of {} and the formula", unit, terms_);
}

std::map<std::string, Tolerance> Evaluator::run() {
  size_t results = 0;
  for (const Step &step : op_.steps)
    results += step.results.size();
  results_.resize(results);
  isRead_.resize(results);
  for (uint32_t i = 0; i < results; ++i)
    extentOfResult_.push_back(extentOf(op_.result(i).loops));
  for (const Step &step : op_.steps)
    for (const Result &result : step.results)
      for (Expr expr : op_.exprs.nodesOf(std::span(&result.value, 1)))
        if (op_.exprs[expr].op == ExprOp::Result)
          isRead_[op_.exprs[expr].index] = true;
  for (Expr expr = 0; expr < op_.exprs.size(); ++expr)
    if (op_.exprs.isUniform(expr))
      values_[expr] = evaluate(expr);
  for (const Step &step : op_.steps)
    if (step.reduce == Reduce::None)
      takeMap(step);
    else if (step.reduce == Reduce::Moments)
      takeMoments(step);
    else if (step.reduce == Reduce::Maximum)
      takeMaximum(step);
    else
      takeSum(step);
  return std::move(tolerances_);
}

} // namespace

std::map<std::string, Tolerance> tolerances(const Spec &spec, Phase phase, const Sizes &sizes,
                                            const Arrays &inputs, const Numbers &scalars) {
  return Evaluator(makeOperator(spec, phase), sizes, inputs, scalars, /*corrected=*/true).run();
}

std::map<std::string, Tolerance> oneDnnTolerances(const Spec &spec, Phase phase, const Sizes &sizes,
                                                  const Arrays &inputs, const Numbers &scalars) {
  Operator op = makeOperator(spec, phase);
  auto ours = Evaluator(op, sizes, inputs, scalars, /*corrected=*/true).run();
  op.compute = DType::F32; // as oneDNN computes
  auto theirs = Evaluator(op, sizes, inputs, scalars, /*corrected=*/false).run();
  for (auto &[name, tolerance] : theirs) { // both sides round
    auto sum = std::make_shared<std::vector<double>>(*tolerance.elements);
    for (size_t i = 0; i < sum->size(); ++i)
      (*sum)[i] += (*ours.at(name).elements)[i];
    tolerance.elements = std::move(sum);
    tolerance.why += ", oneDNN's own error included";
  }
  return theirs;
}

} // namespace normforge::oracle
