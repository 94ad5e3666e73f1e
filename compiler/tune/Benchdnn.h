// Shapes in the notation of benchdnn, oneDNN's own benchmark: its drivers bnorm, lnorm and gnorm.
//
//   --dir=FWD_I --flags=GCH --tag=nhwc --mb=1
//   ic64_ih112iw112_n"resnet_50:bn_conv1"
//
// becomes a spec for each problem and each combination of the values that knobs list. Directions
// FWD_D and FWD_I with given statistics (flag G) are our inference; without, FWD_D is training and
// FWD_I inference with the batch's own statistics. BWD_D and BWD_DW are backward. Flag S is scale
// and shift, R a relu, A an addition and a relu. Knobs of how benchdnn runs (--inplace,
// --skip-impl,
// --mode, ...) say nothing of what is computed and are passed over; others that are not known are
// errors.
#pragma once

#include "compiler/spec/Spec.h"

namespace normforge::tune {

struct ListedProblem {
  std::string place; ///< "list.txt:3"
  Spec spec;
  Phase phase = Phase::Inference;
};

/// The problems of a file, in its order. Errors are `path:line:column: error: ...`.
llvm::Expected<std::vector<ListedProblem>> readBenchdnnList(const std::string &path);
/// The same of a text; files that it names with --batch lie in the folder of `path`.
llvm::Expected<std::vector<ListedProblem>> parseBenchdnnList(llvm::StringRef text,
                                                             const std::string &path);

} // namespace normforge::tune
