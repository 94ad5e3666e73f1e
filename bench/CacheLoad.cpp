// normforge-bench-cache: how long a kernel takes from the disk cache, in processes that have not
// loaded LLVM.
//
//   normforge-bench-cache SPEC.yaml [TIMES]
//
// Compiles the spec's first phase into a cache of its own, then starts itself TIMES times; each
// time, nf_compile is measured once. Exit status 1 where LLVM was loaded for it.
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

double compile(const std::string &spec, const std::string &directory) {
  const nf::Engine engine({.cacheDirectory = directory});
  const auto begin = std::chrono::steady_clock::now();
  const nf::Kernel kernel = engine.compile(spec);
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin)
      .count();
}

int measure(const std::string &program, const std::string &specFile, int times) {
  char name[] = "/tmp/normforge-bench-cache-XXXXXX";
  if (!mkdtemp(name))
    throw std::runtime_error(std::string("cannot make ") + name);
  const std::string directory = name;
  const struct Removed {
    const std::string &path;
    ~Removed() { std::filesystem::remove_all(path); }
  } removed{directory};
  const double first = compile(contentsOf(specFile), directory);
  std::vector<double> us;
  bool loaded = false;
  for (int i = 0; i < times; ++i) {
    const std::string out = directory + "/.time";
    const pid_t child = fork();
    if (child == 0) {
      execl(program.c_str(), program.c_str(), "--child", specFile.c_str(), directory.c_str(),
            out.c_str(), nullptr);
      _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status) ||
        WEXITSTATUS(status) > 1) {
      std::fprintf(stderr, "normforge-bench-cache: error: a process failed\n");
      return 2;
    }
    loaded = loaded || WEXITSTATUS(status) == 1;
    us.push_back(std::strtod(contentsOf(out).c_str(), nullptr));
  }
  std::sort(us.begin(), us.end());
  std::printf(
      "first, compiled: %.1f ms; from disk in a new process: least %.0f us, median %.0f us, "
      "worst %.0f us; LLVM %s\n",
      first / 1e3, us.front(), us[us.size() / 2], us.back(), loaded ? "WAS LOADED" : "not loaded");
  return loaded;
}

} // namespace

int main(int argc, char **argv) try {
  if (argc == 5 && std::string(argv[1]) == "--child") {
    const double us = compile(contentsOf(argv[2]), argv[3]);
    std::ofstream(argv[4]) << us;
    return hasLoadedLlvm();
  }
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: normforge-bench-cache SPEC.yaml [TIMES]\n");
    return 2;
  }
  return measure("/proc/self/exe", argv[1], argc > 2 ? std::max(1, std::atoi(argv[2])) : 20);
} catch (const std::exception &error) {
  std::fprintf(stderr, "normforge-bench-cache: error: %s\n", error.what());
  return 2;
}
