// The end of a search: its best few beside the default, measured afresh in several places.
//
// Where code and data lie decides which of them share sets of a cache, and moves a ratio by some
// percent for as long as they lie there. So a place is new code and new buffers, apart from those
// of the places before it as long as these are small, and an interval is over places: another
// process, which lies elsewhere, finds what is in it.
#pragma once

#include "runtime/measure/Race.h"

#include <optional>
#include <string>
#include <utility>

namespace normforge {

/// The schedules to measure once more, best first: a few, of those with a gain at all.
std::vector<std::string> finalistsOf(std::vector<std::pair<double, std::string>> gains);

struct Finals {
  struct Limits {
    double seconds = 0.25; ///< of each of the two measurements, all places together
    int fewPlaces = 3;     ///< of all finalists, which says who is best
    int places = 7;        ///< of the best, which says by how much
  };
  std::optional<size_t> best;                  ///< of the finalists; none: the default stays
  Race::Result result{{1, 1, 1}, 0, 0, false}; ///< the best one's, or the default's
  Ratio noise{1, 1, 1};                        ///< of two copies of the default
  double standardSeconds = 0, copySeconds = 0;
};

/// `kernels`: the default, then the finalists, all of one operator. Their sizes, inputs and
/// scalars are those of `data`; `read` and `written` as of Race::finish. The default stays unless
/// the gain is sure (Race::isSure). Empty with `failure` set where a kernel cannot be loaded.
std::optional<Finals> decide(Race &race, const KernelCall &data, std::span<const Artifact> kernels,
                             uint64_t read, uint64_t written, const Finals::Limits &limits,
                             Failure &failure);

} // namespace normforge
