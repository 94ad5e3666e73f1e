// Compiling through the C API, and what linkImage refuses to load.
#include "compiler/session/SessionPool.h"
#include "compiler/target/CodeGen.h"
#include "normforge/normforge.hpp"
#include "runtime/cache/DiskCache.h"
#include "runtime/cpu_info/CpuInfo.h"

#include "llvm/AsmParser/Parser.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Target/TargetMachine.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <unistd.h>

using namespace normforge;

namespace {

constexpr const char *spec = "name: small\n"
                             "semantics: pytorch\n"
                             "input: {shape: [N, 5, 7], layout: ncw, dtype: f32}\n"
                             "axis: c\n"
                             "phases: [training, inference]\n";

template <typename Call> std::string errorOf(nf_code code, Call &&call) {
  try {
    call();
  } catch (const nf::Error &error) {
    CHECK(error.code() == code);
    return error.what();
  }
  FAIL_CHECK("no error");
  return {};
}

/// An engine that compiles whatever it is asked for.
nf::Engine makeEngine() { return nf::Engine({.cacheDirectory = ""}); }

/// Whether kernels can be compiled for this machine at all.
bool canCompile() {
  auto target = describeTarget("native");
  if (target)
    return true;
  MESSAGE("SKIP: " << llvm::toString(target.takeError()));
  return false;
}

/// y of the spec's inference for x = 0, 1, 2, ..., mean 1, variance 4, gamma 2 and beta 3.
std::vector<float> infer(const nf::Kernel &kernel, int64_t n) {
  std::vector<float> x(static_cast<size_t>(n) * 35), y(x.size(), -1);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(i);
  std::vector<float> gamma(5, 2), beta(5, 3), mean(5, 1), variance(5, 4);
  void *args[] = {x.data(), gamma.data(), beta.data(), mean.data(), variance.data(), y.data()};
  kernel.plan({n}).run(args);
  return y;
}

void checkInference(const std::vector<float> &y) {
  for (size_t i = 0; i < y.size(); ++i)
    REQUIRE(y[i] == doctest::Approx((static_cast<double>(i) - 1) / std::sqrt(4 + 1e-5) * 2 + 3));
}

nf::Kernel compileInference(const nf::Engine &engine) {
  return engine.compile(spec, {"inference", "", ""});
}

/// Links what LLVM makes of an IR function.
std::string refusal(const std::string &ir) {
  llvm::LLVMContext context;
  llvm::SMDiagnostic diagnostic;
  auto module = llvm::parseAssemblyString(ir, diagnostic, context);
  REQUIRE(module);
  auto target = describeTarget("haswell");
  REQUIRE(static_cast<bool>(target));
  auto machine = createMachine(*target);
  module->setDataLayout(machine->createDataLayout());
  module->setTargetTriple(machine->getTargetTriple());
  auto linked = linkImage(ObjectEmitter(*machine).emit(*module));
  return linked ? "" : llvm::toString(linked.takeError());
}

} // namespace

TEST_CASE("wrong specs and options are errors with their place") {
  if (!canCompile())
    return;
  const nf::Engine engine = makeEngine();
  CHECK(errorOf(NF_COMPILE_FAILED, [&] {
          engine.compile("input: {shape: [N, 5], layout: nc}\naxis: 4\n", {"", "", "a.yaml"});
        }).starts_with("a.yaml:2:7: error: axis 4 is out of range"));
  CHECK(errorOf(NF_COMPILE_FAILED, [&] { engine.compile(""); }).starts_with("<spec>:"));
  CHECK(errorOf(NF_COMPILE_FAILED, [&] {
          engine.compile(spec, {"backward", "", ""});
        }) == "phase 'backward' is not one of the spec's phases: training, inference");
  CHECK(errorOf(NF_COMPILE_FAILED, [&] {
          engine.compile(spec, {"", "pentium9", ""});
        }).starts_with("unknown CPU 'pentium9'"));
}

