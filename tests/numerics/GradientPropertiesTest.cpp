// Properties of the gradients of every normalization, whatever the reference says.
#include "compiler/oracle/Coordinates.h"
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
    {"nchw", "N, 3, 33, 31", "c", "2", {{"N", 7}}},
    {"nhwc", "N, 9, 9, 67", "c", "0", {{"N", 5}}},
    {"nc", "N, 33", "c", "0", {{"N", 517}}},
    {"nChw16c", "N, 37, 7, 9", "c", "0", {{"N", 5}}},
    {"ntc", "N, 5, 257", "c", "1", {{"N", 3}}},
    {"nchw", "N, 5, 9, 11", "c", "1", {{"N", 3}}},
    {"nchw", "N, 15, 9, 11", "c", "instance", {{"N", 3}}},
    {"nchw", "N, 15, 9, 11", "c", "group\ngroups: 5", {{"N", 3}}},
    {"nhwc", "N, 9, 9, 35", "c", "group\ngroups: 7", {{"N", 3}}},
    {"nChw16c", "N, 35, 7, 9", "c", "group\ngroups: 7", {{"N", 5}}},
    {"ntc", "N, 5, 257", "c", "rms\ncenter: true", {{"N", 3}}},
};

oracle::Arrays draw(const Spec &spec, const oracle::Sizes &sizes,
                    oracle::Data data = oracle::Data::Normal, const oracle::Numbers &scalars = {}) {
  return oracle::drawInputs(spec, Phase::Backward, sizes, testSeed(), data, scalars);
}

/// The mean and variance of every group of x, in extended precision; no mean for rms.
struct Statistics {
  std::vector<long double> mean, variance;
};
Statistics statisticsOf(const oracle::Coordinates &at, const HostArray &x, bool hasMean) {
  const auto count = static_cast<size_t>(at.groups());
  const long double n = at.groupSize();
  Statistics found{std::vector<long double>(count), std::vector<long double>(count)};
  for (int pass = 0; hasMean && pass < 2; ++pass) {
    std::vector<long double> rest(count);
    at.forEach([&](oracle::Place p) { rest[p.group] += x.get(p.offset) - found.mean[p.group]; });
    for (size_t g = 0; g < count; ++g)
      found.mean[g] += rest[g] / n;
  }
  at.forEach([&](oracle::Place p) {
    const long double centered = x.get(p.offset) - found.mean[p.group];
    found.variance[p.group] += centered * centered / n;
  });
  return found;
}

} // namespace

TEST_CASE("dx is orthogonal to 1, and to xhat but for epsilon's share") {
  // With s = 1/sqrt(v+e): the sum of dx is 0, and that of dx*xhat is s*e/(v+e) * sum(h*xhat).
  constexpr double epsilon = 0.25;
  forEachKernel(repeatCommand("dx is orthogonal*"), problems, Phase::Backward, "epsilon: 0.25\n",
                [](const TestKernel &kernel, const Spec &spec, const Problem &problem,
                   const ScheduleVariant &) {
                  const oracle::Sizes &sizes = problem.sizes;
                  const oracle::Coordinates at(spec, sizes);
                  const auto inputs = draw(spec, sizes);
                  const auto outputs = kernel.run(sizes, inputs);
                  const HostArray &x = inputs.at("x"), &dy = inputs.at("dy"),
                                  &gamma = inputs.at("gamma"), &dx = outputs.at("dx");
                  const Statistics of = statisticsOf(at, x, spec.hasMean());
                  const auto count = static_cast<size_t>(at.groups());
                  std::vector<long double> sum(count), product(count), expected(count), size(count);
                  at.forEach([&](oracle::Place p) {
                    const long double v = of.variance[p.group], s = 1 / std::sqrt(v + epsilon);
                    const long double xhat = (x.get(p.offset) - of.mean[p.group]) * s;
                    const long double h = dy.get(p.offset) * gamma.get(p.parameter);
                    sum[p.group] += dx.get(p.offset);
                    product[p.group] += dx.get(p.offset) * xhat;
                    expected[p.group] += s * epsilon / (v + epsilon) * h * xhat;
                    // The size of the terms of dx, whose roundings are seen: h, its mean, and xhat
                    // times theirs.
                    size[p.group] += s * (std::abs(h) + 1) * (1 + std::abs(xhat));
                  });
                  for (size_t g = 0; g < count; ++g) {
                    INFO("group ", g);
                    const long double allowed = 16 * digits(spec) * size[g];
                    if (spec.hasMean())
                      CHECK(static_cast<double>(std::abs(sum[g])) <= static_cast<double>(allowed));
                    CHECK(static_cast<double>(std::abs(product[g] - expected[g])) <=
                          static_cast<double>(8 * allowed));
                  }
                });
}

