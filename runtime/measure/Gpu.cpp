#include "runtime/measure/Gpu.h"

#include <dlfcn.h>

namespace normforge {

/// Of the CUDA Driver API; results are 0 for success.
struct Gpu::Driver {
  int (*init)(unsigned flags);
  int (*device)(int *device, int ordinal);
  int (*retain)(void **context, int device);
  int (*release)(int device);
  int (*setCurrent)(void *context);
  int (*allocate)(unsigned long long *pointer, size_t bytes);
  int (*free)(unsigned long long pointer);
  int (*upload)(unsigned long long to, const void *from, size_t bytes);
  int (*download)(void *to, unsigned long long from, size_t bytes);
  int (*synchronize)();
  int (*errorName)(int result, const char **name);
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
  constexpr int kOutOfMemory = 2;
  if (result == 0)
    return true;
  const char *name = nullptr;
  driver_->errorName(result, &name);
  return failure.set(result == kOutOfMemory ? NF_OUT_OF_MEMORY : NF_DEVICE_ERROR,
                     std::string(what) + ": " +
                         (name ? name : "CUDA error " + std::to_string(result)));
}

std::shared_ptr<Gpu> Gpu::open(Failure &failure) {
  constexpr const char *kLibrary = "libcuda.so.1";
  void *library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL); // never closed, as contexts ask for
  if (!library) {
    const char *why = dlerror();
    failure.set(NF_NO_DEVICE, std::string("no CUDA driver: tried ") + kLibrary +
                                  (why ? ": " + std::string(why) : ""));
    return nullptr;
  }
  auto driver = std::make_unique<Driver>();
  const std::pair<const char *, void *> names[] = {
      {"cuInit", &driver->init},
      {"cuDeviceGet", &driver->device},
      {"cuDevicePrimaryCtxRetain", &driver->retain},
      {"cuDevicePrimaryCtxRelease_v2", &driver->release},
      {"cuCtxSetCurrent", &driver->setCurrent},
      {"cuMemAlloc_v2", &driver->allocate},
      {"cuMemFree_v2", &driver->free},
      {"cuMemcpyHtoD_v2", &driver->upload},
      {"cuMemcpyDtoH_v2", &driver->download},
      {"cuCtxSynchronize", &driver->synchronize},
      {"cuGetErrorName", &driver->errorName}};
  for (auto [name, function] : names) {
    void *address = dlsym(library, name);
    if (!address) {
      failure.set(NF_NO_DEVICE, std::string("the CUDA driver, ") + kLibrary + ", has no " + name);
      return nullptr;
    }
    *static_cast<void **>(function) = address;
  }
  std::shared_ptr<Gpu> gpu(new Gpu(std::move(driver)));
  const Driver &of = *gpu->driver_;
  int device = 0;
  void *context = nullptr;
  if (of.init(0) != 0 || of.device(&device, 0) != 0) {
    failure.set(NF_NO_DEVICE, "the CUDA driver finds no GPU");
    return nullptr;
  }
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