TEST_CASE("a kernel for a CPU that this machine is not") {
  if (!canCompile())
    return;
  bool tried = false;
  for (const char *cpu : {"znver5", "skylake-avx512", "diamondrapids", "bdver4"}) {
    auto target = describeTarget(cpu);
    REQUIRE(static_cast<bool>(target));
    std::string missing;
    for (const std::string &feature : target->instructionSets())
      if (!hostHasFeature(feature))
        missing += (missing.empty() ? "" : ", ") + feature;
    if (missing.empty())
      continue;
    tried = true;
    CHECK(errorOf(NF_WRONG_MACHINE, [&] {
            makeEngine().compile(spec, {"", cpu, ""});
          }) == "kernel needs " + missing + ", which this machine lacks");
  }
  if (!tried)
    MESSAGE("SKIP: this machine has the instructions of every CPU tried");
}

TEST_CASE("a compiled kernel is saved, loaded and run, with the same bits") {
  if (!canCompile())
    return;
  const nf::Engine engine = makeEngine();
  const nf::Kernel kernel = compileInference(engine);
  const std::vector<float> y = infer(kernel, 9);
  checkInference(y);
  // As a process would that has no compiler.
  const nf::Engine other({.compilerLibrary = "/nowhere/compiler.so", .cacheDirectory = ""});
  CHECK(infer(other.load(kernel.save()), 9) == y);
}

TEST_CASE("what ranks exchange is named, and wrong calls of it are errors") {
  if (!canCompile())
    return;
  const nf::Engine engine = makeEngine();
  const std::string text = std::string(spec) + "synchronized: true\n";
  const nf::Plan moments =
      engine.compile(text, {.phase = "moments", .cpu = {}, .sourceName = {}}).plan({3});
  const nf::Kernel training =
      engine.compile(text, {.phase = "training", .cpu = {}, .sourceName = {}});
  for (const nf::Plan &plan : {moments, training.plan({3})}) {
    const nf_exchange exchange = plan.exchange();
    CHECK(exchange.dtype == NF_F32);
    CHECK(exchange.arrays == 4);
    CHECK(exchange.array_bytes == 20);
  }
  CHECK(training.argumentName(training.plan({3}).exchange().argument) == "partial_count");
  CHECK(training.role(training.plan({3}).exchange().argument) == NF_PARTIAL_MOMENTS);
  float partials[40], merged[20];
  for (int i = 0; i < 40; ++i)
    partials[i] = static_cast<float>(i % 20 < 5 ? 2 : i % 7); // counts, then the rest
  moments.merge(partials, 2, merged);
  CHECK(merged[0] == 4);
  CHECK(errorOf(NF_INVALID_ARGUMENT, [&] { moments.merge(partials, 0, merged); }) ==
        "0 ranks: expected at least 1");
  CHECK(errorOf(NF_INVALID_ARGUMENT, [&] { moments.merge(nullptr, 1, merged); }) ==
        "partials is null");
  const nf::Plan alone =
      engine.compile(spec, {.phase = "training", .cpu = {}, .sourceName = {}}).plan({3});
  CHECK(errorOf(NF_INVALID_ARGUMENT, [&] {
          alone.exchange();
        }).starts_with("phase training exchanges nothing: expected a spec with synchronized"));
  nf_exchange unsized{};
  nf_status *status = nf_plan_exchange(moments.get(), &unsized);
  CHECK(nf_status_code(status) == NF_INVALID_ARGUMENT);
  nf_status_free(status);
}

TEST_CASE("several threads compile at once") {
  if (!canCompile())
    return;
  const std::vector<std::byte> expected = compileInference(makeEngine()).save();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int round = 0; round < 3; ++round) {
        const nf::Engine engine = makeEngine(); // that has nothing in memory
        const nf::Kernel kernel = compileInference(engine);
        wrong += kernel.save() != expected; // the same spec gives the same bytes
        const std::vector<float> y = infer(kernel, 3);
        wrong += std::abs(y[1] - 3) > 1e-5;
        try {
          engine.compile("axis: c\n");
          ++wrong;
        } catch (const nf::Error &) {
        }
      }
    });
  for (std::thread &thread : threads)
    thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("sessions that rest are few, and found again") {
  SessionPool pool;
  std::vector<std::unique_ptr<Session>> sessions;
  const SessionPool::Kind haswell{"haswell", true}, other{"x86-64-v2", false};
  for (int i = 0; i < 9; ++i) {
    auto session = pool.take(i % 2 ? haswell : other);
    REQUIRE(bool(session));
    sessions.push_back(std::move(*session));
  }
  const Session *last = sessions.back().get();
  for (int i = 0; i < 9; ++i)
    pool.give(i % 2 ? haswell : other, std::move(sessions[static_cast<size_t>(i)]));
  CHECK(pool.resting() == SessionPool::mostResting);
  auto found = pool.take(other);
  REQUIRE(bool(found));
  CHECK(found->get() == last);
  CHECK(pool.resting() == SessionPool::mostResting - 1);
  auto unknown = pool.take({"no such cpu", false});
  CHECK_FALSE(bool(unknown));
  llvm::consumeError(unknown.takeError());
}

