// A GPU of a host's: a context of its driver, in which kernels are loaded and launched.
//
// Enters: a context, the text of kernels. Leaves: functions, and launches on the host's queues.
// Cuda.cpp is NVIDIA's share, and what is named after CUDA here.
#pragma once

#include "runtime/Failure.h"
#include "runtime/artifact/Artifact.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace normforge {

/// The GPUs of NVIDIA's that kernels are compiled for (compiler/machine), by the numbers in their
/// names, ascending.
inline constexpr int cudaCapabilities[] = {80, 86, 89, 90, 100};

/// The number of an NVIDIA GPU's name, "sm_90": 90. None: it is no such name.
std::optional<int> capabilityOf(std::string_view cpu);

/// A kernel's code in a device: its functions, by stage. Unloaded at the end of its life.
class DeviceModule {
public:
  virtual ~DeviceModule() = default;
  std::span<void *const> functions() const { return functions_; }

protected:
  std::vector<void *> functions_;
};

/// One function on one queue.
struct DeviceLaunch {
  void *function = nullptr;
  uint32_t blocks = 0, threads = 0, sharedBytes = 0;
  void **parameters = nullptr; ///< a pointer to each value
  void *queue = nullptr;       ///< CUstream; null: the context's default one
};

/// Immutable; all functions may be called from several threads.
class DeviceContext {
public:
  virtual ~DeviceContext() = default;

  /// The name that kernels are compiled for: "sm_90", or the nearest that the compiler knows.
  const std::string &cpu() const { return cpu_; }
  /// As its vendor calls it: "NVIDIA H100 80GB HBM3".
  const std::string &name() const { return name_; }

  /// Whether kernels for this GPU run here; NF_WRONG_MACHINE.
  virtual bool runs(const Artifact &artifact, Failure &failure) const = 0;
  /// Makes the driver compile a text, and finds its functions. Null with `failure` set:
  /// NF_BAD_ARTIFACT, NF_OUT_OF_MEMORY, NF_DEVICE_ERROR.
  virtual std::unique_ptr<DeviceModule> load(const Variant &variant, Failure &failure) const = 0;
  /// Whether `bytes` bytes from `pointer` on may be used by kernels, as far as the driver knows;
  /// the reason why not otherwise: "is memory of the host".
  virtual std::string problemOf(const void *pointer, uint64_t bytes) const = 0;
  /// Makes the context current in this thread, until leave(); `isOther` tells whether another one
  /// was. NF_DEVICE_ERROR, and nothing is to be left.
  virtual bool enter(bool &isOther, Failure &failure) const = 0;
  virtual void leave(bool isOther) const = 0;
  /// Launches and returns; between enter and leave. NF_DEVICE_ERROR.
  virtual bool launch(const DeviceLaunch &launch, Failure &failure) const = 0;

protected:
  std::string cpu_, name_;
};

/// A context of CUDA's driver; null: the one that is current in this thread. Opens libcuda.so.1.
/// Null with `failure` set: NF_NO_DEVICE with what was tried, NF_DEVICE_ERROR.
std::shared_ptr<const DeviceContext> openCuda(void *context, Failure &failure);

/// Further functions of CUDA's driver, for who has contexts and memory of its own: by name, where
/// to put each. Opens and initializes the driver. NF_NO_DEVICE.
bool findCudaFunctions(std::span<const std::pair<const char *, void *>> functions,
                       Failure &failure);
/// Sets `failure` to what such a function's result, no success, says; false.
bool failCuda(const std::string &what, int result, Failure &failure);

} // namespace normforge
