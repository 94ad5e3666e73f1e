// Tells GDB and LLDB the names of kernels, by GDB's JIT interface.
#pragma once

#include "runtime/artifact/Artifact.h"
#include "runtime/loader/LoadedImage.h"

#include <memory>

namespace normforge {

/// An image that debuggers know of, from its making to its end. It is described by a small ELF file
/// in memory, with a symbol a stage. (GDB's manual, "JIT Compilation Interface".)
class DebuggerEntry {
public:
  /// May be called from several threads.
  DebuggerEntry(const LoadedImage &loaded, const Image &image, std::span<const Stage> stages);
  ~DebuggerEntry();
  DebuggerEntry(const DebuggerEntry &) = delete;
  DebuggerEntry &operator=(const DebuggerEntry &) = delete;

private:
  struct State;
  std::unique_ptr<State> state_;
};

} // namespace normforge
