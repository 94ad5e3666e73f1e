// normforge.h on top of Engine, Kernel and Plan: handles, reference counts, and the wall that no
// exception passes.
#include "normforge/normforge.h"

#include "runtime/Failure.h"
#include "runtime/api/Guard.h"
#include "runtime/api/Handles.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "runtime/fork/ForkGate.h"
#include "runtime/kernel/Exchange.h"
#include "runtime/kernel/ForeignNames.h"
#include "runtime/kernel/MatchShapes.h"
#include "runtime/loader/CompilerLibrary.h"
#include "runtime/loader/CompilerPath.h"
#include "runtime/process/CompilerProcess.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

using namespace normforge;
using namespace normforge::api;

static_assert(static_cast<int>(DType::Bit) + NF_F32 == NF_BIT);
static_assert(static_cast<int>(Role::PartialSum) + NF_DATA == NF_PARTIAL_SUM);

namespace {

constexpr size_t mostSpecBytes = 16 << 20, mostRecordBytes = 256 << 20;

/// The sizes of these structs in the first version that has them: each ends with the field named.
#define NF_FIRST_SIZE(type, last) (offsetof(type, last) + sizeof(type::last))
constexpr size_t firstExecutor = NF_FIRST_SIZE(nf_executor, user);
constexpr size_t firstAllocator = NF_FIRST_SIZE(nf_allocator, user);
constexpr size_t firstEngineOptions = NF_FIRST_SIZE(nf_engine_options, verify);
constexpr size_t firstCompileOptions = NF_FIRST_SIZE(nf_compile_options, source_name);

/// Who compiles for an engine; empty with `failure` set where its path means no file.
std::unique_ptr<Compiler> makeCompiler(const nf_engine_options &options, Failure &failure) {
  const std::string given = options.compiler_library ? options.compiler_library : "";
  std::string path = absolutePath(given);
  if (path.empty() && !given.empty()) {
    failure.set(NF_SYSTEM_ERROR, given +
                                     ": the working directory, which this path begins at, "
                                     "cannot be told: " +
                                     std::strerror(errno));
    return nullptr;
  }
  if (options.compile_in_child && !path.empty() && path.front() != '/') {
    failure.set(NF_INVALID_ARGUMENT,
                "compiler_library is '" + path +
                    "', a bare name; compile_in_child needs a path, with a slash");
    return nullptr;
  }
  if (!options.compile_in_child)
    return std::make_unique<CompilerLibrary>(std::move(path));
  CompilerProcess::Limits limits;
  if (options.compile_seconds)
    limits.seconds = options.compile_seconds;
  limits.bytes = options.compile_bytes;
  return std::make_unique<CompilerProcess>(std::move(path), limits);
}

/// Where an engine keeps kernels between processes; null: nowhere. `warning` tells what is ignored.
std::unique_ptr<DiskCache> makeDiskCache(const nf_engine_options &options, std::string &warning) {
  const std::string directory =
      options.cache_directory ? options.cache_directory : DiskCache::defaultDirectory(warning);
  if (directory.empty()) {
    if (!options.cache_directory && warning.empty())
      warning = "no kernel cache: none of NORMFORGE_CACHE_DIR, XDG_CACHE_HOME and HOME is an "
                "absolute path";
    return nullptr;
  }
  return std::make_unique<DiskCache>(directory, options.cache_bytes ? options.cache_bytes
                                                                    : DiskCache::defaultBytes);
}

/// A handle of what `kernel` gives; false where that is none.
bool makeHandle(std::shared_ptr<const Host> host, std::shared_ptr<const Kernel> kernel,
                nf_kernel **handle) {
  if (!kernel)
    return false;
  auto made = std::make_unique<nf_kernel>();
  made->host = std::move(host);
  made->kernel = std::move(kernel);
  const Artifact &artifact = made->kernel->artifact();
  for (const Argument &argument : artifact.arguments)
    made->shapes.push_back(shapeText(argument, artifact.sizes));
  *handle = made.release();
  return true;
}

bool compile(nf_engine *engine, std::string_view spec, const nf_compile_options &options,
             const char *sourceName, nf_kernel **kernel, Failure &failure) {
  nf_compiler_request request = {};
  request.spec = spec.data() ? spec.data() : "";
  request.spec_bytes = spec.size();
  request.source_name = options.source_name ? options.source_name : sourceName;
  request.phase = options.phase;
  request.cpu = options.cpu;
  request.verify = engine->host->verify;
  if (const auto &tuned = engine->host->tuned) {
    request.tuned = tuned->c_str();
    request.tuned_bytes = tuned->size();
    request.tuned_source = engine->host->tunedSource.c_str();
    request.tuned_key = engine->host->tunedKey.c_str();
  }
  std::string warning;
  std::shared_ptr<const Kernel> made;
  {
    const ForkGate gate;
    made = engine->kernels.get(request, failure);
    warning = engine->kernels.takeWarning();
  }
  if (!warning.empty() && engine->host->log) // outside of the gate: it may wait for whom it likes
    engine->host->log(engine->host->logUser, warning.c_str());
  return makeHandle(engine->host, std::move(made), kernel);
}

/// The text of a file that holds `what`, or false with `failure` set.
bool readFile(const char *path, const char *what, size_t most, std::string &text,
              Failure &failure) {
  auto fail = [&] {
    return failure.set(codeOfErrno(errno),
                       std::string(path) + ": cannot be read: " + std::strerror(errno));
  };
  struct Close {
    void operator()(std::FILE *file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path, "rbe"));
  if (!file)
    return fail();
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, file.get())) > 0;) {
    text.append(buffer, n);
    if (text.size() > most) // a device, perhaps, that has no end
      return failure.set(NF_INVALID_ARGUMENT, std::string(path) + ": expected " + what +
                                                  ", found more than " +
                                                  std::to_string(most >> 20) + " MiB");
  }
  return !std::ferror(file.get()) || fail();
}