TEST_CASE("scaling x by a power of two and epsilon along scales dx and changes no bit") {
  forEachKernel(
      repeatCommand("scaling x by a power of two*"), problems, Phase::Backward,
      "epsilon: argument\n",
      [](const TestKernel &kernel, const Spec &spec, const Problem &problem,
         const ScheduleVariant &) {
        const oracle::Sizes &sizes = problem.sizes;
        const auto inputs = draw(spec, sizes, oracle::Data::Normal, {{"epsilon", 0x1p-8}});
        const auto expected = kernel.run(sizes, inputs, {{"epsilon", 0x1p-8}});
        for (int power : {1, -1, 5, -9, 20}) {
          INFO("x times 2^", power);
          const double scale = std::ldexp(1.0, power);
          oracle::Arrays scaled = inputs;
          auto multiply = [&](const char *name, double by) {
            if (const auto found = scaled.find(name); found != scaled.end())
              for (int64_t i = 0; i < found->second.count(); ++i)
                found->second.set(i, found->second.get(i) * by);
          };
          multiply("x", scale);
          multiply("batch_mean", scale);
          multiply("batch_variance", scale * scale);
          const auto outputs = kernel.run(sizes, scaled, {{"epsilon", 0x1p-8 * scale * scale}});
          const HostArray &dx = outputs.at("dx"), &before = expected.at("dx");
          int64_t differ = 0;
          for (int64_t i = 0; i < dx.count(); ++i)
            differ += dx.get(i) * scale != before.get(i);
          CHECK(differ == 0);
          for (const char *name : {"dgamma", "dbeta"})
            CHECK((outputs.at(name).bytes == expected.at(name).bytes));
        }
      });
}

TEST_CASE("a constant group has no gradient through its deviation") {
  // xhat is 0, and dx is gamma/sqrt(e) times dy less its mean.
  constexpr double epsilon = 0.25;
  forEachKernel(repeatCommand("a constant group has no*"), problems, Phase::Backward,
                "epsilon: 0.25\n",
                [](const TestKernel &kernel, const Spec &spec, const Problem &problem,
                   const ScheduleVariant &) {
                  const oracle::Sizes &sizes = problem.sizes;
                  if (!spec.hasMean())
                    return;
                  const oracle::Coordinates at(spec, sizes);
                  const auto inputs = draw(spec, sizes, oracle::Data::Constant);
                  const auto outputs = kernel.run(sizes, inputs);
                  const HostArray &dy = inputs.at("dy"), &gamma = inputs.at("gamma");
                  const auto count = static_cast<size_t>(at.groups());
                  std::vector<long double> mean(count);
                  const long double n = at.groupSize();
                  at.forEach([&](oracle::Place p) {
                    mean[p.group] += dy.get(p.offset) * gamma.get(p.parameter) / n;
                  });
                  double worst = 0;
                  at.forEach([&](oracle::Place p) {
                    const long double h = dy.get(p.offset) * gamma.get(p.parameter);
                    const long double exact = (h - mean[p.group]) / std::sqrt(epsilon);
                    const long double error = std::abs(outputs.at("dx").get(p.offset) - exact);
                    worst = std::max(worst, static_cast<double>(error / (1 + std::abs(h))));
                  });
                  CHECK(worst <= 32 * digits(spec));
                  for (int64_t i = 0; i < gamma.count(); ++i)
                    REQUIRE(std::abs(outputs.at("dgamma").get(i)) <=
                            64 * digits(spec) * static_cast<double>(at.elements()));
                });
}

TEST_CASE("NaN stays in its group in dx, and in the parameters of what it touches") {
  forEachKernel(
      repeatCommand("NaN stays in its group in dx*"), problems, Phase::Backward, "",
      [](const TestKernel &kernel, const Spec &spec, const Problem &problem,
         const ScheduleVariant &) {
        const oracle::Sizes &sizes = problem.sizes;
        const oracle::Coordinates at(spec, sizes);
        const auto inputs = draw(spec, sizes);
        const auto expected = kernel.run(sizes, inputs);
        std::mt19937_64 random(testSeed());
        for (const char *name : {"x", "dy"}) {
          auto chosen = static_cast<int64_t>(random() % static_cast<uint64_t>(at.elements()));
          oracle::Place bad;
          at.forEach([&](oracle::Place p) {
            if (chosen-- == 0)
              bad = p;
          });
          INFO("NaN in ", std::string(name), " at ", bad.offset, " of group ", bad.group);
          auto changed = inputs;
          changed.at(name).set(bad.offset, std::nan(""));
          const auto outputs = kernel.run(sizes, changed);
          const bool isX = std::string_view(name) == "x";
          // NaN in x is in the group's sums, and in xhat by way of the corrected mean; without a
          // mean in one xhat alone. NaN in dy is in one term of dgamma and dbeta.
          std::vector<bool> touched(static_cast<size_t>(at.parameters()));
          int64_t elsewhere = 0, here = 0;
          at.forEach([&](oracle::Place p) {
            const double was = expected.at("dx").get(p.offset), is = outputs.at("dx").get(p.offset);
            elsewhere += p.group != bad.group && was != is;
            here += p.group == bad.group && !std::isnan(is);
            if (p.group == bad.group && (p.offset == bad.offset || (isX && spec.hasMean())))
              touched[static_cast<size_t>(p.parameter)] = true;
          });
          CHECK(elsewhere == 0);
          CHECK(here == 0);
          for (int64_t i = 0; i < at.parameters(); ++i) {
            const double gamma = outputs.at("dgamma").get(i), beta = outputs.at("dbeta").get(i);
            REQUIRE(std::isnan(gamma) == touched[static_cast<size_t>(i)]);
            REQUIRE(std::isnan(beta) == (touched[static_cast<size_t>(i)] && !isX));
            if (!std::isnan(gamma))
              REQUIRE(gamma == expected.at("dgamma").get(i));
            if (!std::isnan(beta))
              REQUIRE(beta == expected.at("dbeta").get(i));
          }
        }
      });
}
