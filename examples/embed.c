/* Embeds the JIT in C: compile a batch norm from text, plan it for a size, run it. */
#include "normforge/normforge.h"

#include <stdio.h>
#include <string.h>

static int failed(nf_status *status) {
  if (status)
    fprintf(stderr, "error: %s\n", nf_status_message(status));
  nf_status_free(status);
  return status != NULL;
}

int main(void) {
  const char *spec = "name: embedded\n"
                     "input: {shape: [N, 2, 2], layout: ncw, dtype: f32}\n"
                     "axis: c\n"
                     "epsilon: 0.5\n"
                     "phases: [inference]\n";
  float x[3][2][2] = {{{0, 1}, {2, 3}}, {{4, 5}, {6, 7}}, {{8, 9}, {10, 11}}}, y[3][2][2];
  float gamma[2] = {4, 2}, beta[2] = {1, -1}, mean[2] = {1, 3}, variance[2] = {3.5f, 0.5f};
  void *args[] = {x, gamma, beta, mean, variance, y}; /* the order of nf_kernel_argument_name */
  int64_t n = 3;
  nf_engine *engine = NULL;
  nf_kernel *kernel = NULL;
  nf_plan *plan = NULL;
  if (failed(nf_engine_create(NULL, &engine)) ||
      failed(nf_compile(engine, spec, strlen(spec), NULL, &kernel)) ||
      failed(nf_plan_create(kernel, &n, 1, &plan)) ||
      failed(nf_run(plan, args, 6, NULL, 0, NULL, NULL)))
    return 1;
  nf_plan_release(plan);
  nf_kernel_release(kernel);
  nf_engine_release(engine);

  printf("y[2] = %g %g / %g %g\n", y[2][0][0], y[2][0][1], y[2][1][0], y[2][1][1]);
  for (int i = 0; i < 12; ++i) { /* sqrt(v + epsilon) is 2, and 1 */
    int c = i / 2 % 2;
    float expected = c == 0 ? 2 * ((float)i - 1) + 1 : 2 * ((float)i - 3) - 1;
    float difference = (&y[0][0][0])[i] - expected;
    if (!(difference > -1e-4f && difference < 1e-4f)) {
      fprintf(stderr, "y[%d] is %g, expected %g\n", i, (&y[0][0][0])[i], expected);
      return 1;
    }
  }
  return 0;
}
