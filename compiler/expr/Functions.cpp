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

Term relu(Term x, Parameters) {
  const Term zero = x.constant(0);
  return select(less(x, zero), zero, x);
}
Term relu6(Term x, Parameters) { return clampTo(x, 0, 6); }
Term clamp(Term x, Parameters p) { return clampTo(x, p[0], p[1]); }
Term leakyRelu(Term x, Parameters p) {
  return select(less(x, x.constant(0)), x * x.constant(p[0]), x);
}
/// Of no positive x is the exponential taken.
Term elu(Term x, Parameters p) {
  const Term zero = x.constant(0);
  const Term below = expm1(select(less(zero, x), zero, x)) * x.constant(p[0]);
  return select(less(zero, x), x, below);
}

/// exp(-|x|)
Term decay(Term x) { return exp(-abs(x)); }
Term sigmoid(Term x, Parameters) {
  const Term t = decay(x), r = x.constant(1) / (x.constant(1) + t);
  return select(less(x, x.constant(0)), t * r, r);
}
Term silu(Term x, Parameters) { return x * sigmoid(x, {}); }
Term softplus(Term x, Parameters) { return relu(x, {}) + log1p(decay(x)); }
/// x * tanh(softplus(x)) = x * q / w, with tanh(log(1 + e)) = (e^2 + 2e) / (e^2 + 2e + 2), e =
/// exp(x), and numerator and denominator divided by e^2 where x is not below 0.
Term mish(Term x, Parameters) {
  const Term t = decay(x), one = x.constant(1), two = x.constant(2);
  const Term isBelow = less(x, x.constant(0));
  const Term q = select(isBelow, t * (t + two), fma(two, t, one));
  const Term rest = select(isBelow, two, two * t * t);
  return x * (q / (q + rest));
}
Term tanhOf(Term x, Parameters) { return tanh(x); }
/// x/2 * (1 + erf(x / sqrt(2)))
Term gelu(Term x, Parameters) {
  return x * x.constant(0.5) * (x.constant(1) + erf(x * x.constant(0.70710678118654752440)));
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
Term hardSwish(Term x, Parameters) { return x * hardSigmoid(x, {}); }

constexpr Function kFunctions[] = {
    {"relu", "relu", 0, relu},
    {"relu6", "relu6", 0, relu6},
    {"leaky_relu", "leaky_relu: 0.01", 1, leakyRelu},
    {"elu", "elu: 1.0", 1, elu},
    {"gelu", "gelu", 0, gelu},
    {"gelu_tanh", "gelu_tanh", 0, geluTanh},
    {"sigmoid", "sigmoid", 0, sigmoid},
    {"silu", "silu", 0, silu},
    {"tanh", "tanh", 0, tanhOf},
    {"softplus", "softplus", 0, softplus},
    {"mish", "mish", 0, mish},
    {"hard_sigmoid", "hard_sigmoid", 0, hardSigmoid},
    {"hard_swish", "hard_swish", 0, hardSwish},
    {"clamp", "clamp: [0, 6]", 2, clamp},
};

} // namespace

std::span<const Function> functions() { return kFunctions; }

const Function *findFunction(std::string_view name) {
  const auto found = std::find_if(std::begin(kFunctions), std::end(kFunctions),
                                  [&](const Function &function) { return function.name == name; });
  return found == std::end(kFunctions) ? nullptr : found;
}

} // namespace normforge
