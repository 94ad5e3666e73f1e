// The runtime alone: plans, executors and the C API, with machine code written by hand.
#include "tests/unit/SampleArtifact.h"

#include "compiler/machine/Machine.h"
#include "normforge/normforge.hpp"
#include "normforge/openmp.h"
#include "runtime/artifact/Artifact.h"
#include "runtime/artifact/Checksum.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "runtime/kernel/Plan.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

using namespace normforge;

namespace {

nf::Kernel load(const nf::Engine &engine, const Artifact &artifact) {
  return engine.load(serialize(artifact));
}

/// The message of the error that `body` throws.
template <typename Body> std::string errorOf(nf_code code, Body body) {
  try {
    body();
  } catch (const nf::Error &error) {
    CHECK(error.code() == code);
    return error.what();
  }
  return "no error";
}

struct Arrays {
  std::vector<float> x, y, z;
  explicit Arrays(size_t n) : x(n), y(n, 0), z(n, -1) { std::iota(x.begin(), x.end(), 1.0f); }
  std::vector<void *> args() { return {x.data(), y.data(), z.data()}; }
  /// Every task of both stages ran once, in the stages' order.
  bool isRight(double scalar) const {
    for (size_t i = 0; i < x.size(); ++i)
      if (y[i] != x[i] || z[i] != x[x.size() - 1 - i] + static_cast<float>(scalar))
        return false;
    return true;
  }
};

/// A host's own threads: a few, taking odd-sized ranges from both ends.
struct HostThreads {
  std::atomic<int> calls{0};
  static void parallelFor(void *user, uint64_t tasks, nf_body_fn *body, void *data) {
    static_cast<HostThreads *>(user)->calls++;
    std::mutex mutex;
    uint64_t next = 0, step = 0;
    auto work = [&] {
      for (;;) {
        uint64_t first, last;
        {
          std::lock_guard lock(mutex);
          first = next;
          last = next = std::min(tasks, next + 1 + (step++ * 7) % 5);
        }
        if (first == last)
          return;
        body(data, first, last);
      }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i)
      threads.emplace_back(work);
    for (std::thread &thread : threads)
      thread.join();
  }
  nf_executor executor() { return {sizeof(nf_executor), parallelFor, this}; }
};

bool canRunSample() {
  if (hostArchitecture() == "x86_64")
    return true;
  MESSAGE("SKIP: the machine code of this test is x86-64's");
  return false;
}

} // namespace

TEST_CASE("the host is described") {
  CHECK(!hostHasFeature("no-such-feature"));
  CHECK(!hostHasFeature(""));
  CacheSizes caches = hostCaches();
  CHECK(caches.l1 >= 8 << 10);
  CHECK(caches.l2 >= caches.l1);
  CHECK(caches.l3Threads >= 1);
  CHECK(!hostCpuName().empty());
#if defined(__x86_64__)
  CHECK(hostHasFeature("sse2"));
  // The compiler's own run-time library says the same.
  CHECK(hostHasFeature("avx") == bool(__builtin_cpu_supports("avx")));
  CHECK(hostHasFeature("avx2") == bool(__builtin_cpu_supports("avx2")));
  CHECK(hostHasFeature("fma") == bool(__builtin_cpu_supports("fma")));
  CHECK(hostHasFeature("bmi2") == bool(__builtin_cpu_supports("bmi2")));
  CHECK(hostHasFeature("avx512f") == bool(__builtin_cpu_supports("avx512f")));
  CHECK(hostHasFeature("avx512bw") == bool(__builtin_cpu_supports("avx512bw")));
  CHECK(hostHasFeature("avx512vl") == bool(__builtin_cpu_supports("avx512vl")));
  CHECK(hostHasFeature("avx512bf16") == bool(__builtin_cpu_supports("avx512bf16")));
#endif
}

TEST_CASE("this machine has every feature that its own kernels ask for") {
  auto target = describeTarget("native");
  if (!target) {
    MESSAGE("SKIP: " << llvm::toString(target.takeError()));
    return;
  }
  for (const std::string &feature : target->instructionSets()) {
    CAPTURE(feature);
    CHECK(hostHasFeature(feature));
  }
}

