// Directories that somebody else could have chosen or filled are not used: what lies in a cache is
// run. Each case says in words what is wrong, once.
#include "tests/faults/Host.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fs = std::filesystem;
using namespace normforge::test;

namespace {

/// The log of an engine that keeps kernels at `cache`, and whether it kept one there.
struct Tried {
  std::string log;
  bool kept = false;
};
Tried attempt(const std::string &cache) {
  Log log;
  const Outcome outcome =
      compileOnce({.cache = cache.c_str(), .log = Log::write, .logUser = &log}, "a\nquick");
  CHECK_MESSAGE(outcome.isOk(), std::string(outcome.message));
  Tried tried{log.text, false};
  std::error_code ignored;
  for (const auto &entry : fs::directory_iterator(cache, ignored))
    tried.kept |= entry.path().filename().string().starts_with("kernel-");
  return tried;
}

void checkRefused(const std::string &cache, const std::string &why) {
  const Tried tried = attempt(cache);
  CHECK_MESSAGE(tried.log.find(why) != std::string::npos, tried.log, " lacks ", why);
  CHECK_FALSE(tried.kept);
}

/// The working directory, put back at the end.
struct WorkingDirectory {
  const fs::path before = fs::current_path();
  explicit WorkingDirectory(const std::string &path) { fs::current_path(path); }
  ~WorkingDirectory() { fs::current_path(before); }
};

} // namespace

TEST_CASE("cache directory: what is safe is used") {
  const Folder folder;
  for (const std::string &good : {folder / "a/b/c", folder / "./d//e/", folder / "f/../g"}) {
    const Tried tried = attempt(good);
    CHECK_MESSAGE(tried.log.empty(), tried.log);
    if (good.find("..") == std::string::npos)
      CHECK(tried.kept);
  }
  // A link of ours above the directory, such as one to a larger disk.
  fs::create_directory(folder / "disk");
  fs::create_symlink(folder / "disk", folder / "link");
  CHECK(attempt(folder / "link/cache").kept);
  fs::create_symlink("disk", folder / "relative");
  CHECK(attempt(folder / "relative/cache2").kept);
}

TEST_CASE("cache directory: relative paths depend on who chose the working directory") {
  const Folder folder;
  const WorkingDirectory inside(folder.path);
  checkRefused("cache", "expected an absolute path");
  CHECK_FALSE(fs::exists(folder / "cache"));
  // The environment's is ignored as XDG's are, and the engine says so.
  setenv("NORMFORGE_CACHE_DIR", "planted", 1);
  setenv("XDG_CACHE_HOME", (folder / "xdg").c_str(), 1);
  Log log;
  CHECK(compileOnce({.cache = nullptr, .log = Log::write, .logUser = &log}, "a\nquick").isOk());
  CHECK(log.text == "NORMFORGE_CACHE_DIR: expected an absolute path, found 'planted', which is "
                    "ignored\n");
  CHECK_FALSE(fs::exists(folder / "planted"));
  CHECK(fs::exists(folder / "xdg/normforge"));
  unsetenv("XDG_CACHE_HOME");
  unsetenv("NORMFORGE_CACHE_DIR");
}

TEST_CASE("cache directory: nobody else can write above it") {
  const Folder folder;
  fs::create_directories(folder / "open/deep");
  for (mode_t mode : {0777, 0775, 0757}) {
    REQUIRE(chmod((folder / "open").c_str(), mode) == 0);
    checkRefused(folder / "open/deep/cache", "others can write to " + (folder / "open"));
    checkRefused(folder / "open/cache", "others can write to " + (folder / "open"));
  }
  CHECK(chmod((folder / "open").c_str(), 01777) == 0); // sticky, as /tmp
  CHECK(attempt(folder / "open/deep/cache").kept);
  // The directory itself, sticky or not.
  for (mode_t mode : {0777, 01777, 0770}) {
    REQUIRE(chmod((folder / "open/deep/cache").c_str(), mode) == 0);
    const Tried tried = attempt(folder / "open/deep/cache");
    const char *why = mode & S_ISVTX ? "it is shared by users, so it is not used"
                                     : "others can write to it, so it is not used";
    CHECK(tried.log.find(why) != std::string::npos);
  }
  // An entry planted below a parent that others can write to is not run, right checksums or not.
  fs::create_directories(folder / "home");
  CHECK(attempt(folder / "home/cache").kept);
  REQUIRE(chmod((folder / "home").c_str(), 0777) == 0);
  const int before = compilations();
  const Tried planted = attempt(folder / "home/cache");
  CHECK(planted.log.find("others can write to") != std::string::npos);
  CHECK(compilations() == before + 1);
}

