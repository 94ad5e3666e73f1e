// Work that crosses processes: the compiler in a child, and hosts that fork.
#include "tests/faults/Host.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <pthread.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace fs = std::filesystem;
using namespace normforge::test;

namespace {

struct Engine {
  nf_engine *engine = nullptr;
  explicit Engine(const Settings &settings) { CHECK(makeEngine(settings, &engine).isOk()); }
  ~Engine() { nf_engine_release(engine); }
  Engine(const Engine &) = delete;
  Engine &operator=(const Engine &) = delete;
  Outcome compile(const std::string &spec) const {
    nf_kernel *kernel = nullptr;
    const Outcome outcome =
        outcomeOf(nf_compile(engine, spec.data(), spec.size(), nullptr, &kernel));
    nf_kernel_release(kernel);
    return outcome;
  }
};

/// The children of this process that run normforge-compile.
std::vector<int> compilers() {
  std::vector<int> found;
  for (const auto &entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos)
      continue;
    const std::string status = readFile(entry.path() / "status");
    if (status.find("\nPPid:\t" + std::to_string(getpid()) + "\n") != std::string::npos &&
        status.starts_with("Name:\tnormforge-comp"))
      found.push_back(std::stoi(name));
  }
  return found;
}

double secondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

const char *const realSpec = "name: child\ninput: {shape: [N, 6, 5], layout: nct}\naxis: c\n";

} // namespace

TEST_CASE("child: the same kernels and errors as in this process") {
  const Engine here({.compiler = nullptr}), child({.compiler = nullptr, .inChild = true});
  for (const std::string &spec : {std::string(realSpec), std::string("axis: 9\n"), std::string()}) {
    const Outcome expected = here.compile(spec), found = child.compile(spec);
    CHECK(expected.code == found.code);
    CHECK(std::string(expected.message) == found.message);
  }
  auto saved = [](const Engine &engine) {
    nf_kernel *kernel = nullptr;
    uint8_t *bytes = nullptr;
    size_t size = 0;
    REQUIRE(outcomeOf(nf_compile(engine.engine, realSpec, std::strlen(realSpec), nullptr, &kernel))
                .isOk());
    REQUIRE(outcomeOf(nf_kernel_save(kernel, &bytes, &size)).isOk());
    const std::string text(reinterpret_cast<char *>(bytes), size);
    nf_bytes_free(bytes);
    nf_kernel_release(kernel);
    return text;
  };
  CHECK(saved(here) == saved(child));
}

TEST_CASE("child: a kernel that a child compiled is found on disk by one that compiles here") {
  const Folder folder;
  const std::string cache = folder / "cache";
  CHECK(compileOnce({.cache = cache.c_str(), .inChild = true}, "a\nquick").isOk());
  const Engine other({.cache = cache.c_str()});
  CHECK(other.compile("a\nquick").isOk());
  int kernels = 0;
  for (const auto &entry : fs::directory_iterator(cache))
    kernels += entry.path().filename().string().starts_with("kernel-");
  CHECK(kernels == 1);
}

TEST_CASE("child: what ends it is an error of one request, and the next one works") {
  const Engine engine({.inChild = true, .seconds = 2, .bytes = uint64_t(1) << 30});
  REQUIRE(engine.compile("a\nquick").isOk());
  const Outcome crash = engine.compile("a\ncrash");
  CHECK(crash.code == NF_COMPILER_ENDED);
  CHECK(std::string(crash.message).find("signal 6") != std::string::npos);
  CHECK(std::string(crash.message).find("FAKE ERROR: a defect") != std::string::npos);
  CHECK(engine.compile("b\nquick").isOk());
  const auto start = std::chrono::steady_clock::now();
  const Outcome hang = engine.compile("a\nhang");
  CHECK(hang.code == NF_COMPILER_ENDED);
  CHECK(std::string(hang.message) ==
        "the compiler's process gave no answer within 2 s and was ended");
  CHECK(secondsSince(start) < 10);
  CHECK(engine.compile("c\nquick").isOk());
  const Outcome exhausted = engine.compile("a\nexhaust");
  CHECK((exhausted.code == NF_OUT_OF_MEMORY || exhausted.code == NF_COMPILER_ENDED));
  CHECK(engine.compile("d\nquick").isOk());
  // One at rest that somebody ends is no error at all.
  const std::vector<int> resting = compilers();
  REQUIRE(resting.size() == 1);
  kill(resting[0], SIGKILL);
  CHECK(engine.compile("e\nquick").isOk());
}

