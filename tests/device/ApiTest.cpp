// The C API's GPUs, by normforge.hpp, as hosts use them: streams, graphs, contexts, and every
// error.
#include "normforge/normforge.hpp"
#include "runtime/device/DeviceContext.h"
#include "runtime/pack/Pack.h"
#include "tests/device/CudaHost.h"

#include <cmath>
#include <cstdlib>
#include <doctest/doctest.h>
#include <numeric>

using namespace normforge::test;

namespace {

constexpr const char *kSpec = "input: {shape: [N, 64], layout: nc, dtype: f32}\n"
                              "mode: layer\naxis: c\nscale: false\ncenter: false\n"
                              "phases: [inference]\n";

nf::Engine engine() {
  nf::Engine::Options options;
  options.cacheDirectory = "";
  options.compilerLibrary = NORMFORGE_COMPILER_LIBRARY;
  return nf::Engine(options);
}
nf::Kernel compile(const nf::Engine &engine, const std::string &cpu,
                   const std::string &spec = kSpec) {
  nf::Engine::CompileOptions options;
  options.cpu = cpu;
  return engine.compile(spec, options);
}

/// The error of what fails; an empty one where nothing does.
template <typename Call> std::pair<nf_code, std::string> errorOf(Call call) {
  try {
    call();
  } catch (const nf::Error &error) {
    return {error.code(), error.what()};
  }
  return {NF_OK, ""};
}
bool contains(const std::string &text, const std::string &part) {
  return text.find(part) != std::string::npos;
}

/// One norm with its arrays on the device: row r is r + 0, 1, 2, ...
struct Rows {
  static constexpr size_t kRow = 64;
  explicit Rows(size_t rows)
      : rows(rows), x(rows * kRow * sizeof(float)), y(rows * kRow * sizeof(float)) {
    std::vector<float> values(rows * kRow);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(i / kRow + i % kRow);
    x.write(values.data(), values.size() * sizeof(float));
  }
  std::vector<void *> arguments() const { return {x.data(), y.data()}; }
  /// Every row is the same: its mean is taken away.
  bool isRight() const {
    std::vector<float> values(rows * kRow);
    y.read(values.data(), values.size() * sizeof(float));
    const double deviation = std::sqrt((kRow * kRow - 1) / 12.0);
    for (size_t i = 0; i < values.size(); ++i)
      if (!(std::abs(values[i] - (static_cast<double>(i % kRow) - (kRow - 1) / 2.0) / deviation) <=
            1e-3)) // not NaN either
        return false;
    return true;
  }
  size_t rows;
  DeviceBuffer x, y;
};

struct Stream {
  Stream() { Cuda::driver().call("cuStreamCreate", &stream, 0u); }
  ~Stream() { Cuda::driver().tryCall("cuStreamDestroy_v2", stream); }
  void *stream = nullptr;
};

/// An environment variable for as long as this lives.
struct Variable {
  Variable(const char *name, const char *value) : name(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name); }
  const char *name;
};

bool isEmulated() {
  try {
    Cuda::driver().find("normforgeEmulatedLaunches");
    return true;
  } catch (const std::runtime_error &) {
    return false;
  }
}

} // namespace

TEST_CASE("no GPU, and no context") {
  if (!isEmulated()) {
    MESSAGE("SKIP: needs the emulated driver");
    return;
  }
  const nf::Engine engine = ::engine();
  const auto none = errorOf([&] { engine.cuda(); });
  CHECK(none.first == NF_NO_DEVICE);
  CHECK_MESSAGE(contains(none.second, "no CUDA context is current"), none.second);
  const CudaContext context;
  {
    const Variable old("NORMFORGE_EMULATED_GPU", "70");
    const auto tooOld = errorOf([&] { engine.cuda(); });
    CHECK(tooOld.first == NF_WRONG_MACHINE);
    CHECK_MESSAGE(contains(tooOld.second, "is sm_70; kernels are for sm_80 and later"),
                  tooOld.second);
  }
  const Variable later("NORMFORGE_EMULATED_GPU", "120");
  CHECK(engine.cuda().cpu() == "sm_100"); // the nearest that kernels are made for
  nf_device *device = nullptr;
  nf_status *status =
      nf_device_open(engine.get(), static_cast<nf_device_kind>(7), nullptr, &device);
  CHECK(nf_status_code(status) == NF_INVALID_ARGUMENT);
  CHECK(device == nullptr);
  nf_status_free(status);
}

