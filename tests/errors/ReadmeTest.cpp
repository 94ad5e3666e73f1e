// Commands of the README and of the pages about the command and packs work as they say: each line
// of an ```sh block that begins with build/bin/normforge, and what it continues with after a
// backslash, ends with status 0.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <sys/wait.h>
#include <vector>

namespace {

const std::string command = "build/bin/normforge";

std::vector<std::string> commandsOf(const std::string &page) {
  std::ifstream file(NORMFORGE_SOURCE_DIR "/" + page);
  std::vector<std::string> commands;
  bool inBlock = false;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("```")) {
      inBlock = line == "```sh";
    } else if (inBlock && line.starts_with(command)) {
      for (std::string next; line.ends_with("\\") && std::getline(file, next);)
        line = line.substr(0, line.size() - 1) + next;
      commands.push_back(line);
    }
  }
  return commands;
}

std::string quoted(const std::string &path) { return "'" + path + "'"; }

} // namespace

TEST_CASE("commands of the README and the pages end with status 0") {
  std::vector<std::string> commands;
  for (const char *page :
       {"README.md", "docs/command.md", "docs/ahead.md", "docs/onnx.md", "docs/gpu.md"}) {
    const auto further = commandsOf(page);
    CHECK_MESSAGE(further.size() >= 2, page);
    commands.insert(commands.end(), further.begin(), further.end());
  }
  // They are run from the root, with the command of this build, and write into a folder of their
  // own: the pages' build/.
  const std::filesystem::path folder = NORMFORGE_BUILD_DIR "/readme";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  for (std::string line : commands) {
    INFO(line);
    line.replace(0, command.size(), quoted(NORMFORGE_COMMAND));
    for (size_t at; (at = line.find(" build/")) != std::string::npos;)
      line.replace(at + 1, 5, quoted(folder.string()));
    for (size_t at; (at = line.find("=build/")) != std::string::npos;)
      line.replace(at + 1, 5, quoted(folder.string()));
    const std::string log = (folder / "log").string();
    const int status = std::system(
        ("cd " + quoted(NORMFORGE_SOURCE_DIR) + " && { " + line + " ; } >" + quoted(log) + " 2>&1")
            .c_str());
    std::ifstream file(log);
    const std::string output{std::istreambuf_iterator<char>(file), {}};
    INFO(output);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
  }
}
