// One call of a kernel: a plan with buffers for all of its arguments.
//
// Enters: a loaded kernel, sizes, arrays by name. Leaves: the outputs as arrays. Buffers are
// aligned to cache lines, as those of anyone who cares for speed are.
#pragma once

#include "compiler/spec/HostArray.h"
#include "runtime/kernel/Plan.h"

#include <memory>
#include <string_view>
#include <vector>

namespace normforge::cli {

class KernelCall {
public:
  /// Allocates nothing yet. Empty with `failure` set where the sizes are not the kernel's.
  static std::unique_ptr<KernelCall> make(std::shared_ptr<const Kernel> kernel,
                                          std::span<const int64_t> sizes, Failure &failure);

  const Plan &plan() const { return *plan_; }
  /// Bytes of all arguments and the workspace.
  uint64_t bytes() const;
  /// Allocates all buffers. Outputs hold NaN, so that what a kernel forgets to write is seen.
  void allocate();
  /// Copies an array of the right dtype and count into the read argument of this name.
  void set(std::string_view name, const HostArray &array);
  void setScalars(std::vector<nf_scalar> scalars) { scalars_ = std::move(scalars); }
  bool run(const nf_executor &executor, Failure &failure);
  /// The written argument at this index.
  HostArray output(size_t argument) const;

private:
  static constexpr std::align_val_t alignment{NF_WORKSPACE_ALIGNMENT};
  struct Free {
    void operator()(void *memory) const { ::operator delete(memory, alignment); }
  };
  using Buffer = std::unique_ptr<void, Free>;
  static Buffer allocate(uint64_t bytes);

  std::shared_ptr<const Plan> plan_;
  std::vector<Buffer> buffers_;
  std::vector<void *> args_;
  std::vector<nf_scalar> scalars_;
  Buffer workspace_;
};

/// Bytes of memory that the machine has.
uint64_t physicalMemory();

} // namespace normforge::cli
