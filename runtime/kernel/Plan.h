// A kernel with its sizes fixed: everything a call needs but its pointers. Plan.cpp makes plans and
// runs them on threads; Enqueue.cpp launches those of GPUs.
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

/// An argument in words, for errors.
std::string describe(const Artifact &artifact, size_t argument);

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
    const Stage *stage = nullptr;
    uint32_t blocks = 0;                ///< of a GPU's launch
    std::vector<uint64_t> offsets = {}; ///< in the workspace, by the launch's parameters
    /// So little work that waking another thread would cost more.
    bool isSmall() const;
  };

  /// Makes every check that depends on the sizes. Empty with `failure` set when one fails.
  static std::shared_ptr<const Plan> make(std::shared_ptr<const Kernel> kernel,
                                          std::span<const int64_t> sizes, Failure &failure);

  const Kernel &kernel() const { return *kernel_; }
  std::span<const int64_t> sizes() const { return sizes_; }
  size_t variant() const { return chosen_.front().variant; }
  std::span<const Array> arrays() const { return arrays_; }
  std::span<const Step> steps() const { return chosen_.front().steps; }
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
  /// Checks, then launches all steps of a GPU's kernel on a queue of `device`, for which the kernel
  /// was prepared, and returns. Allocates nothing unless it fails.
  bool enqueue(const CallArguments &call, const DeviceContext &device, void *queue,
               Failure &failure) const;

private:
  /// A variant that the sizes allow.
  struct Choice {
    size_t variant = 0;
    uint32_t alignment = 0;
    std::vector<Step> steps{}; ///< none where a size is 0
  };
  bool checkSizes(Failure &failure) const;
  bool measureArrays(Failure &failure);
  bool chooseVariants(Failure &failure);
  bool choose(size_t variant, Failure &failure);
  /// The first variant whose alignment the pointers have.
  const Choice &choiceFor(const CallArguments &call) const;
  bool checkOverlaps(const CallArguments &call, Failure &failure) const;

  std::shared_ptr<const Kernel> kernel_;
  std::vector<int64_t> sizes_;
  std::vector<Array> arrays_;
  std::vector<Choice> chosen_{1}; ///< for falling alignments; the last one's is that of elements
  uint64_t workspaceBytes_ = 0;   ///< of all of them
};

} // namespace normforge
