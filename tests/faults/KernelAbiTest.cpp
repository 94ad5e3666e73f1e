// A stage keeps what the ABI says a function keeps: registers, control words, flags, the stack and
// its depth; and leaves no upper half of a vector register behind, which would slow the host's SSE
// code. Functions that break each rule show that it is seen.
#include "runtime/cpu_info/CpuInfo.h"
#include "tests/faults/Host.h"

#include <doctest/doctest.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

using namespace normforge::test;

#if defined(__x86_64__)

extern "C" {
/// The state that nf_probe_call found after the call.
struct ProbeRecord {
  uint64_t registers[6]; ///< rbx, rbp, r12 to r15
  uint64_t stackBefore, stackAfter, flags;
  uint32_t mxcsr, unused;
  uint8_t x87[32];       ///< FNSTENV: control word at 0, tag word at 8
  uint8_t upper[16][16]; ///< of ymm0 to ymm15
};
ProbeRecord nf_probe_record;
uint64_t nf_probe_host_stack;
uint32_t nf_probe_has_avx;
/// Calls function(call, first, last) on the stack that ends at `top`, every register that it must
/// keep filled with a pattern.
void nf_probe_call(nf_stage_fn *function, const nf_call *call, uint64_t first, uint64_t last,
                   void *top);
nf_stage_fn nf_breaks_register, nf_breaks_stack, nf_breaks_depth, nf_breaks_mxcsr, nf_breaks_x87,
    nf_breaks_tags, nf_breaks_direction, nf_breaks_upper, nf_breaks_nothing;
}

__asm__(R"(
.intel_syntax noprefix
.text
.globl nf_probe_call
nf_probe_call:
  push rbp
  push rbx
  push r12
  push r13
  push r14
  push r15
  mov [rip + nf_probe_host_stack], rsp
  mov r10, rdi
  mov rdi, rsi
  mov rsi, rdx
  mov rdx, rcx
  mov rsp, r8
  mov [rip + nf_probe_record + 48], rsp
  movabs rbx, 0x1b1b1b1b1b1b1b1b
  movabs rbp, 0x1c1c1c1c1c1c1c1c
  movabs r12, 0x1d1d1d1d1d1d1d1d
  movabs r13, 0x1e1e1e1e1e1e1e1e
  movabs r14, 0x1f1f1f1f1f1f1f1f
  movabs r15, 0x2020202020202020
  call r10
  mov [rip + nf_probe_record], rbx
  mov [rip + nf_probe_record + 8], rbp
  mov [rip + nf_probe_record + 16], r12
  mov [rip + nf_probe_record + 24], r13
  mov [rip + nf_probe_record + 32], r14
  mov [rip + nf_probe_record + 40], r15
  mov [rip + nf_probe_record + 56], rsp
  mov rsp, [rip + nf_probe_host_stack]
  pushfq
  pop rax
  cld
  mov [rip + nf_probe_record + 64], rax
  stmxcsr [rip + nf_probe_record + 72]
  fnstenv [rip + nf_probe_record + 80]
  fninit
  cmp dword ptr [rip + nf_probe_has_avx], 0
  je 1f
  lea rax, [rip + nf_probe_record + 112]
  vextractf128 [rax], ymm0, 1
  vextractf128 [rax + 16], ymm1, 1
  vextractf128 [rax + 32], ymm2, 1
  vextractf128 [rax + 48], ymm3, 1
  vextractf128 [rax + 64], ymm4, 1
  vextractf128 [rax + 80], ymm5, 1
  vextractf128 [rax + 96], ymm6, 1
  vextractf128 [rax + 112], ymm7, 1
  vextractf128 [rax + 128], ymm8, 1
  vextractf128 [rax + 144], ymm9, 1
  vextractf128 [rax + 160], ymm10, 1
  vextractf128 [rax + 176], ymm11, 1
  vextractf128 [rax + 192], ymm12, 1
  vextractf128 [rax + 208], ymm13, 1
  vextractf128 [rax + 224], ymm14, 1
  vextractf128 [rax + 240], ymm15, 1
  vzeroupper
1:
  pop r15
  pop r14
  pop r13
  pop r12
  pop rbx
  pop rbp
  ret

.globl nf_breaks_nothing
nf_breaks_nothing:
  ret
.globl nf_breaks_register
nf_breaks_register:
  inc r13
  ret
.globl nf_breaks_stack
nf_breaks_stack:
  ret 8
.globl nf_breaks_depth
nf_breaks_depth:
  mov byte ptr [rsp - 17000], 1
  ret
.globl nf_breaks_mxcsr
nf_breaks_mxcsr:
  push 0x1fc0
  ldmxcsr [rsp]
  pop rax
  ret
.globl nf_breaks_x87
nf_breaks_x87:
  push 0x027f
  fldcw [rsp]
  pop rax
  ret
.globl nf_breaks_tags
nf_breaks_tags:
  fld1
  ret
.globl nf_breaks_direction
nf_breaks_direction:
  std
  ret
.globl nf_breaks_upper
nf_breaks_upper:
  vcmpps ymm9, ymm9, ymm9, 15
  ret
.att_syntax
)");

