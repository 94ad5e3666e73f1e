// All of the runtime from many threads at once, for ThreadSanitizer:
//
//   threads COMPILER PACK SECONDS THREADS SEED
//
// Threads share engines (in memory, on disk, with the compiler in a child), kernels, packs and
// plans, and do at random what a host does: compile, find, save, load, plan, run, retain, release.
// Each result is checked. The first fault ends the program.
#include "normforge/normforge.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

std::atomic<long> calls{0};

void require(nf_status *status, const char *what) {
  ++calls;
  if (!status)
    return;
  std::fprintf(stderr, "%s: %s\n", what, nf_status_message(status));
  std::abort();
}

nf_engine *makeEngine(const char *compiler, const char *cache, bool inChild) {
  nf_engine_options options = {};
  options.struct_size = sizeof options;
  options.compiler_library = compiler;
  options.cache_directory = cache;
  options.cache_bytes = 40000; // entries leave all the time
  options.compile_in_child = inChild;
  options.debugger = 1;
  nf_engine *engine = nullptr;
  require(nf_engine_create(&options, &engine), "engine");
  return engine;
}

/// A kernel of the counting compiler: its one stage does nothing.
void useCompiled(nf_engine *engine, std::mt19937_64 &random) {
  const std::string spec =
      "n" + std::to_string(random() % 3) + "\nquick " + std::to_string(random() % 40);
  nf_kernel *kernel = nullptr;
  require(nf_compile(engine, spec.data(), spec.size(), nullptr, &kernel), "compile");
  if (spec.compare(0, 2, nf_kernel_name(kernel)) != 0)
    std::abort();
  uint8_t *bytes = nullptr;
  size_t size = 0;
  nf_kernel *copy = nullptr;
  require(nf_kernel_save(kernel, &bytes, &size), "save");
  require(nf_kernel_load(engine, bytes, size, &copy), "load");
  nf_bytes_free(bytes);
  nf_kernel_release(kernel);
  nf_plan *plan = nullptr;
  require(nf_plan_create(copy, nullptr, 0, &plan), "plan");
  nf_kernel_release(copy);
  float y;
  void *args[] = {&y};
  require(nf_run(plan, args, 1, nullptr, 0, nullptr, nullptr), "run");
  nf_plan_release(plan);
}

/// A plan that all threads run, each with outputs of its own.
struct Shared {
  nf_plan *plan;
  size_t arguments;
  std::vector<std::vector<char>> outputs; ///< of the first run
};

/// Runs it over inputs that are all the same; what it writes has to be what the first run wrote.
std::vector<std::vector<char>> runShared(const Shared &shared) {
  std::vector<std::vector<char>> arrays;
  std::vector<void *> args;
  for (size_t i = 0; i < shared.arguments; ++i) {
    arrays.emplace_back(nf_plan_argument_bytes(shared.plan, i), 0x3C);
    args.push_back(arrays.back().data());
  }
  require(nf_run(shared.plan, args.data(), args.size(), nullptr, 0, nullptr, nullptr),
          "run of a shared plan");
  if (!shared.outputs.empty() && arrays != shared.outputs)
    std::abort();
  return arrays;
}

} // namespace

int main(int argc, char **argv) {
  if (argc != 6)
    return 2;
  const char *compiler = argv[1], *packPath = argv[2];
  const int seconds = std::atoi(argv[3]), count = std::atoi(argv[4]);
  const uint64_t seed = std::strtoull(argv[5], nullptr, 10);
  char folder[] = "/tmp/normforge-threads-XXXXXX";
  if (!mkdtemp(folder))
    return 2;
  nf_engine *engines[] = {makeEngine(compiler, "", false), makeEngine(compiler, folder, false),
                          makeEngine(compiler, "", true)};
  nf_pack *pack = nullptr;
  require(nf_pack_open(engines[0], packPath, &pack), "pack");
  nf_kernel *kernel = nullptr;
  require(nf_pack_load(pack, nf_pack_kernel_name(pack, 0), nf_pack_kernel_phase(pack, 0), &kernel),
          "pack's kernel");
  const int64_t one[] = {1};
  Shared shared = {nullptr, nf_kernel_argument_count(kernel), {}};
  require(nf_plan_create(kernel, one, nf_kernel_size_count(kernel), &shared.plan), "plan");
  shared.outputs = runShared(shared);

  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  std::vector<std::thread> threads;
  for (int t = 0; t < count; ++t)
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + static_cast<uint64_t>(t));
      while (std::chrono::steady_clock::now() < end)
        switch (random() % 6) {
        case 0:
        case 1:
          useCompiled(engines[random() % 2], random);
          break;
        case 2:
          useCompiled(engines[random() % 20 == 0 ? 2 : 0], random);
          break;
        case 3: {
          const size_t k = random() % nf_pack_kernel_count(pack);
          nf_kernel *loaded = nullptr;
          require(nf_pack_load(pack, nf_pack_kernel_name(pack, k), nf_pack_kernel_phase(pack, k),
                               &loaded),
                  "pack's kernel");
          nf_kernel_release(loaded);
          break;
        }
        case 4:
          runShared(shared);
          break;
        default: { // an engine of its own, and what outlives it
          nf_engine *own = makeEngine(compiler, random() % 2 ? folder : "", false);
          nf_kernel *found = nullptr;
          require(nf_compile(own, "own\nquick", 9, nullptr, &found), "compile");
          nf_engine_release(own);
          nf_kernel_retain(found);
          nf_kernel_release(found);
          nf_kernel_release(found);
          break;
        }
        }
    });
  for (std::thread &thread : threads)
    thread.join();
  nf_plan_release(shared.plan);
  nf_kernel_release(kernel);
  nf_pack_release(pack);
  for (nf_engine *engine : engines)
    nf_engine_release(engine);
  const std::string removal = std::string("rm -rf ") + folder;
  std::printf("%ld calls of %d threads in %d s, seed %llu\n", calls.load(), count, seconds,
              static_cast<unsigned long long>(seed));
  return std::system(removal.c_str());
}
