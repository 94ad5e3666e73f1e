// Layouts as text: nchw, nhwc, nChw16c, and MATLAB's labels: SSCB.
#pragma once

#include "compiler/spec/Document.h"
#include "compiler/spec/Spec.h"

#include <optional>

namespace normforge::spec {

/// The layout that `value` names, or an error that calls it `key`. `labels` is set where it is in
/// MATLAB's labels, which have the innermost axis first.
std::optional<Layout> readLayout(const Value &value, std::string_view key, Diagnostics &diagnostics,
                                 std::string &labels);
/// The layout of a shape without one: c for rank 1, nc for rank 2, none above.
std::optional<Layout> defaultLayout(int rank);

} // namespace normforge::spec
