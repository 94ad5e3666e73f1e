// Nothing here calls a mathematical library but for what IEEE 754 rounds correctly, and no product
// is added in one rounding (CMakeLists.txt says so to the compiler): the bits are the same
// everywhere.
#include "compiler/spec/Initialize.h"

#include "llvm/ADT/STLExtras.h"

#include <array>
#include <cmath>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <span>

namespace normforge {

namespace {

struct Named {
  std::string name;
  const Initial *initial;
  uint32_t number;        ///< in the counter
  bool isDerived = false; ///< renorm's: begins as what another begins as
  bool isRoot = false;    ///< of what `initial` says
};
std::vector<Named> arraysOf(const Spec &spec) {
  std::vector<Named> all;
  if (spec.scale)
    all.push_back({"gamma", &spec.gammaInitial, 0});
  if (spec.center)
    all.push_back({"beta", &spec.betaInitial, 1});
  if (spec.hasMovingStatistics()) {
    all.push_back({"moving_mean", &spec.meanInitial, 2});
    all.push_back({std::string(spec.movingSpreadName()), &spec.spreadInitial, 3});
  }
  if (spec.renorm) { // as tf.keras
    all.push_back({"moving_stddev", &spec.spreadInitial, 3, true, true});
    all.push_back({"renorm_mean", &spec.meanInitial, 2, true});
    all.push_back({"renorm_stddev", &spec.spreadInitial, 3, true, true});
  }
  if (spec.hasRange()) { // of nothing
    static const Initial greatest{.first = std::numeric_limits<double>::infinity()};
    static const Initial least{.first = -greatest.first};
    all.push_back({"minimum", &greatest, 2});
    all.push_back({"maximum", &least, 3});
  }
  return all;
}

double polynomial(std::span<const double> coefficients, double x) {
  double value = 0;
  for (size_t i = coefficients.size(); i-- > 0;)
    value = value * x + coefficients[i];
  return value;
}

/// The natural logarithm of a normal number above 0: of m*2^e with m around 1 it is
/// e*ln 2 + 2*artanh((m-1)/(m+1)).
double logarithm(double x) {
  constexpr double kLog2 = 0.693147180559945309417;
  int exponent;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752440) {
    m *= 2;
    --exponent;
  }
  const double s = (m - 1) / (m + 1), square = s * s;
  double sum = 0;
  for (int k = 25; k >= 1; k -= 2)
    sum = sum * square + 1.0 / k;
  return exponent * kLog2 + 2 * (s * sum);
}

/// 0 to 1, in the middles of 2^52 parts.
double uniform(uint64_t seed, uint32_t array, int64_t element) {
  const auto i = static_cast<uint64_t>(element);
  const auto words = philox({static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), array, 0},
                            {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = (static_cast<uint64_t>(words[1]) << 32 | words[0]) >> 12;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

/// Element `i` of an array of this number.
double elementOf(const Initial &initial, uint64_t seed, uint32_t array, int64_t i) {
  constexpr double kBelowTwo = 0.022750131948179207200; // of a normal distribution, below -2
  if (initial.kind == Initial::Kind::Constant)
    return initial.first;
  if (initial.kind == Initial::Kind::Values)
    return initial.values[static_cast<size_t>(i)];
  double u = uniform(seed, array, i);
  if (initial.kind == Initial::Kind::Uniform)
    return initial.first + (initial.second - initial.first) * u;
  if (initial.kind == Initial::Kind::TruncatedNormal)
    u = kBelowTwo + u * (1 - 2 * kBelowTwo);
  return initial.first + initial.second * normalQuantile(u);
}

} // namespace

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  constexpr uint64_t kFactors[] = {0xD2511F53, 0xCD9E8D57};
  constexpr uint32_t kWeyl[] = {0x9E3779B9, 0xBB67AE85};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = kFactors[0] * counter[0], b = kFactors[1] * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + kWeyl[0], key[1] + kWeyl[1]};
  }
  return counter;
}

