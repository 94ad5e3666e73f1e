// One kernel of a table of data: its spec, phase and CPU, and the values it is run on.
#pragma once

#include "tests/numerics/KernelHarness.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace normforge::test {

/// The spec of a YAML text; a text that is no spec throws std::runtime_error.
Spec specOf(const std::string &yaml);

/// The session for a CPU or GPU, or null after a message that begins with SKIP.
Session *sessionOrSkip(const std::string &cpu);

/// The command that runs a test case again with the same draws.
std::string repeatCommand(std::string_view testCase);

/// A schedule taken whatever the sizes.
ScheduleVariant always(const Schedule &schedule);

/// Both forms of a kernel that takes statistics: what the heuristic chooses for a named batch, each
/// as the only variant. One entry where it has a single form.
std::vector<ScheduleVariant> forms(const Operator &op, const TargetDescription &target);

/// Runs a kernel and compares it with the reference; says what is wrong, empty where nothing is.
/// Padding of a blocked layout has to be +0 exactly.
std::string wrongResults(const TestKernel &kernel, const Spec &spec, Phase phase,
                         const oracle::Sizes &sizes, const oracle::Arrays &inputs,
                         const oracle::Numbers &scalars = {}, const RunOptions &options = {});

/// The same as wrongResults of outputs that are there.
std::string wrongOutputs(const Spec &spec, Phase phase, const oracle::Sizes &sizes,
                         const oracle::Arrays &inputs, const oracle::Arrays &outputs,
                         const oracle::Numbers &scalars = {});

/// For each element in memory of x, the index of its statistics group; -1 for padding.
std::vector<int64_t> groupsOf(const Spec &spec, const oracle::Sizes &sizes);

/// The first element of padding in arrays of x's shape that is not +0; empty where there is none.
/// `groups` are groupsOf's.
std::string wrongPadding(const std::vector<int64_t> &groups, const oracle::Arrays &outputs);

/// Samples `first` to `last` of an array whose outermost axis has them.
HostArray samplesOf(const HostArray &array, int64_t first, int64_t last);

std::string describeSizes(const oracle::Sizes &sizes);

} // namespace normforge::test
