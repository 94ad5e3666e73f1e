#include "tests/numerics/KernelHarness.h"

#include "compiler/target/CodeGen.h"
#include "normforge/normforge.h"
#include "runtime/cpu_info/CpuInfo.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fmt/format.h>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

namespace normforge::test {

GuardedBuffer::GuardedBuffer(size_t bytes, Guard guard, size_t shift) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t inner = (bytes + shift + page - 1) / page * page;
  mappedBytes_ = inner + 2 * page;
  mapping_ =
      mmap(nullptr, mappedBytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED)
    throw std::runtime_error("no memory for a guarded buffer");
  char *first = static_cast<char *>(mapping_) + page;
  mprotect(mapping_, page, PROT_NONE);
  mprotect(first + inner, page, PROT_NONE);
  data_ = guard == Guard::After ? first + inner - bytes - shift : first + shift;
  std::memset(data_, 0xFF, bytes); // NaN in every type: what is not written is seen
}

GuardedBuffer::~GuardedBuffer() { munmap(mapping_, mappedBytes_); }

Session *TestKernel::session(const std::string &cpu, std::string &whyNot) {
  static std::map<std::string, std::unique_ptr<Session>> sessions;
  auto &slot = sessions[cpu];
  if (!slot) {
    auto target = describeTarget(cpu);
    if (!target)
      throw std::runtime_error(llvm::toString(target.takeError()));
    slot = std::make_unique<Session>(std::move(*target), /*verify=*/true, /*emulates=*/true);
  }
  for (const std::string &feature : slot->code().instructionSets())
    if (!hostHasFeature(feature)) {
      whyNot = fmt::format("this machine lacks {}, which kernels for {} need", feature, cpu);
      return nullptr;
    }
  return slot.get();
}

void TestKernel::load(llvm::Expected<Artifact> artifact) {
  if (artifact.errorIsA<StackError>())
    throw TooMuchStack(llvm::toString(artifact.takeError()));
  if (!artifact)
    throw std::runtime_error(llvm::toString(artifact.takeError()));
  Failure failure;
  kernel_ = Kernel::load(std::move(*artifact), {}, failure);
  if (!kernel_)
    throw std::runtime_error(failure.message);
}

TestKernel::TestKernel(const Spec &spec, Phase phase, Session &session) {
  load(session.compile(spec, phase));
}

TestKernel::TestKernel(const Operator &op, llvm::ArrayRef<ScheduleVariant> variants,
                       Session &session) {
  // Whatever schedule a test makes is legal, its text gives it back, and it is compiled as it is.
  std::vector<ScheduleVariant> given(variants.begin(), variants.end());
  for (ScheduleVariant &variant : given) {
    variant.isGiven = true;
    const std::string text = variant.schedule.text(op);
    auto parsed = parseSchedule(text, op);
    if (!parsed)
      throw std::runtime_error(llvm::toString(parsed.takeError()));
    if (*parsed != variant.schedule)
      throw std::runtime_error("a schedule is not what its text says: " + text);
    if (llvm::Error error = checkSchedule(variant.schedule, op, session.target()))
      throw std::runtime_error(llvm::toString(std::move(error)) + ": " + text);
  }
  load(session.compile(op, given));
}

std::shared_ptr<const Plan> TestKernel::plan(const oracle::Sizes &sizes) const {
  std::vector<int64_t> values;
  for (const std::string &name : artifact().sizes)
    values.push_back(sizes.at(name));
  Failure failure;
  auto plan = Plan::make(kernel_, values, failure);
  if (!plan)
    throw std::runtime_error(failure.message);
  return plan;
}

size_t TestKernel::variantFor(const oracle::Sizes &sizes) const { return plan(sizes)->variant(); }

