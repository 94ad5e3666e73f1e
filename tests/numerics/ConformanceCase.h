// Results that others computed: one operator called once, with what must come
// out.
#pragma once

#include "compiler/oracle/Oracle.h"

#include <string>
#include <vector>

namespace normforge::test {

struct ConformanceCase {
  std::string name;
  std::string spec;       ///< YAML text
  std::string sourceName; ///< what parseSpec is given as the file's name
  /// Run one after the other: what one writes the next reads where no input says otherwise.
  std::vector<Phase> phases{Phase::Inference};
  oracle::Sizes sizes; ///< empty: these specs are static
  oracle::Arrays inputs, expected;
  /// Largest difference to `expected`, as a part of the array's largest
  /// magnitude.
  double tolerance = 0;
};

struct SkippedCase {
  std::string name, reason;
};

struct ConformanceCases {
  std::vector<ConformanceCase> cases;
  std::vector<SkippedCase> skipped;
  /// Files that should have been readable and were not; a test fails on any.
  std::vector<std::string> errors;
};

} // namespace normforge::test
