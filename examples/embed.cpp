// Embeds the JIT in C++: compile a batch norm's training phase from text, run it on four threads.
#include "normforge/normforge.hpp"
#include "normforge/openmp.h"

#include <cmath>
#include <cstdio>

int main() try {
  nf::Engine engine;
  nf::Kernel kernel = engine.compile("name: embedded\n"
                                     "input: {shape: [N, 64, 32, 32], layout: nchw, dtype: f32}\n"
                                     "axis: c\n"
                                     "phases: [training]\n");
  nf::Plan plan = kernel.plan({4});

  std::vector<std::vector<float>> arrays; // by the manifest: x, gamma, ..., batch_variance
  std::vector<void *> args;
  for (size_t i = 0; i < kernel.argumentCount(); ++i)
    args.push_back(arrays.emplace_back(plan.bytes(i) / sizeof(float), 1.0f).data());
  for (size_t i = 0; i < arrays[0].size(); ++i)
    arrays[0][i] = static_cast<float>(i % 2); // mean 0.5, variance 0.25

  nf_executor executor = nf_openmp_executor(4);
  nf::Workspace workspace = plan.makeWorkspace();
  plan.run(args, {}, workspace.get(), &executor);

  float mean = arrays[kernel.findArgument("batch_mean", true)][63];
  float y = arrays[kernel.findArgument("y", true)][1]; // gamma = beta = 1, epsilon 1e-3
  float expected = 1 + 0.5f / std::sqrt(0.25f + 1e-3f);
  std::printf("batch_mean[63] = %g, y[1] = %g\n", mean, y);
  return std::abs(mean - 0.5f) < 1e-6f && std::abs(y - expected) < 1e-5f ? 0 : 1;
} catch (const nf::Error &error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
