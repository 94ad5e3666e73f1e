// The command `normforge` and the machines that kernels are for: CPUs that this one is and is not,
// their caches and features, GPUs.
#include "compiler/session/Session.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "tests/errors/CommandFolder.h"

#include "llvm/Support/JSON.h"

using namespace normforge;
using namespace normforge::test;

namespace {

/// The features that this machine lacks of a CPU that kernels can be compiled for, as the runtime
/// lists them.
std::string missingFeatures(const TargetDescription &target) {
  std::string missing;
  for (const std::string &feature : target.instructionSets())
    if (!hostHasFeature(feature))
      missing += (missing.empty() ? "" : ", ") + feature;
  return missing;
}

} // namespace

TEST_CASE("a kernel for a CPU that this machine is not") {
  const Folder folder;
  bool tried = false;
  std::vector<std::string> cpus = compilableCpus();
  cpus.push_back("bdver4"); // fma4, which few have
  for (const std::string &cpu : cpus) {
    auto target = describeTarget(cpu);
    REQUIRE(static_cast<bool>(target));
    const std::string missing = missingFeatures(*target);
    const std::string architecture = target->triple.substr(0, target->triple.find('-'));
    if (missing.empty())
      continue;
    tried = true;
    const std::string why = architecture == hostArchitecture()
                                ? fmt::format("kernel needs {}, which this machine lacks", missing)
                                : fmt::format("kernel is code for {}; this machine is {}",
                                              architecture, hostArchitecture());
    const std::vector<std::string> caches{"--cache", "l1=16K,l2=2M,l3=8M"};
    folder.refuses(with({"check", "bn.yaml", "--cpu", cpu}, caches),
                   "normforge: error: bn.yaml: " + why);
    folder.refuses(with(runWords({"-o", "y=y.npy", "--cpu", cpu}), caches),
                   "normforge: error: " + why);
    // Compiling for it needs no such machine.
    CHECK(folder.run({"compile", "bn.yaml", "--emit=asm", "--cpu", cpu}).status == 0);
  }
  if (!tried)
    MESSAGE("SKIP: this machine runs kernels for every CPU that can be compiled for");
  if (hostHasFeature("avx512f"))
    MESSAGE("SKIP: an AVX-512 kernel on a machine without AVX-512; this one has it");
}