namespace {

static_assert(offsetof(ProbeRecord, stackBefore) == 48 && offsetof(ProbeRecord, flags) == 64 &&
              offsetof(ProbeRecord, mxcsr) == 72 && offsetof(ProbeRecord, x87) == 80 &&
              offsetof(ProbeRecord, upper) == 112);

uint32_t mxcsr() {
  uint32_t value;
  __asm__ volatile("stmxcsr %0" : "=m"(value));
  return value;
}
void setMxcsr(uint32_t value) { __asm__ volatile("ldmxcsr %0" : : "m"(value)); }

constexpr uint32_t kStatusBits = 0x3F; // exceptions that have been: a result, not a mode

/// Which rules a call breaks, by name; empty: none.
std::string brokenRules(nf_stage_fn *function, const nf_call *call, uint64_t tasks,
                        size_t *depth = nullptr) {
  constexpr size_t stackBytes = 256 << 10;
  constexpr unsigned char paint = 0xA5;
  alignas(64) static unsigned char stack[stackBytes];
  std::memset(stack, paint, sizeof stack);
  nf_probe_has_avx = normforge::hostHasFeature("avx");
  const uint32_t before = mxcsr();
  std::memset(&nf_probe_record, 0, sizeof nf_probe_record);
  nf_probe_call(function, call, 0, tasks, stack + sizeof stack);
  setMxcsr(before);
  const ProbeRecord &r = nf_probe_record;
  std::string broken;
  auto rule = [&](bool holds, const char *name) {
    if (!holds)
      broken += std::string(broken.empty() ? "" : " ") + name;
  };
  for (size_t i = 0; i < 6; ++i)
    rule(r.registers[i] == 0x0101010101010101u * (0x1b + i), "register");
  rule(r.stackBefore == r.stackAfter, "stack");
  rule((r.mxcsr & ~kStatusBits) == (before & ~kStatusBits), "mxcsr");
  uint16_t control, tags;
  std::memcpy(&control, r.x87, sizeof control);
  std::memcpy(&tags, r.x87 + 8, sizeof tags);
  rule(control == 0x037F, "x87");
  rule(tags == 0xFFFF, "tags");
  rule(!(r.flags & 0x400), "direction");
  for (const auto &upper : r.upper)
    for (uint8_t byte : upper)
      if (byte) {
        rule(false, "upper");
        goto counted;
      }
counted:
  size_t untouched = 0;
  while (untouched < sizeof stack && stack[untouched] == paint)
    ++untouched;
  const size_t used = sizeof stack - untouched;
  if (depth)
    *depth = std::max(*depth, used);
  rule(used <= (16 << 10) + 8, "depth"); // and the return address
  return broken;
}

const char *const specs[] = {
    "name: a\ninput: {shape: [N, 5, 9, 7], layout: nchw}\naxis: c\nfuse: [add, relu]\n",
    "name: b\ninput: {shape: [N, 7, 7, 40], layout: nhwc}\naxis: c\n",
    "name: c\ninput: {shape: [N, 19, 6, 5], layout: nChw16c}\naxis: c\n",
    "name: d\ninput: {shape: [N, 100], layout: nc}\nmode: 1\naxis: -1\n",
    "name: e\ninput: {shape: [N, 5, 9], layout: nct, dtype: f64}\naxis: c\nepsilon: argument\n",
    "name: f\ninput: {shape: [N, 6, 33], layout: nct, dtype: bf16}\naxis: c\n",
    "name: g\ninput: {shape: [N, 3, 300, 300], layout: nchw}\naxis: c\n",
    "name: h\ninput: {shape: [N, 13, 5, 64], layout: nhwc, dtype: f16}\naxis: c\n",
};

} // namespace

