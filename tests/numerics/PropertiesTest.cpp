// Properties of every normalization, whatever the reference says.
#include "tests/numerics/PropertyCase.h"

#include <cmath>
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <limits>

using namespace normforge;
using namespace normforge::test;

namespace {

const Problem problems[] = {
    {"nchw", "N, 19, 7, 7", "c", "0", {{"N", 13}}},
    {"nchw", "N, 3, 33, 31", "c", "0", {{"N", 7}}},
    {"ncw", "N, 9, 1000", "c", "2", {{"N", 3}}},
    {"nhwc", "N, 9, 9, 67", "c", "0", {{"N", 5}}},
    {"nhwc", "N, 14, 14, 5", "c", "2", {{"N", 5}}},
    {"nc", "N, 33", "c", "0", {{"N", 517}}},
    {"nc", "N, 33", "c", "0", {{"N", 201}}},
    {"nc", "N, 3", "c", "2", {{"N", 1003}}},
    {"ntc", "N, 5, 257", "c", "1", {{"N", 3}}},
    {"nchw", "N, 5, 9, 11", "c", "1", {{"N", 3}}},
    {"nChw16c", "N, 37, 7, 9", "c", "0", {{"N", 5}}},
    {"nChw8c", "N, 11, 9, 9", "c", "2", {{"N", 5}}},
    {"nchw", "N, 15, 9, 11", "c", "instance", {{"N", 3}}},
    {"nchw", "N, 15, 9, 11", "c", "group\ngroups: 5", {{"N", 3}}},
    {"nhwc", "N, 9, 9, 35", "c", "group\ngroups: 7", {{"N", 3}}},
    {"nChw16c", "N, 35, 7, 9", "c", "group\ngroups: 7", {{"N", 5}}}, // groups of 5 in blocks of 16
    // Sizes n for which n*(1/n) is not 1 when 1/n is rounded.
    {"nc", "N, 35", "c", "0", {{"N", 41}}},
    {"cn", "19, N", "c", "0", {{"N", 47}}},
};

/// The index of gamma and beta for a statistics group: the same in modes 0 and 2.
bool parametersAreKept(const Spec &spec) {
  return spec.mode == Mode::Feature || spec.mode == Mode::Batch;
}

/// Elements in memory order but those of the groups in `except`.
std::vector<double> elementsBut(const HostArray &array, const std::vector<int64_t> &groups,
                                int64_t except) {
  std::vector<double> values;
  for (size_t i = 0; i < groups.size(); ++i)
    if (groups[i] != except)
      values.push_back(array.get(static_cast<int64_t>(i)));
  return values;
}

} // namespace

TEST_CASE("training's y has mean beta and variance gamma^2 v/(v+e)") {
  const std::string repeat = repeatCommand("training's y has mean*");
  forEachKernel(
      repeat, problems, Phase::Training, "epsilon: 0.25\n",
      [](const TestKernel &kernel, const Spec &spec, const Problem &problem,
         const ScheduleVariant &) {
        if (!parametersAreKept(spec))
          return; // gamma differs within a group
        const auto inputs = oracle::drawInputs(spec, Phase::Training, problem.sizes, testSeed());
        const auto outputs = kernel.run(problem.sizes, inputs);
        const auto groups = groupsOf(spec, problem.sizes);
        const HostArray &y = outputs.at("y"), &gamma = inputs.at("gamma"), &x = inputs.at("x");
        const auto count = static_cast<size_t>(gamma.count());
        std::vector<double> n(count);
        // Longer than a double: 1e4 additions in f64 would be off by more than y is.
        std::vector<long double> sum(count), sumX(count), squares(count), squaresX(count);
        for (size_t i = 0; i < groups.size(); ++i)
          if (const auto g = groups[i]; g >= 0) {
            n[static_cast<size_t>(g)] += 1;
            sum[static_cast<size_t>(g)] += y.get(static_cast<int64_t>(i));
            sumX[static_cast<size_t>(g)] += x.get(static_cast<int64_t>(i));
          }
        for (size_t i = 0; i < groups.size(); ++i)
          if (groups[i] >= 0) {
            const auto g = static_cast<size_t>(groups[i]);
            squares[g] += std::pow(y.get(static_cast<int64_t>(i)) - sum[g] / n[g], 2.0L);
            squaresX[g] += std::pow(x.get(static_cast<int64_t>(i)) - sumX[g] / n[g], 2.0L);
          }
        for (size_t g = 0; g < count; ++g) {
          const double a = gamma.get(static_cast<int64_t>(g));
          const long double v = squaresX[g] / n[g];
          // Each y is within a few units in the last place of values up to some 10 (gamma below
          // 1.5, x within 6 deviations, beta within 6); a mean of them is no further off.
          const double allowed = 64 * digits(spec);
          INFO("group ", g);
          CHECK(std::abs(sum[g] / n[g] - inputs.at("beta").get(static_cast<int64_t>(g))) <=
                allowed);
          CHECK(std::abs(squares[g] / n[g] - a * a * v / (v + 0.25)) <= 8 * allowed);
        }
      });
}

