// Deduces named sizes from the shapes of the arrays that a call is given.
//
// Enters: the shapes that a kernel's arguments have as expressions, and those that their arrays
// have. Leaves: the value of every named size, or an error that names the arrays at odds.
#pragma once

#include "compiler/cli/Command.h"

namespace normforge::cli {

/// An argument and the array given for it.
struct GivenShape {
  const Operand *argument;
  std::string path; ///< as errors show it
  std::vector<int64_t> shape;
};

/// `names` are the kernel's sizes, `given` values that --size has set. An array may differ from its
/// argument's shape by axes of size 1, wherever they are. Gives the sizes in the order of `names`.
llvm::Expected<std::vector<int64_t>> matchShapes(const std::vector<std::string> &names,
                                                 const NamedSizes &given,
                                                 const std::vector<GivenShape> &arrays);

} // namespace normforge::cli
