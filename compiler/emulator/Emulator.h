// The threads of a GPU's group, as fibers of the thread that calls.
//
// Enters: the function of one task and one thread. The code of kernels calls what is here by
// address, for it calls nothing by name; such code is of this process alone.
//
// Threads run one after the other, each up to where it exchanges values with the others of its
// group; every other task in the opposite order, so that nothing depends on who comes first.
#pragma once

#include "normforge/abi.h"

#include <cstdint>

namespace normforge::emulator {

using ThreadFunction = void(const nf_call *call, uint64_t task, uint64_t thread);

/// Runs all `threads` threads of each task from `first` to `last` - 1. Ends the process, with a
/// message, where only some of a group exchange values.
void runTasks(ThreadFunction *function, const nf_call *call, uint64_t first, uint64_t last,
              uint64_t threads);

/// The bits that thread (own number) xor `distance` of the group gives; of a thread that runTasks
/// runs.
uint64_t exchange(uint64_t bits, uint64_t distance);

} // namespace normforge::emulator
