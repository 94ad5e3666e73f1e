#include "compiler/export/SharedLibrary.h"

#include "compiler/export/Tool.h"
#include "compiler/target/CodeGen.h"
#include "runtime/cpu_info/CpuFeatures.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/AsmParser/Parser.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/Program.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Target/TargetMachine.h"

#include <fmt/format.h>
#include <map>
#include <numeric>

namespace normforge {

namespace {

/// The bits of a word that a CPU's features stand for, by word; "states" is XCR0.
using Masks = std::map<std::string, uint64_t>;

std::string x86Word(x86::Word word) { return fmt::format("word{}", static_cast<int>(word)); }

llvm::Expected<Masks> masksOf(const TargetDescription &target) {
  Masks masks;
  for (const std::string &name : target.instructionSets()) {
    bool found = false;
    if (target.isX86()) {
      for (const x86::Feature &feature : x86::features)
        if (feature.name == name) {
          found = true;
          masks[x86Word(feature.word)] |= uint64_t(1) << feature.bit;
          masks["states"] |= x86::stateBits[static_cast<size_t>(feature.state)];
        }
    } else {
      for (const aarch64::Feature &feature : aarch64::features)
        if (feature.name == name) {
          found = true;
          masks[fmt::format("word{}", feature.word)] |= uint64_t(1) << feature.bit;
        }
    }
    // AVX10's version is in a leaf that others lack.
    if (!found || name.starts_with("avx10"))
      return llvm::createStringError(
          fmt::format("no code is known that asks a machine for {}, which kernels for {} need",
                      name, target.cpu));
  }
  return masks;
}

/// The words as i64, from CPUID.
std::string readX86() {
  std::string ir = R"(
  %limits = call { i32, i32, i32, i32 } asm sideeffect "cpuid", "={ax},={bx},={cx},={dx},{ax},{cx},~{dirflag},~{fpsr},~{flags}"(i32 0, i32 0)
  %most = extractvalue { i32, i32, i32, i32 } %limits, 0
)";
  for (size_t i = 0; i < std::size(x86::sources); ++i) {
    const x86::Source &source = x86::sources[i];
    ir += fmt::format(
        "  %leaf{0} = call {{ i32, i32, i32, i32 }} asm sideeffect \"cpuid\", "
        "\"={{ax}},={{bx}},={{cx}},={{dx}},{{ax}},{{cx}},~{{dirflag}},~{{fpsr}},~{{flags}}\"(i32 "
        "{1}, i32 {2})\n"
        "  %value{0} = extractvalue {{ i32, i32, i32, i32 }} %leaf{0}, {3}\n"
        "  %wide{0} = zext i32 %value{0} to i64\n",
        i, static_cast<int32_t>(source.leaf), source.subleaf, source.result);
    // A leaf beyond the last one answers as the last one does.
    if (source.leaf < 0x80000000)
      ir += fmt::format("  %has{0} = icmp uge i32 %most, {1}\n"
                        "  %word{0} = select i1 %has{0}, i64 %wide{0}, i64 0\n",
                        i, source.leaf);
    else
      ir += fmt::format("  %word{0} = add i64 %wide{0}, 0\n", i);
  }
  // XGETBV is there where OSXSAVE says so.
  ir += R"(
  %osxsave = and i64 %word0, 134217728
  %saves = icmp ne i64 %osxsave, 0
  br i1 %saves, label %read, label %choose
read:
  %pair = call { i32, i32 } asm sideeffect "xgetbv", "={ax},={dx},{cx},~{dirflag},~{fpsr},~{flags}"(i32 0)
  %low = extractvalue { i32, i32 } %pair, 0
  %states.read = zext i32 %low to i64
  br label %choose
choose:
  %states = phi i64 [ %states.read, %read ], [ 0, %entry ]
)";
  return ir;
}

/// The words as the loader hands them to a resolver (sys/ifunc.h): hwcap, with bit 62 set where a
/// struct of its size, hwcap and hwcap2 follows.
/// Where SVE's vectors are not a power of two of bits long, no kernel is right, and SVE counts as
/// missing: bit 22 of hwcap. The length is `rdvl x0, #1`.
const char *const kReadAarch64 = R"(
  %sve.bit = and i64 %hwcap, 4194304
  %has.sve = icmp ne i64 %sve.bit, 0
  br i1 %has.sve, label %length, label %words
length:
  %bytes = call i64 asm sideeffect ".inst 0x04bf5020", "={x0}"()
  %less = sub i64 %bytes, 1
  %shared = and i64 %bytes, %less
  %is.power = icmp eq i64 %shared, 0
  %without = and i64 %hwcap, -4194305
  %measured = select i1 %is.power, i64 %hwcap, i64 %without
  br label %words
