// The properties that a hardened host relies on: where libraries come from, memory that is never
// writable and executable at once, files in /tmp, processors, and ways in for indirect branches.
#include "runtime/cpu_info/CpuInfo.h"
#include "tests/faults/Host.h"
#include "tests/faults/Shim.h"

#include <doctest/doctest.h>

#include <cstring>
#include <fcntl.h>
#include <sched.h>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

namespace fs = std::filesystem;
using namespace normforge::test;

namespace {

const std::string prober = NORMFORGE_PROBER, staticProber = NORMFORGE_STATIC_PROBER;
const std::string pack = NORMFORGE_BUILD_DIR "/examples/resnet50.nfk";

/// Whether strace can trace here; tells why not.
bool canTrace() {
  std::string printed;
  if (shell("strace -o /dev/null true", printed) == 0)
    return true;
  MESSAGE("SKIP: strace is not installed, or this machine lets no process be traced");
  return false;
}

std::vector<std::string> linesOf(const std::string &text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);)
    lines.push_back(line);
  return lines;
}

/// A folder with the runtime and a compiler library, and another, where an attacker put one.
struct Planted {
  Folder good, bad;
  Planted() {
    for (const char *folder : {"/lib", "/bin"}) {
      fs::create_directory(good.path + folder);
      fs::create_directory(bad.path + folder);
      fs::copy_file(NORMFORGE_FAKE_COMPILER, bad.path + folder + "/libnormforge-compiler.so");
    }
    fs::copy_file(NORMFORGE_FAKE_COMPILER, bad / "libnormforge-compiler.so");
    fs::copy_file(NORMFORGE_FAKE_COMPILER, good / "lib/libnormforge-compiler.so");
    fs::copy_file(NORMFORGE_RUNTIME_LIBRARY, good / "lib/libnormforge.so");
    fs::copy_file(staticProber, good / "bin/prober-static");
  }
};

/// The compiler library that a command line opens; in `tried` every path with its name.
std::string openedBy(const std::string &line, std::vector<std::string> &tried) {
  const Folder folder;
  std::string printed;
  shell("strace -f -e trace=?open,openat -o " + (folder / "trace") + " " + line, printed);
  INFO(line, "\n", printed);
  CHECK(printed == "0 ok\n");
  std::string opened;
  for (const std::string &call : linesOf(readFile(folder / "trace"))) {
    const size_t begin = call.find('"'), end = call.find('"', begin + 1);
    if (end == std::string::npos || call.find("libnormforge-compiler.so") == std::string::npos)
      continue;
    const std::string path = call.substr(begin + 1, end - begin - 1);
    tried.push_back(path);
    if (call.find(" = -1") == std::string::npos && opened.empty())
      opened = fs::weakly_canonical(path);
  }
  return opened;
}

} // namespace

TEST_CASE("hardening: the compiler library is never taken from the working directory") {
  if (!canTrace())
    return;
  const Planted planted;
  const std::string good = planted.good / "lib/libnormforge-compiler.so";
  const std::string inGood = "env -C " + planted.good.path + " ";
  const std::string inBad = "env -C " + planted.bad.path + " ";
  const std::string lines[] = {
      // Opened by a relative path, then the working directory changes.
      inGood + prober + " --dlopen lib/libnormforge.so " + planted.bad.path + " compile",
      inGood + prober + " --dlopen ./lib/../lib/libnormforge.so " + planted.bad.path + " compile",
      // A program with the runtime in it, found by PATH, by a relative path, under another's name.
      inBad + "PATH=" + (planted.good / "bin") + " prober-static compile",
      inBad + "bash -c 'exec -a prober " + (planted.good / "bin/prober-static") + " compile'",
      inBad + "bash -c 'exec -a " + (planted.bad / "bin/x") + " " +
          (planted.good / "bin/prober-static") + " compile'",
  };
  for (const std::string &line : lines) {
    std::vector<std::string> tried;
    CHECK(openedBy(line, tried) == good);
    for (const std::string &path : tried)
      CHECK_MESSAGE(path.starts_with("/"), line, " tries ", path);
  }
}

