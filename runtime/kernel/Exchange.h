// The partials of a shared batch that the ranks of a job exchange, and their merge.
//
// Enters: a plan of a kernel with arguments of Role::PartialMoments or Role::PartialSum. Leaves:
// which they are, and the whole batch's of those of all ranks, merged in the order of the ranks.
#pragma once

#include "runtime/kernel/Plan.h"

namespace normforge {

struct Exchange {
  size_t argument = 0; ///< the first of `arrays` neighbors among the kernel's arguments
  size_t arrays = 0;   ///< of one dtype and shape; 0: the kernel exchanges nothing
  Role role = Role::PartialSum;
  DType dtype = DType::F32;
  uint64_t elements = 0; ///< of each
  uint64_t bytes() const { return elements * byteSize(dtype); }
};

Exchange exchangeOf(const Plan &plan);

/// Whether `merged`, as long as one rank's arrays, overlaps the ranks' and is not exactly one's.
bool overlapsInPart(const Exchange &exchange, const void *partials, size_t ranks,
                    const void *merged);

/// `partials` are each rank's arrays one after the other, rank by rank; `merged` is as long as one
/// rank's, and may be one of them. Computed in f64, rounded at the end, in a fixed order.
void mergePartials(const Exchange &exchange, const void *partials, size_t ranks, void *merged);

} // namespace normforge
