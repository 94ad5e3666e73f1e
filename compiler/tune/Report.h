// Writes what a sweep has found as one HTML page: no scripts, nothing from elsewhere.
#pragma once

#include "compiler/tune/RecordFile.h"

#include <functional>

namespace normforge::tune {

/// The results that count: of each case the one that isBetterSource puts first, by name, phase and
/// sizes.
std::vector<ResultRecord> latestResults(std::span<const Records> files);

/// The knobs in which two schedules' texts differ, by name ("vector", "take"), each once; "stages"
/// where they have others.
std::vector<std::string> differingKnobs(llvm::StringRef a, llvm::StringRef b);

/// The page. `stale` says of a result why it is not used on this machine; empty: it is.
std::string reportPage(std::span<const Records> files,
                       const std::function<std::string(const ResultRecord &)> &stale);

} // namespace normforge::tune
