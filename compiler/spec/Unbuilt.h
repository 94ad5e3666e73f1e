// Keys of the language that are not built yet: their values are checked, then they are refused.
#pragma once

#include "compiler/spec/Document.h"
#include "compiler/spec/Spec.h"

namespace normforge::spec {

/// Checks a list of `strides` for a shape of `rank` (0 when unknown), then refuses it.
void refuseStrides(const Entry &entry, std::string_view path, int rank, Diagnostics &diagnostics);
/// `key` of the language is not built yet.
void refuse(const Entry &entry, std::string_view path, Diagnostics &diagnostics);

} // namespace normforge::spec
