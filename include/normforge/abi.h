/* The kernel ABI: all that generated code, the runtime and a host agree on.
 *
 * A kernel is a sequence of stages. A stage is a function over a number of tasks that depends on
 * the sizes alone. Any thread may run any range of a stage's tasks, each task exactly once; all
 * tasks of a stage end before the next stage begins. Results are bitwise the same for every split
 * of the tasks and every number of threads.
 *
 * A stage function cannot fail, allocate, block, unwind or use thread-local storage. It is
 * reentrant, uses at most 16 KiB of stack, runs in the caller's rounding and flush mode without
 * changing it, and all its stores are visible when it returns. (Results in bf16 and f16 may be
 * rounded to the nearest in any mode, and denormal ones in bf16 be 0, as the CPU's instructions
 * have it.)
 */
#ifndef NORMFORGE_ABI_H
#define NORMFORGE_ABI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a field changes meaning; fields are only ever added at the end of a struct. */
#define NF_ABI_VERSION 1u

/* The alignment of nf_call.workspace, in bytes. */
#define NF_WORKSPACE_ALIGNMENT 64u

/* A run-time number (epsilon, momentum, step, ...). It is given as a double and rounded once by the
 * kernel to the type it computes in. */
typedef double nf_scalar;

typedef struct nf_call {
  /* sizeof(nf_call) of the caller. A kernel of this version reads the fields below; one that needs
   * a field of a later version is of a later NF_ABI_VERSION, which this one's runtime does not
   * load. nf_plan_check_call reads it. */
  uint32_t struct_size;
  uint32_t flags; /* 0 */
  /* Base pointers in the manifest's order, each aligned to its element, of bits to 2. Arguments do
   * not overlap, except for the in-place pairs that the manifest names, which may be the same
   * pointer. */
  void *const *args;
  const int64_t *sizes;     /* named sizes in the manifest's order, each at least 1 */
  const nf_scalar *scalars; /* run-time numbers in the manifest's order */
  void *workspace;          /* 64-byte aligned, contents undefined, one for each call in flight */
} nf_call;

/* Runs tasks first to last - 1 of a stage. */
typedef void nf_stage_fn(const nf_call *call, uint64_t first, uint64_t last);

#ifdef __cplusplus
}
#endif
#endif
