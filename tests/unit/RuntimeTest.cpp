// The runtime alone: size expressions, the artifact's bytes, plans, executors and the C API, with
// machine code written by hand.
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

// Stage `count` at 0:     y[t] += x[t]
// Stage `mirror` at 0x30: z[t] = y[N-1-t] + (float)scalars[0]
// so that a task run twice, left out, or run before the barrier changes z. x86-64:
//   count:  mov rax,[rdi+8]; mov rcx,[rax]; mov r8,[rax+8]
//   0:      cmp rsi,rdx; jae 1f; movss xmm0,[rcx+rsi*4]; addss xmm0,[r8+rsi*4]
//           movss [r8+rsi*4],xmm0; inc rsi; jmp 0b
//   1:      ret
//   mirror: mov rax,[rdi+8]; mov r8,[rax+8]; mov r9,[rax+16]; mov r10,[rdi+16]; mov r10,[r10]
//           mov r11,[rdi+24]; cvtsd2ss xmm1,[r11]
//   0:      cmp rsi,rdx; jae 1f; mov rcx,r10; sub rcx,rsi; movss xmm0,[r8+rcx*4-4]
//           addss xmm0,xmm1; movss [r9+rsi*4],xmm0; inc rsi; jmp 0b
//   1:      ret
const uint8_t code[] = {
    0x48, 0x8b, 0x47, 0x08, 0x48, 0x8b, 0x08, 0x4c, 0x8b, 0x40, 0x08, 0x48, 0x39, 0xd6, 0x73, 0x16,
    0xf3, 0x0f, 0x10, 0x04, 0xb1, 0xf3, 0x41, 0x0f, 0x58, 0x04, 0xb0, 0xf3, 0x41, 0x0f, 0x11, 0x04,
    0xb0, 0x48, 0xff, 0xc6, 0xeb, 0xe5, 0xc3, 0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x48, 0x8b, 0x47, 0x08, 0x4c, 0x8b, 0x40, 0x08, 0x4c, 0x8b, 0x48, 0x10, 0x4c, 0x8b, 0x57, 0x10,
    0x4d, 0x8b, 0x12, 0x4c, 0x8b, 0x5f, 0x18, 0xf2, 0x41, 0x0f, 0x5a, 0x0b, 0x48, 0x39, 0xd6, 0x73,
    0x1c, 0x4c, 0x89, 0xd1, 0x48, 0x29, 0xf1, 0xf3, 0x41, 0x0f, 0x10, 0x44, 0x88, 0xfc, 0xf3, 0x0f,
    0x58, 0xc1, 0xf3, 0x41, 0x0f, 0x11, 0x04, 0xb1, 0x48, 0xff, 0xc6, 0xeb, 0xdf, 0xc3};

const SizeExpr N = SizeExpr::size(0);

/// x, y, z of shape [N]. Up to N = 100 its tasks are small; above, they claim 4 KiB each and the
/// kernel takes 8 N bytes of workspace. z may be x's buffer.
Artifact sample() {
  Artifact artifact;
  artifact.name = "sample";
  artifact.phase = "inference";
  artifact.triple = "x86_64-pc-linux-gnu";
  artifact.cpu = "x86-64";
  artifact.requiredFeatures = {"sse2"};
  artifact.sizes = {"N"};
  artifact.scalars = {{"epsilon", DType::F32, 0, INFINITY, /*open=*/true}};
  artifact.arguments = {{"x", Role::Data, false, DType::F32, {N}, -1, {}},
                        {"y", Role::Data, true, DType::F32, {N}, -1, {}},
                        {"z", Role::State, true, DType::F32, {N}, 0, {0}}};
  Variant small;
  small.schedule = "small";
  small.guard = {N, 100};
  auto *bytes = reinterpret_cast<const std::byte *>(code);
  small.image.bytes.assign(bytes, bytes + sizeof code);
  small.stages = {{"count", 0, N, 8}, {"mirror", 0x30, N, 8}};
  Variant large = small;
  large.schedule = "large";
  large.guard = {};
  large.workspaceBytes = N * 8;
  for (Stage &stage : large.stages)
    stage.bytesPerTask = 4096;
  artifact.variants = {small, large};
  return artifact;
}

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

