// Statistics of a population: the same however it is cut into batches.
#include "tests/numerics/KernelCase.h"

#include <cmath>
#include <cstring>
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <random>

using namespace normforge;
using namespace normforge::test;

namespace {

constexpr int64_t kChannels = 7;
constexpr const char *kState[] = {"population_count", "population_mean", "population_m2"};

oracle::Arrays emptyState(int64_t channels) {
  oracle::Arrays state;
  for (const char *name : kState) {
    HostArray array(DType::F64, {channels});
    for (int64_t i = 0; i < channels; ++i)
      array.set(i, 0);
    state.emplace(name, std::move(array));
  }
  return state;
}

/// The outputs after batches that end at these samples.
oracle::Arrays runBatches(const TestKernel &kernel, const oracle::Arrays &all,
                          const std::vector<int64_t> &ends) {
  oracle::Arrays state = emptyState(kChannels), outputs;
  int64_t first = 0;
  for (int64_t end : ends) {
    oracle::Arrays inputs = state;
    for (const auto &[name, array] : all)
      inputs.insert_or_assign(name, samplesOf(array, first, end));
    RunOptions options;
    options.inPlace = 0;
    options.threads = 2;
    outputs = kernel.run({{"N", end - first}}, inputs, {}, options);
    for (const char *name : kState)
      state.insert_or_assign(name, outputs.at(name));
    first = end;
  }
  return outputs;
}

struct Form {
  const char *input;
  bool mask;
};
const Form kForms[] = {
    {"{shape: [N, 7, 9, 5], layout: nchw}", false},
    {"{shape: [N, 9, 5, 7], layout: nhwc}", false},
    {"{shape: [N, 7, 9, 5], layout: nChw4c}", false},
    {"{shape: [N, 9, 5, 7], layout: nhwc, dtype: bf16}", false},
    {"{shape: [N, 7, 9, 5], layout: nchw, dtype: f64}", false},
    {"{shape: [N, 7], layout: nc}", true},
    {"{shape: [N, 7, 9, 5], layout: nchw}", true},
};

} // namespace

