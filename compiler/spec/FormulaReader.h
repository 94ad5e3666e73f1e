// Reads the scalar expressions of specs.
//
// Enters: a text. Leaves: a tree of calls whose types fit, or errors under a caret.
#pragma once

#include "compiler/spec/Formula.h"

#include <memory>
#include <span>
#include <string_view>

namespace normforge {

namespace spec {

class Diagnostics;

/// Reads `text`, whose first byte lies at `offset` of the file. null after an error. A comparison
/// is the first argument of `where`, and nothing else is.
std::shared_ptr<const Formula> readFormula(std::string_view text, size_t offset,
                                           std::span<const std::string> operands,
                                           std::span<const std::string> scalars,
                                           Diagnostics &diagnostics);

} // namespace spec

} // namespace normforge
