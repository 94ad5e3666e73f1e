// Scalable vectors of 128 to 2048 bits, from one program.
#include "tests/cross/CrossSuite.h"

#include <doctest/doctest.h>

TEST_CASE("aarch64: scalable vectors of 128 to 2048 bits") {
  normforge::test::checkOnEmulator("neoverse-v1",
                                   {"max,sve128=on,sve256=off", "max,sve256=on,sve512=off",
                                    "max,sve512=on", "max,sve-default-vector-length=256"});
}
