// Defects that the emulated driver must find: each line changes a kernel's text as a wrong pass
// would, and the launch must fail, or give other bits.
#include "tests/device/Launch.h"
#include "tests/numerics/KernelCase.h"

#include <doctest/doctest.h>
#include <regex>

using namespace normforge;
using namespace normforge::test;

namespace {

/// A norm whose rows are summed by several subgroups.
constexpr const char *kRows = "mode: layer\naxis: c\ninput: {shape: [N, 2048], layout: nc, dtype: "
                              "f32}\nphases: [inference]\n";
/// Statistics of columns, of threads below each other, in partials and a merge.
constexpr const char *kColumns = "axis: c\ninput: {shape: [N, 12, 12, 16], layout: nhwc, dtype: "
                                 "f32}\nphases: [training]\n";
/// Rows of a part of a subgroup, several in each.
constexpr const char *kShortRows = "mode: rms\naxis: c\ninput: {shape: [N, 40], layout: nc, dtype: "
                                   "f32}\nphases: [inference]\n";

struct Mutation {
  const char *what;
  const char *spec;
  const char *pattern, *instead;
  int which = 0; ///< of the places where the pattern is
};
const Mutation kMutations[] = {
    {"the barrier between writing and reading sums", kRows, "\tbar.sync \t0;", ""},
    {"the barrier of the second sum", kRows, "\tbar.sync \t0;", "", 1},
    {"a barrier of columns", kColumns, "\tbar.sync \t0;", ""},
    {"a barrier that some threads pass", kRows, "\tbar.sync \t0;",
     "\tsetp.gt.u32 %pX, %tid.x, 31;\n\t@%pX bar.sync \t0;"},
    {"one slot for two sums", kRows, R"((st\.shared\.b32\s+\[%rd\d+)\+\d+\])", "$1]"},
    {"a slot beside its own", kRows, R"(st\.shared\.b32(\s+)\[(%rd\d+)\])",
     "st.shared.b32$1[$2+4]"},
    {"every thread writes a subgroup's slot", kRows,
     R"(@%p\d+ bra\s+\$L__BB\d+_\d+;((?:[^\n]*\n){1,3}\s+st\.shared))", "$1"},
    {"an exchange with the wrong thread", kRows, R"((shfl\.sync\.bfly\.b32[^;]*), 8, 31,)",
     "$1, 4, 31,"},
    {"an exchange that is left out", kRows,
     R"(shfl\.sync\.bfly\.b32(\s+)(%r\d+), (%r\d+), 2, 31, -1;)", "mov.b32$1$2, $3;"},
    {"members of other groups", kShortRows, R"((shfl\.sync\.bfly\.b32[^;]*, 1, 31,) %r\d+;)",
     "$1 -1;"},
    {"too few members", kShortRows, R"((shfl\.sync\.bfly\.b32[^;]*, 1, 31,) %r\d+;)", "$1 1;"},
    {"beyond an array", kColumns, R"((ld\.global\.v4\.b32\s+\{[^}]*\}, \[%rd\d+)\];)",
     "$1+1073741824];"},
    {"a row too far down", kColumns, R"((shr\.u64\s+%rd\d+, %rd1,) 2;)", "$1 1;"},
    {"an access that is not aligned", kRows, R"((ld\.global\.v4\.b32\s+\{[^}]*\}, \[%rd\d+)\])",
     "$1+4]"},
};

/// Replaces one place; false where there is none.
bool replace(std::string &text, const Mutation &mutation) {
  const std::regex pattern(mutation.pattern);
  auto match = std::sregex_iterator(text.begin(), text.end(), pattern);
  for (int i = 0; i < mutation.which && match != std::sregex_iterator(); ++i)
    ++match;
  if (match == std::sregex_iterator())
    return false;
  text = text.substr(0, static_cast<size_t>(match->position())) + match->format(mutation.instead) +
         text.substr(static_cast<size_t>(match->position() + match->length()));
  return true;
}

} // namespace

TEST_CASE("the emulated driver finds what is wrong with a kernel") {
  for (const Mutation &mutation : kMutations) {
    INFO(std::string(mutation.what));
    const Spec spec = specOf(mutation.spec);
    const Phase phase = spec.phases.front();
    const oracle::Sizes sizes{{"N", 3}};
    const oracle::Numbers numbers = oracle::usualNumbers(spec, phase);
    const oracle::Arrays inputs =
        oracle::drawInputs(spec, phase, sizes, 7, oracle::Data::Normal, numbers);
    const oracle::Arrays right = [&] {
      const CudaContext context;
      return launch(spec, phase, "sm_90", sizes, inputs, numbers);
    }();
    bool isChanged = false;
    auto change = [&](Artifact &artifact) {
      for (Variant &variant : artifact.variants) {
        std::string text(reinterpret_cast<const char *>(variant.image.bytes.data()));
        isChanged |= replace(text, mutation);
        const auto *bytes = reinterpret_cast<const std::byte *>(text.c_str());
        variant.image.bytes.assign(bytes, bytes + text.size() + 1);
      }
    };
    bool isFound = false;
    try {
      const CudaContext context;
      isFound =
          !sameBits(right, launch(spec, phase, "sm_90", sizes, inputs, numbers, 0, false, change));
    } catch (const std::runtime_error &error) {
      const std::string text = error.what();
      isFound = text.find("CUDA_ERROR_LAUNCH_FAILED") != std::string::npos;
      CHECK_MESSAGE(isFound, text);
    }
    CHECK(isChanged);
    CHECK(isFound);
  }
}
