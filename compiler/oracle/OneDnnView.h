// How a spec's array is seen as one of oneDNN's problems.
//
// Enters: a spec and its coordinates. Leaves: oneDNN's dims and strides over
// the same memory, or the reason why there are none. Nothing is ever copied or
// permuted to fit.
#pragma once

#include "compiler/oracle/Coordinates.h"

#include <optional>
#include <string>
#include <vector>

namespace normforge::oracle {

/// Batch normalization keeps dim 1 and reduces all others; layer normalization
/// reduces the last dim alone.
struct OneDnnView {
  std::vector<int64_t> dims;
  std::vector<int64_t> strides; ///< in elements; unused where blocked
  int64_t block = 0;            ///< dim 1 is stored in blocks of so many; 0: plain
};

/// x with the statistics groups as channels.
std::optional<OneDnnView> viewAsBatchNorm(const Spec &spec, const Coordinates &at,
                                          std::string &whyNot);
/// x with the axes of mode 1 as the last dim.
std::optional<OneDnnView> viewAsLayerNorm(const Spec &spec, const Coordinates &at,
                                          std::string &whyNot);

} // namespace normforge::oracle
