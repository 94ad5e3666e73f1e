// Every call of the operating system that the cache, packs and loading make fails, with each error
// that a system gives; or moves half of what it should; or the process is killed before it. A
// kernel comes all the same, or a clear error where nothing else is possible, and what lies on disk
// is whole or not there.
#include "tests/faults/Host.h"
#include "tests/faults/Shim.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <functional>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fs = std::filesystem;
using namespace normforge::test;

namespace {

const char *const packPath = NORMFORGE_BUILD_DIR "/examples/resnet50.nfk";
const int errors[] = {EIO, ENOSPC, EINTR, EACCES, EMFILE, ENOMEM, ENOENT};

struct Tally {
  long failed = 0, kernels = 0, refused = 0;
};

/// Fails each call of `scenario` in turn with each error; `prepare` runs before each try.
Tally everyCall(const std::function<void()> &prepare, const std::function<Outcome()> &scenario,
                const std::function<bool(const Outcome &)> &isRight) {
  Tally tally;
  auto attempt = [&](int kind, long n, int forever, int error) {
    prepare();
    shim_arm(kind, n, forever, error);
    const Outcome outcome = scenario();
    const long failed = shim_disarm();
    INFO("call ", n, forever ? " and all after it" : "", ", errno ", error, ", kind ", kind, ": ",
         static_cast<int>(outcome.code), " ", std::string(outcome.message));
    CHECK(isRight(outcome));
    // Lack of memory and refusals for another reason are told apart.
    if (kind == SHIM_SYSTEM && outcome.code == NF_OUT_OF_MEMORY)
      CHECK(error == ENOMEM);
    if (kind == SHIM_SYSTEM && outcome.code == NF_SYSTEM_ERROR)
      CHECK(error != ENOMEM);
    CHECK((outcome.isOk() || outcome.message[0] != '\0'));
    tally.failed += failed;
    tally.kernels += outcome.isOk();
    tally.refused += !outcome.isOk();
    return failed > 0;
  };
  for (int error : errors)
    for (int forever : {0, 1})
      for (long n = 1; !(forever && error == EINTR) && // nothing is interrupted for ever
                       attempt(SHIM_SYSTEM, n, forever, error);
           ++n)
        REQUIRE(n < 1000);
  for (int forever : {0, 1})
    for (long n = 1; attempt(SHIM_SHORT, n, forever, 0); ++n)
      REQUIRE(n < 1000);
  prepare();
  CHECK(scenario().isOk());
  return tally;
}

void report(const char *name, const Tally &tally) {
  std::printf("%s: %ld calls failed, %ld kernels, %ld errors\n", name, tally.failed, tally.kernels,
              tally.refused);
}

/// A system without memory to execute refuses in words; nothing else may keep a kernel back.
bool isKernelOrRefusal(const Outcome &outcome) {
  return outcome.isOk() || std::string(outcome.message).starts_with("the system refuses") ||
         (outcome.code == NF_OUT_OF_MEMORY && std::string(outcome.message) == "out of memory");
}
bool isKernelOrError(const Outcome &outcome) {
  return outcome.isOk() || outcome.code == NF_SYSTEM_ERROR || outcome.code == NF_OUT_OF_MEMORY;
}

} // namespace

TEST_CASE("system calls: the cache, empty and full") {
  const Folder folder;
  const std::string cache = folder / "deep/cache";
  const Settings settings{.cache = cache.c_str()};
  REQUIRE(compileOnce(settings, "a\nquick").isOk());
  const int before = descriptors();
  report("cache, empty",
         everyCall([&] { fs::remove_all(folder / "deep"); },
                   [&] { return compileOnce(settings, "a\nquick"); }, isKernelOrRefusal));
  report("cache, full",
         everyCall([&] { REQUIRE(compileOnce(settings, "a\nquick").isOk()); },
                   [&] { return compileOnce(settings, "a\nquick"); }, isKernelOrRefusal));
  // Nothing half written is left where it would be read; what is left under another name, where its
  // removal failed too, goes when it is old.
  for (const auto &entry : fs::directory_iterator(cache)) {
    const std::string name = entry.path().filename();
    CHECK_MESSAGE((name.starts_with("kernel-") || name.starts_with("request-") ||
                   name.starts_with(".writing-")),
                  name);
  }
  CHECK(descriptors() == before);
}