double normalQuantile(double p) {
  constexpr double kCentral[] = {3.3871328727963666080e0,  1.3314166789178437745e+2,
                                 1.9715909503065514427e+3, 1.3731693765509461125e+4,
                                 4.5921953931549871457e+4, 6.7265770927008700853e+4,
                                 3.3430575583588128105e+4, 2.5090809287301226727e+3};
  constexpr double kBelowCentral[] = {1,
                                      4.2313330701600911252e+1,
                                      6.8718700749205790830e+2,
                                      5.3941960214247511077e+3,
                                      2.1213794301586595867e+4,
                                      3.9307895800092710610e+4,
                                      2.8729085735721942674e+4,
                                      5.2264952788528545610e+3};
  constexpr double kTail[] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                              5.76949722146069140550e0,  3.64784832476320460504e0,
                              1.27045825245236838258e0,  2.41780725177450611770e-1,
                              2.27238449892691845833e-2, 7.74545014278341407640e-4};
  constexpr double kBelowTail[] = {1,
                                   2.05319162663775882187e0,
                                   1.67638483018380384940e0,
                                   6.89767334985100004550e-1,
                                   1.48103976427480074590e-1,
                                   1.51986665636164571966e-2,
                                   5.47593808499534494600e-4,
                                   1.05075007164441684324e-9};
  constexpr double kFar[] = {6.65790464350110377720e0,  5.46378491116411436990e0,
                             1.78482653991729133580e0,  2.96560571828504891230e-1,
                             2.65321895265761230930e-2, 1.24266094738807843860e-3,
                             2.71155556874348757815e-5, 2.01033439929228813265e-7};
  constexpr double kBelowFar[] = {1,
                                  5.99832206555887937690e-1,
                                  1.36929880922735805310e-1,
                                  1.48753612908506148525e-2,
                                  7.86869131145613259100e-4,
                                  1.84631831751005468180e-5,
                                  1.42151175831644588870e-7,
                                  2.04426310338993978564e-15};
  const double q = p - 0.5;
  if (std::abs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * polynomial(kCentral, r) / polynomial(kBelowCentral, r);
  }
  const double r = std::sqrt(-logarithm(q < 0 ? p : 1 - p));
  const double value = r <= 5 ? polynomial(kTail, r - 1.6) / polynomial(kBelowTail, r - 1.6)
                              : polynomial(kFar, r - 5) / polynomial(kBelowFar, r - 5);
  return q < 0 ? -value : value;
}

std::vector<std::string> initialNames(const Spec &spec) {
  std::vector<std::string> names;
  for (const Named &array : arraysOf(spec))
    names.push_back(array.name);
  return names;
}

std::vector<std::string> foldedNames(const Spec &spec) {
  std::vector<std::string> names;
  if (spec.foldsValues())
    for (const Named &array : arraysOf(spec))
      if (array.initial->isValue && !array.isDerived)
        names.push_back(array.name);
  return names;
}

const Initial *initialOf(const Spec &spec, std::string_view name) {
  for (const Named &array : arraysOf(spec))
    if (array.name == name && !array.isDerived)
      return array.initial;
  return nullptr;
}

HostArray foldedValue(const Spec &spec, std::string_view name,
                      const std::map<std::string, int64_t> &sizes) {
  return llvm::cantFail(initialValue(spec, name, sizes, /*seed=*/0,
                                     [](const std::string &path) -> llvm::Expected<HostArray> {
                                       return llvm::createStringError(path + " is not read");
                                     }));
}

llvm::Expected<HostArray> initialValue(const Spec &spec, std::string_view name,
                                       const std::map<std::string, int64_t> &sizes, uint64_t seed,
                                       ReadArray readFile) {
  const std::vector<Named> all = arraysOf(spec);
  const auto found = llvm::find_if(all, [&](const Named &of) { return of.name == name; });
  if (found == all.end())
    return llvm::createStringError(fmt::format("the layer has no {}", name));
  std::vector<int64_t> shape;
  for (const int axis : spec.axes) {
    const Size &size = spec.shape[static_cast<size_t>(axis)];
    if (size.isNamed() && !sizes.contains(size.name))
      return llvm::createStringError(
          fmt::format("no value for size {}, which {} has", size.name, name));
    shape.push_back(size.isNamed() ? sizes.at(size.name) : size.value);
  }
  auto bytes = static_cast<int64_t>(byteSize(spec.parameterDType));
  for (const int64_t size : shape)
    if (__builtin_mul_overflow(bytes, size, &bytes))
      return llvm::createStringError(fmt::format("the bytes of {} do not fit in 63 bits", name));
  HostArray array(spec.parameterDType, shape);
  const Initial &initial = *found->initial;
  const int64_t count = array.count();
  if (initial.kind == Initial::Kind::File) {
    auto given = readFile(initial.path);
    if (!given)
      return given.takeError();
    if (given->shape != shape)
      return llvm::createStringError(fmt::format("{} has shape ({}), and the array of {} ({})",
                                                 name, fmt::join(shape, ", "), initial.path,
                                                 fmt::join(given->shape, ", ")));
    for (int64_t i = 0; i < count; ++i) {
      array.set(i, given->get(i));
      if (!std::isfinite(array.get(i)))
        return llvm::createStringError(
            fmt::format("element {} of {} is {}; expected numbers that {} holds", i, initial.path,
                        given->get(i), toString(spec.parameterDType)));
    }
  } else if (initial.kind == Initial::Kind::Values &&
             static_cast<int64_t>(initial.values.size()) != count) {
    return llvm::createStringError(fmt::format("{} has {} numbers; {} of shape ({}) has {}",
                                               initial.key, initial.values.size(), name,
                                               fmt::join(shape, ", "), count));
  } else {
    for (int64_t i = 0; i < count; ++i)
      array.set(i, elementOf(initial, seed, found->number, i));
  }
  if (found->initial == &spec.spreadInitial)
    for (int64_t i = 0; i < count; ++i)
      if (array.get(i) < 0)
        return llvm::createStringError(
            fmt::format("element {} of {} is {}; expected at least 0", i,
                        initial.path.empty() ? initial.key : initial.path, array.get(i)));
  for (int64_t i = 0; found->isRoot && i < count; ++i)
    array.set(i, std::sqrt(array.get(i)));
  return array;
}

} // namespace normforge
