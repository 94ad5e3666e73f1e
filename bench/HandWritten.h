// Batch normalization as one would write it by hand: intrinsics, one channel a task, statistics in
// two passes.
//
// A floor for generated code, not a ceiling: what a good engineer writes in an afternoon for one
// layout. f32, AVX-512; the variance is the second pass's alone (no correction of the mean).
#pragma once

#include <cstdint>

namespace normforge::bench {

struct HandWrittenProblem {
  int64_t n = 1, channels = 1, pixels = 1;
  const float *x = nullptr, *gamma = nullptr, *beta = nullptr; ///< gamma, beta: null for 1 and 0
  const float *mean = nullptr, *variance = nullptr;            ///< of inference
  float *y = nullptr;
  float epsilon = 0;
  bool relu = false;
  bool streams = false; ///< y past the caches
  int threads = 1;
};

/// Whether this machine can run them.
bool canRunHandWritten();

void inferenceNchw(const HandWrittenProblem &p);
void trainingNchw(const HandWrittenProblem &p);
void inferenceNhwc(const HandWrittenProblem &p);
/// `workspace`: (threads + 3) * channels floats.
void trainingNhwc(const HandWrittenProblem &p, float *workspace);

} // namespace normforge::bench