TEST_CASE("kernels for other machines are refused") {
  nf::Engine engine;
  Artifact artifact = sample();
  artifact.triple = "riscv64-unknown-linux-gnu";
  std::string host(hostArchitecture());
  CHECK(errorOf(NF_WRONG_MACHINE, [&] {
          load(engine, artifact);
        }).find("kernel is code for riscv64; this machine is ") == 0);
  artifact.triple = host + "-pc-linux-gnu";
  artifact.requiredFeatures = {"avx9000f"};
  CHECK(errorOf(NF_WRONG_MACHINE, [&] { load(engine, artifact); }) ==
        "kernel needs avx9000f, which this machine lacks");
  artifact.abiVersion = 7;
  CHECK(errorOf(NF_BAD_ARTIFACT, [&] { load(engine, artifact); }) ==
        "kernel has ABI version 7; this library runs 1");
  CHECK(errorOf(NF_BAD_ARTIFACT, [&] { engine.load({}); }) ==
        "these bytes are not a Normforge kernel");
}

TEST_CASE("a kernel describes itself") {
  if (!canRunSample())
    return;
  nf::Engine engine;
  nf::Kernel kernel = load(engine, sample());
  CHECK(kernel.name() == "sample");
  CHECK(kernel.phase() == NF_INFERENCE);
  CHECK(kernel.cpu() == "x86-64");
  REQUIRE(kernel.argumentCount() == 3);
  CHECK(kernel.argumentName(2) == "z");
  CHECK(kernel.argumentName(3) == "");
  CHECK(kernel.argumentDType(0) == NF_F32);
  CHECK(kernel.argumentDType(3) == NF_NO_DTYPE);
  CHECK(!kernel.isWritten(0));
  CHECK(kernel.isWritten(1));
  CHECK(kernel.findArgument("z", true) == 2);
  CHECK(kernel.findArgument("z", false) == NF_NOT_FOUND);
  CHECK(nf_kernel_may_alias(kernel.get(), 2, 0) == 1);
  CHECK(nf_kernel_may_alias(kernel.get(), 2, 1) == 0);
  CHECK(nf_kernel_may_alias(kernel.get(), 9, 0) == 0);
  CHECK(kernel.role(0) == NF_DATA);
  CHECK(kernel.role(2) == NF_STATE);
  CHECK(kernel.role(3) == NF_NO_ROLE);
  CHECK(kernel.old(2) == 0);
  CHECK(kernel.old(1) == NF_NOT_FOUND);
  CHECK(kernel.old(3) == NF_NOT_FOUND);
  CHECK(kernel.sizeCount() == 1);
  CHECK(kernel.sizeName(0) == "N");
  CHECK(kernel.scalarCount() == 1);
  CHECK(kernel.scalarName(0) == "epsilon");
  CHECK(nf_kernel_variant_count(kernel.get()) == 2);
  CHECK(kernel.schedule(1) == "large");
  CHECK(kernel.save() == serialize(sample()));
  CHECK(engine.load(kernel.save()).name() == "sample");
}

TEST_CASE("a plan checks its sizes") {
  if (!canRunSample())
    return;
  nf::Engine engine;
  nf::Kernel kernel = load(engine, sample());
  auto error = [&](std::initializer_list<int64_t> sizes) {
    return errorOf(NF_INVALID_ARGUMENT, [&] { kernel.plan(sizes); });
  };
  CHECK(error({}) == "kernel 'sample' takes 1 size (N); 0 given");
  CHECK(error({1, 2}) == "kernel 'sample' takes 1 size (N); 2 given");
  CHECK(error({-3}) == "size N is -3; expected at least 0");
  CHECK(error({INT64_MAX / 2}) == "sizes are too large: the bytes of 'x' do not fit in 63 bits");
  CHECK(error({INT64_MAX / 8 + 1}) ==
        "sizes are too large: the bytes of the workspace do not fit in 63 bits");
  nf_plan *plan = reinterpret_cast<nf_plan *>(&kernel);
  nf_status *status = nf_plan_create(kernel.get(), nullptr, 1, &plan);
  CHECK(nf_status_code(status) == NF_INVALID_ARGUMENT);
  CHECK(plan == nullptr);
  nf_status_free(status);

  nf::Plan small = kernel.plan({100}), large = kernel.plan({101});
  CHECK(small.variant() == 0);
  CHECK(small.workspaceBytes() == 0);
  CHECK(large.variant() == 1);
  CHECK(large.workspaceBytes() == 808);
  CHECK(large.bytes(1) == 404);
  REQUIRE(large.shape(1).size() == 1);
  CHECK(large.shape(1)[0] == 101);
  CHECK(large.shape(3).empty());
  REQUIRE(large.stageCount() == 2);
  CHECK(large.tasks(1) == 101);
  CHECK(nf_plan_stage_bytes_per_task(large.get(), 1) == 4096);
  CHECK(std::string(nf_plan_stage_name(large.get(), 1)) == "mirror");
  CHECK(!nf_plan_stage_function(large.get(), 2));
  CHECK(nf_plan_sizes(large.get())[0] == 101);
}

