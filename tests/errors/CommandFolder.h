// The command `normforge` in a folder of its own, as its users meet it.
#pragma once

#include "compiler/cli/Files.h"
#include "compiler/spec/Npy.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace normforge::test {

namespace fs = std::filesystem;

struct Outcome {
  int status = -1;
  std::string out, err;
};

inline std::string slurp(const fs::path &path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::vector<std::string> linesOf(const std::string &text) {
  std::vector<std::string> lines;
  std::stringstream stream(text);
  for (std::string line; std::getline(stream, line);)
    lines.push_back(line);
  return lines;
}

/// A command line with more words.
inline std::vector<std::string> with(std::vector<std::string> words,
                                     std::vector<std::string> more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

/// A folder of its own for each test, in which the command runs: messages hold short paths.
class Folder {
public:
  Folder() {
    std::string pattern = fs::temp_directory_path() / "normforge-command-XXXXXX";
    REQUIRE(mkdtemp(pattern.data()));
    path_ = pattern;
    write("bn.yaml", "name: bn\n"
                     "input: {shape: [N, 3, 2, 2], layout: nchw}\n"
                     "axis: c\n"
                     "epsilon: 1.0e-3\n"
                     "phases: [inference, training]\n");
    write("late.yaml", "name: late\n"
                       "input: {shape: [N, 3, 2, 2], layout: nchw}\n"
                       "axis: c\n"
                       "epsilon: argument\n");
    write("sized.yaml", "name: sized\n"
                        "input: {shape: [N, 3, H, W], layout: nchw}\n"
                        "axis: c\n");
    fs::create_directory(path_ / "folder");
    array("x.npy", {2, 3, 2, 2}, 1);
    array("gamma.npy", {3}, 2);
    array("beta.npy", {3}, 0.5);
    array("mean.npy", {3}, 0);
    array("variance.npy", {1, 3, 1, 1}, 0.999);
  }
  ~Folder() { fs::remove_all(path_); }

  const fs::path &path() const { return path_; }
  void write(const std::string &name, const std::string &text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  /// An array that counts up from `first`, except that a vector is `first` throughout.
  void array(const std::string &name, std::vector<int64_t> shape, double first,
             DType dtype = DType::F32) const {
    HostArray values(dtype, std::move(shape));
    for (int64_t i = 0; i < values.count(); ++i)
      values.set(i, first + (values.count() > 3 ? static_cast<double>(i) : 0));
    REQUIRE(!writeNpy((path_ / name).string(), values));
  }
  HostArray read(const std::string &name) const {
    auto values = readNpy((path_ / name).string());
    REQUIRE(static_cast<bool>(values));
    return std::move(*values);
  }
  size_t files() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
  }

  Outcome run(std::vector<std::string> words) const { return wait(start(std::move(words))); }

  /// A command that runs beside the test, one at a time. Files that it writes may have this many
  /// bytes (0: any), as on a disk that is full.
  pid_t start(std::vector<std::string> words, rlim_t mostBytes = 0) const {
    const fs::path out = path_.string() + ".out", err = path_.string() + ".err";
    words.insert(words.begin(), NORMFORGE_COMMAND);
    std::vector<char *> argv;
    for (std::string &word : words)
      argv.push_back(word.data());
    argv.push_back(nullptr);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      const int outFile = open(out.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
      const int errFile = open(err.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
      if (outFile < 0 || errFile < 0 || chdir(path_.c_str()) != 0)
        _exit(125);
      dup2(outFile, STDOUT_FILENO);
      dup2(errFile, STDERR_FILENO);
      if (mostBytes > 0) {
        const rlimit limit{mostBytes, mostBytes};
        setrlimit(RLIMIT_FSIZE, &limit);
        std::signal(SIGXFSZ, SIG_IGN);
      }
      execv(argv[0], argv.data());
      _exit(126);
    }
    return child;
  }
  Outcome wait(pid_t child) const {
    const fs::path out = path_.string() + ".out", err = path_.string() + ".err";
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    Outcome outcome;
    outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.out = slurp(out);
    outcome.err = slurp(err);
    fs::remove(out);
    fs::remove(err);
    return outcome;
  }

  /// Bad input: status 2, this on stderr, nothing on stdout and no new file.
  void refuses(const std::vector<std::string> &words, const std::string &message) const {
    CAPTURE(fmt::format("normforge {}", fmt::join(words, " ")));
    const size_t before = files();
    const Outcome outcome = run(words);
    CHECK(outcome.status == 2);
    CHECK(outcome.err == message + "\n");
    CHECK(outcome.out == "");
    CHECK(files() == before);
  }

private:
  fs::path path_;
};

inline bool contains(const std::string &text, const std::string &part) {
  return text.find(part) != std::string::npos;
}

/// `run` of bn.yaml's inference with some of its arguments replaced.
inline std::vector<std::string> runWords(std::vector<std::string> more = {},
                                         const std::string &x = "x.npy",
                                         const std::string &gamma = "gamma.npy") {
  std::vector<std::string> words{"run",
                                 "bn.yaml",
                                 "x=" + x,
                                 "gamma=" + gamma,
                                 "beta=beta.npy",
                                 "moving_mean=mean.npy",
                                 "moving_variance=variance.npy"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

} // namespace normforge::test
