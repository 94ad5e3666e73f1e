// Makes a folder of cases for a machine with a GPU and no compiler:   gpu_cases DIR [--few]
//
//   DIR/kernels.nfk   their kernels, as assembly
//   DIR/cases         a line a case: what, name, phase, sizes, scalars, place in the data
//   DIR/data          by case and argument: what is read, and what is expected of what is written
//
// What is expected was computed by the emulated kernels, whose bits a GPU's are. `--few`: small
// ones alone, for an interpreter.
#include "tests/numerics/KernelCase.h"
#include "tests/numerics/SpecDraw.h"

#include "runtime/pack/Pack.h"

#include <cstdio>
#include <filesystem>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fstream>
#include <stdexcept>

using namespace normforge;
using namespace normforge::test;

namespace {

class Maker {
public:
  explicit Maker(const std::filesystem::path &folder)
      : folder_(folder), lines_(folder / "cases"), data_(folder / "data", std::ios::binary) {}

  /// Cases whose results are compared, of all phases of a spec.
  void check(const std::string &yaml, const oracle::Sizes &sizes, const std::string &cpu,
             uint64_t seed) {
    const Spec spec = specOf(yaml);
    std::string whyNot;
    Session *emulated = TestKernel::session(cpu, whyNot);
    if (!emulated)
      throw std::runtime_error(whyNot);
    for (Phase phase : spec.phases) {
      const Operator op = add("check", spec, phase, sizes, cpu);
      const oracle::Arrays inputs =
          oracle::drawInputs(spec, phase, sizes, seed, oracle::Data::Normal, drawnScalars());
      const oracle::Arrays outputs =
          TestKernel(spec, phase, *emulated).run(sizes, inputs, drawnScalars());
      for (const Operand &operand : op.operands) {
        const auto &bytes = (operand.written ? outputs : inputs).at(operand.name).bytes;
        data_.write(reinterpret_cast<const char *>(bytes.data()),
                    static_cast<std::streamsize>(bytes.size()));
      }
    }
  }

  /// A kernel that is timed ("bench"), or whose last row is compared with the first ("large").
  void time(const char *what, const std::string &yaml, const oracle::Sizes &sizes,
            const std::string &cpu = "sm_90") {
    const Spec spec = specOf(yaml);
    for (Phase phase : spec.phases)
      add(what, spec, phase, sizes, cpu);
  }

  /// Of all that there is so far: the folder is to be under 64 MiB.
  int64_t bytes() {
    int64_t all = data_.tellp();
    for (const PackedKernel &kernel : kernels_)
      for (const Variant &variant : kernel.artifact.variants)
        all += static_cast<int64_t>(variant.image.bytes.size());
    return all;
  }

