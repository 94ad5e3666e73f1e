// Threads that the library lends (nf_threads), and the sizes that arrays' shapes tell.
#include "tests/unit/SampleArtifact.h"

#include "normforge/normforge.hpp"
#include "runtime/kernel/MatchShapes.h"
#include "runtime/threads/Processors.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <sched.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace normforge;
namespace fs = std::filesystem;

namespace {

/// How often each task ran, and in which threads.
struct Tasks {
  std::vector<std::atomic<int>> ran;
  std::atomic<int> ranges{0};
  explicit Tasks(uint64_t count) : ran(count) {}
  static void body(void *data, uint64_t first, uint64_t last) {
    auto &tasks = *static_cast<Tasks *>(data);
    ++tasks.ranges;
    for (; first < last; ++first)
      ++tasks.ran[first];
  }
  bool isRight() const {
    for (const auto &times : ran)
      if (times != 1)
        return false;
    return true;
  }
};

bool runsEachOnce(const nf_executor &executor, uint64_t count) {
  Tasks tasks(count);
  executor.parallel_for(executor.user, count, Tasks::body, &tasks);
  return tasks.isRight();
}

/// The exit status of `body` in a child, or -1 where it does not end within ten seconds.
template <typename Body> int inChild(Body body) {
  const pid_t child = fork();
  if (child == 0)
    _exit(body());
  int status = 0;
  for (int i = 0; i < 1000; ++i) {
    if (waitpid(child, &status, WNOHANG) == child)
      return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return -1;
}

void write(const fs::path &path, const std::string &text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

} // namespace

TEST_CASE("threads: every task once, whatever the number of threads and tasks") {
  for (uint32_t count : {1U, 2U, 3U, 8U, 33U}) {
    const nf::Threads threads(count);
    CHECK(threads.count() == count);
    for (uint64_t tasks : {0, 1, 2, 3, 7, 32, 33, 1000})
      for (int again = 0; again < 20; ++again)
        CHECK_MESSAGE(runsEachOnce(threads.executor(), tasks), count, " threads, ", tasks,
                      " tasks");
  }
  Tasks tasks(64);
  const nf::Threads four(4);
  four.executor().parallel_for(four.executor().user, 64, Tasks::body, &tasks);
  CHECK(tasks.ranges == 4);
}

TEST_CASE("threads: several callers at once, after a rest, and threads that are never used") {
  const nf::Threads unused(5);
  const nf::Threads shared(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int i = 0; i < 2000; ++i)
        wrong += !runsEachOnce(shared.executor(), static_cast<uint64_t>(i % 9));
    });
  for (std::thread &caller : callers)
    caller.join();
  std::this_thread::sleep_for(std::chrono::milliseconds(20)); // they sleep by now
  wrong += !runsEachOnce(shared.executor(), 3);
  CHECK(wrong == 0);
}

TEST_CASE("threads: a child after fork has threads of its own") {
  const nf::Threads threads(3);
  REQUIRE(runsEachOnce(threads.executor(), 3));
  std::atomic<bool> ends{false};
  std::thread busy([&] {
    while (!ends)
      runsEachOnce(threads.executor(), 3);
  });
  for (int i = 0; i < 20; ++i)
    CHECK(inChild([&] {
            Tasks tasks(3);
            threads.executor().parallel_for(threads.executor().user, 3, Tasks::body, &tasks);
            return tasks.isRight() && tasks.ranges == 3 ? 0 : 1;
          }) == 0);
  ends = true;
  busy.join();
}

TEST_CASE("threads: as many as the process may use, and errors") {
  CHECK(nf::Threads().count() == processorsToUse());
  CHECK(nf::Threads().count() >= 1);
  CHECK(inChild([] {
          cpu_set_t own, one;
          sched_getaffinity(0, sizeof own, &own);
          CPU_ZERO(&one);
          for (int i = 0; i < CPU_SETSIZE; ++i)
            if (CPU_ISSET(i, &own)) {
              CPU_SET(i, &one);
              break;
            }
          sched_setaffinity(0, sizeof one, &one);
          return static_cast<int>(nf::Threads().count());
        }) == 1);
  nf_threads *threads = reinterpret_cast<nf_threads *>(&threads);
  nf_status *status = nf_threads_create(4097, &threads);
  CHECK(threads == nullptr);
  CHECK(std::string(nf_status_message(status)) == "4097 threads; expected at most 4096");
  nf_status_free(status);
  status = nf_threads_create(1, nullptr);
  CHECK(std::string(nf_status_message(status)) == "threads is null");
  nf_status_free(status);
  nf_threads_release(nullptr);
}

