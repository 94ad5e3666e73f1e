// Turns what a layer of one framework has saved into what a layer of another takes.
//
// Enters: gamma, beta and moving statistics by their framework's names. Leaves: the same by the
// other's names, of values with which its inference computes the same y, or errors that say why
// there are none. What the frameworks' layers compute is in Presets.cpp.
#pragma once

#include "compiler/spec/HostArray.h"
#include "compiler/spec/Spec.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace normforge {

struct Conversion {
  Semantics from = Semantics::Keras_1_2, to = Semantics::PyTorch;
  Mode mode = Mode::Feature; ///< of the layers; not Range
  /// The epsilon of the layers converted; none: their framework's default.
  std::optional<double> fromEpsilon{};
  /// The epsilon of the layers made; none: the same, and where the formula is another one, their
  /// framework's default.
  std::optional<double> toEpsilon{};
  /// Leaves out what training alone takes, and the other framework does not have.
  bool forInference = false;
  /// The prefixes of the layers' arrays' names; none: every layer that there is.
  std::vector<std::string> prefixes{};
};

struct ConvertedLayer {
  std::string prefix;             ///< of its arrays' names: "bn1."; empty
  std::vector<std::string> taken; ///< names of what it is made of
  std::vector<std::pair<std::string, HostArray>> made;
};

struct Converted {
  std::vector<ConvertedLayer> layers; ///< by prefix, ascending; one at least
  std::vector<std::string> left;      ///< what the other framework has none of, by name
  double epsilon = 0;                 ///< that the layers made must be given
  std::vector<std::string> notes;     ///< what differs beside y of inference
};

/// Why an array could not be read, by its name.
using Problems = std::map<std::string, std::string>;

/// Converts every layer among `arrays`, which have the names that the framework gives them, or
/// ours, behind prefixes that end in '.', '/', '_' or '-' and before a ":0"; arrays of no layer are
/// left out. A layer of mode 0 is where both of its moving statistics are; of other modes where
/// gamma or beta is. Values that need not change keep their bits, others are computed in f64 and
/// rounded once, which must leave the divisor as it is but for roundings. A layer with an array
/// that could not be read is an error. Errors: one sentence a line, all of them.
llvm::Expected<Converted> convert(const Conversion &conversion,
                                  const std::map<std::string, HostArray> &arrays,
                                  const Problems &problems = {});

/// A name from a file as text for people.
std::string shownName(const std::string &name);

/// The names that a framework gives the arrays of a layer: gamma, beta, and in mode 0 the moving
/// mean and the second moving vector.
std::vector<std::string> savedNames(Semantics semantics, Mode mode);

} // namespace normforge
