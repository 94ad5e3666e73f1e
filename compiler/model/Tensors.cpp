// Constants of a model as numbers.
#include "compiler/model/Inference.h"
#include "compiler/model/Proto.h"
#include "runtime/artifact/Element.h"

#include <cstring>
#include <span>

namespace normforge::model {

namespace {

template <typename T> void takeRaw(const std::string &raw, auto convert, std::vector<double> &out) {
  for (size_t at = 0; at + sizeof(T) <= raw.size(); at += sizeof(T)) {
    T value;
    std::memcpy(&value, raw.data() + at, sizeof value);
    out.push_back(static_cast<double>(convert(value)));
  }
}

} // namespace

Tensor tensorOf(const onnx::TensorProto &proto) {
  using Data = onnx::TensorProto;
  Tensor tensor;
  tensor.shape.assign(proto.dims().begin(), proto.dims().end());
  if (proto.data_location() == Data::EXTERNAL || tensor.count() > kMostValues)
    return tensor;
  std::vector<double> &values = tensor.values;
  auto same = [](auto value) { return value; };
  const std::string &raw = proto.raw_data();
  switch (proto.data_type()) {
  case Data::FLOAT:
    raw.empty() ? values.assign(proto.float_data().begin(), proto.float_data().end())
                : takeRaw<float>(raw, same, values);
    break;
  case Data::DOUBLE:
    raw.empty() ? values.assign(proto.double_data().begin(), proto.double_data().end())
                : takeRaw<double>(raw, same, values);
    break;
  case Data::INT64:
    raw.empty() ? values.assign(proto.int64_data().begin(), proto.int64_data().end())
                : takeRaw<int64_t>(raw, same, values);
    break;
  case Data::INT32:
    raw.empty() ? values.assign(proto.int32_data().begin(), proto.int32_data().end())
                : takeRaw<int32_t>(raw, same, values);
    break;
  case Data::BOOL:
  case Data::UINT8:
    raw.empty() ? values.assign(proto.int32_data().begin(), proto.int32_data().end())
                : takeRaw<uint8_t>(raw, same, values);
    break;
  case Data::FLOAT16:
  case Data::BFLOAT16: {
    const DType dtype = proto.data_type() == Data::FLOAT16 ? DType::F16 : DType::BF16;
    auto convert = [&](uint16_t bits) {
      return elementOf(dtype, std::as_bytes(std::span(&bits, 1)), 0);
    };
    if (raw.empty())
      for (int32_t bits : proto.int32_data())
        values.push_back(convert(static_cast<uint16_t>(bits)));
    else
      takeRaw<uint16_t>(raw, convert, values);
    break;
  }
  default:
    break;
  }
  // The message contradicts itself, or its type is not read.
  if (!tensor.hasValues())
    values.clear();
  return tensor;
}

} // namespace normforge::model