TEST_CASE("scaling x by a power of two and epsilon along changes no bit of y") {
  const std::string repeat = repeatCommand("scaling x by a power of two*");
  forEachKernel(
      repeat, problems, Phase::Training, "epsilon: argument\n",
      [](const TestKernel &kernel, const Spec &spec, const Problem &problem,
         const ScheduleVariant &) {
        auto inputs = oracle::drawInputs(spec, Phase::Training, problem.sizes, testSeed());
        const HostArray x = inputs.at("x");
        const auto expected = kernel.run(problem.sizes, inputs, {{"epsilon", 0x1p-8}});
        for (int power : {1, -1, 5, -9, 20}) {
          INFO("x times 2^", power);
          const double scale = std::ldexp(1.0, power);
          for (int64_t i = 0; i < x.count(); ++i)
            inputs.at("x").set(i, x.get(i) * scale);
          const auto outputs =
              kernel.run(problem.sizes, inputs, {{"epsilon", 0x1p-8 * scale * scale}});
          CHECK((outputs.at("y").bytes == expected.at("y").bytes));
          for (int64_t i = 0; i < expected.at("batch_mean").count(); ++i) {
            REQUIRE(outputs.at("batch_mean").get(i) == expected.at("batch_mean").get(i) * scale);
            REQUIRE(outputs.at("batch_variance").get(i) ==
                    expected.at("batch_variance").get(i) * scale * scale);
          }
        }
      });
}

TEST_CASE("means far from zero cost y no digits") {
  // The mean of 1e4 deviations is rounded by some 1e-3 of one in f32, and so are those of parts of
  // a group that are merged; y is to be as if they were not.
  const std::string repeat = repeatCommand("means far from zero*");
  forEachKernel(
      repeat, problems, Phase::Training, "",
      [](const TestKernel &kernel, const Spec &spec, const Problem &problem,
         const ScheduleVariant &variant) {
        std::vector<int64_t> sizes;
        for (const std::string &name : kernel.artifact().sizes)
          sizes.push_back(problem.sizes.at(name));
        // Longer sums than it is for; digits that the reference does not have.
        if (!variant.guard.holds(sizes) || spec.dtype != DType::F32)
          return;
        const auto inputs = oracle::drawInputs(spec, Phase::Training, problem.sizes, testSeed(),
                                               oracle::Data::Offset);
        const HostArray y = kernel.run(problem.sizes, inputs).at("y"),
                        exact =
                            oracle::reference(spec, Phase::Training, problem.sizes, inputs).at("y");
        double worst = 0;
        for (int64_t i = 0; i < y.count(); ++i)
          worst = std::max(worst, std::abs(y.get(i) - exact.get(i)) / (1 + std::abs(exact.get(i))));
        CHECK(worst <= 64 * digits(spec));
      });
}

