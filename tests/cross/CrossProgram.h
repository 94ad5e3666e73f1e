// Runs kernels for another machine: links them with a driver in C that is written around their
// generated header, and runs the program under qemu.
#pragma once

#include "compiler/oracle/Oracle.h"
#include "compiler/session/Session.h"

#include <filesystem>
#include <string>
#include <vector>

namespace normforge::test {

/// A call of one kernel.
struct CrossCall {
  size_t kernel = 0; ///< CrossProgram::add's
  oracle::Sizes sizes;
  oracle::Arrays inputs;
  bool inPlace = false; ///< outputs over inputs where they may be
};

class CrossProgram {
public:
  /// Why such programs cannot be built and run here; empty where they can.
  static std::string whyNot();

  /// For a CPU of aarch64. Files are written below `folder`.
  CrossProgram(const std::string &cpu, std::filesystem::path folder);

  /// One kernel with the schedules given.
  size_t add(const Operator &op, std::vector<ScheduleVariant> variants);
  void add(CrossCall call) { calls_.push_back(std::move(call)); }
  const TargetDescription &target() const { return session_.target(); }
  const Operator &op(size_t kernel) const { return kernels_[kernel].op; }
  const std::vector<CrossCall> &calls() const { return calls_; }

  /// Compiles, writes the driver and its data, and links. Throws std::runtime_error.
  void build();
  /// Runs all calls on an emulated CPU ("neoverse-n1", "max,sve512=on"), tasks in ranges and an
  /// order drawn with `seed`. The outputs of each. Throws with what the program said.
  std::vector<oracle::Arrays> run(const std::string &emulated, uint64_t seed) const;

private:
  std::string driver(const std::vector<Artifact> &manifests) const;

  std::filesystem::path folder_;
  Session session_;
  std::vector<ObjectKernel> kernels_;
  std::vector<CrossCall> calls_;
};

} // namespace normforge::test
