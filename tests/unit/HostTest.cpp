// The host's side: the threads, memory, files and debuggers that it lends and asks for; and what it
// carries itself.
#include "normforge/normforge.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace fs = std::filesystem;

namespace {

const char *const spec = "name: hosted\n"
                         "input: {shape: [N, 8, 56, 56], layout: nchw, dtype: f32}\n"
                         "axis: c\n"
                         "phases: [training]\n";

struct Arrays {
  static constexpr int64_t n = 64;
  std::vector<float> x, y, parameters[9];
  std::vector<void *> args;
  Arrays() : x(n * 8 * 56 * 56), y(x.size()) {
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = static_cast<float>(i % 7);
    for (auto &p : parameters)
      p.assign(8, 1);
    args = {x.data()};
    for (int i = 0; i < 4; ++i)
      args.push_back(parameters[i].data());
    args.push_back(y.data());
    for (int i = 4; i < 8; ++i)
      args.push_back(parameters[i].data());
  }
};

/// Runs a shell's line; its output in `log`.
int run(const std::string &line, std::string &log) {
  const std::string path = fs::temp_directory_path() / fmt::format("normforge-host-{}", getpid());
  const int status = std::system(("{ " + line + " ; } >" + path + " 2>&1").c_str());
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  log = text.str();
  fs::remove(path);
  return WEXITSTATUS(status);
}

} // namespace

TEST_CASE("host: the engine's threads and memory are used where a call brings none") {
  struct Lent {
    std::atomic<int> ranges{0}, allocated{0}, released{0};
    std::atomic<size_t> bytes{0};
  } lent;
  nf::Engine::Options options;
  options.cacheDirectory = "";
  options.executor.user = &lent;
  options.executor.parallel_for = [](void *user, uint64_t tasks, nf_body_fn *body, void *data) {
    auto &all = *static_cast<Lent *>(user);
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 3; ++t)
      threads.emplace_back([&, t] {
        if (tasks * t / 3 < tasks * (t + 1) / 3)
          body(data, tasks * t / 3, tasks * (t + 1) / 3);
      });
    for (std::thread &thread : threads)
      thread.join();
    ++all.ranges;
  };
  options.allocator.user = &lent;
  options.allocator.allocate = [](void *user, size_t bytes, size_t alignment) {
    auto &all = *static_cast<Lent *>(user);
    ++all.allocated;
    all.bytes = bytes;
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  };
  options.allocator.release = [](void *user, void *memory, size_t bytes, size_t) {
    auto &all = *static_cast<Lent *>(user);
    all.released += bytes == all.bytes;
    std::free(memory);
  };
  Arrays arrays, alone;
  nf::Plan plan = [&] {
    const nf::Engine engine(options); // what came of it outlives it
    return engine.compile(spec, {.phase = "", .cpu = "haswell", .sourceName = ""})
        .plan({Arrays::n});
  }();
  REQUIRE(plan.workspaceBytes() > 0);
  plan.run(arrays.args);
  CHECK(lent.ranges >= 2);
  CHECK(lent.allocated == 1);
  CHECK(lent.released == 1);
  CHECK(lent.bytes == plan.workspaceBytes());
  // A call's own come first; an executor without a function is the calling thread.
  const int before = lent.ranges;
  const nf::Workspace workspace = plan.makeWorkspace();
  const nf_executor here = {sizeof here, nullptr, nullptr};
  plan.run(alone.args, {}, workspace.get(), &here);
  CHECK(lent.ranges == before);
  CHECK(lent.allocated == 1);
  CHECK(arrays.y == alone.y);

  options.allocator.allocate = [](void *, size_t, size_t) -> void * { return nullptr; };
  const nf::Plan poor = nf::Engine(options).compile(spec).plan({Arrays::n});
  if (poor.workspaceBytes() > 0)
    try {
      poor.run(arrays.args);
      FAIL("there was no memory");
    } catch (const nf::Error &error) {
      CHECK(error.code() == NF_OUT_OF_MEMORY);
    }
  options.allocator.release = nullptr;
  try {
    const nf::Engine engine(options);
    FAIL("half an allocator");
  } catch (const nf::Error &error) {
    CHECK(error.code() == NF_INVALID_ARGUMENT);
  }
}

