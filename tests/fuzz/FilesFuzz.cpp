// Bytes of a stranger as a kernel, a pack and a cache entry: an error or a result, never a crash.
// libFuzzer's; the first byte of an input says what the rest is to be read as.
#include "runtime/artifact/Checksum.h"
#include "runtime/cache/DiskCache.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "runtime/kernel/Plan.h"
#include "runtime/pack/Pack.h"

#include <cstdlib>
#include <cstring>

using namespace normforge;

namespace {

using Bytes = std::vector<std::byte>;

template <typename T> void put(Bytes &bytes, size_t at, T value) {
  if (at + sizeof value <= bytes.size())
    std::memcpy(bytes.data() + at, &value, sizeof value);
}

void sealArtifact(Bytes &bytes) { // magic, version 4, length 8, checksum 8
  put<uint64_t>(bytes, 12, bytes.size());
  if (bytes.size() >= 28)
    put(bytes, 20, checksum(std::span(bytes).subspan(28)));
}

/// Loads a kernel as if it were this machine's and plans it for sizes small, large and absurd.
/// Nothing of it is run.
void plan(Artifact artifact) {
  artifact.abiVersion = NF_ABI_VERSION;
  artifact.triple = artifact.entry == EntryKind::Launch
                        ? "nvptx64-nvidia-cuda"
                        : std::string(hostArchitecture()) + "-linux-gnu";
  artifact.requiredFeatures.clear();
  size_t images = 0;
  for (const Variant &variant : artifact.variants)
    images += variant.image.bytes.size();
  if (images > 1 << 20)
    return;
  const size_t sizeCount = artifact.sizes.size();
  LoadOptions options;
  options.debugger = true;
  Failure failure;
  const auto kernel = Kernel::load(std::move(artifact), options, failure);
  if (!kernel)
    return;
  for (int64_t size : {int64_t(0), int64_t(1), int64_t(7), int64_t(1) << 40, INT64_MAX}) {
    const std::vector<int64_t> sizes(sizeCount, size);
    const auto plan = Plan::make(kernel, sizes, failure);
    if (!plan && failure.message.empty())
      std::abort();
    const std::vector<void *> args(plan ? plan->arrays().size() : 0);
    if (plan) // pointers that are null: refused, or nothing to do
      (void)plan->check({args, {}, nullptr}, failure);
  }
}

void readArtifact(const Bytes &bytes) {
  std::string error;
  const auto artifact = deserialize(bytes, error);
  if (!artifact) {
    if (error.empty())
      std::abort();
    return;
  }
  plan(*artifact);
  // An artifact that was read is written again as the same bytes.
  if (serialize(*artifact) != bytes)
    std::abort();
}

void readPack(Bytes bytes, bool seal) {
  if (seal && bytes.size() >= 40) { // magic, version 4, count 4, length 8, table's bytes 8, sum 8
    put<uint64_t>(bytes, 16, bytes.size());
    uint64_t table;
    std::memcpy(&table, bytes.data() + 24, 8);
    if (table > bytes.size() - 40)
      put<uint64_t>(bytes, 24, table = (bytes.size() - 40) / 2);
    put(bytes, 32, checksum(std::span(bytes).subspan(40, table)));
  }
  Failure failure;
  const auto pack = Pack::open(bytes, failure);
  if (!pack) {
    if (failure.message.empty())
      std::abort();
    return;
  }
  for (const Pack::Entry &entry : pack->entries()) {
    (void)pack->choose(entry.name, entry.phase, {}, failure);
    (void)pack->choose(entry.name, entry.phase, {.gpu = "sm_90"}, failure);
    Artifact artifact;
    if (pack->read(entry, artifact, failure))
      plan(artifact);
  }
}

void readEntry(Bytes bytes, bool seal) {
  if (seal && bytes.size() >= 16)
    put(bytes, 8, checksum(std::span(bytes).subspan(16)));
  std::string problem;
  const auto entry = DiskCache::fromBytes(bytes, problem);
  if (!entry) {
    if (problem.empty())
      std::abort();
    return;
  }
  if (DiskCache::toBytes(*entry) != bytes)
    std::abort();
  readArtifact(entry->payload);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size == 0)
    return 0;
  const auto *first = reinterpret_cast<const std::byte *>(data + 1);
  Bytes bytes(first, first + size - 1);
  // With checksums made right, what they guard is reached.
  switch (data[0] % 6) {
  case 0:
    readArtifact(bytes);
    break;
  case 1:
    sealArtifact(bytes);
    readArtifact(bytes);
    break;
  case 2:
  case 3:
    readPack(std::move(bytes), data[0] % 6 == 3);
    break;
  default:
    readEntry(std::move(bytes), data[0] % 6 == 5);
    break;
  }
  return 0;
}
