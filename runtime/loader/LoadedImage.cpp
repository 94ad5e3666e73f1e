#include "runtime/loader/LoadedImage.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace normforge {

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

bool LoadedImage::load(const Image &image, LoadedImage &loaded, Failure &failure) {
  if (image.bytes.empty())
    return failure.set(NF_BAD_ARTIFACT, "artifact has an empty image");
  // Anonymous memory, copied, then made executable: the bytes that were checked are the bytes that
  // run, and a file system mounted noexec does not matter. Pages are at least Image::alignment.
  size_t page = std::max<size_t>(static_cast<size_t>(sysconf(_SC_PAGESIZE)), Image::alignment);
  size_t bytes = (image.bytes.size() + page - 1) / page * page;
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    return failure.set(NF_OUT_OF_MEMORY, "no memory for " + std::to_string(bytes) +
                                             " bytes of code: " + std::strerror(errno));
  LoadedImage result;
  result.base_ = static_cast<std::byte *>(memory);
  result.bytes_ = bytes;
  std::memcpy(memory, image.bytes.data(), image.bytes.size());
  if (mprotect(memory, bytes, PROT_READ | PROT_EXEC) != 0)
    return failure.set(NF_SYSTEM_ERROR, std::string("the system refuses executable memory: ") +
                                            std::strerror(errno));
  __builtin___clear_cache(reinterpret_cast<char *>(memory),
                          reinterpret_cast<char *>(memory) + image.bytes.size());
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
  // O_NOFOLLOW: /tmp is everybody's. One write, so that threads do not mix their lines.
  std::string path = "/tmp/perf-" + std::to_string(getpid()) + ".map";
  int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (file < 0)
    return;
  [[maybe_unused]] ssize_t written = write(file, lines.data(), lines.size());
  close(file);
}

} // namespace normforge