TEST_CASE("host: specs from files") {
  const std::string path = fs::temp_directory_path() / fmt::format("named_{}.yaml", getpid());
  std::ofstream(path) << "input: {shape: [4, 8]}\naxis: c\n";
  const nf::Engine engine;
  CHECK(engine.compileFile(path).name() == fmt::format("named_{}", getpid()));
  std::ofstream(path) << "input: {shape: [4, 8]}\naxis: 7\n";
  try {
    engine.compileFile(path);
    FAIL("axis 7");
  } catch (const nf::Error &error) {
    CHECK(error.code() == NF_COMPILE_FAILED);
    CHECK(std::string(error.what()).find(path + ":2:7: error: axis 7") != std::string::npos);
  }
  fs::remove(path);
  for (const std::string &wrong : {path, std::string("/")})
    try {
      engine.compileFile(wrong);
      FAIL(wrong);
    } catch (const nf::Error &error) {
      CHECK(error.code() == NF_SYSTEM_ERROR);
      CHECK(std::string(error.what()).find(wrong + ": cannot be read: ") == 0);
    }
}

TEST_CASE("host: specs put together key by key are text that reads back") {
  nf::Spec spec;
  spec.input({"N", 4, "H", 7}, "nchw", NF_BF16)
      .set("name", "layer1.0.bn1: \"é\"")
      .set("mode", "feature")
      .set("axis", "c")
      .set("epsilon", 1e-3)
      .set("scale", false)
      .set("semantics", "keras-3")
      .add("phases", "inference")
      .add("phases", "training")
      .set("momentum.mean", 0.5)
      .set("momentum.variance", 0.25)
      .operand("add", "skip")
      .step("leaky_relu", {0.1})
      .step("clamp", {-1, 6})
      .formula("x * 2 + 1");
  CHECK(spec.text() == "input:\n  shape: [N, 4, H, 7]\n  layout: nchw\n  dtype: bf16\n"
                       "name: \"layer1.0.bn1: \\\"é\\\"\"\nmode: feature\naxis: c\n"
                       "epsilon: 0.001\nscale: false\nsemantics: keras-3\n"
                       "phases: [inference, training]\nmomentum:\n  mean: 0.5\n"
                       "  variance: 0.25\nfuse: [{add: {name: skip}}, {leaky_relu: 0.1}, "
                       "{clamp: [-1, 6]}, {expr: \"x * 2 + 1\"}]\n");
  const nf::Engine engine;
  const nf::Kernel kernel = engine.compile(spec.text(), {.phase = "training"});
  CHECK(kernel.name() == "layer1.0.bn1: \"é\"");
  CHECK(kernel.findArgument("skip", false) != NF_NOT_FOUND);
  CHECK(kernel.findArgument("gamma", false) == NF_NOT_FOUND);
  // Words that YAML reads otherwise are in quotes.
  CHECK(nf::Spec().set("name", "true").set("mode", "1").text() == "name: \"true\"\nmode: \"1\"\n");
  // A later value wins; what is no value is refused and changes nothing.
  CHECK(spec.set("mode", "batch").text().find("mode: batch\n") != std::string::npos);
  const std::string before = spec.text();
  CHECK_THROWS_WITH(spec.set("", "a"), "the key '' is none: expected names with dots between");
  CHECK_THROWS_WITH(spec.set("mode.more", 1),
                    "the key 'mode.more' is part of one that has a value");
  CHECK_THROWS_WITH(spec.add("mode", "a"), "the key 'mode' has a value already");
  CHECK_THROWS_WITH(spec.set("phases", "a"), "the key 'phases' has a list already");
  CHECK_THROWS_WITH(spec.set("epsilon", std::nan("")), "a number is not finite");
  CHECK_THROWS_WITH(spec.set("a: b", 1),
                    "the key 'a: b' is none: expected names with dots between");
  nf_spec *bad = nullptr;
  REQUIRE(nf_spec_create(&bad) == nullptr);
  const int64_t sizes[] = {4};
  for (nf_dtype dtype : {NF_NO_DTYPE, NF_BIT}) {
    nf_status *status = nf_spec_input(bad, sizes, nullptr, 1, nullptr, dtype);
    CHECK(nf_status_code(status) == NF_INVALID_ARGUMENT);
    nf_status_free(status);
  }
  nf_spec_free(bad);
  CHECK(spec.text() == before);
  // Whole numbers stay whole, of any type.
  CHECK(nf::Spec().input({size_t(100000), "N"}).set("groups", int64_t(100000)).text() ==
        "input:\n  shape: [100000, N]\n  dtype: f32\ngroups: 100000\n");
}

