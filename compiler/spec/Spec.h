// The value of a spec file: all that is to be computed.
//
// Enters: YAML text. Leaves: a checked Spec, presets applied, or errors with file, line and column.
// Nothing here says how a kernel computes it.
#pragma once

#include "compiler/spec/Formula.h"
#include "compiler/spec/HostArray.h"
#include "compiler/spec/Initial.h"
#include "compiler/spec/Optimizer.h"
#include "runtime/artifact/Artifact.h"

#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace normforge {

/// An axis' size: a number, or a name whose value is known only at the call.
struct Size {
  int64_t value = 0; ///< at least 1; 0 when named
  std::string name;  ///< empty when static
  bool isNamed() const { return !name.empty(); }
  bool operator==(const Size &) const = default;
};

/// The order of axes in memory. `axes` has one lower-case letter an axis, outermost first, so that
/// axis i of the shape is letter i. In a blocked layout such as nChw16c, axis `blockedAxis` is
/// stored as ceil(size/block) outer indices at its place and `block` lanes innermost.
struct Layout {
  std::string text;     ///< as written: "nChw16c"
  std::string axes;     ///< "nchw"
  int blockedAxis = -1; ///< -1 when plain
  int64_t block = 0;
  bool isBlocked() const { return blockedAxis >= 0; }
};

/// The part of a normalization that a kernel does. Population takes statistics of a batch into
/// those of all batches before it. Update makes the next gamma and beta of their gradients;
/// BackwardUpdate makes them of gradients that it computes and does not write. Moments and
/// GradientSums make what the ranks of Spec::synchronized exchange before Training (or what else
/// takes the batch's statistics) and before Backward.
enum class Phase : uint8_t {
  Inference,
  Training,
  Backward,
  Population,
  Update,
  BackwardUpdate,
  Moments,
  GradientSums
};
constexpr Phase kPhases[] = {Phase::Inference,  Phase::Training,    Phase::Backward,
                             Phase::Population, Phase::Update,      Phase::BackwardUpdate,
                             Phase::Moments,    Phase::GradientSums};
/// Whether a phase takes the gradient of y.
constexpr bool isBackward(Phase phase) {
  return phase == Phase::Backward || phase == Phase::BackwardUpdate || phase == Phase::GradientSums;
}
/// Whether it takes a step of the optimizer.
constexpr bool isUpdate(Phase phase) {
  return phase == Phase::Update || phase == Phase::BackwardUpdate;
}
std::string_view toString(Phase);
std::optional<Phase> parsePhase(std::string_view text);