TEST_CASE("GPUs are compiled for as far as kernels for them are built") {
  const Folder folder;
  folder.write("late.yaml", "input: {shape: [N, 8, 4, 4], layout: nchw}\naxis: c\n"
                            "phases: [inference, training, backward]\nfuse: [add, relu]\n");
  const Outcome text =
      folder.run({"compile", "late.yaml", "--phase", "inference", "--cpu", "sm_90", "--emit=ptx"});
  CHECK(text.err == "");
  CHECK(contains(text.out, ".target sm_90"));
  const Outcome checked =
      folder.run({"check", "late.yaml", "--phase", "inference", "--cpu", "sm_80", "--size", "N=3"});
  // What AddressSanitizer says of every program with stacks of its own.
  CHECK((checked.err == "" || contains(checked.err, "ASan doesn't fully support makecontext")));
  CHECK(checked.status == 0);
  CHECK(contains(checked.out, "emulated by this machine"));
  const Outcome told =
      folder.run({"explain", "late.yaml", "--phase", "inference", "--cpu", "sm_100"});
  CHECK(contains(told.out, "1 thread a task, each with 4 lanes of a vector; 128 tasks a block"));
  CHECK(!contains(told.out, "bytes of code")); // which would be the emulating CPU's
  folder.write("rows.yaml", "input: {shape: [N, 4096], layout: nc, dtype: bf16}\naxis: c\n"
                            "mode: layer\nphases: [inference, backward]\n");
  const Outcome held = folder.run({"explain", "rows.yaml", "--cpu", "sm_90", "--size", "N=1000"});
  CHECK(contains(held.out, "loads x once; 4 vectors of 4 held, 64 bytes of a thread's registers"));
  CHECK(contains(held.out, "  expected   1.00 of a copy's speed"));
  CHECK(contains(folder.run({"explain", "rows.yaml", "--cpu", "sm_90", "--json"}).out,
                 "\"held_vectors\": 4"));
  const std::string few = "tails=masked fused(moments + finalize + normalize; take=[1,all] tiled=n "
                          "vector=1024 tile=1 unroll=1 threads=128 groups=1 resident=";
  folder.refuses({"compile", "rows.yaml", "--emit=ptx", "--cpu", "sm_90", "--phase", "inference",
                  "--schedule", few + "8 hold=registers:16)"},
                 "normforge: error: --schedule: schedule is not legal: stage fused: "
                 "hold=registers:16 is 256 bytes of a thread, beside 64 in flight; expected at "
                 "most 256");
  folder.refuses({"compile", "rows.yaml", "--emit=ptx", "--cpu", "sm_90", "--phase", "inference",
                  "--schedule", few + "32)"},
                 "normforge: error: --schedule: schedule is not legal: stage fused: resident=32: "
                 "expected 1 to 16 blocks of 128 threads");
  const std::vector<std::string> gpu{"--phase", "inference", "--cpu"};
  folder.refuses(with({"compile", "late.yaml", "--emit=ptx"}, with(gpu, {"sm_75"})),
                 "normforge: error: --cpu: unknown GPU 'sm_75'; expected one of: sm_80, sm_86, "
                 "sm_89, sm_90, sm_100");
  folder.refuses(with({"compile", "late.yaml", "--emit=ptx", "--schedule",
                       "tails=narrower normalize(finalize + normalize; take=[1,1,all] tiled=c "
                       "vector=4 tile=1 unroll=1 threads=1 groups=1)"},
                      with(gpu, {"sm_90"})),
                 "normforge: error: --schedule: schedule is not legal: tails=narrower: sm_90 has "
                 "neither; expected tails=masked alone");
  folder.refuses(with({"compile", "late.yaml", "--emit=asm"}, with(gpu, {"sm_90"})),
                 "normforge: error: --emit=asm: expected ptx or cubin for sm_90");
  folder.refuses(with({"compile", "rows.yaml", "--emit=cubin", "-o", "a"}, with(gpu, {"sm_90"})),
                 "normforge: error: --emit=cubin: a file has one variant of 2; expected --variant "
                 "1 to 2");
  const std::vector<std::string> cubin =
      with({"compile", "late.yaml", "--emit=cubin", "-o", "late.cubin"}, with(gpu, {"sm_80"}));
  setenv("NORMFORGE_PTXAS", "no-such-ptxas", 1);
  folder.refuses(cubin, "normforge: error: --emit=cubin: NORMFORGE_PTXAS is 'no-such-ptxas', which "
                        "is not found");
  unsetenv("NORMFORGE_PTXAS");
  if (const Outcome code = folder.run(cubin); code.status == 0) {
    std::string magic(4, ' ');
    std::ifstream(folder.path() / "late.cubin", std::ios::binary).read(magic.data(), 4);
    CHECK(magic == "\x7f"
                   "ELF");
  } else
    CHECK(contains(code.err, "NVIDIA's ptxas, which makes machine code, is not on the path"));
  folder.refuses(with({"compile", "late.yaml", "--emit=cubin"}, with(gpu, {"sm_90"})),
                 "normforge: error: --emit=cubin: machine code is not printed; expected -o FILE");
  folder.refuses(with({"compile", "late.yaml", "--emit=ptx"}, with(gpu, {"haswell"})),
                 "normforge: error: --emit=ptx: expected asm for haswell");
  folder.refuses(with({"compile", "late.yaml", "--emit=obj", "-o", "a.o"}, with(gpu, {"sm_90"})),
                 "normforge: error: --cpu: sm_90 is a GPU, which only compile --emit of a stage, "
                 "pack, check and explain take yet (not built)");
  folder.refuses(
      with({"compile", "late.yaml", "--emit=ptx", "--cache", "l1=32K"}, with(gpu, {"sm_90"})),
      "normforge: error: --cpu: sm_90 is a GPU, and neither a machine nor caches are "
      "chosen for it");
  folder.refuses(with({"compile", "late.yaml", "--emit=ptx", "--schedule",
                       "tails=masked normalize(finalize + normalize; take=[1,1,all] tiled=c "
                       "vector=6 tile=1 unroll=1 threads=3 groups=1)"},
                      with(gpu, {"sm_90"})),
                 "normforge: error: --schedule: schedule is not legal: stage normalize: threads=3: "
                 "expected a power of two up to 1024");
}