TEST_CASE("a population's statistics are the same for any cut into batches") {
  for (const char *cpu : {"native", "haswell", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    for (const Form &form : kForms) {
      const std::string yaml = fmt::format("input: {}\naxis: c\nphases: [population]\n{}",
                                           form.input, form.mask ? "mask: true\n" : "");
      const std::string repeat = repeatCommand("a population's statistics*");
      INFO(repeat, " ", std::string(cpu), "\n", yaml);
      const Spec spec = specOf(yaml);
      const TestKernel kernel(spec, Phase::Population, *session);
      constexpr int64_t kSamples = 61;
      for (oracle::Data data : {oracle::Data::Normal, oracle::Data::Offset, oracle::Data::Constant,
                                oracle::Data::Outlier}) {
        INFO(std::string(oracle::toString(data)));
        oracle::Arrays all =
            oracle::drawInputs(spec, Phase::Population, {{"N", kSamples}}, testSeed(), data);
        for (const char *name : kState)
          all.erase(name);
        // All at once is what the reference says of one batch.
        const oracle::Arrays whole = runBatches(kernel, all, {kSamples});
        oracle::Arrays inputs = all;
        inputs.merge(emptyState(kChannels));
        const std::string wrong =
            disagreement(spec, Phase::Population, {{"N", kSamples}}, inputs, whole);
        CHECK_MESSAGE(wrong.empty(), wrong);
        std::mt19937_64 random(testSeed());
        for (int cut = 0; cut < 4; ++cut) {
          std::vector<int64_t> ends;
          for (int64_t i = 1; i < kSamples; ++i)
            if (cut == 0 || random() % (uint64_t(1) << cut) == 0) // one by one at first
              ends.push_back(i);
          ends.push_back(kSamples);
          const oracle::Arrays parts = runBatches(kernel, all, ends);
          for (const auto &[name, array] : whole) {
            INFO(name, " of ", ends.size(), " batches");
            for (int64_t c = 0; c < kChannels; ++c) {
              const double expected = array.get(c), found = parts.at(name).get(c);
              // Roundings of f64, a few for each batch: of the means, whose distances are squared,
              // too. And one of f32 where it is stored.
              const double mean = whole.at("population_mean").get(c);
              const double count = whole.at("population_count").get(c);
              double scale = std::abs(expected);
              if (name == "population_m2")
                scale += std::abs(mean) * std::sqrt(count * expected);
              else if (name == "moving_variance")
                scale += std::abs(mean) * std::sqrt(expected);
              else if (name != "population_count")
                scale += std::sqrt(whole.at("population_m2").get(c) / count);
              double allowed =
                  0x1p-51 * (static_cast<double>(ends.size() + 4) + count / 64) * scale;
              if (array.dtype == DType::F32)
                allowed += 0x1p-23 * std::abs(expected);
              CHECK(std::abs(found - expected) <= allowed);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a population by hand") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  // 1 and 3, then 8: mean 2 and squares 2, then mean 4 and squares 9 + 1 + 16 = 26.
  const auto ends = std::vector<int64_t>{2, 3};
  HostArray x(DType::F32, {3, 7});
  for (int64_t c = 0; c < kChannels; ++c) {
    x.set(c, 1);
    x.set(7 + c, 3);
    x.set(14 + c, 8);
  }
  struct Case {
    const char *semantics, *spread;
    double expected;
  };
  for (const Case &of :
       {Case{"matlab", "moving_variance", 26.0 / 3}, Case{"pytorch", "moving_variance", 13},
        Case{"keras-1.0.4\nepsilon: 0.25", "moving_stddev", std::sqrt(26.0 / 3 + 0.25)}}) {
    INFO(std::string(of.semantics));
    const Spec spec = specOf(fmt::format("semantics: {}\ninput: {{shape: [N, 7], layout: nc}}\n"
                                         "axis: c\nphases: [population]\n",
                                         of.semantics));
    const TestKernel kernel(spec, Phase::Population, *session);
    const oracle::Arrays outputs = runBatches(kernel, {{"x", x}}, ends);
    for (int64_t c = 0; c < kChannels; ++c) {
      CHECK(outputs.at("population_count").get(c) == 3);
      CHECK(outputs.at("population_mean").get(c) == doctest::Approx(4).epsilon(1e-15));
      CHECK(outputs.at("population_m2").get(c) == doctest::Approx(26).epsilon(1e-15));
      CHECK(outputs.at("moving_mean").get(c) == 4);
      CHECK(outputs.at(of.spread).get(c) == doctest::Approx(of.expected).epsilon(1e-6));
    }
  }
}

TEST_CASE("with a population training leaves moving statistics alone") {
  const Spec spec = specOf("input: {shape: [N, 7], layout: nc}\naxis: c\n"
                           "statistics: population\nphases: [inference, training, population]\n");
  using Names = std::vector<std::string>;
  CHECK(oracle::inputNames(spec, Phase::Training) == Names{"x", "gamma", "beta"});
  CHECK(oracle::outputNames(spec, Phase::Training) == Names{"y", "batch_mean", "batch_variance"});
  CHECK(oracle::inputNames(spec, Phase::Inference) ==
        Names{"x", "gamma", "beta", "moving_mean", "moving_variance"});
  CHECK(oracle::inputNames(spec, Phase::Population) ==
        Names{"x", "population_count", "population_mean", "population_m2"});
  CHECK(oracle::outputNames(spec, Phase::Population) == Names{"population_count", "population_mean",
                                                              "population_m2", "moving_mean",
                                                              "moving_variance"});
}

TEST_CASE("a range is exact, whatever the batches and whatever is in them") {
  for (const char *cpu : {"native", "x86-64-v2"}) {
    Session *session = sessionOrSkip(cpu);
    if (!session)
      continue;
    INFO(repeatCommand("a range is exact*"), " cpu ", std::string(cpu));
    const Spec spec = specOf("input: {shape: [N, 4], layout: nc}\naxis: c\nmode: range\n"
                             "center: false\nscale: false\nphases: [population, inference]\n");
    constexpr int64_t kRows = 1000, kNan = 777;
    std::mt19937_64 engine(testSeed());
    std::normal_distribution<double> normal(0, 1e6);
    HostArray x(DType::F32, {kRows, 4});
    double least = INFINITY, greatest = -INFINITY;
    for (int64_t row = 0; row < kRows; ++row) {
      x.set(4 * row, normal(engine));
      x.set(4 * row + 1, -3.5); // of one value
      x.set(4 * row + 2, row == kNan ? NAN : 1);
      x.set(4 * row + 3, row % 2 == 0 ? -0.0 : 0.0);
      least = std::min(least, x.get(4 * row));
      greatest = std::max(greatest, x.get(4 * row));
    }
    const TestKernel ofPopulation(spec, Phase::Population, *session),
        ofInference(spec, Phase::Inference, *session);
    for (int64_t cut : {int64_t(1), int64_t(300), kRows - 1, kRows}) {
      INFO(cut);
      oracle::Arrays state;
      for (auto [name, start] : {std::pair("minimum", INFINITY), std::pair("maximum", -INFINITY)}) {
        HostArray array(DType::F32, {4});
        for (int64_t c = 0; c < 4; ++c)
          array.set(c, start);
        state.emplace(name, std::move(array));
      }
      for (auto [from, to] : {std::pair(int64_t(0), cut), std::pair(cut, kRows)}) {
        if (from == to)
          continue;
        state.insert_or_assign("x", samplesOf(x, from, to));
        state = ofPopulation.run({{"N", to - from}}, state);
      }
      const HostArray &minimum = state.at("minimum"), &maximum = state.at("maximum");
      CHECK(minimum.get(0) == least);
      CHECK(maximum.get(0) == greatest);
      CHECK(minimum.get(1) == -3.5);
      CHECK(maximum.get(1) == -3.5);
      CHECK(std::isnan(minimum.get(2)));
      CHECK(std::isnan(maximum.get(2)));
      CHECK(minimum.get(3) == 0);
      CHECK(maximum.get(3) == 0);
      if (cut == kRows) { // -0 is less than 0
        CHECK(std::signbit(minimum.get(3)));
        CHECK(!std::signbit(maximum.get(3)));
      }
      state.emplace("x", x);
      const oracle::Arrays scaled = ofInference.run({{"N", kRows}}, state);
      const HostArray &y = scaled.at("y");
      for (int64_t row = 0; row < kRows; ++row) {
        const double share = y.get(4 * row), of = x.get(4 * row);
        CHECK((share >= 0 && share <= 1));
        CHECK((of < greatest || share == 1));
        CHECK((of > least || share == 0));
        CHECK(y.get(4 * row + 1) == 0);
        CHECK(std::isnan(y.get(4 * row + 2)));
        CHECK(y.get(4 * row + 3) == 0);
      }
    }
  }
}
