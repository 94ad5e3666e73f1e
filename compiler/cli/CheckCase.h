// One check: a phase of a spec at given sizes, compiled, run, compared and timed.
//
// Enters: the spec, sizes, a seed. Leaves: a CaseResult with everything that the report shows.
#pragma once

#include "compiler/cli/Command.h"
#include "compiler/oracle/Oracle.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace normforge::cli {

struct CheckCase {
  std::string path; ///< of the spec
  Spec spec;
  Phase phase = Phase::Inference;
  oracle::Sizes sizes;
  std::string schedule{}; ///< a forced one's text; empty: what is chosen
  /// Values for the run-time numbers that the phase takes.
  oracle::Numbers scalars{};
  /// Arrays instead of those that are drawn; or null.
  const oracle::Arrays *own = nullptr;
  /// Somebody's results, which are compared too: files by the names of outputs.
  std::map<std::string, std::string> results{};
};

struct CheckSettings {
  TargetOptions target{}; ///< as given
  int threads = 1;
  uint64_t seed = 0;
  oracle::Data data = oracle::Data::Normal;
  std::string own{};          ///< words of own data, in whose place none are drawn; or empty
  ScheduleOptions chosen{};   ///< where a case has no schedule of its own
  std::shared_ptr<Gpu> gpu{}; ///< that kernels are run on; null: this CPU, or its emulation

  ScheduleOptions schedules(const CheckCase &check) const {
    return check.schedule.empty() ? chosen : ScheduleOptions{.forced = check.schedule};
  }
};

/// An output against one authority.
struct Compared {
  oracle::Comparison comparison;
  oracle::Tolerance tolerance;
};

struct OutputResult {
  std::string name;
  Compared reference;
  std::optional<Compared> oneDnn;     ///< where oneDNN computes this output
  std::optional<Compared> transposed; ///< mode 1: as batch normalization of the transposed problem
  bool agrees() const;
};

struct CaseResult {
  std::string targetCpu; ///< LLVM's name
  std::string schedule;  ///< of the variant that the sizes chose
  double compileMilliseconds = 0;
  double timeMicroseconds = 0;
  std::optional<double> oneDnnMicroseconds;
  std::string oneDnnImplementation;
  /// Notes on the spec, the schedule's source and the data.
  std::vector<std::string> notes;
  /// The parts that oneDNN did not check, and why.
  std::vector<std::string> oneDnnNotes;
  std::vector<OutputResult> outputs;

  bool agrees() const;
  /// The output that is nearest to its tolerance, or furthest over it.
  const OutputResult &worstByReference() const;
  const OutputResult *worstByOneDnn() const;
};

/// Compiles, runs, compares, times. A kernel that this machine cannot run, and sizes that its
/// memory cannot hold, are errors of the input. StackError: the schedule that was asked for takes
/// more stack than a kernel may.
llvm::Expected<CaseResult> runCase(Session &session, const CheckCase &check,
                                   const CheckSettings &settings);

} // namespace normforge::cli