  void finish() {
    const std::vector<std::byte> bytes = writePack(kernels_);
    std::ofstream pack(folder_ / "kernels.nfk", std::ios::binary);
    pack.write(reinterpret_cast<const char *>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    if (!pack.flush() || !lines_.flush() || !data_.flush())
      throw std::runtime_error("cannot write to " + folder_.string());
    fmt::print("{} kernels in {}\n", kernels_.size(), folder_.string());
  }

private:
  static Spec specOf(const std::string &yaml) {
    auto spec = parseSpec(yaml, "case.yaml");
    if (!spec)
      throw std::runtime_error(llvm::toString(spec.takeError()) + "\n" + yaml);
    return *spec;
  }

  Operator add(const char *what, const Spec &spec, Phase phase, const oracle::Sizes &sizes,
               const std::string &cpu) {
    auto target = describeTarget(cpu);
    Session session(std::move(*target), /*verify=*/true);
    auto artifact = session.compile(spec, phase);
    if (!artifact)
      throw std::runtime_error(llvm::toString(artifact.takeError()));
    const Operator op = makeOperator(spec, phase);
    const std::string name = fmt::format("k{}", kernels_.size());
    lines_ << fmt::format("{} {} {} {}", what, name, toString(phase), op.sizes.size());
    for (const std::string &size : op.sizes)
      lines_ << ' ' << sizes.at(size);
    lines_ << ' ' << op.scalars.size();
    for (const Scalar &scalar : op.scalars)
      lines_ << fmt::format(" {:.17g}", drawnScalars().at(scalar.name));
    lines_ << ' ' << data_.tellp();
    std::vector<std::string> shape;
    for (const SizeExpr &size : op.operands[0].shape)
      shape.push_back(size.text(op.sizes));
    lines_ << fmt::format(" {} {} {} {} of {}\n", toString(spec.mode), spec.layout.text,
                          toString(spec.dtype), cpu, fmt::join(shape, "x"));
    kernels_.push_back({name, std::move(*artifact)});
    return op;
  }

  std::filesystem::path folder_;
  std::ofstream lines_, data_;
  std::vector<PackedKernel> kernels_;
};

/// Bytes of cases beyond which no random ones are added: kernels to time need some more.
constexpr int64_t kMostBytes = 44 << 20;

void addChecks(Maker &maker, uint64_t seed, bool few) {
  const std::string phases = "phases: [inference, training, backward]\n";
  struct Row {
    const char *yaml;
    oracle::Sizes sizes;
    int64_t many; ///< of the first size, where there is a GPU
  };
  const Row rows[] = {
      {"mode: layer\naxis: c\ninput: {shape: [N, 96], layout: nc, ", {{"N", 5}}, 300},
      {"mode: rms\naxis: c\ninput: {shape: [N, 1000], layout: nc, ", {{"N", 3}}, 100},
      {"mode: layer\naxis: c\nfuse: [add, silu]\ninput: {shape: [N, 333], layout: nc, ",
       {{"N", 4}},
       101},
      {"axis: c\ninput: {shape: [N, 9, 9, 24], layout: nhwc, ", {{"N", 7}}, 20},
      {"axis: c\ninput: {shape: [N, 6, 8, 12], layout: nchw, ", {{"N", 9}}, 45},
      {"mode: group\ngroups: 4\naxis: c\ninput: {shape: [N, 16, 7, 5], layout: nchw, ",
       {{"N", 2}},
       25},
      {"mode: group\ngroups: 4\naxis: c\ninput: {shape: [N, 7, 5, 16], layout: nhwc, ",
       {{"N", 2}},
       25},
      {"axis: c\nmask: true\nfuse: [relu]\ninput: {shape: [N, 5, 7, 24], layout: nhwc, ",
       {{"N", 3}},
       15},
  };
  for (const char *dtype : {"f32", "bf16", "f16", "f64"})
    for (const Row &row : rows) {
      oracle::Sizes sizes = row.sizes;
      if (!few)
        sizes.begin()->second = row.many;
      maker.check(row.yaml + std::string("dtype: ") + dtype + "}\n" + phases, sizes,
                  std::string(dtype).ends_with("16") ? "sm_90" : "sm_80", seed);
      if (few)
        break;
    }
  for (int i = 0; i < (few ? 2 : 24); ++i) {
    SpecDraw draw(seed * 1000003 + static_cast<uint64_t>(i));
    const DrawnSpec drawn = draw.draw();
    int64_t elements = 1;
    for (const DrawnAxis &axis : drawn.axes)
      elements *= axis.size;
    if (elements <= (few ? 2000 : 40000) && maker.bytes() < kMostBytes)
      maker.check(drawn.yaml(), drawn.sizes(), i % 2 ? "sm_90" : "sm_80", seed);
  }
}

void addTimes(Maker &maker, bool few) {
  auto rows = [&](const char *mode, int64_t n, int64_t c, const char *dtype, const char *phases) {
    maker.time(
        "bench",
        fmt::format("mode: {}\naxis: c\nsemantics: pytorch\ninput: {{shape: [N, {}], layout: "
                    "nc, dtype: {}}}\nphases: [{}]\n",
                    mode, c, dtype, phases),
        {{"N", few ? 2 : n}});
  };
  auto images = [&](const char *mode, int64_t n, int64_t c, int64_t side, const char *layout,
                    const char *dtype, const char *phases) {
    const bool isLast = std::string(layout) == "nhwc";
    maker.time(
        "bench",
        fmt::format("mode: {}\naxis: c\nsemantics: pytorch\n{}input: {{shape: {}, layout: {}, "
                    "dtype: {}}}\nphases: [{}]\n",
                    mode, std::string(mode) == "group" ? "groups: 32\n" : "",
                    isLast ? fmt::format("[N, {0}, {0}, {1}]", side, c)
                           : fmt::format("[N, {1}, {0}, {0}]", side, c),
                    layout, dtype, phases),
        {{"N", few ? 1 : n}});
  };
  if (few) {
    rows("rms", 2, 64, "bf16", "inference");
    images("batch", 1, 4, 4, "nchw", "f32", "training");
    maker.time("large",
               "mode: layer\naxis: c\ninput: {shape: [N, 64], layout: nc, dtype: bf16}\n"
               "phases: [inference]\n",
               {{"N", 9}});
    return;
  }
  // 2^31 elements and some more.
  maker.time("large",
             "mode: layer\naxis: c\ninput: {shape: [N, 4096], layout: nc, dtype: bf16}\n"
             "phases: [inference]\n",
             {{"N", 524288 + 77}});
  for (auto [n, c] : {std::pair<int64_t, int64_t>{131072, 128},
                      {65536, 256},
                      {65536, 1024},
                      {32768, 4096},
                      {16384, 8192},
                      {8192, 16384},
                      {4096, 32768},
                      {2048, 65536}})
    rows("rms", n, c, "bf16", "inference");
  for (auto [n, c] : {std::pair<int64_t, int64_t>{65536, 768}, {32768, 4096}, {8192, 12288}})
    rows("layer", n, c, "bf16", "training, backward");
  rows("layer", 32768, 1024, "f32", "training, backward");
  rows("rms", 16384, 4096, "bf16", "backward");
  for (int64_t n : {1, 8, 128}) // decode
    rows("rms", n, 7168, "bf16", "inference");
  images("batch", 64, 64, 112, "nchw", "f32", "inference, training, backward");
  images("batch", 64, 256, 56, "nchw", "bf16", "inference, training, backward");
  images("batch", 64, 512, 28, "nhwc", "bf16", "inference, training, backward");
  images("batch", 64, 2048, 7, "nhwc", "bf16", "training, backward");
  images("instance", 256, 128, 28, "nchw", "f32", "inference");
  images("group", 32, 256, 56, "nhwc", "bf16", "inference, backward");
}

} // namespace

int main(int count, char **arguments) try {
  const bool few = count > 2 && std::string(arguments[2]) == "--few";
  if (count < 2 || count > 3 || (count == 3 && !few)) {
    std::fprintf(stderr, "usage: gpu_cases DIR [--few]\n");
    return 2;
  }
  std::filesystem::create_directories(arguments[1]);
  Maker maker(arguments[1]);
  addChecks(maker, testSeed(), few);
  addTimes(maker, few);
  maker.finish();
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "gpu_cases: error: %s\n", error.what());
  return 2;
}
