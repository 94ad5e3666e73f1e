// A table whose columns are on scales far apart: age, kilometres and power of used cars. Takes the
// statistics of its columns a batch of rows at a time, standardizes it and scales it to 0 to 1, and
// descends to the prices' linear model from the raw columns and from both.
//
//   standardize [DESCENT.svg]
#include "normforge/normforge.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr int64_t kRows = 5000, kColumns = 3, kBatch = 512;
constexpr std::array<const char *, kColumns> kNames = {"age, years", "kilometres", "power, kW"};
constexpr int kSteps = 200;

const char *const kSpec = "name: columns\n"
                          "semantics: pytorch\n"
                          "input: {shape: [N, 3], layout: nc}\n"
                          "axis: c\n"
                          "center: false\n"
                          "scale: false\n"
                          "epsilon: 1.0e-8\n"
                          "statistics: population\n"
                          "phases: [inference, population]\n";

const char *const kRangeSpec = "name: columns_range\n"
                               "input: {shape: [N, 3], layout: nc}\n"
                               "axis: c\n"
                               "mode: range\n"
                               "center: false\n"
                               "scale: false\n"
                               "phases: [inference, population]\n";

struct Table {
  std::vector<float> values; ///< kRows x kColumns
  std::vector<double> prices;
};

/// Older cars have gone further; the price falls with both and rises with power.
Table drawTable() {
  std::mt19937_64 engine(7);
  auto uniform = [&](double from, double to) {
    return from + (to - from) * static_cast<double>(engine() >> 11) * 0x1p-53;
  };
  Table table;
  for (int64_t i = 0; i < kRows; ++i) {
    const double age = uniform(0, 20), kilometres = age * uniform(5e3, 25e3) + uniform(0, 1e4),
                 power = uniform(40, 250);
    for (const double value : {age, kilometres, power})
      table.values.push_back(static_cast<float>(value));
    table.prices.push_back(8000 - 500 * age - 0.05 * kilometres + 110 * power +
                           uniform(-2000, 2000));
  }
  return table;
}

struct Statistics {
  std::array<double, kColumns> count{}, mean{}, squares{}; ///< of the rows so far
  std::array<float, kColumns> movingMean{}, movingVariance{};
};

/// Takes what phase population keeps of the columns, as many rows at a time as there are. `states`
/// are what is known of the rows before; the kernel writes what is known then to the same buffers,
/// and to `made`.
void takePopulation(const nf::Engine &engine, const char *spec, Table &table,
                    const std::vector<void *> &states, const std::vector<void *> &made = {}) {
  const nf::Kernel kernel =
      engine.compile(spec, {.phase = "population", .cpu = {}, .sourceName = {}});
  for (int64_t row = 0; row < kRows; row += kBatch) {
    const nf::Plan plan = kernel.plan({std::min(kBatch, kRows - row)});
    std::vector<void *> args{table.values.data() + row * kColumns};
    for (const auto *of : {&states, &states, &made})
      args.insert(args.end(), of->begin(), of->end());
    const nf::Workspace workspace = plan.makeWorkspace();
    plan.run(args, {}, workspace.get());
  }
}

/// The columns by two statistics each.
std::vector<float> scaleBy(const nf::Engine &engine, const char *spec, Table &table,
                           std::array<float, kColumns> &first,
                           std::array<float, kColumns> &second) {
  const nf::Kernel kernel =
      engine.compile(spec, {.phase = "inference", .cpu = {}, .sourceName = {}});
  const nf::Plan plan = kernel.plan({kRows});
  std::vector<float> y(table.values.size());
  void *const args[] = {table.values.data(), first.data(), second.data(), y.data()};
  const nf::Workspace workspace = plan.makeWorkspace();
  plan.run(args, {}, workspace.get());
  return y;
}

/// Mean squared errors of a linear model over the prices' variance, before each of kSteps steps of
/// gradient descent from zero weights.
std::vector<double> descend(const std::vector<float> &x, const std::vector<double> &prices,
                            double rate) {
  double mean = 0, variance = 0;
  for (const double price : prices)
    mean += price / kRows;
  for (const double price : prices)
    variance += (price - mean) * (price - mean) / kRows;
  std::array<double, kColumns + 1> weights{}; // the last of 1
  std::vector<double> losses;
  for (int step = 0; step < kSteps; ++step) {
    std::array<double, kColumns + 1> gradient{};
    double loss = 0;
    for (size_t row = 0; row < kRows; ++row) {
      const float *const of = x.data() + row * kColumns;
      double error = weights[kColumns] - prices[row];
      for (size_t c = 0; c < kColumns; ++c)
        error += weights[c] * static_cast<double>(of[c]);
      loss += error * error / kRows / variance;
      for (size_t c = 0; c < kColumns; ++c)
        gradient[c] += 2 * error * static_cast<double>(of[c]) / kRows;
      gradient[kColumns] += 2 * error / kRows;
    }
    losses.push_back(loss);
    for (size_t c = 0; c <= kColumns; ++c)
      weights[c] -= rate * gradient[c];
  }
  return losses;
}

struct Descent {
  const char *name;
  double rate = 0;
  std::vector<double> losses{};
};

/// With the rate, a power of ten, that ends lowest.
Descent bestDescent(const char *name, const std::vector<float> &x,
                    const std::vector<double> &prices) {
  Descent best{name};
  for (int power = -14; power <= 1; ++power) {
    const double rate = std::pow(10, power);
    std::vector<double> losses = descend(x, prices, rate);
    if (std::isfinite(losses.back()) && (best.losses.empty() || losses.back() < best.losses.back()))
      best = {name, rate, std::move(losses)};
  }
  return best;
}

