// The reader of a spec's tree: one value that its parts in Parser.cpp, ParseInput.cpp and
// ParseAxis.cpp fill key by key, in an order in which each check has what it needs (semantics
// before defaults, shape before layout before axis).
#pragma once

#include "compiler/spec/Document.h"
#include "compiler/spec/Keys.h"
#include "compiler/spec/Presets.h"
#include "compiler/spec/Spec.h"

#include <map>
#include <optional>
#include <string>

namespace normforge::spec {

constexpr int maxRank = 6; ///< [c2]
/// Characters of a name, of a spec or a size: C compilers and file systems take as many.
constexpr size_t maxName = 255;

class Parser {
public:
  Parser(const Value &root, Diagnostics &diagnostics, ReadArray readArray,
         std::optional<Phase> asked)
      : root_(root), diagnostics_(diagnostics), readArray_(readArray), asked_(asked),
        keys_(root, "", specKeys(), diagnostics) {}

  Spec parse(std::string_view sourceName);

private:
  friend class StepReader;

  void error(const Value &value, std::string message);
  void readName(std::string_view sourceName);
  void readCount();
  void readSemantics();
  void readMode();
  void readInput();
  std::optional<DType> readDType(const Value &value, std::string_view key);
  void readShape(const Value &value);
  /// Named sizes count as 1: their product is checked at each call.
  void checkBytes(const Value &shape);
  void readOutput(const Value &value);
  void readAxis();
  void useAxisDefault();
  void checkReducedAxes(size_t offset);
  std::optional<int> readOneAxis(const Value &item);
  void checkGroups();
  void readDTypes();
  void readEpsilon();
  void readRunningVariance();
  /// Key `fused`: what tf.keras's own kernel does otherwise.
  void readFused();
  void readPopulation();
  void checkRange();
  void checkSynchronized();
  void checkStoredSums();
  /// Keys `optimizer` and `parameters` (ParseUpdate.cpp).
  void readUpdate();
  void readOptimizer(const Entry &entry);
  void readParameters(const Entry &entry);
  void readAtLeastZero(const Value &value, const std::string &path, double &into);
  void readRegularizer(const Value &value, const std::string &path, Learned &learned);
  void readConstraint(const Value &value, const std::string &path, Learned &learned);
  /// Whether there is such a moving statistic; else an error.
  bool checkMoving(const Entry &of, const std::string &path);
  /// Values of `parameters` and `weights` (ParseInitial.cpp).
  void readInitialValue(const Value &value, const std::string &path, Initial &into);
  void checkValues(const Value &value, const std::string &path, size_t count);
  void readInitializer(const Value &value, const std::string &path, Initial &into);
  void readWeights();
  void foldValues();
  void readTrainable();
  /// Keys `renorm`, `virtual_batch_size`, `adjustment` and `mask` (ParseTraining.cpp).
  void readTraining();
  void readRenorm(const Entry &entry);
  void readGhosts(const Entry &entry);
  std::optional<double> readRatio(const Value &value);
  void readMomentum();
  void readFlag(std::string_view key, bool &flag);
  void readPhases();
  void noteKeysWithoutEffect();
  void readBackwardStatistics();
  /// Keys `prologue` and `fuse` (Steps.cpp).
  void readSteps();

  const Value &root_;
  Diagnostics &diagnostics_;
  ReadArray readArray_;        ///< of files that kernels have within them; or null
  std::optional<Phase> asked_; ///< for, where the spec has no `phases`
  Keys keys_;
  Spec spec_;
  std::map<Initial *, const Value *> written_; ///< where the values of arrays are
  const Preset *preset_ = nullptr;
  /// As written, where that is not built too.
  std::string semanticsName_ = "keras-1.2", modeName_;
  /// The layout in MATLAB's labels, where it is written so: the shape and indices of axes are in
  /// their order then.
  std::string labels_;
  /// False after an error: checks that would follow from it are left out.
  bool semanticsKnown_ = true, modeKnown_ = true;
  bool shapeKnown_ = false, layoutKnown_ = false, axesKnown_ = false;
};

} // namespace normforge::spec