TEST_CASE("a norm on a stream, and in a graph") {
  const CudaContext context;
  const nf::Engine engine = ::engine();
  const nf::Device device = engine.cuda();
  CHECK(!device.name().empty());
  const nf::Kernel kernel = compile(engine, device.cpu());
  kernel.prepare(device);
  kernel.prepare(device); // at once
  const nf::Plan plan = kernel.plan({5});
  const Rows rows(5);
  const Stream stream;
  plan.enqueue(device, rows.arguments(), {}, nullptr, stream.stream);
  Cuda::driver().call("cuStreamSynchronize", stream.stream);
  CHECK(rows.isRight());

  const Rows again(5);
  void *graph = nullptr, *ready = nullptr;
  Cuda &driver = Cuda::driver();
  driver.call("cuStreamBeginCapture_v2", stream.stream, 2);
  plan.enqueue(device, again.arguments(), {}, nullptr, stream.stream);
  driver.call("cuStreamEndCapture", stream.stream, &graph);
  CHECK(!again.isRight()); // nothing has run
  driver.call("cuGraphInstantiateWithFlags", &ready, graph, 0ull);
  for (int i = 0; i < 2; ++i)
    driver.call("cuGraphLaunch", ready, stream.stream);
  driver.call("cuStreamSynchronize", stream.stream);
  CHECK(again.isRight());
  driver.call("cuGraphExecDestroy", ready);
  driver.call("cuGraphDestroy", graph);
}

TEST_CASE("arrays that are not aligned to vectors") {
  const CudaContext context;
  const nf::Engine engine = ::engine();
  const nf::Device device = engine.cuda();
  const nf::Kernel kernel = compile(engine, device.cpu());
  kernel.prepare(device);
  const Rows rows(3);
  DeviceBuffer shifted(3 * Rows::kRow * sizeof(float), sizeof(float));
  std::vector<float> values(3 * Rows::kRow);
  rows.x.read(values.data(), values.size() * sizeof(float));
  shifted.write(values.data(), values.size() * sizeof(float));
  const std::vector<void *> arguments{shifted.data(), rows.y.data()};
  kernel.plan({3}).enqueue(device, arguments);
  Cuda::driver().call("cuCtxSynchronize");
  CHECK(rows.isRight());
}

TEST_CASE("errors before anything is launched") {
  const CudaContext context;
  const nf::Engine engine = ::engine();
  const nf::Device device = engine.cuda();
  const nf::Kernel kernel = compile(engine, device.cpu());
  const nf::Plan plan = kernel.plan({4});
  const Rows rows(4);
  auto enqueue = [&](std::vector<void *> arguments, void *workspace = nullptr) {
    return errorOf([&] { plan.enqueue(device, arguments, {}, workspace); });
  };
  const auto unprepared = enqueue(rows.arguments());
  CHECK(unprepared.first == NF_INVALID_ARGUMENT);
  CHECK_MESSAGE(contains(unprepared.second, "is not prepared for this device"), unprepared.second);
  kernel.prepare(device);

  const auto run = errorOf([&] { plan.run(rows.arguments()); });
  CHECK(run.first == NF_WRONG_MACHINE);
  CHECK_MESSAGE(contains(run.second, "nf_enqueue launches it"), run.second);
  CHECK(!plan.stage(0));

  std::vector<float> host(4 * Rows::kRow);
  if (isEmulated()) { // some machines let GPUs read all memory
    const auto onHost = enqueue({host.data(), rows.y.data()});
    CHECK(onHost.first == NF_INVALID_ARGUMENT);
    CHECK_MESSAGE(contains(onHost.second, "argument 0 ('x', read) is memory of the host"),
                  onHost.second);
  }
  const DeviceBuffer small(100);
  const auto tooShort = enqueue({rows.x.data(), small.data()});
  CHECK(tooShort.first == NF_INVALID_ARGUMENT);
  CHECK_MESSAGE(contains(tooShort.second, "is memory of 100 bytes; expected 1024"),
                tooShort.second);
  CHECK(enqueue({rows.x.data()}).first == NF_INVALID_ARGUMENT);
  CHECK(enqueue({rows.x.data(), nullptr}).first == NF_INVALID_ARGUMENT);

  const nf::Kernel onCpu = compile(engine, "native");
  const auto cpu = errorOf([&] { onCpu.prepare(device); });
  CHECK(cpu.first == NF_WRONG_MACHINE);
  CHECK_MESSAGE(contains(cpu.second, "not for a GPU"), cpu.second);
  const auto enqueued = errorOf([&] { onCpu.plan({4}).enqueue(device, rows.arguments()); });
  CHECK(enqueued.first == NF_WRONG_MACHINE);
  CHECK(contains(enqueued.second, "nf_run runs it"));
}

