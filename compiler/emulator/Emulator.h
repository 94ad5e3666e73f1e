// The threads of a GPU's group, as fibers of the thread that calls.
//
// Enters: the function of one task and one thread. The code of kernels calls what is here by
// address, for it calls nothing by name; such code is of this process alone.
//
// Subgroups run one after the other, each to its next barrier; the threads of one in turn, each to
// its next exchange with others of it. Both orders change from task to task, so that nothing
// depends on who comes first. Shared memory is NaN when a task begins, and each access of it is
// watched: what another thread has written or read since the last barrier is a race, in whatever
// order they ran.
//
// Errors end the process with a message that names the task and the thread: an exchange with a
// thread of another subgroup, by some threads alone, or a barrier that some threads pass; races;
// accesses outside of shared memory, and loads of what was not written.
#pragma once

#include "normforge/abi.h"

#include <cstdint>

namespace normforge::emulator {

using ThreadFunction = void(const nf_call *call, uint64_t task, uint64_t thread);

/// What a group is.
struct Launch {
  int64_t threads = 0;     ///< a power of two
  int64_t subgroup = 0;    ///< threads that run together, and exchange values
  int64_t sharedBytes = 0; ///< memory of the group's own
};

/// Runs all threads of each task from `first` to `last` - 1; what follows is Launch's.
void runTasks(ThreadFunction *function, const nf_call *call, uint64_t first, uint64_t last,
              uint64_t threads, uint64_t subgroup, uint64_t sharedBytes);

// For the threads that runTasks runs:

/// The bits that thread (own number) xor `distance` of the group gives, of `width` neighbors, a
/// power of two, who all come to it.
uint64_t exchange(uint64_t bits, uint64_t distance, uint64_t width);
/// Waits for all threads of the group.
void barrier();
/// The group's memory, aligned to 16 bytes.
void *sharedMemory();
/// Comes before the thread loads (`isStore` 0) or stores `bytes` bytes of shared memory, a multiple
/// of 4.
void access(const void *at, uint64_t bytes, uint64_t isStore);

} // namespace normforge::emulator