TEST_CASE("NaN and Inf stay in their statistics group") {
  const std::string repeat = repeatCommand("NaN and Inf stay in their statistics group");
  for (Phase phase : {Phase::Inference, Phase::Training})
    forEachKernel(repeat, problems, phase, "fuse: [relu]\n",
                  [phase](const TestKernel &kernel, const Spec &spec, const Problem &problem,
                          const ScheduleVariant &) {
                    auto inputs = oracle::drawInputs(spec, phase, problem.sizes, testSeed());
                    const auto expected = kernel.run(problem.sizes, inputs);
                    const auto groups = groupsOf(spec, problem.sizes);
                    std::mt19937_64 random(testSeed());
                    for (double bad : {std::numeric_limits<double>::quiet_NaN(),
                                       std::numeric_limits<double>::infinity()}) {
                      size_t place;
                      do
                        place = random() % groups.size();
                      while (groups[place] < 0);
                      const int64_t group = groups[place];
                      INFO(bad, " at element ", place, " of group ", group);
                      auto changed = inputs;
                      changed.at("x").set(static_cast<int64_t>(place), bad);
                      const auto outputs = kernel.run(problem.sizes, changed);
                      CHECK((elementsBut(outputs.at("y"), groups, group) ==
                             elementsBut(expected.at("y"), groups, group)));
                      for (const auto &[name, array] : expected)
                        if (name != "y")
                          for (int64_t i = 0; i < array.count(); ++i)
                            if (i != group)
                              REQUIRE(outputs.at(name).get(i) == array.get(i));
                      // NaN passes relu; with the batch's statistics it takes its whole group
                      // along.
                      if (phase == Phase::Training || spec.mode != Mode::Feature) {
                        bool all = true;
                        for (size_t i = 0; i < groups.size(); ++i)
                          all = all && (groups[i] != group ||
                                        std::isnan(outputs.at("y").get(static_cast<int64_t>(i))));
                        CHECK(all);
                      } else if (std::isnan(bad)) {
                        CHECK(std::isnan(outputs.at("y").get(static_cast<int64_t>(place))));
                      }
                    }
                  });
}

TEST_CASE("a constant group gives beta") {
  const std::string repeat = repeatCommand("a constant group gives beta");
  forEachKernel(repeat, problems, Phase::Training, "",
                [](const TestKernel &kernel, const Spec &spec, const Problem &problem,
                   const ScheduleVariant &variant) {
                  // A fused kernel's running sums are as long as its guard lets its groups be, no
                  // longer.
                  std::vector<int64_t> sizes;
                  for (const std::string &name : kernel.artifact().sizes)
                    sizes.push_back(problem.sizes.at(name));
                  if (!variant.guard.holds(sizes))
                    return;
                  auto inputs = oracle::drawInputs(spec, Phase::Training, problem.sizes, testSeed(),
                                                   oracle::Data::Constant);
                  const auto outputs = kernel.run(problem.sizes, inputs);
                  const auto groups = groupsOf(spec, problem.sizes);
                  const HostArray &y = outputs.at("y"), &beta = inputs.at("beta");
                  if (parametersAreKept(spec))
                    for (size_t i = 0; i < groups.size(); ++i)
                      if (groups[i] >= 0)
                        REQUIRE(y.get(static_cast<int64_t>(i)) == beta.get(groups[i]));
                  // The squares of what the first mean is off by are taken away again but for a
                  // rounding.
                  for (int64_t i = 0; i < outputs.at("batch_variance").count(); ++i) {
                    const double off = 4 * digits(spec) * outputs.at("batch_mean").get(i);
                    REQUIRE(outputs.at("batch_variance").get(i) >= 0);
                    REQUIRE(outputs.at("batch_variance").get(i) <= off * off);
                  }
                });
}

TEST_CASE("padding is neither read into results nor left unwritten") {
  const std::string repeat = repeatCommand("padding is neither read*");
  for (Phase phase : {Phase::Inference, Phase::Training})
    for (const char *fuse : {"fuse: []\n", "fuse: [add, relu]\n"})
      forEachKernel(repeat, problems, phase, fuse,
                    [phase](const TestKernel &kernel, const Spec &spec, const Problem &problem,
                            const ScheduleVariant &) {
                      if (!spec.layout.isBlocked())
                        return;
                      auto inputs = oracle::drawInputs(spec, phase, problem.sizes, testSeed());
                      const auto groups = groupsOf(spec, problem.sizes);
                      const auto expected = kernel.run(problem.sizes, inputs);
                      const HostArray &y = expected.at("y");
                      int padding = 0;
                      for (size_t i = 0; i < groups.size(); ++i)
                        if (groups[i] < 0) {
                          const auto place = static_cast<int64_t>(i);
                          ++padding;
                          REQUIRE(y.get(place) == 0);
                          REQUIRE_FALSE(std::signbit(y.get(place)));
                          REQUIRE(std::isnan(inputs.at("x").get(place)));
                          inputs.at("x").set(place, 1e30);
                          if (inputs.contains("addend"))
                            inputs.at("addend").set(place, -1e30);
                        }
                      CHECK(padding > 0);
                      CHECK(sameBits(expected, kernel.run(problem.sizes, inputs)));
                    });
}
