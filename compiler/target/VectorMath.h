// exp, expm1, log, log1p, erf and tanh as arithmetic, on whatever has it: vectors of MLIR values
// (VectorMath.cpp), and numbers of the host, which tests measure every f32 with.
//
// Errors over the whole range, in units of the last place, with FMA and without (measured by
// unit/VectorMathTest, which holds them): f32 below 2; f64 below 2 for exp and log, 4 for the rest.
// Denormal arguments and results are right, infinities and NaN as IEEE 754 has them. MLIR's own
// approximations are off by 4 units in f32, flush denormals and have no f64.
//
// An Ops has, for the type that it computes in:
//   Number, Integer (of as many bits), Condition       the types of values
//   bool isF64
//   number(double), integer(int64_t)                   constants
//   add, sub, mul, div (x, y), fma (x, y, z)           fma may round twice
//   less(x, y), select(condition, x, y)
//   bits(x), asNumber(i), addI, subI (i, j), shiftLeft, shiftRight (i, count; signed), andI, orI
//
// Polynomials are minimax; fit_functions.py makes their coefficients. The reductions are the usual
// ones (Muller, Elementary Functions, 2016): exp(x) = 2^n exp(x - n ln 2), log(2^n m) = n ln 2 +
// log(m), tanh(x) = 1 - 2/(1 + exp(2x)), erf(x) = 1 - exp(P(x)) beyond where a polynomial in x^2
// serves.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>

