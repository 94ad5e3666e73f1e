// ONNX's classes of protobuf, for the files of this room alone.
#pragma once

#include "compiler/model/Graph.h"

#include <onnx/onnx_pb.h>

namespace normforge::model {

/// A constant's shape, and its values where they are in the message and few enough.
Tensor tensorOf(const onnx::TensorProto &proto);

} // namespace normforge::model
