// One call of a kernel: a plan with buffers for all of its arguments, for those who check and time
// kernels.
//
// Enters: a loaded kernel, sizes, arrays by name. Leaves: the outputs' bytes. Buffers are aligned
// to cache lines, as those of anyone who cares for speed are.
#pragma once

#include "runtime/kernel/Plan.h"
#include "runtime/measure/Gpu.h"

#include <memory>
#include <string_view>
#include <vector>

namespace normforge {

class KernelCall {
public:
  /// Allocates nothing yet. Empty with `failure` set where the sizes are not the kernel's.
  static std::unique_ptr<KernelCall> make(std::shared_ptr<const Kernel> kernel,
                                          std::span<const int64_t> sizes, Failure &failure);

  const Plan &plan() const { return *plan_; }
  /// Bytes of all arguments and the workspace.
  uint64_t bytes() const;
  /// A GPU's kernel is run on this one, with arrays of the GPU's beside these.
  void use(std::shared_ptr<Gpu> gpu) { gpu_ = std::move(gpu); }
  /// Allocates all buffers. Outputs are poisoned.
  void allocate();
  /// Takes the arguments' buffers of another kernel of the same operator at the same sizes; the
  /// workspace is its own. They live until the last of those that share them is gone.
  void share(const KernelCall &other);
  /// Allocates buffers of its own with the inputs and scalars of such a kernel.
  void copy(const KernelCall &other);
  /// Copies a read argument's bytes, as many as its array has, or as there are.
  void set(std::string_view name, std::span<const std::byte> bytes);
  void setScalars(std::vector<nf_scalar> scalars) { scalars_ = std::move(scalars); }
  /// Fills the outputs with NaN, so that what a kernel forgets to write is seen.
  void poison();
  /// Takes all arguments out of all caches, as far as the CPU has an instruction for that: x86-64
  /// and aarch64 do.
  void evict() const;
  /// On a GPU arrays are copied there and back by the first run after they were set or poisoned.
  bool run(const nf_executor &executor, Failure &failure);
  /// An argument's array.
  std::span<const std::byte> array(size_t argument) const;

private:
  static constexpr std::align_val_t alignment{NF_WORKSPACE_ALIGNMENT};
  struct Free {
    void operator()(void *memory) const { ::operator delete(memory, alignment); }
  };
  using Buffer = std::unique_ptr<void, Free>;
  static Buffer allocate(uint64_t bytes);

  std::shared_ptr<const Plan> plan_;
  std::shared_ptr<const std::vector<Buffer>> buffers_;
  std::vector<void *> args_;
  std::vector<nf_scalar> scalars_;
  Buffer workspace_;

  /// Of a GPU's memory: the arguments', then the workspace.
  struct OnGpu {
    explicit OnGpu(std::shared_ptr<Gpu> gpu) : gpu(std::move(gpu)) {}
    OnGpu(const OnGpu &) = delete;
    OnGpu &operator=(const OnGpu &) = delete;
    ~OnGpu() {
      for (void *memory : all)
        gpu->release(memory);
    }
    std::shared_ptr<Gpu> gpu;
    std::vector<void *> all{};
  };
  bool runOnGpu(Failure &failure);
  bool copyToGpu(Failure &failure);

  std::shared_ptr<Gpu> gpu_;
  std::unique_ptr<OnGpu> onGpu_;
  bool isOnGpu_ = false; ///< what is in the arrays here
};

/// Bytes of memory that the machine has.
uint64_t physicalMemory();

} // namespace normforge