TEST_CASE("a size of 0 does nothing, or is an error where it is constrained") {
  if (!canRunSample())
    return;
  nf::Engine engine;
  nf::Plan plan = load(engine, sample()).plan({0});
  CHECK(plan.stageCount() == 0);
  CHECK(plan.workspaceBytes() == 0);
  void *args[3] = {};
  double epsilon = 1;
  plan.run(args, {&epsilon, 1});
  Artifact constrained = sample();
  constrained.phase = "of another time";
  constrained.constraints = {{0, 1, 1}, {0, 0, 4}};
  nf::Kernel training = load(engine, constrained);
  CHECK(training.phase() == NF_OTHER_PHASE);
  CHECK(errorOf(NF_INVALID_ARGUMENT, [&] { training.plan({0}); }) ==
        "size N is 0; expected at least 1");
  CHECK(errorOf(NF_INVALID_ARGUMENT, [&] { training.plan({6}); }) ==
        "size N is 6; expected a multiple of 4");
  CHECK(errorOf(NF_INVALID_ARGUMENT, [&] { training.plan({-4}); }) ==
        "size N is -4; expected at least 1");
  CHECK(training.plan({8}).stageCount() == 2);
}

TEST_CASE("a number is in its range, also as it is rounded") {
  const Scalar epsilon{"e", DType::F32, 0, INFINITY, true}, share{"a", DType::F32, 0, 1},
      count{"n", DType::F64, 1, INFINITY, false, /*whole=*/true},
      below{"b", DType::F64, -INFINITY, 2};
  CHECK(problemOf(epsilon, 1e-5).empty());
  CHECK(problemOf(epsilon, 0) == "e: expected a number above 0, found 0");
  CHECK(problemOf(epsilon, 1e-60) == "e: expected a number in the range of f32, found 1e-60");
  CHECK(problemOf(epsilon, 1e60) == "e: expected a number in the range of f32, found 1e+60");
  CHECK(problemOf(epsilon, NAN) == "e: expected a number that is finite, found nan");
  CHECK(problemOf(share, 0).empty());
  CHECK(problemOf(share, 1).empty());
  CHECK(problemOf(share, 1.5) == "a: expected a number from 0 to 1, found 1.5");
  CHECK(problemOf(count, 1e60).empty());
  CHECK(problemOf(count, 0.5) == "n: expected a whole number of at least 1, found 0.5");
  CHECK(problemOf(count, 2.5) == "n: expected a whole number of at least 1, found 2.5");
  CHECK(problemOf(count, 3).empty());
  CHECK(problemOf(below, 3) == "b: expected a number of at most 2, found 3");
  CHECK(problemOf(below, INFINITY) == "b: expected a number that is finite, found inf");
}

TEST_CASE("a call checks its pointers") {
  if (!canRunSample())
    return;
  nf::Engine engine;
  nf::Plan plan = load(engine, sample()).plan({200});
  Arrays arrays(200);
  std::vector<void *> args = arrays.args();
  double epsilon = 1;
  nf::Workspace workspace = plan.makeWorkspace();
  auto error = [&](std::span<void *const> a, size_t scalars, void *w) {
    return errorOf(NF_INVALID_ARGUMENT, [&] { plan.run(a, {&epsilon, scalars}, w); });
  };
  auto with = [&](size_t i, void *pointer) {
    std::vector<void *> changed = args;
    changed[i] = pointer;
    return error(changed, 1, workspace.get());
  };
  CHECK(error({args.data(), 2}, 1, workspace.get()) ==
        "kernel 'sample' takes 3 arguments (x, y, z); 2 given");
  CHECK(error(args, 0, workspace.get()) == "kernel 'sample' takes 1 scalar (epsilon); 0 given");
  CHECK(with(0, nullptr) == "argument 0 ('x', read) is null");
  CHECK(with(1, reinterpret_cast<char *>(arrays.y.data()) + 2) ==
        "argument 1 ('y', written) is not aligned to 4 bytes");
  CHECK(error(args, 1, static_cast<char *>(workspace.get()) + 32) ==
        "the workspace is not aligned to 64 bytes");
  CHECK(with(1, arrays.x.data()) == "argument 1 ('y', written) overlaps argument 0 ('x', read)");
  CHECK(with(1, arrays.z.data()) == "argument 2 ('z', written) overlaps argument 1 ('y', written)");
  CHECK(with(2, arrays.x.data() + 1) == "argument 2 ('z', written) overlaps argument 0 ('x', "
                                        "read); they may only be the same buffer as a whole");
  CHECK(with(0, workspace.get()) == "argument 0 ('x', read) overlaps the workspace");
  for (double wrong : {0.0, -1.0, double(NAN), double(INFINITY), 1e-60, 1e60}) {
    epsilon = wrong;
    CAPTURE(wrong);
    CHECK(error(args, 1, workspace.get()).starts_with("epsilon: expected a number "));
  }
  epsilon = 1;
  CHECK(arrays.z[0] == -1); // nothing was written

  args[2] = arrays.x.data(); // in place, as the kernel allows
  plan.run(args, {&epsilon, 1}, workspace.get());
  CHECK(arrays.x[0] == 201);
  CHECK(arrays.x[199] == 2);
}

