// Frameworks' words for a kernel's arguments.
#pragma once

#include <string_view>

namespace normforge {

struct ForeignName {
  std::string_view theirs, ours;
};

/// The words of PyTorch, ONNX, MATLAB, TensorFlow and Keras. A word may stand for several of ours,
/// of which a kernel has one.
inline constexpr ForeignName kForeignNames[] = {{"weight", "gamma"},
                                                {"scale", "gamma"},
                                                {"Scale", "gamma"},
                                                {"bias", "beta"},
                                                {"B", "beta"},
                                                {"Offset", "beta"},
                                                {"offset", "beta"},
                                                {"input", "x"},
                                                {"X", "x"},
                                                {"running_mean", "moving_mean"},
                                                {"input_mean", "moving_mean"},
                                                {"mean", "moving_mean"},
                                                {"running_var", "moving_variance"},
                                                {"running_std", "moving_stddev"},
                                                {"running_std", "moving_variance"},
                                                {"input_var", "moving_variance"},
                                                {"var", "moving_variance"},
                                                {"variance", "moving_variance"},
                                                {"grad_output", "dy"},
                                                {"grad", "dy"},
                                                {"residual", "addend"},
                                                {"eps", "epsilon"}};

/// Our word for `theirs` that a kernel takes, by `takes(word)`; empty where there is none.
template <typename Takes> std::string_view ownName(std::string_view theirs, Takes takes) {
  for (const ForeignName &name : kForeignNames)
    if (name.theirs == theirs && takes(name.ours))
      return name.ours;
  return {};
}

} // namespace normforge
