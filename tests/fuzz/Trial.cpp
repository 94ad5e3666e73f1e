#include "tests/fuzz/Trial.h"

#include "tests/numerics/KernelCase.h"
#include "tests/numerics/SpecDraw.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fmt/format.h>
#include <stdexcept>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace normforge::test {

namespace {

/// A child that takes longer hangs: the largest specs take a second.
constexpr unsigned kSecondsToHang = 120;

constexpr std::pair<Injection, std::string_view> kInjections[] = {
    {Injection::BlockedF64, "blocked-f64"},
    {Injection::SplitRelu, "split-relu"},
    {Injection::Crash, "crash"},
};

/// A child's report to its parent, in memory that both have: it has a dead child's last words too.
struct Report {
  uint64_t runs;
  Fault fault;
  char place[256];
  char text[8192];
};

Report &sharedReport() {
  static Report *report = [] {
    void *memory =
        mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
      throw std::runtime_error("no memory to share with children");
    return static_cast<Report *>(memory);
  }();
  return *report;
}

template <size_t N> void keep(char (&to)[N], std::string_view text) {
  const size_t size = std::min(text.size(), N - 1);
  std::memcpy(to, text.data(), size);
  to[size] = 0;
}

/// A way to run a kernel that has to give the bits of the run before it.
struct Form {
  const char *name;
  bool split, inPlace;
  int threads;
  size_t shift;
  GuardedBuffer::Guard guard;
};
using Guard = GuardedBuffer::Guard;
constexpr Form kForms[] = {
    {"split, guard pages before arrays", true, false, 0, 0, Guard::Before},
    {"3 threads", false, false, 3, 0, Guard::After},
    {"split, arrays aligned to elements alone", true, false, 0, 1, Guard::Before},
    {"3 threads, split, in place", true, true, 3, 0, Guard::After},
};

std::string firstDifference(const oracle::Arrays &before, const oracle::Arrays &after) {
  for (const auto &[name, array] : before) {
    const HostArray &other = after.at(name);
    const size_t size = byteSize(array.dtype);
    for (size_t at = 0; at < array.bytes.size(); at += size)
      if (std::memcmp(&array.bytes[at], &other.bytes[at], size) != 0) {
        const auto i = static_cast<int64_t>(at / size) * elementsPerWord(array.dtype);
        return fmt::format("{}[{}] is {}, and {} inline", name, i, other.get(i), array.get(i));
      }
  }
  return "other outputs";
}

/// The child's part: all steps of a trial, up to the first that fails.
class Steps {
public:
  Steps(const Trial &trial, Injection injection, Report &report)
      : trial_(trial), injection_(injection), report_(report) {}

  void run() {
    begin("parsing");
    auto spec = parseSpec(trial_.yaml, "drawn.yaml");
    if (!spec)
      return fail(Fault::BadSpec, llvm::toString(spec.takeError()));
    if (spec->layout.isBlocked())
      groups_ = groupsOf(*spec, trial_.sizes);
    for (Phase phase : trial_.phases) {
      place_ = toString(phase);
      begin("the reference");
      const oracle::Arrays inputs = oracle::drawInputs(*spec, phase, trial_.sizes, trial_.seed,
                                                       oracle::Data::Normal, drawnScalars());
      const ExpectedOutputs expected =
          expectedOutputs(*spec, phase, trial_.sizes, inputs, drawnScalars());
      for (const std::string &cpu : trial_.cpus) {
        place_ = fmt::format("{} on {}", toString(phase), cpu);
        runOn(cpu, *spec, phase, inputs, expected);
        if (report_.fault != Fault::None)
          return;
      }
    }
  }

private:
  void begin(std::string_view step) {
    keep(report_.place, place_.empty() ? std::string(step) : fmt::format("{}, {}", place_, step));
  }
  void fail(Fault fault, std::string_view text) {
    report_.fault = fault;
    keep(report_.text, text);
  }

  void runOn(const std::string &cpu, const Spec &spec, Phase phase, const oracle::Arrays &inputs,
             const ExpectedOutputs &expected) {
    Fault ifThrown = Fault::NotCompiled;
    try {
      begin("compiling");
      std::string whyNot;
      const TestKernel kernel(spec, phase, *TestKernel::session(cpu, whyNot));
      begin("serializing");
      const std::vector<std::byte> bytes = serialize(kernel.artifact());
      std::string error;
      const auto again = deserialize(bytes, error);
      if (!again || serialize(*again) != bytes)
        return fail(Fault::RoundTrip, again ? "other bytes" : error);
      ifThrown = Fault::NotRun;
      compare(kernel, spec, inputs, expected);
    } catch (const std::exception &exception) {
      fail(ifThrown, exception.what());
    }
  }

  void compare(const TestKernel &kernel, const Spec &spec, const oracle::Arrays &inputs,
               const ExpectedOutputs &expected) {
    const std::string schedule =
        kernel.artifact().variants[kernel.variantFor(trial_.sizes)].schedule;
    const oracle::Arrays first = outputs(kernel, spec, inputs, "inline", {});
    const std::string wrong = disagreement(expected, first) + wrongPadding(groups_, first);
    if (!wrong.empty())
      return fail(Fault::WrongResult, wrong + "schedule " + schedule);
    std::mt19937_64 random(trial_.seed); // of its own: other CPUs may come and go
    for (const Form &form : kForms) {
      RunOptions options;
      options.split = form.split ? &random : nullptr;
      options.threads = form.threads;
      options.shift = form.shift;
      options.guard = form.guard;
      if (form.inPlace)
        options.inPlace = random() % 2;
      const oracle::Arrays other = outputs(kernel, spec, inputs, form.name, options);
      if (!sameBits(first, other))
        return fail(Fault::OtherBits, firstDifference(first, other) + "\nschedule " + schedule);
    }
  }

