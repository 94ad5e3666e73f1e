// normforge-bench-cache: how long kernels take from the disk cache or a pack, in processes that
// have not loaded LLVM.
//
//   normforge-bench-cache SPEC.yaml [TIMES]
//   normforge-bench-cache --pack PACK.nfk [TIMES]
//
// Compiles the spec's first phase into a cache of its own, then starts itself TIMES times; each
// time, nf_compile is measured once. Or opens the pack and loads all that is in it, each time. Exit
// status 1 where LLVM was loaded for it.
#include "normforge/normforge.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace {

std::string contentsOf(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool hasLoadedLlvm() { return contentsOf("/proc/self/maps").find("libLLVM") != std::string::npos; }

class Stopwatch {
public:
  double us() const {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin_)
        .count();
  }

private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// nf_compile of a spec's file, in microseconds.
std::vector<double> compile(const std::string &specFile, const std::string &directory) {
  const std::string spec = contentsOf(specFile);
  const nf::Engine engine({.cacheDirectory = directory});
  const Stopwatch watch;
  const nf::Kernel kernel = engine.compile(spec);
  return {watch.us()};
}

/// Opening a pack; loading its first kernel; loading all of them.
std::vector<double> load(const std::string &packFile) {
  const nf::Engine engine({.cacheDirectory = ""});
  const Stopwatch opening;
  const nf::Pack pack = engine.openPack(packFile);
  std::vector<double> us{opening.us()};
  const Stopwatch loading;
  std::vector<nf::Kernel> kernels;
  for (size_t i = 0; i < pack.size(); ++i) {
    kernels.push_back(pack.load(std::string(pack.name(i)), pack.phase(i)));
    if (i == 0)
      us.push_back(loading.us());
  }
  us.push_back(loading.us());
  return us;
}

/// Starts this program `times` times with these words and a file for what it measures: medians and
/// extremes of each figure. `loaded` becomes true where a process has loaded LLVM.
struct Figure {
  double least, median, worst;
};
std::vector<Figure> repeat(const std::vector<std::string> &words, const std::string &out, int times,
                           bool &loaded) {
  std::vector<std::vector<double>> figures;
  for (int i = 0; i < times; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      std::vector<char *> arguments;
      for (const std::string &word : words)
        arguments.push_back(const_cast<char *>(word.c_str()));
      arguments.push_back(const_cast<char *>(out.c_str()));
      arguments.push_back(nullptr);
      execv("/proc/self/exe", arguments.data());
      _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status) ||
        WEXITSTATUS(status) > 1)
      throw std::runtime_error("a process failed");
    loaded = loaded || WEXITSTATUS(status) == 1;
    std::ifstream file(out);
    double us;
    for (size_t k = 0; file >> us; ++k) {
      figures.resize(std::max(figures.size(), k + 1));
      figures[k].push_back(us);
    }
  }
  std::vector<Figure> result;
  for (std::vector<double> &us : figures) {
    std::sort(us.begin(), us.end());
    result.push_back({us.front(), us[us.size() / 2], us.back()});
  }
  return result;
}

/// A folder that ends with this.
class Folder {
public:
  Folder() {
    char name[] = "/tmp/normforge-bench-cache-XXXXXX";
    if (!mkdtemp(name))
      throw std::runtime_error(std::string("cannot make ") + name);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string &path() const { return path_; }

private:
  std::string path_;
};

int measureCache(const std::string &specFile, int times) {
  const Folder folder;
  const double first = compile(specFile, folder.path())[0];
  bool loaded = false;
  const auto figures = repeat({"normforge-bench-cache", "--child", specFile, folder.path()},
                              folder.path() + "/.time", times, loaded);
  std::printf(
      "first, compiled: %.1f ms; from disk in a new process: least %.0f us, median %.0f us, "
      "worst %.0f us; LLVM %s\n",
      first / 1e3, figures.at(0).least, figures[0].median, figures[0].worst,
      loaded ? "WAS LOADED" : "not loaded");
  return loaded;
}

int measurePack(const std::string &packFile, int times) {
  const Folder folder;
  const size_t kernels = nf::Engine({.cacheDirectory = ""}).openPack(packFile).size();
  bool loaded = false;
  const auto figures = repeat({"normforge-bench-cache", "--child-pack", packFile},
                              folder.path() + "/time", times, loaded);
  std::printf(
      "in a new process, medians: opening the pack %.0f us, its first kernel %.0f us, all %zu "
      "kernels %.2f ms; LLVM %s\n",
      figures.at(0).median, figures.at(1).median, kernels, figures.at(2).median / 1e3,
      loaded ? "WAS LOADED" : "not loaded");
  return loaded;
}

int child(const std::vector<double> &figures, const char *out) {
  std::ofstream file(out);
  for (double us : figures)
    file << us << "\n";
  return hasLoadedLlvm();
}

} // namespace

int main(int argc, char **argv) try {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (argc == 5 && words[0] == "--child")
    return child(compile(words[1], words[2]), argv[4]);
  if (argc == 4 && words[0] == "--child-pack")
    return child(load(words[1]), argv[3]);
  const bool isPack = argc > 1 && words[0] == "--pack";
  const int files = isPack ? 1 : 0; // where the file's name is
  if (argc < files + 2 || argc > files + 3) {
    std::fprintf(stderr, "usage: normforge-bench-cache SPEC.yaml [TIMES]\n"
                         "       normforge-bench-cache --pack PACK.nfk [TIMES]\n");
    return 2;
  }
  const std::string &file = words[static_cast<size_t>(files)];
  const int times = argc > files + 2 ? std::max(1, std::atoi(argv[files + 2])) : 20;
  return isPack ? measurePack(file, times) : measureCache(file, times);
} catch (const std::exception &error) {
  std::fprintf(stderr, "normforge-bench-cache: error: %s\n", error.what());
  return 2;
}