TEST_CASE("every executor runs each task once and keeps the barrier") {
  if (!canRunSample())
    return;
  nf::Engine engine;
  nf::Kernel kernel = load(engine, sample());
  double epsilon = 0.5;
  for (int64_t n : {1, 2, 3, 15, 16, 17, 100, 101, 128, 1000, 4099}) {
    CAPTURE(n);
    nf::Plan plan = kernel.plan({n});
    nf::Workspace workspace = plan.makeWorkspace();
    auto isRight = [&](const nf_executor *executor, void *w) {
      Arrays arrays(static_cast<size_t>(n));
      plan.run(arrays.args(), {&epsilon, 1}, w, executor);
      return arrays.isRight(epsilon);
    };
    CHECK(isRight(nullptr, workspace.get()));
    CHECK(isRight(nullptr, nullptr));
    nf_executor none = {sizeof none, nullptr, nullptr};
    CHECK(isRight(&none, workspace.get()));
    HostThreads threads;
    nf_executor host = threads.executor();
    CHECK(isRight(&host, workspace.get()));
    CHECK(threads.calls == (n > 100 ? 2 : 0)); // small work stays on the caller
    for (int count : {0, 1, 2, 3, 7}) {
      nf_executor openmp = nf_openmp_executor(count);
      CHECK(isRight(&openmp, workspace.get()));
    }

    Arrays arrays(static_cast<size_t>(n)); // a host that schedules by itself
    std::vector<void *> args = arrays.args();
    CHECK(nf_plan_check(plan.get(), args.data(), 3, &epsilon, 1, workspace.get()) == nullptr);
    nf_call call = {sizeof call,    0, args.data(), nf_plan_sizes(plan.get()), &epsilon,
                    workspace.get()};
    for (size_t s = 0; s < plan.stageCount(); ++s)
      for (uint64_t t = plan.tasks(s); t-- > 0;)
        nf_plan_stage_function(plan.get(), s)(&call, t, t + 1);
    CHECK(arrays.isRight(epsilon));
  }
}

TEST_CASE("a call that a host makes by itself is checked as a whole") {
  if (!canRunSample())
    return;
  nf::Engine engine;
  const nf::Plan plan = load(engine, sample()).plan({100});
  Arrays arrays(100);
  std::vector<void *> args = arrays.args();
  const nf::Workspace workspace = plan.makeWorkspace();
  const double epsilon = 0.5;
  const nf_call right = {sizeof right, 0, args.data(), plan.sizes(), &epsilon, workspace.get()};
  plan.check(right);
  nf_call longer = right; // of a later version
  longer.struct_size = 4096;
  plan.check(longer);
  auto problem = [&](auto change) {
    nf_call wrong = right;
    change(wrong);
    try {
      plan.check(wrong);
    } catch (const nf::Error &error) {
      CHECK(error.code() == NF_INVALID_ARGUMENT);
      return std::string(error.what());
    }
    return std::string();
  };
  const int64_t otherSizes[] = {101};
  const double noEpsilon = 0;
  CHECK(problem([](nf_call &c) { c.struct_size = 0; }) ==
        "struct_size of the call is 0; expected at least 40");
  CHECK(problem([](nf_call &c) { c.struct_size = 39; }) ==
        "struct_size of the call is 39; expected at least 40");
  CHECK(problem([](nf_call &c) { c.flags = 1; }) == "flags of the call are 1; expected 0");
  CHECK(problem([](nf_call &c) { c.sizes = nullptr; }) ==
        "sizes of the call are not those that the plan was made for");
  CHECK(problem([&](nf_call &c) { c.sizes = otherSizes; }) ==
        "sizes of the call are not those that the plan was made for");
  CHECK(problem([](nf_call &c) { c.args = nullptr; }) ==
        "the list of arguments or of scalars is null");
  CHECK(problem([&](nf_call &c) { c.scalars = &noEpsilon; }) ==
        "epsilon: expected a number above 0, found 0");
  if (plan.workspaceBytes() > 0)
    CHECK(problem([](nf_call &c) {
            c.workspace = nullptr;
          }).starts_with("the call has no workspace; the plan needs one of "));
}

