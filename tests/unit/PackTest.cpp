// Packs: what is written is read, the CPU that fits is chosen, and no bytes crash.
#include "runtime/pack/Pack.h"
#include "compiler/session/Session.h"
#include "normforge/normforge.hpp"
#include "runtime/artifact/Checksum.h"
#include "runtime/cpu_info/CpuInfo.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <random>
#include <thread>

using namespace normforge;

namespace {

Artifact compiled(const std::string &name, const std::string &cpu, Phase phase, int channels = 3) {
  auto spec = parseSpec(fmt::format("name: {}\ninput: {{shape: [N, {}, 4], layout: ncw}}\naxis: c\n"
                                    "phases: [inference, training]\n",
                                    name, channels),
                        "pack.yaml");
  REQUIRE(bool(spec));
  auto target = describeTarget(cpu);
  REQUIRE(bool(target));
  auto artifact = Session(*target).compile(*spec, phase);
  REQUIRE(bool(artifact));
  return std::move(*artifact);
}

const std::vector<PackedKernel> &kernels() {
  static const std::vector<PackedKernel> made = [] {
    std::vector<PackedKernel> all;
    for (const char *cpu : {"x86-64-v2", "x86-64-v3", "x86-64-v4", "neoverse-n1"})
      for (Phase phase : {Phase::Inference, Phase::Training}) {
        all.push_back({"b", compiled("b", cpu, phase)});
        all.push_back({"a", compiled("a", cpu, phase)}); // the same code
        all.push_back({"c", compiled("c", cpu, phase, 5)});
      }
    return all;
  }();
  return made;
}

const std::vector<std::byte> &sample() {
  static const std::vector<std::byte> bytes = writePack(kernels());
  return bytes;
}

/// The error of opening these bytes and reading all that is in them; empty where all is well.
std::string problemOf(std::span<const std::byte> bytes) {
  Failure failure;
  const auto pack = Pack::open(bytes, failure);
  if (!pack)
    return failure.message.empty() ? "no message" : failure.message;
  for (const Pack::Entry &entry : pack->entries()) {
    Artifact artifact;
    if (!pack->read(entry, artifact, failure))
      return failure.message.empty() ? "no message" : failure.message;
  }
  return {};
}

template <typename Call> nf_code codeOf(Call call) {
  try {
    call();
  } catch (const nf::Error &error) {
    return error.code();
  }
  return NF_OK;
}

} // namespace

TEST_CASE("packs: what is written is read, whatever the order of the kernels") {
  CHECK(problemOf(sample()) == "");
  auto shuffled = kernels();
  std::stable_sort(shuffled.begin(), shuffled.end(),
                   [](const PackedKernel &a, const PackedKernel &b) { return a.name > b.name; });
  CHECK(writePack(shuffled) == sample());

  Failure failure;
  const auto pack = Pack::open(sample(), failure);
  REQUIRE(pack);
  REQUIRE(pack->entries().size() == kernels().size());
  REQUIRE(pack->kernels().size() == 6);
  for (const PackedKernel &kernel : kernels()) {
    const auto entries = pack->entries();
    const auto entry = std::find_if(entries.begin(), entries.end(), [&](const Pack::Entry &e) {
      return e.name == kernel.name && e.phase == kernel.artifact.phase &&
             e.cpu == kernel.artifact.cpu;
    });
    REQUIRE(entry != entries.end());
    Artifact artifact;
    REQUIRE(pack->read(*entry, artifact, failure));
    CHECK(serialize(artifact) == serialize(kernel.artifact));
    CHECK(entry->offset % 64 == 0);
  }
  // a's code is b's.
  uint64_t bytes = 0;
  for (const Pack::Entry &entry : pack->entries())
    bytes += entry.name == "a" ? 0 : (entry.bytes + 63) / 64 * 64;
  CHECK(sample().size() < bytes + 8192);
  CHECK(problemOf(writePack({})) == "");
}

