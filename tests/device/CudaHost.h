// A host's side of a GPU: contexts, memory and streams by the driver's own functions.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace normforge::test {

/// The driver that the loader finds: the emulated one in ctest, or a real one.
class Cuda {
public:
  /// Throws std::runtime_error where there is none.
  static Cuda &driver();

  /// `name`'s function with these arguments; throws where it gives an error.
  template <typename... Arguments> void call(const char *name, Arguments... arguments) {
    if (const int result = tryCall(name, arguments...))
      throw std::runtime_error(std::string(name) + ": error " + std::to_string(result));
  }
  template <typename... Arguments> int tryCall(const char *name, Arguments... arguments) {
    return reinterpret_cast<int (*)(Arguments...)>(find(name))(arguments...);
  }
  void *find(const char *name);
  bool has(const char *name) const;

private:
  void *handle_ = nullptr;
};

using DevicePointer = unsigned long long;

/// A context that is current in this thread.
class CudaContext {
public:
  CudaContext();
  ~CudaContext();
  CudaContext(const CudaContext &) = delete;
  CudaContext &operator=(const CudaContext &) = delete;
  void *get() const { return context_; }
  void destroy();

private:
  void *context_ = nullptr;
};

/// The device has too little memory.
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Bytes of the device's, `shift` bytes behind an aligned address.
class DeviceBuffer {
public:
  explicit DeviceBuffer(size_t bytes, size_t shift = 0); ///< throws OutOfMemory
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer &) = delete;
  DeviceBuffer &operator=(const DeviceBuffer &) = delete;
  void *data() const;
  void write(const void *from, size_t bytes);
  void read(void *to, size_t bytes) const;

private:
  DevicePointer base_ = 0;
  size_t shift_;
};

} // namespace normforge::test
