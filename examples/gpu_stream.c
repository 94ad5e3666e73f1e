/* A layer norm on a GPU, on a stream of the host's, in C.
 *
 * A program of CUDA's has cuda.h, cudaMalloc and cudaStreamCreate; this one, which is built without
 * a toolkit, takes the driver's functions from libcuda.so.1 itself. What is Normforge's begins at
 * nf_engine_create. */
#include "normforge/normforge.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef unsigned long long device_pointer;

/* The driver's functions that this program calls: each gives 0 for success. */
static struct {
  int (*init)(unsigned);
  int (*device_get)(int *, int);
  int (*context_create)(void **, unsigned, int);
  int (*allocate)(device_pointer *, size_t);
  int (*release)(device_pointer);
  int (*to_device)(device_pointer, const void *, size_t);
  int (*to_host)(void *, device_pointer, size_t);
  int (*stream_create)(void **, unsigned);
  int (*stream_synchronize)(void *);
} cuda;

static int open_driver(void) {
  static const char *const names[] = {"cuInit",          "cuDeviceGet",    "cuCtxCreate_v2",
                                      "cuMemAlloc_v2",   "cuMemFree_v2",   "cuMemcpyHtoD_v2",
                                      "cuMemcpyDtoH_v2", "cuStreamCreate", "cuStreamSynchronize"};
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  size_t i;
  if (!library)
    return 0;
  for (i = 0; i < sizeof names / sizeof *names; ++i) {
    void *function = dlsym(library, names[i]);
    if (!function)
      return 0;
    memcpy((char *)&cuda + i * sizeof function, &function, sizeof function);
  }
  return cuda.init(0) == 0;
}

/* Prints an error and frees it; 1 where there was one. */
static int failed(nf_status *status) {
  if (!status)
    return 0;
  fprintf(stderr, "error: %s\n", nf_status_message(status));
  nf_status_free(status);
  return 1;
}

enum { kRows = 16, kFeatures = 768 };

int main(void) {
  static const char spec[] = "name: rows\n"
                             "semantics: pytorch\n"
                             "input: {shape: [N, 768], layout: nc, dtype: f32}\n"
                             "mode: layer\n"
                             "axis: c\n"
                             "scale: false\n"
                             "center: false\n"
                             "phases: [inference]\n";
  static float x[kRows * kFeatures], y[kRows * kFeatures];
  nf_engine *engine = NULL;
  nf_device *device = NULL;
  nf_kernel *kernel = NULL;
  nf_plan *plan = NULL;
  nf_compile_options options = {0};
  const int64_t sizes[] = {kRows};
  void *context = NULL, *stream = NULL, *args[2], *workspace;
  device_pointer on_device[2], scratch = 0;
  int ordinal = 0, i, row, wrong = 0;

  if (!open_driver()) {
    printf("SKIP: there is no CUDA driver\n");
    return 0;
  }
  if (cuda.device_get(&ordinal, 0) || cuda.context_create(&context, 0, ordinal) ||
      cuda.stream_create(&stream, 0) || cuda.allocate(&on_device[0], sizeof x) ||
      cuda.allocate(&on_device[1], sizeof y)) {
    fprintf(stderr, "error: the GPU has no context, stream or memory for this\n");
    return 1;
  }
  for (i = 0; i < kRows * kFeatures; ++i)
    x[i] = (float)(i % 97) * 0.25F;
  cuda.to_device(on_device[0], x, sizeof x);

  if (failed(nf_engine_create(NULL, &engine)) ||
      failed(nf_device_open(engine, NF_CUDA, NULL, &device))) /* the current context */
    return 1;
  options.struct_size = sizeof options;
  options.cpu = nf_device_cpu(device);
  if (failed(nf_compile(engine, spec, strlen(spec), &options, &kernel)) ||
      failed(nf_kernel_prepare(kernel, device)) || failed(nf_plan_create(kernel, sizes, 1, &plan)))
    return 1;
  if (nf_plan_workspace_bytes(plan) > 0 &&
      cuda.allocate(&scratch, (size_t)nf_plan_workspace_bytes(plan))) {
    fprintf(stderr, "error: the GPU has no memory for a workspace\n");
    return 1;
  }
  args[0] = (void *)(uintptr_t)on_device[0];
  args[1] = (void *)(uintptr_t)on_device[1];
  workspace = (void *)(uintptr_t)scratch;
  if (failed(nf_enqueue(plan, device, args, 2, NULL, 0, workspace, stream)))
    return 1;
  if (cuda.stream_synchronize(stream) || cuda.to_host(y, on_device[1], sizeof y)) {
    fprintf(stderr, "error: the kernel failed\n");
    return 1;
  }

  for (row = 0; row < kRows; ++row) {
    double mean = 0, squares = 0;
    for (i = 0; i < kFeatures; ++i)
      mean += y[row * kFeatures + i] / (double)kFeatures;
    for (i = 0; i < kFeatures; ++i)
      squares += pow(y[row * kFeatures + i] - mean, 2) / (double)kFeatures;
    wrong += !(fabs(mean) < 1e-5) || !(fabs(squares - 1) < 1e-3);
  }
  printf("%s (%s): %d rows of %d, %d of them not of mean 0 and variance 1\n",
         nf_device_name(device), nf_device_cpu(device), kRows, kFeatures, wrong);
  nf_plan_release(plan);
  nf_kernel_release(kernel);
  nf_device_release(device);
  nf_engine_release(engine);
  cuda.release(on_device[0]);
  cuda.release(on_device[1]);
  return wrong != 0;
}
