// A libcuda.so.1 without a GPU: memory of the host's, kernels by an interpreter of their assembly.
//
// It has the entry points that the runtime and the examples use, and finds what a driver would not:
// accesses outside of allocations, races, launches that no GPU takes. A launch runs to its end at
// once, or becomes part of a graph; what goes wrong in a kernel is reported on standard error and
// is the context's error from then on. NORMFORGE_EMULATED_GPU=86 makes it an sm_86; 0: there is
// none.
#include "tests/device/Ptx.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sys/mman.h>
#include <vector>

namespace {

using Result = int;
using Pointer = unsigned long long;
enum : Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNoDevice = 100,
  kInvalidContext = 201,
  kInvalidPtx = 218,
  kUnsupportedPtx = 222,
  kInvalidHandle = 400,
  kNotFound = 500,
  kLaunchFailed = 719,
  kContextIsDestroyed = 709,
  kCapture = 900,
};

struct Context {
  Result broken = kSuccess;
};
struct Node { ///< a launch, or a copy
  const ptx::Function *function = nullptr;
  ptx::Launch launch{};
  Pointer to = 0, from = 0;
  size_t bytes = 0;
};
struct Stream {
  Context *context = nullptr;
  std::unique_ptr<std::vector<Node>> captured{}; ///< while it captures
};
struct LoadedFunction {
  Context *context = nullptr;
  const ptx::Function *function = nullptr;
  int mostShared = 48 << 10;
};
struct LoadedModule {
  Context *context = nullptr;
  std::unique_ptr<ptx::Module> module{};
  std::map<std::string, LoadedFunction> functions{};
};
struct Allocation {
  size_t bytes = 0;
  char *pages = nullptr;
  size_t mapped = 0;
  uint64_t loaded = 0, stored = 0; ///< bytes, by all kernels
};

struct State {
  std::recursive_mutex mutex;
  std::map<Pointer, Allocation> allocations;
  std::set<Context *> contexts;
  std::set<Stream *> streams;
  uint64_t launches = 0;
};
State &state() {
  static State *all = new State; // outlives what the host unloads at its end
  return *all;
}
thread_local std::vector<Context *> current;
Stream *captures = nullptr; ///< the stream at it, of any thread

int capability() {
  const char *given = std::getenv("NORMFORGE_EMULATED_GPU");
  return given ? std::atoi(given) : 90;
}

Allocation *find(Pointer address, Pointer *start) {
  auto next = state().allocations.upper_bound(address);
  if (next == state().allocations.begin())
    return nullptr;
  --next;
  *start = next->first;
  return address - next->first <= next->second.bytes ? &next->second : nullptr;
}

Result runNode(Context *context, const Node &node) {
  if (!node.function) {
    std::memmove(reinterpret_cast<void *>(node.to), reinterpret_cast<void *>(node.from),
                 node.bytes);
    return kSuccess;
  }
  ++state().launches;
  auto mayAccess = [](uint64_t address, uint64_t bytes, bool stores) {
    Pointer start = 0;
    Allocation *allocation = find(address, &start);
    if (!allocation || address - start + bytes > allocation->bytes)
      return false;
    (stores ? allocation->stored : allocation->loaded) += bytes;
    return true;
  };
  const auto error = ptx::run(*node.function, node.launch, mayAccess);
  if (!error)
    return kSuccess;
  std::fprintf(stderr, "normforge: emulated CUDA: %s\n", error->c_str());
  context->broken = kLaunchFailed;
  return kLaunchFailed;
}

