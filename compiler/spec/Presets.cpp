#include "compiler/spec/Presets.h"

namespace normforge::spec {

// Keras 1.2.2, keras/layers/normalization.py: mode 1 divides by sqrt(v+e)+e, so that epsilon
// counts twice, and ignores `axis`. PyTorch stores v*N/(N-1) and normalizes with v; its momentum
// weighs the new value. ONNX: BatchNormalization of opset 15, LayerNormalization of opset 17.
static constexpr Preset presets[] = {
    {Semantics::Keras_1_2, 1e-3, EpsilonPosition::Inside, EpsilonPosition::Both, 0.99,
     MomentumWeighs::Old, RunningVariance::Biased, -1, true},
    {Semantics::PyTorch, 1e-5, EpsilonPosition::Inside, EpsilonPosition::Inside, 0.1,
     MomentumWeighs::New, RunningVariance::Bessel, 1, false},
    {Semantics::Onnx_15, 1e-5, EpsilonPosition::Inside, EpsilonPosition::Inside, 0.9,
     MomentumWeighs::Old, RunningVariance::Biased, 1, false},
};

const Preset &presetOf(Semantics semantics) {
  for (const Preset &preset : presets)
    if (preset.semantics == semantics)
      return preset;
  return presets[0];
}

} // namespace normforge::spec