TEST_CASE("packs: the CPU whose features this machine has most of is chosen") {
  Failure failure;
  const auto pack = Pack::open(sample(), failure);
  REQUIRE(pack);
  std::string best;
  size_t most = 0;
  for (const PackedKernel &kernel : kernels()) {
    const auto &features = kernel.artifact.requiredFeatures;
    const bool runs = kernel.artifact.triple.starts_with(hostArchitecture()) &&
                      std::all_of(features.begin(), features.end(), hostHasFeature);
    if (kernel.name == "a" && runs && features.size() > most) {
      most = features.size();
      best = kernel.artifact.cpu;
    }
  }
  const Pack::Entry *chosen = pack->choose("a", "training", {}, failure);
  if (best.empty()) {
    CHECK(chosen == nullptr);
    CHECK(failure.code == NF_WRONG_MACHINE);
    return;
  }
  REQUIRE(chosen);
  CHECK(chosen->cpu == best);
  CHECK(chosen->phase == "training");

  // A kernel for a CPU that is named is chosen where this machine runs it.
  for (const PackedKernel &kernel : kernels()) {
    if (kernel.name != "a")
      continue;
    const auto &features = kernel.artifact.requiredFeatures;
    const bool runs = kernel.artifact.triple.starts_with(hostArchitecture()) &&
                      std::all_of(features.begin(), features.end(), hostHasFeature);
    const Pack::Entry *own = pack->choose("a", "training", {.cpu = kernel.artifact.cpu}, failure);
    CHECK((own && own->cpu == kernel.artifact.cpu) == runs);
  }
  // Two that require the same: of the CPU that has more, and of one that the machine is not.
  const std::vector<std::string> own(hostFeatures().begin(), hostFeatures().end());
  auto equal = kernels().front();
  equal.artifact.triple = std::string(hostArchitecture()) + "-unknown-linux-gnu";
  equal.artifact.requiredFeatures = {};
  PackedKernel little = equal, much = equal, foreignCpu = equal;
  little.artifact.cpu = "little", little.features = {own.front()};
  much.artifact.cpu = "much", much.features = own;
  foreignCpu.artifact.cpu = "more", foreignCpu.features = own;
  foreignCpu.features.push_back("avx9000");
  const auto ranked = writePack({little, foreignCpu, much});
  const auto ranks = Pack::open(ranked, failure);
  REQUIRE(ranks);
  const std::string phase = equal.artifact.phase;
  CHECK(ranks->choose(equal.name, phase, {}, failure)->cpu == "much");
  CHECK(ranks->choose(equal.name, phase, {.cpu = "more"}, failure)->cpu == "more");
  const auto alone = writePack({foreignCpu});
  const auto last = Pack::open(alone, failure);
  REQUIRE(last);
  CHECK(last->choose(equal.name, phase, {}, failure)->cpu == "more"); // its code needs no more

  CHECK(pack->choose("a", "training", {.cpu = "pdp-11"}, failure) == nullptr);
  CHECK(failure.code == NF_NO_KERNEL);
  CHECK(failure.message.ends_with(", not for pdp-11"));

  CHECK(pack->choose("aa", "training", {}, failure) == nullptr);
  CHECK(failure.code == NF_NO_KERNEL);
  CHECK(failure.message == "the pack has no kernel 'aa', training");

  auto other = kernels().front();
  other.artifact.requiredFeatures = {"avx9000", "avx9001"};
  auto foreign = other;
  foreign.artifact.cpu = "risc";
  foreign.artifact.triple = "riscv64-unknown-linux-gnu";
  const auto bytes = writePack({other, foreign});
  const auto strange = Pack::open(bytes, failure);
  REQUIRE(strange);
  CHECK(strange->choose("b", "inference", {}, failure) == nullptr);
  CHECK(failure.code == NF_WRONG_MACHINE);
  CHECK(failure.message.find("it is code for riscv64") != std::string::npos);
}

TEST_CASE("packs: damage is found, and nothing crashes") {
  const auto &good = sample();
  auto older = good;
  older[8] = std::byte(1);
  CHECK(problemOf(older) == "pack has format version 1; this library reads 2");
  for (size_t length = 0; length < good.size(); length += length < 4096 ? 1 : 997)
    CHECK(problemOf(std::span(good).first(length)) != "");
  std::mt19937_64 random(std::random_device{}());
  for (size_t i = 0; i < good.size(); i += i < 4096 ? 1 : 61) {
    auto bad = good;
    bad[i] ^= static_cast<std::byte>(1 + random() % 255);
    // Between artifacts nothing is read.
    const bool padding = problemOf(bad).empty();
    if (padding)
      CHECK_MESSAGE(good[i] == std::byte(0), i);
  }
  // Fields that lie, under a checksum that is right.
  const size_t header = 40;
  uint64_t tableBytes;
  std::memcpy(&tableBytes, good.data() + 24, 8);
  int refused = 0;
  for (int turn = 0; turn < 3000; ++turn) {
    auto bad = good;
    for (uint64_t n = 1 + random() % 3; n > 0; --n) {
      const size_t at = header + random() % tableBytes;
      const std::byte values[] = {std::byte(0), std::byte(0xFF), std::byte(0x80),
                                  static_cast<std::byte>(random())};
      bad[at] = values[random() % 4];
    }
    const uint64_t sum = checksum(std::span(bad).subspan(header, tableBytes));
    std::memcpy(bad.data() + 32, &sum, 8);
    refused += problemOf(bad) != "";
  }
  CHECK(refused > 500);
  CHECK(problemOf(std::as_bytes(std::span("a text"))) == "these bytes are not a Normforge pack");
}