TEST_CASE("system calls: what is written in parts is whole") {
  const Folder folder;
  const std::string cache = folder / "cache";
  const Settings settings{.cache = cache.c_str()};
  for (int forever : {0, 1})
    for (long n = 1;; ++n) {
      fs::remove_all(cache);
      shim_arm(SHIM_SHORT, n, forever, 0);
      const Outcome outcome = compileOnce(settings, "a\nquick");
      const long failed = shim_disarm();
      CHECK(outcome.isOk());
      const int before = compilations();
      CHECK(compileOnce(settings, "a\nquick").isOk());
      CHECK(compilations() == before);
      if (failed == 0)
        break;
    }
}

TEST_CASE("system calls: a limit of file sizes ends no host") {
  const Folder folder;
  for (rlim_t most : {rlim_t(0), rlim_t(10), rlim_t(100)}) {
    const Ending ending = inChild(20, [&] {
      const rlimit limit = {most, most};
      setrlimit(RLIMIT_FSIZE, &limit);
      nf_engine_options options = {};
      options.struct_size = sizeof options;
      options.compiler_library = NORMFORGE_FAKE_COMPILER;
      const std::string cache = folder / "cache";
      options.cache_directory = cache.c_str();
      options.perf_map = 1;
      nf_engine *engine = nullptr;
      nf_kernel *kernel = nullptr;
      const bool isOk = outcomeOf(nf_engine_create(&options, &engine)).isOk() &&
                        outcomeOf(nf_compile(engine, "a\nquick", 7, nullptr, &kernel)).isOk();
      unlink(("/tmp/perf-" + std::to_string(getpid()) + ".map").c_str());
      sigset_t pending;
      sigpending(&pending);
      return isOk && !sigismember(&pending, SIGXFSZ) ? 0 : 1;
    });
    CHECK(ending.signal == 0);
    CHECK(ending.status == 0);
  }
}

TEST_CASE("system calls: packs") {
  const int before = descriptors();
  const auto scenario = [] {
    nf_engine *engine = nullptr;
    nf_pack *pack = nullptr;
    nf_kernel *kernel = nullptr;
    const Outcome outcome = loadFirst(packPath, &engine, &pack, &kernel);
    nf_kernel_release(kernel);
    nf_pack_release(pack);
    nf_engine_release(engine);
    return outcome;
  };
  report("packs", everyCall([] {}, scenario, isKernelOrError));
  CHECK(descriptors() == before);
}

TEST_CASE("system calls: a compilation in a process of its own") {
  const Settings settings{.inChild = true};
  const int before = descriptors();
  report("in a child", everyCall([] {}, [&] { return compileOnce(settings, "a\nquick"); },
                                 [](const Outcome &outcome) {
                                   return isKernelOrError(outcome) ||
                                          outcome.code == NF_COMPILER_ENDED ||
                                          outcome.code == NF_NO_COMPILER;
                                 }));
  CHECK(descriptors() == before);
  CHECK(noChildren());
}

TEST_CASE("system calls: a process killed before each leaves a cache that the next one uses") {
  const Folder folder;
  const std::string cache = folder / "cache";
  const Settings settings{.cache = cache.c_str()};
  REQUIRE(compileOnce({}, "a\nquick").isOk());
  int kills = 0;
  for (bool isFull : {false, true})
    for (long n = 1;; ++n) {
      fs::remove_all(cache);
      if (isFull)
        REQUIRE(compileOnce(settings, "a\nquick").isOk());
      const Ending ending = inChild(20, [&] {
        shim_arm(SHIM_KILL, n, 0, 0);
        const Outcome outcome = compileOnce(settings, "a\nquick");
        shim_disarm();
        return outcome.isOk() ? 0 : 1;
      });
      INFO("call ", n);
      REQUIRE_FALSE(ending.timedOut);
      if (ending.signal == 0) {
        CHECK(ending.status == 0);
        break;
      }
      CHECK(ending.signal == SIGKILL);
      ++kills;
      Log log;
      const Outcome next =
          compileOnce({.cache = cache.c_str(), .log = Log::write, .logUser = &log}, "a\nquick");
      CHECK_MESSAGE(next.isOk(), std::string(next.message));
      CHECK_MESSAGE(log.lines == 0, log.text);
      REQUIRE(n < 1000);
    }
  CHECK(kills > 20);
  std::printf("%d kills\n", kills);
}
