#include "runtime/pack/Pack.h"

#include "runtime/artifact/Bytes.h"
#include "runtime/artifact/Checksum.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "runtime/device/DeviceContext.h"
#include "runtime/kernel/Kernel.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tuple>
#include <unistd.h>

namespace normforge {
namespace {

constexpr std::array<char, 8> magic = {'N', 'F', 'P', 'A', 'C', 'K', 0, 0};
constexpr uint32_t formatVersion = 2;
constexpr size_t headerBytes = magic.size() + 4 + 4 + 8 + 8 + 8;
constexpr uint64_t alignment = 64;
constexpr size_t maxEntries = 1 << 20;
/// An entry has at least its name's, phase's, triple's and CPU's lengths, a number of features, an
/// offset and a length.
constexpr size_t leastEntryBytes = 4 + 4 + 4 + 4 + 4 + 8 + 8;

auto order(const Pack::Entry &entry) { return std::tie(entry.name, entry.phase); }

void write(Writer &out, const Pack::Entry &entry) {
  out.text(entry.name);
  out.text(entry.phase);
  out.text(entry.triple);
  out.text(entry.cpu);
  out.texts(entry.features);
  out.integer(entry.offset);
  out.integer(entry.bytes);
}

uint64_t aligned(uint64_t offset) { return (offset + alignment - 1) / alignment * alignment; }

bool isOfGpu(const Pack::Entry &entry) { return capabilityOf(entry.cpu).has_value(); }

/// The reason why a machine cannot run an entry; empty where it can.
std::string lacks(const Pack::Entry &entry, const Pack::Machine &machine) {
  if (isOfGpu(entry)) {
    const std::optional<int> gpu = capabilityOf(machine.gpu);
    if (gpu)
      return *capabilityOf(entry.cpu) <= *gpu ? "" : "it is for a later GPU";
    return machine.cpu.empty() ? "it is code for GPUs" : "";
  }
  if (!machine.gpu.empty() || architectureOf(entry.triple) != hostArchitecture())
    return "it is code for " + std::string(architectureOf(entry.triple));
  const std::string missing = hostLacks(entry.features);
  return missing.empty() ? missing : "it needs " + missing;
}

/// Of two entries that a machine runs, whether the first uses more of it.
bool usesMore(const Pack::Entry &a, const Pack::Entry &b) {
  return isOfGpu(a) ? *capabilityOf(a.cpu) > capabilityOf(b.cpu).value_or(0)
                    : a.features.size() > b.features.size();
}

} // namespace

std::vector<std::byte> writePack(const std::vector<PackedKernel> &kernels) {
  std::vector<Pack::Entry> entries;
  std::vector<std::vector<std::byte>> contents; ///< by entry
  for (const PackedKernel &kernel : kernels) {
    const Artifact &artifact = kernel.artifact;
    entries.push_back({kernel.name, artifact.phase, artifact.triple, artifact.cpu,
                       kernel.features.empty() ? artifact.requiredFeatures : kernel.features, 0,
                       0});
    Artifact unnamed = artifact; // the table has the name: equal code is there once
    unnamed.name.clear();
    contents.push_back(serialize(unnamed));
  }
  std::vector<size_t> sorted(entries.size());
  for (size_t i = 0; i < sorted.size(); ++i)
    sorted[i] = i;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](size_t a, size_t b) { return order(entries[a]) < order(entries[b]); });

  auto tableOf = [&] {
    Writer table;
    for (size_t i : sorted)
      write(table, entries[i]);
    return table.bytes;
  };
  uint64_t at = headerBytes + tableOf().size(); // offsets do not change its length
  std::map<std::string_view, uint64_t> placed;  // over `contents`
  for (size_t i : sorted) {
    const std::string_view content(reinterpret_cast<const char *>(contents[i].data()),
                                   contents[i].size());
    const auto [place, isNew] = placed.emplace(content, aligned(at));
    entries[i].offset = place->second;
    entries[i].bytes = contents[i].size();
    if (isNew)
      at = place->second + contents[i].size();
  }
  const std::vector<std::byte> table = tableOf();
  Writer out;
  for (char c : magic)
    out.integer(static_cast<uint8_t>(c));
  out.integer(formatVersion);
  out.integer(static_cast<uint32_t>(entries.size()));
  out.integer(at);
  out.integer(static_cast<uint64_t>(table.size()));
  out.integer(checksum(table));
  out.bytes.insert(out.bytes.end(), table.begin(), table.end());
  out.bytes.resize(at);
  for (const auto &[content, offset] : placed)
    std::memcpy(out.bytes.data() + offset, content.data(), content.size());
  return std::move(out.bytes);
}

