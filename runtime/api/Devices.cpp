// The C API's GPUs.
#include "runtime/api/Handles.h"
#include "runtime/fork/ForkGate.h"

using namespace normforge;
using namespace normforge::api;

extern "C" {

nf_status *nf_device_open(nf_engine *engine, nf_device_kind kind, void *context,
                          nf_device **device) {
  return guarded([&](Failure &failure) {
    if (!begin(device, "device", engine, "engine", failure))
      return false;
    if (numberOf(kind) != NF_CUDA)
      return failure.set(NF_INVALID_ARGUMENT,
                         "kind " + std::to_string(numberOf(kind)) + " is none: expected NF_CUDA");
    const ForkGate gate; // of the driver's lock
    auto made = std::make_unique<nf_device>();
    made->device = openCuda(context, failure);
    if (!made->device)
      return false;
    *device = made.release();
    return true;
  });
}
void nf_device_retain(nf_device *device) { retain(device); }
void nf_device_release(nf_device *device) { release(device); }
const char *nf_device_cpu(const nf_device *device) { return device->device->cpu().c_str(); }
const char *nf_device_name(const nf_device *device) { return device->device->name().c_str(); }

nf_status *nf_kernel_prepare(const nf_kernel *kernel, const nf_device *device) {
  return guarded([&](Failure &failure) {
    if (!kernel || !device)
      return failNull(kernel ? "device" : "kernel", failure);
    const ForkGate gate; // of the kernel's lock
    const Kernel &own = *kernel->kernel;
    if (!own.isOfDevice())
      return device->device->runs(own.artifact(), failure);
    return own.deviceCode()->prepare(device->device, own.artifact(), failure);
  });
}

nf_status *nf_enqueue(const nf_plan *plan, const nf_device *device, void *const *args,
                      size_t argCount, const nf_scalar *scalars, size_t scalarCount,
                      void *workspace, void *stream) {
  return guarded([&](Failure &failure) {
    if (!plan || !device)
      return failNull(plan ? "device" : "plan", failure);
    return plan->plan->enqueue({{args, argCount}, {scalars, scalarCount}, workspace},
                               *device->device, stream, failure);
  });
}

} // extern "C"
