/* An nf_executor of OpenMP's threads, for C and C++. Compile with -fopenmp.
 *
 *   nf_executor executor = nf_openmp_executor(4);
 *   nf_run(plan, args, 6, NULL, 0, workspace, &executor);
 */
#ifndef NORMFORGE_OPENMP_H
#define NORMFORGE_OPENMP_H

#ifndef _OPENMP
#error "normforge/openmp.h needs OpenMP: compile with -fopenmp"
#endif

#include "normforge/normforge.h"

#include <omp.h>
#include <string.h>

/* Splits the tasks into one contiguous range a thread, so that a thread finds in its cache what it
 * wrote in the stage before. With one thread it opens no parallel region: OpenMP's other threads
 * would spin after it. */
static inline void nf_openmp_parallel_for(void *user, uint64_t tasks, nf_body_fn *body,
                                          void *data) {
  intptr_t wanted = (intptr_t)user;
  int threads = wanted > 0 ? (int)wanted : omp_get_max_threads();
  if ((uint64_t)threads > tasks)
    threads = (int)tasks;
  if (threads <= 1) {
    if (tasks > 0)
      body(data, 0, tasks);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    uint64_t count = (uint64_t)omp_get_num_threads(); /* may be fewer than asked for */
    uint64_t index = (uint64_t)omp_get_thread_num();
    uint64_t each = tasks / count, more = tasks % count;
    uint64_t first = index * each + (index < more ? index : more);
    uint64_t last = first + each + (index < more ? 1 : 0);
    if (first < last)
      body(data, first, last);
  }
}

/* An executor of `threads` threads; 0 and less: as many as OpenMP would take. More than four for
 * each processor would only wait for each other: they are not made. Owns nothing. */
static inline nf_executor nf_openmp_executor(int threads) {
  nf_executor executor;
  int most = 4 * omp_get_num_procs();
  memset(&executor, 0, sizeof executor); /* fields of later versions */
  executor.struct_size = sizeof executor;
  executor.parallel_for = nf_openmp_parallel_for;
  executor.user = (void *)(intptr_t)(threads <= 0 ? 0 : threads < most ? threads : most);
  return executor;
}

#endif
