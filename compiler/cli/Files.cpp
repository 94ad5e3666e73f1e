#include "compiler/cli/Files.h"

#include "compiler/spec/Npy.h"

#include "llvm/ADT/SmallString.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/raw_ostream.h"

#include <filesystem>
#include <fmt/format.h>
#include <vector>

namespace normforge {

namespace fs = llvm::sys::fs;

namespace {

/// Where a file is written, and what it is renamed to; nothing where it is written directly.
struct Place {
  std::string target, final;
};

Place placeOf(const std::string &path) {
  if (fs::exists(path) && !fs::is_regular_file(path))
    return {path, ""};
  // Only the suffix is random: a '%' in the path itself must stay what it is.
  llvm::SmallString<16> suffix;
  fs::createUniquePath(".tmp-%%%%%%%%", suffix, /*MakeAbsolute=*/false);
  const std::string final = fileOf(path);
  return {final + suffix.str().str(), final};
}

std::error_code write(const FileToWrite &file, const Place &place) {
  int descriptor;
  if (std::error_code code = fs::openFileForWrite(
          place.target, descriptor, place.final.empty() ? fs::CD_OpenExisting : fs::CD_CreateNew))
    return code;
  llvm::raw_fd_ostream out(descriptor, /*shouldClose=*/true);
  out << file.head << file.body;
  out.close();
  const std::error_code code = out.error();
  out.clear_error();
  return code;
}

} // namespace

std::string fileOf(const std::string &path) {
  std::error_code code;
  const std::filesystem::path file =
      std::filesystem::weakly_canonical(std::filesystem::absolute(path, code), code);
  return code ? path : file.string();
}

std::string overwritten(llvm::ArrayRef<std::string> read, llvm::ArrayRef<std::string> written) {
  for (const std::string &path : written)
    for (const std::string &input : read)
      if (fileOf(path) == fileOf(input) || (fs::exists(path) && fs::equivalent(path, input)))
        return path;
  return {};
}

llvm::Error writeFiles(llvm::ArrayRef<FileToWrite> files) {
  std::vector<Place> places;
  auto failure = [&](const FileToWrite &file, const std::string &why) {
    for (const Place &place : places)
      if (!place.final.empty())
        fs::remove(place.target);
    return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                   llvm::Twine(fmt::format("{}: error: {}", file.path, why)));
  };
  for (const FileToWrite &file : files) {
    if (fs::is_directory(file.path))
      return failure(file, "expected a file to write, found a directory");
    places.push_back(placeOf(file.path));
    if (std::error_code code = write(file, places.back()))
      return failure(file, "cannot be written: " + code.message());
  }
  for (size_t i = 0; i < files.size(); ++i)
    if (!places[i].final.empty())
      if (std::error_code code = fs::rename(places[i].target, places[i].final))
        return failure(files[i], "cannot be written: " + code.message());
  return llvm::Error::success();
}

llvm::Error writeNpy(llvm::StringRef path, const HostArray &array) {
  auto head = npyHead(array);
  if (!head)
    return head.takeError();
  return writeFiles(FileToWrite{path.str(), std::move(*head), bytesOf(array)});
}

} // namespace normforge