TEST_CASE("an array that reaches beyond the end of memory is refused") {
  if (!canRunSample())
    return;
  nf::Engine engine;
  const nf::Plan plan = load(engine, sample()).plan({100});
  Arrays arrays(100);
  std::vector<void *> args = arrays.args();
  args[0] = reinterpret_cast<void *>(UINTPTR_MAX - 63);
  const double epsilon = 0.5;
  try {
    plan.check(args, {&epsilon, 1});
    FAIL("it wraps");
  } catch (const nf::Error &error) {
    CHECK(std::string(error.what()).find("reaches beyond the end of memory") != std::string::npos);
  }
}

TEST_CASE("structs without their size are refused") {
  if (!canRunSample())
    return;
  nf_executor executor = {};
  nf_allocator allocator = {};
  nf_engine_options options = {};
  options.struct_size = sizeof options;
  auto codeOf = [](nf_status *status) {
    const nf_code code = nf_status_code(status);
    nf_status_free(status);
    return code;
  };
  nf_engine *made = nullptr;
  options.executor = &executor;
  CHECK(codeOf(nf_engine_create(&options, &made)) == NF_INVALID_ARGUMENT);
  options.executor = nullptr;
  options.allocator = &allocator;
  CHECK(codeOf(nf_engine_create(&options, &made)) == NF_INVALID_ARGUMENT);
  allocator.struct_size = sizeof allocator;
  CHECK(codeOf(nf_engine_create(&options, &made)) == NF_OK);
  nf_engine_release(made);

  nf::Engine engine;
  const nf::Plan plan = load(engine, sample()).plan({100});
  Arrays arrays(100);
  std::vector<void *> args = arrays.args();
  const double epsilon = 0.5;
  const auto run = [&] {
    return codeOf(nf_run(plan.get(), args.data(), args.size(), &epsilon, 1, nullptr, &executor));
  };
  CHECK(run() == NF_INVALID_ARGUMENT);
  executor.struct_size = 12; // within a field
  CHECK(run() == NF_INVALID_ARGUMENT);
  options.allocator = nullptr;
  options.struct_size = 12;
  CHECK(codeOf(nf_engine_create(&options, &made)) == NF_INVALID_ARGUMENT);
  executor.struct_size = sizeof executor;
  CHECK(run() == NF_OK);
}

TEST_CASE("the OpenMP adapter covers every range and stays on the caller for one thread") {
  struct Seen {
    std::mutex mutex;
    std::vector<int> times;
    bool onOtherThread = false;
    std::thread::id caller = std::this_thread::get_id();
  };
  for (uint64_t tasks : {0, 1, 2, 5, 64, 1001})
    for (int threads : {0, 1, 2, 3, 16}) {
      Seen seen;
      seen.times.resize(tasks);
      nf_executor executor = nf_openmp_executor(threads);
      executor.parallel_for(
          executor.user, tasks,
          [](void *data, uint64_t first, uint64_t last) {
            auto &seen = *static_cast<Seen *>(data);
            std::lock_guard lock(seen.mutex);
            seen.onOtherThread |= std::this_thread::get_id() != seen.caller;
            for (uint64_t t = first; t < last; ++t)
              seen.times[t]++;
          },
          &seen);
      CHECK(seen.times == std::vector<int>(tasks, 1));
      if (threads == 1 || tasks <= 1)
        CHECK(!seen.onOtherThread);
    }
}