std::shared_ptr<const Pack> Pack::open(const std::string &path, Failure &failure) {
  auto fail = [&](const char *what) {
    failure.set(codeOfErrno(errno), path + ": " + what + ": " + std::strerror(errno));
    return nullptr;
  };
  struct File {
    int descriptor;
    ~File() {
      if (descriptor >= 0)
        close(descriptor);
    }
  } file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)}; // a pipe is not waited for
  struct stat status;
  if (file.descriptor < 0 || fstat(file.descriptor, &status) != 0)
    return fail("cannot be opened");
  if (!S_ISREG(status.st_mode)) {
    failure.set(NF_BAD_ARTIFACT, path + ": expected a pack, found no regular file");
    return nullptr;
  }
  std::shared_ptr<Pack> pack(new Pack);
  pack->mapped_ = static_cast<size_t>(status.st_size);
  if (pack->mapped_ > 0) { // nothing cannot be mapped
    void *memory = mmap(nullptr, pack->mapped_, PROT_READ, MAP_PRIVATE, file.descriptor, 0);
    if (memory == MAP_FAILED)
      return fail("cannot be mapped");
    pack->mapping_ = memory;
  }
  pack->bytes_ = {static_cast<const std::byte *>(pack->mapping_), pack->mapped_};
  if (!pack->readTable(failure)) {
    failure.message = path + ": " + failure.message;
    return nullptr;
  }
  return pack;
}

std::shared_ptr<const Pack> Pack::open(std::span<const std::byte> bytes, Failure &failure) {
  std::shared_ptr<Pack> pack(new Pack);
  pack->bytes_ = bytes;
  return pack->readTable(failure) ? pack : nullptr;
}

Pack::~Pack() {
  if (mapping_)
    munmap(mapping_, mapped_);
}

bool Pack::readTable(Failure &failure) {
  auto fail = [&](std::string message) { return failure.set(NF_BAD_ARTIFACT, std::move(message)); };
  if (bytes_.size() < headerBytes || std::memcmp(bytes_.data(), magic.data(), magic.size()) != 0)
    return fail("these bytes are not a Normforge pack");
  std::string error;
  Reader header(bytes_.subspan(magic.size(), headerBytes - magic.size()), "pack", error);
  const auto version = header.integer<uint32_t>();
  const auto count = header.integer<uint32_t>();
  const auto length = header.integer<uint64_t>();
  const auto tableBytes = header.integer<uint64_t>();
  const auto sum = header.integer<uint64_t>();
  if (version != formatVersion)
    return fail("pack has format version " + std::to_string(version) + "; this library reads " +
                std::to_string(formatVersion));
  if (length != bytes_.size())
    return fail("pack is " + std::to_string(bytes_.size()) + " bytes; its header says " +
                std::to_string(length));
  if (tableBytes > bytes_.size() - headerBytes || count > maxEntries ||
      count > tableBytes / leastEntryBytes)
    return fail("pack has a table of contents beyond its end");
  const std::span<const std::byte> table = bytes_.subspan(headerBytes, tableBytes);
  if (checksum(table) != sum)
    return fail("pack is damaged: the checksum of its table of contents differs");

  Reader in(table, "pack", error);
  entries_.reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    Entry entry;
    entry.name = in.text();
    entry.phase = in.text();
    entry.triple = in.text();
    entry.cpu = in.text();
    entry.features = in.texts("CPU features");
    entry.offset = in.integer<uint64_t>();
    entry.bytes = in.integer<uint64_t>();
    if (in.failed())
      return fail(std::move(error));
    for (const std::string *text : {&entry.name, &entry.phase, &entry.triple, &entry.cpu})
      if (text->empty() || text->find('\0') != std::string::npos)
        return fail("pack has an empty name or one with a zero byte");
    if (entry.offset < headerBytes + tableBytes || entry.offset % alignment != 0 ||
        entry.offset > bytes_.size() || entry.bytes > bytes_.size() - entry.offset)
      return fail("pack has kernel '" + entry.name + "' outside of itself");
    if (!entries_.empty() && order(entry) < order(entries_.back()))
      return fail("pack has kernels that are not in order");
    if (entries_.empty() || order(entry) != order(entries_.back()))
      kernels_.push_back(entries_.size());
    entries_.push_back(std::move(entry));
  }
  if (!in.atEnd())
    return fail("pack has bytes after its table of contents");
  return true;
}

