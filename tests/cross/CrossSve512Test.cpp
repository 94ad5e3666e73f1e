// Schedules made for 512 bits, at other lengths.
#include "tests/cross/CrossSuite.h"

#include <doctest/doctest.h>

TEST_CASE("aarch64: schedules for 512 bits, on other lengths") {
  normforge::test::checkOnEmulator("a64fx", {"max,sve128=on,sve256=off", "max,sve512=on"});
}
