// Makes the values that gamma, beta and the moving statistics begin with.
//
// Made on the host. Kernels of inference alone have within them what is written as a value.
#pragma once

#include "compiler/spec/Spec.h"

#include <array>
#include <map>

namespace normforge {

/// The phase that has no kernel, and is no Phase.
constexpr llvm::StringLiteral kInitialize = "initialize";

/// The arrays of `spec` that have an initial value, by their names: gamma, beta, moving_mean and
/// moving_variance or moving_stddev, what a renorm keeps beside those, and the ends of a range, as
/// far as the layer has them, in the order of kernels' arguments.
std::vector<std::string> initialNames(const Spec &spec);

/// Those of them that the kernel of a spec has within it, and not as arguments
/// (Spec::foldsValues).
std::vector<std::string> foldedNames(const Spec &spec);
/// The initial value that a spec has of an array; null where it has none of its own.
const Initial *initialOf(const Spec &spec, std::string_view name);

/// The initial value of one of them, of parameter_dtype and the shape of `axis`, whose named sizes
/// are in `sizes`. Numbers are drawn by Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011) whose key
/// is `seed` and whose counter is the element's number and the array's: the same on every machine,
/// for any size, whatever else is drawn. Normal ones are made of them by Wichura's inverse (1988,
/// AS 241), so that a truncated one draws no more numbers than another.
///
/// `readFile` reads the array that a path of the spec names, relative to the spec's folder. Errors,
/// its own beside a size that is missing and values that do not fit the shape, are one sentence.
llvm::Expected<HostArray> initialValue(const Spec &spec, std::string_view name,
                                       const std::map<std::string, int64_t> &sizes, uint64_t seed,
                                       ReadArray readFile);
/// The same of one of foldedNames, which draws nothing and reads nothing. `sizes` has those of
/// `axis`.
HostArray foldedValue(const Spec &spec, std::string_view name,
                      const std::map<std::string, int64_t> &sizes);

/// The four words of Philox4x32-10 for a counter and a key.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);
/// The number below which a share `p` of a standard normal distribution lies, 0 < p < 1.
double normalQuantile(double p);

} // namespace normforge
