// A GPU of this process's own, for those who check kernels: hosts have contexts and memory of
// theirs.
#pragma once

#include "runtime/device/DeviceContext.h"

#include <memory>
#include <vector>

namespace normforge {

/// The first device's primary context, which is current in the thread that opens it: functions are
/// called from that thread. Memory is freed at the end.
class Gpu {
public:
  /// Null with `failure` set: NF_NO_DEVICE, NF_WRONG_MACHINE, NF_DEVICE_ERROR.
  static std::shared_ptr<Gpu> open(Failure &failure);
  ~Gpu();
  Gpu(const Gpu &) = delete;
  Gpu &operator=(const Gpu &) = delete;

  const std::shared_ptr<const DeviceContext> &device() const { return device_; }
  /// Null with `failure` set: NF_OUT_OF_MEMORY, NF_DEVICE_ERROR.
  void *allocate(uint64_t bytes, Failure &failure);
  void release(void *memory);
  bool upload(void *to, const void *from, uint64_t bytes, Failure &failure);
  bool download(void *to, const void *from, uint64_t bytes, Failure &failure);
  /// Until all that was launched is done: what kernels did wrong is an error here.
  bool wait(Failure &failure);

private:
  struct Driver;
  explicit Gpu(std::unique_ptr<Driver> driver);
  bool check(const char *what, int result, Failure &failure) const;

  std::unique_ptr<Driver> driver_;
  int ordinal_ = -1; ///< whose context is retained; -1: none
  std::shared_ptr<const DeviceContext> device_;
};

} // namespace normforge
