// Norms in a graph, whatever they are made of.
//
// Enters: a graph. Leaves: each norm with its inputs and what follows it, as a spec has them, and
// for nodes that look like norms or could have gone with one, why they were left.
//
//   ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add, Relu
//   -> {kind: Layer, axes: [2], epsilon: 1e-5, gamma, beta, fuse: [relu]}
//
// A rule that a change must keep: what a norm is taken for computes the same, but for roundings. A
// shape that is not known, or a number that is not constant, is a reason and no guess.
#pragma once

#include "compiler/model/Graph.h"

#include <set>

namespace normforge::model {

enum class Kind : uint8_t { Batch, Layer, Instance, Group, Rms };
std::string_view inWords(Kind kind); ///< "batch norm"

/// A step of `fuse` or `prologue`.
struct Step {
  std::string text; ///< as a spec has it: "relu", "{leaky_relu: 0.01}", "add", "{mul: {axes: [1]}}"
  int operand = -1; ///< the value that it takes; -1: none
};

struct Norm {
  Kind kind = Kind::Layer;
  std::string form; ///< the operator, or those that it is made of
  bool isTraining = false;
  int x = -1, y = -1;
  std::vector<int64_t> axes; ///< that are normalized; of channels, their axis
  int64_t groups = 0;
  double epsilon = 0;
  double momentum = 0; ///< of training: weighs the old value
  int gamma = -1, beta = -1;
  int mean = -1, variance = -1;       ///< given ones
  int newMean = -1, newVariance = -1; ///< that training writes
  std::vector<Step> prologue, fuse;
  int sum = -1;             ///< that the prologue's sum is stored in; -1: nobody wants it
  bool isFlattened = false; ///< parameters are (1, all normalized axes as one)
  std::vector<int> nodes;   ///< all that it is made of
  std::vector<std::string> notes;
  std::string stays; ///< why a rewritten model keeps its nodes; else ""
};

struct Left {
  int node;
  std::string why;
};

struct Found {
  std::vector<Norm> norms;
  std::vector<Left> left;
};
Found findNorms(const Graph &graph);

/// A number as a spec has it for data of this type: in the fewest digits that give it back.
std::string numberText(double number, int type);

/// The steps that follow value `y` and that only it feeds, none of them in `taken`, each into
/// `steps`; `y` becomes the last one's result. `left` gets the node that ends them, where it could
/// have been one. Without `operands`, those that take another value end them.
void takeSteps(const Graph &graph, const std::set<int> &taken, bool operands, int &y,
               std::vector<Step> &steps, std::vector<Left> &left);

} // namespace normforge::model
