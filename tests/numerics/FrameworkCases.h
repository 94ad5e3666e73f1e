// The results of Keras, PyTorch and tf.keras in tests/data/frameworks.
#pragma once

#include "tests/numerics/ConformanceCase.h"

namespace normforge::test {

/// `folder` is tests/data/frameworks. In the order of the names. A case of a
/// phase that is not built yet is skipped; whether its spec is built, parseSpec
/// says.
ConformanceCases readFrameworkCases(const std::string &folder);

} // namespace normforge::test
