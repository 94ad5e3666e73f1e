// The computation of one phase of a normalization, as data.
//
// Enters: a checked Spec. Leaves: an Operator, in which layouts, modes, presets and phases are
// gone: loops in memory order, operands with a stride for each loop, and steps whose results are
// scalar expressions. Nothing below this room asks for a mode, a phase or an operand by its name.
#pragma once

#include "compiler/expr/Expr.h"
#include "compiler/spec/Spec.h"

#include <algorithm>
#include <optional>

namespace normforge {

/// One loop of the nest. Neighboring axes that everything indexes alike are one loop; axes of size
/// 1 are dropped as long as a loop of their kind (kept or reduced) remains.
struct Loop {
  std::string name; ///< letters of the axes it stands for: "hw"; a block's are "C" and "c"
  SizeExpr size;
};

/// A blocked axis: loop `outer` counts blocks, loop `inner`, the innermost of all, the lanes in a
/// block. Element (o, i) is index o*block + i of the axis and exists where that is below `size`.
struct BlockedAxis {
  int outer = -1, inner = -1;
  int64_t block = 0;
  SizeExpr size;
  bool padded = false; ///< whether size may be no multiple of block
};

/// Kept axes of the data that steps over statistics count otherwise, by loops of their own, so that
/// no group needs to meet a block and nothing over statistics has padding.
struct GroupedStatistics {
  /// `own` count the indices of `whole`, which are loops of the data, one or a blocked axis' two:
  /// the index is that of own[0], or own[0]*size(own[1]) + own[1].
  struct Axis {
    std::vector<int> whole, own;
  };
  std::vector<Axis> axes; ///< the grouped one, by groups and within one, first
  int groups() const { return axes.front().own[0]; }
  int within() const { return axes.front().own[1]; }
};

/// Which values make sense in an operand, for those who draw some.
enum class Values : uint8_t {
  Sample,    ///< of the data that statistics are taken of
  Any,       ///< of either sign, of the order of 1
  Factor,    ///< of either sign, not near 0
  Mean,      ///< near the data's
  Variance,  ///< near the data's, at least 0
  Least,     ///< of the data's lowest
  Greatest,  ///< of the data's highest
  Deviation, ///< its root
  Ratio,     ///< above 0, of the order of 1
  Weight,    ///< 0 to 1, both among them
  Count,     ///< a whole number of at least 0
  Fraction,  ///< of either sign, its square below every Ratio's
  Bit,       ///< 0 or 1
};

struct Operand {
  std::string name;
  Role role = Role::Data;
  Values values = Values::Any;
  DType dtype = DType::F32;
  std::vector<SizeExpr> shape{}; ///< the host's view, dense, in memory order
  /// That index it, outermost in memory first; of a grouped axis those of the data, or the groups
  /// alone.
  std::vector<int> loops{};
  /// By loop of the operator, in elements; 0: not indexed by it. Bits of the innermost loop are
  /// neighbors, and its first one begins a word.
  std::vector<SizeExpr> strides{};
  bool written = false;
  bool padded = false; ///< a blocked axis has its padding in memory, which is written as zeros
  int old = -1;        ///< of a written state: the operand whose next value it is
  /// Earlier, read operands that may be the same buffer as this written one.
  std::vector<uint32_t> mayAlias{};

  bool isBits() const { return dtype == DType::Bit; }
  SizeExpr bytes() const;
};

/// An array whose values kernels have within them. It is no argument.
struct KnownArray {
  Operand array;    ///< read, with its name, loops and strides
  HostArray values; ///< of its dtype and as many elements
};

enum class Reduce : uint8_t {
  None, ///< a map: a value for every index of the step's loops
  /// Three results of one value x, which each of them has as its `value`: the mean of x as first
  /// rounded, the sum of what remains, x - mean, and that of its squares. The second corrects what
  /// the first lost (Chan, Golub, LeVeque 1983, corrected two-pass). Reads the data twice.
  /// A fourth result has a weight w as its value and is their sum; the others are then the mean of
  /// w*x (0 where the weights sum to 0) and the sums of w*(x - mean) and w*(x - mean)^2.
  Moments,
  Sum,     ///< results of their own, each the sum of its value
  Maximum, ///< the same of the greatest of its values; NaN where one is NaN, -inf where none is
};

struct Result {
  std::string name;
  Expr value = 0;         ///< of a reduction: what is reduced
  std::vector<int> loops; ///< that index it, in the operator's order
  int operand = -1;       ///< the written operand that it is stored in
};

/// One pass of the computation: a reduction, or a map whose results are stored or smaller than x.
/// Values of elements that are not stored are no steps but expressions, computed wherever they are
/// used.
struct Step {
  std::string name;
  Reduce reduce = Reduce::None;
  std::vector<int> loops; ///< that it runs over, in the operator's order
  std::vector<Result> results;
  uint32_t firstResult = 0; ///< the number of results[0] among all results

