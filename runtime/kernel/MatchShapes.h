// The named sizes that arrays' shapes tell.
#pragma once

#include "runtime/Failure.h"
#include "runtime/artifact/Artifact.h"

#include <optional>
#include <span>
#include <vector>

namespace normforge {

/// The shape of an array as its kernel has it, "(N, 64, 56, 56)".
std::string shapeText(const Argument &argument, const std::vector<std::string> &sizeNames);

/// The sizes of a kernel whose arguments have these shapes, in its order; nothing where a shape is
/// not known. Empty with `failure` set where one is not its argument's, two tell a size otherwise,
/// or none tells it.
std::optional<std::vector<int64_t>>
matchShapes(const Artifact &artifact,
            std::span<const std::optional<std::span<const int64_t>>> shapes, Failure &failure);

} // namespace normforge
