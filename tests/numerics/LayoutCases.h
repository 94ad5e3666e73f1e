// Every layout, mode, phase and dtype, as specs.
#pragma once

#include "compiler/spec/Spec.h"

#include <span>
#include <string>
#include <vector>

namespace normforge::test {

/// `shape` has S for the size that varies; M is a small size that is named in dynamic specs.
struct Shape {
  const char *layout, *shape, *axis;
};
std::span<const Shape> layoutShapes();

/// Sizes around the widths of vectors.
inline constexpr int64_t oddSizes[] = {1,  2,  3,  7,  8,  9,  15, 16, 17,
                                       31, 32, 33, 49, 63, 64, 65, 67};

/// One of mode x phase x dtype x CPU.
struct Kind {
  Mode mode;
  Phase phase;
  const char *dtype, *cpu;
};
std::vector<Kind> kinds(const std::vector<const char *> &cpus);

/// Modes 0 and 2 of rank 1 have nothing to reduce over, nor has instance where all axes are listed
/// or count samples.
bool exists(const Shape &shape, const Kind &kind);

/// Groups that divide the axis of a shape in mode Group, and how often size `letter`, S or M, is
/// taken for them to divide it: 1 where it is another axis'.
int64_t groupsOf(const Shape &shape);
int64_t factorOf(const Shape &shape, const Kind &kind, char letter);

/// `text` with every `letter` replaced.
std::string replaced(std::string text, char letter, const std::string &by);

/// `turn` chooses what is not worth a product of its own: fusion, preset, parameters.
std::string layoutYaml(const Shape &shape, const Kind &kind, const std::string &sizes, size_t turn);

} // namespace normforge::test