TEST_CASE("a missing compiler library is a clear error") {
  nf::Engine engine({.compilerLibrary = "/nowhere/libnormforge-compiler.so", .cacheDirectory = ""});
  std::string text = errorOf(NF_NO_COMPILER, [&] { engine.compile("name: a"); });
  CHECK(text.find("the compiler library cannot be opened; tried:") == 0);
  CHECK(text.find("/nowhere/libnormforge-compiler.so") != std::string::npos);
  nf::Engine other(
      {.compilerLibrary = "libm.so.6", .cacheDirectory = ""}); // a library, but not this one
  text = errorOf(NF_NO_COMPILER, [&] { other.compile("name: a"); });
  CHECK(text.find("libm.so.6: not a compiler library of this version: it lacks "
                  "nf_compiler_compile_v4") != std::string::npos);
}

TEST_CASE("wrong calls of the C API are errors, not crashes") {
  auto isInvalid = [](nf_status *status) {
    bool result =
        nf_status_code(status) == NF_INVALID_ARGUMENT && std::strlen(nf_status_message(status)) > 0;
    nf_status_free(status);
    return result;
  };
  CHECK(std::string(nf_version()) == "0.1.0");
  CHECK(nf_abi_version() == NF_ABI_VERSION);
  CHECK(nf_status_code(nullptr) == NF_OK);
  CHECK(std::string(nf_status_message(nullptr)) == "");
  nf_status_free(nullptr);
  nf_engine_release(nullptr);
  nf_kernel_release(nullptr);
  nf_plan_release(nullptr);
  CHECK(isInvalid(nf_engine_create(nullptr, nullptr)));
  nf_engine_options unset = {};
  nf_engine *none = nullptr;
  CHECK(isInvalid(nf_engine_create(&unset, &none)));
  nf::Engine engine;
  nf_kernel *kernel = nullptr;
  CHECK(isInvalid(nf_compile(nullptr, "", 0, nullptr, &kernel)));
  CHECK(isInvalid(nf_compile(engine.get(), nullptr, 1, nullptr, &kernel)));
  CHECK(isInvalid(nf_compile(engine.get(), "", 0, nullptr, nullptr)));
  CHECK(isInvalid(nf_kernel_load(nullptr, "", 0, &kernel)));
  CHECK(isInvalid(nf_kernel_load(engine.get(), nullptr, 1, &kernel)));
  nf_plan *plan = nullptr;
  CHECK(isInvalid(nf_plan_create(nullptr, nullptr, 0, &plan)));
  CHECK(isInvalid(nf_run(nullptr, nullptr, 0, nullptr, 0, nullptr, nullptr)));
}

TEST_CASE("OpenMP's executor answers requests for no threads and for ten thousand") {
  for (int threads : {-3, 0, 1, 10000}) {
    const nf_executor executor = nf_openmp_executor(threads);
    CHECK(reinterpret_cast<intptr_t>(executor.user) >= 0);
    CHECK(reinterpret_cast<intptr_t>(executor.user) <= 4 * omp_get_num_procs());
    std::vector<std::atomic<int>> done(20000);
    executor.parallel_for(
        executor.user, done.size(),
        [](void *data, uint64_t first, uint64_t last) {
          for (uint64_t i = first; i < last; ++i)
            ++(*static_cast<std::vector<std::atomic<int>> *>(data))[i];
        },
        &done);
    CHECK(std::all_of(done.begin(), done.end(), [](const auto &count) { return count == 1; }));
  }
}

TEST_CASE("engines, kernels and plans are shared by threads") {
  if (!canRunSample())
    return;
  auto engine = std::make_unique<nf::Engine>();
  auto kernel = std::make_unique<nf::Kernel>(load(*engine, sample()));
  auto shared = std::make_unique<nf::Plan>(kernel->plan({500}));
  std::vector<std::byte> bytes = kernel->save();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, engine = *engine, kernel = *kernel, plan = *shared, t] {
      for (int round = 0; round < 50; ++round) {
        double epsilon = 1 + t + round;
        auto run = [&](const nf::Plan &plan) {
          Arrays arrays(static_cast<size_t>(plan.shape(0)[0]));
          nf::Workspace workspace = plan.makeWorkspace();
          plan.run(arrays.args(), {&epsilon, 1}, workspace.get());
          wrong += !arrays.isRight(epsilon);
        };
        run(plan);
        run(kernel.plan({1 + t * 50 + round}));
        run(engine.load(bytes).plan({round + 1})); // the plan keeps its kernel
        try {
          nf::Engine({.compilerLibrary = "/nowhere/compiler.so"}).compile("");
          wrong++;
        } catch (const nf::Error &) {
        }
      }
    });
  engine.reset(); // the threads hold their own references
  kernel.reset();
  shared.reset();
  for (std::thread &thread : threads)
    thread.join();
  CHECK(wrong == 0);
}
