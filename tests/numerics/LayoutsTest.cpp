// Every layout, mode, phase, dtype and CPU, with sizes around the widths of vectors.
#include "tests/numerics/KernelCase.h"
#include "tests/numerics/LayoutCases.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

const std::vector<const char *> kCpus = {"native", "haswell", "x86-64-v2", "skylake-avx512"},
                                kGpus = {"sm_90"};

void checkNamedSizes(const std::vector<const char *> &cpus, const std::string &repeat) {
  size_t turn = testSeed() % 105; // every combination of fusion, preset and parameters comes round
  int ran = 0;
  for (const char *cpu : cpus) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const Shape &shape : layoutShapes())
      for (const Kind &kind : kinds(cpus)) {
        ++turn;
        if (!exists(shape, kind) || std::string_view(kind.cpu) != cpu ||
            !isTaken(cpus.size() > 1 ? turn : turn * 31 / 7))
          continue;
        const std::string text = layoutYaml(shape, kind, shape.shape, turn);
        INFO(repeat, " cpu ", std::string(cpu), "\n", text);
        try {
          const Spec spec = specOf(text);
          const TestKernel kernel(spec, kind.phase, *session);
          for (int64_t size : oddSizes)
            for (int64_t small : {1, 5}) {
              oracle::Sizes sizes = {{"S", size * factorOf(shape, kind, 'S')}};
              if (std::string_view(shape.shape).find('M') != std::string_view::npos)
                sizes["M"] = small * factorOf(shape, kind, 'M');
              else if (small != 1)
                continue;
              INFO(describeSizes(sizes));
              const auto inputs = oracle::drawInputs(spec, kind.phase, sizes, testSeed() + turn);
              const std::string wrong = wrongResults(kernel, spec, kind.phase, sizes, inputs);
              CHECK_MESSAGE(wrong.empty(), wrong);
              ++ran;
            }
        } catch (const std::exception &error) {
          FAIL_CHECK(std::string(error.what()));
        }
      }
  }
  CHECK(ran > 0);
}

void checkStaticSizes(const std::vector<const char *> &cpus, const std::string &repeat) {
  constexpr size_t oneIn = 6; // of all sizes a kind: each kind meets other sizes at each shape
  size_t turn = testSeed() % 105;
  int ran = 0;
  for (const Shape &shape : layoutShapes())
    for (const Kind &kind : kinds(cpus)) {
      if (!exists(shape, kind))
        continue;
      std::string whyNot;
      Session *session = TestKernel::session(kind.cpu, whyNot);
      for (int64_t size : oddSizes) {
        if (++turn % oneIn != 0 || !session)
          continue;
        auto text = [&](char letter, int64_t of) {
          return std::to_string(of * factorOf(shape, kind, letter));
        };
        const std::string sizes =
            replaced(replaced(shape.shape, 'S', text('S', size)), 'M', text('M', turn % 4 ? 3 : 1));
        const std::string yaml = layoutYaml(shape, kind, sizes, turn / oneIn);
        INFO(repeat, " cpu ", std::string(kind.cpu), "\n", yaml);
        try {
          const Spec spec = specOf(yaml);
          const TestKernel kernel(spec, kind.phase, *session);
          const auto inputs = oracle::drawInputs(spec, kind.phase, {}, testSeed() + turn);
          RunOptions options;
          options.guard = turn % 4 < 2 ? GuardedBuffer::Guard::After : GuardedBuffer::Guard::Before;
          const std::string wrong = wrongResults(kernel, spec, kind.phase, {}, inputs, {}, options);
          CHECK_MESSAGE(wrong.empty(), wrong);
          ++ran;
        } catch (const std::exception &error) {
          FAIL_CHECK(std::string(error.what()));
        }
      }
    }
  CHECK(ran > 0);
}

} // namespace

TEST_CASE("layouts: named sizes") { checkNamedSizes(kCpus, repeatCommand("layouts: named sizes")); }
TEST_CASE("layouts: static sizes") {
  checkStaticSizes(kCpus, repeatCommand("layouts: static sizes"));
}
TEST_CASE("layouts: named sizes on a GPU") {
  checkNamedSizes(kGpus, repeatCommand("layouts: named sizes on a GPU"));
}
TEST_CASE("layouts: static sizes on a GPU") {
  checkStaticSizes(kGpus, repeatCommand("layouts: static sizes on a GPU"));
}