TEST_CASE("kernel ABI: functions that break a rule are seen") {
  const nf_call call = {};
  CHECK(brokenRules(nf_breaks_nothing, &call, 1).empty());
  CHECK(brokenRules(nf_breaks_register, &call, 1) == "register");
  CHECK(brokenRules(nf_breaks_stack, &call, 1) == "stack");
  CHECK(brokenRules(nf_breaks_depth, &call, 1) == "depth");
  CHECK(brokenRules(nf_breaks_mxcsr, &call, 1) == "mxcsr");
  CHECK(brokenRules(nf_breaks_x87, &call, 1) == "x87");
  CHECK(brokenRules(nf_breaks_tags, &call, 1) == "tags");
  CHECK(brokenRules(nf_breaks_direction, &call, 1) == "direction");
  if (normforge::hostHasFeature("avx"))
    CHECK(brokenRules(nf_breaks_upper, &call, 1) == "upper");
}

TEST_CASE("kernel ABI: kernels keep registers, control words, flags and the stack") {
  nf_engine *engine = nullptr;
  REQUIRE(makeEngine({.compiler = nullptr}, &engine).isOk());
  const uint32_t before = mxcsr();
  // To nearest, down, up, to zero; denormals flushed and read as zero.
  const uint32_t modes[] = {0x1F80, 0x3F80, 0x5F80, 0x7F80, 0x9FC0};
  int calls = 0;
  size_t depth = 0;
  for (const char *cpu : {"native", "haswell", "x86-64-v2"})
    for (const char *spec : specs)
      for (const char *phase : {"inference", "training"}) {
        nf_compile_options options = {};
        options.struct_size = sizeof options;
        options.cpu = cpu;
        options.phase = phase;
        const std::string text = std::string(spec) + "phases: [inference, training]\n";
        nf_kernel *kernel = nullptr;
        const Outcome outcome =
            outcomeOf(nf_compile(engine, text.data(), text.size(), &options, &kernel));
        if (outcome.code == NF_WRONG_MACHINE) {
          MESSAGE("SKIP: ", std::string(outcome.message));
          continue;
        }
        INFO(std::string(cpu), " ", std::string(phase), "\n", text);
        REQUIRE_MESSAGE(outcome.isOk(), std::string(outcome.message));
        for (int64_t n : {3, 200}) { // of each variant, where sizes choose
          nf_plan *plan = nullptr;
          REQUIRE(outcomeOf(nf_plan_create(kernel, &n, 1, &plan)).isOk());
          std::vector<std::vector<unsigned char>> arrays;
          std::vector<void *> args;
          for (size_t i = 0; i < nf_kernel_argument_count(kernel); ++i) {
            arrays.emplace_back(nf_plan_argument_bytes(plan, i), 0x3C);
            args.push_back(arrays.back().data());
          }
          std::vector<unsigned char> memory(nf_plan_workspace_bytes(plan) + 64);
          void *workspace = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
          const nf_scalar epsilon = 1e-3;
          const nf_call call = {sizeof call,         0,        args.data(),
                                nf_plan_sizes(plan), &epsilon, workspace};
          CHECK(outcomeOf(nf_plan_check_call(plan, &call)).isOk());
          for (uint32_t mode : modes)
            for (size_t s = 0; s < nf_plan_stage_count(plan); ++s, ++calls) {
              setMxcsr(mode);
              const std::string broken = brokenRules(nf_plan_stage_function(plan, s), &call,
                                                     nf_plan_stage_tasks(plan, s), &depth);
              setMxcsr(before);
              CHECK_MESSAGE(broken.empty(), broken, " in mode ", mode, ", stage ",
                            std::string(nf_plan_stage_name(plan, s)));
            }
          nf_plan_release(plan);
        }
        nf_kernel_release(kernel);
      }
  nf_engine_release(engine);
  CHECK(calls > 300);
  std::printf("%d calls of stages, at most %zu bytes of stack\n", calls, depth);
}

#else

TEST_CASE("kernel ABI: of x86-64") { MESSAGE("SKIP: these rules are checked on x86-64 alone"); }

#endif
