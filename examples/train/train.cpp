// Trains two deep networks with and without batch normalization, whose normalization runs the
// training, backward, update and population kernels of Normforge; everything else is plain C++.
//
//   train            tables of all runs (some minutes)
//   train FOLDER     the same, and their pictures: train_loss.svg, train_gradients.svg
//   train --check    the first 50 steps beside the same networks in f64, alone
#include "Network.h"
#include "Pictures.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

namespace {

using namespace train;

constexpr uint64_t kDataSeed = 11, kTestSeed = 12, kWeightsSeed = 2;
constexpr double kFactors[] = {1, 10, 100}, kScales[] = {0.3, 1, 3};
constexpr Place kPlaces[] = {Place::None, Place::Before, Place::After};
constexpr Net kNets[] = {Net::Dense, Net::Convolutional};

const Samples &dataOf(Net net) {
  static const Samples samples[] = {drawSamples(Net::Dense, 1536, kDataSeed),
                                    drawSamples(Net::Convolutional, 1024, kDataSeed)};
  return samples[static_cast<size_t>(net)];
}
const Samples &testOf(Net net) {
  static const Samples samples[] = {drawSamples(Net::Dense, 768, kTestSeed),
                                    drawSamples(Net::Convolutional, 512, kTestSeed)};
  return samples[static_cast<size_t>(net)];
}

template <typename Real>
Network<Real> makeKernels(const nf::Engine &engine, const Configuration &of) {
  return Network<Real>(
      of, dataOf(of.net), kWeightsSeed, [&](Shape shape) -> std::unique_ptr<Activation<Real>> {
        if (of.place == Place::None)
          return std::make_unique<Relu<Real>>();
        return std::make_unique<KernelNormalization<Real>>(engine, shape, of.place, of.optimizer);
      });
}
Network<double> makePlain(const Configuration &of) {
  return Network<double>(
      of, dataOf(of.net), kWeightsSeed, [&](Shape shape) -> std::unique_ptr<Activation<double>> {
        if (of.place == Place::None)
          return std::make_unique<Relu<double>>();
        return std::make_unique<PlainNormalization>(shape, of.place, of.optimizer);
      });
}

/// Losses of networks with the kernels, of f64 and f32, beside plain ones in f64. In f32 training
/// amplifies roundings (a relu whose argument is near 0 takes the other branch), so that its first
/// steps alone can be held to a bound.
bool agree(const nf::Engine &engine) {
  constexpr int64_t kSteps = 50;
  constexpr size_t kFirst = 10;
  constexpr double kOfDouble = 1e-9, kOfSingle = 1e-3;
  bool isRight = true;
  std::printf("The first %d steps beside plain C++ in f64\n\n", static_cast<int>(kSteps));
  std::printf(
      "| network | normalization | optimizer | loss then | f64 kernels: largest difference | "
      "f32 kernels: of %d steps | of all |\n|---|---|---|---|---|---|---|\n",
      static_cast<int>(kFirst));
  for (const Net net : kNets)
    for (const Place place : {Place::Before, Place::After})
      for (const Optimizer optimizer : kOptimizers) {
        const Configuration of{.net = net, .place = place, .optimizer = optimizer, .steps = kSteps};
        Network<double> plain = makePlain(of), ofDouble = makeKernels<double>(engine, of);
        Network<float> ofSingle = makeKernels<float>(engine, of);
        const std::vector<double> expected = trainNetwork(plain, of, dataOf(net));
        auto largest = [&](const std::vector<double> &found, size_t steps) {
          double difference = 0;
          for (size_t i = 0; i < steps; ++i)
            if (const double own = std::abs(found[i] - expected[i]); !(own <= difference))
              difference = own; // no number neither
          return difference;
        };
        const double inDouble = largest(trainNetwork(ofDouble, of, dataOf(net)), kSteps);
        const std::vector<double> single = trainNetwork(ofSingle, of, dataOf(net));
        std::printf("| %s | %s | %s | %.6f | %.0e | %.0e | %.0e |\n",
                    kNetNames[static_cast<size_t>(net)], kPlaceNames[static_cast<size_t>(place)],
                    kOptimizerNames[static_cast<size_t>(optimizer)], expected.back(), inDouble,
                    largest(single, kFirst), largest(single, kSteps));
        isRight = isRight && inDouble < kOfDouble && largest(single, kFirst) < kOfSingle;
      }
  return isRight;
}

struct Outcome {
  std::vector<double> losses, norms;
  double accuracy = 0;
  double shifted = 0, ofBatch = 0, refreshed = 0; ///< of inputs that are shifted after training