TEST_CASE("packs: the C API") {
  std::string pattern = std::filesystem::temp_directory_path() / "normforge-pack-XXXXXX";
  REQUIRE(mkdtemp(pattern.data()));
  const std::filesystem::path folder = pattern;
  struct Removal {
    std::filesystem::path folder;
    ~Removal() { std::filesystem::remove_all(folder); }
  } removal{folder};
  const std::string path = folder / "model.nfk";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char *>(sample().data()),
             static_cast<std::streamsize>(sample().size()));

  nf::Engine::Options options;
  options.compilerLibrary = "/nowhere/libnormforge-compiler.so"; // none is needed
  options.cacheDirectory = "";
  const nf::Engine engine(options);
  CHECK(codeOf([&] { engine.openPack(std::string("/nowhere/a.nfk")); }) == NF_SYSTEM_ERROR);
  CHECK(codeOf([&] { engine.openPack(folder.string()); }) == NF_BAD_ARTIFACT);
  std::ofstream(folder / "empty.nfk").flush();
  CHECK(codeOf([&] { engine.openPack((folder / "empty.nfk").string()); }) == NF_BAD_ARTIFACT);
  const nf::Pack pack = engine.openPack(path);
  std::filesystem::remove(path); // what is open stays
  REQUIRE(pack.size() == 6);
  CHECK(std::string(pack.name(0)) == "a");
  CHECK(pack.phase(1) == NF_TRAINING);
  CHECK(pack.name(6).empty());
  CHECK(codeOf([&] { pack.load("nobody"); }) == NF_NO_KERNEL);
  CHECK(!pack.find("nobody"));
  nf_status *refused = nf_pack_load(pack.get(), nullptr, NF_INFERENCE, nullptr);
  CHECK(nf_status_code(refused) == NF_INVALID_ARGUMENT);
  nf_status_free(refused);
  for (int phase : {8, 77, -1}) { // of a later version, or none
    nf_kernel *kernel = nullptr;
    nf_status *status = nf_pack_load(pack.get(), "a", static_cast<nf_phase>(phase), &kernel);
    CHECK(nf_status_code(status) == NF_INVALID_ARGUMENT);
    CHECK(
        std::string(nf_status_message(status)) ==
        "phase " + std::to_string(phase) +
            " is none: expected NF_INFERENCE, NF_TRAINING, NF_BACKWARD, NF_POPULATION, NF_UPDATE, "
            "NF_BACKWARD_UPDATE, NF_MOMENTS or NF_GRADIENT_SUMS");
    nf_status_free(status);
  }
  if (!hostHasFeature("sse4.2")) {
    MESSAGE("SKIP: kernels of this pack need SSE4.2");
    return;
  }
  // Several threads, one code, the right results.
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      const nf::Kernel kernel = pack.load("a");
      const nf::Plan plan = kernel.plan({2});
      float x[24], gamma[3] = {1, 2, 3}, beta[3] = {}, mean[3] = {}, variance[3] = {1, 1, 1}, y[24];
      for (int i = 0; i < 24; ++i)
        x[i] = static_cast<float>(i);
      void *args[] = {x, gamma, beta, mean, variance, y};
      plan.run(args);
      bool good = kernel.name() == "a";
      for (int i = 0; i < 24; ++i) {
        const double expected = i * gamma[i / 4 % 3] / std::sqrt(1 + 1e-3);
        good = good && std::abs(y[i] - expected) < 1e-4;
      }
      right += good;
    });
  for (std::thread &thread : threads)
    thread.join();
  CHECK(right == 8);
  const nf::Pack inMemory = engine.openPack(std::span(sample()));
  CHECK(inMemory.load("c", NF_TRAINING).phase() == NF_TRAINING);
}
