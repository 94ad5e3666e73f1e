#include "runtime/cache/FileIdentity.h"

#include "runtime/FileDescriptor.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <elf.h>
#include <fcntl.h>
#include <span>
#include <sys/stat.h>

namespace normforge {
namespace {

/// Reads up to `size` bytes at `offset`; the number read, 0 where nothing is.
size_t readAt(int fd, uint64_t offset, void *bytes, size_t size) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = pread(fd, static_cast<char *>(bytes) + done, size - done,
                              static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      break;
    done += static_cast<size_t>(got);
  }
  return done;
}

/// The build ID among an ELF file's notes, in hexadecimal; empty where there is none.
std::string buildIdIn(std::span<const char> notes) {
  auto padded = [](size_t bytes) { return (bytes + 3) / 4 * 4; };
  while (notes.size() >= sizeof(Elf64_Nhdr)) {
    Elf64_Nhdr note;
    std::memcpy(&note, notes.data(), sizeof note);
    notes = notes.subspan(sizeof note);
    if (padded(note.n_namesz) > notes.size() ||
        note.n_descsz > notes.size() - padded(note.n_namesz))
      break;
    const auto content = notes.subspan(padded(note.n_namesz), note.n_descsz);
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
        std::memcmp(notes.data(), "GNU", 4) == 0) {
      std::string text;
      for (char byte : content) {
        text += "0123456789abcdef"[static_cast<unsigned char>(byte) >> 4];
        text += "0123456789abcdef"[byte & 15];
      }
      return text;
    }
    notes = notes.subspan(std::min(notes.size(), padded(note.n_namesz) + padded(note.n_descsz)));
  }
  return {};
}

/// The build ID of a 64-bit ELF file of this machine's byte order, as libraries that are loaded
/// here are. Linkers put headers and notes first: one read of a page has them.
std::string buildIdOf(int fd) {
  std::array<char, 4096> page;
  const size_t got = readAt(fd, 0, page.data(), page.size());
  Elf64_Ehdr header;
  if (got < sizeof header || std::memcmp(page.data(), ELFMAG, SELFMAG) != 0 ||
      page[EI_CLASS] != ELFCLASS64)
    return {};
  std::memcpy(&header, page.data(), sizeof header);
  if (header.e_phentsize != sizeof(Elf64_Phdr))
    return {};
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    const uint64_t at = header.e_phoff + uint64_t(i) * sizeof(Elf64_Phdr);
    if (header.e_phoff > got || at + sizeof(Elf64_Phdr) > got)
      return {};
    Elf64_Phdr segment;
    std::memcpy(&segment, page.data() + at, sizeof segment);
    if (segment.p_type != PT_NOTE)
      continue;
    std::array<char, 1024> notes; // far above what linkers write
    const size_t size = readAt(fd, segment.p_offset, notes.data(),
                               std::min<uint64_t>(notes.size(), segment.p_filesz));
    if (std::string id = buildIdIn({notes.data(), size}); !id.empty())
      return id;
  }
  return {};
}

} // namespace

std::optional<FileIdentity> FileIdentity::of(const std::string &path) {
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status;
  if (!file || fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode))
    return std::nullopt;
  FileIdentity identity{path, static_cast<uint64_t>(status.st_size), {}};
  const std::string id = buildIdOf(file.get());
  identity.version =
      id.empty() ? "modified " + std::to_string(int64_t(status.st_mtim.tv_sec) * 1'000'000'000 +
                                                status.st_mtim.tv_nsec)
                 : "build-id " + id;
  return identity;
}

} // namespace normforge
