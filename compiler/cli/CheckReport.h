// The report of `check`: a table for people, or one JSON object a line.
#pragma once

#include "compiler/cli/CheckCase.h"

#include <cstdio>

namespace normforge::cli {

class CheckReport {
public:
  virtual ~CheckReport() = default;
  virtual void begin() = 0;
  /// Before a case is run: progress, where somebody watches.
  virtual void starting(size_t index) = 0;
  virtual void finished(size_t index, const CaseResult &result) = 0;
  /// After the last case, or before an error is printed.
  virtual void end(bool complete) = 0;
};

/// `cases` must outlive the report. `defaults` are the sizes that nobody gave: "N=8".
std::unique_ptr<CheckReport> makeTable(const std::vector<CheckCase> &cases,
                                       const CheckSettings &settings, const std::string &targetCpu,
                                       const std::vector<std::string> &defaults, bool verbose);
std::unique_ptr<CheckReport> makeJson(const std::vector<CheckCase> &cases,
                                      const CheckSettings &settings);

/// The command line that repeats one case.
std::string repeatCommand(const CheckCase &check, const CheckSettings &settings);

} // namespace normforge::cli