namespace normforge::vector_math {

struct Coefficients {
  std::initializer_list<double> f32, f64;
};
#include "compiler/target/VectorMathCoefficients.inc"

template <typename Ops> class Functions {
public:
  using Number = typename Ops::Number;
  using Integer = typename Ops::Integer;

  explicit Functions(Ops ops) : o(ops) {}

  Number exp(Number x) {
    const Reduced reduced = reduce(x);
    // 2^n in two factors: neither over- nor underflows before the product does.
    const Integer half = o.shiftRight(reduced.n, 1);
    const Number y = o.mul(o.add(o.number(1), reduced.rest), powerOf2(half));
    return o.mul(y, powerOf2(o.subI(reduced.n, half)));
  }

  /// exp(x) - 1, also where exp(x) is near 1: 2^n rest + (2^n - 1).
  Number expm1(Number x) {
    const Number large = o.number(o.isF64 ? 700 : 80);
    const Number near = o.select(o.less(large, x), large, x);
    const Reduced reduced = reduce(near);
    // Far below 0 the result is -1, whatever the factor.
    const Number factor = powerOf2(reduced.n);
    const Number least = o.number(o.isF64 ? -700 : -80);
    const Number y = o.fma(factor, reduced.rest, o.sub(factor, o.number(1)));
    const Number finite = o.select(o.less(x, least), o.number(-1), y);
    return o.select(o.less(large, x), exp(x), finite);
  }

  Number log(Number x) {
    const int mantissa = o.isF64 ? 52 : 23;
    const auto isDenormal = o.less(x, o.number(o.isF64 ? 0x1p-1022 : 0x1p-126));
    const Number scaled = o.select(isDenormal, o.mul(x, o.number(o.isF64 ? 0x1p54 : 0x1p25)), x);
    // x = 2^n m with sqrt(1/2) <= m < sqrt(2).
    const Integer from = o.integer(o.isF64 ? 0x3fe6a09e667f3bcd : 0x3f3504f3);
    const Integer exponent = o.shiftRight(o.subI(o.bits(scaled), from), mantissa);
    const Number m = o.asNumber(o.subI(o.bits(scaled), o.shiftLeft(exponent, mantissa)));
    const Number counted = o.sub(o.asNumber(o.addI(exponent, o.bits(magic()))), magic());
    const Number n = o.select(isDenormal, o.sub(counted, o.number(o.isF64 ? 54 : 25)), counted);
    const Number f = o.sub(m, o.number(1)), square = o.mul(f, f);
    Number y = o.mul(o.mul(f, square), polynomial(kLog, f));
    y = o.fma(n, o.number(o.isF64 ? 0x1.cf79abc9e3b39p-40 : 0x1.7f7d1cp-20), y);
    y = o.fma(o.number(-0.5), square, y);
    y = o.fma(n, o.number(o.isF64 ? 0x1.62e42fefap-1 : 0x1.62e4p-1), o.add(f, y));
    const Number infinity = o.number(std::numeric_limits<double>::infinity());
    const Number below = o.select(o.less(x, o.number(0)), nan(), o.sub(o.number(0), infinity));
    const Number finite = o.select(o.less(o.number(0), x), y, below);
    // Infinity and NaN are themselves; what is below 0 is none of them.
    return o.select(o.less(x, infinity), finite, x);
  }

  /// log(1 + x), also where 1 + x has lost x.
  Number log1p(Number x) {
    const Number u = o.add(o.number(1), x);
    const Number lost = o.div(o.sub(x, o.sub(u, o.number(1))), u);
    // Not of an infinity, nor of 0.
    const Number most = o.number(o.isF64 ? 0x1p60 : 0x1p30);
    const Number rest =
        o.select(o.less(x, most), o.select(o.less(o.number(0), u), lost, o.number(0)), o.number(0));
    return o.add(log(u), rest);
  }

  Number tanh(Number x) {
    const Number a = abs(x), square = o.mul(x, x);
    const Number near = o.fma(o.mul(x, square), polynomial(kTanh, square), x);
    const Number e = exp(o.add(a, a));
    const Number far = o.sub(o.number(1), o.div(o.number(2), o.add(o.number(1), e)));
    return o.select(o.less(a, o.number(0.625)), near, withSignOf(far, x));
  }

  Number erf(Number x) {
    const Number a = abs(x), square = o.mul(x, x);
    const Number near = o.fma(x, polynomial(kErfSmall, square), x);
    const Number limit = o.number(o.isF64 ? 6 : 4);
    const Number most = o.select(o.less(limit, a), limit, a); // a NaN stays
    Number exponent = polynomial(kErfLarge, most);
    if (o.isF64)
      exponent = o.select(o.less(most, o.number(2)), exponent, polynomial(kErfLargest, most));
    const Number far = o.sub(o.number(1), exp(exponent));
    return o.select(o.less(a, o.number(0.92)), near, withSignOf(far, x));
  }

private:
  /// exp(x) = 2^n (1 + rest), rest between sqrt(1/2) - 1 and sqrt(2) - 1.
  struct Reduced {
    Integer n;
    Number rest;
  };
  Reduced reduce(Number x) {
    x = clamp(x, o.isF64 ? -746 : -104, o.isF64 ? 710 : 89);
    // n = round(x / ln 2), in the low bits of a number that has no others.
    const Number shifted = o.fma(x, o.number(0x1.71547652b82fep+0), magic());
    const Integer n = o.subI(o.bits(shifted), o.bits(magic()));
    const Number rounded = o.sub(shifted, magic());
    Number r = o.fma(rounded, o.number(o.isF64 ? -0x1.62e42fefap-1 : -0x1.62e4p-1), x);
    r = o.fma(rounded, o.number(o.isF64 ? -0x1.cf79abc9e3b39p-40 : -0x1.7f7d1cp-20), r);
    return {n, o.fma(o.mul(r, r), polynomial(kExp, r), r)};
  }
  /// A number whose last bit is worth 1.
  Number magic() { return o.number(o.isF64 ? 0x1.8p52 : 0x1.8p23); }
  Number nan() { return o.number(std::numeric_limits<double>::quiet_NaN()); }
  Number clamp(Number x, double least, double most) { // a NaN stays
    const Number low = o.number(least), high = o.number(most);
    x = o.select(o.less(x, low), low, x);
    return o.select(o.less(high, x), high, x);
  }
  Number polynomial(const Coefficients &coefficients, Number x) {
    const auto &list = o.isF64 ? coefficients.f64 : coefficients.f32;
    const double *last = list.end() - 1;
    Number value = o.number(*last);
    while (last != list.begin())
      value = o.fma(value, x, o.number(*--last));
    return value;
  }
  Number powerOf2(Integer n) {
    const int mantissa = o.isF64 ? 52 : 23;
    return o.asNumber(o.shiftLeft(o.addI(n, o.integer(o.isF64 ? 1023 : 127)), mantissa));
  }
  Integer signBit() { return o.integer(o.isF64 ? INT64_MIN : INT32_MIN); }
  Number abs(Number x) {
    return o.asNumber(o.andI(o.bits(x), o.integer(o.isF64 ? INT64_MAX : INT32_MAX)));
  }
  Number withSignOf(Number magnitude, Number x) {
    return o.asNumber(o.orI(o.bits(magnitude), o.andI(o.bits(x), signBit())));
  }

  Ops o;
};

} // namespace normforge::vector_math
