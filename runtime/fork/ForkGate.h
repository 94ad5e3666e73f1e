// fork() from a host with threads: the child has only the thread that forked, and every lock that
// another thread held then is held for ever.
//
// The idea: fork waits until no thread is at work on anything shared. Each function of the library
// that takes a lock, opens the compiler library or compiles holds the gate meanwhile; a handler
// that runs before fork closes it. So the child finds no lock taken, no kernel half made and no
// library half opened, and its engines, the old ones included, work. A fork that meets a
// compilation waits for its end, milliseconds. nf_run takes no lock, and fork does not wait for it.
//
// Rules a change must keep: nobody waits for another thread that has yet to enter; the host's
// functions are called from within as normforge.h says, where a fork cannot wait for its own
// thread: such a child must not use what was made before it.
#pragma once

namespace normforge {

/// Registers the handlers, once a process; they stay. Throws std::bad_alloc where there is no
/// memory for them.
void watchForks();

/// The number of forks between the process that called watchForks first and this one: what was made
/// under another number belongs to a parent.
unsigned forkGeneration();

/// Holds the gate. Nests within a thread.
class ForkGate {
public:
  ForkGate();
  ~ForkGate();
  ForkGate(const ForkGate &) = delete;
  ForkGate &operator=(const ForkGate &) = delete;
};

} // namespace normforge