oracle::Arrays TestKernel::run(const oracle::Sizes &sizes, const oracle::Arrays &inputs,
                               const oracle::Numbers &scalars, const RunOptions &options) const {
  auto plan = this->plan(sizes);
  const auto &arguments = artifact().arguments;
  std::vector<std::unique_ptr<GuardedBuffer>> buffers;
  std::vector<void *> pointers;
  std::set<uint32_t> taken; // inputs that an output is written over
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Argument &argument = arguments[i];
    std::vector<uint32_t> free;
    for (uint32_t alias : argument.mayAlias)
      if (!taken.contains(alias))
        free.push_back(alias);
    if (options.inPlace && !free.empty()) {
      const uint32_t over = free[*options.inPlace % free.size()];
      taken.insert(over);
      pointers.push_back(pointers[over]);
      continue;
    }
    const size_t shift = options.shift ? (options.shift + i) * byteSize(argument.dtype) : 0;
    buffers.push_back(
        std::make_unique<GuardedBuffer>(plan->arrays()[i].bytes, options.guard, shift));
    pointers.push_back(buffers.back()->data());
    if (!argument.written) {
      const HostArray &input = inputs.at(argument.name);
      if (input.bytes.size() != plan->arrays()[i].bytes)
        throw std::runtime_error("size of " + argument.name);
      std::memcpy(pointers.back(), input.bytes.data(), input.bytes.size());
    }
  }
  const size_t workspaceBytes = (plan->workspaceBytes() + 63) / 64 * 64;
  GuardedBuffer workspace(workspaceBytes);
  std::vector<nf_scalar> numbers;
  for (const Scalar &scalar : artifact().scalars)
    numbers.push_back(scalars.at(scalar.name));
  CallArguments call{pointers, numbers, workspace.data()};
  Failure failure;
  if (options.threads == 0 && !options.split) {
    if (!plan->run(call, nullptr, failure))
      throw std::runtime_error(failure.message);
  } else {
    if (!plan->check(call, failure))
      throw std::runtime_error(failure.message);
    std::vector<int64_t> sizeValues(plan->sizes().begin(), plan->sizes().end());
    nf_call raw{sizeof(nf_call), 0, pointers.data(), sizeValues.data(), numbers.data(),
                workspace.data()};
    for (const Plan::Step &step : plan->steps()) {
      std::vector<std::pair<uint64_t, uint64_t>> ranges;
      if (options.split) {
        for (uint64_t at = 0; at < step.tasks;) {
          const uint64_t take = std::min(step.tasks - at, 1 + (*options.split)() % 7);
          ranges.push_back({at, at + take});
          at += take;
        }
        std::shuffle(ranges.begin(), ranges.end(), *options.split);
      } else {
        const auto threads = static_cast<uint64_t>(options.threads);
        for (uint64_t t = 0; t < threads; ++t)
          ranges.push_back({step.tasks * t / threads, step.tasks * (t + 1) / threads});
      }
      std::vector<std::thread> pool;
      for (int t = 0; t < std::max(1, options.threads); ++t)
        pool.emplace_back([&, t] {
          for (size_t i = static_cast<size_t>(t); i < ranges.size();
               i += static_cast<size_t>(std::max(1, options.threads)))
            if (ranges[i].first < ranges[i].second)
              step.function(&raw, ranges[i].first, ranges[i].second);
        });
      for (std::thread &thread : pool)
        thread.join();
    }
  }
  oracle::Arrays outputs;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].written) {
      HostArray output(arguments[i].dtype, plan->arrays()[i].shape);
      std::memcpy(output.bytes.data(), pointers[i], output.bytes.size());
      outputs.emplace(arguments[i].name, std::move(output));
    }
  return outputs;
}

ExpectedOutputs expectedOutputs(const Spec &spec, Phase phase, const oracle::Sizes &sizes,
                                const oracle::Arrays &inputs, const oracle::Numbers &scalars) {
  return {oracle::reference(spec, phase, sizes, inputs, scalars),
          oracle::tolerances(spec, phase, sizes, inputs, scalars)};
}

std::string disagreement(const ExpectedOutputs &expected, const oracle::Arrays &outputs) {
  std::string text;
  for (const auto &[name, array] : expected.values) {
    const oracle::Tolerance &tolerance = expected.tolerances.at(name);
    const auto c = oracle::compare(outputs.at(name), array, tolerance);
    if (!c.agrees())
      text += fmt::format("{}[{}] is {} where {} is expected ({} times the tolerance: {})\n", name,
                          c.worst, c.actual, c.expected, c.largestExcess, tolerance.why);
  }
  return text;
}

std::string disagreement(const Spec &spec, Phase phase, const oracle::Sizes &sizes,
                         const oracle::Arrays &inputs, const oracle::Arrays &outputs,
                         const oracle::Numbers &scalars) {
  return disagreement(expectedOutputs(spec, phase, sizes, inputs, scalars), outputs);
}

bool sameBits(const oracle::Arrays &a, const oracle::Arrays &b) {
  if (a.size() != b.size())
    return false;
  for (const auto &[name, array] : a) {
    const auto it = b.find(name);
    if (it == b.end() || it->second.bytes != array.bytes)
      return false;
  }
  return true;
}

uint64_t testSeed() {
  static const uint64_t seed = [] {
    const char *given = std::getenv("NORMFORGE_TEST_SEED");
    const uint64_t value =
        given ? std::strtoull(given, nullptr, 10) : std::random_device{}() & 0xFFFFFFFFu;
    fmt::print("NORMFORGE_TEST_SEED={}\n", value);
    return value;
  }();
  return seed;
}

bool isTaken(size_t turn) {
  static const bool all = std::getenv("NORMFORGE_TEST_ALL") != nullptr;
  return all || turn % 3 == 0;
}

} // namespace normforge::test
