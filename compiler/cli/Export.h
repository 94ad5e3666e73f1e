// Files that other programs take: objects, libraries, headers, manifests.
#pragma once

#include "compiler/cli/Command.h"

namespace normforge::cli {

enum class FileKind : uint8_t { Object, SharedLibrary, Assembly, Header, Manifest };
std::optional<FileKind> parseFileKind(std::string_view text);
std::string_view fileKindNames(); ///< "obj, so, asm, header, manifest"

struct ExportRequest {
  std::vector<std::string> specs; ///< files and directories
  TargetOptions target;
  std::string phase;
  ScheduleOptions schedule;
  std::vector<FileKind> kinds;
  std::string output; ///< -o: a file, or a directory; empty: standard output
};

/// Compiles all phases of all specs and writes the files: in a directory, a set for each spec under
/// its name; otherwise one set for all. All are written or none.
llvm::Error exportKernels(const ExportRequest &request);

} // namespace normforge::cli
