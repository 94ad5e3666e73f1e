// A kernel that this machine can run: an artifact and its images in executable memory, or, of a
// GPU, its code in the devices that it was prepared for.
#pragma once

#include "runtime/Failure.h"
#include "runtime/artifact/Artifact.h"
#include "runtime/device/DeviceCode.h"
#include "runtime/loader/DebuggerInterface.h"
#include "runtime/loader/LoadedImage.h"

#include <memory>
#include <vector>

namespace normforge {

struct LoadOptions {
  bool perfMap = false;  ///< tell perf the names of the stages
  bool debugger = false; ///< tell debuggers
};

/// The architecture that a triple such as "x86_64-pc-linux-gnu" begins with.
std::string_view architectureOf(std::string_view triple);

/// The stages of a variant as perf and debuggers show them: "NAME_PHASE_v2_moments", so that the
/// layers of a network, and the variants of each, are told apart.
std::vector<Stage> namedStages(const Artifact &artifact, size_t variant);

/// Immutable; shared by its plans.
class Kernel {
public:
  /// Validates the artifact, checks that this machine has what it needs, and loads its images; of
  /// one for a GPU, that this library launches such. Empty with `failure` set otherwise.
  static std::shared_ptr<const Kernel> load(Artifact artifact, const LoadOptions &options,
                                            Failure &failure);

  /// The same code under another spec's name.
  static std::shared_ptr<const Kernel> named(const std::shared_ptr<const Kernel> &kernel,
                                             const std::string &name);

  const Artifact &artifact() const { return artifact_; }
  bool isOfDevice() const { return artifact_.entry == EntryKind::Launch; }
  /// Of a CPU's; null of a GPU's.
  nf_stage_fn *function(size_t variant, size_t stage) const;
  /// Of a GPU's: its code in devices; null of a CPU's.
  DeviceCode *deviceCode() const { return deviceCode_.get(); }

private:
  struct Code {
    LoadedImage image;
    std::unique_ptr<DebuggerEntry> debugger; ///< where debuggers are told; ends before the image
  };
  Artifact artifact_;
  std::shared_ptr<const std::vector<Code>> code_; ///< one a variant; none of a GPU's
  std::shared_ptr<DeviceCode> deviceCode_;
};

} // namespace normforge