TEST_CASE("size expressions fold constants") {
  SizeExpr M = SizeExpr::size(1);
  std::vector<std::string> names = {"N", "M"};
  CHECK((SizeExpr(2) + 3) == SizeExpr(5));
  CHECK((N + 0) == N);
  CHECK((SizeExpr(0) + N) == N);
  CHECK((N * 1) == N);
  CHECK((N * 0) == SizeExpr(0));
  CHECK(ceilDivide(N, 1) == N);
  CHECK(ceilDivide(SizeExpr(7), 2) == SizeExpr(4));
  CHECK((N * 4 * 8) == (N * 32));
  CHECK((SizeExpr(4) * N) == (N * 4));
  CHECK((N * 4 * M).text(names) == "N * M * 4");
  CHECK((N + 1 + 2).text(names) == "N + 3");
  CHECK(((N + 1) * 3136).text(names) == "(N + 1) * 3136");
  CHECK((N * 3136 + 16).text(names) == "N * 3136 + 16");
  CHECK(ceilDivide(N + M, M * 2).text(names) == "ceil((N + M) / (M * 2))");
  CHECK((ceilDivide(N, 16) * 64).text({}) == "ceil(size0 / 16) * 64");
  CHECK(SizeExpr(7).constant() == 7);
  CHECK(!N.constant());
}

TEST_CASE("size expressions evaluate or overflow") {
  auto at = [](const SizeExpr &expr, std::initializer_list<int64_t> sizes) {
    return expr.evaluate({sizes.begin(), sizes.size()});
  };
  SizeExpr M = SizeExpr::size(1);
  CHECK(at(ceilDivide(N, 16), {33}) == 3);
  CHECK(at(ceilDivide(N, 16), {INT64_MAX}) == INT64_MAX / 16 + 1);
  CHECK(at(N * M + 5, {6, 7}) == 47);
  CHECK(!at(N * 2, {INT64_MAX}));
  CHECK(!at(N + 1, {INT64_MAX}));
  CHECK(!at(N * M, {INT64_MAX / 2, 3}));
  CHECK(!at(ceilDivide(N, M), {5, 0}));
  CHECK(!at(ceilDivide(SizeExpr(5), 0), {}));
  CHECK(!at(M, {5}));
  CHECK(!at(N, {-1}));
  CHECK(!at(SizeExpr(INT64_MAX) * 2, {})); // folds to nothing that is wrong

  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) { // folding changes no value
    int64_t n = random() % 9 + 1, m = random() % 9 + 1;
    SizeExpr expr = N;
    int64_t value = n;
    for (int step = 0; step < 6; ++step) {
      bool useConstant = random() % 2;
      int64_t c = random() % 5 + 1;
      SizeExpr b = useConstant ? SizeExpr(c) : M;
      int64_t v = useConstant ? c : m;
      switch (random() % 3) {
      case 0:
        expr = random() % 2 ? expr + b : b + expr;
        value += v;
        break;
      case 1:
        expr = random() % 2 ? expr * b : b * expr;
        value *= v;
        break;
      default:
        expr = ceilDivide(expr, b);
        value = (value + v - 1) / v;
      }
    }
    REQUIRE(at(expr, {n, m}) == value);
    std::span<const SizeExpr::Node> nodes = expr.nodes();
    REQUIRE(SizeExpr::fromNodes({nodes.begin(), nodes.end()}, 2) == expr);
  }
}

TEST_CASE("malformed nodes are refused") {
  using Op = SizeExpr::Op;
  auto ok = [](std::vector<SizeExpr::Node> nodes) {
    return SizeExpr::fromNodes(std::move(nodes), 1).has_value();
  };
  CHECK(ok({{Op::Size, 0}}));
  CHECK(ok({{Op::Size, 0}, {Op::Constant, 2}, {Op::CeilDivide, 0}}));
  CHECK(!ok({}));
  CHECK(!ok({{Op::Size, 1}}));
  CHECK(!ok({{Op::Size, -1}}));
  CHECK(!ok({{Op::Constant, -1}}));
  CHECK(!ok({{Op::Add, 0}}));
  CHECK(!ok({{Op::Size, 0}, {Op::Size, 0}}));
  CHECK(!ok({{Op::Size, 0}, {Op::Multiply, 0}}));
  CHECK(!ok({{Op::Size, 0}, {Op::Size, 0}, {Op::Add, 7}}));
  CHECK(!ok({{Op::Size, 0}, {Op::Constant, 0}, {Op::CeilDivide, 0}}));
  CHECK(!ok({{static_cast<Op>(9), 0}}));
}

