// The f64 reference agrees with what Keras, PyTorch and ONNX computed.

#include "tests/numerics/FrameworkCases.h"
#include "tests/numerics/OnnxCases.h"

#include "llvm/Support/Error.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

using namespace normforge;
using namespace normforge::test;

namespace {

/// Arrays that differ by axes of size 1 alone are the same: tf.keras keeps (1, C, 1, 1).
std::vector<int64_t> withoutOnes(std::vector<int64_t> shape) {
  std::erase(shape, 1);
  return shape;
}

/// Checks one case; where its spec is not built yet, returns the parser's
/// reason.
std::string check(const ConformanceCase &item) {
  INFO(item.name);
  auto spec = parseSpec(item.spec, item.sourceName);
  if (!spec)
    return llvm::toString(spec.takeError());
  oracle::Arrays inputs = item.inputs, actual;
  for (Phase phase : item.phases) {
    for (const std::string &name : oracle::inputNames(*spec, phase)) {
      INFO(name);
      REQUIRE(inputs.count(name));
      REQUIRE(withoutOnes(inputs.at(name).shape) ==
              withoutOnes(oracle::argumentShape(*spec, name, item.sizes)));
    }
    for (auto &[name, array] : oracle::reference(*spec, phase, item.sizes, inputs)) {
      inputs.emplace(name, array);
      actual.insert_or_assign(name, std::move(array));
    }
  }
  CHECK(!item.expected.empty());
  for (const auto &[name, expected] : item.expected) {
    INFO(name);
    REQUIRE(actual.count(name));
    CHECK(withoutOnes(actual.at(name).shape) == withoutOnes(expected.shape));
    double largest = 0;
    for (int64_t i = 0; i < expected.count(); ++i)
      largest = std::max(largest, std::abs(expected.get(i)));
    const auto result = oracle::compare(actual.at(name), expected,
                                        {item.tolerance * largest, 0, false, "as stored"});
    INFO("at ", result.worst, ": ", result.actual, " and ", result.expected, ", ",
         result.largestExcess, " of the allowed");
    CHECK(result.agrees());
  }
  return "";
}

} // namespace

TEST_CASE("conformance: Keras and PyTorch") {
  const auto [cases, skipped, errors] =
      readFrameworkCases(std::string(NORMFORGE_TEST_DATA_DIR) + "/data/frameworks");
  CHECK(errors.empty());
  for (const auto &[name, reason] : skipped)
    MESSAGE("SKIP " << name << ": " << reason);
  int keras = 0, torch = 0;
  for (const ConformanceCase &item : cases) {
    const std::string reason = check(item);
    if (!reason.empty()) {
      MESSAGE("SKIP " << item.name << ": " << reason);
      const bool isUnbuilt = reason.find("not built") != std::string::npos ||
                             item.name == "torch_adaln"; // a mapping that is no step yet
      CHECK_MESSAGE(isUnbuilt, item.name);
      continue;
    }
    keras += item.name.starts_with("keras1_");
    torch += item.name.starts_with("torch_");
  }
  CHECK(keras == 16);
  CHECK(torch >= 67);
}

TEST_CASE("conformance: ONNX") {
  if (!std::filesystem::is_directory(onnxNodeFolder)) {
    MESSAGE("SKIP: Debian's package libonnx-testdata is not installed");
    return;
  }
  const auto [cases, skipped, errors] = readOnnxCases();
  CHECK(errors.empty());
  int batch = 0, instance = 0, layer = 0;
  for (const ConformanceCase &item : cases) {
    CHECK_MESSAGE(check(item) == "", item.name);
    batch += item.name.starts_with("test_batchnorm_");
    instance += item.name.starts_with("test_instancenorm_");
    layer += item.name.starts_with("test_layer_normalization_");
  }
  CHECK(batch == 4);
  CHECK(instance >= 2);
  CHECK(layer == 2 * 19);
  CHECK(skipped.size() == 19);
}
