// A host as the tests of faults need one: C alone, so that it allocates nothing while allocations
// fail.
#pragma once

#include "normforge/normforge.h"

#include <filesystem>
#include <string>

namespace normforge::test {

/// A new directory, removed at the end.
class Folder {
public:
  Folder();
  ~Folder();
  Folder(const Folder &) = delete;
  Folder &operator=(const Folder &) = delete;
  const std::string path;
  std::string operator/(const std::string &name) const { return path + "/" + name; }
};

/// The outcome of a call: the code, and its message cut to what fits. outcomeOf frees the status.
struct Outcome {
  nf_code code = NF_OK;
  char message[512] = "";
  bool isOk() const { return code == NF_OK; }
};
Outcome outcomeOf(nf_status *status);

/// The settings that engines of these tests are made with.
struct Settings {
  const char *compiler = NORMFORGE_FAKE_COMPILER;
  const char *cache = "";
  bool inChild = false;
  uint32_t seconds = 0;
  uint64_t bytes = 0;
  nf_log_fn *log = nullptr;
  void *logUser = nullptr;
};
Outcome makeEngine(const Settings &settings, nf_engine **engine);
/// Makes an engine, compiles `spec` for `cpu` and lets go of all.
Outcome compileOnce(const Settings &settings, const char *spec, const char *cpu = nullptr);

/// Makes an engine, opens a pack and loads the first of its kernels; what was made is the caller's,
/// in case of an error too.
Outcome loadFirst(const char *packPath, nf_engine **engine, nf_pack **pack, nf_kernel **kernel);

/// Lines that an engine logs.
struct Log {
  std::string text;
  int lines = 0;
  static void write(void *user, const char *line) {
    auto &log = *static_cast<Log *>(user);
    log.text += line;
    log.text += '\n';
    ++log.lines;
  }
};

/// Runs `body` in a forked process, which gives its exit status; ends it after `seconds`.
struct Ending {
  bool timedOut = false;
  int signal = 0; ///< 0: it exited
  int status = 0;
};
template <typename Body> Ending inChild(double seconds, Body body);
Ending awaitChild(int pid, double seconds);

/// The number of compilations of the counting compiler in this process.
int compilations();
/// Open descriptors of this process.
int descriptors();
/// Whether this process has no children, running or not waited for.
bool noChildren();

std::string readFile(const std::string &path);
void writeFile(const std::string &path, const std::string &text);
/// A command line, by the shell; its exit status, and what it printed.
int shell(const std::string &line, std::string &printed);

} // namespace normforge::test

#include <csignal>
#include <unistd.h>

template <typename Body>
normforge::test::Ending normforge::test::inChild(double seconds, Body body) {
  const int pid = fork();
  if (pid == 0) {
    for (int number : {SIGABRT, SIGSEGV, SIGTERM, SIGFPE, SIGILL}) // doctest's handlers say more
      std::signal(number, SIG_DFL);
    _exit(body());
  }
  return awaitChild(pid, seconds);
}
