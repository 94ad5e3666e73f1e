/* The fixed part of the driver: `items`, `ITEMS` and the generated header come before it. Reads all
 * inputs from argv[1], runs each item, and writes what was written to argv[2]. Each array ends at a
 * page that cannot be touched; outputs begin as NaN; tasks run in ranges drawn with argv[3]. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t state;
static uint64_t draw(void) { /* xorshift */
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

/* Calls a stage and gives what it broke of what it must keep (Procedure Call Standard for the Arm
 * 64-bit Architecture, 6): bit 0 the stack pointer, 1 x19 to x29, 2 the low halves of v8 to v15, 3
 * the modes of FPCR. */
uint64_t checked_call(nf_stage_fn *stage, const nf_call *call, uint64_t first, uint64_t last);
uint64_t checked_stack;
nf_stage_fn breaks_stack, breaks_register, breaks_vector, breaks_mode;
__asm__(".text\n"
        ".macro set_all\n"
        "  .irp n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29\n"
        "  mov x\\n, #0x1000 + \\n\n"
        "  .endr\n"
        "  .irp n, 8, 9, 10, 11, 12, 13, 14, 15\n"
        "  fmov d\\n, x29\n"
        "  .endr\n"
        ".endm\n"
        ".macro note bit\n" /* what was compared differs: a bit of x0 */
        "  cset x13, ne\n"
        "  orr x0, x0, x13, lsl \\bit\n"
        ".endm\n"
        ".globl checked_call\n"
        "checked_call:\n"
        "  stp x29, x30, [sp, #-192]!\n"
        "  stp x19, x20, [sp, #16]\n"
        "  stp x21, x22, [sp, #32]\n"
        "  stp x23, x24, [sp, #48]\n"
        "  stp x25, x26, [sp, #64]\n"
        "  stp x27, x28, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n"
        "  stp d10, d11, [sp, #112]\n"
        "  stp d12, d13, [sp, #128]\n"
        "  stp d14, d15, [sp, #144]\n"
        "  mrs x9, fpcr\n"
        "  str x9, [sp, #160]\n"
        "  adrp x10, checked_stack\n"
        "  mov x11, sp\n"
        "  str x11, [x10, :lo12:checked_stack]\n"
        "  mov x9, x0\n"
        "  mov x0, x1\n"
        "  mov x1, x2\n"
        "  mov x2, x3\n"
        "  set_all\n"
        "  blr x9\n"
        "  adrp x10, checked_stack\n"
        "  ldr x11, [x10, :lo12:checked_stack]\n"
        "  mov x12, sp\n"
        "  mov sp, x11\n"
        "  mov x0, #0\n"
        "  cmp x11, x12\n"
        "  note 0\n"
        "  .irp n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29\n"
        "  mov x12, #0x1000 + \\n\n"
        "  cmp x\\n, x12\n"
        "  note 1\n"
        "  .endr\n"
        "  mov x12, #0x1000 + 29\n"
        "  .irp n, 8, 9, 10, 11, 12, 13, 14, 15\n"
        "  fmov x14, d\\n\n"
        "  cmp x14, x12\n"
        "  note 2\n"
        "  .endr\n"
        "  mrs x9, fpcr\n"
        "  ldr x12, [sp, #160]\n"
        "  msr fpcr, x12\n"
        "  cmp x9, x12\n"
        "  note 3\n"
        "  ldp x19, x20, [sp, #16]\n"
        "  ldp x21, x22, [sp, #32]\n"
        "  ldp x23, x24, [sp, #48]\n"
        "  ldp x25, x26, [sp, #64]\n"
        "  ldp x27, x28, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n"
        "  ldp d10, d11, [sp, #112]\n"
        "  ldp d12, d13, [sp, #128]\n"
        "  ldp d14, d15, [sp, #144]\n"
        "  ldp x29, x30, [sp], #192\n"
        "  ret\n"
        ".globl breaks_stack\n"
        "breaks_stack: sub sp, sp, #16\n  ret\n"
        ".globl breaks_register\n"
        "breaks_register: add x23, x23, #1\n  ret\n"
        ".globl breaks_vector\n"
        "breaks_vector: movi v13.4s, #1\n  ret\n"
        ".globl breaks_mode\n"
        "breaks_mode: mov x9, #0x1000000\n  msr fpcr, x9\n  ret\n");

/* That what is broken is seen. */
static int probes_see(void) {
  return checked_call(breaks_stack, 0, 0, 0) == 1 && checked_call(breaks_register, 0, 0, 0) == 2 &&
         checked_call(breaks_vector, 0, 0, 0) == 4 && checked_call(breaks_mode, 0, 0, 0) == 8;
}

static void *guarded(uint64_t bytes, uint64_t alignment, void **mapping, uint64_t *mapped) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  uint64_t inner = (bytes + page - 1) / page * page;
  char *memory;
  *mapped = inner + 2 * page;
  memory = mmap(0, *mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    exit(3);
  *mapping = memory;
  mprotect(memory, page, PROT_NONE);
  mprotect(memory + page + inner, page, PROT_NONE);
  memset(memory + page, 0xFF, inner);
  return memory + page + (inner - bytes) / alignment * alignment;
}

static void run(const item *it, void **args, void *workspace) {
  nf_call call;
  uint32_t s;
  call.struct_size = sizeof call;
  call.flags = 0;
  call.args = args;
  call.sizes = it->sizes;
  call.scalars = 0;
  call.workspace = workspace;
  for (s = 0; s < it->stages(); ++s) {
    uint64_t tasks = it->tasks(s), last = tasks;
    while (last > 0) { /* from the last to the first */
      uint64_t take = 1 + draw() % 7, first = last > take ? last - take : 0;
      const uint64_t broken = checked_call(it->stage(s), &call, first, last);
      if (broken) {
        fprintf(stderr, "stage %u breaks rules %u of the ABI\n", s, (unsigned)broken);
        exit(6);
      }
      last = first;
    }
  }
}

int main(int argc, char **argv) {
  FILE *in, *out;
  size_t i;
  if (argc != 4 || !(in = fopen(argv[1], "rb")) || !(out = fopen(argv[2], "wb")))
    return 2;
  state = strtoull(argv[3], 0, 10) | 1;
  if (!probes_see()) {
    fputs("the probe of the ABI is blind\n", stderr);
    return 7;
  }
  for (i = 0; i < ITEMS; ++i) {
    const item *it = &items[i];
    void *args[32], *mappings[33];
    uint64_t mapped[33];
    uint32_t a;
    void *workspace = guarded((it->workspace() + 63) / 64 * 64, 64, &mappings[32], &mapped[32]);
    for (a = 0; a < it->count; ++a) {
      uint64_t bytes = it->bytes(a);
      args[a] = guarded(bytes, 1, &mappings[a], &mapped[a]);
      if (!it->written[a] && fread(args[a], 1, bytes, in) != bytes)
        return 4;
      if (it->over[a] >= 0)
        args[a] = args[it->over[a]];
    }
    run(it, args, workspace);
    for (a = 0; a < it->count; ++a)
      if (it->written[a] && fwrite(args[a], 1, it->bytes(a), out) != it->bytes(a))
        return 5;
    for (a = 0; a < it->count; ++a)
      munmap(mappings[a], mapped[a]);
    munmap(mappings[32], mapped[32]);
  }
  return fclose(out) != 0;
}
