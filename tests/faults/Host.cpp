#include "tests/faults/Host.h"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <sys/stat.h>
#include <sys/wait.h>

namespace normforge::test {

static std::string newFolder() {
  char name[] = "/tmp/normforge-faults-XXXXXX";
  if (!mkdtemp(name))
    throw std::runtime_error("no folder in /tmp");
  return name;
}
Folder::Folder() : path(newFolder()) {
  umask(022); // what a test makes is as it says, whatever the user's
}
Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

Outcome outcomeOf(nf_status *status) {
  Outcome outcome;
  outcome.code = nf_status_code(status);
  std::strncpy(outcome.message, nf_status_message(status), sizeof outcome.message - 1);
  nf_status_free(status);
  return outcome;
}

Outcome makeEngine(const Settings &settings, nf_engine **engine) {
  nf_engine_options options = {};
  options.struct_size = sizeof options;
  options.compiler_library = settings.compiler;
  options.cache_directory = settings.cache;
  options.log = settings.log;
  options.log_user = settings.logUser;
  options.compile_in_child = settings.inChild;
  options.compile_seconds = settings.seconds;
  options.compile_bytes = settings.bytes;
  return outcomeOf(nf_engine_create(&options, engine));
}

Outcome compileOnce(const Settings &settings, const char *spec, const char *cpu) {
  nf_engine *engine = nullptr;
  Outcome outcome = makeEngine(settings, &engine);
  if (!outcome.isOk())
    return outcome;
  nf_compile_options options = {};
  options.struct_size = sizeof options;
  options.cpu = cpu;
  nf_kernel *kernel = nullptr;
  outcome = outcomeOf(nf_compile(engine, spec, std::strlen(spec), &options, &kernel));
  nf_kernel_release(kernel);
  nf_engine_release(engine);
  return outcome;
}

Outcome loadFirst(const char *packPath, nf_engine **engine, nf_pack **pack, nf_kernel **kernel) {
  Outcome outcome = makeEngine({}, engine);
  if (outcome.isOk())
    outcome = outcomeOf(nf_pack_open(*engine, packPath, pack));
  if (outcome.isOk())
    outcome = outcomeOf(
        nf_pack_load(*pack, nf_pack_kernel_name(*pack, 0), nf_pack_kernel_phase(*pack, 0), kernel));
  return outcome;
}

Ending awaitChild(int pid, double seconds) {
  Ending ending;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  int status = 0;
  while (waitpid(pid, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > end) {
      ending.timedOut = true;
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
      break;
    }
    usleep(200);
  }
  ending.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  ending.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ending;
}

int compilations() {
  void *library = dlopen(NORMFORGE_FAKE_COMPILER, RTLD_NOW | RTLD_LOCAL);
  return reinterpret_cast<int (*)()>(dlsym(library, "fake_compiled"))();
}

int descriptors() {
  int count = 0;
  for ([[maybe_unused]] const auto &entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++count;
  return count;
}

bool noChildren() { return waitpid(-1, nullptr, WNOHANG) < 0 && errno == ECHILD; }

std::string readFile(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void writeFile(const std::string &path, const std::string &text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

int shell(const std::string &line, std::string &printed) {
  const Folder folder;
  const int status = std::system(("{ " + line + "\n} >" + (folder / "log") + " 2>&1").c_str());
  printed = readFile(folder / "log");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

} // namespace normforge::test
