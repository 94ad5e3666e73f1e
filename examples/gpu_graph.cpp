// Batch norm of a training step on a GPU, within a CUDA graph that is replayed, in C++.
//
// As gpu_stream.c, this is built without a toolkit; a program of CUDA's has cudaStreamBeginCapture
// and so on. Kernels are prepared before the capture; then nf::Plan::enqueue makes launches part of
// the graph, as any kernel's.
#include "normforge/normforge.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <dlfcn.h>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

/// The driver's functions by name.
class Driver {
public:
  Driver() : library_(dlopen("libcuda.so.1", RTLD_NOW)) {}
  bool isThere() const { return library_ && call(std::nothrow, "cuInit", 0U) == 0; }
  template <typename... Arguments>
  int call(std::nothrow_t, const char *name, Arguments... arguments) const {
    auto *function = reinterpret_cast<int (*)(Arguments...)>(dlsym(library_, name));
    return function ? function(arguments...) : -1;
  }
  template <typename... Arguments> void call(const char *name, Arguments... arguments) const {
    if (const int error = call(std::nothrow, name, arguments...))
      throw std::runtime_error(std::string(name) + ": error " + std::to_string(error));
  }

private:
  void *library_;
};

/// An array on the device.
class Array {
public:
  Array(const Driver &driver, uint64_t bytes) : driver_(driver), bytes_(bytes) {
    driver.call("cuMemAlloc_v2", &pointer_, static_cast<size_t>(bytes));
  }
  ~Array() { driver_.call(std::nothrow, "cuMemFree_v2", pointer_); }
  Array(const Array &) = delete;
  Array &operator=(const Array &) = delete;
  void *data() const { return reinterpret_cast<void *>(static_cast<uintptr_t>(pointer_)); }
  void write(const std::vector<float> &values) {
    driver_.call("cuMemcpyHtoD_v2", pointer_, static_cast<const void *>(values.data()),
                 static_cast<size_t>(bytes_));
  }
  std::vector<float> read() const {
    std::vector<float> values(bytes_ / sizeof(float));
    driver_.call("cuMemcpyDtoH_v2", static_cast<void *>(values.data()), pointer_,
                 static_cast<size_t>(bytes_));
    return values;
  }

private:
  const Driver &driver_;
  uint64_t bytes_;
  unsigned long long pointer_ = 0;
};

constexpr int kBatch = 8, kReplays = 3;
constexpr size_t kChannels = 32;

int run(const Driver &driver) {
  int ordinal = 0;
  void *context = nullptr, *stream = nullptr;
  driver.call("cuDeviceGet", &ordinal, 0);
  driver.call("cuCtxCreate_v2", &context, 0U, ordinal);
  driver.call("cuStreamCreate", &stream, 0U);

  const nf::Engine engine;
  const nf::Device device = engine.cuda();
  nf::Engine::CompileOptions options;
  options.phase = "training";
  options.cpu = device.cpu();
  const nf::Kernel kernel = engine.compile("name: bn\n"
                                           "semantics: pytorch\n"
                                           "input: {shape: [N, 14, 14, 32], layout: nhwc}\n"
                                           "axis: c\n"
                                           "momentum: 0.5\n"
                                           "phases: [training]\n",
                                           options);
  kernel.prepare(device);
  const nf::Plan plan = kernel.plan({kBatch});

  // One buffer an array; a state's new value is written over the old one.
  std::map<std::string, Array> arrays;
  std::vector<void *> arguments;
  for (size_t i = 0; i < kernel.argumentCount(); ++i) {
    const std::string name(kernel.argumentName(i));
    const auto [array, isNew] = arrays.try_emplace(name, driver, plan.bytes(i));
    if (isNew)
      array->second.write(std::vector<float>(plan.bytes(i) / sizeof(float),
                                             name == "gamma" || name == "moving_variance" ? 1 : 0));
    arguments.push_back(array->second.data());
  }
  std::vector<float> x(kBatch * 14 * 14 * kChannels);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = 3 + static_cast<float>(i / kChannels % 2); // mean 3.5 in every channel
  arrays.at("x").write(x);
  const Array workspace(driver, plan.workspaceBytes() + 1);

  void *graph = nullptr, *ready = nullptr;
  driver.call("cuStreamBeginCapture_v2", stream, 0);
  plan.enqueue(device, arguments, {}, workspace.data(), stream);
  driver.call("cuStreamEndCapture", stream, &graph);
  driver.call("cuGraphInstantiateWithFlags", &ready, graph, 0ULL);
  for (int i = 0; i < kReplays; ++i)
    driver.call("cuGraphLaunch", ready, stream);
  driver.call("cuStreamSynchronize", stream);

  // Each replay moves the mean half the way.
  const double expected = 3.5 * (1 - std::pow(0.5, kReplays));
  int wrong = 0;
  for (float mean : arrays.at("moving_mean").read())
    wrong += !(std::abs(mean - expected) < 1e-5);
  std::printf("%s: after %d replays %d of %zu moving means are not %g\n",
              std::string(device.name()).c_str(), kReplays, wrong, kChannels, expected);
  driver.call("cuGraphExecDestroy", ready);
  driver.call("cuGraphDestroy", graph);
  return wrong != 0;
}

} // namespace

int main() try {
  const Driver driver;
  if (!driver.isThere()) {
    std::printf("SKIP: there is no CUDA driver\n");
    return 0;
  }
  return run(driver);
} catch (const std::exception &error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