TEST_CASE(
    "hardening: a relative path of the compiler means what it meant when the engine was made") {
  const Planted planted;
  const fs::path before = fs::current_path();
  fs::current_path(planted.good.path);
  nf_engine *engine = nullptr;
  CHECK(makeEngine({.compiler = "lib/libnormforge-compiler.so"}, &engine).isOk());
  fs::current_path(planted.bad.path);
  nf_kernel *kernel = nullptr;
  CHECK(outcomeOf(nf_compile(engine, "a\nquick", 7, nullptr, &kernel)).isOk());
  fs::current_path(before);
  nf_kernel_release(kernel);
  nf_engine_release(engine);
  const std::string maps = readFile("/proc/self/maps");
  CHECK(maps.find(planted.good.path) != std::string::npos);
  CHECK(maps.find(planted.bad.path) == std::string::npos);
}

TEST_CASE("hardening: a program with more rights than its caller is told no place by him") {
  if (geteuid() != 0) {
    MESSAGE("SKIP: only root can make a program of another user");
    return;
  }
  const Planted planted; // the static prober with a compiler library beside it
  std::string printed;
  const std::string program = planted.good / "bin/prober-static";
  const std::string folder = planted.bad / "his";
  REQUIRE(chmod(planted.good.path.c_str(), 0755) == 0);
  REQUIRE(chmod(planted.bad.path.c_str(), 0755) == 0);
  fs::create_directory(folder);
  REQUIRE(chown(folder.c_str(), 65534, 65534) == 0);
  const std::string line = "NORMFORGE_CACHE_DIR=" + folder + "/cache HOME=" + folder +
                           " setpriv --reuid=65533 --regid=65533 --clear-groups " + program +
                           " default";
  // Control: as the program's owner himself, the environment counts.
  REQUIRE(chmod(program.c_str(), 0755) == 0);
  CHECK(shell("NORMFORGE_CACHE_DIR=" + folder +
                  "/cache setpriv --reuid=65534 --regid=65534 "
                  "--clear-groups " +
                  program + " default",
              printed) == 0);
  CHECK_MESSAGE(fs::exists(folder + "/cache"), printed);
  fs::remove_all(folder + "/cache");
  REQUIRE(chown(program.c_str(), 65534, 65534) == 0);
  REQUIRE(chmod(program.c_str(), 04755) == 0);
  CHECK_MESSAGE(shell(line, printed) == 0, printed);
  CHECK_FALSE(fs::exists(folder + "/cache"));
  CHECK(fs::is_empty(folder));
}

TEST_CASE("hardening: no memory is writable and executable at once") {
  CHECK(shim_writable_code() == 0);
  if (!canTrace())
    return;
  const Folder folder;
  for (const std::string &action : {std::string("compile"), "cache " + (folder / "cache"),
                                    "cache " + (folder / "cache"), "pack " + pack}) {
    std::string printed;
    CHECK(shell("strace -f -e trace=mmap,mprotect,pkey_mprotect -o " + (folder / "trace") + " " +
                    prober + " " + action,
                printed) == 0);
    const std::string trace = readFile(folder / "trace");
    CHECK(trace.find("PROT_EXEC") != std::string::npos);
    for (const std::string &line : linesOf(trace))
      CHECK_MESSAGE(line.find("PROT_WRITE|PROT_EXEC") == std::string::npos, line);
  }
}

TEST_CASE("hardening: where memory may not become executable, kernels are refused in words") {
  const Folder folder;
  std::string printed;
  REQUIRE(shell(prober + " cache " + (folder / "cache"), printed) == 0);
  for (const std::string &action :
       {std::string("compile"), "cache " + (folder / "cache"), "pack " + pack}) {
    const int status = shell(prober + " --mdwe " + action, printed);
    if (status == 77) {
      MESSAGE(printed);
      return;
    }
    INFO(action, ": ", printed);
    CHECK(status == 1);
    CHECK(printed.starts_with("7 the system refuses executable memory")); // NF_SYSTEM_ERROR
  }
  // A library of kernels is a file: the loader maps it as code from the first.
  writeFile(folder / "k.yaml", "name: k\ninput: {shape: [2, 3], layout: nc}\naxis: c\n");
  const std::string library = folder / "k.so";
  if (shell(std::string(NORMFORGE_COMMAND) + " compile --emit=so " + (folder / "k.yaml") + " -o " +
                library,
            printed) != 0 &&
      printed.find("lld") != std::string::npos) {
    MESSAGE("SKIP: ", printed);
    return;
  }
  CHECK(shell("readelf -Ws --dyn-syms " + library + " | awk '/FUNC/ {print $8}' | tail -1",
              printed) == 0);
  const std::string symbol = printed.substr(0, printed.find('\n'));
  CHECK(shell(prober + " --mdwe library " + library + " " + symbol, printed) == 0);
  CHECK_MESSAGE(printed == "0 ok\n", printed);
}

