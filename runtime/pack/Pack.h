// All kernels of a model in one file, for several CPUs.
//
// Enters: a mapped file, or bytes of the host. Leaves: artifacts. The file:
//   magic "NFPACK\0\0", format version (4 bytes), number of entries (4), length of the whole (8),
//   bytes of the table of contents (8), its checksum (8); the table; the artifacts, each aligned to
//   64 bytes, as serialize() writes them, with their own lengths and checksums.
// An entry of the table has the kernel's name, phase, triple, CPU and CPU features, and where its
// artifact lies. Entries ascend by name and phase; those of one kernel are for different CPUs, and
// several may share an artifact. Everything is little-endian.
#pragma once

#include "runtime/Failure.h"
#include "runtime/artifact/Artifact.h"

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace normforge {

/// A kernel for one CPU, to be packed under a name that need not be its spec's.
struct PackedKernel {
  std::string name;
  Artifact artifact;
  /// Those of its CPU, by which kernels are told apart where a machine runs several; none: those
  /// that it requires. The code may have use for fewer.
  std::vector<std::string> features{};
};

/// The file's bytes: the same for the same kernels in any order, but for that of the CPUs of one
/// kernel, by which equals are told apart when one is chosen.
std::vector<std::byte> writePack(const std::vector<PackedKernel> &kernels);

/// Immutable; all functions may be called from several threads.
class Pack {
public:
  /// Maps a file. It must not be changed while the pack is open: replace it by renaming.
  static std::shared_ptr<const Pack> open(const std::string &path, Failure &failure);
  /// Over bytes that outlive the pack.
  static std::shared_ptr<const Pack> open(std::span<const std::byte> bytes, Failure &failure);
  ~Pack();
  Pack(const Pack &) = delete;
  Pack &operator=(const Pack &) = delete;

  struct Entry {
    std::string name;
    std::string phase;
    std::string triple, cpu;
    std::vector<std::string> features;
    uint64_t offset = 0, bytes = 0; ///< of its artifact
  };
  std::span<const Entry> entries() const { return entries_; }
  /// The first entry of each kernel.
  std::span<const size_t> kernels() const { return kernels_; }

  /// Where a kernel is to run: on this CPU where nothing is said.
  struct Machine {
    std::string_view cpu = {}; ///< the entry of this one, a CPU or GPU, by its name in the pack
    std::string_view gpu = {}; ///< a GPU, "sm_90"
  };
  /// The entry of a kernel that a machine runs. Of CPUs all of whose features this one has, the one
  /// with most of them, the first of equals; else of those that require no more than it has. Of
  /// GPUs the latest that is not later. Null with `failure` set: NF_NO_KERNEL, NF_WRONG_MACHINE.
  const Entry *choose(std::string_view name, std::string_view phase, const Machine &machine,
                      Failure &failure) const;
  /// Reads and checks an entry's artifact: NF_BAD_ARTIFACT.
  bool read(const Entry &entry, Artifact &artifact, Failure &failure) const;

private:
  Pack() = default;
  bool readTable(Failure &failure);

  std::span<const std::byte> bytes_;
  void *mapping_ = nullptr;
  size_t mapped_ = 0;
  std::vector<Entry> entries_;
  std::vector<size_t> kernels_;
};

} // namespace normforge