TEST_CASE("a workspace of the device's") {
  const CudaContext context;
  const nf::Engine engine = ::engine();
  const nf::Device device = engine.cuda();
  const nf::Kernel kernel = compile(engine, device.cpu(),
                                    "input: {shape: [N, 30, 30, 8], layout: nhwc, dtype: f32}\n"
                                    "axis: c\nscale: false\ncenter: false\n"
                                    "phases: [training]\n");
  kernel.prepare(device);
  const nf::Plan plan = kernel.plan({4});
  REQUIRE(plan.workspaceBytes() > 0);
  std::vector<std::unique_ptr<DeviceBuffer>> buffers;
  std::vector<void *> arguments;
  for (size_t i = 0; i < kernel.argumentCount(); ++i) {
    buffers.push_back(std::make_unique<DeviceBuffer>(plan.bytes(i)));
    arguments.push_back(buffers.back()->data());
  }
  auto enqueue = [&](void *workspace) {
    return errorOf([&] { plan.enqueue(device, arguments, {}, workspace); });
  };
  const auto none = enqueue(nullptr);
  CHECK(none.first == NF_INVALID_ARGUMENT);
  CHECK_MESSAGE(contains(none.second, "there is no workspace"), none.second);
  const DeviceBuffer small(plan.workspaceBytes() - 8), enough(plan.workspaceBytes());
  const auto tooSmall = enqueue(small.data());
  CHECK(tooSmall.first == NF_INVALID_ARGUMENT);
  CHECK_MESSAGE(contains(tooSmall.second, "the workspace is memory of"), tooSmall.second);
  CHECK(enqueue(enough.data()).second == "");
}

TEST_CASE("several contexts, and one that is gone") {
  const nf::Engine engine = ::engine();
  CudaContext first;
  const nf::Device one = engine.cuda();
  CudaContext second;
  const nf::Device two = engine.cuda(second.get());
  const nf::Kernel kernel = compile(engine, one.cpu());
  kernel.prepare(one);
  kernel.prepare(two);
  const nf::Plan plan = kernel.plan({2});
  const Rows rows(2);
  const Stream ofSecond;
  plan.enqueue(two, rows.arguments(), {}, nullptr, ofSecond.stream);
  Cuda::driver().call("cuStreamSynchronize", ofSecond.stream);
  CHECK(rows.isRight());
  void *current = nullptr;
  plan.enqueue(one, rows.arguments()); // another context than the current one, which stays so
  Cuda::driver().call("cuCtxGetCurrent", &current);
  CHECK(current == second.get());

  const auto wrong =
      errorOf([&] { plan.enqueue(one, rows.arguments(), {}, nullptr, ofSecond.stream); });
  CHECK(wrong.first == NF_DEVICE_ERROR);
  CHECK_MESSAGE(contains(wrong.second, "CUDA_ERROR_INVALID_HANDLE"), wrong.second);

  first.destroy();
  const auto gone = errorOf([&] { plan.enqueue(one, rows.arguments()); });
  CHECK(gone.first == NF_DEVICE_ERROR);
  CHECK_MESSAGE(contains(gone.second, "cuCtxPushCurrent: CUDA_ERROR_CONTEXT_IS_DESTROYED"),
                gone.second);
}

