// Draws valid specs at random, as values that can be changed field by field.
//
// Enters: a seed. Leaves: a DrawnSpec, whose yaml() parseSpec accepts. A spec that fails is made
// smaller by changing its fields, so each key of the language that is drawn has a field here, a
// line in yaml() and, to be taken out again, a step in tests/fuzz/Reduce.cpp.
#pragma once

#include "compiler/oracle/Oracle.h"

#include <optional>
#include <random>
#include <string>
#include <vector>

namespace normforge::test {

struct DrawnAxis {
  char letter = 'c';   ///< lower case; no two axes share one
  int64_t size = 1;    ///< of a named one too: the value that it is run with
  bool named = false;  ///< "N" in the shape instead of its size
  bool listed = false; ///< in the key `axis`
  std::string name() const;
};

enum class DrawnEpsilon { Default, Argument };
enum class DrawnMomentum { Default, Argument, Cumulative, Pair };

struct DrawnSpec {
  Semantics semantics = Semantics::Keras_1_2;
  Mode mode = Mode::Feature;
  int64_t groups = 1;          ///< of mode Group alone
  std::vector<DrawnAxis> axes; ///< outermost first
  int blockedAxis = -1;        ///< -1: a plain layout
  int64_t block = 0;
  DType dtype = DType::F32;
  std::optional<DType> parameterDType; ///< none: the dtype's
  bool accumulatesF64 = false;
  std::vector<Phase> phases{Phase::Inference, Phase::Training, Phase::Backward};
  bool movingBackward = false;       ///< backward_statistics: moving
  bool takesPopulation = false;      ///< statistics: population
  std::string optimizer, parameters; ///< as written; empty: no such key
  bool center = true, scale = true;
  DrawnEpsilon epsilon = DrawnEpsilon::Default;
  DrawnMomentum momentum = DrawnMomentum::Default;
  std::optional<RunningVariance> runningVariance; ///< none: the preset's
  std::optional<EpsilonPosition> epsilonPosition; ///< none: the preset's
  bool trainable = true;
  bool renorm = false, clips = false, adjustment = false, mask = false;
  bool synchronized = false;
  int64_t ghostBatch = 0; ///< 0: none
  std::vector<FuseStep> prologue, fuse;

  int rank() const { return static_cast<int>(axes.size()); }
  /// Keys whose values are the language's defaults are left out.
  std::string yaml() const;
  /// Values of the named sizes.
  oracle::Sizes sizes() const;
};

/// Values for every run-time number that a spec can ask for.
const oracle::Numbers &drawnScalars();

/// Any rank, layout, mode and fusion; odd sizes, static and named. The same seed draws the same
/// specs on every machine.
class SpecDraw {
public:
  explicit SpecDraw(uint64_t seed) : random_(seed) {}

  DrawnSpec draw();
  bool chance(uint64_t oneIn) { return random_() % oneIn == 0; }
  std::mt19937_64 &engine() { return random_; }

private:
  template <typename T> T pick(std::initializer_list<T> values) {
    return values.begin()[random_() % values.size()];
  }
  /// Which axes the key `axis` lists; false where none are left to list.
  void keepRange(DrawnSpec &spec);
  bool listAxes(DrawnSpec &spec);
  void drawSizes(DrawnSpec &spec);
  void drawGroups(DrawnSpec &spec);
  /// Makes it a spec of inference alone, with values of some arrays in the kernel.
  void foldValues(DrawnSpec &spec);
  void drawUpdate(DrawnSpec &spec);
  void drawTraining(DrawnSpec &spec);
  void drawOptions(DrawnSpec &spec);
  /// A step with operands of some of the axes, named with `name`.
  FuseStep drawOperandStep(const DrawnSpec &spec, const std::string &name);

  std::mt19937_64 random_;
};

} // namespace normforge::test
