// NVIDIA's driver, opened when a device is: no toolkit, no header of CUDA.
//
// Types and numbers are those of the CUDA Driver API; entry points that have changed have the
// names that cuda.h gives them (cuCtxPushCurrent_v2).
#include "runtime/device/DeviceContext.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <dlfcn.h>
#include <mutex>

namespace normforge {

namespace {

using Result = int;                 // CUresult
using Context = void *;             // CUcontext
using Pointer = unsigned long long; // CUdeviceptr

constexpr Result kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidPtx = 218,
                 kUnsupportedPtx = 222;
constexpr int kMajor = 75, kMinor = 76, kPageableAccess = 88;     // CUdevice_attribute
constexpr int kMostSharedBytes = 8;                               // CUfunction_attribute
constexpr int kMemoryType = 2, kRangeStart = 11, kRangeSize = 12; // CUpointer_attribute
constexpr int kErrorLog = 5, kErrorLogBytes = 6;                  // CUjit_option
/// What a launch may have of shared memory without being asked.
constexpr uint32_t kSharedBytes = 48 << 10;

struct Driver {
  void *library;
  Result (*init)(unsigned flags);
  Result (*driverVersion)(int *version);
  Result (*errorName)(Result, const char **);
  Result (*errorString)(Result, const char **);
  Result (*currentContext)(Context *);
  Result (*pushContext)(Context);
  Result (*popContext)(Context *);
  Result (*contextDevice)(int *device);
  Result (*deviceName)(char *name, int bytes, int device);
  Result (*deviceAttribute)(int *value, int attribute, int device);
  Result (*loadModule)(void **module, const void *image, unsigned options, int *names,
                       void **values);
  Result (*unloadModule)(void *module);
  Result (*moduleFunction)(void **function, void *module, const char *name);
  Result (*setFunctionAttribute)(void *function, int attribute, int value);
  Result (*launch)(void *function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX,
                   unsigned blockY, unsigned blockZ, unsigned sharedBytes, void *stream,
                   void **parameters, void **extra);
  Result (*pointerAttributes)(unsigned count, int *names, void **values, Pointer pointer);

  /// "CUDA_ERROR_INVALID_CONTEXT (invalid device context)".
  std::string text(Result result) const {
    const char *name = nullptr, *words = nullptr;
    errorName(result, &name);
    errorString(result, &words);
    return std::string(name ? name : "CUDA error " + std::to_string(result)) +
           (words ? " (" + std::string(words) + ")" : "");
  }
  bool fail(Failure &failure, const std::string &what, Result result) const {
    return failure.set(result == kOutOfMemory ? NF_OUT_OF_MEMORY : NF_DEVICE_ERROR,
                       what + ": " + text(result));
  }
};

constexpr const char *kLibrary = "libcuda.so.1";
using Functions = std::span<const std::pair<const char *, void *>>;

/// Finds each by its name; NF_NO_DEVICE where one is not there.
bool findAll(void *library, Functions functions, Failure &failure) {
  for (auto [name, function] : functions) {
    void *address = dlsym(library, name);
    if (!address)
      return failure.set(NF_NO_DEVICE,
                         std::string("the CUDA driver, ") + kLibrary + ", has no " + name);
    *static_cast<void **>(function) = address;
  }
  return true;
}

/// Opened once, and never closed: contexts outlive their users. Null with `failure` set; it is
/// looked for again then.
const Driver *findDriver(Failure &failure) {
  static std::mutex mutex;
  static Driver driver;
  static bool isOpen = false;
  const std::lock_guard lock(mutex);
  if (isOpen)
    return &driver;
  void *library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *why = dlerror();
    failure.set(NF_NO_DEVICE, std::string("no CUDA driver: tried ") + kLibrary +
                                  (why ? ": " + std::string(why) : ""));
    return nullptr;
  }
  Driver found{};
  found.library = library;
  const std::pair<const char *, void *> names[] = {
      {"cuInit", &found.init},
      {"cuDriverGetVersion", &found.driverVersion},
      {"cuGetErrorName", &found.errorName},
      {"cuGetErrorString", &found.errorString},
      {"cuCtxGetCurrent", &found.currentContext},
      {"cuCtxPushCurrent_v2", &found.pushContext},
      {"cuCtxPopCurrent_v2", &found.popContext},
      {"cuCtxGetDevice", &found.contextDevice},
      {"cuDeviceGetName", &found.deviceName},
      {"cuDeviceGetAttribute", &found.deviceAttribute},
      {"cuModuleLoadDataEx", &found.loadModule},
      {"cuModuleUnload", &found.unloadModule},
      {"cuModuleGetFunction", &found.moduleFunction},
      {"cuFuncSetAttribute", &found.setFunctionAttribute},
      {"cuLaunchKernel", &found.launch},
      {"cuPointerGetAttributes", &found.pointerAttributes}};
  if (!findAll(library, names, failure)) {
    dlclose(library);
    return nullptr;
  }
  if (const Result result = found.init(0); result != kSuccess) {
    failure.set(NF_NO_DEVICE, "the CUDA driver finds no GPU: cuInit: " + found.text(result));
    dlclose(library);
    return nullptr;
  }
  driver = found;
  isOpen = true;
  return &driver;
}

class CudaDevice : public DeviceContext {
public:
  CudaDevice(const Driver &driver, Context context) : driver_(driver), context_(context) {}

