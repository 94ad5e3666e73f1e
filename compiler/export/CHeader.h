// C headers for kernels that were compiled ahead of time.
//
// Enters: the manifests of kernels, one for each CPU that they were compiled for. Leaves: the text
// of a header for C99 and C++ that needs nothing but <stdint.h>.
#pragma once

#include "runtime/artifact/Artifact.h"

#include <string>
#include <vector>

namespace normforge {

/// One kernel of a header: the same phase of the same spec, for one or several CPUs.
struct ExportedKernel {
  std::string symbol;             ///< "NAME_PHASE": what its C names begin with
  std::string summary;            ///< in words: "inference, nchw f32, ..."
  std::vector<Artifact> variants; ///< by CPU
};

struct ExportedHeader {
  std::string name;        ///< the header's file without its ending
  std::string cpuFunction; ///< what tells which CPU was chosen; empty for one CPU, unasked
  std::vector<ExportedKernel> kernels;
};

/// "NAME_PHASE".
std::string exportedSymbol(const std::string &name, std::string_view phase);

/// `text` as a C identifier: other characters become '_'.
std::string identifierOf(std::string_view text);

std::string cHeader(const ExportedHeader &header);

} // namespace normforge