TEST_CASE("child: LLVM's own end within a limit of memory is an error") {
  // Between what is too little to open the library with and what is enough to compile, memory ends
  // within LLVM.
  int ended = 0;
  auto attempt = [&](uint64_t kilobytes) {
    const Outcome outcome =
        compileOnce({.compiler = nullptr, .inChild = true, .bytes = kilobytes << 10}, realSpec);
    INFO(kilobytes, " KiB: ", std::string(outcome.message));
    CHECK((outcome.isOk() || outcome.code == NF_COMPILER_ENDED || outcome.code == NF_NO_COMPILER ||
           outcome.code == NF_OUT_OF_MEMORY));
    ended += outcome.code == NF_COMPILER_ENDED || outcome.code == NF_OUT_OF_MEMORY;
    return outcome.isOk();
  };
  uint64_t tooLittle = 40 << 10, enough = 4 << 20;
  REQUIRE_FALSE(attempt(tooLittle));
  REQUIRE(attempt(enough));
  while (enough - tooLittle > 256) {
    const uint64_t middle = (tooLittle + enough) / 2;
    (attempt(middle) ? enough : tooLittle) = middle;
  }
  for (uint64_t less = 256; less <= 16 << 10; less += 512) // where it ends differs from run to run
    attempt(enough - less);
  CHECK(ended > 0);
  CHECK(attempt(0)); // no limit
  std::printf("limits of memory: enough from %llu KiB, %d ended below\n",
              static_cast<unsigned long long>(enough), ended);
}

TEST_CASE("child: what it said before it ended is of this request, and fit for a terminal") {
  const Engine engine({.inChild = true});
  CHECK(engine.compile("a\nquick chatter").isOk());
  const Outcome crash = engine.compile("b\ncrash");
  const std::string message = crash.message;
  CHECK(message.find("it said: ?[31mFAKE ERROR: a defect") != std::string::npos);
  CHECK(message.find("chatter") == std::string::npos);
}

TEST_CASE("child: as many as threads ask, none left at the end, none inherits descriptors") {
  {
    std::FILE *host = std::fopen("/dev/null", "r"); // not close-on-exec
    const Engine engine({.inChild = true});
    std::atomic<int> right{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t)
      threads.emplace_back([&, t] {
        for (int i = 0; i < 10; ++i)
          right += engine.compile("n\nquick " + std::to_string(t * 100 + i)).isOk();
      });
    for (std::thread &thread : threads)
      thread.join();
    CHECK(right == 80);
    const auto resting = compilers();
    CHECK(!resting.empty());
    CHECK(resting.size() <= std::max(1u, std::thread::hardware_concurrency()));
    for (int pid : compilers())
      for (const auto &entry : fs::directory_iterator("/proc/" + std::to_string(pid) + "/fd"))
        CHECK(std::stoi(entry.path().filename()) <= 2);
    std::fclose(host);
  }
  CHECK(compilers().empty());
}

