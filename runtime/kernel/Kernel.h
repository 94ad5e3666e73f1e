// A kernel that this machine can run: an artifact and its images in executable memory.
#pragma once

#include "runtime/Failure.h"
#include "runtime/artifact/Artifact.h"
#include "runtime/loader/LoadedImage.h"

#include <memory>
#include <vector>

namespace normforge {

struct LoadOptions {
  bool perfMap = false; ///< tell perf the names of the stages
};

/// Immutable; shared by its plans.
class Kernel {
public:
  /// Validates the artifact, checks that this machine has what it needs, and loads its images.
  /// Empty with `failure` set otherwise.
  static std::shared_ptr<const Kernel> load(Artifact artifact, const LoadOptions &options,
                                            Failure &failure);

  /// The same code under another spec's name.
  static std::shared_ptr<const Kernel> named(const std::shared_ptr<const Kernel> &kernel,
                                             const std::string &name);

  const Artifact &artifact() const { return artifact_; }
  nf_stage_fn *function(size_t variant, size_t stage) const;

private:
  Artifact artifact_;
  std::shared_ptr<const std::vector<LoadedImage>> images_; ///< one a variant
};

} // namespace normforge