const Pack::Entry *Pack::choose(std::string_view name, std::string_view phase,
                                const Machine &machine, Failure &failure) const {
  const std::string_view cpu = machine.cpu;
  const auto less = [](const Entry &entry,
                       const std::pair<std::string_view, std::string_view> &key) {
    return std::pair<std::string_view, std::string_view>(entry.name, entry.phase) < key;
  };
  const Entry *best = nullptr;
  std::string reasons, others;
  auto entry = std::lower_bound(entries_.begin(), entries_.end(), std::pair(name, phase), less);
  for (; entry != entries_.end() && entry->name == name && entry->phase == phase; ++entry) {
    if (!cpu.empty() && entry->cpu != cpu) {
      others += (others.empty() ? "" : ", ") + entry->cpu;
      continue;
    }
    const std::string why = lacks(*entry, machine);
    if (!why.empty())
      reasons += (reasons.empty() ? "for " : "; for ") + entry->cpu + ", " + why;
    else if (!best || usesMore(*entry, *best))
      best = &*entry;
  }
  if (best)
    return best;
  // Kernels of other CPUs, whose code may need less than these have.
  for (entry = std::lower_bound(entries_.begin(), entries_.end(), std::pair(name, phase), less);
       entry != entries_.end() && entry->name == name && entry->phase == phase; ++entry) {
    Artifact artifact;
    Failure ignored;
    if (machine.gpu.empty() && (cpu.empty() || entry->cpu == cpu) &&
        architectureOf(entry->triple) == hostArchitecture() && read(*entry, artifact, ignored) &&
        hostLacks(artifact.requiredFeatures).empty() &&
        (!best || entry->features.size() > best->features.size()))
      best = &*entry;
  }
  if (best)
    return best;
  const std::string what = "'" + std::string(name) + "', " + std::string(phase);
  if (reasons.empty() && !others.empty())
    failure.set(NF_NO_KERNEL,
                "the pack has kernel " + what + " for " + others + ", not for " + std::string(cpu));
  else if (reasons.empty())
    failure.set(NF_NO_KERNEL, "the pack has no kernel " + what);
  else
    failure.set(NF_WRONG_MACHINE,
                "the pack has kernel " + what + " for other " +
                    (machine.gpu.empty() ? "CPUs than this " + std::string(hostArchitecture())
                                         : "machines than " + std::string(machine.gpu)) +
                    ": " + reasons);
  return nullptr;
}

bool Pack::read(const Entry &entry, Artifact &artifact, Failure &failure) const {
  std::string error;
  auto found = deserialize(bytes_.subspan(entry.offset, entry.bytes), error);
  if (found && (found->phase != entry.phase || found->triple != entry.triple))
    error = "artifact is not what the table of contents says", found.reset();
  if (!found)
    return failure.set(NF_BAD_ARTIFACT, "kernel '" + entry.name + "' in the pack: " + error);
  artifact = std::move(*found);
  artifact.name = entry.name;
  return true;
}

} // namespace normforge
