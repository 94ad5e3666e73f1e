// A program whose kernels a debugger shall find.
#include "normforge/normforge.hpp"

#include <cstdio>
#include <exception>

int main() try {
  nf::Engine::Options options;
  options.cacheDirectory = "";
  options.debugger = true;
  const nf::Kernel kernel = nf::Engine(options).compile(
      "name: debugged\ninput: {shape: [N, 2, 2], layout: ncw}\naxis: c\n");
  float x[4] = {1, 2, 3, 4}, gamma[2] = {1, 1}, beta[2] = {}, mean[2] = {}, variance[2] = {1, 1};
  float y[4];
  void *args[] = {x, gamma, beta, mean, variance, y};
  kernel.plan({1}).run(args);
  return y[3] > 3.9f ? 0 : 1;
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
