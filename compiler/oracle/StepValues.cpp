// The steps of `fuse` and `prologue` in f64 and their derivatives, by their definitions.

#include "compiler/oracle/Coordinates.h"

#include <cmath>
#include <stdexcept>

namespace normforge::oracle {

namespace {

/// 1 / (1 + exp(-x)), and its small values, too.
double logistic(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

/// A product that is 0 where the slope is: what does not depend on a number does not take its NaN.
double scaled(double slope, double by) { return slope == 0 ? 0 : slope * by; }

} // namespace

double applyFunction(const FuseStep &step, double x) {
  constexpr double rootOf2 = 1.41421356237309504880, rootOf2OverPi = 0.79788456080286535588;
  auto clamp = [](double value, double low, double high) { // NaN passes
    return value < low ? low : value > high ? high : value;
  };
  auto softplus = [](double value) {
    return value > 0 ? value + std::log1p(std::exp(-value)) : std::log1p(std::exp(value));
  };
  const std::string &name = step.name;
  if (name == "relu")
    return x < 0 ? 0 : x;
  if (name == "relu6")
    return clamp(x, 0, 6);
  if (name == "clamp")
    return clamp(x, step.parameters[0], step.parameters[1]);
  if (name == "leaky_relu")
    return x < 0 ? step.parameters[0] * x : x;
  if (name == "elu")
    return x > 0 ? x : step.parameters[0] * std::expm1(x);
  if (name == "gelu")
    return 0.5 * x * std::erfc(-x / rootOf2);
  if (name == "gelu_tanh")
    return 0.5 * x * (1 + std::tanh(rootOf2OverPi * (x + 0.044715 * x * x * x)));
  if (name == "sigmoid")
    return logistic(x);
  if (name == "silu")
    return x * logistic(x);
  if (name == "tanh")
    return std::tanh(x);
  if (name == "softplus")
    return softplus(x);
  if (name == "mish")
    return x * std::tanh(softplus(x));
  if (name == "hard_sigmoid")
    return clamp(x / 6 + 0.5, 0, 1);
  if (name == "hard_swish")
    return x * clamp(x / 6 + 0.5, 0, 1);
  throw std::logic_error("the reference has no function '" + name + "'");
}

double derivative(const FuseStep &step, double x) {
  constexpr double rootOf2 = 1.41421356237309504880, rootOf2OverPi = 0.79788456080286535588;
  constexpr double rootOf2Pi = 2.50662827463100050242;
  auto within = [&](double low, double high, double inside, double above) {
    return x <= low ? 0 : x >= high ? above : inside;
  };
  const std::string &name = step.name;
  if (name == "relu")
    return x <= 0 ? 0 : 1;
  if (name == "relu6")
    return within(0, 6, 1, 0);
  if (name == "clamp")
    return x < step.parameters[0] || x > step.parameters[1] ? 0 : 1;
  if (name == "leaky_relu")
    return x <= 0 ? step.parameters[0] : 1;
  if (name == "elu")
    return x > 0 ? 1 : step.parameters[0] * std::exp(x);
  if (name == "gelu")
    return 0.5 * std::erfc(-x / rootOf2) + x * std::exp(-x * x / 2) / rootOf2Pi;
  if (name == "gelu_tanh") {
    const double t = std::tanh(rootOf2OverPi * (x + 0.044715 * x * x * x));
    if (std::abs(x) > 20) // the tangent is flat, and the cube may overflow
      return x < 0 ? 0 : 1;
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * rootOf2OverPi * (1 + 3 * 0.044715 * x * x);
  }
  if (name == "sigmoid")
    return logistic(x) * logistic(-x);
  if (name == "silu")
    return logistic(x) * (1 + x * logistic(-x));
  if (name == "tanh") {
    const double e = std::exp(-2 * std::abs(x));
    return 4 * e / ((1 + e) * (1 + e));
  }
  if (name == "softplus")
    return logistic(x);
  if (name == "mish") {
    const double t = std::tanh(std::log1p(std::exp(-std::abs(x))) + std::max(x, 0.0));
    return t + x * (1 - t * t) * logistic(x);
  }
  if (name == "hard_sigmoid")
    return within(-3, 3, 1.0 / 6, 0);
  if (name == "hard_swish")
    return within(-3, 3, x / 3 + 0.5, 1);
  throw std::logic_error("the reference has no function '" + name + "'");
}

namespace {

/// A number with its derivatives (forward differentiation): what expressions are evaluated in.
struct Dual {
  double value;
  std::vector<double> slopes;
};

/// f(x) of value `value` and derivative `slope`.
Dual chain(const Dual &x, double value, double slope) {
  Dual result{value, x.slopes};
  for (double &s : result.slopes)
    s = scaled(slope, s);
  return result;
}

Dual evaluate(const Formula &formula, const std::vector<Dual> &operands,
              const std::vector<double> &scalars) {
  const size_t count = operands.size();
  auto constant = [&](double value) { return Dual{value, std::vector<double>(count, 0)}; };
  switch (formula.kind) {
  case Formula::Kind::Number:
    return constant(formula.number);
  case Formula::Kind::Operand:
    return operands[formula.index];
  case Formula::Kind::Scalar:
    return constant(scalars[formula.index]);
  case Formula::Kind::Call:
    break;
  }
  const std::string &call = formula.call;
  if (call == "where") {
    const Formula &comparison = formula.arguments[0];
    const double a = evaluate(comparison.arguments[0], operands, scalars).value,
                 b = evaluate(comparison.arguments[1], operands, scalars).value;
    const bool holds = comparison.call == "<"    ? a < b
                       : comparison.call == "<=" ? a <= b
                       : comparison.call == ">"  ? a > b
                                                 : a >= b;
    return evaluate(formula.arguments[holds ? 1 : 2], operands, scalars);
  }
  const Dual a = evaluate(formula.arguments[0], operands, scalars);
  if (formula.arguments.size() == 2) {
    const Dual b = evaluate(formula.arguments[1], operands, scalars);
    if (call == "min")
      return std::isnan(a.value) || a.value < b.value ? a : b;
    if (call == "max")
      return std::isnan(a.value) || a.value > b.value ? a : b;
    Dual result = constant(call == "+"   ? a.value + b.value
                           : call == "-" ? a.value - b.value
                           : call == "*" ? a.value * b.value
                                         : a.value / b.value);
    for (size_t i = 0; i < count; ++i)
      result.slopes[i] = call == "+"   ? a.slopes[i] + b.slopes[i]
                         : call == "-" ? a.slopes[i] - b.slopes[i]
                         : call == "*"
                             ? scaled(a.slopes[i], b.value) + scaled(b.slopes[i], a.value)
                             : scaled(a.slopes[i] - scaled(b.slopes[i], result.value), 1 / b.value);
    return result;
  }
  const double v = a.value;
  if (call == "neg")
    return chain(a, -v, -1);
  if (call == "abs")
    return chain(a, std::abs(v), v < 0 ? -1 : 1);
  if (call == "sqrt")
    return chain(a, std::sqrt(v), 0.5 / std::sqrt(v));
  if (call == "exp")
    return chain(a, std::exp(v), std::exp(v));
  if (call == "log")
    return chain(a, std::log(v), 1 / v);
  if (call == "erf")
    return chain(a, std::erf(v), 1.12837916709551257390 * std::exp(-v * v));
  if (call == "floor")
    return chain(a, std::floor(v), 0);
  if (call == "round")
    return chain(a, std::nearbyint(v), 0);
  const FuseStep step{call}; // tanh, sigmoid, softplus, relu
  return chain(a, applyFunction(step, v), derivative(step, v));
}

} // namespace

StepValue applyStep(const FuseStep &step, double x, const std::vector<double> &operands,
                    const Numbers &scalars) {
  if (step.isAdd())
    return {x + operands[0], {1, 1}};
  if (step.isMul())
    return {x * operands[0], {operands[0], x}};
  if (!step.formula)
    return {applyFunction(step, x), {derivative(step, x)}};
  std::vector<Dual> values;
  const size_t count = operands.size() + 1;
  for (size_t i = 0; i < count; ++i) {
    values.push_back({i == 0 ? x : operands[i - 1], std::vector<double>(count, 0)});
    values.back().slopes[i] = 1;
  }
  std::vector<double> numbers;
  for (const std::string &name : step.scalars)
    numbers.push_back(scalars.at(name));
  Dual result = evaluate(*step.formula, values, numbers);
  return {result.value, std::move(result.slopes)};
}

} // namespace normforge::oracle
