/* normforge/openmp.h's executor as a symbol, for hosts that cannot compile C: bench/peers. */
#include "normforge/openmp.h"

/* nf_executor.parallel_for, with the number of threads as its user. */
__attribute__((visibility("default"))) void nf_bench_parallel_for(void *user, uint64_t tasks,
                                                                  nf_body_fn *body, void *data) {
  nf_openmp_parallel_for(user, tasks, body, data);
}
