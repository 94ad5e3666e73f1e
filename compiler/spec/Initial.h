// The start of a parameter or a moving statistic, as a spec says it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace normforge {

struct Initial {
  enum class Kind : uint8_t {
    Constant,        ///< `first`
    Uniform,         ///< from `first` to `second`
    Normal,          ///< of mean `first` and deviation `second`
    TruncatedNormal, ///< the same, what is more than two deviations away drawn anew
    Values,          ///< `values`, in memory order
    File,            ///< those of `path`, an .npy
  } kind = Kind::Constant;
  double first = 0, second = 0;
  std::vector<double> values{};
  std::string path{};   ///< as written: relative to the spec's folder, or absolute
  std::string key{};    ///< that says so, such as "parameters.gamma.value"; empty: the default
  bool isValue = false; ///< written as a value, and not as a way to draw some
};

} // namespace normforge