TEST_CASE("caches are those of the CPU, or those that are given, and assumed ones are told of") {
  const Folder folder;
  const std::vector<std::string> words{"explain", "bn.yaml", "--cpu", "cortex-a55"};
  const Outcome assumed = folder.run(words);
  CHECK(assumed.status == 0);
  CHECK(assumed.err ==
        "normforge: note: the caches of cortex-a55 are not known, and taken as haswell's: L1 "
        "32K, L2 256K, L3 8M; --cache l1=...,l2=...,l3=... says them\n");
  const Outcome given = folder.run(with(words, {"--cache", "l1=16K,l2=128K,l3=1M"}));
  CHECK(given.err == "");
  CHECK(contains(given.out, "L1 16 KiB, L2 128 KiB, L3 1 MiB"));
  const std::string expected =
      "normforge: error: --cache: expected l1=BYTES,l2=BYTES,l3=BYTES of 1K "
      "to 1048576M, such as l1=32K,l2=512K,l3=2M, found '";
  for (const char *bad : {"l4=1M", "l1", "l1=", "l1=many", "l1=1G", "l2=1", "l3=99999999M"})
    folder.refuses(with(words, {"--cache", bad}), expected + bad + "'");
  folder.refuses(with(words, {"--cache", "l1=1K,l1=2K"}),
                 "normforge: error: --cache: l1 is given twice");
  folder.refuses(with(words, {"--cache", "l1=1M,l2=1K"}),
                 "normforge: error: --cache: L1 of 1 MiB is larger than L2 of 1 KiB");
  folder.refuses({"pack", "bn.yaml", "--cpu", "haswell,znver4", "--cache", "l1=16K", "-o", "a.nfk"},
                 "normforge: error: --cache is of one CPU, and 2 are given");
  // /tmp has to stay as it is, whoever asks.
  const Outcome shared = folder.run({"cache", "clear", "--dir", "/tmp"});
  CHECK(shared.status == 2);
  CHECK(!contains(shared.err, "chmod"));
}

TEST_CASE("features that are masked are those of a lesser machine") {
  const Folder folder;
  if (!hostHasFeature("avx2")) {
    MESSAGE("SKIP: this machine has no AVX2 to mask");
    return;
  }
  setenv("NORMFORGE_WITHOUT_FEATURES", "avx2", 1);
  const Outcome lesser = folder.run({"check", "bn.yaml", "--size", "N=3", "--threads", "1"});
  const Outcome targets = folder.run({"targets", "--json"});
  const Outcome refused = folder.run({"check", "bn.yaml", "--cpu", "haswell"});
  unsetenv("NORMFORGE_WITHOUT_FEATURES");
  CHECK(lesser.status == 0);
  auto value = llvm::json::parse(targets.out);
  REQUIRE(bool(value));
  const llvm::json::Object *target = value->getAsObject()->getObject("host")->getObject("target");
  CHECK(target->getInteger("vector_bits") == 128);
  for (const llvm::json::Value &feature : *target->getArray("features")) {
    CHECK(*feature.getAsString() != "avx2");
    CHECK(!feature.getAsString()->starts_with("avx512"));
  }
  CHECK(refused.status == 2);
  CHECK(contains(refused.err, "kernel needs "));
  CHECK(contains(refused.err, "avx2"));
}

TEST_CASE("headers name the features that a kernel has use for") {
  const Folder folder;
  folder.write("half.yaml", "name: half\ninput: {shape: [N, 3], layout: nc, dtype: f16}\n"
                            "parameter_dtype: f32\n");
  auto needs = [&](const char *spec, const char *cpu) {
    REQUIRE(folder.run({"compile", spec, "--emit=obj,header", "--cpu", cpu, "-o", "k.o"}).status ==
            0);
    const std::string header = slurp(folder.path() / "k.h");
    const size_t at = header.find("which must have: ");
    return header.substr(at, header.find('\n', at) - at);
  };
  CHECK(needs("bn.yaml", "neoverse-n1") == "which must have: fp-armv8 neon. */");
  CHECK(needs("half.yaml", "neoverse-n1") == "which must have: fp-armv8 fullfp16 neon. */");
  CHECK(!contains(needs("bn.yaml", "sapphirerapids"), "avx512fp16"));
  CHECK(!contains(needs("bn.yaml", "sapphirerapids"), "avx512bf16"));
}
