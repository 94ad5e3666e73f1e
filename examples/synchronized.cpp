// Batch normalization of a batch that four processes share, each with samples of its own, as many
// as it happens to have. They exchange partial statistics and sums of gradients through MPI, and
// compute what one process with all samples does.
//
//   mpirun -n 4 example_synchronized
#include "normforge/normforge.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <mpi.h>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr size_t kChannels = 16, kPositions = 49;

const std::string kSpec = "name: shared\n"
                          "semantics: pytorch\n"
                          "input: {shape: [N, 16, 7, 7], layout: nchw}\n"
                          "axis: c\n"
                          "fuse: [relu]\n"
                          "phases: [training, backward]\n";

/// A layer's arrays by their names; old and new of a state are one.
class Layer {
public:
  Layer(const nf::Engine &engine, std::string spec, int64_t samples)
      : engine_(engine), spec_(std::move(spec)), samples_(samples) {
    set("gamma", std::vector<float>(kChannels, 1.5F));
    set("beta", std::vector<float>(kChannels, 0.25F));
    set("moving_mean", std::vector<float>(kChannels, 0));
    set("moving_variance", std::vector<float>(kChannels, 1));
  }
  void set(const std::string &name, const std::vector<float> &values) { arrays_[name] = values; }
  const std::vector<float> &get(const std::string &name) const { return arrays_.at(name); }

  void run(const char *phase) {
    const nf::Kernel kernel = engine_.compile(spec_, {.phase = phase, .cpu = {}, .sourceName = {}});
    const nf::Plan plan = kernel.plan({samples_});
    std::vector<void *> args;
    for (size_t i = 0; i < kernel.argumentCount(); ++i) {
      std::vector<float> &array = arrays_[std::string(kernel.argumentName(i))];
      array.resize(plan.bytes(i) / sizeof(float));
      args.push_back(array.data());
    }
    const nf::Workspace workspace = plan.makeWorkspace();
    plan.run(args, {}, workspace.get());
  }
  /// Runs a phase that makes what is exchanged, and replaces it by that of all ranks.
  void exchange(const char *phase, int ranks) {
    run(phase);
    const nf::Kernel kernel = engine_.compile(spec_, {.phase = phase, .cpu = {}, .sourceName = {}});
    const nf::Plan plan = kernel.plan({samples_});
    const nf_exchange of = plan.exchange();
    if (of.dtype != NF_F32) // as this spec has it
      throw nf::Error(NF_INTERNAL, "expected to exchange f32");
    const size_t elements = of.array_bytes / sizeof(float), own = of.arrays * elements;
    std::vector<float> sent, received(own * static_cast<size_t>(ranks)), merged(own);
    for (size_t i = 0; i < of.arrays; ++i) {
      const std::vector<float> &array = get(std::string(kernel.argumentName(of.argument + i)));
      sent.insert(sent.end(), array.begin(), array.end());
    }
    MPI_Allgather(sent.data(), static_cast<int>(own), MPI_FLOAT, received.data(),
                  static_cast<int>(own), MPI_FLOAT, MPI_COMM_WORLD);
    plan.merge(received.data(), static_cast<size_t>(ranks), merged.data());
    for (size_t i = 0; i < of.arrays; ++i)
      std::memcpy(arrays_[std::string(kernel.argumentName(of.argument + i))].data(),
                  merged.data() + i * elements, of.array_bytes);
  }

private:
  const nf::Engine &engine_;
  std::string spec_;
  int64_t samples_;
  std::map<std::string, std::vector<float>> arrays_;
};

double largestDifference(const float *a, const float *b, size_t count) {
  double largest = 0;
  for (size_t i = 0; i < count; ++i)
    if (const double own = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        !(own <= largest))
      largest = std::isnan(own) ? HUGE_VAL : own;
  return largest;
}

/// The whole of an array whose parts the ranks have.
std::vector<float> gathered(const std::vector<float> &part, int ranks) {
  std::vector<int> counts(static_cast<size_t>(ranks)), starts(counts.size(), 0);
  const int own = static_cast<int>(part.size());
  MPI_Allgather(&own, 1, MPI_INT, counts.data(), 1, MPI_INT, MPI_COMM_WORLD);
  for (size_t i = 1; i < counts.size(); ++i)
    starts[i] = starts[i - 1] + counts[i - 1];
  std::vector<float> whole(static_cast<size_t>(starts.back() + counts.back()));
  MPI_Allgatherv(part.data(), own, MPI_FLOAT, whole.data(), counts.data(), starts.data(), MPI_FLOAT,
                 MPI_COMM_WORLD);
  return whole;
}

