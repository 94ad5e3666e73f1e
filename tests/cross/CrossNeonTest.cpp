// NEON on a CPU without SVE and bf16, which dies of their instructions.
#include "tests/cross/CrossSuite.h"

#include <doctest/doctest.h>

TEST_CASE("aarch64: NEON kernels on a CPU that has nothing more") {
  normforge::test::checkOnEmulator("neoverse-n1", {"neoverse-n1"});
}
