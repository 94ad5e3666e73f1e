#include "compiler/cli/Npz.h"

#include "compiler/spec/Diagnostics.h"

#include "llvm/Support/FileSystem.h"

#include <algorithm>
#include <fmt/format.h>
#include <memory>
#include <set>
#include <zip.h>

namespace normforge {

namespace {

using llvm::StringRef;

constexpr StringRef kExtension = ".npy";
constexpr uint64_t kMostBytes = uint64_t(16) << 30;

llvm::Error failure(StringRef path, const std::string &text) {
  return llvm::createStringError(fmt::format("{}: error: {}", path.str(), text));
}

struct Discard {
  void operator()(zip_t *archive) const { zip_discard(archive); }
  void operator()(zip_file_t *file) const { zip_fclose(file); }
  void operator()(zip_source_t *source) const { zip_source_free(source); }
};
using Archive = std::unique_ptr<zip_t, Discard>;
using File = std::unique_ptr<zip_file_t, Discard>;
using Source = std::unique_ptr<zip_source_t, Discard>;

} // namespace

llvm::Expected<std::vector<NpzMember>> readNpz(StringRef path) {
  if (!llvm::sys::fs::exists(path))
    return failure(path, "cannot be read: No such file or directory");
  if (!llvm::sys::fs::is_regular_file(path))
    return failure(
        path, fmt::format("expected an .npz file, found {}",
                          llvm::sys::fs::is_directory(path) ? "a directory" : "a device or pipe"));
  int code = 0;
  const Archive archive(zip_open(path.str().c_str(), ZIP_RDONLY, &code));
  if (!archive) {
    if (code == ZIP_ER_NOZIP)
      return failure(path, "expected an .npz file, which is a ZIP archive; found other bytes");
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string text = zip_error_strerror(&error);
    zip_error_fini(&error);
    return failure(path, "cannot be read: " + text);
  }
  std::vector<NpzMember> members;
  std::set<std::string> names;
  uint64_t all = 0;
  for (zip_int64_t i = 0, n = zip_get_num_entries(archive.get(), 0); i < n; ++i) {
    zip_stat_t stat;
    zip_stat_init(&stat);
    const auto index = static_cast<zip_uint64_t>(i);
    constexpr zip_uint64_t kWanted = ZIP_STAT_NAME | ZIP_STAT_SIZE;
    if (zip_stat_index(archive.get(), index, 0, &stat) != 0 || (stat.valid & kWanted) != kWanted)
      return failure(path, fmt::format("damaged: {}", zip_strerror(archive.get())));
    StringRef name = stat.name;
    const std::string shown = spec::quoted(name.str());
    if (!name.consume_back(kExtension))
      return failure(
          path, fmt::format("expected arrays alone, whose names end in .npy; found {}", shown));
    if (!names.insert(name.str()).second)
      return failure(path, fmt::format("{} is there twice", shown));
    if (stat.size > kMostBytes || (all += stat.size) > kMostBytes)
      return failure(path, "expected at most 16 GiB of arrays");
    const File file(zip_fopen_index(archive.get(), index, 0));
    if (!file)
      return failure(path,
                     fmt::format("{} cannot be read: {}", shown, zip_strerror(archive.get())));
    // The size that the archive states need not be true. Reading to the end compares the checksum.
    NpzMember member{name.str(), {}};
    constexpr uint64_t kStep = 1 << 20;
    std::string step(std::min(stat.size + 1, kStep), '\0');
    zip_int64_t more;
    while ((more = zip_fread(file.get(), step.data(), step.size())) > 0 &&
           member.bytes.size() <= stat.size)
      member.bytes.append(step, 0, static_cast<size_t>(more));
    if (more < 0)
      return failure(path, fmt::format("{} is damaged: {}", shown,
                                       zip_error_strerror(zip_file_get_error(file.get()))));
    if (member.bytes.size() != stat.size)
      return failure(path,
                     fmt::format("{} is damaged: expected {} bytes, found {}", shown, stat.size,
                                 more > 0 ? "more" : std::to_string(member.bytes.size())));
    members.push_back(std::move(member));
  }
  return members;
}

llvm::Expected<std::string> npzOf(const std::vector<NpzMember> &members) {
  zip_error_t error;
  zip_error_init(&error);
  const Source memory(zip_source_buffer_create(nullptr, 0, 0, &error));
  if (!memory)
    return llvm::createStringError(zip_error_strerror(&error));
  zip_source_keep(memory.get()); // the archive takes one away
  Archive archive(zip_open_from_source(memory.get(), ZIP_TRUNCATE, &error));
  if (!archive) {
    zip_source_free(memory.get());
    return llvm::createStringError(zip_error_strerror(&error));
  }
  auto wrong = [&] { return llvm::createStringError(zip_strerror(archive.get())); };
  for (const NpzMember &member : members) {
    zip_source_t *const bytes =
        zip_source_buffer(archive.get(), member.bytes.data(), member.bytes.size(), 0);
    if (!bytes)
      return wrong();
    const zip_int64_t index = zip_file_add(archive.get(), (member.name + kExtension.str()).c_str(),
                                           bytes, ZIP_FL_ENC_UTF_8);
    if (index < 0) {
      zip_source_free(bytes);
      return wrong();
    }
    constexpr zip_uint16_t kFirstDay = 1 << 5 | 1; // of 1980, as numpy writes it
    const auto added = static_cast<zip_uint64_t>(index);
    if (zip_set_file_compression(archive.get(), added, ZIP_CM_STORE, 0) != 0 ||
        zip_file_set_dostime(archive.get(), added, 0, kFirstDay, 0) != 0)
      return wrong();
  }
  if (zip_close(archive.get()) != 0)
    return wrong();
  archive.release(); // zip_close has freed it
  zip_stat_t stat;
  zip_stat_init(&stat);
  std::string text;
  if (zip_source_open(memory.get()) != 0 || zip_source_stat(memory.get(), &stat) != 0)
    return llvm::createStringError(zip_error_strerror(zip_source_error(memory.get())));
  text.resize(stat.size);
  const zip_int64_t read = zip_source_read(memory.get(), text.data(), text.size());
  zip_source_close(memory.get());
  if (read < 0 || static_cast<uint64_t>(read) != text.size())
    return llvm::createStringError(zip_error_strerror(zip_source_error(memory.get())));
  return text;
}

} // namespace normforge