TEST_CASE("hardening: a perf map that another planted is left alone") {
  const Folder folder;
  writeFile(folder / "his", "his\n");
  const auto mapped = [&](auto plant) {
    return inChild(20, [&] {
      const std::string path = "/tmp/perf-" + std::to_string(getpid()) + ".map";
      unlink(path.c_str());
      plant(path);
      nf_engine_options options = {};
      options.struct_size = sizeof options;
      options.compiler_library = NORMFORGE_FAKE_COMPILER;
      options.cache_directory = "";
      options.perf_map = 1;
      nf_engine *engine = nullptr;
      nf_kernel *kernel = nullptr;
      if (nf_engine_create(&options, &engine) ||
          nf_compile(engine, "a\nquick", 7, nullptr, &kernel))
        return 2;
      struct stat status;
      const bool isFile = stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
      const bool isWritten =
          isFile && readFile(path).find("a_inference_nothing") != std::string::npos;
      unlink(path.c_str());
      return isWritten ? 1 : 0;
    });
  };
  CHECK(mapped([](const std::string &) {}).status == 1);
  const Ending pipe = mapped([](const std::string &path) { mkfifo(path.c_str(), 0666); });
  CHECK_FALSE(pipe.timedOut);
  CHECK(pipe.status == 0);
  CHECK(mapped([&](const std::string &path) { fs::create_symlink(folder / "his", path); }).status ==
        0);
  CHECK(mapped([&](const std::string &path) {
          std::error_code ignored;
          fs::create_hard_link(folder / "his", path, ignored);
        }).status == 0);
  if (geteuid() == 0)
    CHECK(mapped([&](const std::string &path) {
            writeFile(path, "");
            (void)!chown(path.c_str(), 65534, 65534);
          }).status == 0);
  CHECK(readFile(folder / "his") == "his\n");
}

TEST_CASE("hardening: threads are those that the process may run on") {
  cpu_set_t before, one;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  int first = 0;
  while (!CPU_ISSET(first, &before))
    ++first;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  CHECK(normforge::usableProcessors() >= 1);
  CHECK(normforge::usableProcessors() <= CPU_COUNT(&before));
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  CHECK(normforge::usableProcessors() == 1);
  std::string printed;
  CHECK(shell(std::string(NORMFORGE_COMMAND) + " targets", printed) == 0);
  CHECK_MESSAGE(printed.find("threads   1\n") != std::string::npos, printed);
  sched_setaffinity(0, sizeof before, &before);
}

