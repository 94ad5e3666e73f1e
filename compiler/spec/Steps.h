// The steps of `fuse` and `prologue`: add, relu, {leaky_relu: 0.1} ...
#pragma once

#include "compiler/spec/Document.h"
#include "compiler/spec/Spec.h"

#include <vector>

namespace normforge::spec {

/// The list under `fuse`, or what is right of it.
std::vector<FuseStep> readFuse(const Value &value, Diagnostics &diagnostics);
/// Checks the list under `prologue`, of which nothing is built yet. False if it is wrong.
bool checkPrologue(const Value &value, Diagnostics &diagnostics);

} // namespace normforge::spec
