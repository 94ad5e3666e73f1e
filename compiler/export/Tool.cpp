#include "compiler/export/Tool.h"

#include "llvm/ADT/SmallString.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Program.h"
#include "llvm/Support/raw_ostream.h"

#include <cstdlib>
#include <fmt/format.h>
#include <optional>

namespace normforge {

llvm::Expected<std::string>
runTool(const std::string &program, const std::vector<ToolInput> &inputs,
        const std::function<std::vector<std::string>(const std::vector<std::string> &inputs,
                                                     const std::string &output)> &arguments) {
  namespace fs = llvm::sys::fs;
  llvm::SmallString<128> folder;
  if (std::error_code code = fs::createUniqueDirectory("normforge", folder))
    return llvm::createStringError("no temporary folder can be made: " + code.message());
  struct Removal {
    llvm::SmallString<128> &folder;
    ~Removal() { fs::remove_directories(folder); }
  } removal{folder};

  auto pathOf = [&](const std::string &name) {
    llvm::SmallString<128> path = folder;
    llvm::sys::path::append(path, name);
    return path.str().str();
  };
  const std::string output = pathOf("out"), log = pathOf("log");
  std::vector<std::string> paths;
  for (const ToolInput &input : inputs) {
    paths.push_back(pathOf(input.name));
    std::error_code code;
    llvm::raw_fd_ostream file(paths.back(), code);
    file << *input.bytes;
    file.close();
    if (!code)
      code = file.error();
    file.clear_error(); // else its end would be the process'
    if (code)
      return llvm::createStringError(
          fmt::format("{} cannot be written: {}", paths.back(), code.message()));
  }
  std::vector<std::string> words = arguments(paths, output);
  words.insert(words.begin(), program);
  const std::vector<llvm::StringRef> all(words.begin(), words.end());
  const std::optional<llvm::StringRef> streams[] = {llvm::StringRef(""), llvm::StringRef(log),
                                                    llvm::StringRef(log)};
  std::string problem;
  const int status = llvm::sys::ExecuteAndWait(program, all, std::nullopt, streams, 0, 0, &problem);
  if (status != 0) {
    auto said = llvm::MemoryBuffer::getFile(log);
    return llvm::createStringError(
        fmt::format("{} failed: {}{}", program, problem, said ? (*said)->getBuffer().str() : ""));
  }
  auto made = llvm::MemoryBuffer::getFile(output, /*IsText=*/false,
                                          /*RequiresNullTerminator=*/false);
  if (!made)
    return llvm::createStringError(
        fmt::format("what {} made cannot be read: {}", program, made.getError().message()));
  return (*made)->getBuffer().str();
}

llvm::Expected<std::string> assembleForDevice(const std::string &text, const std::string &cpu) {
  const char *named = std::getenv("NORMFORGE_PTXAS");
  const std::string name = named ? named : "ptxas";
  const auto found = llvm::sys::findProgramByName(name);
  if (!found)
    return llvm::createStringError(
        named ? fmt::format("NORMFORGE_PTXAS is '{}', which is not found", name)
              : "NVIDIA's ptxas, which makes machine code, is not on the path; NORMFORGE_PTXAS may "
                "name it");
  return runTool(*found, {{"kernel.ptx", &text}},
                 [&](const std::vector<std::string> &paths, const std::string &output) {
                   return std::vector<std::string>{"-arch=" + cpu, paths[0], "-o", output};
                 });
}

} // namespace normforge
