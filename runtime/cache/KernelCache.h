// Where an engine's kernels come from: memory, then disk, then the compiler.
#pragma once

#include "runtime/cache/DiskCache.h"
#include "runtime/kernel/Kernel.h"
#include "runtime/loader/Compiler.h"

#include <future>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace normforge {

/// Compiles each kernel once. Two keys: the text of a request, which is enough to find a kernel
/// without the compiler; and all that the kernel's code depends on, which the compiler tells, and
/// under which specs that differ in their names or their writing alone are one. Whoever asks for
/// what another thread is at waits for it. All functions may be called from several threads.
class KernelCache {
public:
  /// `disk` may be null. `compiler` outlives this.
  KernelCache(Compiler &compiler, std::unique_ptr<DiskCache> disk, LoadOptions loading);

  /// The warning that the host should hear, once: see DiskCache. Empty otherwise.
  std::string takeWarning() { return disk_ ? disk_->takeWarning() : std::string(); }

  /// Empty with `failure` set when the kernel cannot be had. Failures are not remembered.
  std::shared_ptr<const Kernel> get(const nf_compiler_request &request, Failure &failure);

private:
  struct Outcome {
    std::shared_ptr<const Kernel> kernel;
    Failure failure;
  };
  /// Kernels by key, those that are being made among them.
  class Memory {
  public:
    /// The outcome that is there, or else the one that `make` gives; one call of it at a time for a
    /// key.
    template <typename Make> Outcome once(const std::string &key, Make make);

  private:
    struct Item {
      std::shared_future<Outcome> outcome;
      uint64_t used = 0;
      bool finished = false;
    };
    void makeRoom();
    std::mutex mutex_;
    std::unordered_map<std::string, Item> items_;
    uint64_t clock_ = 0;
  };

  Outcome find(const nf_compiler_request &request, const std::string &requestKey, DiskCache *disk);
  Outcome compile(const nf_compiler_request &request);
  std::shared_ptr<const Kernel> loadStored(const CacheEntry &entry);

  Compiler &compiler_;
  const std::unique_ptr<DiskCache> disk_;
  const LoadOptions loading_;
  Memory byRequest_, byKey_;
};

} // namespace normforge
