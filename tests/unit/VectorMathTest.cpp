// exp and its kin, with numbers of the host: the error of each over its whole range.
#include "compiler/target/VectorMath.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <random>
#include <type_traits>

using namespace normforge::vector_math;

namespace {

/// Arithmetic as a kernel has it, with one rounding in fma or with two.
template <typename T, bool kFuses> struct HostOps {
  using Number = T;
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  using Word = std::make_unsigned_t<Integer>;
  using Condition = bool;
  static constexpr bool isF64 = sizeof(T) == 8;

  T number(double v) const { return static_cast<T>(v); }
  Integer integer(int64_t v) const { return static_cast<Integer>(v); }
  T add(T a, T b) const { return a + b; }
  T sub(T a, T b) const { return a - b; }
  T mul(T a, T b) const { return a * b; }
  T div(T a, T b) const { return a / b; }
  T fma(T a, T b, T c) const {
    if (kFuses)
      return std::fma(a, b, c);
    volatile T product = a * b; // or the host's compiler may fuse the two
    return product + c;
  }
  bool less(T a, T b) const { return a < b; }
  T select(bool condition, T a, T b) const { return condition ? a : b; }
  Integer bits(T x) const { return std::bit_cast<Integer>(x); }
  T asNumber(Integer i) const { return std::bit_cast<T>(i); }
  Integer addI(Integer a, Integer b) const { return static_cast<Integer>(Word(a) + Word(b)); }
  Integer subI(Integer a, Integer b) const { return static_cast<Integer>(Word(a) - Word(b)); }
  Integer andI(Integer a, Integer b) const { return a & b; }
  Integer orI(Integer a, Integer b) const { return a | b; }
  Integer shiftLeft(Integer a, int n) const { return static_cast<Integer>(Word(a) << n); }
  Integer shiftRight(Integer a, int n) const { return a >> n; }
};

/// The error of a value in units of its last place, those of denormals at least; infinite where it
/// is another kind of number.
template <typename T> double error(T value, long double exact) {
  const T nearest = static_cast<T>(exact);
  if (std::isnan(exact) || std::isinf(nearest) || std::isnan(value) || std::isinf(value)) {
    const bool same = std::isnan(exact) ? std::isnan(value) : value == nearest;
    // At the edge of the range the largest number and infinity are neighbors.
    const bool isEdge = std::abs(exact) > 0.9999999L * std::numeric_limits<T>::max() &&
                        std::abs(value) > 0.9999999 * std::numeric_limits<T>::max();
    return same || (isEdge && !std::isnan(exact)) ? 0 : INFINITY;
  }
  int exponent;
  std::frexp(nearest, &exponent);
  const int last = std::max(exponent - std::numeric_limits<T>::digits,
                            std::numeric_limits<T>::min_exponent - std::numeric_limits<T>::digits);
  return static_cast<double>(std::abs(value - exact) / std::ldexp(1.0L, last));
}

template <typename T> struct Row {
  const char *name;
  T (*function)(T);
  long double (*exact)(long double);
  double least, most; ///< where the function is neither 0, infinite nor a constant
  double allowed;
};

template <typename T, bool kFuses> std::vector<Row<T>> rows() {
  using Of = Functions<HostOps<T, kFuses>>;
  const bool isF64 = sizeof(T) == 8;
  const double low = isF64 ? -746 : -104, high = isF64 ? 710 : 89, others = isF64 ? 4 : 2;
  return {
      {"exp", [](T x) { return Of({}).exp(x); }, std::exp, low, high, 2},
      {"expm1", [](T x) { return Of({}).expm1(x); }, std::expm1, isF64 ? -40 : -20, high, others},
      {"log", [](T x) { return Of({}).log(x); }, std::log, 0, 2, 2},
      {"log1p", [](T x) { return Of({}).log1p(x); }, std::log1p, -1, 2, others},
      {"erf", [](T x) { return Of({}).erf(x); }, std::erf, -6, 6, others},
      {"tanh", [](T x) { return Of({}).tanh(x); }, std::tanh, -20, 20, others}};
}

template <typename T, bool kFuses> void measure(int bitPatterns, int inRange) {
  std::mt19937_64 random(std::random_device{}());
  using Word = typename HostOps<T, kFuses>::Word;
  for (const auto &row : rows<T, kFuses>()) {
    double worst = 0;
    T at = 0;
    auto take = [&](T x) {
      const double off = error(row.function(x), row.exact(x));
      if (off > worst) {
        worst = off;
        at = x;
      }
    };
    for (T x : {T(0), -T(0), T(INFINITY), -T(INFINITY), T(NAN), T(1), T(-1),
                std::numeric_limits<T>::denorm_min(), -std::numeric_limits<T>::denorm_min(),
                std::numeric_limits<T>::max(), std::numeric_limits<T>::lowest()})
      take(x);
    // Every so many-th number, from a random one on.
    const Word step = std::numeric_limits<Word>::max() / static_cast<Word>(bitPatterns);
    Word bits = static_cast<Word>(random() % step);
    for (int i = 0; i < bitPatterns; ++i, bits += step)
      take(std::bit_cast<T>(bits));
    std::uniform_real_distribution<double> uniform(row.least, row.most);
    for (int i = 0; i < inRange; ++i)
      take(static_cast<T>(uniform(random)));
    INFO(row.name, kFuses ? " with" : " without", " FMA: ", worst, " units at ", at);
    CHECK(worst <= row.allowed);
    CHECK(worst >= 0.5); // more would be no measurement
  }
}

} // namespace

TEST_CASE("errors of functions in f32") {
  measure<float, true>(3'000'000, 1'000'000);
  measure<float, false>(3'000'000, 1'000'000);
}

TEST_CASE("errors of functions in f64") {
  measure<double, true>(300'000, 300'000);
  measure<double, false>(300'000, 300'000);
}
