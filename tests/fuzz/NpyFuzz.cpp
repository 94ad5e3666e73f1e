// Bytes of a stranger as a .npy file: an array, or an error that can be read. libFuzzer's; the
// first byte of an input says what the rest is:
//   0, 3, ...  a file
//   1, 4, ...  the text of a header, up to a newline, and data: the lengths in front are made right
//   2, 5, ...  the same, and the data are made as long as the header's shape wants, up to 64 KiB
#include "compiler/spec/Npy.h"
#include "tests/fuzz/Require.h"

#include <optional>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

using namespace normforge;

namespace {

constexpr size_t kMaxLineBytes = 512;

/// A file that is in memory and has a path.
class MemoryFile {
public:
  MemoryFile() : descriptor_(memfd_create("npy", MFD_CLOEXEC)) {
    require(descriptor_ >= 0, "the machine gives a file in memory");
    path_ = "/proc/self/fd/" + std::to_string(descriptor_);
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile &) = delete;
  MemoryFile &operator=(const MemoryFile &) = delete;

  void write(const std::string &bytes) const {
    require(ftruncate(descriptor_, 0) == 0 && pwrite(descriptor_, bytes.data(), bytes.size(), 0) ==
                                                  static_cast<ssize_t>(bytes.size()),
            "a file in memory can be written");
  }
  const std::string &path() const { return path_; }

private:
  int descriptor_;
  std::string path_;
};

std::optional<HostArray> readBack(const std::string &bytes) {
  static const MemoryFile file;
  file.write(bytes);
  llvm::Expected<HostArray> array = readNpy(file.path());
  if (array)
    return std::move(*array);
  requireReadable(llvm::toString(array.takeError()), /*maxLines=*/1, kMaxLineBytes);
  return std::nullopt;
}

void read(const std::string &bytes) {
  const std::optional<HostArray> array = readBack(bytes);
  if (!array)
    return;
  require(array->bytes.size() ==
              static_cast<size_t>(array->count() / elementsPerWord(array->dtype)) *
                  byteSize(array->dtype),
          "an array's bytes are those of its shape");
  if (array->count() > 0)
    array->get(array->count() - 1);
  // These are the bytes that writeNpy writes: a path of ours would cost a file for every input.
  llvm::Expected<std::string> head = npyHead(*array);
  if (!head) { // a header of more than 64 KiB, which later versions have
    requireReadable(llvm::toString(head.takeError()), /*maxLines=*/1, kMaxLineBytes);
    return;
  }
  require(head->size() % 64 == 0, "data start at a multiple of 64");
  const std::optional<HostArray> again = readBack(*head + bytesOf(*array).str());
  require(again && again->dtype == array->dtype && again->shape == array->shape &&
              again->bytes == array->bytes,
          "an array that is written and read again is the same");
}

/// A file with this header; the least version that holds it where `version` does not.
std::string fileOf(const std::string &header, const std::string &data, int version) {
  if (header.size() > UINT16_MAX)
    version = std::max(version, 2);
  std::string bytes = "\x93NUMPY";
  bytes += static_cast<char>(version);
  bytes += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i)
    bytes += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return bytes + header + data;
}

/// Bytes of the data that the text of a header wants, as far as a plain reading of it tells.
size_t bytesWanted(const std::string &header) {
  constexpr size_t most = 1 << 16;
  size_t wanted = header.find("f8") != std::string::npos   ? 8
                  : header.find("f4") != std::string::npos ? 4
                                                           : 2;
  const size_t open = header.find('(');
  for (size_t i = open == std::string::npos ? header.size() : open + 1;
       i < header.size() && header[i] != ')';) {
    size_t value = 0, digits = 0;
    for (; i < header.size() && header[i] >= '0' && header[i] <= '9'; ++i, ++digits)
      value = std::min<size_t>(value * 10 + static_cast<size_t>(header[i] - '0'), most);
    if (digits > 0)
      wanted = std::min(wanted * value, most);
    else
      ++i;
  }
  return wanted;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size == 0)
    return 0;
  const std::string rest(reinterpret_cast<const char *>(data) + 1, size - 1);
  if (data[0] % 3 == 0) {
    read(rest);
    return 0;
  }
  const size_t end = std::min(rest.find('\n'), rest.size());
  const std::string header = rest.substr(0, end);
  std::string array = rest.substr(std::min(end + 1, rest.size()));
  if (data[0] % 3 == 2)
    array.resize(bytesWanted(header), '\x7f');
  read(fileOf(header, array, 1 + data[0] / 3 % 3));
  return 0;
}