/// Loss by step, in decades from 10 down to 0.01.
bool draw(const char *path, const std::vector<Descent> &descents) {
  constexpr double left = 60, top = 20, width = 520, height = 300;
  auto x = [](double step) { return left + width * step / kSteps; };
  auto y = [](double loss) {
    return top + height * (1 - std::clamp(std::log10(loss), -2.0, 1.0)) / 3;
  };
  std::ofstream svg(path);
  svg << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 380\" "
         "font-family=\"sans-serif\" font-size=\"12\">\n"
         "<rect width=\"640\" height=\"380\" fill=\"#ffffff\"/>\n";
  for (int decade = -2; decade <= 1; ++decade) {
    const double at = y(std::pow(10, decade));
    svg << "<line x1=\"" << left << "\" x2=\"" << left + width << "\" y1=\"" << at << "\" y2=\""
        << at << "\" stroke=\"#dddddd\"/><text x=\"" << left - 8 << "\" y=\"" << at + 4
        << "\" text-anchor=\"end\">1e" << decade << "</text>\n";
  }
  for (int step = 0; step <= kSteps; step += 50)
    svg << "<text x=\"" << x(step) << "\" y=\"" << top + height + 18 << "\" text-anchor=\"middle\">"
        << step << "</text>\n";
  svg << "<text x=\"" << left + width / 2 << "\" y=\"" << top + height + 38
      << "\" text-anchor=\"middle\">step of gradient descent</text>\n"
         "<text x=\"16\" y=\""
      << top + height / 2 << "\" text-anchor=\"middle\" transform=\"rotate(-90 16 "
      << top + height / 2 << ")\">mean squared error / variance</text>\n";
  constexpr const char *colors[] = {"#b3452c", "#1f6fb2", "#5a8f29"};
  for (size_t i = 0; i < descents.size(); ++i) {
    svg << "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"" << colors[i] << "\" points=\"";
    for (size_t step = 0; step < descents[i].losses.size(); ++step)
      svg << x(static_cast<double>(step)) << "," << y(descents[i].losses[step]) << " ";
    char rate[32];
    std::snprintf(rate, sizeof rate, "%.0e", descents[i].rate);
    svg << "\"/>\n<text x=\"" << left + width - 8 << "\" y=\"" << y(descents[i].losses.back()) - 8
        << "\" text-anchor=\"end\" fill=\"" << colors[i] << "\">" << descents[i].name << ", rate "
        << rate << "</text>\n";
  }
  svg << "</svg>\n";
  svg.close();
  return bool(svg);
}

} // namespace

int main(int argc, char **argv) try {
  const nf::Engine engine;
  Table table = drawTable();
  Statistics s;
  takePopulation(engine, kSpec, table, {s.count.data(), s.mean.data(), s.squares.data()},
                 {s.movingMean.data(), s.movingVariance.data()});
  const std::vector<float> standardized =
      scaleBy(engine, kSpec, table, s.movingMean, s.movingVariance);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::array<float, kColumns> minimum, maximum; // of nothing yet
  minimum.fill(kInfinity);
  maximum.fill(-kInfinity);
  takePopulation(engine, kRangeSpec, table, {minimum.data(), maximum.data()});
  const std::vector<float> scaled = scaleBy(engine, kRangeSpec, table, minimum, maximum);

  bool isRight = true;
  std::printf("%-12s %12s %12s %18s %18s\n", "column", "mean", "deviation", "mean after",
              "deviation after");
  for (size_t c = 0; c < kColumns; ++c) {
    double mean = 0, squares = 0;
    for (size_t row = 0; row < kRows; ++row)
      mean += static_cast<double>(standardized[row * kColumns + c]) / kRows;
    for (size_t row = 0; row < kRows; ++row) {
      const double centered = static_cast<double>(standardized[row * kColumns + c]) - mean;
      squares += centered * centered;
    }
    const double deviation = std::sqrt(squares / (kRows - 1));
    std::printf("%-12s %12.6g %12.6g %18.1e %18.6f\n", kNames[c], s.mean[c],
                std::sqrt(s.squares[c] / (s.count[c] - 1)), mean, deviation);
    isRight = isRight && std::abs(mean) < 1e-5 && std::abs(deviation - 1) < 1e-5;
  }

  std::printf("\n%-12s %12s %12s %18s %18s\n", "column", "least", "greatest", "least after",
              "greatest after");
  for (size_t c = 0; c < kColumns; ++c) {
    float least = kInfinity, greatest = -kInfinity;
    for (size_t row = 0; row < kRows; ++row) {
      least = std::min(least, scaled[row * kColumns + c]);
      greatest = std::max(greatest, scaled[row * kColumns + c]);
    }
    std::printf("%-12s %12.6g %12.6g %18g %18g\n", kNames[c], static_cast<double>(minimum[c]),
                static_cast<double>(maximum[c]), static_cast<double>(least),
                static_cast<double>(greatest));
    isRight = isRight && least == 0 && greatest == 1; // exactly
  }

  const std::vector<Descent> descents = {bestDescent("raw", table.values, table.prices),
                                         bestDescent("standardized", standardized, table.prices),
                                         bestDescent("scaled to 0..1", scaled, table.prices)};
  std::printf("\n%-14s %8s %22s\n", "descent on", "rate", "error after steps 50, 200");
  for (const Descent &of : descents)
    std::printf("%-14s %8.0e %14.4f %10.4f\n", of.name, of.rate, of.losses[50], of.losses.back());
  for (const size_t after : {size_t(1), size_t(2)})
    isRight = isRight && descents[after].losses.back() < descents[0].losses.back();
  if (argc > 1 && !draw(argv[1], descents)) {
    std::fprintf(stderr, "error: %s cannot be written\n", argv[1]);
    return 1;
  }
  return isRight ? 0 : 1;
} catch (const nf::Error &error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
