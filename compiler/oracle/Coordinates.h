// Where an element of x lies: in memory, in its statistics group, among the
// parameters.
//
// Enters: a spec and the named sizes. Leaves: index arithmetic over logical
// coordinates, which the reference, the drawn inputs and the tolerances share.
// It knows nothing of the loop nests that kernels are made from, but for which axes' bits are one
// run.
#pragma once

#include "compiler/operator/Operator.h"
#include "compiler/oracle/Oracle.h"

#include <cstdint>
#include <vector>

namespace normforge::oracle {

/// The memory offset, the statistics group and the parameter index of an
/// element.
struct Place {
  int64_t offset = 0, group = 0, parameter = 0;
};

/// A function of `fuse` of x in f64, by its definition.
double applyFunction(const FuseStep &step, double x);
/// Its derivative; at kinks as the spec language has it.
double derivative(const FuseStep &step, double x);

/// A value and its derivatives by x and by the operands of a step, in their order.
struct StepValue {
  double value;
  std::vector<double> derivatives;
};
/// Any step of `fuse` or `prologue` in f64, by its definition.
StepValue applyStep(const FuseStep &step, double x, const std::vector<double> &operands,
                    const Numbers &scalars);

/// gamma, beta and their states after an optimizer's step.
Arrays updated(const Spec &spec, const Arrays &inputs, const Numbers &scalars);

/// x after the prologue, in f64 and in memory order; where values are stored, it is rounded to the
/// data's dtype. Where an input has the last stored value, the prologue begins there.
struct Prologue {
  HostArray value;
  Arrays stored; ///< by argument
};
Prologue prologueOf(const Spec &spec, const Sizes &sizes, const Arrays &inputs,
                    const Numbers &scalars);

/// dy through the fused steps, in f64 and in memory order: the gradient of what gamma and beta
/// gave, which is computed with the statistics as they were saved, and those of the steps'
/// operands, by argument. 0 in padding.
struct EpilogueGradients {
  HostArray value;
  Arrays operands;
};
EpilogueGradients epilogueGradients(const Spec &spec, const Sizes &sizes, const Arrays &inputs,
                                    const Numbers &scalars);

class Coordinates {
public:
  /// Every named size of the spec must be in `sizes`. Statistics groups are those of the batch, of
  /// ghost batches if there are any.
  Coordinates(const Spec &spec, const Sizes &sizes);

  const std::vector<int64_t> &shape() const { return shape_; } ///< logical
  const std::vector<int64_t> &memoryShape() const { return memoryShape_; }
  const std::vector<int64_t> &parameterShape() const { return parameterShape_; }
  const std::vector<int64_t> &groupShape() const { return groupShape_; }
  int64_t elements() const { return elements_; }
  int64_t groups() const { return groups_; }
  int64_t parameters() const { return parameters_; }
  /// Number of values a statistic is taken over.
  int64_t groupSize() const { return groups_ == 0 ? 0 : elements_ / groups_; }

  /// The shape of an operand that has these axes, and the position in it of every logical element
  /// in the order of forEach; where it is `whole`, as the layout has it.
  std::vector<int64_t> shapeOf(const StepOperand &operand) const;
  std::vector<int64_t> positionsIn(const StepOperand &operand) const;
  /// The position in a mask of every logical element in the order of forEach.
  std::vector<int64_t> positionsInMask() const;
  /// The same of bits, which lie in runs that begin with words.
  std::vector<int64_t> shapeOf(const KeptBits &bits) const;
  std::vector<int64_t> positionsIn(const KeptBits &bits) const;

  /// Calls body(Place) for every logical element, last axis fastest; padding is
  /// never visited.
  template <typename Body> void forEach(Body body) const {
    if (elements_ > 0)
      walk(0, Place{}, body);
  }

private:
  // A place is a sum of one contribution an axis, also in a blocked layout.
  template <typename Body> void walk(size_t axis, Place outer, Body &body) const {
    for (const Place &step : steps_[axis]) {
      Place place{outer.offset + step.offset, outer.group + step.group,
                  outer.parameter + step.parameter};
      if (axis + 1 == steps_.size())
        body(place);
      else
        walk(axis + 1, place, body);
    }
  }

  int64_t block_ = 0; ///< 0: the layout is not blocked
  std::vector<int64_t> shape_, memoryShape_, parameterShape_, groupShape_;
  std::vector<int> masked_; ///< the axes of a mask
  int64_t elements_ = 1, groups_ = 1, parameters_ = 1;
  std::vector<std::vector<Place>> steps_; ///< [axis][coordinate]
};

} // namespace normforge::oracle
