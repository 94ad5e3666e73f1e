#include "runtime/cache/KernelCache.h"

#include "runtime/cpu_info/CpuInfo.h"

#include <algorithm>

namespace normforge {
namespace {

/// Kernels kept in memory; those not asked for longest go first.
constexpr size_t mostKernels = 1024;

std::string requestKey(const nf_compiler_request &request, const std::string &compilerPath) {
  const std::string cpu = request.cpu && *request.cpu ? request.cpu : "native";
  std::string key = "normforge request, ABI " + std::to_string(NF_ABI_VERSION) + "\n";
  key += "compiler " + compilerPath + "\n";
  key += "cpu " + cpu + "\n";
  if (cpu == "native")
    key += "host " + hostIdentity() + "\n";
  key += "phase " + std::string(request.phase ? request.phase : "") + "\n";
  // A spec without a name is named after its source.
  key += "source " + std::string(request.source_name ? request.source_name : "") + "\n";
  return key + "spec " + std::to_string(request.spec_bytes) + "\n" +
         std::string(request.spec, request.spec_bytes);
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
  // What fails is forgotten before those who wait hear of it: the next one tries again.
  auto forget = [&] {
    std::lock_guard lock(mutex_);
    items_.erase(key);
  };
  Outcome outcome;
  try {
    outcome = make();
  } catch (...) {
    forget();
    promise.set_exception(std::current_exception());
    throw;
  }
  if (outcome.kernel) {
    std::lock_guard lock(mutex_);
    items_[key].finished = true;
  } else {
    forget();
  }
  promise.set_value(outcome);
  return outcome;
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

KernelCache::KernelCache(CompilerLibrary &compiler, std::unique_ptr<DiskCache> disk,
                         LoadOptions loading)
    : compiler_(compiler), disk_(std::move(disk)), loading_(loading) {}

std::shared_ptr<const Kernel> KernelCache::get(const nf_compiler_request &request,
                                               Failure &failure) {
  const std::string key = requestKey(request, disk_ ? compiler_.path() : std::string());
  Outcome outcome = byRequest_.once(key, [&] { return find(request, key); });
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
                                       const std::string &requestKey) {
  // Its payload is the spec's name, a zero, and the kernel's key.
  if (auto alias = disk_ ? disk_->read(CacheKind::Request, requestKey) : std::nullopt) {
    const std::string payload(reinterpret_cast<const char *>(alias->payload.data()),
                              alias->payload.size());
    const size_t zero = payload.find('\0');
    if (zero != std::string::npos) {
      Outcome outcome = byKey_.once(payload.substr(zero + 1), [&]() -> Outcome {
        auto entry = disk_->read(CacheKind::Kernel, payload.substr(zero + 1));
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
  // The key tells the compiler's files as they are now.
  std::vector<FileIdentity> files;
  for (const std::string &path : identity->files)
    if (auto file = FileIdentity::of(path)) {
      identity->key += "made from " + file->path + " " + std::to_string(file->bytes) + " " +
                       std::to_string(file->modified) + "\n";
      files.push_back(std::move(*file));
    }
  bool compiled = false;
  Outcome outcome;
  do // a thread that was waited for may have looked on disk alone
    outcome = byKey_.once(identity->key, [&]() -> Outcome {
      if (auto entry = disk_ ? disk_->read(CacheKind::Kernel, identity->key) : std::nullopt)
        if (auto kernel = loadStored(*entry))
          return {kernel, {}};
      compiled = true;
      return compile(request);
    });
  while (!outcome.kernel && outcome.failure.code == NF_OK);
  if (!outcome.kernel)
    return outcome;
  if (disk_) {
    if (compiled)
      disk_->write(CacheKind::Kernel,
                   {identity->key, files, serialize(outcome.kernel->artifact())});
    disk_->write(CacheKind::Request,
                 {requestKey, files, bytesOf(identity->name + '\0' + identity->key)});
  }
  return {Kernel::named(outcome.kernel, identity->name), {}};
}

KernelCache::Outcome KernelCache::compile(const nf_compiler_request &request) {
  Outcome outcome;
  auto artifact = compiler_.compile(request, outcome.failure);
  if (artifact)
    outcome.kernel = Kernel::load(std::move(*artifact), loading_, outcome.failure);
  return outcome;
}

} // namespace normforge
