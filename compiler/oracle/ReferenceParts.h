// Shared by the parts of the reference. Private to Reference*.cpp.
//
// Reference.cpp has the forward phases, ReferenceStatistics.cpp what is taken of a batch or of all
// batches, ReferenceGradients.cpp the backward phases.
#pragma once

#include "compiler/oracle/Coordinates.h"

#include <cmath>

namespace normforge::oracle {

/// The number itself, or the scalar given at the call.
inline double resolve(const Number &number, const char *name, const Numbers &scalars) {
  if (!number.isArgument)
    return number.value;
  const auto given = scalars.find(name); // phases do not all take it
  return given == scalars.end() ? NAN : given->second;
}

/// The deviation before an epsilon is added to it.
template <typename T> T rootOf(EpsilonPosition position, T variance, T epsilon) {
  return std::sqrt(position == EpsilonPosition::Outside ? variance : variance + epsilon);
}

/// The divisor that the difference from the mean is normalized with, of that root.
template <typename T> T denominatorOf(EpsilonPosition position, T root, T epsilon) {
  return position == EpsilonPosition::Inside ? root : root + epsilon;
}
template <typename T> T denominator(EpsilonPosition position, T variance, T epsilon) {
  return denominatorOf(position, rootOf(position, variance, epsilon), epsilon);
}

/// The divisor that statistics give which are a variance, or such a root.
inline double divisorOf(const Spec &spec, double spread, bool isRoot, double epsilon) {
  return isRoot ? denominatorOf(spec.epsilonPosition, spread, epsilon)
                : denominator(spec.epsilonPosition, spread, epsilon);
}

/// The batch's biased variance as the moving variance takes it.
double runningVariance(RunningVariance kind, double variance, double n, double epsilon);

struct Statistics {
  std::vector<double> mean, variance;
  /// The part of a batch's mean that `mean` has lost by being rounded. A difference of x from both
  /// has the digits that a difference from their sum, even in extended precision, has not.
  std::vector<long double> restOfMean{};
};

/// The weights of elements in the batch's statistics.
struct Weights {
  static constexpr long double kBeside = 1e-7L; ///< what Keras 3 adds to the sum of a mask's
  const HostArray *mask = nullptr;              ///< null: all weigh 1
  std::vector<int64_t> positions{};

  Weights(const Spec &spec, const Coordinates &at, const Arrays &inputs) {
    // Phases of a synchronized batch do not all take it.
    if (!spec.mask || (spec.synchronized && !inputs.contains("mask")))
      return;
    mask = &inputs.at("mask");
    positions = at.positionsInMask();
  }
  long double operator()(size_t element) const { return mask ? mask->get(positions[element]) : 1; }
  /// By group, the sums of weights.
  std::vector<long double> counts(const Coordinates &at) const {
    std::vector<long double> sums(at.groups(), mask ? 0 : at.groupSize());
    size_t element = 0;
    if (mask)
      at.forEach([&](Place p) { sums[p.group] += (*this)(element++); });
    return sums;
  }
  /// By group: what sums of weighed elements are divided by.
  std::vector<long double> divisors(const Coordinates &at) const {
    std::vector<long double> sums = counts(at);
    for (long double &sum : sums)
      sum += mask ? kBeside : 0;
    return sums;
  }
};

inline HostArray toArray(const std::vector<double> &values, const std::vector<int64_t> &shape) {
  HostArray array(DType::F64, shape);
  for (size_t i = 0; i < values.size(); ++i)
    array.set(i, values[i]);
  return array;
}

inline double rounded(DType dtype, double value) {
  HostArray one(dtype, {1});
  one.set(0, value);
  return one.get(0);
}

/// The inputs of a step's operands, and where each element finds its own.
struct BoundStep {
  std::vector<const HostArray *> arrays; ///< null where it is not given, and does not matter
  std::vector<std::vector<int64_t>> positions;

  BoundStep(const FuseStep &step, const Coordinates &at, const Arrays &inputs) {
    for (const StepOperand &operand : step.operands) {
      const auto found = inputs.find(operand.name);
      arrays.push_back(found == inputs.end() ? nullptr : &found->second);
      positions.push_back(at.positionsIn(operand));
    }
  }
  std::vector<double> values(size_t element) const {
    std::vector<double> values;
    for (size_t i = 0; i < arrays.size(); ++i)
      values.push_back(arrays[i] ? arrays[i]->get(positions[i][element]) : 0);
    return values;
  }
};

inline std::vector<BoundStep> bindSteps(const std::vector<FuseStep> &steps, const Coordinates &at,
                                        const Arrays &inputs) {
  std::vector<BoundStep> bound;
  for (const FuseStep &step : steps)
    bound.emplace_back(step, at, inputs);
  return bound;
}

/// The bit that decides the slope of a function at x: set above its only kink or between its two,
/// and for NaN.
bool isKept(const FuseStep &step, double x);

/// The corrections of xhat in training, before gamma and beta: xhat*factor + addend, of an element.
struct Corrections {
  const HostArray *r = nullptr, *d = nullptr;        ///< of a renorm, by group
  const HostArray *scale = nullptr, *bias = nullptr; ///< of an adjustment, by parameter

  /// `renorm` has r and d: what training makes, what backward reads.
  Corrections(const Spec &spec, const Arrays &inputs, const Arrays &renorm) {
    if (spec.renorm) {
      r = &renorm.at("renorm_r");
      d = &renorm.at("renorm_d");
    }
    if (spec.adjustment) {
      scale = &inputs.at("adjust_scale");
      bias = &inputs.at("adjust_bias");
    }
  }
  double factor(const Place &p) const {
    return (r ? r->get(p.group) : 1) * (scale ? scale->get(p.parameter) : 1);
  }
  double addend(const Place &p) const {
    return (d ? d->get(p.group) : 0) * (scale ? scale->get(p.parameter) : 1) +
           (bias ? bias->get(p.parameter) : 0);
  }
};

// ReferenceStatistics.cpp.

/// The batch's mean and biased variance.
Statistics batchStatistics(const Coordinates &at, const HostArray &x, const Weights &weights);
/// The mean of squares, about no mean.
Statistics meanOfSquares(const Coordinates &at, const HostArray &x);
/// Moments of these elements, about their mean as a kernel holds it.
Arrays partialMoments(const Spec &spec, const Coordinates &at, const HostArray &x,
                      const Weights &weights);
/// Statistics of moments that are given; `counts` are of elements, as they are weighed.
Statistics sharedStatistics(const Spec &spec, const Coordinates &at, const Arrays &inputs,
                            std::vector<long double> &counts);
/// Statistics of these elements and of all before them.
Arrays population(const Spec &spec, const Coordinates &at, const Arrays &inputs, Prologue prologue,
                  double epsilon);

// ReferenceGradients.cpp.

/// The outputs of backward and of what makes its exchanged sums.
Arrays gradients(const Spec &whole, Phase phase, const Sizes &sizes, const Arrays &inputs,
                 const Numbers &scalars);

} // namespace normforge::oracle
