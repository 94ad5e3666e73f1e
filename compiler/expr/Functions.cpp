// The table of functions. A formula is one that neither overflows nor cancels where the function
// does not: t = exp(-|x|) is at most 1, and r = 1/(1 + t) at least 1/2.
#include "compiler/expr/Functions.h"

#include <algorithm>

namespace normforge {

namespace {

using Parameters = std::span<const double>;

/// x below `low` is `low`, above `high` is `high`; NaN stays.
Term clampTo(Term x, double low, double high) {
  const Term least = x.constant(low), most = x.constant(high);
  const Term raised = select(less(x, least), least, x);
  return select(less(most, raised), most, raised);
}

// Gradients are those of PyTorch at kinks.
//
// That of relu at 0 is 0, those of relu6, hard_sigmoid and hard_swish at their ends are those
// outside; leaky_relu and elu have at 0 what they have below.

Term relu(Term x, Parameters) {
  const Term zero = x.constant(0);
  return select(less(x, zero), zero, x);
}
Term reluGradient(Term x, Term g, Parameters) {
  const Term zero = x.constant(0);
  return select(lessEqual(x, zero), zero, g);
}
Term relu6(Term x, Parameters) { return clampTo(x, 0, 6); }
/// `inside` where x is between two numbers, at which it is `below` and `above`.
Term between(Term x, double low, double high, Term below, Term inside, Term above) {
  return select(lessEqual(x, x.constant(low)), below,
                select(lessEqual(x.constant(high), x), above, inside));
}
Term relu6Gradient(Term x, Term g, Parameters) {
  return between(x, 0, 6, x.constant(0), g, x.constant(0));
}
Term clamp(Term x, Parameters p) { return clampTo(x, p[0], p[1]); }
Term leakyRelu(Term x, Parameters p) {
  return select(less(x, x.constant(0)), x * x.constant(p[0]), x);
}
Term leakyReluGradient(Term x, Term g, Parameters p) {
  return select(lessEqual(x, x.constant(0)), g * x.constant(p[0]), g);
}
/// The exponential is never taken of a positive x.
Term elu(Term x, Parameters p) {
  const Term zero = x.constant(0);
  const Term below = expm1(select(less(zero, x), zero, x)) * x.constant(p[0]);
  return select(less(zero, x), x, below);
}

Term eluGradient(Term x, Term g, Parameters p) {
  const Term zero = x.constant(0), isAbove = less(zero, x);
  return select(isAbove, g, g * x.constant(p[0]) * exp(select(isAbove, zero, x)));
}

/// exp(-|x|)
Term decay(Term x) { return exp(-abs(x)); }
Term sigmoid(Term x, Parameters) {
  const Term t = decay(x), r = x.constant(1) / (x.constant(1) + t);
  return select(less(x, x.constant(0)), t * r, r);
}
/// t/(1 + t)^2: of s(1 - s) no digit is left where s is near 1.
Term sigmoidGradient(Term x, Term g, Parameters) {
  const Term t = decay(x), r = x.constant(1) / (x.constant(1) + t);
  return g * (t * r * r);
}
Term silu(Term x, Parameters) { return x * sigmoid(x, {}); }
Term siluGradient(Term x, Term g, Parameters) {
  const Term t = decay(x), r = x.constant(1) / (x.constant(1) + t);
  return g * fma(x, t * r * r, sigmoid(x, {}));
}
Term softplus(Term x, Parameters) { return relu(x, {}) + log1p(decay(x)); }
Term softplusGradient(Term x, Term g, Parameters) { return g * sigmoid(x, {}); }
/// x * tanh(softplus(x)) = x * q / w, with tanh(log(1 + e)) = (e^2 + 2e) / (e^2 + 2e + 2), e =
/// exp(x), and numerator and denominator divided by e^2 where x is not below 0.
Term mish(Term x, Parameters) {
  const Term t = decay(x), one = x.constant(1), two = x.constant(2);
  const Term isBelow = less(x, x.constant(0));
  const Term q = select(isBelow, t * (t + two), fma(two, t, one));
  const Term rest = select(isBelow, two, two * t * t);
  return x * (q / (q + rest));
}
/// With n = e^2 + 2e the derivative of n/(n + 2) is 4e(e + 1)/(n + 2)^2, divided as above.
Term mishGradient(Term x, Term g, Parameters) {
  const Term t = decay(x), one = x.constant(1), two = x.constant(2);
  const Term isBelow = less(x, x.constant(0));
  const Term q = select(isBelow, t * (t + two), fma(two, t, one));
  const Term w = q + select(isBelow, two, two * t * t);
  const Term slope = x.constant(4) * (one + t) * select(isBelow, t, t * t) / (w * w);
  return g * fma(x, slope, q / w);
}
Term tanhOf(Term x, Parameters) { return tanh(x); }
/// 4t/(1 + t)^2 with t = exp(-2|x|), which does not cancel.
Term tanhGradient(Term x, Term g, Parameters) {
  const Term t = exp(x.constant(-2) * abs(x)), r = x.constant(1) / (x.constant(1) + t);
  return g * (x.constant(4) * t * r * r);
}
/// x/2 * (1 + erf(x / sqrt(2)))
Term gelu(Term x, Parameters) {
  return x * x.constant(0.5) * (x.constant(1) + erf(x * x.constant(0.70710678118654752440)));
}
/// The density and its integral. Where x^2 overflows the density is 0.
Term geluGradient(Term x, Term g, Parameters) {
  const Term half = x.constant(0.5);
  const Term below = half * (x.constant(1) + erf(x * x.constant(0.70710678118654752440)));
  const Term density = x.constant(0.39894228040143267794) * exp(-(half * x * x));
  return g * fma(x, density, below);
}
/// x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks and Gimpel 2016. Beyond 10 the
/// tangent is 1, and the cube would overflow.
Term geluTanh(Term x, Parameters) {
  const Term near = clampTo(x, -10, 10);
  const Term cubic = fma(near * near * near, x.constant(0.044715), near);
  return x * x.constant(0.5) * (x.constant(1) + tanh(cubic * x.constant(0.79788456080286535588)));
}
/// clamp(x/6 + 1/2, 0, 1)
Term hardSigmoid(Term x, Parameters) {
  return clampTo(fma(x, x.constant(1.0 / 6), x.constant(0.5)), 0, 1);
}
Term hardSigmoidGradient(Term x, Term g, Parameters) {
  const Term zero = x.constant(0);
  return between(x, -3, 3, zero, g * x.constant(1.0 / 6), zero);
}
Term hardSwish(Term x, Parameters) { return x * hardSigmoid(x, {}); }
Term hardSwishGradient(Term x, Term g, Parameters) {
  return between(x, -3, 3, x.constant(0), g * fma(x, x.constant(1.0 / 3), x.constant(0.5)), g);
}

// Conditions are those of the gradients above; NaN passes.

Term isAboveZero(Term x, Parameters) { return negation(lessEqual(x, x.constant(0))); }
Term isBetween(Term x, double low, double high) {
  return both(negation(lessEqual(x, x.constant(low))), negation(lessEqual(x.constant(high), x)));
}
Term isInRelu6(Term x, Parameters) { return isBetween(x, 0, 6); }
Term isInHardSigmoid(Term x, Parameters) { return isBetween(x, -3, 3); }
Term isInClamp(Term x, Parameters p) {
  return both(negation(less(x, x.constant(p[0]))), negation(less(x.constant(p[1]), x)));
}
Term passes(Term bit, Term g, Parameters) { return select(bit, g, g.constant(0)); }
Term leaks(Term bit, Term g, Parameters p) { return select(bit, g, g * g.constant(p[0])); }
Term passesSixth(Term bit, Term g, Parameters) {
  return select(bit, g * g.constant(1.0 / 6), g.constant(0));
}

constexpr Function kFunctions[] = {
    {"relu", "relu", 0, relu, reluGradient, isAboveZero, passes},
    {"relu6", "relu6", 0, relu6, relu6Gradient, isInRelu6, passes},
    {"leaky_relu", "leaky_relu: 0.01", 1, leakyRelu, leakyReluGradient, isAboveZero, leaks},
    {"elu", "elu: 1.0", 1, elu, eluGradient},
    {"gelu", "gelu", 0, gelu, geluGradient},
    {"gelu_tanh", "gelu_tanh", 0, geluTanh},
    {"sigmoid", "sigmoid", 0, sigmoid, sigmoidGradient},
    {"silu", "silu", 0, silu, siluGradient},
    {"tanh", "tanh", 0, tanhOf, tanhGradient},
    {"softplus", "softplus", 0, softplus, softplusGradient},
    {"mish", "mish", 0, mish, mishGradient},
    {"hard_sigmoid", "hard_sigmoid", 0, hardSigmoid, hardSigmoidGradient, isInHardSigmoid,
     passesSixth},
    {"hard_swish", "hard_swish", 0, hardSwish, hardSwishGradient},
    {"clamp", "clamp: [0, 6]", 2, clamp, nullptr, isInClamp, passes},
};

} // namespace

Term Function::operator()(Term x, Parameters parameters) const {
  const Term y = body(x, parameters);
  if (gradient)
    y.in->setGradient(
        y.expr, x.expr,
        [own = gradient, argument = x.expr,
         numbers = std::vector(parameters.begin(), parameters.end())](Exprs &in, Expr seed) {
          return own({&in, argument}, {&in, seed}, numbers).expr;
        });
  return y;
}

Term Function::operator()(Term x, Parameters parameters, Term bit) const {
  const Term y = body(x, parameters);
  y.in->setGradient(
      y.expr, x.expr,
      [own = gradientOfBit, condition = bit.expr,
       numbers = std::vector(parameters.begin(), parameters.end())](Exprs &in, Expr seed) {
        return own({&in, condition}, {&in, seed}, numbers).expr;
      });
  return y;
}

std::span<const Function> functions() { return kFunctions; }

const Function *findFunction(std::string_view name) {
  const auto found = std::find_if(std::begin(kFunctions), std::end(kFunctions),
                                  [&](const Function &function) { return function.name == name; });
  return found == std::end(kFunctions) ? nullptr : found;
}

} // namespace normforge
