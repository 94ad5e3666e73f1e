// Kernels are compiled once: by threads at the same time, by processes one after the other, and
// again only when what was kept cannot be trusted.
#include "normforge/normforge.hpp"
#include "runtime/cache/DiskCache.h"

#include <doctest/doctest.h>

#include <csignal>
#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>
#include <fstream>
#include <sys/resource.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

namespace fs = std::filesystem;
using normforge::CacheEntry;
using normforge::CacheKind;
using normforge::DiskCache;

namespace {

/// A new directory, removed at the end.
struct Folder {
  std::string path;
  Folder() {
    char name[] = "/tmp/normforge-cache-test-XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string &name) const { return path + "/" + name; }
};

/// The counting compiler (FakeCompiler.cpp), as a file of its own that a test may touch.
class Fake {
public:
  Folder folder;
  std::string path = folder / "compiler.so";
  Fake() {
    fs::copy_file(NORMFORGE_FAKE_COMPILER, path);
    library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    REQUIRE(library_);
  }
  /// Another build in its place: one with another build ID, of the same size and time. The library
  /// that is open stays as it is.
  void rebuild() {
    std::ifstream file(path, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), {}};
    const std::string note("\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0", 16);
    const size_t at = bytes.find(note);
    REQUIRE_MESSAGE(at != std::string::npos, "the linker wrote no build ID");
    bytes[at + note.size()] ^= 1;
    const auto time = fs::last_write_time(path);
    std::ofstream(path + ".new", std::ios::binary) << bytes;
    fs::last_write_time(path + ".new", time);
    fs::rename(path + ".new", path);
  }
  int compiled() const { return count("fake_compiled"); }
  int identified() const { return count("fake_identified"); }

private:
  int count(const char *name) const { return reinterpret_cast<int (*)()>(dlsym(library_, name))(); }
  void *library_;
};

struct Log {
  std::vector<std::string> lines;
  static void write(void *user, const char *text) {
    static_cast<Log *>(user)->lines.emplace_back(text);
  }
};

nf::Engine engineOf(const Fake &fake, const std::string &directory, Log *log = nullptr,
                    uint64_t bytes = 0) {
  return nf::Engine({.compilerLibrary = fake.path,
                     .cacheDirectory = directory,
                     .cacheBytes = bytes,
                     .log = log ? &Log::write : nullptr,
                     .logUser = log});
}

std::vector<std::string> entriesIn(const std::string &directory, const std::string &prefix) {
  std::vector<std::string> names;
  if (fs::exists(directory))
    for (const auto &entry : fs::directory_iterator(directory))
      if (entry.path().filename().string().starts_with(prefix))
        names.push_back(entry.path().string());
  return names;
}

std::string contentsOf(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void write(const std::string &path, const std::string &text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

} // namespace

#if defined(__x86_64__)

TEST_CASE("sixteen threads that ask at the same time share one compilation") {
  Fake fake;
  Folder cache;
  for (const std::string &directory : {std::string(), cache / "shared"}) {
    const nf::Engine engine = engineOf(fake, directory);
    const int before = fake.compiled();
    std::vector<std::thread> threads;
    for (int t = 0; t < 16; ++t)
      threads.emplace_back([&, t] {
        // Half of the specs have another name.
        const std::string name = t % 2 ? "odd" : "even";
        const nf::Kernel kernel = engine.compile(name + "\nthe same");
        if (kernel.name() != name)
          std::abort();
      });
    for (std::thread &thread : threads)
      thread.join();
    CHECK(fake.compiled() == before + 1);
    engine.compile("even\nanother");
    CHECK(fake.compiled() == before + 2);
  }
}

TEST_CASE("errors are not kept, and reach everyone who waits") {
  Fake fake;
  const nf::Engine engine = engineOf(fake, "");
  std::atomic<int> errors{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      try {
        engine.compile("bad\n");
      } catch (const nf::Error &error) {
        errors += error.code() == NF_COMPILE_FAILED && std::string(error.what()) == "bad spec";
      }
    });
  for (std::thread &thread : threads)
    thread.join();
  CHECK(errors == 8);
}

TEST_CASE("another process finds the kernel without asking the compiler") {
  Fake fake;
  Folder cache;
  const std::string directory = cache / "new/deep";
  CHECK(engineOf(fake, directory).compile("a\nkey").name() == "a");
  struct stat status;
  REQUIRE(stat(directory.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0700);
  CHECK(entriesIn(directory, "").size() == 2);
  const int compiled = fake.compiled(), identified = fake.identified();
  CHECK(engineOf(fake, directory).compile("a\nkey").name() == "a");
  CHECK(fake.identified() == identified);
  // Another text of the same kernel asks the compiler which it is, and no more; then it is known.
  for (int round = 0; round < 2; ++round) {
    CHECK(engineOf(fake, directory).compile("b\nkey").name() == "b");
    CHECK(fake.identified() == identified + 1);
  }
  CHECK(fake.compiled() == compiled);
  // The phase and the CPU are part of what is asked for.
  engineOf(fake, directory).compile("a\nkey", {"training", "", ""});
  CHECK(fake.compiled() == compiled + 1);
}

TEST_CASE("a damaged entry is compiled again and never run") {
  Fake fake;
  Folder cache;
  const std::string directory = cache / "c";
  engineOf(fake, directory).compile("a\nkey");
  const std::string kernel = entriesIn(directory, "kernel-").at(0);
  const std::string request = entriesIn(directory, "request-").at(0);
  for (const std::string &path : {kernel, request}) {
    const std::string whole = contentsOf(path);
    auto tryWith = [&](const std::string &contents) {
      const int before = fake.compiled() + fake.identified();
      write(path, contents);
      CHECK(engineOf(fake, directory).compile("a\nkey").name() == "a");
      CHECK(fake.compiled() + fake.identified() > before);
      CHECK(contentsOf(path) == whole); // written anew
    };
    for (size_t bytes = 0; bytes < whole.size(); bytes += whole.size() / 9 + 1)
      tryWith(whole.substr(0, bytes));
    for (size_t at = 0; at < whole.size(); at += whole.size() / 13 + 1) {
      std::string altered = whole;
      altered[at] ^= 0x10;
      tryWith(altered);
    }
    tryWith(whole + "x");
    tryWith("NFCACHE9" + whole.substr(8)); // of another version
  }
  // Whole, but of another key: copied by hand or a collision.
  engineOf(fake, directory).compile("a\nother key");
  for (const std::string &other : entriesIn(directory, "kernel-"))
    if (other != kernel) {
      write(kernel, contentsOf(other));
      const int before = fake.compiled();
      engineOf(fake, directory).compile("a\nkey");
      CHECK(fake.compiled() == before + 1);
      break;
    }
}

TEST_CASE("an entry made by another compiler is stale") {
  Fake fake;
  Folder cache;
  engineOf(fake, cache.path).compile("a\nkey");
  const int before = fake.compiled();
  // Copied, it is the same.
  fs::last_write_time(fake.path, fs::last_write_time(fake.path) + std::chrono::seconds(5));
  engineOf(fake, cache.path).compile("a\nkey");
  CHECK(fake.compiled() == before);
  // Rebuilt it is another, though as large and of the same time, as in images that can be
  // reproduced.
  fake.rebuild();
  engineOf(fake, cache.path).compile("a\nkey");
  CHECK(fake.compiled() == before + 1);
  engineOf(fake, cache.path).compile("a\nkey");
  CHECK(fake.compiled() == before + 1);
}

TEST_CASE("entries and directories that others could have written are refused") {
  Fake fake;
  Folder cache;
  engineOf(fake, cache.path).compile("a\nkey");
  const std::string kernel = entriesIn(cache.path, "kernel-").at(0);
  int before = fake.compiled();
  REQUIRE(chmod(kernel.c_str(), 0622) == 0);
  engineOf(fake, cache.path).compile("a\nkey");
  CHECK(fake.compiled() == before + 1);

  // A link to a file elsewhere is not followed.
  const std::string elsewhere = fake.folder / "elsewhere";
  fs::rename(kernel, elsewhere);
  fs::create_symlink(elsewhere, kernel);
  before = fake.compiled();
  engineOf(fake, cache.path).compile("a\nkey");
  CHECK(fake.compiled() == before + 1);
  CHECK_FALSE(fs::is_symlink(kernel));

  if (geteuid() == 0) {
    REQUIRE(chown(kernel.c_str(), 65534, 65534) == 0);
    before = fake.compiled();
    engineOf(fake, cache.path).compile("a\nkey");
    CHECK(fake.compiled() == before + 1);
  } else {
    MESSAGE("SKIP: only root can give a file to another user");
  }

  Log log;
  REQUIRE(chmod(cache.path.c_str(), 0777) == 0);
  const nf::Engine engine = engineOf(fake, cache.path, &log);
  before = fake.compiled();
  engine.compile("a\nkey");
  engine.compile("a\nkey 2");
  CHECK(fake.compiled() == before + 2);
  REQUIRE(log.lines.size() == 1);
  CHECK(log.lines[0] ==
        "kernel cache " + cache.path +
            ": its group or others can write to it, so it is not used; chmod go-w makes it safe");
}

TEST_CASE("a directory that cannot be made or is full warns once and goes on") {
  Fake fake;
  Folder cache;
  write(cache / "file", "");
  Log log;
  const nf::Engine engine = engineOf(fake, cache / "file/cache", &log);
  engine.compile("a\nkey");
  engine.compile("a\nkey 2");
  REQUIRE(log.lines.size() == 1);
  CHECK(log.lines[0].find("Not a directory") != std::string::npos);

  // Full: no file may grow.
  Log full;
  const nf::Engine other = engineOf(fake, cache / "full", &full);
  rlimit limit;
  REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
  const rlimit none{0, limit.rlim_max};
  auto *handler = std::signal(SIGXFSZ, SIG_IGN);
  REQUIRE(setrlimit(RLIMIT_FSIZE, &none) == 0);
  const std::string name(other.compile("a\nkey").name());
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  CHECK(name == "a");
  CHECK(full.lines.size() == 1);
  CHECK(entriesIn(cache / "full", "").empty()); // nothing half written
}

TEST_CASE("a directory that is removed meanwhile is made again") {
  Fake fake;
  Folder cache;
  const std::string directory = cache / "c";
  const nf::Engine engine = engineOf(fake, directory);
  engine.compile("a\nkey");
  fs::remove_all(directory);
  engine.compile("a\nkey 2");
  CHECK(entriesIn(directory, "").size() == 2);
}

TEST_CASE("an engine whose compiler was replaced keeps nothing") {
  Fake fake;
  Folder cache;
  const nf::Engine engine = engineOf(fake, cache.path);
  engine.compile("a\nkey");
  CHECK(entriesIn(cache.path, "").size() == 2);
  fake.rebuild();
  engine.compile("a\nkey 2"); // by the library that was opened, not by the one that is there now
  CHECK(entriesIn(cache.path, "").size() == 2);
}

TEST_CASE("requests that differ are never one") {
  Fake fake;
  const nf::Engine engine = engineOf(fake, "");
  const int before = fake.identified();
  engine.compile("a\nspec 1 b", {"", "", "x"});
  engine.compile("b", {"", "", "x\nspec 10 a"});
  CHECK(fake.identified() == before + 2);
}

TEST_CASE("what was not used for longest goes first") {
  Fake fake;
  Folder cache;
  engineOf(fake, cache.path).compile("a\nkey 0");
  uint64_t each = 0; // of a kernel and its text
  for (const auto &entry : fs::directory_iterator(cache.path))
    each += entry.file_size();
  auto age = [&](const std::string &prefix, int hours) {
    for (const std::string &path : entriesIn(cache.path, prefix))
      fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(hours));
  };
  age("", 48);
  engineOf(fake, cache.path).compile("a\nkey 1");
  age("", 24);                                    // both, as far as the disk tells
  engineOf(fake, cache.path).compile("a\nkey 0"); // used now
  engineOf(fake, cache.path, nullptr, each * 5 / 2).compile("a\nkey 2");
  const int before = fake.compiled();
  engineOf(fake, cache.path).compile("a\nkey 0");
  engineOf(fake, cache.path).compile("a\nkey 2");
  CHECK(fake.compiled() == before);
  engineOf(fake, cache.path).compile("a\nkey 1");
  CHECK(fake.compiled() == before + 1);
}

#endif

TEST_CASE("listing tells what would not be used") {
  Folder cache;
  DiskCache disk(cache.path, DiskCache::defaultBytes);
  disk.write(CacheKind::Kernel, {"good", {}, {std::byte{1}}});
  disk.write(CacheKind::Kernel, {"stale", {{"/nowhere", 1, "build-id 00"}}, {}});
  disk.write(CacheKind::Request, {"damaged", {}, {}});
  write(entriesIn(cache.path, "request-").at(0), "NFCACHE2");
  write(cache / "notes.txt", "not ours");
  write(cache / ".writing-1-1", "interrupted long ago");
  fs::last_write_time(cache / ".writing-1-1",
                      fs::file_time_type::clock::now() - std::chrono::hours(1));
  write(cache / ".writing-2-1", "being written");
  std::string problem;
  const auto files = disk.list(problem);
  CHECK(problem.empty());
  REQUIRE(files.size() == 3);
  int sound = 0, stale = 0, damaged = 0;
  for (const DiskCache::File &file : files) {
    sound += file.problem.empty();
    stale += file.problem.starts_with("stale");
    damaged += file.problem.starts_with("not an entry") || file.problem.starts_with("damaged");
  }
  CHECK(sound == 1);
  CHECK(stale == 1);
  CHECK(damaged == 1);
  CHECK(disk.clear(problem) == 4);
  CHECK(entriesIn(cache.path, "").size() == 2); // what is not ours, or not written yet, stays
}

TEST_CASE("the default directory comes from the environment") {
  const char *names[] = {"NORMFORGE_CACHE_DIR", "XDG_CACHE_HOME", "HOME"};
  std::vector<std::optional<std::string>> old;
  for (const char *name : names) {
    const char *value = std::getenv(name);
    old.push_back(value ? std::optional<std::string>(value) : std::nullopt);
  }
  std::string ignored;
  setenv("NORMFORGE_CACHE_DIR", "/a", 1);
  setenv("XDG_CACHE_HOME", "/b", 1);
  setenv("HOME", "/c", 1);
  CHECK(DiskCache::defaultDirectory(ignored) == "/a");
  unsetenv("NORMFORGE_CACHE_DIR");
  CHECK(DiskCache::defaultDirectory(ignored) == "/b/normforge");
  setenv("XDG_CACHE_HOME", "relative", 1);
  CHECK(DiskCache::defaultDirectory(ignored) == "/c/.cache/normforge");
  unsetenv("HOME");
  CHECK(DiskCache::defaultDirectory(ignored).empty());
  for (size_t i = 0; i < 3; ++i)
    old[i] ? setenv(names[i], old[i]->c_str(), 1) : unsetenv(names[i]);
}