int compare(int rank, int ranks) {
  // Rank r has 3, 5, 7, ... samples.
  const auto samplesOf = [](int of) { return static_cast<size_t>(3 + 2 * of); };
  constexpr size_t kSample = kChannels * kPositions;
  size_t first = 0, all = 0;
  for (int i = 0; i < ranks; ++i) {
    first += i < rank ? samplesOf(i) : 0;
    all += samplesOf(i);
  }
  std::mt19937 engine(5);
  std::normal_distribution<float> normal(20, 3); // far from 0 beside its deviation
  std::vector<float> x(all * kSample), dy(all * kSample);
  for (float &value : x)
    value = normal(engine);
  for (float &value : dy)
    value = normal(engine) - 20;
  auto part = [&](const std::vector<float> &whole) {
    const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(first * kSample);
    return std::vector<float>(begin,
                              begin + static_cast<std::ptrdiff_t>(samplesOf(rank) * kSample));
  };

  const nf::Engine normforge;
  auto train = [&] {
    Layer layer(normforge, kSpec + "synchronized: true\n", static_cast<int64_t>(samplesOf(rank)));
    layer.set("x", part(x));
    layer.set("dy", part(dy));
    layer.exchange("moments", ranks);
    layer.run("training");
    layer.exchange("gradient_sums", ranks);
    layer.run("backward");
    return layer;
  };
  const Layer ours = train(), again = train();
  Layer whole(normforge, kSpec, static_cast<int64_t>(all));
  whole.set("x", x);
  whole.set("dy", dy);
  whole.run("training");
  whole.run("backward");

  bool isRight = true;
  auto report = [&](const char *name, const std::vector<float> &found) {
    const std::vector<float> &expected = whole.get(name);
    const double difference = found.size() == expected.size()
                                  ? largestDifference(found.data(), expected.data(), found.size())
                                  : HUGE_VAL;
    double largest = 0;
    for (const float value : expected)
      largest = std::max(largest, std::abs(static_cast<double>(value)));
    if (rank == 0)
      std::printf("%-16s largest %9.4f, differs by at most %.1e\n", name, largest, difference);
    isRight = isRight && difference <= 1e-5 * largest;
  };
  report("y", gathered(ours.get("y"), ranks));
  report("dx", gathered(ours.get("dx"), ranks));
  for (const char *name : {"moving_mean", "moving_variance", "batch_mean", "batch_variance"})
    report(name, ours.get(name));
  for (const char *name : {"dgamma", "dbeta"}) { // of the rank's samples: as all gradients, a sum
    std::vector<float> sum(kChannels);
    MPI_Allreduce(ours.get(name).data(), sum.data(), static_cast<int>(kChannels), MPI_FLOAT,
                  MPI_SUM, MPI_COMM_WORLD);
    report(name, sum);
  }
  // The same bits on every rank, and in another run.
  for (const char *name : {"moving_mean", "moving_variance", "batch_mean", "batch_variance",
                           "partial_mean", "partial_squares", "partial_product"}) {
    const std::vector<float> of = gathered(ours.get(name), ranks);
    for (size_t i = kChannels; i < of.size(); i += kChannels)
      isRight = isRight && std::memcmp(of.data(), of.data() + i, kChannels * sizeof(float)) == 0;
  }
  for (const char *name : {"y", "dx", "moving_mean", "moving_variance"})
    isRight = isRight && std::memcmp(ours.get(name).data(), again.get(name).data(),
                                     ours.get(name).size() * sizeof(float)) == 0;
  int right = isRight, allRight = 0;
  MPI_Allreduce(&right, &allRight, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  if (rank == 0)
    std::printf("%zu samples on %d ranks: %s\n", all, ranks,
                allRight ? "as one rank has it, the same bits on all and again" : "DIFFERENT");
  return allRight ? 0 : 1;
}

} // namespace

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, ranks = 0, status = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  try {
    status = compare(rank, ranks);
  } catch (const nf::Error &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return status;
}
