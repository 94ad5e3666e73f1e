// A model whose norms are nodes of our own, for a runtime that loads the operator library
// (runtime/onnxruntime).
//
//   before: x -> LayerNormalization -> Add -> Relu -> y
//   after:  x, gamma, beta, addend -> normforge.Normalization{spec, phase} -> y
#pragma once

#include "compiler/model/Specs.h"

namespace normforge::model {

struct Rewritten {
  std::string bytes; ///< of the model's protobuf
  size_t nodes = 0;  ///< of ours in it
  struct Kept {
    size_t graph;
    int node;
    std::string why;
  };
  std::vector<Kept> kept; ///< norms that stay as they were
};

/// Changes `model`'s protobuf, whose graphs are of no more use then. Nodes that nobody takes any
/// more go, and initializers that only they took. A model of more than 2 GiB is an error.
llvm::Expected<Rewritten> rewrite(Model &model, const Imported &imported);

/// The other files that values of the model lie in, relative to its folder.
std::vector<std::string> externalFiles(const Model &model);

} // namespace normforge::model
