// Files for other programs: their bytes, their headers in C99 and C++, programs without a library,
// and the CPU that a library chooses.
#include "compiler/export/CHeader.h"
#include "compiler/export/SharedLibrary.h"
#include "compiler/session/Session.h"
#include "runtime/cpu_info/CpuInfo.h"

#include "llvm/Support/JSON.h"
#include "llvm/Support/Program.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <sstream>

using namespace normforge;
namespace fs = std::filesystem;

namespace {

class Folder {
public:
  Folder() {
    std::string pattern = fs::temp_directory_path() / "normforge-export-XXXXXX";
    REQUIRE(mkdtemp(pattern.data()));
    path_ = pattern;
    write("bn.yaml", "name: bn\ninput: {shape: [N, 3, 7, 9], layout: nchw, dtype: f32}\naxis: c\n"
                     "phases: [inference, training]\nfuse: [relu]\n");
    // Names that C and C++ do not let through, numbers at the call, no named size.
    write("odd.yaml", "name: odd\ninput: {shape: [class, x, odd_training_stages, argument], "
                      "layout: nchw, dtype: f64}\naxis: c\n"
                      "epsilon: argument\nmomentum: argument\nphases: [training]\n");
    write("half.yaml", "name: half\ninput: {shape: [6, 70], layout: nc, dtype: bf16}\naxis: c\n"
                       "mode: 1\nphases: [inference]\n");
  }
  ~Folder() { fs::remove_all(path_); }
  void write(const std::string &name, const std::string &text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  std::string read(const std::string &name) const {
    std::ifstream file(path_ / name, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }
  /// The exit status of a shell's line in this folder; its output is in `log`.
  int run(const std::string &line) const {
    const int status =
        std::system(("cd '" + path_.string() + "' && { " + line + " ; } >log 2>&1").c_str());
    return WEXITSTATUS(status);
  }
  int normforge(const std::string &words) const { return run(NORMFORGE_COMMAND " " + words); }
  std::string log() const { return read("log"); }
  const fs::path &path() const { return path_; }

private:
  fs::path path_;
};

std::vector<TargetDescription> targetsOf(const std::vector<std::string> &cpus) {
  std::vector<TargetDescription> targets;
  for (const std::string &cpu : cpus) {
    auto target = describeTarget(cpu);
    REQUIRE(bool(target));
    targets.push_back(std::move(*target));
  }
  return targets;
}

bool hasLinker() {
  return llvm::sys::findProgramByName("ld.lld-22") || llvm::sys::findProgramByName("ld.lld");
}

} // namespace

TEST_CASE("export: the same input gives the same bytes") {
  const Folder folder;
  for (const char *cpu : {"haswell", "neoverse-n1", "neoverse-v1"})
    for (const char *out : {"one/", "two/"}) {
      INFO(cpu);
      CHECK(folder.normforge(fmt::format(
                "compile bn.yaml odd.yaml --cpu {} --emit=obj,asm,header,manifest{} -o {}", cpu,
                hasLinker() ? ",so" : "", out)) == 0);
      CHECK(folder.log() == "");
    }
  for (const char *file : {"bn.o", "bn.s", "bn.h", "bn.json", "odd.o", "odd.h", "odd.json"}) {
    INFO(file);
    CHECK(folder.read(std::string("one/") + file) != "");
    CHECK(folder.read(std::string("one/") + file) == folder.read(std::string("two/") + file));
  }
  if (hasLinker())
    CHECK(folder.read("one/bn.so") == folder.read("two/bn.so"));
  CHECK(folder.normforge("pack bn.yaml odd.yaml --cpu haswell,neoverse-n1 -o one.nfk") == 0);
  CHECK(folder.normforge("pack odd.yaml bn.yaml --cpu haswell,neoverse-n1 -o two.nfk") == 0);
  CHECK(folder.read("one.nfk") == folder.read("two.nfk"));
  CHECK(folder.normforge("pack --list one.nfk") == 0);
  CHECK(folder.log().find("6 kernels, 6 of them distinct code") != std::string::npos);
}

TEST_CASE("export: the manifest is JSON that names every symbol") {
  const Folder folder;
  REQUIRE(folder.normforge("compile bn.yaml --cpu haswell --emit=manifest -o bn.json") == 0);
  auto parsed = llvm::json::parse(folder.read("bn.json"));
  REQUIRE(bool(parsed));
  const llvm::json::Array *kernels = parsed->getAsObject()->getArray("kernels");
  REQUIRE(kernels->size() == 2);
  const llvm::json::Object *training = (*kernels)[1].getAsObject();
  CHECK(training->getString("phase") == "training");
  CHECK(training->getString("symbol") == "bn_training");
  CHECK(training->getArray("arguments")->size() == 10);
  const llvm::json::Object *cpu = (*training->getArray("cpus"))[0].getAsObject();
  CHECK(cpu->getString("cpu") == "haswell");
  const llvm::json::Object *variant = (*cpu->getArray("variants"))[0].getAsObject();
  const llvm::json::Object *stage = (*variant->getArray("stages"))[0].getAsObject();
  CHECK(stage->getString("symbol")->starts_with("bn_training__haswell"));
}

TEST_CASE("export: a program without any library") {
  const Folder folder;
  if (!hostHasFeature("sse4.2")) {
    MESSAGE("SKIP: the program is for x86-64 with SSE4.2");
    return;
  }
  REQUIRE(folder.normforge(
              "compile bn.yaml half.yaml --cpu x86-64-v2 --emit=obj,header -o kernels.o") == 0);
  // Exits with 0 where y is right: (x - 1) / sqrt(4 - 1e-3 + 1e-3) * 6 + 1 = 3 x - 2.
  folder.write("main.c", R"(#include "kernels.h"
static float x[2 * 189], y[2 * 189], gamma[3], beta[3], mean[3], variance[3];
static void leave(long status) {
  __asm__ volatile("syscall" : : "a"(60L), "D"(status) : "rcx", "r11", "memory");
}
__attribute__((force_align_arg_pointer)) void _start(void) {
  int i, wrong = 0;
  for (i = 0; i < 3; ++i) {
    gamma[i] = 6; beta[i] = 1; mean[i] = 1; variance[i] = 4 - 1e-3f;
  }
  for (i = 0; i < 378; ++i)
    x[i] = (float)i;
  if (bn_inference_bytes(bn_inference_X, 2) != sizeof x || bn_inference_workspace_bytes(2) != 0)
    leave(2);
  bn_inference(x, gamma, beta, mean, variance, y, 2, 0);
  for (i = 0; i < 378; ++i) {
    float expected = 3 * x[i] - 2, error;
    if (expected < 0)
      expected = 0;
    error = y[i] - expected;
    wrong += error > 1e-3f || error < -1e-3f;
  }
  leave(wrong != 0);
}
)");
  INFO(folder.log());
  CHECK(folder.run("cc -std=c99 -pedantic -Wall -Wextra -Werror -O1 -ffreestanding -nostdlib "
                   "-static -fno-stack-protector main.c kernels.o -o main && ./main") == 0);
  CHECK(folder.run("nm kernels.o >symbols && grep -q ' T ' symbols && ! grep ' U ' symbols") == 0);
}

TEST_CASE("export: a size that has to be a multiple is asked for it") {
  const Folder folder;
  folder.write("gn.yaml", "name: gn\nsemantics: pytorch\ninput: {shape: [N, C, 5], layout: ncw}\n"
                          "axis: c\nmode: group\ngroups: 3\n");
  REQUIRE(folder.normforge("compile gn.yaml --emit=obj,header -o gn.o") == 0);
  folder.write("main.c", "#include \"gn.h\"\n"
                         "int main(void) {\n"
                         "  static float x[64], gamma[16], beta[16], y[64];\n"
                         "  if (gn_inference(x, gamma, beta, y, 1, 9, 0) != 0) return 1;\n"
                         "  y[0] = 7;\n"
                         "  if (gn_inference(x, gamma, beta, y, 1, 10, 0) != 2) return 2;\n"
                         "  return y[0] == 7 ? 0 : 3;\n"
                         "}\n");
  CHECK(folder.run("cc -std=c99 -Wall -Wextra -Werror main.c gn.o -o main") == 0);
  CHECK_MESSAGE(folder.run("./main") == 0, folder.log());
}

TEST_CASE("export: headers are C99 and C++, without a warning") {
  const Folder folder;
  for (const char *cpu : {"native", "neoverse-n1"}) {
    INFO(cpu);
    REQUIRE(folder.normforge(fmt::format(
                "compile bn.yaml odd.yaml half.yaml --cpu {} --emit=header -o all.h", cpu)) == 0);
    folder.write("use.c",
                 "#include \"all.h\"\n#include \"all.h\"\n"
                 "int use(void *w) { double d[64] = {0}; return odd_training(d, d, d, d, d, "
                 "d, d, d, d, d, 1, 2, 3, 4, 1e-3, 0.9, w); }\n");
    CHECK_MESSAGE(folder.run("cc -std=c99 -pedantic -Wall -Wextra -Wconversion -Werror -c use.c") ==
                      0,
                  folder.log());
    CHECK_MESSAGE(folder.run("c++ -x c++ -std=c++11 -pedantic -Wall -Wextra -Werror -c use.c") == 0,
                  folder.log());
  }
}

TEST_CASE("export: a variant may have any number of stages") {
  // Six stages up to N = 4, two beyond. No kernel of today has as many; the header asks none.
  Artifact artifact;
  artifact.name = "many";
  artifact.phase = "training";
  artifact.triple = "x86_64-unknown-linux-gnu";
  artifact.cpu = "x86-64";
  artifact.sizes = {"N"};
  Argument argument;
  argument.name = "y";
  argument.shape = {SizeExpr::size(0)};
  argument.written = true;
  artifact.arguments = {argument};
  for (const auto &[stages, limit] : {std::pair(6, int64_t{4}), std::pair(2, INT64_MAX)}) {
    Variant variant;
    variant.guard = {SizeExpr::size(0), limit};
    for (int s = 0; s < stages; ++s)
      variant.stages.push_back({fmt::format("of{}_{}", stages, s), 0, 10 * stages + s, 1});
    artifact.variants.push_back(variant);
  }
  const Folder folder;
  folder.write("many.h", cHeader({"many", "", {{"many_training", "by hand", {artifact}}}}));
  std::string program = "#include \"many.h\"\nstatic int calls[8], order;\n";
  for (const int stages : {6, 2})
    for (int s = 0; s < stages; ++s)
      program +=
          fmt::format("void of{0}_{1}(const nf_call *call, uint64_t first, uint64_t last) {{\n"
                      "  (void)call;\n  if (first == 0 && last == {0}{1})\n"
                      "    calls[{1}] = ++order;\n}}\n",
                      stages, s);
  folder.write("main.c", program + R"(
static int run(int64_t n, int stages) {
  int s;
  order = 0;
  for (s = 0; s < 8; ++s)
    calls[s] = 0;
  if (many_training_stages(n) != (uint32_t)stages || many_training(0, n, 0) != 0)
    return 1;
  for (s = 0; s < 8; ++s)
    if (calls[s] != (s < stages ? s + 1 : 0))
      return 2;
  for (s = stages; s < 20; ++s) /* none is another variant's */
    if (many_training_stage((uint32_t)s, n) || many_training_tasks((uint32_t)s, n))
      return 3;
  return 0;
}
int main(void) { return run(4, 6) * 10 + run(5, 2); }
)");
  const int status = folder.run("cc -std=c99 -Wall -Wextra -Werror main.c -o main && ./main");
  CHECK_MESSAGE(status == 0, folder.log());
}

TEST_CASE("export: headers of one name for two CPUs do not hide each other") {
  const Folder folder;
  REQUIRE(folder.normforge("compile bn.yaml --cpu haswell --emit=header -o one/") == 0);
  REQUIRE(folder.normforge("compile bn.yaml --cpu znver4 --emit=header -o two/") == 0);
  folder.write("both.c", "#include \"one/bn.h\"\n#include \"one/bn.h\"\n#include \"two/bn.h\"\n");
  CHECK(folder.run("cc -c both.c") != 0);
  CHECK(folder.log().find("two headers of kernels named bn for different CPUs") !=
        std::string::npos);
}

TEST_CASE("export: a library chooses the CPU when it is loaded") {
  const std::vector<std::string> cpus = {"x86-64-v3", "x86-64-v2", "x86-64-v4", "znver5"};
  if (!hasLinker() || hostArchitecture() != "x86_64") {
    MESSAGE("SKIP: needs ld.lld, and x86-64");
    return;
  }
  const Folder folder;
  const auto targets = targetsOf(cpus);
  // The target that this machine takes, by the rule.
  uint32_t expected = UINT32_MAX;
  size_t most = 0;
  for (uint32_t i = 0; i < targets.size(); ++i) {
    const auto sets = targets[i].instructionSets();
    const bool runs = std::all_of(sets.begin(), sets.end(), [](const std::string &feature) {
      return hostHasFeature(feature);
    });
    if (runs && sets.size() > most) {
      most = sets.size();
      expected = i;
    }
  }
  REQUIRE(folder.normforge("compile bn.yaml --cpu x86-64-v3,x86-64-v2,x86-64-v4,znver5 "
                           "--emit=so,header -o libbn.so") == 0);
  void *library = dlopen((folder.path() / "libbn.so").c_str(), RTLD_NOW);
  REQUIRE(library);
  auto *chosen = reinterpret_cast<uint32_t (*)()>(dlsym(library, "libbn_cpu"));
  REQUIRE(bool(chosen != nullptr));
  CHECK(chosen() == expected);
  // None of these is this machine's.
  TargetDescription nobody = targets[0];
  nobody.features.push_back("avx9000");
  auto strange = selectorObject("nobody_cpu", {nobody});
  REQUIRE(!strange);
  CHECK(llvm::toString(strange.takeError()) ==
        "no code is known that asks a machine for avx9000, which kernels for x86-64-v3 need");
  nobody.features.back() = "fma4"; // of one family of CPUs, without AVX-512
  nobody.features.push_back("avx512f");
  auto object = selectorObject("nobody_cpu", {nobody});
  REQUIRE(bool(object));
  auto bytes = linkSharedLibrary({*object}, "libnobody.so");
  REQUIRE(bool(bytes));
  folder.write("libnobody.so", *bytes);
  void *other = dlopen((folder.path() / "libnobody.so").c_str(), RTLD_NOW);
  REQUIRE(other);
  CHECK(reinterpret_cast<uint32_t (*)()>(dlsym(other, "nobody_cpu"))() == UINT32_MAX);

  // A program that links it, and computes.
  folder.write("main.c", R"(#include "libbn.h"
#include <stdio.h>
#include <stdlib.h>
static float x[3 * 189], y[3 * 189], gamma[3] = {1, 1, 1}, beta[3], mean[3], variance[3], m[3], v[3];
int main(void) {
  void *workspace = aligned_alloc(64, bn_training_workspace_bytes(3) / 64 * 64 + 64);
  for (int i = 0; i < 567; ++i)
    x[i] = (float)(i % 2 ? 1 : -1);
  if (bn_training(x, gamma, beta, mean, variance, y, mean, variance, m, v, 3, workspace))
    return 3;
  for (int i = 0; i < 567; ++i)
    if (y[i] < 0 || y[i] > 1.01f)
      return 1;
  free(workspace);
  return libbn_cpu() > 3;
}
)");
  CHECK_MESSAGE(folder.run("cc -std=c11 -Wall -Wextra -Werror main.c -L. -lbn -Wl,-rpath,. -o main "
                           "&& ./main") == 0,
                folder.log());
  // All of its symbols are its own.
  CHECK(folder.run("nm -D libbn.so >symbols && grep -q ' i libbn_cpu' symbols && "
                   "! grep ' U ' symbols") == 0);
}

TEST_CASE("export: what cannot be is said") {
  const Folder folder;
  auto says = [&](const std::string &words, const std::string &text) {
    INFO(words);
    CHECK(folder.normforge(words) == 2);
    CHECK_MESSAGE(folder.log().find(text) != std::string::npos, folder.log());
  };
  says("compile bn.yaml --cpu haswell,znver4 --emit=obj -o a.o",
       "--emit=obj is of one CPU, and --cpu names 2; a library (so) or `normforge pack` chooses");
  says("compile bn.yaml --cpu haswell,neoverse-n1 --emit=so -o a.so",
       "--cpu: haswell and neoverse-n1 are of different machines");
  says("compile bn.yaml --cpu haswell,haswell --emit=so -o a.so", "--cpu: haswell is given twice");
  says("compile bn.yaml --cpu haswell --target aarch64-linux-gnu --emit=obj -o a.o",
       "--target and --cpu: unknown CPU 'haswell' of aarch64; expected native or one of: "
       "cortex-a72");
  says("compile bn.yaml --target riscv64-linux-gnu --emit=obj -o a.o",
       "unknown machine 'riscv64-linux-gnu'; expected x86_64-linux-gnu, aarch64-linux-gnu or "
       "aarch64-none-elf");
  says("compile bn.yaml --cpu x86-64 --emit=obj -o a.o", "has no SSE4.2");
  says("compile bn.yaml --emit=obj,header -o a.txt", "expected a directory, or a file of one of");
  says("compile bn.yaml --emit=obj,header", "several kinds of files need a name");
  says("compile bn.yaml --emit=obj,vector -o a/", "a stage of the compilation is printed alone");
  says("compile bn.yaml bn.yaml --emit=obj -o a.o", "are both named bn");
  says("compile bn.yaml odd.yaml --emit=vector", "is of one spec for one CPU");
  says("compile bn.yaml --cpu skylake-avx512,skylake_avx512 --emit=so -o a.so", "is given twice");
  for (const char *other :
       {"x86_64-linux-gnux32", "aarch64-linux-gnu_ilp32", "x86_64-windows-msvc"})
    says(fmt::format("compile bn.yaml --target {} --cpu haswell --emit=obj -o a.o", other),
         "unknown machine");
  says("compile bn.yaml --cpu diamondrapids --emit=so -o a.so", "asks a machine for avx10");
  says("pack --list bn.yaml --phase training", "leave out specs");
  CHECK(folder.run("mkfifo pipe && timeout 10 " NORMFORGE_COMMAND " pack --list pipe") == 2);
  CHECK(folder.run("rm pipe") == 0);
  CHECK(folder.run("ln -s bn.yaml link.o") == 0);
  for (const char *words :
       {"compile bn.yaml --emit=obj -o bn.yaml", "compile bn.yaml --emit=obj -o link.o",
        "compile bn.yaml --emit=vector -o ./bn.yaml", "pack bn.yaml -o bn.yaml"})
    says(words, "that was read; it is left as it is");
  CHECK(folder.read("bn.yaml").starts_with("name: bn"));
  CHECK(folder.run("rm link.o") == 0);
  says("pack bn.yaml", "-o is missing");
  says("pack -o a.nfk", "specs are missing");
  says("pack --list bn.yaml", "bn.yaml: these bytes are not a Normforge pack");
  says("pack bn.yaml --cpu z80 -o a.nfk", "unknown CPU 'z80'");
  for (const auto &entry : fs::directory_iterator(folder.path()))
    CHECK_MESSAGE((entry.path().extension() == ".yaml" || entry.path().filename() == "log"),
                  entry.path().string());
}
