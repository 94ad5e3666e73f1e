// How gamma and beta are learned: what phase update does with their gradients.
//
// Sources: keras/optimizers.py of 1.2.2 and keras/regularizers.py, constraints.py;
// tf_keras/optimizers (since 2.11; not its legacy ones); keras/src/optimizers of 3.x; torch/optim;
// ai.onnx.preview.training; MATLAB's manual of trainingOptions.
#pragma once

#include "llvm/ADT/StringRef.h"

#include <string>

namespace normforge {

/// A number in the spec, or a scalar given at the call.
struct Number {
  double value = 0;
  bool isArgument = false;
};

/// With w the parameter, t the number of steps with this one, g its gradient with those of its
/// regularizers, r the learning rate / (1 + decay*(t - 1)) times the parameter's factor:
///   Sgd      v' = momentum*v + g                        w' = w - r*v'
///   Rmsprop  s' = rho*s + (1 - rho)*g^2                 w' = w - r*g/(sqrt(s') + e)
///            centered: s' - a'^2 for s', a' = rho*a + (1 - rho)*g
///            momentum: v' = momentum*v + g/(...)        w' = w - r*v'
///   Adam     a' = beta1*a + (1 - beta1)*g, s' = beta2*s + (1 - beta2)*g^2
///            w' = w - r*sqrt(1 - beta2^t)/(1 - beta1^t) * a'/(sqrt(s') + e)
///            amsgrad: m' = max(m, s') for s'
struct Optimizer {
  enum class Kind : uint8_t { Sgd, Rmsprop, Adam } kind = Kind::Sgd;
  Number learningRate;
  double decay = 0;
  double momentum = 0;   ///< Sgd, Rmsprop; 0: there is no v
  bool nesterov = false; ///< Sgd: w' = w - r*(g + momentum*v')
  double rho = 0, epsilon = 0;
  bool centered = false;
  double beta1 = 0, beta2 = 0;
  bool amsgrad = false;
  double weightDecay = 0; ///< weightDecay*w beside g: half of it is the factor of an l2 penalty
  // Where frameworks differ.
  /// v' = momentum*v + r*..., w' = w - v', so that a step of one rate goes on with it. (Of Sgd v is
  /// negative then: v' = momentum*v - r*g, w' = w + v'.)
  bool ratesMomentum = true;
  bool epsilonInRoot = false; ///< Rmsprop: sqrt(s' + e)
  /// Adam: w' = w - r/(1 - beta1^t) * a'/(sqrt(s')/sqrt(1 - beta2^t) + e).
  bool correctsRoot = false;
  /// Weight decay is a step of its own, before the others: w - r*weightDecay*w for w, and none of
  /// it in g.
  bool decouplesDecay = false;

  bool takesStep() const { return kind == Kind::Adam || decay > 0; }
};

/// The constraint on a parameter: the value that it becomes after a step, n the norm of all of it,
/// or where Learned::normsElements of each element, |w|.
enum class WeightConstraint : uint8_t {
  None,
  MaxNorm,    ///< w*min(n, most)/(1e-7 + n)
  UnitNorm,   ///< w/(1e-7 + n)
  MinMaxNorm, ///< w*(rate*clip(n, least, most) + (1 - rate)*n)/(1e-7 + n)
  NonNegative ///< max(w, 0)
};

/// Settings of one parameter beside the optimizer's.
struct Learned {
  double l1 = 0, l2 = 0; ///< penalty l1*sum|w| + l2*sum(w^2), gradient l1*sign(w) + 2*l2*w
  WeightConstraint constraint = WeightConstraint::None;
  double least = 0, most = 1, rate = 1; ///< of the constraint
  bool normsElements = false;           ///< of the constraint
  double rateFactor = 1;                ///< of the learning rate
  double l2Factor = 1;                  ///< of weightDecay
  bool hasPenalty() const { return l1 > 0 || l2 > 0; }
  bool takesNorm() const {
    return constraint == WeightConstraint::MaxNorm || constraint == WeightConstraint::UnitNorm ||
           constraint == WeightConstraint::MinMaxNorm;
  }
  /// Whether that is a sum.
  bool sumsSquares() const { return takesNorm() && !normsElements; }
};

/// The epsilon beside a norm: Keras's.
constexpr double kNormEpsilon = 1e-7;

llvm::StringRef toString(WeightConstraint);
/// All that they say, in one line.
std::string textOf(const Optimizer &optimizer);
std::string textOf(const Learned &learned);

} // namespace normforge
