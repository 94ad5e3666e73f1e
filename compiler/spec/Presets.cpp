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

namespace {

/// An optimizer's numbers where its framework's layer says none.
struct OptimizerPreset {
  Semantics semantics;
  double sgdRate, sgdMomentum;   ///< of `sgd`
  double rmspropRate, rho;       ///< of `rmsprop`
  double adamRate, beta1, beta2; ///< of `adam`
  double epsilon;                ///< of both
  double weightDecay;            ///< of all
  bool ratesMomentum, epsilonInRoot, correctsRoot, decouplesDecay;
};
// keras-1.*: keras/optimizers.py of 1.2.2. tf-keras: tf_keras/optimizers, which are those of 2.11
// on; its legacy ones have no weight_decay, and in rmsprop without a momentum epsilon beside the
// root. keras-3: the same. matlab:
// trainingOptions, its momentum 0.9 and L2Regularization 1e-4. pytorch: torch.optim; sgd's rate is
// that of 2.x. onnx-15: ai.onnx.preview.training, whose rate is an input (0.001 here without one)
// and which has no rmsprop: it is Keras's.
constexpr OptimizerPreset optimizerPresets[] = {
    {Semantics::Keras_1_2, 0.01, 0, 0.001, 0.9, 0.001, 0.9, 0.999, 1e-8, 0, true, false, false,
     false},
    {Semantics::Keras_1_0_4, 0.01, 0, 0.001, 0.9, 0.001, 0.9, 0.999, 1e-8, 0, true, false, false,
     false},
    {Semantics::TfKeras, 0.01, 0, 0.001, 0.9, 0.001, 0.9, 0.999, 1e-7, 0, true, true, false, true},
    {Semantics::Keras_3, 0.01, 0, 0.001, 0.9, 0.001, 0.9, 0.999, 1e-7, 0, true, true, false, true},
    {Semantics::Matlab, 0.01, 0.9, 0.001, 0.9, 0.001, 0.9, 0.999, 1e-8, 1e-4, true, false, false,
     false},
    {Semantics::PyTorch, 0.001, 0, 0.01, 0.99, 0.001, 0.9, 0.999, 1e-8, 0, false, false, true,
     false},
    {Semantics::Onnx_15, 0.001, 0, 0.001, 0.9, 0.001, 0.9, 0.999, 1e-6, 0, false, false, false,
     false},
};

} // namespace

Optimizer defaultOptimizer(Semantics semantics, std::string_view name) {
  const OptimizerPreset *preset = optimizerPresets;
  while (preset->semantics != semantics)
    ++preset;
  Optimizer optimizer;
  optimizer.weightDecay = preset->weightDecay;
  optimizer.ratesMomentum = preset->ratesMomentum;
  optimizer.decouplesDecay = preset->decouplesDecay;
  optimizer.epsilon = preset->epsilon;
  if (name == "adam") {
    optimizer.kind = Optimizer::Kind::Adam;
    optimizer.learningRate.value = preset->adamRate;
    optimizer.beta1 = preset->beta1;
    optimizer.beta2 = preset->beta2;
    optimizer.correctsRoot = preset->correctsRoot;
  } else if (name == "rmsprop") {
    optimizer.kind = Optimizer::Kind::Rmsprop;
    optimizer.learningRate.value = preset->rmspropRate;
    optimizer.rho = preset->rho;
    optimizer.epsilonInRoot = preset->epsilonInRoot;
  } else {
    constexpr double usual = 0.9; // of an optimizer that is named after it
    optimizer.learningRate.value = preset->sgdRate;
    optimizer.momentum = name == "momentum" ? usual : preset->sgdMomentum;
  }
  return optimizer;
}

} // namespace normforge::spec
