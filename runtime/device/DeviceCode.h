// A kernel's code in the devices that it was prepared for.
#pragma once

#include "runtime/device/DeviceContext.h"

#include <atomic>
#include <mutex>

namespace normforge {

/// Shared by all handles and plans of a kernel. Devices are added, and stay until its end.
class DeviceCode {
public:
  DeviceCode() = default;
  DeviceCode(const DeviceCode &) = delete;
  DeviceCode &operator=(const DeviceCode &) = delete;
  ~DeviceCode();

  /// Loads all variants; nothing happens where they are loaded.
  bool prepare(const std::shared_ptr<const DeviceContext> &device, const Artifact &artifact,
               Failure &failure);
  /// The functions of a variant, by stage; empty: it was not prepared for this device. Takes no
  /// lock.
  std::span<void *const> functions(const DeviceContext *device, size_t variant) const;

private:
  struct Loaded {
    std::shared_ptr<const DeviceContext> device; ///< outlives the modules
    std::vector<std::unique_ptr<DeviceModule>> modules;
    Loaded *next = nullptr;
  };
  std::mutex mutex_; ///< of who adds
  std::atomic<Loaded *> first_ = nullptr;
};

} // namespace normforge