TEST_CASE("a kernel's key on disk has all that its code may depend on") {
  char folder[] = "/tmp/normforge-key-XXXXXX";
  REQUIRE(mkdtemp(folder));
  nf::Engine::Options options;
  options.cacheDirectory = folder;
  const std::string head = "name: keyed\ninput: {shape: [N, 4], layout: nc}\naxis: c\n";
  auto keys = [&](CacheKind kind) {
    std::vector<std::string> found;
    std::string problem;
    for (const auto &file : DiskCache(folder, 1 << 30).list(problem))
      if (file.kind == kind && file.entry)
        found.push_back(file.entry->key);
    CHECK(problem.empty());
    return found;
  };
  // The phases that a spec lists, in whatever order: what one keeps for another depends on both.
  for (const char *phases : {"[inference]", "[inference, training]", "[training, inference]"})
    nf::Engine(options).compile(head + "phases: " + phases + "\n", {"inference", "", ""});
  CHECK(keys(CacheKind::Kernel).size() == 2);
  CHECK(keys(CacheKind::Request).size() == 3);
  // "" is this machine, as NULL and native are.
  const std::string text = head + "phases: [training]\n";
  for (const char *cpu : {"", "native"}) {
    nf_engine *engine = nullptr;
    nf_kernel *kernel = nullptr;
    nf_engine_options engineOptions = {};
    engineOptions.struct_size = sizeof engineOptions;
    engineOptions.cache_directory = folder;
    nf_compile_options compileOptions = {};
    compileOptions.struct_size = sizeof compileOptions;
    compileOptions.cpu = cpu;
    REQUIRE(nf_engine_create(&engineOptions, &engine) == nullptr);
    REQUIRE(nf_compile(engine, text.data(), text.size(), &compileOptions, &kernel) == nullptr);
    nf_kernel_release(kernel);
    nf_engine_release(engine);
  }
  for (const std::string &key : keys(CacheKind::Request))
    CHECK_MESSAGE(key.find(hostIdentity()) != std::string::npos, key);
  // The compiler's files are known by their build IDs.
  for (const std::string &key : keys(CacheKind::Kernel)) {
    CHECK(key.find("libnormforge-compiler.so") != std::string::npos);
    CHECK(key.find(" build-id ") != std::string::npos);
    CHECK_MESSAGE(key.find(" modified ") == std::string::npos, key);
  }
  std::filesystem::remove_all(folder);
}

TEST_CASE("perf finds the names of kernels in its map") {
  if (!canCompile())
    return;
  const nf::Engine engine({.perfMap = true, .cacheDirectory = ""});
  const nf::Kernel kernel = compileInference(engine);
  const std::string path = "/tmp/perf-" + std::to_string(getpid()) + ".map";
  std::ifstream file(path);
  std::string line;
  bool found = false;
  while (std::getline(file, line))
    found = found || line.find(std::string(kernel.name()) + "_inference_") != std::string::npos;
  CHECK(found);
  std::remove(path.c_str());
}

TEST_CASE("code that is not self-contained is refused") {
  CHECK(refusal("define void @f() nounwind { ret void }") == "");
  CHECK(refusal("declare void @g()\n"
                "define void @f() nounwind { call void @g() ret void }")
            .ends_with("undefined symbol g"));
  CHECK(refusal("@v = global i32 1\n"
                "define i32 @f() nounwind { %x = load i32, ptr @v ret i32 %x }")
            .ends_with("section .data"));
  CHECK(refusal("define void @f(ptr %p) nounwind {\n"
                "  %a = alloca [20000 x i8]\n"
                "  %v = load volatile i8, ptr %p\n"
                "  store volatile i8 %v, ptr %a\n"
                "  ret void\n}")
            .find("bytes of stack, more than the 16384 that a kernel may") != std::string::npos);
}
