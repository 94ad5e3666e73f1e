// Every layout, mode, phase, dtype and CPU, with sizes around the widths of vectors.
#include "tests/numerics/KernelCase.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

/// `shape` has S for the size that varies; M is a small size that is named in dynamic specs.
struct Shape {
  const char *layout, *shape, *axis;
};

const Shape shapes[] = {
    {"c", "S", "c"},
    {"nc", "M, S", "c"},
    {"nc", "S, M", "c"},
    {"nc", "S, M", "n"},
    {"ncw", "M, 3, S", "c"},
    {"ncw", "M, S, 3", "c"},
    {"nwc", "M, 3, S", "c"},
    {"nwc", "M, S, 3", "c"},
    {"tnc", "M, 2, S", "c"},
    {"tnc", "M, S, 5", "[t, c]"},
    {"tnc", "S, M, 5", "n"},
    {"nchw", "M, 3, 1, S", "c"},
    {"nchw", "M, S, 3, 2", "c"},
    {"nchw", "M, 3, 2, S", "[c, h, w]"},
    {"nchw", "M, 3, S, 2", "[n, c]"},
    {"nhwc", "M, 2, 3, S", "c"},
    {"nhwc", "M, S, 3, 5", "c"},
    {"nhwc", "M, 3, 2, S", "[h, c]"},
    {"ncdhw", "M, 3, 2, 2, S", "c"},
    {"ndhwc", "M, 2, 2, 3, S", "c"},
    {"ndhwc", "M, 2, S, 2, 3", "[d, c]"},
    {"ntcdhw", "M, 2, 3, 2, 1, S", "c"},
    {"ntdhwc", "M, 2, 1, 2, 2, S", "[t, c]"},
    {"nChw8c", "M, S, 3, 2", "c"},
    {"nChw8c", "M, 11, 1, S", "c"},
    {"nChw16c", "M, S, 2, 3", "c"},
    {"nChw16c", "M, 19, 1, S", "[c, w]"},
};

const int64_t oddSizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49, 63, 64, 65, 67};

const char *const fusions[] = {"[]", "[add]", "[relu]", "[add, relu]", "[relu, add]"};

/// One of mode x phase x dtype x CPU.
struct Kind {
  int mode;
  Phase phase;
  const char *dtype, *cpu;
};

std::vector<Kind> kinds() {
  std::vector<Kind> all;
  for (int mode : {0, 1, 2})
    for (Phase phase : {Phase::Inference, Phase::Training})
      for (const char *dtype : {"f32", "f64", "bf16", "f16"})
        for (const char *cpu : {"native", "haswell", "x86-64-v2"})
          // What half precision changes does not depend on the mode.
          if (std::string_view(dtype).find("16") == std::string_view::npos ||
              mode == (phase == Phase::Training ? 0 : 1))
            all.push_back({mode, phase, dtype, cpu});
  return all;
}

/// Modes 0 and 2 of rank 1 have nothing to reduce over.
bool exists(const Shape &shape, const Kind &kind) {
  return kind.mode == 1 || std::string_view(shape.layout) != "c";
}

std::string replaced(std::string text, char letter, const std::string &by) {
  for (size_t at; (at = text.find(letter)) != std::string::npos;)
    text.replace(at, 1, by);
  return text;
}

/// `turn` chooses what is not worth a product of its own: fusion, preset, parameters.
std::string yaml(const Shape &shape, const Kind &kind, const std::string &sizes, size_t turn) {
  const char *const presets[] = {"pytorch", "onnx-15", "keras-1.2"};
  // Keras' mode 1 takes the last axis alone.
  const char *preset = presets[turn % (kind.mode == 1 ? 2 : 3)];
  std::string text = fmt::format(
      "name: layouts\nsemantics: {}\ninput: {{shape: [{}], layout: {}, dtype: {}}}\naxis: {}\n"
      "mode: {}\nphases: [{}]\nfuse: {}\n",
      preset, sizes, shape.layout, kind.dtype, shape.axis, kind.mode, toString(kind.phase),
      fusions[turn % std::size(fusions)]);
  if (turn % 7 == 3)
    text += "center: false\n";
  if (turn % 7 == 5)
    text += "scale: false\n";
  return text;
}

} // namespace

TEST_CASE("layouts: named sizes") {
  const std::string repeat = repeatCommand("layouts: named sizes");
  size_t turn = testSeed() % 105; // every combination of fusion, preset and parameters comes round
  int ran = 0;
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const Shape &shape : shapes)
      for (const Kind &kind : kinds()) {
        ++turn;
        if (!exists(shape, kind) || std::string_view(kind.cpu) != cpu)
          continue;
        const std::string text = yaml(shape, kind, shape.shape, turn);
        INFO(repeat, " cpu ", std::string(cpu), "\n", text);
        try {
          const Spec spec = specOf(text);
          const TestKernel kernel(spec, kind.phase, *session);
          for (int64_t size : oddSizes)
            for (int64_t small : {1, 5}) {
              oracle::Sizes sizes = {{"S", size}};
              if (std::string_view(shape.shape).find('M') != std::string_view::npos)
                sizes["M"] = small;
              else if (small != 1)
                continue;
              INFO(describeSizes(sizes));
              const auto inputs = oracle::drawInputs(spec, kind.phase, sizes, testSeed() + turn);
              const std::string wrong = wrongResults(kernel, spec, kind.phase, sizes, inputs);
              CHECK_MESSAGE(wrong.empty(), wrong);
              ++ran;
            }
        } catch (const std::exception &error) {
          FAIL_CHECK(error.what());
        }
      }
  }
  CHECK(ran > 0);
}

TEST_CASE("layouts: static sizes") {
  const std::string repeat = repeatCommand("layouts: static sizes");
  constexpr size_t oneIn = 6; // of all sizes a kind: each kind meets other sizes at each shape
  size_t turn = testSeed() % 105;
  int ran = 0;
  for (const Shape &shape : shapes)
    for (const Kind &kind : kinds()) {
      if (!exists(shape, kind))
        continue;
      std::string whyNot;
      Session *session = TestKernel::session(kind.cpu, whyNot);
      for (int64_t size : oddSizes) {
        if (++turn % oneIn != 0 || !session)
          continue;
        const std::string sizes =
            replaced(replaced(shape.shape, 'S', std::to_string(size)), 'M', turn % 4 ? "3" : "1");
        const std::string text = yaml(shape, kind, sizes, turn / oneIn);
        INFO(repeat, " cpu ", std::string(kind.cpu), "\n", text);
        try {
          const Spec spec = specOf(text);
          const TestKernel kernel(spec, kind.phase, *session);
          const auto inputs = oracle::drawInputs(spec, kind.phase, {}, testSeed() + turn);
          RunOptions options;
          options.guard = turn % 4 < 2 ? GuardedBuffer::Guard::After : GuardedBuffer::Guard::Before;
          const std::string wrong = wrongResults(kernel, spec, kind.phase, {}, inputs, {}, options);
          CHECK_MESSAGE(wrong.empty(), wrong);
          ++ran;
        } catch (const std::exception &error) {
          FAIL_CHECK(error.what());
        }
      }
    }
  CHECK(ran > 0);
}
