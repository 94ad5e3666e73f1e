// An artifact with machine code written by hand.
#pragma once

#include "runtime/artifact/Artifact.h"

#include <cmath>

namespace normforge {

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
inline const uint8_t code[] = {
    0x48, 0x8b, 0x47, 0x08, 0x48, 0x8b, 0x08, 0x4c, 0x8b, 0x40, 0x08, 0x48, 0x39, 0xd6, 0x73, 0x16,
    0xf3, 0x0f, 0x10, 0x04, 0xb1, 0xf3, 0x41, 0x0f, 0x58, 0x04, 0xb0, 0xf3, 0x41, 0x0f, 0x11, 0x04,
    0xb0, 0x48, 0xff, 0xc6, 0xeb, 0xe5, 0xc3, 0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x48, 0x8b, 0x47, 0x08, 0x4c, 0x8b, 0x40, 0x08, 0x4c, 0x8b, 0x48, 0x10, 0x4c, 0x8b, 0x57, 0x10,
    0x4d, 0x8b, 0x12, 0x4c, 0x8b, 0x5f, 0x18, 0xf2, 0x41, 0x0f, 0x5a, 0x0b, 0x48, 0x39, 0xd6, 0x73,
    0x1c, 0x4c, 0x89, 0xd1, 0x48, 0x29, 0xf1, 0xf3, 0x41, 0x0f, 0x10, 0x44, 0x88, 0xfc, 0xf3, 0x0f,
    0x58, 0xc1, 0xf3, 0x41, 0x0f, 0x11, 0x04, 0xb1, 0x48, 0xff, 0xc6, 0xeb, 0xdf, 0xc3};

inline const SizeExpr N = SizeExpr::size(0);

/// x, y, z of shape [N]. Up to N = 100 its tasks are small; above, they claim 4 KiB each and the
/// kernel takes 8 N bytes of workspace. z may be x's buffer.
inline Artifact sample() {
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

} // namespace normforge
