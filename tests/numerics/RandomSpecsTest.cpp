// Specs drawn at random: any rank, layout, mode, phase and fusion, odd sizes, static and named.
#include "tests/numerics/KernelCase.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

struct Drawn {
  std::string yaml;
  oracle::Sizes sizes;
  oracle::Numbers scalars;
};

class SpecDraw {
public:
  explicit SpecDraw(uint64_t seed) : random_(seed) {}

  Drawn draw() {
    const int rank = pick({1, 2, 2, 3, 3, 4, 4, 4, 5, 6});
    std::string letters = "nctdhw";
    std::shuffle(letters.begin(), letters.end(), random_);
    letters.resize(static_cast<size_t>(rank));
    const int mode = pick({0, 0, 1, 2});
    const bool keras = chance(3), sample = mode == 1;

    std::vector<int> axes;
    if (sample && keras) {
      axes = {rank - 1};
    } else {
      for (int i = 0; i < rank; ++i)
        if (chance(rank > 2 ? 3 : 2))
          axes.push_back(i);
      if (axes.empty())
        axes.push_back(static_cast<int>(random_() % static_cast<uint64_t>(rank)));
      if (!sample && static_cast<int>(axes.size()) == rank)
        axes.pop_back();
    }
    if (axes.empty()) // rank 1 has no axis left to reduce over in modes 0 and 2
      return draw();

    Drawn drawn;
    const int blockedAxis =
        chance(4) ? static_cast<int>(random_() % static_cast<uint64_t>(rank)) : -1;
    std::string layout = letters;
    if (blockedAxis >= 0) {
      const char letter = layout[static_cast<size_t>(blockedAxis)];
      layout[static_cast<size_t>(blockedAxis)] = static_cast<char>(letter - 'a' + 'A');
      layout += fmt::format("{}{}", pick({2, 4, 8, 8, 16, 16, 32}), letter);
    }
    int64_t budget = pick({200, 3000, 40000, 300000});
    std::string shape;
    for (int i = 0; i < rank; ++i) {
      int64_t size = pick({1,  2,  3,  5,  7,  8,  13, 15,  16,  17,  31,  32,   33,
                           48, 49, 63, 64, 65, 67, 96, 128, 129, 251, 257, 1000, 3136});
      size = std::max<int64_t>(1, std::min(size, budget));
      budget /= size;
      if (chance(4)) {
        const std::string name = fmt::format("S{}", i);
        drawn.sizes[name] = size;
        shape += (i ? ", " : "") + name;
      } else {
        shape += fmt::format("{}{}", i ? ", " : "", size);
      }
    }
    std::string axisText;
    for (int axis : axes)
      axisText += fmt::format("{}{}", axisText.empty() ? "" : ", ", axis);
    drawn.yaml =
        fmt::format("name: drawn\nsemantics: {}\ninput: {{shape: [{}], layout: {}, dtype: "
                    "{}}}\naxis: [{}]\nmode: {}\nphases: [inference, training]\n",
                    keras ? "keras-1.2" : (chance(2) ? "pytorch" : "onnx-15"), shape, layout,
                    chance(4)   ? "f64"
                    : chance(6) ? "bf16"
                    : chance(6) ? "f16"
                                : "f32",
                    axisText, mode);
    if (chance(4))
      drawn.yaml += "center: false\n";
    if (chance(4))
      drawn.yaml += "scale: false\n";
    if (chance(5)) {
      drawn.yaml += "epsilon: argument\n";
      drawn.scalars["epsilon"] = 1e-3;
    }
    if (chance(5)) {
      drawn.yaml += "momentum: argument\n";
      drawn.scalars["momentum"] = 0.8125;
    } else if (chance(6)) {
      drawn.yaml += "momentum: cumulative\n";
      drawn.scalars["count"] = 3;
    } else if (chance(6)) {
      drawn.yaml += "momentum: {mean: 0.25, variance: 0.75}\n";
    }
    if (chance(4))
      drawn.yaml += fmt::format("running_variance: {}\n", chance(2) ? "bessel" : "keras-2");
    switch (random_() % 5) {
    case 0:
      drawn.yaml += "fuse: [add]\n";
      break;
    case 1:
      drawn.yaml += "fuse: [relu]\n";
      break;
    case 2:
      drawn.yaml += "fuse: [add, relu]\n";
      break;
    case 3:
      drawn.yaml += "fuse: [relu, add]\n";
      break;
    default:
      break;
    }
    return drawn;
  }

  bool chance(uint64_t oneIn) { return random_() % oneIn == 0; }
  std::mt19937_64 &engine() { return random_; }

private:
  template <typename T> T pick(std::initializer_list<T> values) {
    return values.begin()[random_() % values.size()];
  }
  std::mt19937_64 random_;
};

} // namespace

TEST_CASE("random specs agree with the reference") {
  // A spec depends on the seed and its number alone: more of them, or one again.
  const char *given = std::getenv("NORMFORGE_TEST_COUNT"),
             *one = std::getenv("NORMFORGE_TEST_ONLY");
  const int first = one ? std::atoi(one) : 0;
  const int last = one ? first + 1 : given ? std::atoi(given) : 150;
  const std::string repeat = repeatCommand("random specs agree with the reference");
  int ran = 0;
  for (int i = first; i < last; ++i) {
    SpecDraw draw(testSeed() * 1000003 + static_cast<uint64_t>(i));
    const Drawn drawn = draw.draw();
    const char *cpu = i % 3 == 2 ? "haswell" : i % 6 == 4 ? "x86-64-v2" : "native";
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    auto spec = parseSpec(drawn.yaml, "drawn.yaml");
    INFO("NORMFORGE_TEST_ONLY=", i, " ", repeat, " cpu ", std::string(cpu), "\n", drawn.yaml);
    if (!spec)
      FAIL(llvm::toString(spec.takeError()));
    for (Phase phase : spec->phases) {
      const oracle::Arrays inputs =
          oracle::drawInputs(*spec, phase, drawn.sizes, testSeed() + static_cast<uint64_t>(i));
      oracle::Numbers scalars = drawn.scalars;
      std::string sizes;
      for (auto &[name, size] : drawn.sizes)
        sizes += fmt::format("{}={} ", name, size);
      INFO("phase " << std::string(toString(phase)) << " " << sizes);
      try {
        const TestKernel kernel(*spec, phase, *session);
        INFO(kernel.artifact().variants[kernel.variantFor(drawn.sizes)].schedule);
        const oracle::Arrays inline1 = kernel.run(drawn.sizes, inputs, scalars);
        const std::string wrong = disagreement(*spec, phase, drawn.sizes, inputs, inline1, scalars);
        CHECK_MESSAGE(wrong.empty(), wrong);
        RunOptions options;
        options.split = &draw.engine();
        options.guard = GuardedBuffer::Guard::Before;
        CHECK(sameBits(inline1, kernel.run(drawn.sizes, inputs, scalars, options)));
        options.threads = 3;
        options.movingInPlace = true;
        options.yInto = inputs.contains("addend") && draw.chance(2) ? "addend" : "x";
        CHECK(sameBits(inline1, kernel.run(drawn.sizes, inputs, scalars, options)));
        ++ran;
      } catch (const std::exception &error) {
        FAIL_CHECK(error.what());
      }
    }
  }
  CHECK(ran > 0);
}
