#include "runtime/threads/Processors.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>
#include <sched.h>
#include <string_view>
#include <vector>

namespace normforge {
namespace {

std::string readWhole(const std::string &path) {
  struct Close {
    void operator()(std::FILE *file) const { std::fclose(file); }
  };
  std::string text;
  if (const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rbe")); file) {
    char buffer[4096];
    for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, file.get())) > 0;)
      text.append(buffer, n);
  }
  return text;
}

/// The text before `end`, which it is taken from, with the character of the end.
std::string_view take(std::string_view &text, char end) {
  const std::string_view taken = text.substr(0, text.find(end));
  text.remove_prefix(std::min(text.size(), taken.size() + 1));
  return taken;
}

/// The number that a text begins with; nothing for "max", or -1, which are no limit.
std::optional<uint64_t> numberOf(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end != text.data() ? std::optional(number) : std::nullopt;
}

/// Processors that `quota` of each `period` is worth.
void limit(unsigned &processors, std::optional<uint64_t> quota, std::optional<uint64_t> period) {
  if (quota && period && *period > 0)
    processors = static_cast<unsigned>(
        std::min<uint64_t>(processors, std::max<uint64_t>(1, *quota / *period)));
}

unsigned ofAffinity() {
  for (int most = 1024; most <= 1 << 20; most *= 2) {
    const size_t bytes = CPU_ALLOC_SIZE(most);
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t *)> set(
        CPU_ALLOC(most), [](cpu_set_t *allocated) { CPU_FREE(allocated); });
    if (set && sched_getaffinity(0, bytes, set.get()) == 0)
      return static_cast<unsigned>(std::max(1, CPU_COUNT_S(bytes, set.get())));
  }
  return 1;
}

/// `path` and all above it, up to "".
std::vector<std::string> upwards(std::string_view path) {
  std::vector<std::string> all;
  while (!path.empty() && path != "/") {
    all.emplace_back(path);
    path = path.substr(0, path.rfind('/'));
  }
  all.emplace_back();
  return all;
}

} // namespace

unsigned processorsToUse(const std::string &root) {
  unsigned processors = ofAffinity();
  const std::string groups = readWhole(root + "/proc/self/cgroup");
  // Lines such as "0::/user.slice" (version 2) and "4:cpu,cpuacct:/docker/1" (version 1).
  for (std::string_view rest = groups; !rest.empty();) {
    std::string_view line = take(rest, '\n');
    const std::string_view hierarchy = take(line, ':');
    const std::string controllers = "," + std::string(take(line, ':')) + ",";
    if (hierarchy == "0" && controllers == ",,") {
      for (const std::string &path : upwards(line)) {
        const std::string text = readWhole(root + "/sys/fs/cgroup" + path + "/cpu.max");
        std::string_view values = text;
        const auto quota = numberOf(take(values, ' '));
        limit(processors, quota, numberOf(values));
      }
    } else if (controllers.find(",cpu,") != std::string::npos) {
      for (const std::string &path : upwards(line)) {
        const std::string folder = root + "/sys/fs/cgroup/cpu" + path;
        limit(processors, numberOf(readWhole(folder + "/cpu.cfs_quota_us")),
              numberOf(readWhole(folder + "/cpu.cfs_period_us")));
      }
    }
  }
  return processors;
}

} // namespace normforge
