// Specs made to cost time, memory or a flooded terminal: each is answered, with little of all
// three. Bounds are far above what these take and far below what they took: a bound that is met
// says that something grows as it should not.
#include <doctest/doctest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace fs = std::filesystem;

namespace {

constexpr rlim_t mostSeconds = 8; // of a processor, under sanitizers too; the worst took 68
[[maybe_unused]] constexpr long mostKilobytes = 500 << 10; // LLVM alone is 114 MB
constexpr uint64_t mostOutput = 64 << 10;
constexpr size_t megabyte = 1 << 20;

const std::string good = "input: {shape: [N, 64, 56, 56], layout: nchw, dtype: f32}\naxis: c\n";

std::string times(const std::string &text, size_t count) {
  std::string all;
  for (size_t i = 0; i < count; ++i)
    all += text;
  return all;
}

/// Keys whose xxh3 hashes, which LLVM's string maps take, have the same low bits: the hash of eight
/// bytes is a bijection, and this is it backwards.
std::string equalHashes(size_t count) {
  auto rotate = [](uint64_t x, unsigned n) { return n %= 64, n ? x << n | x >> (64 - n) : x; };
  auto inverse = [](uint64_t a) {
    uint64_t x = a;
    for (int i = 0; i < 6; ++i)
      x *= 2 - a * x;
    return x;
  };
  const unsigned char secret[] = {0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
                                  0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb};
  uint64_t a, b;
  std::memcpy(&a, secret, 8);
  std::memcpy(&b, secret + 8, 8);
  const uint64_t multiplier = inverse(0x9FB21C651E98DF25u);
  std::string keys;
  size_t made = 0;
  for (uint64_t high = 0; made < count; ++high) {
    uint64_t x = high << 32 | 0x12345u;
    x ^= x >> 28 ^ x >> 56;
    x *= multiplier;
    x ^= (x >> 35) + 8;
    x *= multiplier;
    for (unsigned k = 0; k < 6; ++k)
      x = x ^ rotate(x, 49u << k) ^ rotate(x, 24u << k);
    x = rotate(x ^ a ^ b, 32);
    char bytes[9] = {};
    std::memcpy(bytes, &x, 8);
    bool isPlain = true;
    for (int i = 0; i < 8; ++i)
      isPlain = isPlain && bytes[i] >= 32 && bytes[i] < 127 && bytes[i] != '"' && bytes[i] != '\\';
    if (!isPlain)
      continue;
    keys += '"' + std::string(bytes) + "\":\n";
    ++made;
  }
  return keys;
}

struct Bomb {
  const char *name;
  std::string text;
};

std::vector<Bomb> bombs() {
  const std::string inputNc = "input: {shape: [N, 64], layout: nc}\n";
  std::vector<Bomb> all = {
      {"folded blank lines", good + "semantics: >1\n" + times("  \n", 349000) + "  a\n"},
      {"folded tabs", good + "semantics: >1\n" + times(" \t\n", 349000) + "  a\n"},
      {"folded leading spaces",
       good + "semantics: >1\n " + std::string(megabyte / 2, ' ') + "\n" + times("  \n", 174000)},
      {"folded key", "? >1\n" + times("  \n", 43000) + "  a\n"},
      {"literal blank lines", good + "semantics: |1\n" + times("  \n", 349000) + "  a\n"},
      {"a step again and again", good + "fuse: [" + times("relu,", 209700) + "]\n"},
      {"few steps again and again", good + "fuse: [" + times("relu,", 10000) + "]\n"},
      {"steps before", good + "prologue: [" + times("x,", 524000) + "]\n"},
      {"keys of one hash", good + equalHashes(80000)},
      {"keys of one hash, below the bound", good + equalHashes(20000)},
      {"errors on one line", "{input: {shape: [8, 8]}," + std::string(megabyte - 600, ' ') +
                                 "axi: c" + times(",axi: c", 40) + "}\n"},
      {"phases that are none", good + "phases: [" + times("x,", 524000) + "]\n"},
      {"mappings in a list", good + "phases: [" + times("x:,", 349000) + "]\n"},
      {"tokens in a queue",
       good + "phases: [" + times("{" + times("a:,", 330) + "},", 1000) + "]\n"},
      {"an axis of letters", inputNc + "axis: " + std::string(1000000, 'c') + "\n"},
      {"an axis of zeros", inputNc + "axis: [0, " + std::string(1000000, '0') + "]\n"},
      {"a layout of letters",
       "input: {shape: [N, 64], layout: " + std::string(1000000, 'N') + "}\naxis: 1\n"},
      {"semantics without end",
       good + "fused: true\nsemantics: " + std::string(1000000, 'a') + "\n"},
      {"weights for them", good + "weights: 1\nsemantics: " + std::string(1000000, 'a') + "\n"},
      {"a key without end", good + std::string(1000000, 'k') + ": 1\n"},
      {"a number without end", good + "epsilon: " + std::string(1000000, '9') + "\n"},
      {"an exponent without end", good + "epsilon: 1e" + std::string(1000000, '9') + "\n"},
      {"deep lists", "input: " + std::string(500000, '[') + "\n"},
      {"deep mappings", "input: " + times("{a: ", 250000) + "\n"},
      {"deep blocks", times("- ", 500000) + "\n"},
      {"commas", "input: [" + std::string(megabyte - 100, ',') + "]\n"},
      {"documents", times("---\n", 250000)},
      {"ends of documents", times("...\n", 250000)},
      {"questions", times("? ", 500000)},
      {"anchors", times("a: &b c\n", 100000)},
      {"laughs", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + good},
      {"tags", times("!!str ", 150000) + "a: b\n"},
      {"directives", times("%YAML 1.2\n", 100000) + "---\n" + good},
      {"comments", times("# a comment\n", 80000) + good},
      {"escapes", good + "name: \"" + times("\\U0001F600", 90000) + "\"\n"},
      {"marks upon a letter", good + "name: \"a" + times("\xCC\x81", 400000) + "\"\n"},
      {"an open quote", good + "name: \"" + std::string(megabyte - 200, 'a') + "\n"},
      {"above the bound", good + std::string(2 * megabyte, '#')},
      {"six long names of sizes",
       "input: {shape: [" + std::string(255, 'a') + ", " + std::string(255, 'b') + ", " +
           std::string(255, 'd') + ", " + std::string(255, 'e') + ", 5, " + std::string(255, 'f') +
           "], layout: nctdhw}\naxis: h\nphases: [training, inference]\n"},
      {"huge sizes", "input: {shape: [N, 9223372036854775807, M, 9223372036854775807], layout: "
                     "nchw}\naxis: c\n"},
  };
  for (size_t length : {256, 65535, 65537, 1000000})
    all.push_back({"a long name of a size",
                   "input: {shape: [" + std::string(length, 'a') + ", 8], layout: nc}\naxis: c\n"});
  return all;
}

struct Cost {
  int status = 0, signal = 0;
  double seconds = 0;
  long kilobytes = 0;
  uint64_t output = 0;
};

Cost explain(const std::string &folder, const std::string &text) {
  const std::string spec = folder + "/bomb.yaml", log = folder + "/log";
  std::ofstream(spec, std::ios::binary | std::ios::trunc) << text;
  const pid_t pid = fork();
  if (pid == 0) {
    const rlimit limit = {mostSeconds, mostSeconds + 1};
    setrlimit(RLIMIT_CPU, &limit);
    const int file = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(file, 1);
    dup2(file, 2);
    execl(NORMFORGE_COMMAND, "normforge", "explain", spec.c_str(), nullptr);
    _exit(99);
  }
  int status = 0;
  rusage used = {};
  wait4(pid, &status, 0, &used);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
          static_cast<double>(used.ru_utime.tv_sec) +
              1e-6 * static_cast<double>(used.ru_utime.tv_usec),
          used.ru_maxrss, fs::file_size(log)};
}

} // namespace

