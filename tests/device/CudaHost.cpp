#include "tests/device/CudaHost.h"

#include <cstdint>
#include <dlfcn.h>

namespace normforge::test {

Cuda &Cuda::driver() {
  static Cuda driver = [] {
    Cuda made;
    made.handle_ = dlopen("libcuda.so.1", RTLD_NOW);
    if (!made.handle_)
      throw std::runtime_error(dlerror());
    made.call("cuInit", 0u);
    return made;
  }();
  return driver;
}

bool Cuda::has(const char *name) const { return dlsym(handle_, name) != nullptr; }

void *Cuda::find(const char *name) {
  void *function = dlsym(handle_, name);
  if (!function)
    throw std::runtime_error(std::string("the driver has no ") + name);
  return function;
}

CudaContext::CudaContext() {
  int device = 0;
  Cuda::driver().call("cuDeviceGet", &device, 0);
  Cuda::driver().call("cuCtxCreate_v2", &context_, 0u, device);
}
void CudaContext::destroy() {
  if (context_)
    Cuda::driver().tryCall("cuCtxDestroy_v2", context_);
  context_ = nullptr;
}
CudaContext::~CudaContext() { destroy(); }

DeviceBuffer::DeviceBuffer(size_t bytes, size_t shift) : shift_(shift) {
  constexpr int kOutOfMemory = 2;
  const size_t all = bytes + shift + (bytes + shift == 0);
  if (const int result = Cuda::driver().tryCall("cuMemAlloc_v2", &base_, all)) {
    const std::string what = "cuMemAlloc of " + std::to_string(all) + ": ";
    if (result == kOutOfMemory)
      throw OutOfMemory(what + "there is too little memory");
    throw std::runtime_error(what + "error " + std::to_string(result));
  }
}
DeviceBuffer::~DeviceBuffer() { Cuda::driver().tryCall("cuMemFree_v2", base_); }
void *DeviceBuffer::data() const {
  return reinterpret_cast<void *>(static_cast<uintptr_t>(base_ + shift_));
}
void DeviceBuffer::write(const void *from, size_t bytes) {
  if (bytes > 0)
    Cuda::driver().call("cuMemcpyHtoD_v2", base_ + shift_, from, bytes);
}
void DeviceBuffer::read(void *to, size_t bytes) const {
  if (bytes > 0)
    Cuda::driver().call("cuMemcpyDtoH_v2", to, base_ + shift_, bytes);
}

} // namespace normforge::test
