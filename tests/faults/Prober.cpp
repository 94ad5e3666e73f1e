// A small host that tests run under strace, with odd working directories, and with memory that may
// not become executable:
//
//   prober [--mdwe] [--dlopen LIBRARY CWD]
//          compile | default | cache DIR | pack FILE | library FILE SYMBOL
//
// Prints "CODE MESSAGE" of what failed, or "0 ok". With --dlopen it uses none of what it is linked
// with: it opens the runtime by the given path, then goes to CWD.
#include "normforge/normforge.h"

#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <sys/prctl.h>
#include <unistd.h>

namespace {

const char *const spec = "name: probed\ninput: {shape: [N, 6, 5], layout: nct}\naxis: c\n";

/// The functions used, by themselves or of a library that was opened.
struct Api {
  decltype(&nf_engine_create) engineCreate = nf_engine_create;
  decltype(&nf_compile) compile = nf_compile;
  decltype(&nf_status_code) code = nf_status_code;
  decltype(&nf_status_message) message = nf_status_message;
} api;

int report(nf_status *status) {
  std::printf("%d %s\n", static_cast<int>(api.code(status)), status ? api.message(status) : "ok");
  return status ? 1 : 0;
}

bool open(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library)
    return false;
  api.engineCreate =
      reinterpret_cast<decltype(api.engineCreate)>(dlsym(library, "nf_engine_create"));
  api.compile = reinterpret_cast<decltype(api.compile)>(dlsym(library, "nf_compile"));
  api.code = reinterpret_cast<decltype(api.code)>(dlsym(library, "nf_status_code"));
  api.message = reinterpret_cast<decltype(api.message)>(dlsym(library, "nf_status_message"));
  return api.engineCreate && api.compile && api.code && api.message;
}

int compile(const char *cache) {
  nf_engine_options options = {};
  options.struct_size = sizeof options;
  options.cache_directory = cache;
  nf_engine *engine = nullptr;
  nf_kernel *kernel = nullptr;
  nf_status *status = api.engineCreate(&options, &engine);
  if (!status)
    status = api.compile(engine, spec, std::strlen(spec), nullptr, &kernel);
  return report(status);
}

int usePack(const char *path) {
  nf_engine *engine = nullptr;
  nf_pack *pack = nullptr;
  nf_kernel *kernel = nullptr;
  nf_engine_options options = {};
  options.struct_size = sizeof options;
  options.cache_directory = "";
  nf_status *status = nf_engine_create(&options, &engine);
  if (!status)
    status = nf_pack_open(engine, path, &pack);
  if (!status)
    status =
        nf_pack_load(pack, nf_pack_kernel_name(pack, 0), nf_pack_kernel_phase(pack, 0), &kernel);
  return report(status);
}

} // namespace

int main(int argc, char **argv) {
  int at = 1;
  const auto is = [&](const char *word) { return at < argc && std::strcmp(argv[at], word) == 0; };
  if (is("--mdwe")) {
    constexpr int setMdwe = 65, refuseExecGain = 1; // linux/prctl.h, from Linux 6.3
    if (prctl(setMdwe, refuseExecGain, 0, 0, 0) != 0) {
      std::puts("SKIP: this kernel has no PR_SET_MDWE");
      return 77;
    }
    ++at;
  }
  if (is("--dlopen") && at + 2 < argc) {
    if (!open(argv[at + 1]) || chdir(argv[at + 2]) != 0) {
      std::printf("cannot open %s, or go to %s\n", argv[at + 1], argv[at + 2]);
      return 2;
    }
    at += 3;
  }
  if (is("compile"))
    return compile("");
  if (is("default")) // where the environment says
    return compile(nullptr);
  if (is("cache") && at + 1 < argc)
    return compile(argv[at + 1]);
  if (is("pack") && at + 1 < argc)
    return usePack(argv[at + 1]);
  if (is("library") && at + 2 < argc) {
    void *library = dlopen(argv[at + 1], RTLD_NOW | RTLD_LOCAL);
    const bool isThere = library && dlsym(library, argv[at + 2]);
    std::puts(isThere ? "0 ok" : dlerror());
    return isThere ? 0 : 1;
  }
  return 2;
}