TEST_CASE("bombs: hostile specs are answered in bounded time, memory and output") {
  char folder[] = "/tmp/normforge-bombs-XXXXXX";
  REQUIRE(mkdtemp(folder));
  Cost most;
  size_t count = 0;
  for (const Bomb &bomb : bombs()) {
    const Cost cost = explain(folder, bomb.text);
    INFO(std::string(bomb.name), ": ", cost.seconds, " s, ", cost.kilobytes >> 10, " MB, ",
         cost.output, " bytes of output");
    CHECK(cost.signal == 0);
    CHECK((cost.status == 0 || cost.status == 2));
#if !defined(NORMFORGE_SANITIZED)
    CHECK(cost.kilobytes < mostKilobytes);
#endif
    CHECK(cost.output <= mostOutput);
    most.seconds = std::max(most.seconds, cost.seconds);
    most.kilobytes = std::max(most.kilobytes, cost.kilobytes);
    most.output = std::max(most.output, cost.output);
    ++count;
  }
  MESSAGE(count, " bombs, at most ", most.seconds, " s of a processor, ", most.kilobytes >> 10,
          " MB, ", most.output, " bytes of output");
  fs::remove_all(folder);
}

TEST_CASE("bombs: what a terminal would act on is not printed") {
  char folder[] = "/tmp/normforge-bombs-XXXXXX";
  REQUIRE(mkdtemp(folder));
  for (const char *text :
       {"fused: true\nsemantics: \"a\\e[31m\\0b\"\n", "semantics: \"\\u009b31m\\u202e\"\n",
        "mode: \"\xC2\x9B"
        "31m\"\n",
        "mode: \"\xE2\x80\xAE\xE2\x81\xA6\"\n", "mode: \"\xD8\x9C\xE2\x80\xA8\"\n"}) {
    explain(folder, good + text);
    std::ifstream file(std::string(folder) + "/log", std::ios::binary);
    const std::string printed{std::istreambuf_iterator<char>(file), {}};
    INFO(printed);
    CHECK(printed.find("error") != std::string::npos);
    for (const char *bad :
         {"\x1b", "\xC2\x9B", "\xE2\x80\xAE", "\xE2\x81\xA6", "\xD8\x9C", "\xE2\x80\xA8"})
      CHECK(printed.find(bad) == std::string::npos);
    CHECK(printed.find('\0') == std::string::npos);
  }
  fs::remove_all(folder);
}
