// Which phases of which specs a command runs, and with which sizes.
#pragma once

#include "compiler/cli/CheckCase.h"

namespace normforge::cli {

/// "N=8 epsilon=0.001", "-" of none.
std::string sizesText(const CheckCase &check);

/// Collects cases, spec by spec; sizes that nobody gave have their defaults.
class CasePlanner {
public:
  /// Both outlive this. `phase`: "" is all of each spec's.
  CasePlanner(const NamedSizes &given, const std::string &phase) : given_(given), phase_(phase) {}

  /// The phases of a spec that was read from `path`; none where it has not the phase asked for. An
  /// error where a size has no value.
  llvm::Error add(const std::string &path, const Spec &spec);
  /// An error where something that was asked for concerns nothing.
  llvm::Error finish() const;

  std::vector<CheckCase> cases;
  std::vector<std::string> defaults; ///< "N=8"

private:
  const NamedSizes &given_;
  const std::string &phase_;
  std::vector<std::string> used_;
};

} // namespace normforge::cli
