// Embeds the JIT in a program that has threads of its own: kernels run on the host's pool, compiled
// at the same time from several of its threads.
#include "normforge/normforge.hpp"

#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace {

/// As many workers as asked for; run() has them all work on one job with the caller.
class Pool {
public:
  explicit Pool(unsigned workers) {
    for (unsigned i = 0; i < workers; ++i)
      threads_.emplace_back([this, i] { work(i + 1); });
  }
  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      ends_ = true;
    }
    begins_.notify_all();
    for (std::thread &thread : threads_)
      thread.join();
  }
  /// Calls `job(member)` for every member of the pool, 0 the caller, and waits for all; then throws
  /// what one of them threw.
  void run(const std::function<void(size_t)> &job) {
    std::lock_guard one(users_); // a job at a time
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      left_ = threads_.size();
      failure_ = nullptr;
      ++turn_;
    }
    begins_.notify_all();
    attempt(job, 0);
    std::unique_lock lock(mutex_);
    finished_.wait(lock, [this] { return left_ == 0; });
    if (failure_)
      std::rethrow_exception(failure_);
  }
  size_t members() const { return threads_.size() + 1; }

  /// The executor that Normforge is given: it runs tasks in equal runs, one a member. Results do
  /// not depend on it.
  nf_executor executor() {
    nf_executor executor = {};
    executor.struct_size = sizeof executor;
    executor.user = this;
    executor.parallel_for = [](void *user, uint64_t tasks, nf_body_fn *body, void *data) {
      auto &pool = *static_cast<Pool *>(user);
      const uint64_t members = pool.members();
      pool.run([&](size_t member) {
        const uint64_t first = tasks * member / members, last = tasks * (member + 1) / members;
        if (first < last)
          body(data, first, last);
      });
    };
    return executor;
  }

private:
  void attempt(const std::function<void(size_t)> &job, size_t member) {
    try {
      job(member);
    } catch (...) {
      std::lock_guard lock(mutex_);
      failure_ = std::current_exception();
    }
  }
  void work(size_t member) {
    for (uint64_t seen = 0;;) {
      const std::function<void(size_t)> *job;
      {
        std::unique_lock lock(mutex_);
        begins_.wait(lock, [&] { return ends_ || turn_ != seen; });
        if (ends_)
          return;
        seen = turn_;
        job = job_;
      }
      attempt(*job, member);
      std::lock_guard lock(mutex_);
      if (--left_ == 0)
        finished_.notify_one();
    }
  }

  std::mutex users_, mutex_;
  std::condition_variable begins_, finished_;
  const std::function<void(size_t)> *job_ = nullptr;
  uint64_t turn_ = 0;
  size_t left_ = 0;
  std::exception_ptr failure_;
  bool ends_ = false;
  std::vector<std::thread> threads_;
};

} // namespace

int main(int argc, char **argv) try {
  Pool pool(3);
  nf::Engine::Options options;
  if (argc > 1)
    options.compilerLibrary = argv[1];
  options.executor = pool.executor(); // for every call that names no other
  const nf::Engine engine(options);

  // All members ask at once; the engine compiles once.
  const char *spec = "name: pooled\n"
                     "input: {shape: [N, 32, 28, 28], layout: nchw, dtype: f32}\n"
                     "axis: c\n"
                     "phases: [training]\n";
  std::vector<nf::Kernel> kernels(pool.members(), nf::Kernel(nullptr));
  pool.run([&](size_t member) { kernels[member] = engine.compile(spec); });

  const nf::Plan plan = kernels[0].plan({16});
  const nf::Workspace workspace = plan.makeWorkspace();
  std::vector<std::vector<float>> arrays;
  std::vector<void *> args;
  for (size_t i = 0; i < kernels[0].argumentCount(); ++i) {
    arrays.emplace_back(plan.bytes(i) / sizeof(float), 1.0f);
    args.push_back(arrays.back().data());
  }
  for (size_t i = 0; i < arrays[0].size(); ++i)
    arrays[0][i] = static_cast<float>(i * 37 % 101);
  const size_t y = kernels[0].findArgument("y", true);

  plan.run(args, {}, workspace.get());
  const std::vector<float> onPool = arrays[y];
  nf_executor alone = {}; // no function: the calling thread
  alone.struct_size = sizeof alone;
  plan.run(args, {}, workspace.get(), &alone);
  const bool same =
      std::memcmp(onPool.data(), arrays[y].data(), onPool.size() * sizeof(float)) == 0;
  std::printf("%zu threads, %llu tasks in stage 0: %s as one thread's, to the bit\n",
              pool.members(), static_cast<unsigned long long>(plan.tasks(0)),
              same ? "the same" : "NOT the same");
  return same ? 0 : 1;
} catch (const std::exception &error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
