#include "python/src/OpenMp.h"

#include <algorithm>
#include <dlfcn.h>
#include <stdexcept>
#include <unistd.h>

namespace normforge::python {

namespace {

template <typename Function> void find(void *library, const char *name, Function *&function) {
  function = reinterpret_cast<Function *>(dlsym(library, name));
  if (!function)
    throw std::runtime_error(std::string("the OpenMP library has no ") + name);
}

} // namespace

OpenMp::OpenMp(const std::string &path) : process_(getpid()) {
  void *library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!library)
    throw std::runtime_error(path + " is not loaded");
  find(library, "GOMP_parallel", parallel_);
  find(library, "omp_get_max_threads", maxThreads_);
  find(library, "omp_get_thread_num", threadNumber_);
  find(library, "omp_get_num_threads", threadCount_);
  find(library, "omp_in_parallel", isParallel_);
  executor_.struct_size = sizeof executor_;
  executor_.user = this;
  executor_.parallel_for = [](void *user, uint64_t tasks, nf_body_fn *body, void *data) {
    static_cast<const OpenMp *>(user)->run(tasks, body, data);
  };
}

void OpenMp::run(uint64_t tasks, nf_body_fn *body, void *data) const {
  const auto threads = static_cast<unsigned>(
      std::min<uint64_t>(tasks, static_cast<uint64_t>(std::max(1, maxThreads_()))));
  if (threads == 1 || isParallel_() || getpid() != process_) {
    body(data, 0, tasks);
    return;
  }
  struct Work {
    const OpenMp &openMp;
    uint64_t tasks;
    nf_body_fn *body;
    void *data;
  } work{*this, tasks, body, data};
  parallel_(
      [](void *given) {
        const Work &w = *static_cast<Work *>(given);
        const auto number = static_cast<uint64_t>(w.openMp.threadNumber_()),
                   count = static_cast<uint64_t>(w.openMp.threadCount_());
        const uint64_t each = w.tasks / count, more = w.tasks % count;
        const uint64_t first = number * each + std::min(number, more);
        const uint64_t last = first + each + (number < more);
        if (first < last)
          w.body(w.data, first, last);
      },
      &work, threads, 0);
}

} // namespace normforge::python
