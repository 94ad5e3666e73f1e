/* The interface of the preloaded library Shim.c, by which a test makes the n-th allocation, or the
 * n-th call of the operating system, fail. Counted over the whole process; one plan at a time. */
#ifndef NORMFORGE_TESTS_FAULTS_SHIM_H
#define NORMFORGE_TESTS_FAULTS_SHIM_H

#ifdef __cplusplus
extern "C" {
#endif

enum shim_kind {
  SHIM_ALLOCATION = 1, /* malloc and its family: NULL */
  SHIM_SYSTEM = 2,     /* open, read, write, rename, mmap, mprotect, ...: -1 and an errno */
  SHIM_SHORT = 3,      /* read and write alone: half of what was asked for */
  SHIM_KILL = 4        /* before a call of the operating system: SIGKILL */
};

/* From now on the `at`-th call (from 1) of a kind fails with `error`; with `forever` also all that
 * come after it. `at` 0: none fails, calls are counted. */
void shim_arm(int kind, long at, int forever, int error);
/* No call fails any more. Gives the number of calls that did. */
long shim_disarm(void);
/* Calls of the kind since shim_arm. */
long shim_calls(void);
/* Blocks allocated and not freed since shim_arm. */
long shim_live(void);
/* Mappings asked for since the process began that are writable and executable at once, and changes
 * of protection to that. */
long shim_writable_code(void);

#ifdef __cplusplus
}
#endif
#endif
