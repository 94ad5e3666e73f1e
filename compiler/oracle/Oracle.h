// Results to compare a kernel's with: an f64 reference written to be read, and oneDNN.
//
// Both take the spec itself, never the operator or the schedule that the kernel was made from. What
// inputs are drawn and how far results may be off is read from the operator.
#pragma once

#include "compiler/spec/HostArray.h"
#include "compiler/spec/Spec.h"
#include "runtime/measure/KernelCall.h"

#include <map>
#include <memory>
#include <optional>
#include <string>

namespace normforge::oracle {

/// Arrays by the names of the kernels' arguments.
using Arrays = std::map<std::string, HostArray>;
/// Run-time numbers and named sizes by name.
using Numbers = std::map<std::string, double>;
using Sizes = std::map<std::string, int64_t>;

/// Shape in memory of argument `name` for these sizes (x, y, addend as the layout stores them;
/// parameters and statistics as their axes in layout order).
std::vector<int64_t> argumentShape(const Spec &spec, const std::string &name, const Sizes &sizes);
/// Names that `phase` reads and writes, in the manifest's order.
std::vector<std::string> inputNames(const Spec &spec, Phase phase);
std::vector<std::string> outputNames(const Spec &spec, Phase phase);

/// How inputs are drawn.
enum class Data {
  Normal,   ///< x of mean 0.5 and deviation 2, a little different for each statistics group
  Offset,   ///< mean/deviation of 1e4
  Constant, ///< every group constant
  Outlier,  ///< one element of 1e6 a group
  Denormal, ///< values around 1e-40
  Large,    ///< values around 1e19, whose squares f32 cannot hold; of f16, around 1e4
};
std::optional<Data> parseData(std::string_view text);
std::string_view toString(Data data);
/// A value for every number that the spec leaves to a call of `phase`.
Numbers usualNumbers(const Spec &spec, Phase phase);
/// Inputs of `phase`, drawn with `seed`: the same on every machine. Saved statistics are those of
/// the data, which a prologue may make with numbers of `scalars`. A blocked layout's padding in x
/// and addend holds NaN (it must not matter).
Arrays drawInputs(const Spec &spec, Phase phase, const Sizes &sizes, uint64_t seed,
                  Data data = Data::Normal, const Numbers &scalars = {});

/// The outputs of `phase` computed in f64 by the formulas of the spec language; outputs are F64
/// arrays of the kernel's shapes. Padding of a blocked layout is 0.
Arrays reference(const Spec &spec, Phase phase, const Sizes &sizes, const Arrays &inputs,
                 const Numbers &scalars = {});

/// The statistics of a batch that training saves, in f64.
Arrays batchStatistics(const Spec &spec, const Sizes &sizes, const Arrays &inputs,
                       const Numbers &scalars = {});

/// The partials that the ranks of a synchronized spec exchange before `phase`, as of one rank that
/// has the whole batch.
Arrays partials(const Spec &spec, Phase phase, const Sizes &sizes, const Arrays &inputs,
                const Numbers &scalars);

/// The largest difference allowed between a kernel's output and the reference, for each element:
/// |a - b| <= elements[i] + absolute + relative*|b|. `why` says what it is made of in a line.
struct Tolerance {
  double absolute = 0, relative = 0;
  /// Where the kernel has NaN, an expected 0 agrees too: oneDNN's JIT relu makes 0 of NaN.
  bool zeroForNaN = false;
  std::string why;
  std::shared_ptr<const std::vector<double>> elements{}; ///< in memory order; null: 0 for all

  double allowed(int64_t element, double expected) const;
};
/// By output: how far roundings may take a kernel from the exact value, computed from the dtype's
/// digits, the length of the sums and the data (Bounds.cpp).
std::map<std::string, Tolerance> tolerances(const Spec &spec, Phase phase, const Sizes &sizes,
                                            const Arrays &inputs, const Numbers &scalars = {});
/// The same between a kernel and oneDNN, whose own error (its mean is not corrected by a second
/// pass) comes on top.
std::map<std::string, Tolerance> oneDnnTolerances(const Spec &spec, Phase phase, const Sizes &sizes,
                                                  const Arrays &inputs,
                                                  const Numbers &scalars = {});

struct Comparison {
  double largestError = 0;         ///< |a - b|; infinite where only one of them is NaN
  double worstError = 0;           ///< |a - b| of the largest excess
  double largestExcess = 0;        ///< |a - b| / allowed; agrees when at most 1
  int64_t worst = -1;              ///< index in memory order of the largest excess
  double actual = 0, expected = 0; ///< there
  double allowed = 0;              ///< there
  bool agrees() const { return largestExcess <= 1; }
};
/// NaN agrees with NaN and Inf with the same Inf, and Inf where any difference is allowed. Arrays
/// of different counts never agree.
Comparison compare(const HostArray &actual, const HostArray &expected, const Tolerance &tolerance);

/// A kernel's written argument, as its last run has left it.
HostArray outputOf(const KernelCall &call, size_t argument);

/// oneDNN set up for one problem. Buffers are oneDNN's own copies; run() times or computes.
class OneDnn {
public:
  /// Sets up what oneDNN can check of this spec and phase; null, with the reason in `whyNot`, when
  /// it can check nothing. `threads` limits OpenMP's threads for its calls.
  static std::unique_ptr<OneDnn> create(const Spec &spec, Phase phase, const Sizes &sizes,
                                        const Arrays &inputs, const Numbers &scalars, int threads,
                                        std::string &whyNot);
  /// Mode 1 alone: the same problem seen as batch normalization whose channels are the statistics
  /// groups. gamma, beta and fused steps are applied in f32 by outputs(), outside oneDNN.
  static std::unique_ptr<OneDnn> createTransposed(const Spec &spec, Phase phase, const Sizes &sizes,
                                                  const Arrays &inputs, const Numbers &scalars,
                                                  int threads, std::string &whyNot);
  virtual ~OneDnn() = default;
  /// One call of the primitive (including reorders only where oneDNN's mode needs them; see notes).
  virtual void run() = 0;
  /// Outputs of the last run under our names and in our layout: y and, in training, batch_mean and
  /// batch_variance. What is missing here oneDNN does not compute.
  virtual Arrays outputs() = 0;
  /// Implementation name as oneDNN gives it, such as "ncsp_bnorm:any".
  virtual std::string implementation() const = 0;
  /// The parts of the spec that oneDNN did not check, and why ("moving_mean, moving_variance: not
  /// in oneDNN").
  virtual std::string notes() const = 0;
};
/// "2.6.3"
std::string oneDnnVersion();

} // namespace normforge::oracle
