// The conformance tests of ONNX for batch, instance and layer normalization, as
// Debian's package libonnx-testdata installs them.
#pragma once

#include "tests/numerics/ConformanceCase.h"

namespace normforge::test {

/// Where libonnx-testdata puts the tests of single nodes.
inline constexpr const char *onnxNodeFolder = "/usr/share/libonnx-testdata/data/node";

/// Every test_batchnorm_*, test_instancenorm_* and test_layer_normalization_*
/// under `folder`, in the order of the names. A test may give several cases:
///
/// - Instance normalization takes its statistics per sample and channel: each
/// sample is a case of
///   its own, batch normalization of shape [1, c, ...] with the batch's
///   statistics.
/// - Layer normalization gives an inference case (y) and a training case (y,
/// batch_mean, and
///   batch_variance, which is worked out from the test's InvStdDev).
///
/// The _expanded tests are skipped: the same arrays, with the node as a graph
/// of other operators.
ConformanceCases readOnnxCases(const std::string &folder = onnxNodeFolder);

} // namespace normforge::test
