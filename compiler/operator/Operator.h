// The canonical loop nest of a normalization and the arguments of its phases.
//
// Enters: a checked Spec. Leaves: an Operator, in which layouts, modes and presets are gone: a list
// of loops in memory order, each kept (indexes the statistics) or reduced, each with or without the
// parameters (gamma, beta), and the numbers of the formula.
#pragma once

#include "compiler/spec/Spec.h"

namespace normforge {

/// One loop of the nest. Adjacent axes of one kind are one loop; axes of size 1 are dropped as long
/// as a loop of their kind remains.
struct Loop {
  std::string axes; ///< letters of the axes it stands for: "hw"; a block's are "C" and "c"
  SizeExpr size;
  bool kept = false;      ///< indexes the statistics; otherwise reduced
  bool parameter = false; ///< indexes gamma and beta
};

/// A blocked axis: loop `outer` counts blocks, loop `inner`, the innermost of all, the lanes in a
/// block. Element (o, i) is index o*block + i of the axis and exists where that is below `size`.
struct BlockedAxis {
  int outer = -1, inner = -1;
  int64_t block = 0;
  SizeExpr size;
  bool padded = false; ///< whether size may be no multiple of block
};

struct Operator {
  Spec spec;
  Phase phase = Phase::Inference;
  std::vector<std::string> sizes;   ///< named sizes, in the order of nf_call.sizes
  std::vector<std::string> scalars; ///< run-time numbers, in the order of nf_call.scalars
  std::vector<Argument> arguments;  ///< in the order of nf_call.args

  std::vector<Loop> loops; ///< in memory order, the innermost last, dense
  std::optional<BlockedAxis> blocked;
  SizeExpr groupSize; ///< N: elements a statistic is taken over, padding left out
  SizeExpr elements;  ///< elements of x in memory, padding included

  bool takesBatchStatistics() const {
    return phase == Phase::Training || spec.mode != Mode::Feature;
  }
  bool updatesMovingStatistics() const {
    return phase == Phase::Training && spec.hasMovingStatistics();
  }
  bool fuses(Fused fused) const;
  /// Gamma and beta are indexed as the statistics are (modes 0, 2), not by reduced loops (mode 1).
  bool parametersAreKept() const { return spec.mode != Mode::Sample; }
  int rank() const { return static_cast<int>(loops.size()); }
  /// Index of an argument in `arguments`, or -1.
  int argument(std::string_view name, bool written) const;
  /// Elements of all kept loops, a blocked axis rounded up to whole blocks.
  SizeExpr statistics() const;
  /// Bytes of x that one statistics group spans in memory.
  SizeExpr slabBytes() const;
  /// Least bytes that must move: x read once, y written, addend read.
  SizeExpr minimumBytes() const;
  /// Floating-point operations, an FMA counted as two.
  SizeExpr flops() const;
};

Operator makeOperator(const Spec &spec, Phase phase);

} // namespace normforge
