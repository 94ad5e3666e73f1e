// The files are protocol buffers. What is read of them is a handful of fields,
// which the wire format (https://protobuf.dev/programming-guides/encoding/)
// makes easier to walk than to generate code for: a field is a key (number << 3
// | type), then a varint, 8 bytes, a length and bytes, or 4 bytes.

#include "tests/numerics/OnnxCases.h"

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/LEB128.h"
#include "llvm/Support/MemoryBuffer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>

namespace normforge::test {

namespace fs = std::filesystem;
using llvm::StringRef;

namespace {

struct Field {
  uint64_t number = 0;
  uint64_t value = 0; ///< of a varint
  StringRef bytes;    ///< of the other types
};

/// Calls body for each field of a message; false where the bytes are no
/// message.
bool forEachField(StringRef message, const std::function<void(const Field &)> &body) {
  const auto *at = message.bytes_begin(), *end = message.bytes_end();
  const auto varint = [&](uint64_t &value) {
    unsigned length = 0;
    const char *error = nullptr;
    value = llvm::decodeULEB128(at, &length, end, &error);
    at += length;
    return error == nullptr;
  };
  while (at != end) {
    uint64_t key, length;
    if (!varint(key))
      return false;
    Field field;
    field.number = key >> 3;
    switch (key & 7) {
    case 0:
      if (!varint(field.value))
        return false;
      body(field);
      continue;
    case 1:
      length = 8;
      break;
    case 2:
      if (!varint(length))
        return false;
      break;
    case 5:
      length = 4;
      break;
    default:
      return false;
    }
    if (length > static_cast<uint64_t>(end - at))
      return false;
    field.bytes = StringRef(reinterpret_cast<const char *>(at), length);
    at += length;
    body(field);
  }
  return true;
}

/// TensorProto: dims = 1, data_type = 2 (FLOAT is 1), raw_data = 9.
std::optional<HostArray> readTensor(StringRef message) {
  std::vector<int64_t> shape;
  uint64_t type = 0;
  StringRef raw;
  if (!forEachField(message, [&](const Field &field) {
        if (field.number == 1)
          shape.push_back(static_cast<int64_t>(field.value));
        else if (field.number == 2)
          type = field.value;
        else if (field.number == 9)
          raw = field.bytes;
      }))
    return std::nullopt;
  HostArray array(DType::F32, shape);
  if (type != 1 || raw.size() != array.bytes.size())
    return std::nullopt;
  std::memcpy(array.bytes.data(), raw.data(), raw.size());
  return array;
}

/// The one node of a model.
struct Node {
  std::string type;
  std::map<std::string, double> attributes;
  double attribute(const std::string &name, double otherwise) const {
    auto found = attributes.find(name);
    return found == attributes.end() ? otherwise : found->second;
  }
};

/// ModelProto: graph = 7. GraphProto: node = 1. NodeProto: op_type = 4,
/// attribute = 5. AttributeProto: name = 1, f = 2, i = 3.
std::optional<Node> readModel(StringRef message) {
  std::vector<Node> nodes;
  bool sound = true;
  const auto attribute = [&](StringRef bytes) {
    std::string name;
    double value = 0;
    sound &= forEachField(bytes, [&](const Field &field) {
      if (field.number == 1)
        name = field.bytes.str();
      else if (field.number == 2)
        value = llvm::bit_cast<float>(llvm::support::endian::read32le(field.bytes.data()));
      else if (field.number == 3)
        value = static_cast<double>(static_cast<int64_t>(field.value));
    });
    nodes.back().attributes[name] = value;
  };
  const auto node = [&](StringRef bytes) {
    nodes.emplace_back();
    sound &= forEachField(bytes, [&](const Field &field) {
      if (field.number == 4)
        nodes.back().type = field.bytes.str();
      else if (field.number == 5)
        attribute(field.bytes);
    });
  };
  sound &= forEachField(message, [&](const Field &field) {
    if (field.number == 7)
      sound &= forEachField(field.bytes, [&](const Field &inner) {
        if (inner.number == 1)
          node(inner.bytes);
      });
  });
  if (!sound || nodes.size() != 1)
    return std::nullopt;
  return nodes.front();
}

std::vector<HostArray> readTensors(const fs::path &folder, const std::string &prefix) {
  std::vector<HostArray> arrays;
  for (int i = 0;; ++i) {
    auto buffer =
        llvm::MemoryBuffer::getFile((folder / fmt::format("{}_{}.pb", prefix, i)).string());
    if (!buffer)
      return arrays;
    auto array = readTensor((*buffer)->getBuffer());
    if (!array)
      return {};
    arrays.push_back(std::move(*array));
  }
}

/// Letters of an array whose channels are at place 1.
const char *lettersOf(size_t rank) {
  static constexpr const char *letters[] = {"", "c", "nc", "ncw", "nchw", "ncdhw"};
  return letters[rank];
}

std::string specText(const std::string &name, const std::vector<int64_t> &shape,
                     const std::vector<int64_t> &axes, std::string_view mode, double epsilon,
                     double momentum, Phase phase) {
  return fmt::format(
      "name: {}\n"
      "semantics: onnx-15\n"
      "input: {{shape: [{}], layout: {}, dtype: f32}}\n"
      "axis: [{}]\n"
      "mode: {}\n"
      "epsilon: {}\n"
      "{}"
      "phases: [{}]\n",
      name, fmt::join(shape, ", "), lettersOf(shape.size()), fmt::join(axes, ", "), mode, epsilon,
      mode == "feature" ? fmt::format("momentum: {}\n", momentum) : std::string(), toString(phase));
}

ConformanceCase makeCase(std::string name, std::string spec, Phase phase) {
  ConformanceCase item;
  item.sourceName = name + ".yaml";
  item.name = std::move(name);
  item.spec = std::move(spec);
  item.phases = {phase};
  // The tests' arrays come from NumPy in f32, whose pairwise sums err by a few
  // units of 2^-24.
  item.tolerance = 2e-5;
  return item;
}

void addBatchNorm(ConformanceCases &result, const std::string &name, const Node &node,
                  const std::vector<HostArray> &in, const std::vector<HostArray> &out) {
  const Phase phase = node.attribute("training_mode", 0) != 0 ? Phase::Training : Phase::Inference;
  ConformanceCase item =
      makeCase(name,
               specText(name, in[0].shape, {1}, "feature", node.attribute("epsilon", 1e-5),
                        node.attribute("momentum", 0.9), phase),
               phase);
  item.inputs = {{"x", in[0]},
                 {"gamma", in[1]},
                 {"beta", in[2]},
                 {"moving_mean", in[3]},
                 {"moving_variance", in[4]}};
  item.expected = {{"y", out[0]}};
  if (phase == Phase::Training) {
    item.expected.emplace("moving_mean", out.at(1));
    item.expected.emplace("moving_variance", out.at(2));
  }
  result.cases.push_back(std::move(item));
}

void addInstanceNorm(ConformanceCases &result, const std::string &name, const Node &node,
                     const std::vector<HostArray> &in, const std::vector<HostArray> &out) {
  ConformanceCase item = makeCase(name,
                                  specText(name, in[0].shape, {1}, "instance",
                                           node.attribute("epsilon", 1e-5), 0, Phase::Inference),
                                  Phase::Inference);
  item.inputs = {{"x", in[0]}, {"gamma", in[1]}, {"beta", in[2]}};
  item.expected = {{"y", out[0]}};
  result.cases.push_back(std::move(item));
}

void addLayerNorm(ConformanceCases &result, const std::string &name, const Node &node,
                  const std::vector<HostArray> &in, const std::vector<HostArray> &out) {
  const auto rank = static_cast<int64_t>(in[0].shape.size());
  const double epsilon = node.attribute("epsilon", 1e-5);
  const auto first = static_cast<int64_t>(node.attribute("axis", -1));
  std::vector<int64_t> axes;
  for (int64_t axis = first < 0 ? first + rank : first; axis < rank; ++axis)
    axes.push_back(axis);

  for (Phase phase : {Phase::Inference, Phase::Training}) {
    const std::string caseName = fmt::format("{}_{}", name, toString(phase));
    ConformanceCase item = makeCase(
        caseName, specText(caseName, in[0].shape, axes, "layer", epsilon, 0, phase), phase);
    item.inputs = {{"x", in[0]}, {"gamma", in[1]}, {"beta", in[2]}};
    item.expected = {{"y", out[0]}};
    if (phase == Phase::Training && out.size() == 3) {
      // The tests keep the reduced axes with size 1; InvStdDev is 1/sqrt(v +
      // epsilon).
      HostArray mean = out[1], variance(DType::F64, out[2].shape);
      for (int64_t i = 0, n = variance.count(); i < n; ++i)
        variance.set(i, 1 / (out[2].get(i) * out[2].get(i)) - epsilon);
      mean.shape.resize(axes.front());
      variance.shape.resize(axes.front());
      item.expected.emplace("batch_mean", std::move(mean));
      item.expected.emplace("batch_variance", std::move(variance));
    }
    result.cases.push_back(std::move(item));
  }
}

} // namespace

ConformanceCases readOnnxCases(const std::string &folder) {
  std::vector<fs::path> paths;
  std::error_code code;
  for (const auto &entry : fs::directory_iterator(folder, code))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());