  /// Asks the context for its device.
  bool identify(Failure &failure);

  bool runs(const Artifact &artifact, Failure &failure) const override;
  std::unique_ptr<DeviceModule> load(const Variant &variant, Failure &failure) const override;
  std::string problemOf(const void *pointer, uint64_t bytes) const override;
  bool enter(bool &isOther, Failure &failure) const override;
  void leave(bool isOther) const override;
  bool launch(const DeviceLaunch &launch, Failure &failure) const override;

private:
  /// Unloads in the context that it was loaded in; where that is gone, so is the module.
  class Module : public DeviceModule {
  public:
    Module(const CudaDevice &device) : device_(device) {}
    ~Module() override {
      bool isOther = false;
      Failure ignored;
      if (!module || !device_.enter(isOther, ignored))
        return;
      device_.driver_.unloadModule(module);
      device_.leave(isOther);
    }
    std::vector<void *> &functions() { return functions_; }
    void *module = nullptr;

  private:
    const CudaDevice &device_; ///< outlives what is loaded in it
  };

  const Driver &driver_;
  const Context context_;
  int capability_ = 0;     ///< 90
  bool readsHost_ = false; ///< all memory of the host's
};

bool CudaDevice::enter(bool &isOther, Failure &failure) const {
  Context current = nullptr;
  if (const Result result = driver_.currentContext(&current); result != kSuccess)
    return driver_.fail(failure, "cuCtxGetCurrent", result);
  isOther = current != context_;
  if (!isOther)
    return true;
  const Result result = driver_.pushContext(context_);
  return result == kSuccess ||
         driver_.fail(failure, "the device's context cannot be made current: cuCtxPushCurrent",
                      result);
}

void CudaDevice::leave(bool isOther) const {
  Context own = nullptr;
  if (isOther)
    driver_.popContext(&own);
}

bool CudaDevice::identify(Failure &failure) {
  bool isOther = false;
  if (!enter(isOther, failure))
    return false;
  int device = 0, major = 0, minor = 0, pageable = 0;
  std::array<char, 256> name{};
  Result result = driver_.contextDevice(&device);
  for (auto [value, attribute] : {std::pair(&major, kMajor), std::pair(&minor, kMinor),
                                  std::pair(&pageable, kPageableAccess)})
    if (result == kSuccess)
      result = driver_.deviceAttribute(value, attribute, device);
  if (result == kSuccess)
    result = driver_.deviceName(name.data(), static_cast<int>(name.size()) - 1, device);
  leave(isOther);
  if (result != kSuccess)
    return driver_.fail(failure, "the context's device cannot be told", result);
  name_ = name.data();
  capability_ = major * 10 + minor;
  readsHost_ = pageable != 0;
  // Assembly for a GPU runs on all later ones: the nearest that the compiler knows.
  for (int known : cudaCapabilities)
    if (known <= capability_)
      cpu_ = "sm_" + std::to_string(known);
  return !cpu_.empty() ||
         failure.set(NF_WRONG_MACHINE, name_ + " is sm_" + std::to_string(capability_) +
                                           "; kernels are for sm_" +
                                           std::to_string(cudaCapabilities[0]) + " and later");
}

bool CudaDevice::runs(const Artifact &artifact, Failure &failure) const {
  const std::optional<int> wanted = capabilityOf(artifact.cpu);
  if (artifact.entry != EntryKind::Launch || !wanted)
    return failure.set(NF_WRONG_MACHINE, "kernel '" + artifact.name + "' is for the CPU " +
                                             artifact.cpu + ", not for a GPU");
  return *wanted <= capability_ ||
         failure.set(NF_WRONG_MACHINE, "kernel '" + artifact.name + "' is for " + artifact.cpu +
                                           "; this GPU, " + name_ + ", is sm_" +
                                           std::to_string(capability_));
}

std::unique_ptr<DeviceModule> CudaDevice::load(const Variant &variant, Failure &failure) const {
  bool isOther = false;
  if (!enter(isOther, failure))
    return nullptr;
  auto loaded = std::make_unique<Module>(*this);
  std::array<char, 4096> log{};
  int names[] = {kErrorLog, kErrorLogBytes};
  void *values[] = {log.data(), reinterpret_cast<void *>(log.size() - 1)};
  Result result = driver_.loadModule(&loaded->module, variant.image.bytes.data(), 2, names, values);
  bool isDone = result == kSuccess;
  if (!isDone) {
    loaded->module = nullptr;
    std::string text = "the driver does not take the kernel's code: " + driver_.text(result);
    int version = 0;
    if (result == kUnsupportedPtx && driver_.driverVersion(&version) == kSuccess)
      text += "; the driver is of CUDA " + std::to_string(version / 1000) + "." +
              std::to_string(version % 1000 / 10);
    if (log[0])
      text += ": " + std::string(log.data());
    failure.set(result == kInvalidPtx       ? NF_BAD_ARTIFACT
                : result == kUnsupportedPtx ? NF_WRONG_MACHINE
                : result == kOutOfMemory    ? NF_OUT_OF_MEMORY
                                            : NF_DEVICE_ERROR,
                std::move(text));
  }
  for (const Stage &stage : variant.stages) {
    void *function = nullptr;
    if (!isDone)
      break;
    result = driver_.moduleFunction(&function, loaded->module, stage.symbol.c_str());
    if (result != kSuccess)
      isDone =
          driver_.fail(failure, "stage '" + stage.symbol + "' is not in the kernel's code", result);
    if (isDone && stage.launch.sharedBytes > kSharedBytes) {
      result = driver_.setFunctionAttribute(function, kMostSharedBytes,
                                            static_cast<int>(stage.launch.sharedBytes));
      if (result != kSuccess)
        isDone =
            driver_.fail(failure,
                         "stage '" + stage.symbol + "' takes " +
                             std::to_string(stage.launch.sharedBytes) + " bytes of shared memory",
                         result);
    }
    loaded->functions().push_back(function);
  }
  leave(isOther);
  if (!isDone)
    return nullptr;
  return loaded;
}

std::string CudaDevice::problemOf(const void *pointer, uint64_t bytes) const {
  unsigned type = 0;
  Pointer start = 0;
  size_t size = 0;
  int names[] = {kMemoryType, kRangeStart, kRangeSize};
  void *values[] = {&type, &start, &size};
  const auto address = static_cast<Pointer>(reinterpret_cast<uintptr_t>(pointer));
  const Result result = driver_.pointerAttributes(3, names, values, address);
  if (result != kSuccess && result != kInvalidValue)
    return "cannot be told of: " + driver_.text(result);
  if (type == 0 || result != kSuccess) // it is not of CUDA's
    return readsHost_ ? "" : "is memory of the host, which this GPU cannot read";
  if (size > 0 && (address < start || bytes > size - (address - start)))
    return "is memory of " + std::to_string(size - (address - start)) + " bytes; expected " +
           std::to_string(bytes);
  return {};
}

bool CudaDevice::launch(const DeviceLaunch &launch, Failure &failure) const {
  const Result result =
      driver_.launch(launch.function, launch.blocks, 1, 1, launch.threads, 1, 1, launch.sharedBytes,
                     launch.queue, launch.parameters, nullptr);
  return result == kSuccess || driver_.fail(failure, "cuLaunchKernel", result);
}

} // namespace