TEST_CASE("threads: quotas of control groups") {
  const unsigned all = processorsToUse("/there/is/none");
  const fs::path root =
      fs::temp_directory_path() / ("normforge-cgroup-" + std::to_string(getpid()));
  auto with = [&](const std::string &groups, const std::map<std::string, std::string> &files) {
    fs::remove_all(root);
    write(root / "proc/self/cgroup", groups);
    for (const auto &[path, text] : files)
      write(root / ("sys/fs/cgroup" + path), text);
    return processorsToUse(root.string());
  };
  CHECK(with("", {}) == all);
  CHECK(with("0::/\n", {{"/cpu.max", "max 100000\n"}}) == all);
  CHECK(with("0::/\n", {{"/cpu.max", "100000 100000\n"}}) == 1);
  CHECK(with("0::/\n", {{"/cpu.max", "50000 100000\n"}}) == 1);
  CHECK(with("0::/\n", {{"/cpu.max", "199999 100000\n"}}) == 1);
  CHECK(with("0::/\n", {{"/cpu.max", "200000 100000\n"}}) == std::min(all, 2U));
  CHECK(with("0::/\n", {{"/cpu.max", "90000000 100000\n"}}) == std::min(all, 900U));
  CHECK(with("0::/\n", {{"/cpu.max", "damaged"}}) == all);
  CHECK(with("0::/\n", {{"/cpu.max", "1 0\n"}}) == all);
  // The quota of a group above.
  CHECK(with("0::/a/b\n", {{"/a/cpu.max", "100000 100000\n"}}) == 1);
  CHECK(with("0::/a/b\n", {{"/a/b/cpu.max", "100000 100000\n"}}) == 1);
  CHECK(with("0::/a/b\n", {{"/c/cpu.max", "100000 100000\n"}}) == all);
  // Version 1.
  const std::string first = "5:memory:/m\n4:cpu,cpuacct:/docker/1\n";
  CHECK(with(first, {{"/cpu/docker/1/cpu.cfs_quota_us", "100000\n"},
                     {"/cpu/docker/1/cpu.cfs_period_us", "100000\n"}}) == 1);
  CHECK(with(first, {{"/cpu/docker/1/cpu.cfs_quota_us", "-1\n"},
                     {"/cpu/docker/1/cpu.cfs_period_us", "100000\n"}}) == all);
  CHECK(with("4:cpuset:/docker/1\n", {{"/cpu/docker/1/cpu.cfs_quota_us", "100000\n"},
                                      {"/cpu/docker/1/cpu.cfs_period_us", "100000\n"}}) == all);
  fs::remove_all(root);
}

TEST_CASE("shapes tell sizes") {
  Artifact artifact = sample();
  const SizeExpr M = SizeExpr::size(1);
  artifact.sizes = {"N", "M"};
  artifact.arguments = {{"x", Role::Data, false, DType::F32, {N, 4, M}, -1, {}},
                        {"w", Role::Data, false, DType::F32, {M}, -1, {}},
                        {"s", Role::Data, false, DType::F32, {}, -1, {}},
                        {"y", Role::Data, true, DType::F32, {N * 4, M}, -1, {}}};
  using Shape = std::vector<int64_t>;
  auto sizesOf = [&](const std::vector<std::optional<Shape>> &shapes) {
    std::vector<std::optional<std::span<const int64_t>>> known;
    for (const auto &shape : shapes)
      known.push_back(shape ? std::optional(std::span<const int64_t>(*shape)) : std::nullopt);
    Failure failure;
    const auto sizes = matchShapes(artifact, known, failure);
    std::string text;
    for (int64_t size : sizes.value_or(Shape{}))
      text += std::to_string(size) + " ";
    return sizes ? text : failure.message;
  };
  CHECK(shapeText(artifact.arguments[0], artifact.sizes) == "(N, 4, M)");
  CHECK(shapeText(artifact.arguments[1], artifact.sizes) == "(M,)");
  CHECK(shapeText(artifact.arguments[2], artifact.sizes) == "()");
  CHECK(sizesOf({Shape{3, 4, 5}, Shape{5}, Shape{}, Shape{12, 5}}) == "3 5 ");
  CHECK(sizesOf({Shape{3, 4, 5}, std::nullopt, std::nullopt, std::nullopt}) == "3 5 ");
  CHECK(sizesOf({Shape{0, 4, 1}, Shape{1}, Shape{}, std::nullopt}) == "0 1 ");
  CHECK(sizesOf({Shape{3, 5}, std::nullopt, std::nullopt, std::nullopt}) ==
        "'x' has shape (3, 5); expected (N, 4, M)");
  CHECK(sizesOf({Shape{3, 5, 5}, std::nullopt, std::nullopt, std::nullopt}) ==
        "'x' has shape (3, 5, 5); expected (N, 4, M)");
  CHECK(sizesOf({Shape{3, 4, 5}, Shape{6}, std::nullopt, std::nullopt}) ==
        "size M is 5 by 'x' and 6 by 'w'");
  CHECK(sizesOf({std::nullopt, Shape{6}, std::nullopt, std::nullopt}) ==
        "no array's shape tells size N of kernel 'sample'");
  CHECK(sizesOf({Shape{3, 4, 5}, std::nullopt, Shape{1}, std::nullopt}) ==
        "'s' has shape (1,); expected ()");
  CHECK(sizesOf({Shape{3, 4, 5}, std::nullopt, std::nullopt, Shape{13, 5}}) ==
        "'y' has shape (13, 5); expected (N * 4, M)");
  CHECK(sizesOf({Shape{INT64_MAX, 4, 5}, std::nullopt, std::nullopt, Shape{12, 5}}) ==
        "'y' has shape (12, 5); expected (N * 4, M)");
}