  /// The results' formulas, in their order.
  std::vector<Expr> values() const;
};

struct Operator {
  std::string name;                    ///< of the spec; documentation alone
  std::string symbol;                  ///< what names of its functions begin with
  Phase phase = Phase::Inference;      ///< of the spec; documentation alone
  DType dtype = DType::F32;            ///< of the data
  DType compute = DType::F32;          ///< that everything is computed in: F32 or F64
  std::vector<std::string> sizes;      ///< named sizes, in the order of nf_call.sizes
  std::vector<Constraint> constraints; ///< of named sizes
  std::vector<Scalar> scalars;         ///< run-time numbers, in the order of nf_call.scalars

  Exprs exprs;
  /// In memory order of the data, the innermost last; after those rank() those of `grouped`.
  std::vector<Loop> loops;
  std::optional<BlockedAxis> blocked;
  std::optional<GroupedStatistics> grouped;
  std::vector<Operand> operands; ///< in the order of nf_call.args
  std::vector<KnownArray> known; ///< that steps read beside those
  std::vector<Step> steps;       ///< each uses results of earlier ones alone
  SizeExpr groupSize;            ///< elements that a statistic is taken over, padding left out
  SizeExpr elements;             ///< of the data in memory, padding included

  /// The number of the data's loops.
  int rank() const { return grouped ? grouped->groups() : static_cast<int>(loops.size()); }
  std::vector<std::string> scalarNames() const;
  /// Index of an operand, or -1.
  int operand(std::string_view name, bool written) const;
  /// The operands as a manifest has them.
  std::vector<Argument> arguments() const;
  /// The array that a leaf is an element of, an operand or a known one; null for other nodes.
  const Operand *arrayOf(Expr leaf) const;
  /// A result by its number, and the step that makes it.
  const Result &result(uint32_t number) const;
  const Step &stepOf(uint32_t result) const;
  /// Bytes of an element of the operand with the smallest numbers.
  size_t leastElementBytes() const;
  /// Whether a step reads or writes bits.
  bool takesBits(const Step &step) const;
  /// Whether some step does.
  bool takesBits() const;
  /// Whether an array is of this type.
  bool hasArrayOf(DType dtype) const;
  /// Whether some step reduces.
  bool reduces() const;
  /// Whether these are all loops of the data.
  bool isWhole(std::span<const int> of) const {
    return of.size() == static_cast<size_t>(rank()) && (of.empty() || of.back() < rank());
  }
  bool isWhole(const Step &step) const { return isWhole(step.loops); }
  bool isWhole(const Operand &operand) const {
    return operand.loops.size() == static_cast<size_t>(rank()) &&
           std::ranges::all_of(operand.loops, [this](int loop) { return loop < rank(); });
  }
  /// These loops as steps see them that run over `from`: where those have loops of `grouped` these
  /// stand for the data's, and the other way around.
  std::vector<int> seenFrom(std::span<const int> from, std::vector<int> of) const;
  /// Terms of each sum of a step that reduces, padding left out.
  SizeExpr terms(const Step &step) const;
  /// A dense array that these loops index, in the data's order, a blocked axis' lanes after its
  /// blocks and padding included.
  struct Dense {
    std::vector<SizeExpr> strides; ///< by loop of the operator, `grouped` too; or 0
    SizeExpr elements;
  };
  Dense dense(std::vector<int> of) const;
  /// By loop: whether it indexes what these steps, which run over the data or over statistics,
  /// keep: the first result with fewer loops than the data that they make, else the first that they
  /// read, else the first known array. The others are reduced over.
  std::vector<bool> kept(std::span<const uint32_t> steps) const;
  /// The same of all steps: the loops that index the statistics.
  std::vector<bool> kept() const;
  /// Elements of all loops that index the statistics, a blocked axis rounded up to whole blocks.
  SizeExpr statistics() const;
  /// Bytes that one statistics group spans in an array of the data.
  SizeExpr slabBytes() const;
  /// Least bytes that must move: every whole operand once.
  SizeExpr minimumBytes() const;
  /// Floating-point operations, an FMA counted as two.
  SizeExpr flops() const;
  /// Names for Exprs::text: those of operands (a written one's with a prime), results and numbers.
  Exprs::Names names() const;
};

Operator makeOperator(const Spec &spec, Phase phase);

/// A bit an element that training keeps for the backward phase.
struct KeptBits {
  size_t step = 0; ///< of `fuse`: the function whose gradient the bit decides
  /// The axes whose bits are neighbors, the innermost last; in a blocked layout the one of the
  /// lanes, and they are a block's. Their first bit begins a word.
  std::vector<int> run{};
};
/// The bits that a spec calls for: where an operand of x's shape stands in `fuse` before a function
/// whose gradient a condition decides, and backward needs it for nothing else. Nothing where none
/// does, training or backward is none of the phases, backward takes moving statistics, or the
/// forward phases cut the run into groups.
std::optional<KeptBits> keptBits(const Spec &spec);

} // namespace normforge
