// One spec on several CPUs, in a process of its own.
//
// Enters: a spec, sizes, CPUs. Leaves: an Outcome: nothing, or the first fault. A kernel, or the
// compiler, that crashes or hangs ends the child alone; the parent says where the child was.
// Sessions are made once, before the first fork: a child inherits them warm.
#pragma once

#include "tests/numerics/KernelHarness.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace normforge::test {

struct Trial {
  std::string yaml;
  oracle::Sizes sizes; ///< of the named ones
  std::vector<Phase> phases;
  std::vector<std::string> cpus; ///< of runnableCpus()
  uint64_t seed = 0;             ///< of inputs and of splits
};

enum class Fault : uint8_t {
  None,
  BadSpec,     ///< parseSpec refuses it
  NotCompiled, ///< or not loaded
  RoundTrip,   ///< serialized, read and serialized again, the artifact has other bytes
  NotRun,      ///< the plan refuses the sizes or the call
  WrongResult, ///< against the f64 reference
  OtherBits,   ///< than the same kernel on one thread gives
  Death,       ///< of the process
};
std::string_view toString(Fault fault);

struct Outcome {
  Fault fault = Fault::None;
  int deathStatus = 0; ///< as wait() gives it
  uint64_t runs = 0;   ///< of kernels
  std::string text;    ///< phase, CPU and step, then what is wrong there

  explicit operator bool() const { return fault != Fault::None; }
  /// Whether two outcomes fail in one way, and may have one cause.
  bool isLike(const Outcome &other) const {
    return fault == other.fault && deathStatus == other.deathStatus;
  }
};

/// Faults that are made on purpose: they show that faults are found and reduced.
enum class Injection : uint8_t {
  None,
  BlockedF64, ///< an element of y is wrong in blocked f64
  SplitRelu,  ///< so it is in split runs with relu, where the last axis is 5 or longer
  Crash,      ///< SIGSEGV in rank 5
};
std::optional<Injection> parseInjection(std::string_view text);
std::string_view toString(Injection injection);
std::string_view injectionNames(); ///< "blocked-f64, ..."

/// Those of `cpus` whose kernels this machine can run, their sessions made and warm; says SKIP and
/// why for the others. Throws std::runtime_error for a name that is no CPU's.
std::vector<std::string> runnableCpus(const std::vector<std::string> &cpus);

/// Compiles and runs each phase for each CPU in a child process, up to the first fault.
Outcome runTrial(const Trial &trial, Injection injection);

} // namespace normforge::test