TEST_CASE("packs for CPUs and GPUs") {
  const CudaContext context;
  const nf::Engine engine = ::engine();
  std::vector<normforge::PackedKernel> kernels;
  for (const char *cpu : {"sm_80", "sm_90", "native"}) {
    std::string error;
    auto artifact = normforge::deserialize(compile(engine, cpu).save(), error);
    REQUIRE_MESSAGE(artifact, error);
    kernels.push_back({"rows", std::move(*artifact)});
  }
  const std::vector<std::byte> bytes = normforge::writePack(kernels);
  const nf::Pack pack = engine.openPack(std::span(bytes));
  CHECK(pack.load("rows").cpu() == kernels[2].artifact.cpu);
  const nf::Device device = engine.cuda();
  const nf::Kernel kernel = pack.load("rows", NF_INFERENCE, device);
  CHECK(kernel.cpu() == (normforge::capabilityOf(device.cpu()) >= 90 ? "sm_90" : "sm_80"));
  kernel.prepare(device);
  const Rows rows(2);
  kernel.plan({2}).enqueue(device, rows.arguments());
  CHECK(rows.isRight());
  CHECK(pack.load("rows", NF_INFERENCE, "sm_80").cpu() == "sm_80");
  const auto missing = errorOf([&] { pack.load("columns", NF_INFERENCE, device); });
  CHECK(missing.first == NF_NO_KERNEL);
  kernels.pop_back();
  const std::vector<std::byte> ofGpus = normforge::writePack(kernels);
  const nf::Pack gpus = engine.openPack(std::span(ofGpus));
  const auto noCpu = errorOf([&] { gpus.load("rows"); });
  CHECK(noCpu.first == NF_WRONG_MACHINE);
  CHECK_MESSAGE(contains(noCpu.second, "for sm_80, it is code for GPUs"), noCpu.second);
  if (!isEmulated())
    return;
  const Variable older("NORMFORGE_EMULATED_GPU", "86");
  CHECK(pack.load("rows", NF_INFERENCE, engine.cuda()).cpu() == "sm_80");
}

TEST_CASE("kernels for other GPUs, saved ones and damaged ones") {
  const CudaContext context;
  const nf::Engine engine = ::engine();
  const nf::Device device = engine.cuda();
  const nf::Kernel older = compile(engine, "sm_80");
  older.prepare(device);
  const Rows rows(2);
  const std::vector<std::byte> saved = older.save();
  const nf::Kernel again = engine.load(saved);
  CHECK(std::string(nf_kernel_cpu(again.get())) == "sm_80");
  again.prepare(device);
  again.plan({2}).enqueue(device, rows.arguments());
  CHECK(rows.isRight());

  std::string error;
  auto damaged = *normforge::deserialize(saved, error);
  auto &text = damaged.variants[0].image.bytes;
  text.erase(text.begin() + static_cast<ptrdiff_t>(text.size() / 2), text.end() - 1);
  const nf::Kernel truncated = engine.load(normforge::serialize(damaged));
  const auto bad = errorOf([&] { truncated.prepare(device); });
  CHECK(bad.first == NF_BAD_ARTIFACT);
  CHECK_MESSAGE(contains(bad.second, "CUDA_ERROR_INVALID_PTX"), bad.second);

  if (!isEmulated()) {
    MESSAGE("SKIP: needs the emulated driver");
    return;
  }
  const nf::Kernel newer = compile(engine, "sm_100");
  const auto tooNew = errorOf([&] { newer.prepare(device); });
  CHECK(tooNew.first == NF_WRONG_MACHINE);
  CHECK_MESSAGE(contains(tooNew.second, "is for sm_100; this GPU, emulated GPU, is sm_90"),
                tooNew.second);
  const Variable later("NORMFORGE_EMULATED_GPU", "100");
  const nf::Device blackwell = engine.cuda();
  const auto oldDriver = errorOf([&] { newer.prepare(blackwell); });
  CHECK(oldDriver.first == NF_WRONG_MACHINE);
  CHECK_MESSAGE(contains(oldDriver.second, "the driver is of CUDA 12.4"), oldDriver.second);
}

TEST_CASE("check launches kernels on the GPU that is there") {
  const std::string command = std::string(NORMFORGE_COMMAND) +
                              " check " NORMFORGE_TEST_DATA_DIR
                              "/mutations/specs/layer.yaml --size N=5 --cpu cuda 2>&1";
  FILE *pipe = popen(command.c_str(), "r");
  REQUIRE(pipe);
  std::string said;
  char line[512];
  while (std::fgets(line, sizeof line, pipe))
    said += line;
  CHECK_MESSAGE(pclose(pipe) == 0, said);
  CHECK_MESSAGE(contains(said, "launched on "), said);
  CHECK_MESSAGE(contains(said, "2 of 2 agree."), said);
}