TEST_CASE("cache directory: links") {
  const Folder folder;
  fs::create_directory(folder / "real");
  fs::create_symlink(folder / "real", folder / "link");
  checkRefused((folder / "link") + "/", "it is a symbolic link, which is not followed");
  Log log;
  compileOnce({.cache = (folder / "link").c_str(), .log = Log::write, .logUser = &log}, "a\nquick");
  CHECK(log.text.find("it is a symbolic link, which is not followed") != std::string::npos);
  fs::create_symlink(folder / "nowhere", folder / "dangling");
  checkRefused(folder / "dangling", "it is a symbolic link, which is not followed");
  fs::create_symlink("loop", folder / "loop");
  checkRefused(folder / "loop/cache", "too many");
  // A link of ours to where others can write.
  fs::create_directory(folder / "open");
  REQUIRE(chmod((folder / "open").c_str(), 0777) == 0);
  fs::create_symlink("open", folder / "way");
  checkRefused(folder / "way/cache", "others can write to " + (folder / "open"));
}

TEST_CASE("cache directory: what belongs to another user") {
  if (geteuid() != 0) {
    MESSAGE("SKIP: only root can give a file to another user");
    return;
  }
  constexpr uid_t other = 65534;
  const Folder folder;
  fs::create_directories(folder / "his/cache");
  REQUIRE(chown((folder / "his").c_str(), other, other) == 0);
  checkRefused(folder / "his/cache", (folder / "his") + " above it belongs to another user");
  fs::create_directory(folder / "cache");
  REQUIRE(chown((folder / "cache").c_str(), other, other) == 0);
  checkRefused(folder / "cache", "it belongs to another user");
  fs::create_directory(folder / "real");
  fs::create_symlink(folder / "real", folder / "link");
  REQUIRE(lchown((folder / "link").c_str(), other, other) == 0);
  checkRefused(folder / "link/cache", "belongs to another user");
  // Root's directories above one of another user are fine: /home.
  fs::create_directories(folder / "home/user");
  REQUIRE(chmod(folder.path.c_str(), 0755) == 0);
  REQUIRE(chown((folder / "home/user").c_str(), other, other) == 0);
  const std::string cache = folder / "home/user/cache";
  const std::string compiler = folder / "compiler.so"; // where he can read it
  fs::copy_file(NORMFORGE_FAKE_COMPILER, compiler);
  const Ending ending = inChild(20, [&] {
    if (setgid(other) != 0 || setuid(other) != 0)
      return 2;
    const bool isOk =
        compileOnce({.compiler = compiler.c_str(), .cache = cache.c_str()}, "a\nquick").isOk();
    return isOk && fs::exists(cache) ? 0 : 1;
  });
  CHECK(ending.status == 0);
  // And what he kept is not root's to run.
  CHECK(attempt(cache).log.find("belongs to another user") != std::string::npos);
}

TEST_CASE("cache directory: entries that are no files") {
  const Folder folder;
  const std::string cache = folder / "cache";
  REQUIRE(attempt(cache).kept);
  std::string kernel;
  for (const auto &entry : fs::directory_iterator(cache))
    if (entry.path().filename().string().starts_with("kernel-"))
      kernel = entry.path();
  const auto clearTo = [&](auto make) {
    fs::remove_all(cache);
    REQUIRE(mkdir(cache.c_str(), 0700) == 0);
    make();
  };
  clearTo([&] { fs::create_directory(kernel); });
  const Tried directory = attempt(cache);
  CHECK_MESSAGE(directory.log.find(fs::path(kernel).filename().string() +
                                   " in it is a directory where an entry belongs") !=
                    std::string::npos,
                directory.log);
  clearTo([&] { REQUIRE(mkfifo(kernel.c_str(), 0600) == 0); }); // not waited for; replaced
  CHECK(attempt(cache).log.empty());
  CHECK(fs::is_regular_file(kernel));
  clearTo([&] { fs::create_symlink("/dev/zero", kernel); });
  CHECK(attempt(cache).log.empty());
  CHECK(fs::is_regular_file(kernel));
  CHECK_FALSE(fs::is_symlink(kernel));
}

TEST_CASE("cache directory: any umask") {
  const Folder folder;
  for (mode_t mask : {0777, 0277, 0}) {
    const std::string cache = folder / (std::to_string(mask) + "/a/b");
    umask(mask);
    const Tried tried = attempt(cache);
    umask(022);
    CHECK_MESSAGE(tried.log.empty(), tried.log);
    CHECK(tried.kept);
  }
}
