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
      it->stage(s)(&call, first, last);
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