Result currentContext(Context **context) {
  *context = current.empty() ? nullptr : current.back();
  if (!*context)
    return kInvalidContext;
  return state().contexts.contains(*context) ? (*context)->broken : kContextIsDestroyed;
}

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Result cuInit(unsigned) { return capability() > 0 ? kSuccess : kNoDevice; }
EXPORT Result cuDriverGetVersion(int *version) {
  *version = 12040;
  return kSuccess;
}
EXPORT Result cuGetErrorName(Result result, const char **name) {
  const std::map<Result, const char *> names = {
      {kSuccess, "CUDA_SUCCESS"},
      {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
      {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"},
      {kNoDevice, "CUDA_ERROR_NO_DEVICE"},
      {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
      {kInvalidPtx, "CUDA_ERROR_INVALID_PTX"},
      {kUnsupportedPtx, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
      {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"},
      {kNotFound, "CUDA_ERROR_NOT_FOUND"},
      {kContextIsDestroyed, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
      {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED"},
      {kCapture, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}};
  const auto found = names.find(result);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? kInvalidValue : kSuccess;
}
EXPORT Result cuGetErrorString(Result, const char **text) {
  *text = "as the emulated driver has it";
  return kSuccess;
}

// Devices and contexts.
EXPORT Result cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 && capability() > 0 ? kSuccess : kInvalidValue;
}
EXPORT Result cuDeviceGetName(char *name, int bytes, int) {
  std::snprintf(name, static_cast<size_t>(bytes), "emulated GPU");
  return kSuccess;
}
EXPORT Result cuDeviceGetAttribute(int *value, int attribute, int) {
  *value = attribute == 75   ? capability() / 10
           : attribute == 76 ? capability() % 10
           : attribute == 38 ? 1 << 20 // bytes of L2
                             : 0;
  return kSuccess;
}
EXPORT Result cuCtxCreate_v2(Context **context, unsigned, int) {
  const std::lock_guard lock(state().mutex);
  *context = new Context;
  state().contexts.insert(*context);
  current.push_back(*context);
  return kSuccess;
}
EXPORT Result cuCtxDestroy_v2(Context *context) {
  const std::lock_guard lock(state().mutex);
  if (!state().contexts.erase(context))
    return kInvalidContext;
  std::erase(current, context); // what it pointed to stays, for who asks
  return kSuccess;
}
EXPORT Result cuDevicePrimaryCtxRetain(Context **context, int) {
  static Context *primary = nullptr;
  const std::lock_guard lock(state().mutex);
  if (!primary)
    state().contexts.insert(primary = new Context);
  *context = primary;
  return kSuccess;
}
EXPORT Result cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
EXPORT Result cuCtxGetCurrent(Context **context) {
  *context = current.empty() ? nullptr : current.back();
  return kSuccess;
}
EXPORT Result cuCtxSetCurrent(Context *context) {
  if (!current.empty())
    current.pop_back();
  if (context)
    current.push_back(context);
  return kSuccess;
}
EXPORT Result cuCtxPushCurrent_v2(Context *context) {
  const std::lock_guard lock(state().mutex);
  if (!state().contexts.contains(context))
    return kContextIsDestroyed;
  current.push_back(context);
  return kSuccess;
}
EXPORT Result cuCtxPopCurrent_v2(Context **context) {
  if (current.empty())
    return kInvalidContext;
  *context = current.back();
  current.pop_back();
  return kSuccess;
}
EXPORT Result cuCtxGetDevice(int *device) {
  *device = 0;
  Context *context = nullptr;
  return currentContext(&context);
}

// Memory, with a page that nobody may touch behind it.
EXPORT Result cuMemAlloc_v2(Pointer *pointer, size_t bytes) {
  const std::lock_guard lock(state().mutex);
  constexpr size_t kPage = 4096, kAlignment = 256;
  if (bytes == 0)
    return kInvalidValue;
  const size_t mapped = (bytes + kAlignment + kPage - 1) / kPage * kPage + kPage;
  void *pages = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED)
    return kOutOfMemory;
  mprotect(static_cast<char *>(pages) + mapped - kPage, kPage, PROT_NONE);
  const size_t offset = (mapped - kPage - bytes) / kAlignment * kAlignment;
  *pointer = reinterpret_cast<uintptr_t>(pages) + offset;
  std::memset(reinterpret_cast<void *>(*pointer), 0xff, bytes); // NaN
  state().allocations[*pointer] = {bytes, static_cast<char *>(pages), mapped};
  return kSuccess;
}
/// No driver's: bytes that kernels have loaded from an allocation so far, and stored to it.
EXPORT Result nfEmulatedTraffic(Pointer pointer, uint64_t *loaded, uint64_t *stored) {
  const std::lock_guard lock(state().mutex);
  const auto found = state().allocations.find(pointer);
  if (found == state().allocations.end())
    return kInvalidValue;
  *loaded = found->second.loaded;
  *stored = found->second.stored;
  return kSuccess;
}
EXPORT Result cuMemFree_v2(Pointer pointer) {
  const std::lock_guard lock(state().mutex);
  const auto found = state().allocations.find(pointer);
  if (found == state().allocations.end())
    return kInvalidValue;
  munmap(found->second.pages, found->second.mapped);
  state().allocations.erase(found);
  return kSuccess;
}
EXPORT Result cuMemcpyHtoD_v2(Pointer to, const void *from, size_t bytes) {
  std::memcpy(reinterpret_cast<void *>(to), from, bytes);
  return kSuccess;
}
EXPORT Result cuMemcpyDtoH_v2(void *to, Pointer from, size_t bytes) {
  std::memcpy(to, reinterpret_cast<const void *>(from), bytes);
  Context *context = nullptr;
  return currentContext(&context);
}
EXPORT Result cuPointerGetAttributes(unsigned count, int *names, void **values, Pointer pointer) {
  const std::lock_guard lock(state().mutex);
  Pointer start = 0;
  const Allocation *allocation = find(pointer, &start);
  for (unsigned i = 0; i < count; ++i)
    if (names[i] == 2)
      *static_cast<unsigned *>(values[i]) = allocation ? 2 : 0;
    else if (names[i] == 11)
      *static_cast<Pointer *>(values[i]) = allocation ? start : 0;
    else if (names[i] == 12)
      *static_cast<size_t *>(values[i]) = allocation ? allocation->bytes : 0;
  return kSuccess;
}

EXPORT Result cuMemsetD8_v2(Pointer pointer, unsigned char value, size_t bytes) {
  std::memset(reinterpret_cast<void *>(pointer), value, bytes);
  return kSuccess;
}
EXPORT Result cuMemsetD8Async(Pointer pointer, unsigned char value, size_t bytes, Stream *) {
  return cuMemsetD8_v2(pointer, value, bytes);
}
EXPORT Result cuMemcpyDtoD_v2(Pointer to, Pointer from, size_t bytes) {
  std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
  return kSuccess;
}
EXPORT Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, Stream *stream) {
  if (stream && stream->captured) {
    stream->captured->push_back({nullptr, {}, to, from, bytes});
    return kSuccess;
  }
  return cuMemcpyDtoD_v2(to, from, bytes);
}

// Events: times of the host's.
EXPORT Result cuEventCreate(double **event, unsigned) {
  *event = new double(0);
  return kSuccess;
}
EXPORT Result cuEventDestroy_v2(double *event) {
  delete event;
  return kSuccess;
}
EXPORT Result cuEventRecord(double *event, Stream *) {
  *event =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
          .count();
  return kSuccess;
}
EXPORT Result cuEventElapsedTime(float *milliseconds, double *begin, double *end) {
  *milliseconds = static_cast<float>(*end - *begin);
  return kSuccess;
}

// Modules.
EXPORT Result cuModuleLoadDataEx(LoadedModule **module, const void *image, unsigned count,
                                 int *names, void **values) {
  const std::lock_guard lock(state().mutex);
  *module = nullptr;
  Context *context = nullptr;
  if (const Result result = currentContext(&context); result != kSuccess)
    return result;
  if (captures)
    return kCapture;
  std::string error;
  auto loaded = std::make_unique<LoadedModule>();
  loaded->context = context;
  loaded->module = ptx::Module::read(static_cast<const char *>(image), error);
  if (!loaded->module) {
    for (unsigned i = 0; i < count; ++i)
      if (names[i] == 5)
        std::snprintf(static_cast<char *>(values[i]), 1024, "%s", error.c_str());
    return kInvalidPtx;
  }
  if (loaded->module->version() > 84) // as CUDA 12.4
    return kUnsupportedPtx;
  if (loaded->module->target() > capability())
    return kInvalidPtx;
  *module = loaded.release();
  return kSuccess;
}
EXPORT Result cuModuleUnload(LoadedModule *module) {
  const std::lock_guard lock(state().mutex);
  delete module;
  return kSuccess;
}
EXPORT Result cuModuleGetFunction(LoadedFunction **function, LoadedModule *module,
                                  const char *name) {
  const std::lock_guard lock(state().mutex);
  const ptx::Function *found = module->module->find(name);
  if (!found)
    return kNotFound;
  LoadedFunction &loaded = module->functions[name];
  loaded.context = module->context;
  loaded.function = found;
  *function = &loaded;
  return kSuccess;
}
EXPORT Result cuFuncSetAttribute(LoadedFunction *function, int attribute, int value) {
  if (attribute != 8 || value > 227 << 10)
    return kInvalidValue;
  function->mostShared = value;
  return kSuccess;
}

// Streams, graphs and launches.
EXPORT Result cuStreamCreate(Stream **stream, unsigned) {
  const std::lock_guard lock(state().mutex);
  Context *context = nullptr;
  if (const Result result = currentContext(&context); result != kSuccess)
    return result;
  *stream = new Stream{context};
  state().streams.insert(*stream);
  return kSuccess;
}
EXPORT Result cuStreamDestroy_v2(Stream *stream) {
  const std::lock_guard lock(state().mutex);
  state().streams.erase(stream);
  delete stream;
  return kSuccess;
}
EXPORT Result cuStreamSynchronize(Stream *stream) {
  Context *context = nullptr;
  const Result result = currentContext(&context);
  return stream && stream->captured ? kCapture : result;
}
EXPORT Result cuCtxSynchronize() {
  Context *context = nullptr;
  return captures ? kCapture : currentContext(&context);
}
EXPORT Result cuStreamBeginCapture_v2(Stream *stream, int) {
  stream->captured = std::make_unique<std::vector<Node>>();
  captures = stream;
  return kSuccess;
}
EXPORT Result cuStreamEndCapture(Stream *stream, std::vector<Node> **graph) {
  *graph = stream->captured.release();
  captures = nullptr;
  return kSuccess;
}
EXPORT Result cuGraphInstantiateWithFlags(std::vector<Node> **made, std::vector<Node> *graph,
                                          unsigned long long) {
  *made = new std::vector<Node>(*graph);
  return kSuccess;
}
EXPORT Result cuGraphLaunch(std::vector<Node> *graph, Stream *stream) {
  const std::lock_guard lock(state().mutex);
  for (const Node &node : *graph)
    if (const Result result = runNode(stream->context, node); result != kSuccess)
      return result;
  return kSuccess;
}
EXPORT Result cuGraphDestroy(std::vector<Node> *graph) {
  delete graph;
  return kSuccess;
}
EXPORT Result cuGraphExecDestroy(std::vector<Node> *graph) {
  delete graph;
  return kSuccess;
}

EXPORT Result cuLaunchKernel(LoadedFunction *function, unsigned gridX, unsigned gridY,
                             unsigned gridZ, unsigned blockX, unsigned blockY, unsigned blockZ,
                             unsigned sharedBytes, Stream *stream, void **parameters, void **) {
  const std::lock_guard lock(state().mutex);
  Context *context = nullptr;
  if (const Result result = currentContext(&context); result != kSuccess)
    return result;
  if (stream && (!state().streams.contains(stream) || stream->context != function->context))
    return kInvalidHandle;
  if (!stream && function->context != context)
    return kInvalidContext;
  if (gridX == 0 || gridY != 1 || gridZ != 1 || blockY != 1 || blockZ != 1 || blockX == 0 ||
      blockX > static_cast<unsigned>(function->function->mostThreads) ||
      sharedBytes > static_cast<unsigned>(function->mostShared))
    return kInvalidValue;
  Node node{function->function, {gridX, blockX, sharedBytes, {}}};
  for (size_t i = 0; i < function->function->parameterBytes.size(); ++i) {
    uint64_t value = 0;
    std::memcpy(&value, parameters[i], static_cast<size_t>(function->function->parameterBytes[i]));
    node.launch.parameters.push_back(value);
  }
  if (stream && stream->captured) {
    stream->captured->push_back(std::move(node));
    return kSuccess;
  }
  return runNode(stream ? stream->context : context, node);
}

/// For tests: launches so far, of all contexts.
EXPORT unsigned long long normforgeEmulatedLaunches() { return state().launches; }
