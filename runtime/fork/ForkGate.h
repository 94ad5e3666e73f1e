// fork() from a host with threads: the child has only the thread that forked, and every lock that
// another thread held then is held for ever.
//
// The idea: fork waits until no thread is at work on anything shared. Each function of the library
// that takes a lock, opens the compiler library or compiles holds the gate meanwhile; a handler
// that runs before fork closes it. So the child finds no lock taken, no kernel half made and no
// library half opened, and its engines, the old ones included, work. A fork that meets a
// compilation waits for its end. nf_run takes no lock, and fork does not wait for it.
//
// Rules a change must keep: no function of the host's is called from within, for it may wait for a
// thread that forks; nobody within waits for a thread that has yet to enter.
#pragma once

namespace normforge {

/// Throws std::bad_alloc where the handlers could not be registered when the library was loaded.
void requireForkHandlers();

/// The number of forks between the process that loaded the library and this one: what was made
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
