/* Links kernels that were compiled ahead of time, and nothing else of Normforge:
 *
 *   normforge compile ahead.yaml --cpu x86-64-v2 --emit=obj,header -o ahead.o
 *   cc ahead.c ahead.o -lm
 */
#include "ahead.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Runs some tasks of a stage, as a thread of a pool would. */
static void run_range(nf_stage_fn *stage, const nf_call *call, uint64_t first, uint64_t last) {
  stage(call, first, last);
}

int main(void) {
  enum { C = 20, SIZE = 7 * 7 };
  int64_t n = 4;
  size_t count = (size_t)ahead_inference_bytes(ahead_inference_X, n) / sizeof(float), i;
  float *x = malloc(count * sizeof *x), *y = malloc(count * sizeof *y);
  float *z = malloc(count * sizeof *z);
  float gamma[C], beta[C], mean[C], variance[C], new_mean[C], new_variance[C], batch_mean[C],
      batch_variance[C];
  uint64_t bytes = ahead_training_workspace_bytes(n);
  char *memory = malloc((size_t)bytes + NF_WORKSPACE_ALIGNMENT);
  void *workspace;
  double largest = 0, off = 0;
  if (!x || !y || !z || !memory)
    return 1;
  workspace = memory + (NF_WORKSPACE_ALIGNMENT - (uintptr_t)memory % NF_WORKSPACE_ALIGNMENT);
  for (i = 0; i < C; ++i) {
    gamma[i] = 1 + (float)i;
    beta[i] = 0.5f;
    mean[i] = 0.25f * (float)i;
    variance[i] = 1 + (float)i;
  }
  for (i = 0; i < count; ++i)
    x[i] = (float)(i % 23) - 11;

  /* All of it on this thread. */
  ahead_inference(x, gamma, beta, mean, variance, y, n, NULL);
  for (i = 0; i < count; ++i) {
    size_t c = i / SIZE % C;
    double expected = (x[i] - mean[c]) / sqrt(variance[c] + 1e-3) * gamma[c] + beta[c];
    if (expected < 0)
      expected = 0;
    largest = fmax(largest, fabs(expected));
    off = fmax(off, fabs(y[i] - expected));
  }

  /* Training, its tasks handed out one range after the other: stages are the barriers. */
  {
    void *args[ahead_training_ARGUMENTS];
    nf_call call = {0};
    uint32_t stage;
    args[ahead_training_X] = x;
    args[ahead_training_GAMMA] = gamma;
    args[ahead_training_BETA] = beta;
    args[ahead_training_MOVING_MEAN] = mean;
    args[ahead_training_MOVING_VARIANCE] = variance;
    args[ahead_training_Y] = z;
    args[ahead_training_NEW_MOVING_MEAN] = new_mean;
    args[ahead_training_NEW_MOVING_VARIANCE] = new_variance;
    args[ahead_training_BATCH_MEAN] = batch_mean;
    args[ahead_training_BATCH_VARIANCE] = batch_variance;
    call.struct_size = sizeof call;
    call.args = args;
    call.sizes = &n;
    call.workspace = workspace;
    for (stage = 0; stage < ahead_training_stages(n); ++stage) {
      uint64_t tasks = ahead_training_tasks(stage, n);
      run_range(ahead_training_stage(stage, n), &call, 0, tasks / 2);
      run_range(ahead_training_stage(stage, n), &call, tasks / 2, tasks);
    }
  }
  for (i = 0; i < C; ++i) {
    double sum = 0;
    size_t b, k;
    for (b = 0; b < (size_t)n; ++b)
      for (k = 0; k < SIZE; ++k)
        sum += x[(b * C + i) * SIZE + k];
    off = fmax(off, fabs(sum / (double)(n * SIZE) - batch_mean[i]));
  }
  printf("off by at most %.2g of values up to %.2g\n", off, largest);
  free(x);
  free(y);
  free(z);
  free(memory);
  return off < 1e-4 * largest ? 0 : 1;
}
