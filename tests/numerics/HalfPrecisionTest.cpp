// Conversions of bf16 and f16 inside kernels: every number of the type, and the rounding of what is
// between them.
#include "tests/numerics/KernelCase.h"

#include <cmath>
#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

/// y = x * gamma in f32, rounded to the dtype: epsilon vanishes beside a variance of 1.
std::string text(std::string_view dtype) {
  return fmt::format("name: half\ninput: {{shape: [N, 64], layout: nc, dtype: {}}}\naxis: c\n"
                     "epsilon: 1e-30\ncenter: false\n",
                     dtype);
}

bool isDenormalBf16(double value) { return std::abs(value) < 0x1p-126; }

} // namespace

TEST_CASE("half precision: every number through a kernel, rounded to nearest, ties to even") {
  const std::string repeat = repeatCommand("half precision*");
  std::mt19937_64 random(testSeed());
  int ran = 0;
  for (const char *dtype : {"bf16", "f16"})
    for (const char *cpu : {"native", "skylake-avx512", "haswell", "x86-64-v2"}) {
      Session *session = sessionOrSkip(cpu);
      if (!session)
        continue;
      INFO(repeat, " ", std::string(dtype), " ", std::string(cpu));
      const Spec spec = specOf(text(dtype));
      const TestKernel kernel(spec, Phase::Inference, *session);
      HostArray x(spec.dtype, {1024, 64}), gamma(DType::F32, {64}), mean(DType::F32, {64}),
          variance(DType::F32, {64});
      for (int i = 0; i < 65536; ++i)
        x.data<uint16_t>()[i] = static_cast<uint16_t>(i * 64 + i / 1024); // each once
      for (int turn = 0; turn < 8; ++turn) {
        for (int c = 0; c < 64; ++c) {
          variance.set(c, 1);
          // Exact; halves of the last place, which tie; anything; and what becomes denormal.
          const double drawn = 0.5 + std::ldexp(static_cast<double>(random() >> 11), -53);
          const double factors[] = {
              1, 1.5, 1.25, drawn, -drawn, drawn * 0x1p-10, drawn * 0x1p-120, 1 + 0x1p-9};
          gamma.set(c, factors[(turn + c) % 8]);
        }
        const auto outputs = kernel.run(
            {{"N", 1024}},
            {{"x", x}, {"gamma", gamma}, {"moving_mean", mean}, {"moving_variance", variance}});
        const HostArray &y = outputs.at("y");
        HostArray expected(spec.dtype, {1});
        int wrong = 0;
        for (int i = 0; i < 65536 && wrong < 3; ++i) {
          const double exact = x.get(i) * gamma.get(i % 64) + 0.0; // no beta is +0
          expected.set(0, static_cast<double>(static_cast<float>(exact)));
          const double is = y.get(i), want = expected.get(0);
          const bool agrees = (std::isnan(is) && std::isnan(want)) ||
                              (is == want && std::signbit(is) == std::signbit(want)) ||
                              // AVX512-BF16 takes denormal numbers for 0.
                              (spec.dtype == DType::BF16 && isDenormalBf16(exact) && is == 0);
          if (agrees)
            continue;
          ++wrong;
          FAIL_CHECK(fmt::format("{} * {} is {} where {} is expected", x.get(i), gamma.get(i % 64),
                                 is, want));
        }
      }
      ++ran;
    }
  CHECK(ran > 0);
}

// LLVM 22's x86 backend makes a store of 4 bytes of a narrowed vector under a constant mask of one
// lane: the next element, or what follows y, was overwritten.
TEST_CASE("half precision: rows whose tail is one element") {
  const std::string repeat = repeatCommand("half precision: rows*");
  int ran = 0;
  for (const char *cpu : {"native", "skylake-avx512", "x86-64-v4", "haswell", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const char *dtype : {"bf16", "f16"})
      for (const char *input : {"[3, 1], layout: nc", "[3, 17], layout: nc", "[5, 65], layout: nc",
                                "[2, 6, 7, 7], layout: nchw", "[2, 3, 1, 1], layout: nchw",
                                "[4, 1, 3, 33], layout: nhwc"})
        for (Phase phase : {Phase::Inference, Phase::Training}) {
          const Spec spec = specOf(fmt::format(
              "name: tail\ninput: {{shape: {}, dtype: {}}}\naxis: c\nphases: [inference, "
              "training]\nfuse: [add, relu]\n",
              input, dtype));
          INFO(repeat, " ", std::string(cpu), " ", std::string(dtype), " ", std::string(input));
          const TestKernel kernel(spec, phase, *session);
          const auto inputs = oracle::drawInputs(spec, phase, {}, testSeed());
          const std::string wrong = wrongResults(kernel, spec, phase, {}, inputs);
          CHECK_MESSAGE(wrong.empty(), wrong);
          ++ran;
        }
  }
  CHECK(ran > 0);
}

TEST_CASE("half precision: an operand of one element for each row of a vector") {
  const std::string repeat = repeatCommand("half precision: an operand*");
  int ran = 0;
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const char *dtype : {"bf16", "f16"})
      for (Phase phase : {Phase::Inference, Phase::Training, Phase::Backward}) {
        const Spec spec = specOf(fmt::format(
            "name: rows\ninput: {{shape: [5, 8, 67, 2], layout: tdwh, dtype: {}}}\naxis: [2]\n"
            "phases: [inference, training, backward]\n"
            "prologue: [{{expr: \"min(x, p)\", operands: {{p: [1, 2]}}}}]\n",
            dtype));
        INFO(repeat, " ", std::string(cpu), " ", std::string(dtype), " phase ",
             std::string(toString(phase)));
        const TestKernel kernel(spec, phase, *session);
        const auto inputs = oracle::drawInputs(spec, phase, {}, testSeed());
        const std::string wrong = wrongResults(kernel, spec, phase, {}, inputs);
        CHECK_MESSAGE(wrong.empty(), wrong);
        ++ran;
      }
  }
  CHECK(ran > 0);
}

TEST_CASE("half precision: results that branches store") {
  const std::string repeat = repeatCommand("half precision: results*");
  int ran = 0;
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const char *dtype : {"bf16", "f16"}) {
      const Spec spec = specOf(fmt::format(
          "name: branches\nsemantics: keras-3\ninput: {{shape: [96, 65, 6, H], layout: wtCh2c, "
          "dtype: {}}}\naxis: [0, 2]\nmode: rms\ncenter: true\nscale: false\n"
          "phases: [inference, training, backward]\n"
          "fuse: [relu, {{expr: \"x * sigmoid(1.5 * x) + f\", operands: {{f: x}}}}]\n",
          dtype));
      for (Phase phase : spec.phases) {
        INFO(repeat, " ", std::string(cpu), " ", std::string(dtype), " phase ",
             std::string(toString(phase)));
        const oracle::Sizes sizes{{"H", 1}};
        const TestKernel kernel(spec, phase, *session);
        const auto inputs = oracle::drawInputs(spec, phase, sizes, testSeed());
        const std::string wrong = wrongResults(kernel, spec, phase, sizes, inputs);
        CHECK_MESSAGE(wrong.empty(), wrong);
        ++ran;
      }
    }
  }
  CHECK(ran > 0);
}
