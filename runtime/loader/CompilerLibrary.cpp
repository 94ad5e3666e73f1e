#include "runtime/loader/CompilerLibrary.h"

#include <algorithm>
#include <cstdlib>
#include <dlfcn.h>
#include <string_view>
#include <unistd.h>

namespace normforge {
namespace {

constexpr const char *fileName = "libnormforge-compiler.so";

/// An address within this library, or within the program that it is linked into.
void marker() {}

std::string lastLoaderError() {
  const char *text = dlerror();
  return text ? text : "unknown error";
}

} // namespace

std::vector<std::string> CompilerLibrary::candidates() const {
  if (!path_.empty())
    return {path_};
  std::vector<std::string> paths;
  Dl_info here;
  if (dladdr(reinterpret_cast<void *>(&marker), &here) && here.dli_fname) {
    std::string file = here.dli_fname;
    size_t slash = file.rfind('/');
    std::string folder = slash == std::string::npos ? "." : file.substr(0, slash);
    paths.push_back(folder + "/" + fileName);
    paths.push_back(folder + "/../lib/" + fileName);
  }
  paths.push_back(fileName); // the loader's own path
  return paths;
}

bool CompilerLibrary::open(Failure &failure) {
  std::lock_guard lock(mutex_);
  if (compile_)
    return true;
  std::string tried;
  for (const std::string &path : candidates()) {
    // Never unloaded: LLVM leaves thread-local and static state behind that outlives dlclose.
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) {
      tried += "\n  " + lastLoaderError();
      continue;
    }
    auto *identify = reinterpret_cast<nf_compiler_fn *>(dlsym(library, NF_COMPILER_IDENTIFY));
    auto *compile = reinterpret_cast<nf_compiler_fn *>(dlsym(library, NF_COMPILER_COMPILE));
    auto *release = reinterpret_cast<nf_compiler_release_fn *>(dlsym(library, NF_COMPILER_RELEASE));
    if (!identify || !compile || !release) {
      tried += "\n  " + path + ": not a compiler library of this version: it lacks " +
               (!compile    ? NF_COMPILER_COMPILE
                : !identify ? NF_COMPILER_IDENTIFY
                            : NF_COMPILER_RELEASE);
      dlclose(library);
      continue;
    }
    release_ = release;
    identify_ = identify;
    compile_ = compile;
    return true;
  }
  return failure.set(NF_NO_COMPILER, "the compiler library cannot be opened; tried:" + tried);
}

std::string CompilerLibrary::path() const {
  for (const std::string &path : candidates()) {
    if (path.find('/') == std::string::npos)
      return {}; // the loader's to find
    char *real = realpath(path.c_str(), nullptr);
    if (!real)
      continue;
    std::string result = real;
    std::free(real);
    return result;
  }
  return {};
}

/// What the library answers, freed by it.
struct CompilerLibrary::Reply : nf_compiler_reply {
  nf_compiler_release_fn *release;
  explicit Reply(nf_compiler_release_fn *release) : nf_compiler_reply{}, release(release) {}
  Reply(const Reply &) = delete;
  Reply &operator=(const Reply &) = delete;
  ~Reply() { release(this); }
  /// Whether `function` has an answer; otherwise `failure` is set.
  bool ask(nf_compiler_fn *function, const nf_compiler_request &request, Failure &failure) {
    return function(&request, this) ||
           failure.set(code == NF_OK ? NF_INTERNAL : code, error ? error : "out of memory");
  }
};

std::optional<CompilerLibrary::Identity>
CompilerLibrary::identify(const nf_compiler_request &request, Failure &failure) {
  if (!open(failure))
    return std::nullopt;
  Reply reply(release_);
  if (!reply.ask(identify_, request, failure))
    return std::nullopt;
  Identity identity{reply.name, reply.key, {}, true};
  const std::string_view files = reply.files;
  std::lock_guard lock(mutex_);
  if (!files_) {
    files_.emplace();
    for (size_t begin = 0; begin < files.size();) {
      const size_t end = std::min(files.find('\n', begin), files.size());
      const std::string path(files.substr(begin, end - begin));
      files_->push_back(FileIdentity::of(path).value_or(FileIdentity{path}));
      begin = end + 1;
    }
  }
  identity.madeFrom = *files_;
  for (const FileIdentity &file : *files_)
    identity.isCurrent = identity.isCurrent && file.isCurrent();
  return identity;
}

std::optional<Artifact> CompilerLibrary::compile(const nf_compiler_request &request,
                                                 Failure &failure) {
  if (!open(failure))
    return std::nullopt;
  Reply reply(release_);
  if (!reply.ask(compile_, request, failure))
    return std::nullopt;
  std::string error;
  std::optional<Artifact> artifact = deserialize(
      {reinterpret_cast<const std::byte *>(reply.artifact), reply.artifact_bytes}, error);
  if (!artifact)
    failure.set(NF_INTERNAL, "the compiler's result cannot be read: " + error);
  return artifact;
}

} // namespace normforge
