// Kernels give what Keras, PyTorch and ONNX computed.
#include "tests/numerics/FrameworkCases.h"
#include "tests/numerics/KernelCase.h"
#include "tests/numerics/OnnxCases.h"

#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <filesystem>

using namespace normforge;
using namespace normforge::test;

namespace {

/// Runs every form of a phase's kernel; the outputs of the last one.
oracle::Arrays checkPhase(const ConformanceCase &item, const Spec &spec, Phase phase,
                          const oracle::Arrays &given, Session &session) {
  const Operator op = makeOperator(spec, phase);
  oracle::Arrays inputs, actual;
  for (const std::string &name : oracle::inputNames(spec, phase))
    inputs.emplace(name, given.at(name));
  for (const ScheduleVariant &variant : forms(op, session.target())) {
    INFO(variant.schedule.text(op));
    actual = TestKernel(op, variant, session).run(item.sizes, inputs);
    const std::string wrong = disagreement(spec, phase, item.sizes, inputs, actual);
    CHECK_MESSAGE(wrong.empty(), wrong);
    for (const auto &[name, array] : actual) {
      const auto found = item.expected.find(name);
      if (found == item.expected.end())
        continue;
      INFO(name);
      const HostArray &expected = found->second;
      double largest = 0;
      for (int64_t i = 0; i < expected.count(); ++i)
        largest = std::max(largest, std::abs(expected.get(i)));
      const auto result =
          oracle::compare(array, expected, {item.tolerance * largest, 0, false, "as stored"});
      INFO("at ", result.worst, ": ", result.actual, " and ", result.expected, ", ",
           result.largestExcess, " of the allowed");
      CHECK(result.agrees());
    }
  }
  return actual;
}

/// Runs a case's phases; where the spec is not built yet, gives the parser's reason.
std::string check(const ConformanceCase &item, Session &session) {
  INFO(item.name);
  auto spec = parseSpec(item.spec, item.sourceName);
  if (!spec)
    return llvm::toString(spec.takeError());
  try {
    oracle::Arrays inputs = item.inputs;
    for (Phase phase : item.phases) {
      const oracle::Arrays outputs = checkPhase(item, *spec, phase, inputs, session);
      inputs.insert(outputs.begin(), outputs.end());
    }
  } catch (const std::exception &error) {
    FAIL_CHECK(std::string(error.what()));
  }
  return "";
}

int runCases(const ConformanceCases &cases, const char *cpu, Session &session) {
  INFO("build/bin/test_numerics --source-file='*/ConformanceTest.cpp', cpu ", std::string(cpu));
  CHECK(cases.errors.empty());
  for (const auto &[name, reason] : cases.skipped)
    MESSAGE("SKIP " << name << ": " << reason);
  int ran = 0;
  for (const ConformanceCase &item : cases.cases) {
    const std::string reason = check(item, session);
    ran += reason.empty();
    if (reason.empty())
      continue;
    MESSAGE("SKIP " << item.name << ": " << reason);
    const bool isUnbuilt = reason.find("not built") != std::string::npos ||
                           item.name == "torch_adaln"; // a mapping that is no step yet
    CHECK_MESSAGE(isUnbuilt, item.name);
  }
  return ran;
}

} // namespace

TEST_CASE("kernels give what Keras and PyTorch computed") {
  const auto cases = readFrameworkCases(std::string(NORMFORGE_TEST_DATA_DIR) + "/data/frameworks");
  for (const char *cpu : {"native", "haswell", "x86-64-v2"})
    if (Session *session = sessionOrSkip(cpu))
      CHECK(runCases(cases, cpu, *session) >= 16 + 67 + 8);
}

TEST_CASE("kernels give what ONNX expects") {
  if (!std::filesystem::is_directory(onnxNodeFolder)) {
    MESSAGE("SKIP: Debian's package libonnx-testdata is not installed");
    return;
  }
  const auto cases = readOnnxCases();
  for (const char *cpu : {"native", "haswell", "x86-64-v2"})
    if (Session *session = sessionOrSkip(cpu))
      CHECK(runCases(cases, cpu, *session) >= 4 + 2 + 2 * 19);
}
