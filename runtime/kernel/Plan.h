// A kernel with its sizes fixed: everything a call needs but its pointers.
#pragma once

#include "runtime/kernel/Kernel.h"

#include <memory>
#include <span>
#include <vector>

namespace normforge {

/// The arguments of nf_run; see there.
struct CallArguments {
  std::span<void *const> args;
  std::span<const nf_scalar> scalars;
  void *workspace = nullptr;
};

/// Immutable; may run in several threads at once.
class Plan {
public:
  struct Array {
    std::vector<int64_t> shape;
    uint64_t bytes = 0;
  };
  struct Step {
    nf_stage_fn *function = nullptr;
    uint64_t tasks = 0;
    uint64_t bytesPerTask = 0;
    const char *name = "";
    /// So little work that waking another thread would cost more.
    bool isSmall() const;
  };

  /// Makes every check that depends on the sizes. Empty with `failure` set when one fails.
  static std::shared_ptr<const Plan> make(std::shared_ptr<const Kernel> kernel,
                                          std::span<const int64_t> sizes, Failure &failure);

  const Kernel &kernel() const { return *kernel_; }
  std::span<const int64_t> sizes() const { return sizes_; }
  size_t variant() const { return variant_; }
  std::span<const Array> arrays() const { return arrays_; }
  std::span<const Step> steps() const { return steps_; }
  uint64_t workspaceBytes() const { return workspaceBytes_; }

  /// Counts, null pointers, run-time numbers, alignment and overlap. Allocates nothing unless it
  /// fails.
  bool check(const CallArguments &call, Failure &failure) const;
  /// The same of what the stages themselves are given; see nf_plan_check_call.
  bool checkCall(const nf_call &call, Failure &failure) const;
  /// Checks, then runs all steps. `executor` may be null: the calling thread; so may `allocator`,
  /// which a workspace is taken from where the call has none: malloc.
  bool run(const CallArguments &call, const nf_executor *executor, Failure &failure,
           const nf_allocator *allocator = nullptr) const;

private:
  bool checkSizes(Failure &failure) const;
  bool measureArrays(Failure &failure);
  bool chooseVariant(Failure &failure);
  bool checkOverlaps(const CallArguments &call, Failure &failure) const;

  std::shared_ptr<const Kernel> kernel_;
  std::vector<int64_t> sizes_;
  std::vector<Array> arrays_;
  std::vector<Step> steps_; ///< none where a size is 0
  uint64_t workspaceBytes_ = 0;
  size_t variant_ = 0;
};

} // namespace normforge
