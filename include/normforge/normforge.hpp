// A C++20 wrapper of normforge.h: handles that free themselves, spans, and exceptions.
//
//   nf::Engine engine;
//   nf::Kernel kernel = engine.compile(text);
//   nf::Plan plan = kernel.plan({8});
//   plan.run(args);
//
// Header only: exceptions are thrown and caught in the host's code, none crosses the library. What
// each function means, its errors and its threads: normforge.h. Handles are cheap to copy; copies
// share one object.
#ifndef NORMFORGE_NORMFORGE_HPP
#define NORMFORGE_NORMFORGE_HPP

#if __cplusplus < 202002L && !(defined(_MSVC_LANG) && _MSVC_LANG >= 202002L)
#error "normforge.hpp needs C++20 (-std=c++20); normforge.h is for C and older C++"
#else // compilers go on after #error

#include "normforge/normforge.h"

#include <concepts>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace nf {

/// The exception that every failing function throws.
class Error : public std::runtime_error {
public:
  Error(nf_code code, const std::string &message) : std::runtime_error(message), code_(code) {}
  nf_code code() const noexcept { return code_; }

private:
  nf_code code_;
};

namespace detail {

/// Frees the status and throws it as an Error; nothing for success.
inline void check(nf_status *status) {
  if (!status)
    return;
  struct Free {
    nf_status *status;
    ~Free() { nf_status_free(status); }
  } free{status};
  throw Error(nf_status_code(status), nf_status_message(status));
}

/// Owns one reference of an object.
template <typename T, void (*Retain)(T *), void (*Release)(T *)> class Handle {
public:
  explicit Handle(T *owned) noexcept : object_(owned) {}
  Handle(const Handle &other) noexcept : object_(other.object_) { Retain(object_); }
  Handle(Handle &&other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Handle &operator=(Handle other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Handle() { Release(object_); }
  T *get() const noexcept { return object_; }

private:
  T *object_;
};

} // namespace detail

/// Memory for nf_run, aligned as it must be; for one call at a time.
class Workspace {
public:
  Workspace() = default;
  explicit Workspace(uint64_t bytes)
      : memory_(bytes == 0 ? nullptr : ::operator new(static_cast<size_t>(bytes), alignment)) {}
  Workspace(Workspace &&other) noexcept : memory_(std::exchange(other.memory_, nullptr)) {}
  Workspace &operator=(Workspace &&other) noexcept {
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~Workspace() {
    if (memory_)
      ::operator delete(memory_, alignment);
  }
  void *get() const noexcept { return memory_; }

private:
  static constexpr std::align_val_t alignment{NF_WORKSPACE_ALIGNMENT};
  void *memory_ = nullptr;
};

/// Threads for hosts that have none of their own.
class Threads : public detail::Handle<nf_threads, nf_threads_retain, nf_threads_release> {
public:
  using Handle::Handle;

  /// 0: as many as this process may use.
  explicit Threads(uint32_t count = 0) : Handle(make(count)) {}
  uint32_t count() const { return nf_threads_count(get()); }
  /// For Engine::Options or Plan::run; lives as long as these.
  const nf_executor &executor() const { return *nf_threads_executor(get()); }

private:
  static nf_threads *make(uint32_t count) {
    nf_threads *threads = nullptr;
    detail::check(nf_threads_create(count, &threads));
    return threads;
  }
};

/// A GPU of the host's: a context of its driver. Engine::cuda() makes one.
class Device : public detail::Handle<nf_device, nf_device_retain, nf_device_release> {
public:
  using Handle::Handle;

  /// For Engine::CompileOptions: "sm_90".
  std::string cpu() const { return nf_device_cpu(get()); }
  std::string_view name() const { return nf_device_name(get()); }
};

/// A kernel for fixed sizes.
class Plan : public detail::Handle<nf_plan, nf_plan_retain, nf_plan_release> {
public:
  using Handle::Handle;

  std::span<const int64_t> shape(size_t argument) const {
    return {nf_plan_argument_shape(get(), argument), nf_plan_argument_rank(get(), argument)};
  }
  uint64_t bytes(size_t argument) const { return nf_plan_argument_bytes(get(), argument); }
  uint64_t workspaceBytes() const { return nf_plan_workspace_bytes(get()); }
  Workspace makeWorkspace() const { return Workspace(workspaceBytes()); }
  size_t variant() const { return nf_plan_variant(get()); }
  /// The arrays that the ranks of a shared batch exchange, as normforge.h says.
  nf_exchange exchange() const {
    nf_exchange made{};
    made.struct_size = sizeof made;
    detail::check(nf_plan_exchange(get(), &made));
    return made;
  }
  void merge(const void *partials, size_t ranks, void *merged) const {
    detail::check(nf_plan_merge(get(), partials, ranks, merged));
  }
  size_t stageCount() const { return nf_plan_stage_count(get()); }
  uint64_t tasks(size_t stage) const { return nf_plan_stage_tasks(get(), stage); }
  uint64_t bytesPerTask(size_t stage) const { return nf_plan_stage_bytes_per_task(get(), stage); }
  /// For hosts that run the stages themselves, as normforge.h says.
  nf_stage_fn *stage(size_t stage) const { return nf_plan_stage_function(get(), stage); }
  const char *stageName(size_t stage) const { return nf_plan_stage_name(get(), stage); }
  const int64_t *sizes() const { return nf_plan_sizes(get()); }
  void check(std::span<void *const> args, std::span<const double> scalars = {},
             const void *workspace = nullptr) const {
    detail::check(
        nf_plan_check(get(), args.data(), args.size(), scalars.data(), scalars.size(), workspace));
  }

  void check(const nf_call &call) const { detail::check(nf_plan_check_call(get(), &call)); }

  /// Without a workspace, one is taken from the engine's allocator where the plan needs any;
  /// without an executor, the engine's is used, or where it has none the calling thread.
  void run(std::span<void *const> args, std::span<const double> scalars = {},
           void *workspace = nullptr, const nf_executor *executor = nullptr) const {
    detail::check(nf_run(get(), args.data(), args.size(), scalars.data(), scalars.size(), workspace,
                         executor));
  }

  /// Launches on `stream` and returns; `args` and `workspace` are the device's memory.
  void enqueue(const Device &device, std::span<void *const> args,
               std::span<const double> scalars = {}, void *workspace = nullptr,
               void *stream = nullptr) const {
    detail::check(nf_enqueue(get(), device.get(), args.data(), args.size(), scalars.data(),
                             scalars.size(), workspace, stream));
  }
};

/// A compiled kernel.
class Kernel : public detail::Handle<nf_kernel, nf_kernel_retain, nf_kernel_release> {
public:
  using Handle::Handle;

  std::string_view name() const { return nf_kernel_name(get()); }
  nf_phase phase() const { return nf_kernel_phase(get()); }
  std::string_view cpu() const { return nf_kernel_cpu(get()); }
  size_t argumentCount() const { return nf_kernel_argument_count(get()); }
  std::string_view argumentName(size_t i) const { return text(nf_kernel_argument_name(get(), i)); }
  nf_dtype argumentDType(size_t i) const { return nf_kernel_argument_dtype(get(), i); }
  /// Over the named sizes: "(N, 64, 56, 56)".
  std::string_view argumentShape(size_t i) const {
    return text(nf_kernel_argument_shape(get(), i));
  }
  bool isWritten(size_t i) const { return nf_kernel_argument_is_written(get(), i) != 0; }
  nf_role role(size_t i) const { return nf_kernel_argument_role(get(), i); }
  /// The argument whose next value a written state or parameter is; NF_NOT_FOUND.
  size_t old(size_t i) const { return nf_kernel_argument_old(get(), i); }
  /// NF_NOT_FOUND where there is none of this name.
  size_t findArgument(const std::string &name, bool written) const {
    return nf_kernel_find_argument(get(), name.c_str(), written);
  }
  /// Its word for what a framework calls `theirs`: "gamma" for "weight"; empty where it has none.
  std::string_view ownName(const std::string &theirs) const {
    return text(nf_kernel_own_name(get(), theirs.c_str()));
  }
  bool mayAlias(size_t written, size_t read) const {
    return nf_kernel_may_alias(get(), written, read) != 0;
  }
  size_t variantCount() const { return nf_kernel_variant_count(get()); }
  size_t sizeCount() const { return nf_kernel_size_count(get()); }
  std::string_view sizeName(size_t i) const { return text(nf_kernel_size_name(get(), i)); }
  size_t scalarCount() const { return nf_kernel_scalar_count(get()); }
  std::string_view scalarName(size_t i) const { return text(nf_kernel_scalar_name(get(), i)); }
  /// Who chose it and why.
  std::string_view reason(size_t variant) const {
    return text(nf_kernel_variant_reason(get(), variant));
  }
  std::string_view schedule(size_t variant) const {
    return text(nf_kernel_variant_schedule(get(), variant));
  }

  /// The named sizes that the shapes of arguments tell; one that is nothing is not known.
  std::vector<int64_t>
  matchSizes(std::span<const std::optional<std::span<const int64_t>>> shapes) const {
    std::vector<const int64_t *> first;
    std::vector<size_t> ranks;
    for (const auto &shape : shapes) {
      static constexpr int64_t none = 0; // of no axes, whose span may have no address
      first.push_back(!shape ? nullptr : shape->empty() ? &none : shape->data());
      ranks.push_back(shape ? shape->size() : 0);
    }
    std::vector<int64_t> sizes(sizeCount());
    detail::check(
        nf_kernel_match_sizes(get(), first.data(), ranks.data(), ranks.size(), sizes.data()));
    return sizes;
  }

  /// Loads the code of a GPU's kernel into the device; before a graph's capture.
  void prepare(const Device &device) const {
    detail::check(nf_kernel_prepare(get(), device.get()));
  }

  /// Fixes the named sizes, in their order.
  Plan plan(std::span<const int64_t> sizes = {}) const {
    nf_plan *made = nullptr;
    detail::check(nf_plan_create(get(), sizes.data(), sizes.size(), &made));
    return Plan(made);
  }
  Plan plan(std::initializer_list<int64_t> sizes) const {
    return plan(std::span<const int64_t>(sizes.begin(), sizes.size()));
  }

  /// Bytes that Engine::load reads.
  std::vector<std::byte> save() const {
    uint8_t *bytes = nullptr;
    size_t size = 0;
    detail::check(nf_kernel_save(get(), &bytes, &size));
    struct Free {
      uint8_t *bytes;
      ~Free() { nf_bytes_free(bytes); }
    } free{bytes};
    auto *first = reinterpret_cast<const std::byte *>(bytes);
    return std::vector<std::byte>(first, first + size);
  }

private:
  static std::string_view text(const char *text) { return text ? text : std::string_view(); }
};

/// Kernels in a file, compiled ahead of time.
class Pack : public detail::Handle<nf_pack, nf_pack_retain, nf_pack_release> {
public:
  using Handle::Handle;

  size_t size() const { return nf_pack_kernel_count(get()); }
  std::string_view name(size_t i) const {
    const char *text = nf_pack_kernel_name(get(), i);
    return text ? text : std::string_view();
  }
  nf_phase phase(size_t i) const { return nf_pack_kernel_phase(get(), i); }

  /// With a `cpu`, that of the pack's kernels that is for it.
  Kernel load(const std::string &name, nf_phase phase = NF_INFERENCE,
              const std::string &cpu = {}) const {
    nf_kernel *kernel = nullptr;
    detail::check(nf_pack_load_for(get(), name.c_str(), phase, cpu.c_str(), &kernel));
    return Kernel(kernel);
  }
  /// The one that runs on a device.
  Kernel load(const std::string &name, nf_phase phase, const Device &device) const {
    nf_kernel *kernel = nullptr;
    detail::check(nf_pack_load_on(get(), name.c_str(), phase, device.get(), &kernel));
    return Kernel(kernel);
  }
  /// Nothing where the pack has no such kernel, or has it for other machines alone.
  std::optional<Kernel> find(const std::string &name, nf_phase phase = NF_INFERENCE) const {
    nf_kernel *kernel = nullptr;
    nf_status *status = nf_pack_load(get(), name.c_str(), phase, &kernel);
    const nf_code code = nf_status_code(status);
    if (code == NF_NO_KERNEL || code == NF_WRONG_MACHINE) {
      nf_status_free(status);
      return std::nullopt;
    }
    detail::check(status);
    return Kernel(kernel);
  }
};

/// A size of a spec's shape: a number, or a name for one that the call tells.
struct Size {
  int64_t number = 0;
  const char *name = nullptr;
  template <std::integral T> Size(T number) : number(static_cast<int64_t>(number)) {}
  Size(const char *name) : name(name) {}
};

/// A spec put together key by key, as nf_spec is:
///
///   nf::Spec().input({"N", 768}, "nc").set("mode", "layer").set("epsilon",
///   1e-5).step("gelu").text()
class Spec {
public:
  Spec() {
    nf_spec *spec = nullptr;
    detail::check(nf_spec_create(&spec));
    spec_.reset(spec);
  }

  Spec &input(std::initializer_list<Size> shape, const std::string &layout = {},
              nf_dtype dtype = NF_F32) {
    std::vector<int64_t> sizes;
    std::vector<const char *> names;
    for (const Size &size : shape) {
      sizes.push_back(size.number);
      names.push_back(size.name);
    }
    detail::check(nf_spec_input(spec_.get(), sizes.data(), names.data(), sizes.size(),
                                layout.empty() ? nullptr : layout.c_str(), dtype));
    return *this;
  }
  Spec &set(const std::string &key, const char *text) {
    detail::check(nf_spec_set_text(spec_.get(), key.c_str(), text));
    return *this;
  }
  Spec &set(const std::string &key, const std::string &text) { return set(key, text.c_str()); }
  Spec &set(const std::string &key, double number) {
    detail::check(nf_spec_set_number(spec_.get(), key.c_str(), number));
    return *this;
  }
  /// Sets a truth for bool, a number for other integers.
  template <std::integral T> Spec &set(const std::string &key, T value) {
    if constexpr (std::is_same_v<T, bool>)
      detail::check(nf_spec_set_flag(spec_.get(), key.c_str(), value));
    else
      set(key, static_cast<double>(value));
    return *this;
  }
  /// One more word of a list: add("phases", "training").
  Spec &add(const std::string &key, const std::string &word) {
    detail::check(nf_spec_add_word(spec_.get(), key.c_str(), word.c_str()));
    return *this;
  }
  /// One more step of `fuse`: a function and its numbers.
  Spec &step(const std::string &function, std::initializer_list<double> numbers = {},
             const char *steps = "fuse") {
    detail::check(nf_spec_add_function(spec_.get(), steps, function.c_str(), numbers.begin(),
                                       numbers.size()));
    return *this;
  }
  /// One more that takes an operand: "add", "mul", "bias"; without a name it has the default one.
  Spec &operand(const std::string &operation, const std::string &name = {},
                const char *steps = "fuse") {
    detail::check(nf_spec_add_operand(spec_.get(), steps, operation.c_str(),
                                      name.empty() ? nullptr : name.c_str()));
    return *this;
  }
  /// One more that is a formula of x.
  Spec &formula(const std::string &text, const char *steps = "fuse") {
    detail::check(nf_spec_add_formula(spec_.get(), steps, text.c_str()));
    return *this;
  }

  /// For Engine::compile.
  std::string text() const {
    size_t bytes = 0;
    const char *text = nf_spec_text(spec_.get(), &bytes);
    if (!text)
      throw std::bad_alloc();
    return {text, bytes};
  }

private:
  struct Free {
    void operator()(nf_spec *spec) const { nf_spec_free(spec); }
  };
  std::unique_ptr<nf_spec, Free> spec_;
};

/// Where kernels come from.
class Engine : public detail::Handle<nf_engine, nf_engine_retain, nf_engine_release> {
public:
  using Handle::Handle;

  /// As nf_engine_options has them.
  struct Options {
    std::string compilerLibrary{}; ///< empty: looked for beside the runtime's library
    bool perfMap = false;
    std::optional<std::string> cacheDirectory{}; ///< none: the default place; empty: no cache
    uint64_t cacheBytes = 0;                     ///< 0: the default
    nf_log_fn *log = nullptr;
    void *logUser = nullptr;
    bool debugger = false;
    nf_executor executor{};   ///< its struct_size is set here
    nf_allocator allocator{}; ///< so is its
    bool compileInChild = false;
    uint32_t compileSeconds = 0;
    uint64_t compileBytes = 0;
    bool verify = false;
    std::string tunedRecords{}; ///< empty: none of the host's
  };
  Engine() : Engine(Options()) {}
  explicit Engine(const Options &options) : Handle(make(options)) {}

  /// The options that a compile may leave out; empty means the default.
  struct CompileOptions {
    std::string phase{}, cpu{}, sourceName{};
  };
  Kernel compile(std::string_view spec, const CompileOptions &options) const {
    const nf_compile_options o = cOptions(options);
    nf_kernel *kernel = nullptr;
    detail::check(nf_compile(get(), spec.data(), spec.size(), &o, &kernel));
    return Kernel(kernel);
  }
  Kernel compileFile(const std::string &path, const CompileOptions &options) const {
    const nf_compile_options o = cOptions(options);
    nf_kernel *kernel = nullptr;
    detail::check(nf_compile_file(get(), path.c_str(), &o, &kernel));
    return Kernel(kernel);
  }
  Kernel compileFile(const std::string &path) const { return compileFile(path, CompileOptions()); }
  Kernel compile(std::string_view spec) const { return compile(spec, CompileOptions()); }

  Kernel load(std::span<const std::byte> artifact) const {
    nf_kernel *kernel = nullptr;
    detail::check(nf_kernel_load(get(), artifact.data(), artifact.size(), &kernel));
    return Kernel(kernel);
  }

  /// A CUcontext; null: the one that is current in this thread.
  Device cuda(void *context = nullptr) const {
    nf_device *device = nullptr;
    detail::check(nf_device_open(get(), NF_CUDA, context, &device));
    return Device(device);
  }

  Pack openPack(const std::string &path) const {
    nf_pack *pack = nullptr;
    detail::check(nf_pack_open(get(), path.c_str(), &pack));
    return Pack(pack);
  }
  /// `bytes` outlive the pack.
  Pack openPack(std::span<const std::byte> bytes) const {
    nf_pack *pack = nullptr;
    detail::check(nf_pack_open_bytes(get(), bytes.data(), bytes.size(), &pack));
    return Pack(pack);
  }

private:
  /// Over the texts of `options`.
  static nf_compile_options cOptions(const CompileOptions &options) {
    auto orNull = [](const std::string &text) { return text.empty() ? nullptr : text.c_str(); };
    nf_compile_options o = {};
    o.struct_size = sizeof o;
    o.phase = orNull(options.phase);
    o.cpu = orNull(options.cpu);
    o.source_name = orNull(options.sourceName);
    return o;
  }
  static nf_engine *make(const Options &given) {
    nf_engine_options options = {};
    options.struct_size = sizeof options;
    options.perf_map = given.perfMap;
    options.compiler_library =
        given.compilerLibrary.empty() ? nullptr : given.compilerLibrary.c_str();
    options.cache_directory = given.cacheDirectory ? given.cacheDirectory->c_str() : nullptr;
    options.cache_bytes = given.cacheBytes;
    options.log = given.log;
    options.log_user = given.logUser;
    options.debugger = given.debugger;
    nf_executor executor = given.executor;
    executor.struct_size = sizeof executor;
    options.executor = &executor;
    nf_allocator allocator = given.allocator;
    allocator.struct_size = sizeof allocator;
    options.allocator = &allocator;
    options.compile_in_child = given.compileInChild;
    options.compile_seconds = given.compileSeconds;
    options.compile_bytes = given.compileBytes;
    options.verify = given.verify;
    options.tuned_records = given.tunedRecords.empty() ? nullptr : given.tunedRecords.c_str();
    nf_engine *engine = nullptr;
    detail::check(nf_engine_create(&options, &engine));
    return engine;
  }
};

} // namespace nf

#endif
#endif
