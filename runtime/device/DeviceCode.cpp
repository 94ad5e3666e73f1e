#include "runtime/device/DeviceCode.h"

namespace normforge {

DeviceCode::~DeviceCode() {
  for (Loaded *loaded = first_; loaded;) {
    Loaded *next = loaded->next;
    loaded->modules.clear();
    delete loaded;
    loaded = next;
  }
}

bool DeviceCode::prepare(const std::shared_ptr<const DeviceContext> &device,
                         const Artifact &artifact, Failure &failure) {
  if (!device->runs(artifact, failure))
    return false;
  const std::lock_guard lock(mutex_);
  if (!functions(device.get(), 0).empty())
    return true;
  auto loaded = std::make_unique<Loaded>();
  loaded->device = device;
  for (const Variant &variant : artifact.variants) {
    loaded->modules.push_back(device->load(variant, failure));
    if (!loaded->modules.back())
      return false;
  }
  loaded->next = first_;
  first_ = loaded.release();
  return true;
}

std::span<void *const> DeviceCode::functions(const DeviceContext *device, size_t variant) const {
  for (const Loaded *loaded = first_; loaded; loaded = loaded->next)
    if (loaded->device.get() == device)
      return loaded->modules[variant]->functions();
  return {};
}

} // namespace normforge
