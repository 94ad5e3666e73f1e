// Makes a spec that fails smaller.
//
//   before: semantics: pytorch, shape [N, 33, 7, 128], layout ncHw8h, f64, fuse: [add], 4 CPUs
//   after:  shape [1, 1], layout Nc2n, f64, 1 CPU
//
// Each step of a list proposes simpler specs, the boldest first; the first that is valid and still
// fails in the same way is taken. Rounds over the list end when a whole round takes none: what
// one step has taken away may let another go further. Every proposal is simpler than what it comes
// from, so that rounds end.
#pragma once

#include "tests/fuzz/Trial.h"
#include "tests/numerics/SpecDraw.h"

#include <functional>

namespace normforge::test {

struct Candidate {
  DrawnSpec spec;
  std::vector<std::string> cpus;
};

struct Reduction {
  Candidate smallest;
  Outcome outcome; ///< of the smallest
  int tried = 0;
  bool outOfTime = false; ///< a smaller one may exist
};

/// `run` tries a candidate; `outcome` is what it said of `failing`.
Reduction reduce(const Candidate &failing, const Outcome &outcome,
                 const std::function<Outcome(const Candidate &)> &run, double seconds);

} // namespace normforge::test