TEST_CASE("host: names of phases and roles, and frameworks' words") {
  for (int i = 0; i <= NF_GRADIENT_SUMS; ++i)
    CHECK(nf_phase_named(nf_phase_name(static_cast<nf_phase>(i))) == i);
  CHECK(std::string(nf_phase_name(NF_BACKWARD_UPDATE)) == "backward+update");
  CHECK(std::string(nf_phase_name(NF_OTHER_PHASE)) == "");
  CHECK(nf_phase_named("forwards") == NF_OTHER_PHASE);
  CHECK(nf_phase_named(nullptr) == NF_OTHER_PHASE);
  CHECK(std::string(nf_role_name(NF_PARAMETER)) == "parameter");
  CHECK(std::string(nf_role_name(NF_NO_ROLE)) == "");
  const nf::Engine engine;
  const nf::Kernel kernel = engine.compile(nf::Spec().input({"N", 4}, "nc").text());
  CHECK(kernel.ownName("weight") == "gamma");
  CHECK(kernel.ownName("running_var") == "moving_variance");
  CHECK(kernel.ownName("residual") == ""); // it adds nothing
  CHECK(kernel.ownName("gamma") == "");
}

TEST_CASE("host: exactly the recorded symbols are exported") {
  std::string log;
  REQUIRE(run("nm -D --defined-only " NORMFORGE_RUNTIME_LIBRARY, log) == 0);
  std::set<std::string> exported, recorded;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    const std::string name = line.substr(line.rfind(' ') + 1);
    if (name.find("@") != std::string::npos)
      exported.insert(name.substr(0, name.find('@')));
  }
  exported.erase("NORMFORGE_0_1"); // the version itself
  std::ifstream file(NORMFORGE_TEST_DATA_DIR "/data/symbols.txt");
  for (std::string line; std::getline(file, line);)
    recorded.insert(line);
  REQUIRE(recorded.size() > 40);
  // A new function is added to the file; one that is gone or renamed breaks hosts.
  for (const std::string &name : exported)
    CHECK_MESSAGE(recorded.contains(name), name << " is not in tests/data/symbols.txt");
  for (const std::string &name : recorded)
    CHECK_MESSAGE(exported.contains(name), name << " is gone from libnormforge.so");
}

TEST_CASE("host: the runtime is small and needs the C++ standard library alone") {
#if !defined(NORMFORGE_SANITIZED)
  CHECK(fs::file_size(NORMFORGE_RUNTIME_LIBRARY) < 1000000);
#endif
  std::string log;
  REQUIRE(run("objdump -p " NORMFORGE_RUNTIME_LIBRARY, log) == 0);
  std::istringstream lines(log);
  int needed = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.find("NEEDED") == std::string::npos)
      continue;
    ++needed;
    const std::string name = line.substr(line.rfind(' ') + 1);
    const bool isStandard = name.starts_with("libstdc++.so") || name.starts_with("libgcc_s.so") ||
                            name.starts_with("libc.so") || name.starts_with("libm.so") ||
                            name.starts_with("ld-linux");
    CHECK_MESSAGE(isStandard, name);
  }
  CHECK(needed > 0);
}