  /// The mean of the last 20 losses; NaN where one is none.
  double loss() const {
    double sum = 0;
    for (size_t i = losses.size() - 20; i < losses.size(); ++i)
      sum += losses[i] / 20;
    return sum;
  }
};

Outcome run(const nf::Engine &engine, const Configuration &of) {
  Network<float> network = makeKernels<float>(engine, of);
  Outcome outcome;
  outcome.losses = trainNetwork(network, of, dataOf(of.net), &outcome.norms);
  auto accuracy = [&](const Samples &data, auto apply) {
    return network.accuracy(data, [&](Activation<float> &layer, const std::vector<float> &z) {
      return apply(layer, z, data.count);
    });
  };
  using Values = std::vector<float>;
  auto moving = [](Activation<float> &layer, const Values &z, int64_t n) {
    return layer.inference(z, n);
  };
  outcome.accuracy = accuracy(testOf(of.net), moving);
  Samples shifted = testOf(of.net);
  for (double &x : shifted.x)
    x = 1.5 * x + 1;
  outcome.shifted = accuracy(shifted, moving);
  outcome.ofBatch = accuracy(shifted, [](Activation<float> &layer, const Values &z, int64_t n) {
    return layer.ofBatch(z, n);
  });
  outcome.refreshed = accuracy(shifted, [](Activation<float> &layer, const Values &z, int64_t n) {
    layer.takePopulation(z, n);
    return layer.inference(z, n);
  });
  return outcome;
}

/// Runs all, two at once.
std::vector<Outcome> runAll(const nf::Engine &engine, const std::vector<Configuration> &all) {
  std::vector<Outcome> outcomes(all.size());
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  auto work = [&] {
    for (size_t i; (i = next++) < all.size();)
      try {
        outcomes[i] = run(engine, all[i]);
      } catch (...) {
        const std::lock_guard lock(mutex);
        failure = std::current_exception();
      }
  };
  std::thread other(work);
  work();
  other.join();
  if (failure)
    std::rethrow_exception(failure);
  return outcomes;
}

void printLoss(const Outcome &of) {
  if (std::isfinite(of.loss()))
    std::printf(" %.3g, %.0f %% |", of.loss(), 100 * of.accuracy);
  else
    std::printf(" diverges |");
}

int report(const nf::Engine &engine, const char *folder) {
  std::vector<Configuration> all;
  auto add = [&](Configuration of) {
    all.push_back(of);
    return all.size() - 1;
  };
  size_t rates[2][3][4][3], scales[2][3][3], dropouts[2][2][2]; // by net, place, and the rest
  for (size_t net = 0; net < 2; ++net)
    for (size_t place = 0; place < 3; ++place) {
      const Configuration base{.net = kNets[net], .place = kPlaces[place]};
      for (size_t o = 0; o < 4; ++o)
        for (size_t r = 0; r < 3; ++r) {
          Configuration of = base;
          of.optimizer = kOptimizers[o];
          of.rate = kFactors[r];
          rates[net][place][o][r] = add(of);
        }
      for (size_t s = 0; s < 3; ++s) {
        Configuration of = base;
        of.optimizer = Optimizer::Momentum;
        of.scale = kScales[s];
        scales[net][place][s] = add(of);
      }
      for (size_t d = 0; place < 2 && d < 2; ++d) {
        Configuration of = base;
        of.optimizer = Optimizer::Adam;
        of.dropout = d == 0 ? 0 : 0.2;
        of.steps = 600;
        dropouts[net][place][d] = add(of);
      }
    }
  const std::vector<Outcome> outcomes = runAll(engine, all);

  std::printf(
      "\nLoss (mean of the last 20 of 300 steps) and accuracy on other samples, by learning "
      "rate\n\n| network | optimizer | normalization | 1x | 10x | 100x |\n"
      "|---|---|---|---|---|---|\n");
  for (size_t net = 0; net < 2; ++net)
    for (size_t o = 0; o < 4; ++o)
      for (size_t place = 0; place < 3; ++place) {
        std::printf("| %s | %s, %g | %s |", kNetNames[net], kOptimizerNames[o], kRates[o],
                    kPlaceNames[place]);
        for (size_t r = 0; r < 3; ++r)
          printLoss(outcomes[rates[net][place][o][r]]);
        std::printf("\n");
      }
  std::printf("\nThe same by the scale of the initial weights (momentum, 0.01), and the norm of "
              "the first layer's gradient in the first step\n\n"
              "| network | normalization | 0.3x | 1x | 3x | gradient: 0.3x | 1x | 3x "
              "|\n|---|---|---|---|---|---|---|---|\n");
  for (size_t net = 0; net < 2; ++net)
    for (size_t place = 0; place < 3; ++place) {
      std::printf("| %s | %s |", kNetNames[net], kPlaceNames[place]);
      for (size_t s = 0; s < 3; ++s)
        printLoss(outcomes[scales[net][place][s]]);
      for (size_t s = 0; s < 3; ++s)
        std::printf(" %.1e |", outcomes[scales[net][place][s]].norms.front());
      std::printf("\n");
    }
  std::printf("\nDropout of 0.2 (adam, 600 steps): loss in training, accuracy on other samples\n\n"
              "| network | normalization | without | with |\n|---|---|---|---|\n");
  for (size_t net = 0; net < 2; ++net)
    for (size_t place = 0; place < 2; ++place) {
      std::printf("| %s | %s |", kNetNames[net], kPlaceNames[place]);
      for (size_t d = 0; d < 2; ++d)
        printLoss(outcomes[dropouts[net][place][d]]);
      std::printf("\n");
    }
  std::printf(
      "\nAccuracy after inputs shift to 1.5 x + 1 (adam, 600 steps, no dropout)\n\n"
      "| network | normalization | no shift | moving statistics | mode 2 | fresh population "
      "|\n|---|---|---|---|---|---|\n");
  for (size_t net = 0; net < 2; ++net)
    for (size_t place = 0; place < 2; ++place) {
      const Outcome &of = outcomes[dropouts[net][place][0]];
      std::printf("| %s | %s | %.0f %% | %.0f %% |", kNetNames[net], kPlaceNames[place],
                  100 * of.accuracy, 100 * of.shifted);
      if (place == 0)
        std::printf(" - | - |\n");
      else
        std::printf(" %.0f %% | %.0f %% |\n", 100 * of.ofBatch, 100 * of.refreshed);
    }
  if (!folder)
    return 0;

  std::vector<Panel> losses, gradients;
  for (size_t net = 0; net < 2; ++net) {
    for (size_t r = 0; r < 3; ++r) {
      char title[64];
      std::snprintf(title, sizeof title, "%s, sgd %g", kNetNames[net], kRates[0] * kFactors[r]);
      Panel &panel = losses.emplace_back(Panel{title, {}});
      for (size_t place = 0; place < 3; ++place)
        panel.lines.push_back(
            {kPlaceNames[place], smoothed(outcomes[rates[net][place][0][r]].losses)});
    }
    for (size_t s = 0; s < 3; ++s) {
      char title[64];
      std::snprintf(title, sizeof title, "%s, weights %gx", kNetNames[net], kScales[s]);
      Panel &panel = gradients.emplace_back(Panel{title, {}});
      for (size_t place = 0; place < 3; ++place)
        panel.lines.push_back({kPlaceNames[place], outcomes[scales[net][place][s]].norms});
    }
  }
  const std::string to = folder;
  if (drawPanels(to + "/train_loss.svg", losses, -3, 1, "loss", "step") &&
      drawPanels(to + "/train_gradients.svg", gradients, -6, 6,
                 "norm of the weights' gradient, first step", "layer"))
    return 0;
  std::fprintf(stderr, "error: pictures cannot be written to %s\n", folder);
  return 1;
}

} // namespace

int main(int argc, char **argv) try {
  const nf::Engine engine;
  const bool isRight = agree(engine);
  if (!isRight)
    std::fprintf(stderr, "error: the kernels' losses differ from those in f64\n");
  if (argc > 1 && std::strcmp(argv[1], "--check") == 0)
    return isRight ? 0 : 1;
  const int status = report(engine, argc > 1 ? argv[1] : nullptr);
  return isRight ? status : 1;
} catch (const nf::Error &error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