  oracle::Arrays outputs(const TestKernel &kernel, const Spec &spec, const oracle::Arrays &inputs,
                         const char *name, const RunOptions &options) {
    begin(name);
    if (injection_ == Injection::Crash && spec.rank() == 5)
      std::raise(SIGSEGV);
    oracle::Arrays arrays = kernel.run(trial_.sizes, inputs, drawnScalars(), options);
    ++report_.runs;
    const char *data = arrays.contains("y") ? "y" : "dx";
    if (!arrays.contains(data)) // a phase that faults are not planted in
      return arrays;
    std::byte &last = arrays.at(data).bytes[byteSize(spec.dtype) - 1]; // of element 0: its exponent
    if (injection_ == Injection::BlockedF64 && spec.layout.isBlocked() && spec.dtype == DType::F64)
      last ^= std::byte{0x40};
    const Size &inner = spec.shape.back();
    if (injection_ == Injection::SplitRelu && options.split &&
        std::ranges::find(spec.fuse, FuseStep{"relu"}) != spec.fuse.end() &&
        (inner.isNamed() ? trial_.sizes.at(inner.name) : inner.value) >= 5)
      last ^= std::byte{0x40};
    return arrays;
  }

  const Trial &trial_;
  const Injection injection_;
  Report &report_;
  std::string place_;           ///< phase and, where there is one, CPU
  std::vector<int64_t> groups_; ///< of a blocked layout's elements, to know its padding
};

[[noreturn]] void runChild(const Trial &trial, Injection injection, int words) {
  const rlimit none{0, 0}; // core files
  setrlimit(RLIMIT_CORE, &none);
  dup2(words, STDERR_FILENO);
  alarm(kSecondsToHang);
  Report &report = sharedReport();
  try {
    Steps(trial, injection, report).run();
  } catch (const std::exception &exception) { // outside of a kernel's compilation and runs
    report.fault = Fault::NotRun;
    keep(report.text, exception.what());
  }
  _exit(0); // the parent's buffers and destructors are not the child's to run
}

/// The last of what a child wrote to stderr: where LLVM says why it gives up.
std::string lastWords(int file) {
  char text[1024];
  const off_t size = lseek(file, 0, SEEK_END);
  const ssize_t read =
      pread(file, text, sizeof text, std::max<off_t>(0, size - static_cast<off_t>(sizeof text)));
  return {text, read > 0 ? static_cast<size_t>(read) : 0};
}

} // namespace

std::string_view toString(Fault fault) {
  switch (fault) {
  case Fault::None:
    return "no fault";
  case Fault::BadSpec:
    return "spec refused";
  case Fault::NotCompiled:
    return "compile error";
  case Fault::RoundTrip:
    return "artifact changed";
  case Fault::NotRun:
    return "call refused";
  case Fault::WrongResult:
    return "wrong result";
  case Fault::OtherBits:
    return "bits differ";
  case Fault::Death:
    return "crash";
  }
  return "";
}

std::optional<Injection> parseInjection(std::string_view text) {
  for (auto [injection, name] : kInjections)
    if (name == text)
      return injection;
  return std::nullopt;
}

std::string_view toString(Injection injection) {
  for (auto [candidate, name] : kInjections)
    if (candidate == injection)
      return name;
  return "";
}

std::string_view injectionNames() { return "blocked-f64, split-relu, crash"; }

std::vector<std::string> runnableCpus(const std::vector<std::string> &cpus) {
  std::vector<std::string> runnable;
  const Spec spec = specOf("input: {shape: [N, 19], layout: nc}\nphases: [training]\n");
  for (const std::string &cpu : cpus) {
    std::string whyNot;
    Session *session = TestKernel::session(cpu, whyNot);
    if (!session) {
      fmt::print("SKIP: {}\n", whyNot);
      continue;
    }
    // Each child would make again what a first compilation makes and later ones find.
    const TestKernel warm(spec, Phase::Training, *session);
    runnable.push_back(cpu);
  }
  return runnable;
}

Outcome runTrial(const Trial &trial, Injection injection) {
  static const int words = memfd_create("stderr", MFD_CLOEXEC);
  Report &report = sharedReport();
  report = {};
  if (ftruncate(words, 0) != 0 || lseek(words, 0, SEEK_SET) != 0)
    throw std::runtime_error("no file for the child's stderr");
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0)
    throw std::runtime_error(fmt::format("fork: {}", std::strerror(errno)));
  if (child == 0)
    runChild(trial, injection, words);
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR)
      throw std::runtime_error(fmt::format("waitpid: {}", std::strerror(errno)));

  Outcome outcome{report.fault, 0, report.runs, {}};
  std::string what = report.text;
  if (status != 0) {
    outcome.fault = Fault::Death;
    outcome.deathStatus = status;
    what = WIFSIGNALED(status)
               ? fmt::format("signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)))
               : fmt::format("exit status {}", WEXITSTATUS(status));
    if (const std::string last = lastWords(words); !last.empty())
      what += "\n" + last;
  }
  if (outcome)
    outcome.text = fmt::format("{}: {}", report.place, what);
  return outcome;
}

} // namespace normforge::test
