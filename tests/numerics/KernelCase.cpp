#include "tests/numerics/KernelCase.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fmt/format.h>
#include <stdexcept>

namespace normforge::test {

Spec specOf(const std::string &yaml) {
  auto spec = parseSpec(yaml, "case.yaml");
  if (!spec)
    throw std::runtime_error(llvm::toString(spec.takeError()));
  return std::move(*spec);
}

Session *sessionOrSkip(const std::string &cpu) {
  std::string whyNot;
  Session *session = TestKernel::session(cpu, whyNot);
  if (!session)
    fmt::print("SKIP: {}\n", whyNot);
  return session;
}

std::string repeatCommand(std::string_view testCase) {
  return fmt::format("{}NORMFORGE_TEST_SEED={} build/bin/test_numerics --test-case='{}'",
                     std::getenv("NORMFORGE_TEST_ALL") ? "NORMFORGE_TEST_ALL=1 " : "", testSeed(),
                     testCase);
}

ScheduleVariant always(const Schedule &schedule) { return {schedule, Guard{}, "forced"}; }

std::vector<ScheduleVariant> forms(const Operator &op, const TargetDescription &target) {
  std::vector<ScheduleVariant> result;
  for (const ScheduleVariant &variant : selectSchedules(op, target))
    result.push_back(always(variant.schedule));
  return result;
}

std::vector<int64_t> groupsOf(const Spec &spec, const oracle::Sizes &sizes) {
  // Walks the memory index itself; the oracle's own walk is what this stands beside.
  const std::vector<int64_t> memory = oracle::argumentShape(spec, "x", sizes);
  std::vector<int64_t> logical;
  for (const Size &size : spec.shape)
    logical.push_back(size.isNamed() ? sizes.at(size.name) : size.value);
  int64_t count = 1;
  for (int64_t size : memory)
    count *= size;
  std::vector<int64_t> groups(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int64_t> at(memory.size());
    int64_t rest = i;
    for (size_t d = memory.size(); d-- > 0;) {
      at[d] = rest % memory[d];
      rest /= memory[d];
    }
    if (spec.layout.isBlocked()) {
      auto &outer = at[static_cast<size_t>(spec.layout.blockedAxis)];
      outer = outer * spec.layout.block + at.back();
      at.pop_back();
    }
    int64_t group = 0;
    bool exists = true;
    for (int d = 0; d < spec.rank(); ++d) {
      const auto index = static_cast<size_t>(d);
      exists = exists && at[index] < logical[index];
      const bool ofSamples = spec.mode == Mode::Instance || spec.mode == Mode::Group;
      const bool ofOthers = spec.mode == Mode::Sample || spec.mode == Mode::Rms;
      if (spec.mode == Mode::Group && spec.isAxis(d)) {
        group = group * spec.groups + at[index] * spec.groups / logical[index];
      } else if ((ofSamples && d == spec.samplesAxis()) || spec.isAxis(d) != ofOthers) {
        group = group * logical[index] + at[index];
      }
    }
    groups[static_cast<size_t>(i)] = exists ? group : -1;
  }
  return groups;
}

std::string wrongResults(const TestKernel &kernel, const Spec &spec, Phase phase,
                         const oracle::Sizes &sizes, const oracle::Arrays &inputs,
                         const oracle::Numbers &scalars, const RunOptions &options) {
  return wrongOutputs(spec, phase, sizes, inputs, kernel.run(sizes, inputs, scalars, options),
                      scalars);
}

std::string wrongPadding(const std::vector<int64_t> &groups, const oracle::Arrays &outputs) {
  for (const auto &[name, array] : outputs)
    for (size_t i = 0; static_cast<size_t>(array.count()) == groups.size() && i < groups.size();
         ++i) {
      const double value = array.get(static_cast<int64_t>(i));
      if (groups[i] < 0 && (value != 0 || std::signbit(value)))
        return fmt::format("padding {}[{}] is {}, expected 0\n", name, i, value);
    }
  return {};
}

std::string wrongOutputs(const Spec &spec, Phase phase, const oracle::Sizes &sizes,
                         const oracle::Arrays &inputs, const oracle::Arrays &outputs,
                         const oracle::Numbers &scalars) {
  std::string wrong = disagreement(spec, phase, sizes, inputs, outputs, scalars);
  if (spec.layout.isBlocked())
    wrong += wrongPadding(groupsOf(spec, sizes), outputs);
  return wrong;
}

HostArray samplesOf(const HostArray &array, int64_t first, int64_t last) {
  std::vector<int64_t> shape = array.shape;
  const size_t bytes = array.bytes.size() / static_cast<size_t>(shape[0]);
  shape[0] = last - first;
  HostArray part(array.dtype, shape);
  std::memcpy(part.bytes.data(), array.bytes.data() + static_cast<size_t>(first) * bytes,
              part.bytes.size());
  return part;
}

std::string describeSizes(const oracle::Sizes &sizes) {
  std::string text;
  for (const auto &[name, size] : sizes)
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", name, size);
  return text;
}

} // namespace normforge::test
