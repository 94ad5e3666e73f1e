// No library call is left in a kernel, and no instruction that its CPU lacks or runs slowly.
#include "compiler/session/Session.h"

#include <doctest/doctest.h>

#include "llvm/ADT/StringExtras.h"

#include <filesystem>
#include <map>
#include <set>

using namespace normforge;

namespace {

std::vector<std::string> specPaths() {
  std::set<std::string> paths;
  for (const auto &entry :
       std::filesystem::recursive_directory_iterator(NORMFORGE_SOURCE_DIR "/specs"))
    if (entry.path().extension() == ".yaml")
      paths.insert(entry.path().string());
  return {paths.begin(), paths.end()};
}

bool isRegisterOrImmediate(llvm::StringRef operand) {
  return operand.starts_with("%") || operand.starts_with("$");
}

/// The same of an instruction for Arm.
std::string faultOfArm(llvm::StringRef mnemonic, llvm::StringRef operands,
                       const TargetDescription &target) {
  if (mnemonic == "bl" || mnemonic == "blr" || mnemonic == "svc" || mnemonic == "brk")
    return "a call";
  if (mnemonic == "b" && !operands.starts_with(".L"))
    return "a jump to a symbol";
  if (mnemonic == "msr")
    return "a change of the rounding mode";
  if (operands.contains("tpidr"))
    return "thread-local storage";
  if (operands.contains(":got"))
    return "a reference to another object";
  // "z3.s", "p0/z"; also in lists: "{ z16.s }".
  if (!target.scalableVectors) {
    llvm::SmallVector<llvm::StringRef> words;
    llvm::SplitString(operands, words, " ,{}[]");
    for (llvm::StringRef word : words)
      if (word.size() > 1 && (word[0] == 'z' || word[0] == 'p') && llvm::isDigit(word[1]))
        return "SVE";
  }
  return mnemonic.starts_with("bfcvt") && !target.has("bf16") ? "bf16" : "";
}

/// The instructions that must not be in the code, one a line; empty for good code.
std::string faults(llvm::StringRef assembly, const TargetDescription &target) {
  std::string text;
  llvm::SmallVector<llvm::StringRef> lines;
  assembly.split(lines, '\n');
  bool instructions = false;
  for (llvm::StringRef line : lines) {
    const auto [whole, comment] = target.isX86() ? line.split('#') : line.split("//");
    const llvm::StringRef code = whole.trim();
    if (code.empty() || code.starts_with(".") || code.ends_with(":"))
      continue;
    instructions = true;
    const auto [mnemonic, operandText] = llvm::getToken(code);
    const llvm::StringRef operands = operandText.trim();
    std::string fault;
    if (!target.isX86())
      fault = faultOfArm(mnemonic, operands, target);
    else if (mnemonic.starts_with("call") || mnemonic == "syscall" || mnemonic == "int3")
      fault = "a call";
    else if (mnemonic.starts_with("j") && !operands.starts_with(".L") &&
             !operands.starts_with("*%"))
      fault = "a jump to a symbol";
    else if (mnemonic.starts_with("rep") || mnemonic.starts_with("stos") ||
             (mnemonic.starts_with("movs") && operands.empty()))
      fault = "a copy or fill by string instructions";
    else if (mnemonic.starts_with("ldmxcsr") || mnemonic.starts_with("vldmxcsr"))
      fault = "a change of the rounding mode";
    else if (mnemonic.starts_with("emms") || mnemonic.starts_with("f2xm1"))
      fault = "x87";
    else if (operands.contains("%fs:") || operands.contains("%gs:"))
      fault = "thread-local storage";
    else if (operands.contains("@PLT") || operands.contains("@GOT"))
      fault = "a reference to another object";
    else if (!target.maskedTails) {
      if (operands.contains("%zmm") || operands.contains("{%k"))
        fault = "AVX-512";
      // Masked stores are microcoded on Zen: narrower vectors take their place.
      else if (target.vectorBits < 256 && operands.contains("%ymm"))
        fault = "AVX";
      else if (mnemonic.starts_with("vmaskmov") &&
               !isRegisterOrImmediate(operands.rsplit(", ").second))
        fault = "a masked store";
    }
    if (!fault.empty())
      text += fault + ": " + code.str() + "\n";
  }
  return instructions ? text : "no code at all\n";
}

} // namespace

