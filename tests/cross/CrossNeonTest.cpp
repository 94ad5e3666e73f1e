// NEON on a CPU without SVE and bf16, which dies of their instructions.
#include "tests/cross/CrossSuite.h"

#include <doctest/doctest.h>

TEST_CASE("aarch64: NEON kernels on a CPU that has nothing more") {
  normforge::test::checkOnEmulator("neoverse-n1", {"neoverse-n1"});
}

TEST_CASE("aarch64: NEON with instructions for bf16") {
  normforge::test::checkOnEmulator("apple-m2", {"max,sve=off"});
}
