// The defaults that `semantics` stands for, in which the frameworks differ.
#pragma once

#include "compiler/spec/Spec.h"

#include <climits>
#include <optional>

namespace normforge::spec {

struct Preset {
  Semantics semantics;
  double epsilon;                        ///< of all modes but rms
  std::optional<double> rmsEpsilon;      ///< none: the distance from 1 to the next number
  EpsilonPosition epsilonPosition;       ///< modes 0 and 2
  EpsilonPosition sampleEpsilonPosition; ///< mode 1
  double momentum;
  MomentumWeighs momentumWeighs;
  RunningVariance runningVariance;
  MovingSpread movingSpread;
  Frozen frozen;            ///< what `trainable: false` freezes
  int axis;                 ///< modes 0 and 2; negative from the end, kChannels: axis c
  bool sampleTakesLastAxis; ///< mode 1 reduces over the last axis whatever `axis` says
};

/// A preset's axis that a letter says.
constexpr int kChannels = INT_MIN;

const Preset &presetOf(Semantics semantics);

/// The default epsilon of a layer that computes in `compute`.
double defaultEpsilon(const Preset &preset, Mode mode, DType compute);

/// The optimizer `sgd`, `momentum`, `rmsprop` or `adam`, as the framework has it.
Optimizer defaultOptimizer(Semantics semantics, std::string_view name);

} // namespace normforge::spec
