#include "tests/numerics/PropertyCase.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <limits>

namespace normforge::test {

double digits(const Spec &spec) {
  return spec.dtype == DType::F32 ? std::numeric_limits<float>::epsilon()
                                  : std::numeric_limits<double>::epsilon();
}

void forEachKernel(const std::string &repeat, std::span<const Problem> problems, Phase phase,
                   const std::string &more, const PropertyCheck &check) {
  int ran = 0;
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const Problem &problem : problems)
      for (const char *dtype : {"f32", "f64"}) {
        const std::string text = fmt::format(
            "name: properties\nsemantics: pytorch\ninput: {{shape: [{}], layout: {}, dtype: {}}}\n"
            "axis: {}\nmode: {}\nphases: [{}]\n{}",
            problem.shape, problem.layout, dtype, problem.axis, problem.mode, toString(phase),
            more);
        INFO(repeat, " cpu ", std::string(cpu), " ", describeSizes(problem.sizes), "\n", text);
        try {
          const Spec spec = specOf(text);
          const Operator op = makeOperator(spec, phase);
          for (const ScheduleVariant &variant : selectSchedules(op, session->target())) {
            INFO(variant.schedule.text(op));
            check(TestKernel(op, always(variant.schedule), *session), spec, problem, variant);
            ++ran;
          }
        } catch (const std::exception &error) {
          FAIL_CHECK(std::string(error.what()));
        }
      }
  }
  CHECK(ran > 0);
}

} // namespace normforge::test
