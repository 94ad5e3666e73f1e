// Describes a file of kernels, for other programs.
#pragma once

#include "compiler/export/CHeader.h"

#include <string>

namespace normforge {

/// JSON: for each kernel its arguments, sizes and numbers in the order of a call, and for each CPU
/// its features and variants: schedule, guard, workspace, stages with symbol, tasks and bytes.
/// Sizes are expressions of the named sizes such as "N * 3136" and "ceil(N / 4)".
std::string jsonManifest(const ExportedHeader &header);

} // namespace normforge
