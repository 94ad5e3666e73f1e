// Files that are written whole or not at all.
#pragma once

#include "compiler/spec/HostArray.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <string>

namespace normforge {

/// The file that a path names: absolute, symbolic links followed, whether it exists or not.
std::string fileOf(const std::string &path);

/// The first of the files to be written that is one of those that were read, as itself or through a
/// link; empty where none is.
std::string overwritten(llvm::ArrayRef<std::string> read, llvm::ArrayRef<std::string> written);

/// The content of a file: `head`, then `body`. `body` is the caller's.
struct FileToWrite {
  std::string path, head;
  llvm::StringRef body;
};

/// Writes all files or none: first beside their places, then all are renamed; what is left to fail
/// between two renames is the file system itself. What is no regular file, such as a pipe or a
/// device, is written directly. Errors are `path: error: ...`.
llvm::Error writeFiles(llvm::ArrayRef<FileToWrite> files);

/// An array as an .npy file, whole or not at all.
llvm::Error writeNpy(llvm::StringRef path, const HostArray &array);

} // namespace normforge
