// Every row of specs/frameworks/README.md is what the parser answers.
#include "compiler/spec/Spec.h"

#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringRef.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fstream>

using namespace normforge;

TEST_CASE("foreign names are answered with ours") {
  std::ifstream file(NORMFORGE_SOURCE_DIR "/specs/frameworks/README.md");
  REQUIRE(file);
  int rows = 0;
  for (std::string line; std::getline(file, line);) {
    llvm::SmallVector<llvm::StringRef> cells;
    llvm::StringRef(line).split(cells, '|');
    if (cells.size() != 4 || !cells[1].trim().starts_with("`"))
      continue;
    ++rows;
    const std::string theirs = cells[1].trim().trim('`').str(), ours = cells[2].trim().str();
    INFO(theirs, ": ", ours);
    // No value of any key: what the key itself is answered with is seen. Of an optimizer's key,
    // "adam.betas", in its place.
    const auto [optimizer, part] = llvm::StringRef(theirs).split('.');
    const std::string key = part.empty() ? theirs : part.str();
    auto spec =
        parseSpec(part.empty() ? fmt::format("input: {{shape: [4, 8]}}\n{}: [[nothing]]\n", key)
                               : fmt::format("input: {{shape: [4, 8]}}\nphases: [update]\n"
                                             "optimizer: {{{}: {{{}: [[nothing]]}}}}\n",
                                             optimizer.str(), key),
                  "spec.yaml");
    REQUIRE_FALSE(spec);
    const std::string message = llvm::toString(spec.takeError());
    const std::string unknown =
        fmt::format("unknown key '{}'", key) +
        (part.empty() ? "" : fmt::format(" in 'optimizer.{}'", optimizer.str()));
    if (ours == "the same")
      CHECK_MESSAGE(message.find(unknown) == std::string::npos, message);
    else
      CHECK_MESSAGE((message.find(unknown + "; here it is " + ours) != std::string::npos), message);
  }
  CHECK(rows >= 120);
}
