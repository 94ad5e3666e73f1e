#include "runtime/measure/Gpu.h"

namespace normforge {

/// Of the CUDA Driver API; results are 0 for success.
struct Gpu::Driver {
  int (*device)(int *device, int ordinal);
  int (*retain)(void **context, int device);
  int (*release)(int device);
  int (*setCurrent)(void *context);
  int (*allocate)(unsigned long long *pointer, size_t bytes);
  int (*free)(unsigned long long pointer);
  int (*upload)(unsigned long long to, const void *from, size_t bytes);
  int (*download)(void *to, unsigned long long from, size_t bytes);
  int (*synchronize)();
};

namespace {

unsigned long long addressOf(const void *memory) { return reinterpret_cast<uintptr_t>(memory); }

} // namespace

Gpu::Gpu(std::unique_ptr<Driver> driver) : driver_(std::move(driver)) {}

Gpu::~Gpu() {
  device_.reset();
  if (ordinal_ >= 0)
    driver_->release(ordinal_);
}

bool Gpu::check(const char *what, int result, Failure &failure) const {
  return result == 0 || failCuda(what, result, failure);
}

std::shared_ptr<Gpu> Gpu::open(Failure &failure) {
  auto driver = std::make_unique<Driver>();
  const std::pair<const char *, void *> functions[] = {
      {"cuDeviceGet", &driver->device},
      {"cuDevicePrimaryCtxRetain", &driver->retain},
      {"cuDevicePrimaryCtxRelease_v2", &driver->release},
      {"cuCtxSetCurrent", &driver->setCurrent},
      {"cuMemAlloc_v2", &driver->allocate},
      {"cuMemFree_v2", &driver->free},
      {"cuMemcpyHtoD_v2", &driver->upload},
      {"cuMemcpyDtoH_v2", &driver->download},
      {"cuCtxSynchronize", &driver->synchronize}};
  if (!findCudaFunctions(functions, failure))
    return nullptr;
  std::shared_ptr<Gpu> gpu(new Gpu(std::move(driver)));
  const Driver &of = *gpu->driver_;
  int device = 0;
  void *context = nullptr;
  if (!gpu->check("the first GPU", of.device(&device, 0), failure))
    return nullptr;
  if (!gpu->check("the primary context", of.retain(&context, device), failure))
    return nullptr;
  gpu->ordinal_ = device;
  if (!gpu->check("the primary context", of.setCurrent(context), failure))
    return nullptr;
  gpu->device_ = openCuda(context, failure);
  return gpu->device_ ? gpu : nullptr;
}

void *Gpu::allocate(uint64_t bytes, Failure &failure) {
  unsigned long long pointer = 0;
  if (!check("memory of the GPU", driver_->allocate(&pointer, bytes + (bytes == 0)), failure))
    return nullptr;
  return reinterpret_cast<void *>(static_cast<uintptr_t>(pointer));
}

void Gpu::release(void *memory) { driver_->free(addressOf(memory)); }

bool Gpu::upload(void *to, const void *from, uint64_t bytes, Failure &failure) {
  return bytes == 0 ||
         check("a copy to the GPU", driver_->upload(addressOf(to), from, bytes), failure);
}

bool Gpu::download(void *to, const void *from, uint64_t bytes, Failure &failure) {
  return bytes == 0 ||
         check("a copy from the GPU", driver_->download(to, addressOf(from), bytes), failure);
}

bool Gpu::wait(Failure &failure) {
  return check("a kernel on the GPU", driver_->synchronize(), failure);
}

} // namespace normforge
