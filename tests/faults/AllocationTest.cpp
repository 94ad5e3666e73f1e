// Every allocation fails, once alone and once with all that follow: the answer is an error or the
// result, nothing is lost, and the next try works. Where the runtime alone is at work, every one of
// them; where the compiler is, a sample.
#include "tests/faults/Host.h"
#include "tests/faults/Shim.h"

#include <doctest/doctest.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

using namespace normforge::test;

namespace {

const char *const packPath = NORMFORGE_BUILD_DIR "/examples/resnet50.nfk";

/// Fails each allocation that `scenario` makes, in turn; `prepare` runs before each try. It must
/// free all that it made, and close all that it opened.
void everyAllocation(
    const char *name, const std::function<Outcome()> &scenario,
    const std::function<void()> &prepare = [] {}) {
  prepare();
  const Outcome whole = scenario(); // what is made once a process is made now
  const int before = descriptors();
  INFO(std::string(name));
  REQUIRE_MESSAGE(whole.isOk(), std::string(whole.message));
  long failures = 0, errors = 0;
  for (int forever : {0, 1})
    for (long n = 1;; ++n) {
      prepare();
      shim_arm(SHIM_ALLOCATION, n, forever, 0);
      const Outcome outcome = scenario();
      const long live = shim_live();
      const long failed = shim_disarm();
      if (failed == 0)
        break;
      failures += failed;
      errors += !outcome.isOk();
      INFO("allocation ", n, forever ? " and all after it" : "", ": ",
           std::string(outcome.message));
      CHECK((outcome.isOk() || outcome.code == NF_OUT_OF_MEMORY));
      CHECK(live <= 0); // below: what was made before this is let go of
      CHECK(n < 100000);
      if (n % 7 == 0)
        CHECK(scenario().isOk());
    }
  CHECK(scenario().isOk());
  CHECK(descriptors() == before);
  CHECK(noChildren());
  std::printf("%s: %ld allocations failed, %ld errors\n", name, failures, errors);
}

/// A kernel of the pack, planned and run.
struct Loaded {
  nf_engine *engine = nullptr;
  nf_pack *pack = nullptr;
  nf_kernel *kernel = nullptr;
  nf_plan *plan = nullptr;
  ~Loaded() {
    nf_plan_release(plan);
    nf_kernel_release(kernel);
    nf_pack_release(pack);
    nf_engine_release(engine);
  }
  Outcome load() { return loadFirst(packPath, &engine, &pack, &kernel); }
  Outcome makePlan() {
    const int64_t sizes[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    return outcomeOf(nf_plan_create(kernel, sizes, nf_kernel_size_count(kernel), &plan));
  }
};

} // namespace

TEST_CASE("allocations: engines, packs, kernels and plans") {
  everyAllocation("engine", [] {
    nf_engine *engine = nullptr;
    Outcome outcome = makeEngine({.cache = "/nowhere/at/all"}, &engine);
    nf_engine_release(engine);
    return outcome;
  });
  everyAllocation("pack, kernel", [] {
    Loaded loaded;
    return loaded.load();
  });
  Loaded loaded;
  REQUIRE(loaded.load().isOk());
  everyAllocation("saved and loaded kernel", [&] {
    uint8_t *bytes = nullptr;
    size_t size = 0;
    nf_kernel *copy = nullptr;
    Outcome outcome = outcomeOf(nf_kernel_save(loaded.kernel, &bytes, &size));
    if (outcome.isOk())
      outcome = outcomeOf(nf_kernel_load(loaded.engine, bytes, size, &copy));
    nf_kernel_release(copy);
    nf_bytes_free(bytes);
    return outcome;
  });
  everyAllocation("plan", [&] {
    const Outcome outcome = loaded.makePlan();
    nf_plan_release(loaded.plan);
    loaded.plan = nullptr;
    return outcome;
  });
  everyAllocation("error", [&] { // one whose text is what fails
    nf_plan *plan = nullptr;
    Outcome outcome = outcomeOf(nf_plan_create(loaded.kernel, nullptr, 0, &plan));
    if (outcome.code == NF_INVALID_ARGUMENT)
      outcome.code = NF_OK;
    return outcome;
  });
}

TEST_CASE("allocations: a run that takes a workspace") {
  const char *const spec = "name: run\ninput: {shape: [N, 8, 56, 56], layout: nchw}\naxis: c\n"
                           "phases: [training]\n";
  Loaded loaded;
  REQUIRE(makeEngine({.compiler = nullptr}, &loaded.engine).isOk());
  nf_compile_options options = {};
  options.struct_size = sizeof options;
  options.cpu = "x86-64-v2"; // whatever the machine, its caches are small: statistics in two stages
  REQUIRE(outcomeOf(nf_compile(loaded.engine, spec, std::strlen(spec), &options, &loaded.kernel))
              .isOk());
  const int64_t n = 64;
  REQUIRE(outcomeOf(nf_plan_create(loaded.kernel, &n, 1, &loaded.plan)).isOk());
  REQUIRE(nf_plan_workspace_bytes(loaded.plan) > 0);
  std::vector<std::vector<char>> arrays;
  std::vector<void *> args;
  for (size_t i = 0; i < nf_kernel_argument_count(loaded.kernel); ++i) {
    arrays.emplace_back(nf_plan_argument_bytes(loaded.plan, i));
    args.push_back(arrays.back().data());
  }
  everyAllocation("run", [&] {
    return outcomeOf(nf_run(loaded.plan, args.data(), args.size(), nullptr, 0, nullptr, nullptr));
  });
}

TEST_CASE("allocations: kernels compiled by another's compiler, in memory and on disk") {
  const Folder folder;
  const std::string cache = folder / "cache";
  everyAllocation("compile", [] { return compileOnce({}, "a\nquick"); });
  everyAllocation(
      "compile and keep", [&] { return compileOnce({.cache = cache.c_str()}, "a\nquick"); },
      [&] { std::filesystem::remove_all(cache); });
  everyAllocation("found on disk",
                  [&] { return compileOnce({.cache = cache.c_str()}, "a\nquick"); });
}

/// A kernel as bytes; empty where it was not compiled.
std::vector<uint8_t> savedKernel(const char *spec, Outcome &outcome) {
  std::vector<uint8_t> saved;
  nf_engine *engine = nullptr;
  nf_kernel *kernel = nullptr;
  uint8_t *bytes = nullptr;
  size_t size = 0;
  outcome = makeEngine({.compiler = nullptr}, &engine);
  if (outcome.isOk())
    outcome = outcomeOf(nf_compile(engine, spec, std::strlen(spec), nullptr, &kernel));
  shim_disarm();
  if (outcome.isOk() && outcomeOf(nf_kernel_save(kernel, &bytes, &size)).isOk())
    saved.assign(bytes, bytes + size);
  nf_bytes_free(bytes);
  nf_kernel_release(kernel);
  nf_engine_release(engine);
  return saved;
}

/// LLVM and MLIR check few allocations: in this process that is the host's end, and documented.
/// Forbidden are another kernel, a hang, and anything but an error or a signal of LLVM's own.
TEST_CASE("allocations: a sample of those of a compilation, in this process") {
  const char *const spec = "name: sampled\ninput: {shape: [N, 16, 9, 9], layout: nchw}\naxis: c\n"
                           "phases: [training]\n";
  // The library is opened and has compiled before: what fails then is a compilation's own.
  Outcome outcome;
  const std::vector<uint8_t> whole = savedKernel(spec, outcome);
  REQUIRE(outcome.isOk());
  nf_engine *engine = nullptr;
  nf_kernel *kernel = nullptr;
  REQUIRE(makeEngine({.compiler = nullptr}, &engine).isOk());
  shim_arm(SHIM_ALLOCATION, 0, 0, 0);
  REQUIRE(outcomeOf(nf_compile(engine, spec, std::strlen(spec), nullptr, &kernel)).isOk());
  const long all = shim_calls();
  shim_disarm();
  nf_kernel_release(kernel);
  nf_engine_release(engine);
  const char *given = std::getenv("NORMFORGE_TEST_SEED");
  const uint64_t seed = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("NORMFORGE_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  enum { SameKernel = 10, OtherKernel, Error };
  int errors = 0, results = 0, ended = 0;
  for (int i = 0; i < 60; ++i) {
    const long n = 1 + static_cast<long>(random() % static_cast<uint64_t>(all));
    const int forever = i % 2;
    const Ending ending = inChild(30, [&] {
      Outcome found;
      shim_arm(SHIM_ALLOCATION, n, forever, 0);
      const std::vector<uint8_t> saved = savedKernel(spec, found);
      return !found.isOk() ? Error : saved == whole ? SameKernel : OtherKernel;
    });
    INFO("allocation ", n, " of ", all, forever ? " and all after it" : "");
    CHECK_FALSE(ending.timedOut);
    CHECK((ending.signal != 0 || ending.status == SameKernel || ending.status == Error));
    results += ending.status == SameKernel;
    errors += ending.status == Error;
    ended += ending.signal != 0;
  }
  std::printf("a compilation's %ld allocations, 60 failed: %d errors, %d results, %d ends\n", all,
              errors, results, ended);
}

TEST_CASE("allocations: a compilation in a child never ends the host") {
  const char *const spec = "name: sampled\ninput: {shape: [N, 16, 9, 9], layout: nchw}\naxis: c\n";
  everyAllocation("compile in a child", [] { return compileOnce({.inChild = true}, "a\nquick"); });
  const Settings real{.compiler = nullptr, .inChild = true};
  const Outcome outcome = compileOnce(real, spec);
  CHECK_MESSAGE(outcome.isOk(), std::string(outcome.message));
}