TEST_CASE("an artifact survives its bytes") {
  Artifact artifact = sample();
  artifact.phase = "of another time";
  artifact.constraints = {{0, 2, 4}};
  std::vector<std::byte> bytes = serialize(artifact);
  std::string error;
  std::optional<Artifact> read = deserialize(bytes, error);
  REQUIRE_MESSAGE(read, error);
  CHECK(serialize(*read) == bytes);
  bytes[8] = std::byte(1);
  CHECK_FALSE(deserialize(bytes, error));
  CHECK(error == "artifact has format version 1; this library reads 2");
  CHECK(read->name == "sample");
  CHECK(read->phase == "of another time");
  REQUIRE(read->constraints.size() == 1);
  CHECK(read->constraints[0].atLeast == 2);
  CHECK(read->constraints[0].multipleOf == 4);
  CHECK(read->requiredFeatures == artifact.requiredFeatures);
  REQUIRE(read->scalars.size() == 1);
  CHECK(read->scalars[0].name == "epsilon");
  CHECK(read->scalars[0].least == 0);
  CHECK(read->scalars[0].most == INFINITY);
  CHECK(read->scalars[0].open);
  REQUIRE(read->arguments.size() == 3);
  CHECK(read->arguments[2].mayAlias == std::vector<uint32_t>{0});
  CHECK((read->arguments[2].role == Role::State));
  CHECK(read->arguments[2].old == 0);
  CHECK(read->arguments[1].old == -1);
  REQUIRE(read->variants.size() == 2);
  CHECK(read->variants[0].guard.value == N);
  CHECK(read->variants[0].guard.limit == 100);
  CHECK(read->variants[1].workspaceBytes == N * 8);
  CHECK(read->variants[1].stages[1].symbol == "mirror");
  CHECK(read->variants[1].stages[1].entry == 0x30);
  CHECK(read->variants[1].image.bytes == artifact.variants[1].image.bytes);
}

TEST_CASE("damaged bytes give an error") {
  const std::vector<std::byte> bytes = serialize(sample());
  std::string error;
  for (size_t length = 0; length < bytes.size(); ++length) {
    error.clear();
    REQUIRE(!deserialize(std::span(bytes).first(length), error));
    REQUIRE(!error.empty());
  }
  for (size_t i = 0; i < bytes.size(); ++i)
    for (int change : {0x01, 0x80, 0xff}) {
      std::vector<std::byte> damaged = bytes;
      damaged[i] ^= static_cast<std::byte>(change);
      error.clear();
      REQUIRE(!deserialize(damaged, error));
      REQUIRE(!error.empty());
    }
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte(0));
  CHECK(!deserialize(longer, error));
}

TEST_CASE("hostile bytes with a right checksum give an error or a valid artifact") {
  const size_t lengthAt = 12, sumAt = 20, header = 28;
  auto seal = [&](std::vector<std::byte> &bytes) {
    uint64_t length = bytes.size(), sum = checksum(std::span(bytes).subspan(header));
    for (int i = 0; i < 8; ++i) {
      bytes[lengthAt + i] = static_cast<std::byte>(length >> 8 * i);
      bytes[sumAt + i] = static_cast<std::byte>(sum >> 8 * i);
    }
  };
  auto isHandled = [](const std::vector<std::byte> &bytes) {
    std::string error;
    std::optional<Artifact> read = deserialize(bytes, error);
    return read ? validate(*read, error) && serialize(*read) == bytes : !error.empty();
  };
  std::vector<std::byte> bytes = serialize(sample());
  std::vector<std::byte> sealed = bytes;
  seal(sealed);
  REQUIRE(sealed == bytes); // the offsets above are right

  for (size_t length = header; length < bytes.size(); ++length) {
    std::vector<std::byte> cut(bytes.begin(), bytes.begin() + length);
    seal(cut);
    std::string error;
    REQUIRE(!deserialize(cut, error));
  }
  for (size_t i = header; i < bytes.size(); ++i)
    for (int value : {0x00, 0x01, 0x02, 0x05, 0x7f, 0x80, 0xff}) {
      std::vector<std::byte> changed = bytes;
      changed[i] = static_cast<std::byte>(value);
      seal(changed);
      REQUIRE(isHandled(changed));
    }
  std::mt19937 random(2);
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> changed = bytes;
    for (int n = random() % 6 + 1; n > 0; --n)
      changed[header + random() % (bytes.size() - header)] = static_cast<std::byte>(random());
    if (random() % 4 == 0)
      changed.resize(header + random() % (bytes.size() - header));
    seal(changed);
    REQUIRE(isHandled(changed));
  }
}

