// Specs drawn at random: any rank, layout, mode, phase and fusion, odd sizes, static and named.
#include "tests/numerics/KernelCase.h"
#include "tests/numerics/SpecDraw.h"

#include <doctest/doctest.h>

#include <functional>

using namespace normforge;
using namespace normforge::test;

/// `cpuOf` a spec's number.
static void checkRandom(const char *test, int count,
                        const std::function<const char *(int)> &cpuOf) {
  // A spec depends on the seed and its number alone: more of them, or one again.
  const char *given = std::getenv("NORMFORGE_TEST_COUNT"),
             *one = std::getenv("NORMFORGE_TEST_ONLY");
  const int first = one ? std::atoi(one) : 0;
  const int last = one ? first + 1 : given ? std::atoi(given) : count;
  const std::string repeat = repeatCommand(test);
  int ran = 0;
  for (int i = first; i < last; ++i) {
    SpecDraw draw(testSeed() * 1000003 + static_cast<uint64_t>(i));
    const DrawnSpec drawn = draw.draw();
    const std::string yaml = drawn.yaml();
    const oracle::Sizes sizes = drawn.sizes();
    const oracle::Numbers &scalars = drawnScalars();
    const char *cpu = cpuOf(i);
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    auto spec = parseSpec(yaml, "drawn.yaml");
    INFO("NORMFORGE_TEST_ONLY=", i, " ", repeat, " cpu ", std::string(cpu), "\n", yaml);
    if (!spec)
      FAIL(llvm::toString(spec.takeError()));
    for (Phase phase : spec->phases) {
      const oracle::Arrays inputs =
          oracle::drawInputs(*spec, phase, sizes, testSeed() + static_cast<uint64_t>(i),
                             oracle::Data::Normal, scalars);
      INFO("phase " << std::string(toString(phase)) << " " << describeSizes(sizes));
      try {
        const Operator op = makeOperator(*spec, phase);
        for (const ScheduleVariant &variant : selectSchedules(op, session->target()))
          CHECK(llvm::toString(checkSchedule(variant.schedule, op, session->target())) == "");
        const TestKernel kernel(*spec, phase, *session);
        INFO(kernel.artifact().variants[kernel.variantFor(sizes)].schedule);
        const oracle::Arrays inline1 = kernel.run(sizes, inputs, scalars);
        const std::string wrong = disagreement(*spec, phase, sizes, inputs, inline1, scalars);
        CHECK_MESSAGE(wrong.empty(), wrong);
        RunOptions options;
        options.split = &draw.engine();
        options.guard = GuardedBuffer::Guard::Before;
        CHECK(sameBits(inline1, kernel.run(sizes, inputs, scalars, options)));
        options.threads = 3;
        options.inPlace = draw.chance(2);
        CHECK(sameBits(inline1, kernel.run(sizes, inputs, scalars, options)));
        ++ran;
      } catch (const std::exception &error) {
        FAIL_CHECK(std::string(error.what()));
      }
    }
  }
  CHECK(ran > 0);
}

TEST_CASE("random specs agree with the reference") {
  checkRandom("random specs agree with the reference", 150, [](int i) {
    return i % 3 == 2 ? "haswell" : i % 6 == 4 ? "x86-64-v2" : "native";
  });
}
TEST_CASE("random specs on a GPU agree with the reference") {
  checkRandom("random specs on a GPU agree with the reference", 30,
              [](int i) { return i % 2 ? "sm_90" : "sm_80"; });
}
