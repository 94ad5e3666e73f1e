// A small inference runtime: runs the normalization layers of ResNet-50, and one that nobody knew
// of, on tensors of its own. Kernels come from a pack; what is not in it is compiled.
//
//   normforge pack specs/resnet50 --cpu x86-64-v2,x86-64-v3,x86-64-v4 -o resnet50.nfk
//   network resnet50.nfk
#include "normforge/normforge.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

/// An array of the runtime's own: aligned memory and a shape, channels second.
class Tensor {
public:
  explicit Tensor(std::vector<int64_t> shape) : shape_(std::move(shape)) {
    data_.resize(static_cast<size_t>(count()));
  }
  int64_t count() const {
    int64_t product = 1;
    for (const int64_t size : shape_)
      product *= size;
    return product;
  }
  const std::vector<int64_t> &shape() const { return shape_; }
  float *data() { return data_.data(); }
  const float *data() const { return data_.data(); }

private:
  std::vector<int64_t> shape_;
  std::vector<float> data_;
};

/// A batch norm, and whether a ReLU follows.
struct Layer {
  std::string name;
  int64_t channels, height, width;
  bool relu;
  std::vector<float> gamma, beta, mean, variance;
};

/// Owns kernels by layer and plans by batch size.
class Runtime {
public:
  Runtime(nf::Engine engine, const std::string &packPath)
      : engine_(std::move(engine)), pack_(engine_.openPack(packPath)) {}

  /// y = layer(x), in place.
  void run(const Layer &layer, Tensor &x) {
    const nf::Plan &plan = planOf(layer, x);
    auto *in = const_cast<Layer *>(&layer); // read only, though the pointers are void *
    void *args[] = {x.data(),        in->gamma.data(),    in->beta.data(),
                    in->mean.data(), in->variance.data(), x.data()};
    plan.run(args);
  }
  int packed() const { return packed_; }
  int compiled() const { return compiled_; }

private:
  const nf::Plan &planOf(const Layer &layer, const Tensor &x) {
    const std::pair<std::string, std::vector<int64_t>> key(layer.name, x.shape());
    const auto found = plans_.find(key);
    if (found != plans_.end())
      return found->second;
    if (auto kernel = pack_.find(layer.name)) {
      // A pack of an older network may have other shapes under this name.
      const nf::Plan plan = kernel->plan({x.shape()[0]});
      const auto shape = plan.shape(0);
      if (std::equal(shape.begin(), shape.end(), x.shape().begin(), x.shape().end())) {
        ++packed_;
        return plans_.emplace(key, plan).first->second;
      }
    }
    const auto &s = x.shape();
    const std::string spec = "input: {shape: [N, " + std::to_string(s[1]) + ", " +
                             std::to_string(s[2]) + ", " + std::to_string(s[3]) +
                             "], layout: nchw, dtype: f32}\naxis: c\nepsilon: 1.001e-5\nfuse: " +
                             (layer.relu ? "[relu]" : "[]") + "\n";
    nf::Engine::CompileOptions options;
    options.sourceName = layer.name;
    const nf::Plan plan = engine_.compile(spec, options).plan({s[0]});
    ++compiled_;
    return plans_.emplace(key, plan).first->second;
  }

  nf::Engine engine_;
  nf::Pack pack_;
  std::map<std::pair<std::string, std::vector<int64_t>>, nf::Plan> plans_;
  int packed_ = 0, compiled_ = 0;
};

/// The layers of ResNet-50 that specs/resnet50 has, and one that it has not.
std::vector<Layer> network() {
  std::vector<Layer> layers = {{"resnet50_conv1_bn", 64, 112, 112, true, {}, {}, {}, {}}};
  const struct {
    int block;
    int64_t inner, outer, size;
  } stages[] = {{2, 64, 256, 56}, {3, 128, 512, 28}, {4, 256, 1024, 14}, {5, 512, 2048, 7}};
  for (const auto &stage : stages) {
    const std::string block = "resnet50_conv" + std::to_string(stage.block) + "_block1_";
    layers.push_back({block + "0_bn", stage.outer, stage.size, stage.size, false, {}, {}, {}, {}});
    layers.push_back({block + "1_bn", stage.inner, stage.size, stage.size, true, {}, {}, {}, {}});
  }
  layers.push_back({"somebodys_own_bn", 37, 9, 11, false, {}, {}, {}, {}});
  std::mt19937 random(7);
  std::uniform_real_distribution<float> positive(0.5f, 2.0f), any(-1.0f, 1.0f);
  for (Layer &layer : layers)
    for (int64_t c = 0; c < layer.channels; ++c) {
      layer.gamma.push_back(positive(random));
      layer.beta.push_back(any(random));
      layer.mean.push_back(any(random));
      layer.variance.push_back(positive(random));
    }
  return layers;
}

double expectedAt(const Layer &layer, const Tensor &x, int64_t i) {
  const auto c = static_cast<size_t>(i / (layer.height * layer.width) % layer.channels);
  const double y =
      (x.data()[i] - layer.mean[c]) / std::sqrt(layer.variance[c] + 1.001e-5) * layer.gamma[c] +
      layer.beta[c];
  return layer.relu && y < 0 ? 0 : y;
}

} // namespace

int main(int argc, char **argv) try {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: network PACK [COMPILER-LIBRARY]\n");
    return 2;
  }
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  nf::Engine::Options options;
  if (argc == 3)
    options.compilerLibrary = argv[2];
  Runtime runtime(nf::Engine(options), argv[1]);
  const std::vector<Layer> layers = network();
  double worst = 0;
  for (const int64_t batch : {1, 3})
    for (const Layer &layer : layers) {
      Tensor x({batch, layer.channels, layer.height, layer.width});
      for (int64_t i = 0; i < x.count(); ++i)
        x.data()[i] = static_cast<float>(i * 31 % 61) * 0.1f - 3;
      const Tensor before = x;
      try {
        runtime.run(layer, x);
      } catch (const nf::Error &error) {
        // A host without the compiler runs what is in its packs, and says what is not.
        if (error.code() != NF_NO_COMPILER || layer.name != "somebodys_own_bn")
          throw;
        std::printf("%s: not in the pack, and there is no compiler\n", layer.name.c_str());
        continue;
      }
      for (int64_t i = 0; i < x.count(); i += 1 + x.count() / 997)
        worst = std::max(worst, std::abs(x.data()[i] - expectedAt(layer, before, i)));
    }
  const std::chrono::duration<double, std::milli> took = Clock::now() - start;
  std::printf("%d kernels from the pack, %d compiled, off by at most %.2g, %.1f ms\n",
              runtime.packed(), runtime.compiled(), worst, took.count());
  return worst < 1e-4 && runtime.packed() >= 9 ? 0 : 1;
} catch (const std::exception &error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