TEST_CASE("host: another LLVM in the process is undisturbed") {
  // Its C API, by the names of all its versions; global, as of a program that links it.
  void *other = dlopen("libLLVM-14.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (!other) {
    MESSAGE("SKIP: Debian's package libllvm14 is not installed");
    return;
  }
  auto function = [&](const char *name) {
    void *found = dlsym(other, name);
    REQUIRE_MESSAGE(found, name);
    return found;
  };
  auto *makeContext = reinterpret_cast<void *(*)()>(function("LLVMContextCreate"));
  auto *freeContext = reinterpret_cast<void (*)(void *)>(function("LLVMContextDispose"));
  auto *makeModule = reinterpret_cast<void *(*)(const char *, void *)>(
      function("LLVMModuleCreateWithNameInContext"));
  auto *freeModule = reinterpret_cast<void (*)(void *)>(function("LLVMDisposeModule"));
  auto *print = reinterpret_cast<char *(*)(void *)>(function("LLVMPrintModuleToString"));
  auto *freeText = reinterpret_cast<void (*)(char *)>(function("LLVMDisposeMessage"));
  auto moduleText = [&](const char *name) {
    void *context = makeContext();
    void *module = makeModule(name, context);
    char *text = print(module);
    const std::string result = text;
    freeText(text);
    freeModule(module);
    freeContext(context);
    return result;
  };
  const std::string before = moduleText("ours");
  CHECK(before.find("ModuleID = 'ours'") != std::string::npos);

  nf::Engine::Options options;
  options.cacheDirectory = "";
  const nf::Kernel kernel = nf::Engine(options).compile(
      "name: beside\ninput: {shape: [2, 3]}\naxis: c\nmode: 1\nsemantics: pytorch\n");
  float x[6] = {1, 2, 3, 6, 4, 2}, gamma[3] = {1, 1, 1}, beta[3] = {}, y[6];
  void *args[] = {x, gamma, beta, y};
  kernel.plan().run(args);
  CHECK(y[0] == doctest::Approx(-1.2247).epsilon(1e-3));
  CHECK(y[3] == doctest::Approx(1.2247).epsilon(1e-3));
  // Two LLVMs are loaded now; the first still answers as itself.
  std::ifstream maps("/proc/self/maps");
  std::ostringstream text;
  text << maps.rdbuf();
  CHECK(text.str().find("libLLVM-14") != std::string::npos);
  CHECK(text.str().find("libLLVM.so.22") != std::string::npos);
  CHECK(moduleText("ours") == before);
}

TEST_CASE("host: GDB knows kernels by their names") {
  std::string log;
  if (run("gdb --version", log) != 0) {
    MESSAGE("SKIP: Debian's package gdb is not installed");
    return;
  }
  const int status =
      run("ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 " // which traces the process itself
          "gdb -nx -batch -ex 'set debuginfod enabled off' -ex 'set breakpoint pending on' "
          "-ex 'break debugged_inference_v1_normalize' -ex run -ex backtrace -ex 'info symbol $pc' "
          "-ex continue --args " NORMFORGE_DEBUGGED_PROGRAM,
          log);
  INFO(log);
  if (log.find("ptrace: Operation not permitted") != std::string::npos ||
      log.find("Could not trace the inferior process") != std::string::npos) {
    MESSAGE("SKIP: this machine lets no process be traced");
    return;
  }
  CHECK(status == 0);
  CHECK(log.find("Breakpoint 1") != std::string::npos);
  CHECK(log.find("#0 ") != std::string::npos);
  CHECK(log.find("in debugged_inference_v1_normalize ()") != std::string::npos);
  CHECK(log.find("exited normally") != std::string::npos);
}