enum class Semantics : uint8_t {
  Keras_1_2,
  Keras_1_0_4,
  TfKeras,
  Keras_3,
  Matlab,
  PyTorch,
  Onnx_15
};
/// Which statistics are taken of which elements. Keras 1's modes 0, 1 and 2: of each index of
/// `axes`, in inference the moving ones (Feature); of each index of the other axes (Sample, layer
/// normalization); as Feature, but of the batch in inference too (Batch). Instance: of each index
/// of the samples axis and of `axes`. Rms: as Sample, the mean of squares about 0. Group: of each
/// index of the samples axis and each of `groups` runs of neighbors on the one axis. Range: as
/// Feature, but the least and the greatest value; (x - minimum) / (maximum - minimum) is 0 to 1.
enum class Mode : uint8_t { Feature, Sample, Batch, Instance, Rms, Group, Range };
/// sqrt(v+e), sqrt(v)+e, sqrt(v+e)+e.
enum class EpsilonPosition : uint8_t { Inside, Outside, Both };
/// The quantity that the second moving vector averages: the variance, or the deviation before an
/// epsilon is added to it, sqrt(v+e) or, with epsilon outside alone, sqrt(v).
enum class MovingSpread : uint8_t { Variance, Deviation };
/// The arrays that `trainable: false` keeps as they are: gamma and beta, which have no gradients,
/// or the moving statistics too, which training then takes.
enum class Frozen : uint8_t { Nothing, Parameters, ParametersAndStatistics };
/// The moving variance takes v, v*N/(N-1), v*N/(N-(1+e)); N <= 1 (or N <= 1+e) takes v.
enum class RunningVariance : uint8_t { Biased, Bessel, Keras2 };
/// Which value momentum weighs: a*old + (1-a)*batch, or (1-a)*old + a*batch.
enum class MomentumWeighs : uint8_t { Old, New };
/// The statistics that gradients go through: the batch's, which depend on x, or the moving ones,
/// which do not (layers whose statistics are frozen).
enum class BackwardStatistics : uint8_t { Batch, Moving };
/// An array that a step of `fuse` or `prologue` takes.
struct StepOperand {
  std::string name; ///< of the argument
  /// Ascending: the axes that it has, repeated over the others.
  std::vector<int> axes{};
  bool whole = true; ///< of x's shape; `axes` are all then
  bool operator==(const StepOperand &) const = default;
};
/// A step of `fuse` or `prologue`: `add`, `mul` and `bias`, each with an operand, `expr`, or a
/// function of compiler/expr/Functions.h.
struct FuseStep {
  std::string name;
  std::vector<double> parameters{};    ///< as many as the function has
  std::vector<StepOperand> operands{}; ///< one, or those that the expression names
  std::string store{};                 ///< the argument that the value after it is written to
  std::string expression{};            ///< of `expr`, as written
  std::shared_ptr<const Formula> formula{};
  std::vector<std::string> scalars{}; ///< run-time numbers of the expression
  bool isAdd() const { return name == "add" || name == "bias"; }
  bool isMul() const { return name == "mul"; }
  /// As a spec has it: "relu", "{leaky_relu: 0.01}", "{add: {axes: [0, 1], name: skip}}".
  std::string text() const;
  bool operator==(const FuseStep &other) const { return text() == other.text(); }
};

std::string_view toString(Semantics);
std::string_view toString(Mode);
std::string_view toString(EpsilonPosition);
std::string_view toString(RunningVariance);

struct Momentum {
  MomentumWeighs weighs = MomentumWeighs::Old;
  /// The new value weighs 1/count, count given at the call; mean and variance are unused.
  bool cumulative = false;
  /// Equal unless the spec gives {mean: a, variance: b}. `argument` makes both one scalar.
  Number mean, variance;
};

/// Batch renormalization (Ioffe 2017): y = (xhat*r + d)*gamma + beta in training, with
/// r = clip(s/t, rMin, rMax) and d = clip((m - renorm_mean)/t, -dMax, dMax), where s is the batch's
/// deviation and t = max(renorm_stddev, sqrt(e)); no gradient goes through r and d.
struct Renorm {
  double rMin = 0, rMax = std::numeric_limits<double>::infinity(), dMax = rMax;
  double momentum = 0.99; ///< of renorm_mean and renorm_stddev, on the side of Momentum::weighs
};

