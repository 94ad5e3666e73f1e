#include "compiler/spec/Presets.h"

#include <cfloat>

namespace normforge::spec {

// keras-1.2: keras/layers/normalization.py of 1.2.2. Mode 1 divides by sqrt(v+e)+e, so that epsilon
// counts twice, and ignores `axis`; running_std holds the variance.
// keras-1.0.4: the same file there. sqrt(v+e)+e in modes 0 and 2, sqrt(v)+e in mode 1; running_std
// averages sqrt(v+e).
// tf-keras: keras/layers/normalization of TensorFlow 2's Keras (2.6 to 2.15, tf_keras 2.21). Its
// fused kernel stores v*N/(N-1): Parser::readFused.
// keras-3: keras/src/layers/normalization of 3.x.
// matlab: batchNormalizationLayer and its siblings, as their manual has them.
// pytorch: stores v*N/(N-1) and normalizes with v. RMSNorm's eps of None is finfo's of the type
// that it computes in.
// onnx-15: BatchNormalization of opset 15, LayerNormalization of opset 17.
static constexpr auto kInside = EpsilonPosition::Inside, kOutside = EpsilonPosition::Outside,
                      kBoth = EpsilonPosition::Both;
static constexpr auto kOld = MomentumWeighs::Old, kNew = MomentumWeighs::New;
static constexpr auto kBiased = RunningVariance::Biased, kBessel = RunningVariance::Bessel;
static constexpr auto kVariance = MovingSpread::Variance, kDeviation = MovingSpread::Deviation;
static constexpr auto kParameters = Frozen::Parameters, kAll = Frozen::ParametersAndStatistics;
static constexpr Preset presets[] = {
    {Semantics::Keras_1_2, 1e-3, 1e-3, kInside, kBoth, 0.99, kOld, kBiased, kVariance, kParameters,
     -1, true},
    {Semantics::Keras_1_0_4, 1e-6, 1e-6, kBoth, kOutside, 0.9, kOld, kBiased, kDeviation,
     kParameters, -1, true},
    {Semantics::TfKeras, 1e-3, 1e-3, kInside, kInside, 0.99, kOld, kBiased, kVariance, kAll, -1,
     false},
    {Semantics::Keras_3, 1e-3, 1e-6, kInside, kInside, 0.99, kOld, kBiased, kVariance, kAll, -1,
     false},
    {Semantics::Matlab, 1e-5, 1e-5, kInside, kInside, 0.1, kNew, kBiased, kVariance, kParameters,
     kChannels, false},
    {Semantics::PyTorch, 1e-5, std::nullopt, kInside, kInside, 0.1, kNew, kBessel, kVariance,
     kParameters, 1, false},
    {Semantics::Onnx_15, 1e-5, 1e-5, kInside, kInside, 0.9, kOld, kBiased, kVariance, kParameters,
     1, false},
};

const Preset &presetOf(Semantics semantics) {
  for (const Preset &preset : presets)
    if (preset.semantics == semantics)
      return preset;
  return presets[0];
}

double defaultEpsilon(const Preset &preset, Mode mode, DType compute) {
  if (mode != Mode::Rms)
    return preset.epsilon;
  return preset.rmsEpsilon.value_or(compute == DType::F64 ? DBL_EPSILON : FLT_EPSILON);
}

} // namespace normforge::spec