std::optional<int> capabilityOf(std::string_view cpu) {
  int number = 0;
  if (!cpu.starts_with("sm_"))
    return std::nullopt;
  cpu.remove_prefix(3);
  const auto [end, error] = std::from_chars(cpu.data(), cpu.data() + cpu.size(), number);
  return error == std::errc() && end == cpu.data() + cpu.size() && number > 0
             ? std::optional(number)
             : std::nullopt;
}

bool findCudaFunctions(std::span<const std::pair<const char *, void *>> functions,
                       Failure &failure) {
  const Driver *driver = findDriver(failure);
  return driver && findAll(driver->library, functions, failure);
}

bool failCuda(const std::string &what, int result, Failure &failure) {
  const Driver *driver = findDriver(failure);
  return driver && driver->fail(failure, what, result);
}

std::shared_ptr<const DeviceContext> openCuda(void *context, Failure &failure) {
  const Driver *driver = findDriver(failure);
  if (!driver)
    return nullptr;
  if (!context) {
    const Result result = driver->currentContext(&context);
    if (result != kSuccess || !context) {
      failure.set(NF_NO_DEVICE, "no CUDA context is current in this thread" +
                                    (result == kSuccess
                                         ? std::string("; cudaFree(0) or cuCtxSetCurrent makes one")
                                         : ": " + driver->text(result)));
      return nullptr;
    }
  }
  auto device = std::make_shared<CudaDevice>(*driver, context);
  if (!device->identify(failure))
    return nullptr;
  return device;
}

} // namespace normforge