/// The lines that end cases: candidates, which are most of a sweep's file, choose nothing.
std::string resultsAlone(std::string_view records) {
  std::string results;
  while (!records.empty()) {
    const std::string_view line = records.substr(0, records.find('\n'));
    records.remove_prefix(std::min(records.size(), line.size() + 1));
    if (line.find("\"result\"") != std::string_view::npos)
      results.append(line).append("\n");
  }
  return results;
}

bool openPack(nf_engine *engine, std::shared_ptr<const Pack> pack, nf_pack **handle) {
  if (!pack)
    return false;
  auto made = std::make_unique<nf_pack>();
  made->host = engine->host;
  made->pack = std::move(pack);
  *handle = made.release();
  return true;
}

/// The phases by their numbers in the C API.
constexpr std::string_view kPhases[] = {"inference",  "training",     "backward",
                                        "population", "update",       "backward+update",
                                        "moments",    "gradient_sums"};
static_assert(NF_INFERENCE == 0 && NF_TRAINING == 1 && NF_BACKWARD == 2 && NF_POPULATION == 3 &&
              NF_UPDATE == 4 && NF_BACKWARD_UPDATE == 5 && NF_MOMENTS == 6 &&
              NF_GRADIENT_SUMS == 7);

nf_phase phaseOf(std::string_view text) {
  const auto found = std::find(std::begin(kPhases), std::end(kPhases), text);
  return found == std::end(kPhases) ? NF_OTHER_PHASE
                                    : static_cast<nf_phase>(found - std::begin(kPhases));
}

const Pack::Entry *entryAt(const nf_pack *pack, size_t kernel) {
  const auto kernels = pack->pack->kernels();
  return kernel < kernels.size() ? &pack->pack->entries()[kernels[kernel]] : nullptr;
}

const Artifact &artifactOf(const nf_kernel *kernel) { return kernel->kernel->artifact(); }

const char *nameAt(const std::vector<std::string> &names, size_t index) {
  return index < names.size() ? names[index].c_str() : nullptr;
}

const Argument *argumentAt(const nf_kernel *kernel, size_t index) {
  const std::vector<Argument> &arguments = artifactOf(kernel).arguments;
  return index < arguments.size() ? &arguments[index] : nullptr;
}

const Plan::Array *arrayAt(const nf_plan *plan, size_t index) {
  return index < plan->plan->arrays().size() ? &plan->plan->arrays()[index] : nullptr;
}

const Plan::Step *stepAt(const nf_plan *plan, size_t index) {
  return index < plan->plan->steps().size() ? &plan->plan->steps()[index] : nullptr;
}

