#include "runtime/loader/CompilerPath.h"

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <memory>
#include <new>
#include <unistd.h>

namespace normforge {
namespace {

/// The folder of the file that this code was loaded from; empty where it could not be told. Found
/// when the file is loaded, because the loader keeps the path as it was given: relative to the
/// working directory of that moment. Fixed memory: nothing can fail here.
char ownFolder[PATH_MAX];

/// Its own address lies in this library, or in the program that it is linked into.
[[gnu::constructor]] void findOwnFolder() {
  Dl_info here;
  link_map *map = nullptr;
  if (!dladdr1(reinterpret_cast<void *>(&findOwnFolder), &here, reinterpret_cast<void **>(&map),
               RTLD_DL_LINKMAP))
    return;
  // The program has no name in the loader's list, and argv[0], which dladdr gives then, is whatever
  // its parent said.
  const bool isProgram = !map || !map->l_name || !*map->l_name;
  if (!realpath(isProgram ? "/proc/self/exe" : map->l_name, ownFolder))
    ownFolder[0] = '\0';
  if (char *slash = std::strrchr(ownFolder, '/'))
    slash[slash == ownFolder] = '\0'; // "/" is a folder too
}

} // namespace

std::vector<std::string> compilerCandidates(const std::string &given) {
  if (!given.empty())
    return {given};
  std::vector<std::string> paths;
  if (ownFolder[0]) {
    paths.push_back(std::string(ownFolder) + "/" + compilerLibraryName);
    paths.push_back(std::string(ownFolder) + "/../lib/" + compilerLibraryName);
  }
  paths.push_back(compilerLibraryName);
  return paths;
}

std::string absolutePath(const std::string &path) {
  if (path.empty() || path.front() == '/' || path.find('/') == std::string::npos)
    return path;
  char folder[PATH_MAX];
  return getcwd(folder, sizeof folder) ? std::string(folder) + "/" + path : std::string();
}

std::string realPath(const std::string &path) {
  struct Free {
    void operator()(char *text) const { std::free(text); }
  };
  const std::unique_ptr<char, Free> real(realpath(path.c_str(), nullptr));
  if (!real && errno == ENOMEM)
    throw std::bad_alloc();
  return real ? std::string(real.get()) : std::string();
}

} // namespace normforge
