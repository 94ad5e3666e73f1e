// The progress that a sweep shows while it runs.
#pragma once

#include "compiler/cli/TuneOptions.h"
#include "compiler/tune/Sweep.h"

#include <memory>

namespace normforge::cli {

class TuneProgress {
public:
  virtual ~TuneProgress() = default;
  /// `all`: cases of all shards.
  virtual void begin(const std::string &machine, size_t all, const Shard &shard,
                     const std::string &path) = 0;
  virtual void show(const tune::Event &event) = 0;
  virtual void clear() {} ///< before an error is printed
  virtual void end(const tune::SweepOutcome &outcome, const std::string &path, bool wasStopped) = 0;
};

/// A line a case; on a terminal one more that changes, with the time left. `cases` outlive it.
std::unique_ptr<TuneProgress> makeTextProgress(std::span<const tune::Case> cases);
/// A JSON object a line on standard output for every event.
std::unique_ptr<TuneProgress> makeJsonProgress(std::span<const tune::Case> cases);

// Subcommands of `tune`.
void declareTuneImport(CLI::App &tune, int &status);
void declareTuneMerge(CLI::App &tune, int &status);
void declareTuneReport(CLI::App &tune, int &status);
void declareTuneShow(CLI::App &tune, int &status);

/// "1.23 (1.20-1.26)".
std::string ratioText(const Ratio &ratio);
/// How far two copies of one kernel were apart: "+-1.2 %".
std::string noiseText(const Ratio &noise);

} // namespace normforge::cli