TEST_CASE("hardening: hosts that check functions and indirect branches may call stages") {
  nf_engine *engine = nullptr;
  nf_pack *opened = nullptr;
  REQUIRE(makeEngine({}, &engine).isOk());
  REQUIRE(outcomeOf(nf_pack_open(engine, pack.c_str(), &opened)).isOk());
  int stages = 0;
  for (size_t k = 0; k < nf_pack_kernel_count(opened); ++k) {
    nf_kernel *kernel = nullptr;
    nf_plan *plan = nullptr;
    const int64_t sizes[] = {2};
    REQUIRE(outcomeOf(nf_pack_load(opened, nf_pack_kernel_name(opened, k),
                                   nf_pack_kernel_phase(opened, k), &kernel))
                .isOk());
    REQUIRE(outcomeOf(nf_plan_create(kernel, sizes, nf_kernel_size_count(kernel), &plan)).isOk());
    for (size_t s = 0; s < nf_plan_stage_count(plan); ++s, ++stages) {
      unsigned char first[4];
      const auto address = reinterpret_cast<uintptr_t>(nf_plan_stage_function(plan, s));
      std::memcpy(first, reinterpret_cast<const void *>(address), sizeof first);
      CHECK(address % 4096 >= 8); // what Clang's -fsanitize=function reads is in the page
#if defined(__x86_64__)
      const unsigned char endbr64[] = {0xF3, 0x0F, 0x1E, 0xFA};
      CHECK(std::memcmp(first, endbr64, sizeof first) == 0);
#endif
    }
    nf_plan_release(plan);
    nf_kernel_release(kernel);
  }
  CHECK(stages > 10);
  nf_pack_release(opened);
  nf_engine_release(engine);
  // Such a host.
  const Folder folder;
  writeFile(folder / "host.c", R"(#include "normforge/normforge.h"
#include <string.h>
#include <stdio.h>
static nf_stage_fn *volatile function;
int main(void) {
  const char *spec = "name: h\ninput: {shape: [2, 3], layout: nc}\naxis: c\n";
  nf_engine *engine; nf_kernel *kernel; nf_plan *plan;
  if (nf_engine_create(0, &engine) || nf_compile(engine, spec, strlen(spec), 0, &kernel) ||
      nf_plan_create(kernel, 0, 0, &plan))
    return 1;
  float arrays[8][6] = {{0}};
  void *args[8];
  for (int i = 0; i < 8; ++i)
    args[i] = arrays[i];
  nf_call call = {sizeof call, 0, args, nf_plan_sizes(plan), 0, 0};
  for (size_t s = 0; s < nf_plan_stage_count(plan); ++s) {
    function = nf_plan_stage_function(plan, s);
    function(&call, 0, nf_plan_stage_tasks(plan, s));
  }
  puts("ran");
}
)");
  std::string printed;
  const std::string library = NORMFORGE_BUILD_DIR "/lib";
  const std::string build = "cd " + folder.path + " && clang-22 -fsanitize=function -I" +
                            NORMFORGE_SOURCE_DIR + "/include host.c -L" + library +
                            " -lnormforge -Wl,-rpath," + library + " -o host";
  if (shell(build, printed) != 0) {
    MESSAGE("SKIP: Clang's sanitizers (Debian's clang-22, libclang-rt-22-dev) are not installed: ",
            printed);
    return;
  }
  CHECK(shell(folder / "host", printed) == 0);
  CHECK_MESSAGE(printed == "ran\n", printed);
}

TEST_CASE("hardening: libraries of kernels say that branches are protected") {
  std::string linker;
  if (shell("command -v ld.lld-22 || command -v ld.lld", linker) != 0) {
    MESSAGE("SKIP: Debian's lld-22 is not installed");
    return;
  }
  const Folder folder;
  writeFile(folder / "k.yaml", "name: k\ninput: {shape: [N, 3], layout: nc}\naxis: c\n");
  const struct {
    const char *cpus, *note;
  } cases[] = {{"x86-64-v2,haswell", "x86 feature: IBT, SHSTK"},
               {"neoverse-n1", "AArch64 feature: BTI, PAC"}};
  for (const auto &[cpus, note] : cases) {
    std::string printed;
    if (shell(std::string(NORMFORGE_COMMAND) + " compile --emit=so,obj " + (folder / "k.yaml") +
                  " --cpu " + cpus + " -o " + (folder / "out/"),
              printed) != 0) {
      // Several CPUs make no object.
      CHECK(shell(std::string(NORMFORGE_COMMAND) + " compile --emit=so " + (folder / "k.yaml") +
                      " --cpu " + cpus + " -o " + (folder / "out/"),
                  printed) == 0);
    }
    for (const auto &entry : fs::directory_iterator(folder / "out")) {
      CHECK(shell("readelf -nW " + entry.path().string(), printed) == 0);
      CHECK_MESSAGE(printed.find(note) != std::string::npos, entry.path().string(), printed);
    }
    fs::remove_all(folder / "out");
  }
}