#define NF_TEXT_OF(x) #x
#define NF_TEXT(x) NF_TEXT_OF(x)

} // namespace

extern "C" {

const char *nf_version(void) {
  return NF_TEXT(NF_VERSION_MAJOR) "." NF_TEXT(NF_VERSION_MINOR) "." NF_TEXT(NF_VERSION_PATCH);
}
uint32_t nf_abi_version(void) { return NF_ABI_VERSION; }

nf_code nf_status_code(const nf_status *status) {
  return !status ? NF_OK : isOutOfMemory(status) ? NF_OUT_OF_MEMORY : status->code;
}
const char *nf_status_message(const nf_status *status) {
  return !status ? "" : isOutOfMemory(status) ? "out of memory" : status->message.c_str();
}
void nf_status_free(nf_status *status) {
  if (!isOutOfMemory(status))
    delete status;
}

nf_status *nf_engine_create(const nf_engine_options *given, nf_engine **engine) {
  return guarded([&](Failure &failure) {
    if (!engine)
      return failNull("engine", failure);
    *engine = nullptr;
    nf_engine_options options;
    Host host;
    if (!readOptions(given, options, "nf_engine_options", firstEngineOptions, failure) ||
        !readOptions(options.executor, host.executor, "nf_executor", firstExecutor, failure) ||
        !readOptions(options.allocator, host.allocator, "nf_allocator", firstAllocator, failure))
      return false;
    if (!host.allocator.allocate != !host.allocator.release)
      return failure.set(NF_INVALID_ARGUMENT,
                         "the allocator has one of allocate and release; expected both or none");
    host.loading.perfMap = options.perf_map != 0;
    host.loading.debugger = options.debugger != 0;
    host.verify = options.verify != 0;
    if (options.tuned_records) {
      host.tunedSource = options.tuned_records;
      std::string text;
      if (!readFile(options.tuned_records, "records", mostRecordBytes, text, failure))
        return false;
      host.tuned = resultsAlone(text);
      host.tunedKey = std::to_string(std::hash<std::string>()(*host.tuned)) + " of " +
                      std::to_string(host.tuned->size()) + " bytes of " + host.tunedSource;
    }
    host.log = options.log;
    host.logUser = options.log_user;
    requireForkHandlers();
    std::string warning;
    {
      const ForkGate gate;
      // The machine is asked for its identity once: now, not while a fork comes.
      (void)hostIdentity();
      std::unique_ptr<Compiler> compiler = makeCompiler(options, failure);
      if (!compiler)
        return false;
      *engine = new nf_engine(std::move(compiler), host, makeDiskCache(options, warning));
    }
    if (!warning.empty() && host.log)
      host.log(host.logUser, warning.c_str());
    return true;
  });
}
void nf_engine_retain(nf_engine *engine) { retain(engine); }
void nf_engine_release(nf_engine *engine) { release(engine); }

nf_status *nf_compile(nf_engine *engine, const char *spec, size_t bytes,
                      const nf_compile_options *given, nf_kernel **kernel) {
  return guarded([&](Failure &failure) {
    if (!begin(kernel, "kernel", engine, "engine", failure))
      return false;
    if (!spec && bytes > 0)
      return failNull("spec", failure);
    nf_compile_options options;
    if (!readOptions(given, options, "nf_compile_options", firstCompileOptions, failure))
      return false;
    return compile(engine, {spec, bytes}, options, "<spec>", kernel, failure);
  });
}

nf_status *nf_compile_file(nf_engine *engine, const char *path, const nf_compile_options *given,
                           nf_kernel **kernel) {
  return guarded([&](Failure &failure) {
    if (!begin(kernel, "kernel", engine, "engine", failure))
      return false;
    if (!path)
      return failNull("path", failure);
    nf_compile_options options;
    std::string text;
    return readOptions(given, options, "nf_compile_options", firstCompileOptions, failure) &&
           readFile(path, "a spec", mostSpecBytes, text, failure) &&
           compile(engine, text, options, path, kernel, failure);
  });
}

nf_status *nf_pack_open(nf_engine *engine, const char *path, nf_pack **pack) {
  return guarded([&](Failure &failure) {
    if (!begin(pack, "pack", engine, "engine", failure))
      return false;
    if (!path)
      return failNull("path", failure);
    return openPack(engine, Pack::open(std::string(path), failure), pack);
  });
}

nf_status *nf_pack_open_bytes(nf_engine *engine, const void *bytes, size_t size, nf_pack **pack) {
  return guarded([&](Failure &failure) {
    if (!begin(pack, "pack", engine, "engine", failure))
      return false;
    if (!bytes && size > 0)
      return failNull("bytes", failure);
    const std::span<const std::byte> all(static_cast<const std::byte *>(bytes), size);
    return openPack(engine, Pack::open(all, failure), pack);
  });
}
void nf_pack_retain(nf_pack *pack) { retain(pack); }
void nf_pack_release(nf_pack *pack) { release(pack); }

size_t nf_pack_kernel_count(const nf_pack *pack) { return pack->pack->kernels().size(); }
const char *nf_pack_kernel_name(const nf_pack *pack, size_t kernel) {
  const Pack::Entry *entry = entryAt(pack, kernel);
  return entry ? entry->name.c_str() : nullptr;
}
nf_phase nf_pack_kernel_phase(const nf_pack *pack, size_t kernel) {
  const Pack::Entry *entry = entryAt(pack, kernel);
  return entry ? phaseOf(entry->phase) : NF_OTHER_PHASE;
}

/// `number`: of a phase, which may be none.
static nf_status *loadFrom(nf_pack *pack, const char *name, int64_t number,
                           const Pack::Machine &machine, nf_kernel **kernel) {
  return guarded([&](Failure &failure) {
    if (!begin(kernel, "kernel", pack, "pack", failure))
      return false;
    if (!name)
      return failNull("name", failure);
    if (number < 0 || static_cast<size_t>(number) >= std::size(kPhases))
      return failure.set(NF_INVALID_ARGUMENT, "phase " + std::to_string(static_cast<int>(number)) +
                                                  " is none: expected NF_INFERENCE, NF_TRAINING, "
                                                  "NF_BACKWARD, NF_POPULATION, NF_UPDATE, "
                                                  "NF_BACKWARD_UPDATE, NF_MOMENTS or "
                                                  "NF_GRADIENT_SUMS");
    const ForkGate gate; // of the lock below
    const Pack::Entry *entry = pack->pack->choose(name, kPhases[number], machine, failure);
    if (!entry)
      return false;
    std::lock_guard lock(pack->mutex);
    std::shared_ptr<const Kernel> &loaded = pack->loaded[entry];
    if (!loaded) {
      Artifact artifact;
      if (!pack->pack->read(*entry, artifact, failure))
        return false;
      loaded = Kernel::load(std::move(artifact), pack->host->loading, failure);
    }
    return makeHandle(pack->host, loaded, kernel);
  });
}

nf_status *nf_pack_load(nf_pack *pack, const char *name, nf_phase phase, nf_kernel **kernel) {
  return loadFrom(pack, name, numberOf(phase), {}, kernel);
}

nf_status *nf_pack_load_for(nf_pack *pack, const char *name, nf_phase phase, const char *cpu,
                            nf_kernel **kernel) {
  return loadFrom(pack, name, numberOf(phase), {.cpu = cpu ? cpu : ""}, kernel);
}

nf_status *nf_pack_load_on(nf_pack *pack, const char *name, nf_phase phase, const nf_device *device,
                           nf_kernel **kernel) {
  if (kernel)
    *kernel = nullptr;
  if (!device)
    return guarded([](Failure &failure) { return failNull("device", failure); });
  return loadFrom(pack, name, numberOf(phase), {.gpu = device->device->cpu()}, kernel);
}

nf_status *nf_kernel_load(nf_engine *engine, const void *artifact, size_t bytes,
                          nf_kernel **kernel) {
  return guarded([&](Failure &failure) {
    if (!begin(kernel, "kernel", engine, "engine", failure))
      return false;
    if (!artifact && bytes > 0)
      return failNull("artifact", failure);
    std::string error;
    std::optional<Artifact> read =
        deserialize({static_cast<const std::byte *>(artifact), bytes}, error);
    if (!read)
      return failure.set(NF_BAD_ARTIFACT, std::move(error));
    return makeHandle(engine->host, Kernel::load(std::move(*read), engine->host->loading, failure),
                      kernel);
  });
}

nf_status *nf_kernel_save(const nf_kernel *kernel, uint8_t **artifact, size_t *bytes) {
  return guarded([&](Failure &failure) {
    if (!artifact || !bytes)
      return failNull("artifact or bytes", failure);
    *artifact = nullptr;
    *bytes = 0;
    if (!kernel)
      return failNull("kernel", failure);
    std::vector<std::byte> saved = serialize(artifactOf(kernel));
    auto *copy = static_cast<uint8_t *>(std::malloc(saved.size()));
    if (!copy)
      throw std::bad_alloc();
    std::memcpy(copy, saved.data(), saved.size());
    *artifact = copy;
    *bytes = saved.size();
    return true;
  });
}
void nf_bytes_free(uint8_t *bytes) { std::free(bytes); }

void nf_kernel_retain(nf_kernel *kernel) { retain(kernel); }
void nf_kernel_release(nf_kernel *kernel) { release(kernel); }

const char *nf_phase_name(nf_phase phase) {
  const auto number = numberOf(phase);
  return number >= 0 && static_cast<size_t>(number) < std::size(kPhases) ? kPhases[number].data()
                                                                         : "";
}
nf_phase nf_phase_named(const char *name) { return name ? phaseOf(name) : NF_OTHER_PHASE; }
const char *nf_role_name(nf_role role) {
  const auto number = static_cast<int64_t>(numberOf(role)) - NF_DATA;
  return number >= 0 && number < roleCount ? toString(static_cast<Role>(number)).data() : "";
}

const char *nf_kernel_name(const nf_kernel *kernel) { return artifactOf(kernel).name.c_str(); }
nf_phase nf_kernel_phase(const nf_kernel *kernel) { return phaseOf(artifactOf(kernel).phase); }
const char *nf_kernel_cpu(const nf_kernel *kernel) { return artifactOf(kernel).cpu.c_str(); }

size_t nf_kernel_argument_count(const nf_kernel *kernel) {
  return artifactOf(kernel).arguments.size();
}
const char *nf_kernel_argument_name(const nf_kernel *kernel, size_t argument) {
  const Argument *a = argumentAt(kernel, argument);
  return a ? a->name.c_str() : nullptr;
}
nf_dtype nf_kernel_argument_dtype(const nf_kernel *kernel, size_t argument) {
  const Argument *a = argumentAt(kernel, argument);
  return !a ? NF_NO_DTYPE : static_cast<nf_dtype>(static_cast<int>(a->dtype) + NF_F32);
}
const char *nf_kernel_argument_shape(const nf_kernel *kernel, size_t argument) {
  return nameAt(kernel->shapes, argument);
}
int nf_kernel_argument_is_written(const nf_kernel *kernel, size_t argument) {
  const Argument *a = argumentAt(kernel, argument);
  return a && a->written;
}
nf_role nf_kernel_argument_role(const nf_kernel *kernel, size_t argument) {
  const Argument *a = argumentAt(kernel, argument);
  return !a ? NF_NO_ROLE : static_cast<nf_role>(static_cast<int>(a->role) + NF_DATA);
}
size_t nf_kernel_argument_old(const nf_kernel *kernel, size_t argument) {
  const Argument *a = argumentAt(kernel, argument);
  return !a || a->old < 0 ? NF_NOT_FOUND : static_cast<size_t>(a->old);
}
int nf_kernel_may_alias(const nf_kernel *kernel, size_t written, size_t read) {
  if (const Argument *a = argumentAt(kernel, written))
    for (uint32_t index : a->mayAlias)
      if (index == read)
        return 1;
  return 0;
}
size_t nf_kernel_find_argument(const nf_kernel *kernel, const char *name, int written) {
  const std::vector<Argument> &arguments = artifactOf(kernel).arguments;
  for (size_t i = 0; name && i < arguments.size(); ++i)
    if (arguments[i].written == (written != 0) && arguments[i].name == name)
      return i;
  return NF_NOT_FOUND;
}

size_t nf_kernel_size_count(const nf_kernel *kernel) { return artifactOf(kernel).sizes.size(); }
const char *nf_kernel_size_name(const nf_kernel *kernel, size_t size) {
  return nameAt(artifactOf(kernel).sizes, size);
}
const char *nf_kernel_own_name(const nf_kernel *kernel, const char *theirs) {
  const Artifact &artifact = artifactOf(kernel);
  const std::string_view own = !theirs ? "" : ownName(theirs, [&](std::string_view name) {
    auto isName = [&](const auto &known) { return known.name == name; };
    return std::ranges::any_of(artifact.arguments, isName) ||
           std::ranges::any_of(artifact.scalars, isName);
  });
  return own.empty() ? nullptr : own.data(); // a literal
}
nf_status *nf_kernel_match_sizes(const nf_kernel *kernel, const int64_t *const *shapes,
                                 const size_t *ranks, size_t count, int64_t *sizes) {
  return guarded([&](Failure &failure) {
    if (!kernel)
      return failNull("kernel", failure);
    const Artifact &artifact = artifactOf(kernel);
    if (count != artifact.arguments.size())
      return failure.set(NF_INVALID_ARGUMENT, "kernel '" + artifact.name + "' has " +
                                                  std::to_string(artifact.arguments.size()) +
                                                  " arguments; " + std::to_string(count) +
                                                  " given");
    if (!shapes || !ranks)
      return failNull(shapes ? "ranks" : "shapes", failure);
    if (!sizes && !artifact.sizes.empty())
      return failNull("sizes", failure);
    std::vector<std::optional<std::span<const int64_t>>> known(count);
    for (size_t i = 0; i < count; ++i)
      if (shapes[i])
        known[i].emplace(shapes[i], ranks[i]);
    const auto found = matchShapes(artifact, known, failure);
    if (!found)
      return false;
    std::copy(found->begin(), found->end(), sizes);
    return true;
  });
}
size_t nf_kernel_scalar_count(const nf_kernel *kernel) { return artifactOf(kernel).scalars.size(); }
const char *nf_kernel_scalar_name(const nf_kernel *kernel, size_t scalar) {
  const std::vector<Scalar> &scalars = artifactOf(kernel).scalars;
  return scalar < scalars.size() ? scalars[scalar].name.c_str() : nullptr;
}
size_t nf_kernel_variant_count(const nf_kernel *kernel) {
  return artifactOf(kernel).variants.size();
}
const char *nf_kernel_variant_reason(const nf_kernel *kernel, size_t variant) {
  const std::vector<Variant> &variants = artifactOf(kernel).variants;
  return variant < variants.size() ? variants[variant].reason.c_str() : nullptr;
}
const char *nf_kernel_variant_schedule(const nf_kernel *kernel, size_t variant) {
  const std::vector<Variant> &variants = artifactOf(kernel).variants;
  return variant < variants.size() ? variants[variant].schedule.c_str() : nullptr;
}

nf_status *nf_plan_create(const nf_kernel *kernel, const int64_t *sizes, size_t count,
                          nf_plan **plan) {
  return guarded([&](Failure &failure) {
    if (!begin(plan, "plan", kernel, "kernel", failure))
      return false;
    if (!sizes && count > 0)
      return failNull("sizes", failure);
    auto handle = std::make_unique<nf_plan>();
    handle->host = kernel->host;
    handle->plan = Plan::make(kernel->kernel, {sizes, count}, failure);
    if (!handle->plan)
      return false;
    *plan = handle.release();
    return true;
  });
}
void nf_plan_retain(nf_plan *plan) { retain(plan); }
void nf_plan_release(nf_plan *plan) { release(plan); }

size_t nf_plan_argument_rank(const nf_plan *plan, size_t argument) {
  const Plan::Array *array = arrayAt(plan, argument);
  return array ? array->shape.size() : 0;
}
const int64_t *nf_plan_argument_shape(const nf_plan *plan, size_t argument) {
  const Plan::Array *array = arrayAt(plan, argument);
  return array ? array->shape.data() : nullptr;
}
uint64_t nf_plan_argument_bytes(const nf_plan *plan, size_t argument) {
  const Plan::Array *array = arrayAt(plan, argument);
  return array ? array->bytes : 0;
}
uint64_t nf_plan_workspace_bytes(const nf_plan *plan) { return plan->plan->workspaceBytes(); }
size_t nf_plan_variant(const nf_plan *plan) { return plan->plan->variant(); }

/// The exchange of a plan that has one.
static bool findExchange(const nf_plan *plan, Exchange &exchange, Failure &failure) {
  if (!plan)
    return failNull("plan", failure);
  exchange = exchangeOf(*plan->plan);
  if (exchange.arrays == 0)
    return failure.set(NF_INVALID_ARGUMENT,
                       "phase " + plan->plan->kernel().artifact().phase +
                           " exchanges nothing: expected a spec with synchronized: true, and a "
                           "phase that makes or takes the batch's statistics");
  return true;
}

nf_status *nf_plan_exchange(const nf_plan *plan, nf_exchange *exchange) {
  return guarded([&](Failure &failure) {
    if (!exchange)
      return failNull("exchange", failure);
    Exchange found;
    if (!checkSize(exchange->struct_size, "nf_exchange", sizeof(nf_exchange), failure) ||
        !findExchange(plan, found, failure))
      return false;
    exchange->dtype = static_cast<nf_dtype>(static_cast<int>(found.dtype) + NF_F32);
    exchange->argument = found.argument;
    exchange->arrays = found.arrays;
    exchange->array_bytes = found.bytes();
    return true;
  });
}

nf_status *nf_plan_merge(const nf_plan *plan, const void *partials, size_t ranks, void *merged) {
  return guarded([&](Failure &failure) {
    Exchange exchange;
    if (!findExchange(plan, exchange, failure))
      return false;
    if (!partials)
      return failNull("partials", failure);
    if (!merged)
      return failNull("merged", failure);
    if (ranks == 0)
      return failure.set(NF_INVALID_ARGUMENT, "0 ranks: expected at least 1");
    if (overlapsInPart(exchange, partials, ranks, merged))
      return failure.set(NF_INVALID_ARGUMENT, "merged overlaps partials in part: expected one "
                                              "rank's arrays exactly, or none of them");
    mergePartials(exchange, partials, ranks, merged);
    return true;
  });
}

nf_status *nf_plan_check(const nf_plan *plan, void *const *args, size_t argCount,
                         const nf_scalar *scalars, size_t scalarCount, const void *workspace) {
  return guarded([&](Failure &failure) {
    if (!plan)
      return failNull("plan", failure);
    return plan->plan->check(
        {{args, argCount}, {scalars, scalarCount}, const_cast<void *>(workspace)}, failure);
  });
}

nf_status *nf_plan_check_call(const nf_plan *plan, const nf_call *call) {
  return guarded([&](Failure &failure) {
    if (!plan)
      return failNull("plan", failure);
    if (!call)
      return failNull("call", failure);
    return plan->plan->checkCall(*call, failure);
  });
}

nf_status *nf_run(const nf_plan *plan, void *const *args, size_t argCount, const nf_scalar *scalars,
                  size_t scalarCount, void *workspace, const nf_executor *executor) {
  return guarded([&](Failure &failure) {
    if (!plan)
      return failNull("plan", failure);
    if (executor && !checkSize(executor->struct_size, "nf_executor", firstExecutor, failure))
      return false;
    const Host &host = *plan->host;
    return plan->plan->run({{args, argCount}, {scalars, scalarCount}, workspace},
                           executor ? executor : &host.executor, failure, &host.allocator);
  });
}

size_t nf_plan_stage_count(const nf_plan *plan) { return plan->plan->steps().size(); }
nf_stage_fn *nf_plan_stage_function(const nf_plan *plan, size_t stage) {
  const Plan::Step *step = stepAt(plan, stage);
  return step ? step->function : nullptr;
}
const char *nf_plan_stage_name(const nf_plan *plan, size_t stage) {
  const Plan::Step *step = stepAt(plan, stage);
  return step ? step->name : nullptr;
}
uint64_t nf_plan_stage_tasks(const nf_plan *plan, size_t stage) {
  const Plan::Step *step = stepAt(plan, stage);
  return step ? step->tasks : 0;
}
uint64_t nf_plan_stage_bytes_per_task(const nf_plan *plan, size_t stage) {
  const Plan::Step *step = stepAt(plan, stage);
  return step ? step->bytesPerTask : 0;
}
const int64_t *nf_plan_sizes(const nf_plan *plan) { return plan->plan->sizes().data(); }

} // extern "C"
