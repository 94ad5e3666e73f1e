// An image in executable memory.
#pragma once

#include "runtime/Failure.h"
#include "runtime/artifact/Artifact.h"

#include <cstddef>
#include <span>

namespace normforge {

/// A private copy of an image at a page boundary, readable and executable, never writable again.
/// Unmapped at the end of its life: nothing may be running in it then.
class LoadedImage {
public:
  LoadedImage() = default;
  LoadedImage(LoadedImage &&other) noexcept;
  LoadedImage &operator=(LoadedImage &&other) noexcept;
  ~LoadedImage();

  /// Copies the image, into which `entries` are the ways, and makes it executable.
  /// NF_OUT_OF_MEMORY where the system has no memory, NF_SYSTEM_ERROR where it refuses any that was
  /// written to be executed.
  static bool load(const Image &image, std::span<const Stage> entries, LoadedImage &loaded,
                   Failure &failure);

  /// The address of the byte at `offset` in the image, as a stage's function.
  nf_stage_fn *function(size_t offset) const;
  const std::byte *base() const { return base_; }

private:
  std::byte *base_ = nullptr;
  size_t bytes_ = 0; ///< of the mapping
};

/// Tells `perf` the names of the stages: appends to /tmp/perf-PID.map, which perf reads for code
/// in anonymous memory. Best effort: nothing happens where the file cannot be written.
void appendPerfMap(const LoadedImage &loaded, const Image &image, std::span<const Stage> stages);

} // namespace normforge
