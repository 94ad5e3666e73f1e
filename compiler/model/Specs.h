// Specs of the norms of a model, each once.
#pragma once

#include "compiler/model/Norms.h"
#include "compiler/spec/Spec.h"

namespace normforge::model {

/// A norm, and the graph of the model that it is in.
struct Place {
  size_t graph = 0;
  Norm norm;
};

struct Layer {
  std::string name; ///< of the spec
  std::string text; ///< YAML, without the comment that names the places
  std::string what; ///< "layer norm of (N, T, 768) f32, then add"
  std::vector<Place> places;
};

struct Imported {
  std::vector<Layer> layers;
  struct Refused {
    size_t graph;
    Left left;
  };
  std::vector<Refused> refused;
};

/// The norms of all graphs. Those whose specs cannot be read are refused, with the reason.
Imported importNorms(const Model &model);

} // namespace normforge::model
