// What the frameworks do differently: the defaults that `semantics` stands for.
#pragma once

#include "compiler/spec/Spec.h"

namespace normforge::spec {

struct Preset {
  Semantics semantics;
  double epsilon;
  EpsilonPosition epsilonPosition;       ///< modes 0 and 2
  EpsilonPosition sampleEpsilonPosition; ///< mode 1
  double momentum;
  MomentumWeighs momentumWeighs;
  RunningVariance runningVariance;
  int axis;                 ///< modes 0 and 2; negative from the end
  bool sampleTakesLastAxis; ///< mode 1 reduces over the last axis whatever `axis` says
};

const Preset &presetOf(Semantics semantics);

} // namespace normforge::spec
