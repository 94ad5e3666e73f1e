#include "runtime/loader/CompilerLibrary.h"

#include <dlfcn.h>

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
    auto *compile = reinterpret_cast<nf_compiler_compile_fn *>(dlsym(library, NF_COMPILER_COMPILE));
    auto *release = reinterpret_cast<nf_compiler_release_fn *>(dlsym(library, NF_COMPILER_RELEASE));
    if (!compile || !release) {
      tried += "\n  " + path + ": not a compiler library of this version: it lacks " +
               (compile ? NF_COMPILER_RELEASE : NF_COMPILER_COMPILE);
      dlclose(library);
      continue;
    }
    release_ = release;
    compile_ = compile;
    return true;
  }
  return failure.set(NF_NO_COMPILER, "the compiler library cannot be opened; tried:" + tried);
}

std::optional<Artifact> CompilerLibrary::compile(const nf_compiler_request &request,
                                                 Failure &failure) {
  if (!open(failure))
    return std::nullopt;
  nf_compiler_reply reply = {};
  int ok = compile_(&request, &reply);
  struct Release {
    nf_compiler_release_fn *release;
    nf_compiler_reply *reply;
    ~Release() { release(reply); }
  } releaseAtEnd{release_, &reply};
  if (!ok || !reply.artifact) {
    failure.set(reply.code, reply.error ? reply.error : "out of memory");
    return std::nullopt;
  }
  std::string error;
  std::optional<Artifact> artifact = deserialize(
      {reinterpret_cast<const std::byte *>(reply.artifact), reply.artifact_bytes}, error);
  if (!artifact)
    failure.set(NF_INTERNAL, "the compiler's result cannot be read: " + error);
  return artifact;
}

} // namespace normforge
