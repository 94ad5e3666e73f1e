#include "runtime/cache/KernelCache.h"

#include "runtime/cpu_info/CpuInfo.h"

#include <algorithm>
#include <string_view>

namespace normforge {
namespace {

/// Kernels kept in memory; those not asked for longest go first.
constexpr size_t mostKernels = 1024;

/// Fields with their lengths, so that no two requests share a text.
std::string requestKey(const nf_compiler_request &request, const std::string &compilerPath) {
  std::string key = "normforge request, ABI " + std::to_string(NF_ABI_VERSION) + "\n";
  auto field = [&](const char *name, std::string_view text) {
    key += std::string(name) + " " + std::to_string(text.size()) + " ";
    key += text;
    key += "\n";
  };
  auto optional = [&](const char *name, const char *text) {
    if (text)
      field(name, text);
  };
  field("compiler", compilerPath);
  optional("cpu", request.cpu);
  if (!request.cpu || !*request.cpu || std::string_view(request.cpu) == "native")
    field("host", hostIdentity());
  optional("phase", request.phase);
  optional("source", request.source_name); // a spec without a name is named after it
  optional("tuned", request.tuned_key);
  field("spec", {request.spec, request.spec_bytes});
  return key;
}

std::vector<std::byte> bytesOf(const std::string &text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

} // namespace

template <typename Make>
KernelCache::Outcome KernelCache::Memory::once(const std::string &key, Make make) {
  std::promise<Outcome> promise;
  {
    std::unique_lock lock(mutex_);
    Item &item = items_[key];
    item.used = ++clock_;
    if (item.outcome.valid()) {
      auto outcome = item.outcome;
      lock.unlock();
      return outcome.get();
    }
    item.outcome = promise.get_future().share();
    makeRoom();
  }
  // A failure is forgotten before those who wait hear of it: the next one tries again.
  auto forget = [&] {
    std::lock_guard lock(mutex_);
    items_.erase(key);
  };
  try {
    Outcome outcome = make();
    if (outcome.kernel) {
      std::lock_guard lock(mutex_);
      items_[key].finished = true;
    } else {
      forget();
    }
    promise.set_value(outcome);
    return outcome;
  } catch (...) {
    forget();
    promise.set_exception(std::current_exception());
    throw;
  }
}

void KernelCache::Memory::makeRoom() {
  while (items_.size() > mostKernels) {
    auto oldest = items_.end();
    for (auto item = items_.begin(); item != items_.end(); ++item)
      if (item->second.finished &&
          (oldest == items_.end() || item->second.used < oldest->second.used))
        oldest = item;
    if (oldest == items_.end())
      return;
    items_.erase(oldest);
  }
}

KernelCache::KernelCache(Compiler &compiler, std::unique_ptr<DiskCache> disk, LoadOptions loading)
    : compiler_(compiler), disk_(std::move(disk)), loading_(loading) {}

std::shared_ptr<const Kernel> KernelCache::get(const nf_compiler_request &request,
                                               Failure &failure) {
  // Without a file to name, what is on disk cannot be told from what another compiler made.
  const std::string path = disk_ ? compiler_.path() : std::string();
  const std::string key = requestKey(request, path);
  Outcome outcome = byRequest_.once(
      key, [&] { return find(request, key, path.empty() ? nullptr : disk_.get()); });
  if (!outcome.kernel)
    failure = std::move(outcome.failure);
  return outcome.kernel;
}

/// A stored kernel, where this machine runs it.
std::shared_ptr<const Kernel> KernelCache::loadStored(const CacheEntry &entry) {
  std::string error;
  Failure failure;
  auto artifact = deserialize(entry.payload, error);
  return artifact ? Kernel::load(std::move(*artifact), loading_, failure) : nullptr;
}

KernelCache::Outcome KernelCache::find(const nf_compiler_request &request,
                                       const std::string &requestKey, DiskCache *disk) {
  // Its payload is the spec's name, a zero, and the kernel's key.
  if (auto alias = disk ? disk->read(CacheKind::Request, requestKey) : std::nullopt) {
    const std::string payload(reinterpret_cast<const char *>(alias->payload.data()),
                              alias->payload.size());
    const size_t zero = payload.find('\0');
    if (zero != std::string::npos) {
      Outcome outcome = byKey_.once(payload.substr(zero + 1), [&]() -> Outcome {
        auto entry = disk->read(CacheKind::Kernel, payload.substr(zero + 1));
        return {entry ? loadStored(*entry) : nullptr, {}};
      });
      if (outcome.kernel)
        return {Kernel::named(outcome.kernel, payload.substr(0, zero)), {}};
    }
  }
  Failure failure;
  auto identity = compiler_.identify(request, failure);
  if (!identity)
    return {nullptr, std::move(failure)};
  if (!identity->isCurrent)
    disk = nullptr; // replaced since it was opened: others would not compile the same
  for (const FileIdentity &file : identity->madeFrom)
    identity->key += "made from " + file.text() + "\n";
  bool isKept = disk != nullptr;
  Outcome outcome;
  do // a thread that was waited for may have looked on disk alone
    outcome = byKey_.once(identity->key, [&]() -> Outcome {
      if (auto entry = disk ? disk->read(CacheKind::Kernel, identity->key) : std::nullopt)
        if (auto kernel = loadStored(*entry))
          return {kernel, {}};
      Outcome compiled = compile(request);
      if (disk && compiled.kernel)
        isKept = disk->write(CacheKind::Kernel, {identity->key, identity->madeFrom,
                                                 serialize(compiled.kernel->artifact())});
      return compiled;
    });
  while (!outcome.kernel && outcome.failure.code == NF_OK);
  if (!outcome.kernel)
    return outcome;
  if (isKept)
    disk->write(CacheKind::Request,
                {requestKey, identity->madeFrom, bytesOf(identity->name + '\0' + identity->key)});
  return {Kernel::named(outcome.kernel, identity->name), {}};
}

KernelCache::Outcome KernelCache::compile(const nf_compiler_request &request) {
  Outcome outcome;
  const auto bytes = compiler_.compile(request, outcome.failure);
  if (!bytes)
    return outcome;
  std::string error;
  if (auto artifact = deserialize(*bytes, error))
    outcome.kernel = Kernel::load(std::move(*artifact), loading_, outcome.failure);
  else
    outcome.failure.set(NF_INTERNAL, "the compiler's result cannot be read: " + error);
  return outcome;
}

} // namespace normforge