TEST_CASE("child: one at rest ends by itself, and the next request starts another") {
  const Engine engine({.inChild = true});
  REQUIRE(engine.compile("a\nquick").isOk());
  REQUIRE(compilers().size() == 1);
  const int pid = compilers().front();
  const std::string state = "/proc/" + std::to_string(pid) + "/stat";
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (readFile(state).find(") Z ") == std::string::npos &&
         std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(readFile(state).find(") Z ") != std::string::npos); // 10 s without a question
  CHECK(engine.compile("b\nquick").isOk());
  CHECK(compilers().size() == 1);
  CHECK(compilers().front() != pid);
}

TEST_CASE("child: a host that reaps all children, and one that ignores their signals") {
  const Ending ending = inChild(30, [] {
    std::signal(SIGCHLD, SIG_IGN); // the system reaps
    const Engine engine({.inChild = true, .seconds = 2});
    const bool first = engine.compile("a\nquick").isOk();
    const bool crash = engine.compile("a\ncrash").code == NF_COMPILER_ENDED;
    const bool second = engine.compile("b\nquick").isOk();
    return first && crash && second ? 0 : 1;
  });
  CHECK_FALSE(ending.timedOut);
  CHECK(ending.status == 0);
}

TEST_CASE("child: a bare name of the library is refused, for it tells no folder") {
  nf_engine *engine = nullptr;
  const Outcome outcome = makeEngine({.compiler = "libx.so", .inChild = true}, &engine);
  CHECK(outcome.code == NF_INVALID_ARGUMENT);
  CHECK(std::string(outcome.message) == "compiler_library is 'libx.so', a bare name; "
                                        "compile_in_child needs a path, with a slash");
}

TEST_CASE("child: a missing program is named") {
  const Folder folder;
  fs::copy_file(NORMFORGE_FAKE_COMPILER, folder / "compiler.so");
  const std::string alone = folder / "compiler.so";
  const Outcome outcome = compileOnce({.compiler = alone.c_str(), .inChild = true}, "a\nquick");
  CHECK(outcome.code == NF_NO_COMPILER);
  CHECK(std::string(outcome.message).find((folder / "normforge-compile") + " cannot be started") !=
        std::string::npos);
}

TEST_CASE("fork: children of a host whose threads compile") {
  for (bool inChildToo : {false, true}) {
    const Settings settings{.inChild = inChildToo};
    const Engine engine(settings);
    REQUIRE(engine.compile("warm\nquick").isOk());
    std::atomic<bool> ends{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t)
      threads.emplace_back([&, t] {
        for (int i = 0; !ends; ++i)
          engine.compile("busy\n" + std::to_string(t) + " " + std::to_string(i));
      });
    for (int round = 0; round < 12; ++round) {
      const auto start = std::chrono::steady_clock::now();
      const Ending ending = inChild(20, [&] {
        // The parent's engine: what it has, and what its threads are just at; and a new one.
        for (int t = 0; t < 3; ++t)
          for (int i = 0; i < 3; ++i)
            if (!engine.compile("busy\n" + std::to_string(t) + " " + std::to_string(i)).isOk())
              return 1;
        if (!engine.compile("warm\nquick").isOk())
          return 2;
        return compileOnce(settings, "new\nquick").isOk() ? 0 : 3;
      });
      CHECK_FALSE(ending.timedOut);
      CHECK(ending.signal == 0);
      CHECK(ending.status == 0);
      CHECK(secondsSince(start) < 20);
    }
    ends = true;
    for (std::thread &thread : threads)
      thread.join();
    CHECK(engine.compile("after\nquick").isOk());
  }
}

TEST_CASE("fork: a log that waits for a thread that forks, and a fork from within it") {
  struct Host {
    std::atomic<bool> inLog{false}, forked{false};
    Ending ending;
    static void log(void *user, const char *) {
      auto &host = *static_cast<Host *>(user);
      host.inLog = true;
      while (
          !host.forked) // as one that needs an interpreter's lock, which the forking thread holds
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      host.ending = inChild(20, [] {
        const Ending inner =
            inChild(10, [] { return compileOnce({}, "in\nquick").isOk() ? 0 : 1; });
        return inner.timedOut || inner.status != 0;
      });
    }
  } host;
  std::thread compiling(
      [&] { compileOnce({.cache = "relative", .log = Host::log, .logUser = &host}, "a\nquick"); });
  while (!host.inLog)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const Ending other = inChild(20, [] { return compileOnce({}, "b\nquick").isOk() ? 0 : 1; });
  host.forked = true;
  compiling.join();
  CHECK_FALSE(other.timedOut);
  CHECK(other.status == 0);
  CHECK_FALSE(host.ending.timedOut);
  CHECK(host.ending.status == 0);
}

TEST_CASE("fork: a daemon that closes all descriptors uses none of its host's") {
  for (bool inChildToo : {false, true}) {
    const Folder folder;
    const std::string cache = folder / "cache";
    const Engine engine({.cache = cache.c_str(), .inChild = inChildToo});
    REQUIRE(engine.compile("a\nquick").isOk());
    fs::create_directory(folder / "strange");
    const Ending ending = inChild(20, [&] {
      for (int file = 3; file < 64; ++file)
        close(file);
      int strange[16]; // under the numbers that the engine had
      for (int &file : strange)
        file = open((folder / "strange").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      const bool isOk = engine.compile("b\nquick too").isOk();
      for (int file : strange)
        if (fcntl(file, F_GETFD) < 0)
          return 2; // closed by us
      return isOk ? 0 : 1;
    });
    CHECK(ending.signal == 0);
    CHECK(ending.status == 0);
    CHECK(fs::is_empty(folder / "strange"));
    int kernels = 0;
    for (const auto &entry : fs::directory_iterator(cache))
      kernels += entry.path().filename().string().starts_with("kernel-");
    CHECK(kernels == 2);
  }
}

TEST_CASE("threads: one that is cancelled while it compiles ends when it is done") {
  for (bool inChildToo : {false, true}) {
    const Ending ending = inChild(30, [&] {
      const Engine engine({.inChild = inChildToo});
      std::atomic<bool> begins{false};
      auto *compiling = new std::thread([&] { // joined below it, by what tells how it ended
        begins = true;
        engine.compile("a\nslow");
        pthread_testcancel();
      });
      while (!begins)
        std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      pthread_cancel(compiling->native_handle());
      void *result = nullptr;
      pthread_join(compiling->native_handle(), &result);
      return result == PTHREAD_CANCELED && engine.compile("b\nquick").isOk() ? 0 : 1;
    });
    CHECK_FALSE(ending.timedOut);
    CHECK(ending.signal == 0);
    CHECK(ending.status == 0);
  }
}

TEST_CASE("threads: the stacks that the header asks for are enough") {
  struct Work {
    Settings settings;
    bool compiles;
    Outcome outcome;
    static void *run(void *given) {
      auto &work = *static_cast<Work *>(given);
      nf_engine *engine = nullptr;
      nf_pack *pack = nullptr;
      nf_kernel *kernel = nullptr;
      work.outcome =
          work.compiles
              ? compileOnce(work.settings, "name: t\ninput: {shape: [N, 19, 9, 7], layout: "
                                           "nChw16c}\naxis: c\nphases: [training]\n")
              : loadFirst(NORMFORGE_BUILD_DIR "/examples/resnet50.nfk", &engine, &pack, &kernel);
      nf_kernel_release(kernel);
      nf_pack_release(pack);
      nf_engine_release(engine);
      return nullptr;
    }
  };
  const Folder folder;
  const std::string cache = folder / "cache";
  const struct {
    size_t kilobytes;
    Work work;
  } cases[] = {{256, {{.compiler = nullptr, .cache = cache.c_str()}, true, {}}},
               {32, {{.compiler = nullptr, .cache = cache.c_str()}, true, {}}}, // found on disk
               {32, {{.compiler = nullptr, .inChild = true}, true, {}}},
               {32, {{}, false, {}}}};
  for (const auto &[kilobytes, given] : cases) {
    const Ending ending = inChild(60, [&] {
      Work work = given;
      pthread_attr_t attributes;
      pthread_t thread;
      pthread_attr_init(&attributes);
      pthread_attr_setstacksize(&attributes, kilobytes << 10);
      if (pthread_create(&thread, &attributes, Work::run, &work) != 0)
        return 2;
      pthread_join(thread, nullptr);
      return work.outcome.isOk() ? 0 : 1;
    });
    INFO(kilobytes, " KiB");
    CHECK(ending.signal == 0);
    CHECK(ending.status == 0);
  }
}

TEST_CASE("child: a host without standard streams") {
  const Ending ending = inChild(30, [] {
    for (int file : {0, 1, 2})
      close(file);
    const Engine engine({.inChild = true, .seconds = 5});
    const bool first = engine.compile("a\nquick").isOk();
    for (int file : {0, 1, 2})
      if (fcntl(file, F_GETFD) >= 0)
        return 2; // something of ours lies there
    return first && engine.compile("b\nquick").isOk() ? 0 : 1;
  });
  CHECK(ending.signal == 0);
  CHECK(ending.status == 0);
}

TEST_CASE("fork: while the compiler library is being opened, and while it compiles") {
  // In a process where it is not open yet: this one may have opened it in another test.
  for (int delay : {0, 1, 5, 10, 20, 40, 80}) {
    const Ending ending = inChild(60, [&] {
      const Engine engine({.compiler = nullptr});
      std::thread opening([&] {
        for (int i = 0; i < 3; ++i)
          engine.compile("name: s" + std::to_string(i) + "\ninput: {shape: [N, 6, " +
                         std::to_string(5 + i) + "], layout: nct}\naxis: c\n");
      });
      std::this_thread::sleep_for(std::chrono::milliseconds(delay));
      const Ending child = inChild(40, [&] {
        if (!compileOnce({.compiler = nullptr}, realSpec).isOk())
          return 1;
        return engine.compile("name: s0\ninput: {shape: [N, 6, 5], layout: nct}\naxis: c\n").isOk()
                   ? 0
                   : 2;
      });
      opening.join();
      return child.timedOut ? 3 : child.signal ? 4 : child.status;
    });
    INFO("fork after ", delay, " ms");
    CHECK_FALSE(ending.timedOut);
    CHECK(ending.signal == 0);
    CHECK(ending.status == 0);
  }
}