words:
  %word1 = phi i64 [ %hwcap, %entry ], [ %measured, %length ]
  %flag = and i64 %hwcap, 4611686018427387904
  %more = icmp ne i64 %flag, 0
  br i1 %more, label %read, label %choose
read:
  %place = getelementptr i8, ptr %more.words, i64 16
  %hwcap2 = load i64, ptr %place
  br label %choose
choose:
  %word2 = phi i64 [ %hwcap2, %read ], [ 0, %words ]
)";

llvm::Error missingLinker() {
  return llvm::createStringError(
      "a shared library needs LLVM's linker, and no ld.lld is found on the PATH; Debian has it in "
      "the package lld-22");
}

} // namespace

llvm::Expected<std::string> selectorIr(const std::string &name,
                                       const std::vector<TargetDescription> &targets) {
  const bool isX86 = targets.front().isX86();
  std::string ir = fmt::format("target triple = \"{}\"\n", targets.front().triple);
  std::vector<Masks> masks;
  for (const TargetDescription &target : targets) {
    auto found = masksOf(target);
    if (!found)
      return found.takeError();
    masks.push_back(std::move(*found));
  }
  for (size_t i = 0; i <= targets.size(); ++i)
    ir += fmt::format("define internal i32 @{}.{}() nounwind {{\n  ret i32 {}\n}}\n", name, i,
                      i == targets.size() ? -1 : static_cast<int>(i));
  ir += fmt::format("@{0} = ifunc i32 (), ptr @{0}.resolve\n"
                    "define internal ptr @{0}.resolve({1}) nounwind {{\nentry:\n",
                    name, isX86 ? "" : "i64 %hwcap, ptr %more.words");
  ir += isX86 ? readX86() : kReadAarch64;
  // From the one that asks for least to the one that asks for most, the last that fits stays.
  std::vector<size_t> order(targets.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const size_t ofA = targets[a].instructionSets().size();
    const size_t ofB = targets[b].instructionSets().size();
    return ofA != ofB ? ofA < ofB : a > b;
  });
  std::string chosen = fmt::format("@{}.{}", name, targets.size());
  for (size_t i : order) {
    std::string fits = "true";
    int step = 0;
    for (const auto &[word, mask] : masks[i]) {
      ir += fmt::format("  %bits{0}.{1} = and i64 %{2}, {3}\n"
                        "  %has{0}.{1} = icmp eq i64 %bits{0}.{1}, {3}\n"
                        "  %fits{0}.{1} = and i1 {4}, %has{0}.{1}\n",
                        i, step, word, static_cast<int64_t>(mask), fits);
      fits = fmt::format("%fits{}.{}", i, step++);
    }
    ir +=
        fmt::format("  %chosen{0} = select i1 {1}, ptr @{2}.{0}, ptr {3}\n", i, fits, name, chosen);
    chosen = fmt::format("%chosen{}", i);
  }
  return ir + fmt::format("  ret ptr {}\n}}\n", chosen);
}

llvm::Expected<std::string> selectorObject(const std::string &name,
                                           const std::vector<TargetDescription> &targets) {
  // Code that runs before anything is known of the machine: its baseline alone.
  TargetDescription baseline;
  baseline.triple = targets.front().triple;
  baseline.cpu = targets.front().isX86() ? "x86-64" : "generic";
  auto machine = createMachine(baseline);
  llvm::LLVMContext context;
  llvm::SMDiagnostic problem;
  auto ir = selectorIr(name, targets);
  if (!ir)
    return ir.takeError();
  auto module = llvm::parseAssemblyString(*ir, problem, context);
  if (!module)
    return llvm::createStringError("the selector is no LLVM IR: " + problem.getMessage().str());
  module->setDataLayout(machine->createDataLayout());
  protectBranches(*module);
  noteProtection(*module);
  const llvm::SmallVector<char, 0> object = ObjectEmitter(*machine).emit(*module);
  return std::string(object.begin(), object.end());
}

llvm::Expected<std::string> linkSharedLibrary(const std::vector<std::string> &objects,
                                              const std::string &soname) {
  std::string linker;
  for (const char *candidate : {"ld.lld-22", "ld.lld"})
    if (auto found = llvm::sys::findProgramByName(candidate); found && linker.empty())
      linker = *found;
  if (linker.empty())
    return missingLinker();
  std::vector<ToolInput> inputs;
  for (size_t i = 0; i < objects.size(); ++i)
    inputs.push_back({fmt::format("{}.o", i), &objects[i]});
  // The linker writes what it is told into the library: nothing here depends on the folder.
  return runTool(
      linker, inputs, [&](const std::vector<std::string> &paths, const std::string &output) {
        std::vector<std::string> words = {
            "-shared",          "--no-undefined", "-z",   "noexecstack", "--build-id=none",
            "--hash-style=gnu", "-soname",        soname, "-o",          output};
        words.insert(words.end(), paths.begin(), paths.end());
        return words;
      });
}

} // namespace normforge
