// How many processors a process may use.
#pragma once

#include <string>

namespace normforge {

/// The least of the processors that this thread may run on (its affinity) and those that its
/// control group's quota of time is worth, rounded down (cpu.max of version 2, cpu.cfs_quota_us of
/// version 1, its own and those above it); at least 1. `root` is put before the paths of /proc and
/// /sys that tell the quota. What cannot be read limits nothing.
unsigned processorsToUse(const std::string &root = {});

} // namespace normforge