TEST_CASE("faults are found") {
  auto haswell = describeTarget("haswell"), skylake = describeTarget("skylake-avx512");
  REQUIRE(haswell);
  REQUIRE(skylake);
  for (const char *bad : {"\tcallq\tmemset@PLT", "\tjmp\tmemcpy", "\trep\tstosq",
                          "\tmovq\t%fs:40, %rax", "\tmovq\tfoo@GOTPCREL(%rip), %rax"})
    CHECK_MESSAGE(!faults(bad, *skylake).empty(), std::string(bad));
  for (const char *bad : {"\tvaddps\t%zmm1, %zmm2, %zmm3", "\tvmaskmovps\t%ymm0, %ymm1, (%rdi)",
                          "\tvmovups\t(%rdi), %ymm0 {%k1} {z}"}) {
    CHECK_MESSAGE(!faults(bad, *haswell).empty(), std::string(bad));
    CHECK_MESSAGE(faults("\tretq\n" + std::string(bad), *skylake).empty(), std::string(bad));
  }
  auto arm = describeTarget("neoverse-n1"), sve = describeTarget("neoverse-v1");
  REQUIRE(arm);
  REQUIRE(sve);
  for (const char *bad : {"\tbl\tmemset", "\tb\tmemcpy", "\tmrs\tx0, tpidr_el0",
                          "\tadrp\tx0, :got:foo", "\tmsr\tfpcr, x0"})
    CHECK_MESSAGE(!faults(bad, *sve).empty(), std::string(bad));
  for (const char *bad :
       {"\tld1w\t{ z1.s }, p0/z, [x0]", "\twhilelt\tp0.s, xzr, x1", "\tbfcvtn\tv0.4h, v1.4s"}) {
    CHECK_MESSAGE(!faults(bad, *arm).empty(), std::string(bad));
    CHECK_MESSAGE(faults("\tret\n" + std::string(bad), *sve).empty(), std::string(bad));
  }
  CHECK(faults("\tb.ge\t.LBB0_1\n\tprfm\tpldl1keep, [x0]", *arm).empty());
  CHECK(faults("\tvmaskmovps\t(%rdi), %ymm0, %ymm1\n\tjmp\t.LBB0_1\n\tretq", *haswell).empty());
  CHECK_FALSE(faults("\t.text\nlabel:\n", *skylake).empty());
}

TEST_CASE("no call is left in the kernels of specs/") {
  const auto paths = specPaths();
  REQUIRE(paths.size() >= 50);
  for (const char *cpu : {"native", "haswell", "skylake-avx512", "znver4", "x86-64-v2",
                          "neoverse-n1", "neoverse-v1"}) {
    auto target = describeTarget(cpu);
    if (!target) { // a machine without AVX2
      MESSAGE("SKIP: " << llvm::toString(target.takeError()));
      continue;
    }
    Session session(*target, /*verify=*/true);
    for (const std::string &path : paths) {
      auto spec = readSpec(path);
      if (!spec)
        FAIL(llvm::toString(spec.takeError()));
      for (Phase phase : spec->phases) {
        INFO("build/bin/normforge compile ", path, " --phase ", std::string(toString(phase)),
             " --cpu ", std::string(cpu), " --emit=asm");
        const Operator op = makeOperator(*spec, phase);
        auto texts = session.emit(op, selectSchedules(op, *target), EmitStage::Assembly);
        if (!texts)
          FAIL(llvm::toString(texts.takeError()));
        for (const std::string &text : *texts) {
          const std::string wrong = faults(text, *target);
          CHECK_MESSAGE(wrong.empty(), wrong);
        }
      }
    }
  }
}
