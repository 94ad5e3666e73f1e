#include "runtime/loader/LoadedImage.h"

#include "runtime/FileDescriptor.h"
#include "runtime/QuietWrite.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

#if defined(__aarch64__)
#include <linux/membarrier.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#endif

namespace normforge {
namespace {

#if defined(__aarch64__)
/// PROT_BTI, where the system has it and every entry begins with the instruction that a branch to
/// it then needs; kernels of older compilers have none.
int branchProtection(const Image &image, std::span<const Stage> stages) {
  constexpr unsigned long hwcap2Bti = 1ul << 17; // asm/hwcap.h
  constexpr int protBti = 0x10;                  // asm/mman.h
  constexpr uint32_t landingPads[] = {0xD503245F, 0xD503233F,
                                      0xD503237F}; // bti c, paciasp, pacibsp
  if (!(getauxval(AT_HWCAP2) & hwcap2Bti))
    return 0;
  for (const Stage &stage : stages) {
    uint32_t word = 0;
    if (stage.entry + sizeof word <= image.bytes.size())
      std::memcpy(&word, image.bytes.data() + stage.entry, sizeof word);
    if (std::find(std::begin(landingPads), std::end(landingPads), word) == std::end(landingPads))
      return 0;
  }
  return protBti;
}

/// Makes every core of this process drop what it has fetched of the instructions that lay here
/// before: memory that was code, unmapped and mapped again, may be in a pipeline still. Best
/// effort: a system without it interrupts the cores when memory is unmapped.
void synchronizeCores() {
  static const long registered =
      syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
  if (registered == 0)
    syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
}
#else
int branchProtection(const Image &, std::span<const Stage>) { return 0; }
void synchronizeCores() {} // x86-64 keeps instruction caches and pipelines coherent by itself
#endif

} // namespace

LoadedImage::LoadedImage(LoadedImage &&other) noexcept
    : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

LoadedImage &LoadedImage::operator=(LoadedImage &&other) noexcept {
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

LoadedImage::~LoadedImage() {
  if (base_)
    munmap(base_, bytes_);
}

bool LoadedImage::load(const Image &image, std::span<const Stage> entries, LoadedImage &loaded,
                       Failure &failure) {
  if (image.bytes.empty())
    return failure.set(NF_BAD_ARTIFACT, "artifact has an empty image");
  // Anonymous memory, copied, then made executable: the bytes that were checked are the bytes that
  // run, and a file system mounted noexec does not matter. Pages are at least Image::alignment.
  size_t page = std::max<size_t>(static_cast<size_t>(sysconf(_SC_PAGESIZE)), Image::alignment);
  size_t bytes = (image.bytes.size() + page - 1) / page * page;
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto refused = [&](const char *what) {
    return failure.set(codeOfErrno(errno), std::string("the system refuses ") + what + " for " +
                                               std::to_string(bytes) +
                                               " bytes of code: " + std::strerror(errno));
  };
  if (memory == MAP_FAILED)
    return refused("memory");
  LoadedImage result;
  result.base_ = static_cast<std::byte *>(memory);
  result.bytes_ = bytes;
  std::memcpy(memory, image.bytes.data(), image.bytes.size());
  // Where instruction caches do not follow stores, they are cleared while the memory can still be
  // written: that is architecturally the same as after mprotect, and there are Arm cores with
  // errata in cache maintenance of read-only memory, for which reason Wasmtime has this order too.
  __builtin___clear_cache(reinterpret_cast<char *>(memory),
                          reinterpret_cast<char *>(memory) + image.bytes.size());
  if (mprotect(memory, bytes, PROT_READ | PROT_EXEC | branchProtection(image, entries)) != 0)
    return refused("executable memory");
  synchronizeCores();
  loaded = std::move(result);
  return true;
}

nf_stage_fn *LoadedImage::function(size_t offset) const {
  return reinterpret_cast<nf_stage_fn *>(base_ + offset);
}

void appendPerfMap(const LoadedImage &loaded, const Image &image, std::span<const Stage> stages) {
  std::vector<uint64_t> ends{image.bytes.size()};
  for (const Stage &stage : stages)
    ends.push_back(stage.entry);
  std::sort(ends.begin(), ends.end());
  std::string lines;
  for (const Stage &stage : stages) {
    uint64_t end = *std::upper_bound(ends.begin(), ends.end() - 1, stage.entry);
    char range[64];
    std::snprintf(range, sizeof range, "%" PRIxPTR " %" PRIx64 " ",
                  reinterpret_cast<uintptr_t>(loaded.base() + stage.entry), end - stage.entry);
    lines += range + stage.symbol + "\n";
  }
  // /tmp is everybody's: no link is followed, a pipe is not waited for, and a file of another's, or
  // one that another name leads to, is left alone. One write, so that threads do not mix lines.
  const std::string path = "/tmp/perf-" + std::to_string(getpid()) + ".map";
  const FileDescriptor file(open(
      path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644));
  struct stat status;
  if (!file || fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode) ||
      status.st_uid != geteuid() || status.st_nlink != 1)
    return;
  [[maybe_unused]] ssize_t written = writeQuietly(file.get(), lines.data(), lines.size());
}

} // namespace normforge