  ConformanceCases result;
  for (const fs::path &path : paths) {
    const std::string name = path.filename().string();
    if (!name.starts_with("test_batchnorm_") && !name.starts_with("test_instancenorm_") &&
        !name.starts_with("test_layer_normalization_"))
      continue;
    if (name.ends_with("_expanded")) {
      result.skipped.push_back({name, "the same arrays, with the node written "
                                      "as a graph of other operators"});
      continue;
    }
    auto buffer = llvm::MemoryBuffer::getFile((path / "model.onnx").string());
    const auto node = buffer ? readModel((*buffer)->getBuffer()) : std::nullopt;
    const auto in = readTensors(path / "test_data_set_0", "input");
    const auto out = readTensors(path / "test_data_set_0", "output");
    if (!node || in.size() < 3 || out.empty() || in[0].shape.size() > 5)
      result.errors.push_back(path.string() + ": not the files of a test of one node");
    else if (node->type == "BatchNormalization" && in.size() == 5)
      addBatchNorm(result, name, *node, in, out);
    else if (node->type == "InstanceNormalization")
      addInstanceNorm(result, name, *node, in, out);
    else if (node->type == "LayerNormalization")
      addLayerNorm(result, name, *node, in, out);
    else
      result.errors.push_back(path.string() + ": unexpected node " + node->type);
  }
  return result;
}

} // namespace normforge::test
