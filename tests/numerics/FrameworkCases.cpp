#include "tests/numerics/FrameworkCases.h"

#include "compiler/spec/Npy.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/MemoryBuffer.h"

#include <algorithm>
#include <filesystem>

namespace normforge::test {

namespace fs = std::filesystem;

static std::optional<std::string> readText(const fs::path &path) {
  auto buffer = llvm::MemoryBuffer::getFile(path.string());
  if (!buffer)
    return std::nullopt;
  return (*buffer)->getBuffer().str();
}

static std::vector<fs::path> sortedEntries(const fs::path &folder) {
  std::vector<fs::path> paths;
  std::error_code code;
  for (const auto &entry : fs::directory_iterator(folder, code))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

ConformanceCases readFrameworkCases(const std::string &folder) {
  ConformanceCases result;
  for (const fs::path &path : sortedEntries(folder)) {
    if (!fs::is_directory(path))
      continue;
    ConformanceCase item;
    item.name = path.filename().string();
    item.sourceName = (path / "spec.yaml").string();
    item.tolerance = 5e-5; // what tests/data/frameworks/README.md states

    const auto spec = readText(item.sourceName), phase = readText(path / "case.txt");
    if (!spec || !phase) {
      result.errors.push_back(item.name + ": spec.yaml or case.txt cannot be read");
      continue;
    }
    item.spec = *spec;
    item.phases.clear();
    llvm::SmallVector<llvm::StringRef> words;
    llvm::StringRef(*phase).trim().split(words, '+');
    for (llvm::StringRef word : words)
      if (const auto parsed = parsePhase(std::string_view(word.data(), word.size())))
        item.phases.push_back(*parsed);
    if (item.phases.size() != words.size()) {
      result.errors.push_back(item.name + ": no phase is '" + phase->substr(0, 40) + "'");
      continue;
    }

    bool readable = true;
    for (const fs::path &file : sortedEntries(path)) {
      const std::string stem = file.stem().string();
      const bool isInput = stem.starts_with("in_"), isOutput = stem.starts_with("out_");
      if (file.extension() != ".npy" || (!isInput && !isOutput))
        continue;
      auto array = readNpy(file.string());
      if (!array) {
        result.errors.push_back(llvm::toString(array.takeError()));
        readable = false;
      } else if (isInput) {
        item.inputs.emplace(stem.substr(3), std::move(*array));
      } else {
        item.expected.emplace(stem.substr(4), std::move(*array));
      }
    }
    if (readable)
      result.cases.push_back(std::move(item));
  }
  return result;
}

} // namespace normforge::test