struct Spec {
  std::string name;  ///< text without control characters; C's symbols are made of it
  int64_t count = 1; ///< how often the layer stands in its network; documentation alone
  Semantics semantics = Semantics::Keras_1_2;
  std::vector<Size> shape; ///< logical, in the order of layout.axes
  Layout layout;           ///< of x and y alike
  DType dtype = DType::F32;
  DType parameterDType = DType::F32; ///< of gamma, beta, bias and the moving statistics
  DType accumulate = DType::F32;     ///< that everything is computed in: F32 or F64
  Mode mode = Mode::Feature;
  /// Ascending, 0 to rank-1: the axes that gamma and beta have. Statistics are taken over them in
  /// modes Sample and Rms, for each index of them in the others.
  std::vector<int> axes;
  int64_t groups = 0; ///< of mode Group: divides the size of its axis; 0 in others
  Number epsilon;
  EpsilonPosition epsilonPosition = EpsilonPosition::Inside;
  Momentum momentum;
  RunningVariance runningVariance = RunningVariance::Biased;
  MovingSpread movingSpread = MovingSpread::Variance;
  /// Whether the moving statistics are those of Phase::Population, and training leaves them alone.
  bool takesPopulation = false;
  Frozen frozen = Frozen::Nothing;
  // Options of training and its gradients in mode 0, where they take the batch's statistics.
  std::optional<Renorm> renorm;
  /// Samples whose statistics are taken together, every B/ghostBatch-th of the B samples; 0: all.
  int64_t ghostBatch = 0;
  bool adjustment = false; ///< arguments adjust_scale and adjust_bias of xhat before gamma and beta
  /// Whether argument `mask` weighs what the batch's statistics are taken of; mode 2 too.
  bool mask = false;
  /// Whether the batch is that of several ranks, which exchange partial statistics and gradients.
  bool synchronized = false;
  bool center = true, scale = true;                                  ///< whether beta, gamma exist
  BackwardStatistics backwardStatistics = BackwardStatistics::Batch; ///< Moving: mode 0 alone
  std::optional<Optimizer> optimizer{};                              ///< of Phase::Update
  Learned gammaLearned{}, betaLearned{};
  /// Before the first batch, where Spec::initializes: gamma, beta, moving_mean and the second
  /// moving vector. Those that are values are in the kernels where foldsValues().
  Initial gammaInitial{.first = 1}, betaInitial{}, meanInitial{}, spreadInitial{.first = 1};
  bool initializes = false;       ///< whether initialize is among the phases
  std::vector<Phase> phases;      ///< that have kernels, as listed, without repeats
  std::vector<FuseStep> prologue; ///< before the statistics, in order
  std::vector<FuseStep> fuse;     ///< after gamma and beta, in order
  /// Notes for people on parts of the text that do nothing, or do what its writer may not expect.
  std::vector<std::string> notes;

  int rank() const { return static_cast<int>(shape.size()); }
  /// The dtype of the statistics that training saves, with no fewer digits than what they are
  /// computed from: backward computes with their difference from x.
  DType statisticDType() const {
    return dtype == DType::F64 || parameterDType == DType::F64 ||
                   ((synchronized || mode == Mode::Range) && accumulate == DType::F64)
               ? DType::F64
               : DType::F32;
  }
  /// The dtype of what ranks exchange: a mean is rounded as it is in what training computes.
  DType partialDType() const { return accumulate == DType::F64 ? DType::F64 : DType::F32; }
  bool isAxis(int i) const;
  /// The axis of letter n, else of b, else the first.
  int samplesAxis() const;
  /// Whether axis i indexes the statistics one by one; the others are taken over, a grouped one
  /// group by group.
  bool indexesStatistics(int i) const;
  bool isGrouped(int i) const { return mode == Mode::Group && isAxis(i); }
  /// Whether statistics have a mean, or are the mean of squares alone.
  bool hasMean() const { return mode != Mode::Rms; }
  /// Whether they are the least and greatest value, of Phase::Population alone.
  bool hasRange() const { return mode == Mode::Range; }
  /// The number of the last step of the prologue whose value is stored; -1: none is.
  int storedStep() const;
  bool hasPhase(Phase phase) const;
  bool hasBackward() const { return std::ranges::any_of(phases, isBackward); }
  bool hasUpdate() const { return std::ranges::any_of(phases, isUpdate); }
  /// Whether there is such an operator, listed or not: of population moving statistics are made, or
  /// a range, which no other phase makes; of update an optimizer says what it does; ranks exchange
  /// what is of the batch, and take no step by the gradients of one of them.
  bool canHavePhase(Phase phase) const {
    if (phase == Phase::Population)
      return hasMovingStatistics() || hasRange();
    if (hasRange())
      return phase == Phase::Inference;
    if (phase == Phase::Moments || phase == Phase::GradientSums)
      return synchronized &&
             (phase == Phase::Moments || backwardStatistics == BackwardStatistics::Batch);
    if (phase == Phase::BackwardUpdate && synchronized)
      return false;
    return !isUpdate(phase) || optimizer.has_value();
  }
  /// Mode 0 alone keeps moving statistics.
  bool hasMovingStatistics() const { return mode == Mode::Feature; }
  /// Whether kernels have within them what is written as a value of an array, instead of an
  /// argument: where inference is all that there is, host's phases included.
  bool foldsValues() const {
    return !initializes && phases.size() == 1 && phases.front() == Phase::Inference;
  }
  /// Whether `phase` takes them, or a range, and not the batch's.
  bool takesMovingStatistics(Phase phase) const;
  bool takesBatchStatistics(Phase phase) const { return !takesMovingStatistics(phase); }
  /// Whether training averages the batch's into them.
  bool updatesMovingStatistics(Phase phase) const {
    return phase == Phase::Training && hasMovingStatistics() && !takesPopulation &&
           !takesMovingStatistics(phase);
  }
  /// The argument of the second moving vector: moving_variance or moving_stddev.
  std::string_view movingSpreadName() const;
  /// Whether what it stores of a batch's variance depends on epsilon.
  bool spreadTakesEpsilon() const;
  /// Whether gamma and beta, where they exist, have gradients.
  bool learnsGamma() const { return scale && frozen == Frozen::Nothing; }
  bool learnsBeta() const { return center && frozen == Frozen::Nothing; }
  /// Distinct names of named sizes in the order of their first appearance in the shape: the order
  /// of nf_call.sizes.
  std::vector<std::string> sizeNames() const;
  /// The run-time numbers that `phase` takes, in the order of nf_call.scalars: epsilon, momentum,
  /// count, those of expressions, learning_rate, step. Inference takes no momentum and no count.
  std::vector<Scalar> scalars(Phase phase) const;
  std::vector<std::string> scalarNames(Phase phase) const;
};