TEST_CASE("what a runtime cannot trust is refused") {
  auto refused = [](auto change) {
    Artifact artifact = sample();
    change(artifact);
    std::string direct, read;
    CHECK(!validate(artifact, direct));
    CHECK(!deserialize(serialize(artifact), read));
    CHECK(!direct.empty());
    CHECK(!read.empty());
    return direct;
  };
  CHECK(refused([](Artifact &a) { a.variants.clear(); }) == "artifact has no variant");
  CHECK(refused([](Artifact &a) { a.variants.back().guard.limit = 5; }) ==
        "artifact has a guard on its last variant");
  CHECK(refused([](Artifact &a) { a.variants[0].guard.limit = -1; }) ==
        "artifact has a guard with a negative limit");
  CHECK(refused([](Artifact &a) { a.variants[0].stages[1].entry = sizeof code; }) ==
        "artifact has stage 'mirror' outside its image");
  CHECK(refused([](Artifact &a) { a.variants[1].stages.clear(); }) ==
        "artifact has a variant without stages");
  CHECK(refused([](Artifact &a) { a.variants[1].stages[0].tasks = SizeExpr::size(1); }) ==
        "artifact has a malformed size expression");
  CHECK(refused([](Artifact &a) { a.arguments[0].shape = {ceilDivide(N, 0)}; }) ==
        "artifact has a malformed size expression");
  CHECK(refused([](Artifact &a) { a.arguments[2].mayAlias = {1}; }) ==
        "artifact lets argument 'z' alias what it may not");   // y is written
  refused([](Artifact &a) { a.arguments[2].mayAlias = {2}; }); // itself
  refused([](Artifact &a) { a.arguments[2].mayAlias = {7}; });
  CHECK(refused([](Artifact &a) { a.arguments.clear(); }) == "artifact has no arguments");
  refused([](Artifact &a) { a.arguments[0].dtype = DType::F64; });
  refused([](Artifact &a) { a.arguments[2].name = std::string("y"); });
  refused([](Artifact &a) { a.arguments[0].name.clear(); });
  refused([](Artifact &a) { a.sizes = {"N", "N"}; });
  refused([](Artifact &a) { a.scalars[0].name.clear(); });
  CHECK(refused([](Artifact &a) { a.scalars[0].most = -1; }) ==
        "artifact has an empty range for the number 'epsilon'");
  refused([](Artifact &a) { a.scalars[0].least = NAN; });
  CHECK(refused([](Artifact &a) { a.phase.clear(); }) == "artifact has no phase");
  CHECK(refused([](Artifact &a) {
          a.constraints = {{1, 1, 1}};
        }) == "artifact has a constraint that is none");
  refused([](Artifact &a) { a.constraints = {{0, 1, 0}}; });
  CHECK(refused([](Artifact &a) { a.arguments[2].old = 1; }) ==
        "artifact has argument 'z' replace what it may not"); // y is written
  refused([](Artifact &a) { a.arguments[2].old = 2; });
  refused([](Artifact &a) { a.arguments[2].old = -2; });
  refused([](Artifact &a) { a.arguments[0].old = 0; }); // only what is written replaces
  refused([](Artifact &a) { a.arguments[0].shape = {N, N}; });
  refused([](Artifact &a) { a.name = std::string("a\0b", 3); });
}

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
  // What the compiler's own run-time library says.
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
        "size N is -4; expected at least 0");
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
                  "nf_compiler_compile_v3") != std::string::npos);
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
