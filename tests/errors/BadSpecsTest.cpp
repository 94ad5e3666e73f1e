// Bad specs get the exact messages listed in bad_specs.txt.
#include "compiler/spec/Spec.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringRef.h"

#include <doctest/doctest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using normforge::Spec;
using normforge::SpecError;

struct Case {
  std::string name, text, expected;
};

/// \xHH is that byte.
std::string unescape(llvm::StringRef text) {
  std::string out;
  while (!text.empty()) {
    if (text.starts_with("\\x") && text.size() >= 4 && llvm::isHexDigit(text[2]) &&
        llvm::isHexDigit(text[3])) {
      out += static_cast<char>(llvm::hexFromNibbles(text[2], text[3]));
      text = text.drop_front(4);
    } else {
      out += text.front();
      text = text.drop_front();
    }
  }
  return out;
}

std::vector<Case> readCases() {
  std::ifstream file(NORMFORGE_TEST_DATA_DIR "/errors/bad_specs.txt");
  std::vector<Case> cases;
  bool inMessage = false;
  for (std::string line; std::getline(file, line);) {
    llvm::StringRef text = line;
    if (text.consume_front("=== ")) {
      cases.push_back({text.str(), "", ""});
      inMessage = false;
    } else if (line == "--->") {
      inMessage = true;
    } else if (!cases.empty()) {
      (inMessage ? cases.back().expected : cases.back().text) += line + "\n";
    }
  }
  for (Case &c : cases) {
    c.text = unescape(c.text);
    c.expected = llvm::StringRef(c.expected).rtrim('\n').str();
  }
  return cases;
}

std::string messageOf(llvm::Expected<Spec> spec) {
  if (spec)
    return "no error";
  std::string message;
  llvm::handleAllErrors(spec.takeError(), [&](const SpecError &error) { message = error.text(); });
  return message;
}

TEST_CASE("bad specs get their exact messages") {
  std::vector<Case> cases = readCases();
  REQUIRE(cases.size() >= 70);
  std::set<std::string> names;
  for (const Case &c : cases) {
    INFO("case: ", c.name);
    CHECK(names.insert(c.name).second);
    std::string actual = messageOf(normforge::parseSpec(c.text, "a.yaml"));
    if (actual != c.expected)
      FAIL_CHECK("expected:\n" << c.expected << "\nactual:\n" << actual);
  }
}

TEST_CASE("a spec that is too large") {
  std::string text = "# " + std::string(1 << 20, 'a') + "\ninput: {shape: [4, 8]}\n";
  std::string message = messageOf(normforge::parseSpec(text, "a.yaml"));
  CHECK(llvm::StringRef(message).starts_with(
      "a.yaml:1:1: error: the spec is larger than 1048576 bytes\n# aaa"));
  CHECK(message.size() < 400);
}

TEST_CASE("deep nesting of every kind ends in one error") {
  for (const char *open : {"[", "{a: ", "- ", "? ", "[a, {b: "}) {
    INFO("opened by ", open);
    std::string text = "axis: ";
    if (open[0] == '-' || open[0] == '?')
      text.clear();
    for (int i = 0; i < 20000; ++i)
      text += open;
    std::string message = messageOf(normforge::parseSpec(text, "a.yaml"));
    CHECK(message.find("more than 16 levels of nesting") != std::string::npos);
    CHECK(message.size() < 500);
  }
}

TEST_CASE("what LLVM's parser would recurse over ends in one error") {
  auto repeated = [](std::string text, const char *part) {
    for (int i = 0; i < 100000; ++i)
      text += part;
    return messageOf(normforge::parseSpec(text, "a.yaml"));
  };
  for (const char *commas : {",", ", ", ",\n", ", #\n", ",#,\n"})
    for (const char *open : {"{", "axis: [", "input: {shape: ["})
      CHECK(repeated(open, commas).find("error: not YAML: commas without values") !=
            std::string::npos);
  for (const char *marker : {"...\n", "---\n", "... #\n", "...\n#\n"})
    CHECK(repeated("a: 1\n", marker).find("error: a spec is one document, but here are many") !=
          std::string::npos);
}

TEST_CASE("files that cannot be read") {
  std::filesystem::path folder = std::filesystem::temp_directory_path();
  CHECK(messageOf(normforge::readSpec("no/such/file.yaml")) ==
        "no/such/file.yaml: error: cannot be read: No such file or directory");
  CHECK(messageOf(normforge::readSpec(folder.string())) ==
        folder.string() + ": error: cannot be read: Is a directory");
}

} // namespace
