// `normforge check --adversarial`: how far results are off where arithmetic is hard.
#pragma once

#include "compiler/cli/CheckCase.h"

namespace normforge::cli {

/// Prints, for data that sums in f32 do not survive unharmed, the errors of our outputs and of
/// oneDNN's against the f64 reference: the largest difference over the largest expected magnitude.
/// `check` gives the spec, its phase and its sizes. False where ours is off by more than is
/// allowed.
llvm::Expected<bool> printAdversarial(Session &session, const CheckCase &check,
                                      const CheckSettings &settings);

} // namespace normforge::cli