/// Reads the file that a path of a spec names.
using ReadArray = llvm::function_ref<llvm::Expected<HostArray>(const std::string &path)>;

/// Every error found in a spec, as `file:line:col: error: ...` with the line and a caret.
class SpecError : public llvm::ErrorInfo<SpecError> {
public:
  static char ID;
  explicit SpecError(std::string text) : text_(std::move(text)) {}
  const std::string &text() const { return text_; }
  void log(llvm::raw_ostream &os) const override;
  std::error_code convertToErrorCode() const override { return llvm::inconvertibleErrorCode(); }

private:
  std::string text_;
};

/// Everything in a spec but its name, count and initial values that no kernel has, in one line:
/// equal for specs that mean the same. The phases are in it, in any order one text: what one phase
/// keeps for another depends on both.
std::string canonicalText(const Spec &spec);

/// The spec as `phase` sees it: without renorm, ghost batches, adjustment and mask where it takes
/// the moving statistics; of Phase::Population what its statistics depend on, and in f64 where
/// they are rounded; of Phase::Update as if gamma were x, all of it one group.
Spec ofPhase(Spec spec, Phase phase);

/// The spec in another layout of its axes, nothing where its rank has none: "nchw" stands
/// for channels first, "nhwc" for channels last, "nChw16c" for blocks of channels.
std::optional<Spec> inLayout(const Spec &spec, const std::string &layout);

/// Parses and checks a spec. `sourceName` is the file's name as errors show it; its stem is the
/// default of `name`. Every error is a SpecError. Reentrant.
///
/// `readArray` reads the array of an .npy file that kernels are to have within them, by its path as
/// written; its errors are one sentence. Without it such a path is an error: text has no folder.
///
/// A spec without the key `phases` has inference alone, unless training or backward is `asked` for:
/// then inference, training and backward, as far as its mode has them.
llvm::Expected<Spec> parseSpec(llvm::StringRef text, llvm::StringRef sourceName,
                               ReadArray readArray = {}, std::optional<Phase> asked = std::nullopt);
/// The same from a file, whose folder paths are relative to; a file that cannot be read (missing, a
/// directory) is a SpecError too.
llvm::Expected<Spec> readSpec(llvm::StringRef path, std::optional<Phase> asked = std::nullopt);

} // namespace normforge
