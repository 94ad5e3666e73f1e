#include "runtime/loader/CompilerLibrary.h"

#include "runtime/loader/CompilerPath.h"

#include <algorithm>
#include <dlfcn.h>
#include <string_view>

namespace normforge {
namespace {

std::string lastLoaderError() {
  const char *text = dlerror();
  return text ? text : "unknown error";
}

} // namespace

bool CompilerLibrary::open(Failure &failure) {
  std::lock_guard lock(mutex_);
  if (compile_)
    return true;
  std::string tried;
  for (const std::string &path : compilerCandidates(path_)) {
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

std::string findCompilerFile(const std::string &given) {
  for (const std::string &path : compilerCandidates(given)) {
    if (path.find('/') == std::string::npos)
      return {}; // the loader's to find
    if (std::string real = realPath(path); !real.empty())
      return real;
  }
  return {};
}

std::string CompilerLibrary::path() const { return findCompilerFile(path_); }

/// The library's answer, which the library frees.
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
  if (files_) {
    identity.madeFrom = *files_;
    for (const FileIdentity &file : *files_)
      identity.isCurrent = identity.isCurrent && file.isCurrent();
    return identity;
  }
  for (size_t begin = 0; begin < files.size();) {
    const size_t end = std::min(files.find('\n', begin), files.size());
    const std::string path(files.substr(begin, end - begin));
    // The loader keeps relative paths, which may mean another file by now.
    const auto file = path.starts_with('/') ? FileIdentity::of(path) : std::nullopt;
    identity.isCurrent = identity.isCurrent && file.has_value();
    identity.madeFrom.push_back(file.value_or(FileIdentity{path, 0, {}}));
    begin = end + 1;
  }
  if (identity.isCurrent)
    files_ = identity.madeFrom;
  return identity;
}

std::optional<std::vector<std::byte>> CompilerLibrary::compile(const nf_compiler_request &request,
                                                               Failure &failure) {
  if (!open(failure))
    return std::nullopt;
  Reply reply(release_);
  if (!reply.ask(compile_, request, failure))
    return std::nullopt;
  const auto *first = reinterpret_cast<const std::byte *>(reply.artifact);
  return std::vector<std::byte>(first, first + reply.artifact_bytes);
}

} // namespace normforge
