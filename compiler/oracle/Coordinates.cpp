#include "compiler/oracle/Coordinates.h"

#include <algorithm>
#include <cassert>

namespace normforge::oracle {

static int64_t product(const std::vector<int64_t> &shape) {
  int64_t result = 1;
  for (int64_t size : shape)
    result *= size;
  return result;
}

Coordinates::Coordinates(const Spec &spec, const Sizes &sizes) {
  for (const Size &size : spec.shape) {
    assert((!size.isNamed() || sizes.count(size.name)) && "a named size has no value");
    shape_.push_back(size.isNamed() ? sizes.at(size.name) : size.value);
  }
  const int rank = spec.rank();
  const Layout &layout = spec.layout;
  block_ = layout.block;

  memoryShape_ = shape_;
  if (layout.isBlocked()) {
    int64_t &outer = memoryShape_[layout.blockedAxis];
    outer = (outer + layout.block - 1) / layout.block;
    memoryShape_.push_back(layout.block);
  }

  // Parameters are indexed by `axis` in every mode. Statistics are kept per index of `axis`; in
  // layer and RMS normalization per index of all other axes; in instance normalization per index of
  // `axis` and sample, whose axis is n, else b, else the first; in group normalization the same of
  // `axis` cut into equal runs; of ghost batches per index of `axis` and ghost, which has every
  // (number of ghosts)-th sample.
  const bool ofOthers = spec.mode == Mode::Sample || spec.mode == Mode::Rms;
  int samples = -1;
  const bool isGroup = spec.mode == Mode::Group;
  const int64_t perGhost = spec.ghostBatch;
  if (spec.mode == Mode::Instance || isGroup || perGhost > 0) {
    samples = static_cast<int>(std::min(layout.axes.find('n'), layout.axes.size()));
    if (samples == rank)
      samples = static_cast<int>(std::min(layout.axes.find('b'), layout.axes.size()));
    if (samples == rank)
      samples = 0;
  }
  std::vector<bool> indexesGroup(rank), indexesParameter(rank);
  for (int axis = 0; axis < rank; ++axis) {
    indexesParameter[axis] = spec.isAxis(axis);
    indexesGroup[axis] = axis == samples || ofOthers != spec.isAxis(axis);
    if (indexesParameter[axis])
      parameterShape_.push_back(shape_[axis]);
    if (!spec.isAxis(axis))
      masked_.push_back(axis);
    if (indexesGroup[axis])
      groupShape_.push_back(isGroup && spec.isAxis(axis)      ? spec.groups
                            : perGhost > 0 && axis == samples ? shape_[axis] / perGhost
                                                              : shape_[axis]);
  }
  elements_ = product(shape_);
  groups_ = product(groupShape_);
  parameters_ = product(parameterShape_);

  std::vector<int64_t> memoryStride(memoryShape_.size());
  int64_t stride = 1;
  for (size_t axis = memoryShape_.size(); axis-- > 0; stride *= memoryShape_[axis])
    memoryStride[axis] = stride;

  steps_.resize(rank);
  int64_t groupStride = 1, parameterStride = 1;
  for (int axis = rank; axis-- > 0;) {
    for (int64_t i = 0; i < shape_[axis]; ++i) {
      Place place;
      if (axis == layout.blockedAxis)
        place.offset = (i / layout.block) * memoryStride[axis] + i % layout.block;
      else
        place.offset = i * memoryStride[axis];
      const int64_t group = isGroup && spec.isAxis(axis)      ? i / (shape_[axis] / spec.groups)
                            : perGhost > 0 && axis == samples ? i % (shape_[axis] / perGhost)
                                                              : i;
      place.group = indexesGroup[axis] ? group * groupStride : 0;
      place.parameter = indexesParameter[axis] ? i * parameterStride : 0;
      steps_[axis].push_back(place);
    }
    groupStride *= !indexesGroup[axis]               ? 1
                   : isGroup && spec.isAxis(axis)    ? spec.groups
                   : perGhost > 0 && axis == samples ? shape_[axis] / perGhost
                                                     : shape_[axis];
    parameterStride *= indexesParameter[axis] ? shape_[axis] : 1;
  }
}

std::vector<int64_t> Coordinates::shapeOf(const StepOperand &operand) const {
  if (operand.whole)
    return memoryShape_;
  std::vector<int64_t> shape;
  for (int axis : operand.axes)
    shape.push_back(shape_[static_cast<size_t>(axis)]);
  return shape;
}

std::vector<int64_t> Coordinates::positionsIn(const StepOperand &operand) const {
  std::vector<int64_t> positions;
  if (operand.whole) {
    forEach([&](Place p) { positions.push_back(p.offset); });
    return positions;
  }
  std::vector<int64_t> index(shape_.size(), 0);
  for (int64_t i = 0; i < elements_; ++i) {
    int64_t at = 0;
    for (int axis : operand.axes)
      at = at * shape_[static_cast<size_t>(axis)] + index[static_cast<size_t>(axis)];
    positions.push_back(at);
    for (size_t axis = shape_.size(); axis-- > 0 && ++index[axis] == shape_[axis];)
      index[axis] = 0;
  }
  return positions;
}

std::vector<int64_t> Coordinates::positionsInMask() const {
  return positionsIn({"mask", masked_, /*whole=*/false});
}

std::vector<int64_t> Coordinates::shapeOf(const KeptBits &bits) const {
  std::vector<int64_t> shape;
  int64_t run = 1;
  for (size_t axis = 0; axis < shape_.size(); ++axis) {
    const bool isRun = std::count(bits.run.begin(), bits.run.end(), static_cast<int>(axis)) > 0;
    if (isRun && block_ == 0)
      run *= shape_[axis];
    else
      shape.push_back(isRun ? (shape_[axis] + block_ - 1) / block_ : shape_[axis]);
  }
  if (block_ > 0)
    run = block_;
  const int64_t word = elementsPerWord(DType::Bit);
  shape.push_back((run + word - 1) / word * word);
  return shape;
}

std::vector<int64_t> Coordinates::positionsIn(const KeptBits &bits) const {
  const int64_t run = shapeOf(bits).back();
  std::vector<int64_t> positions, index(shape_.size(), 0);
  for (int64_t i = 0; i < elements_; ++i) {
    int64_t outer = 0, inner = 0;
    for (size_t axis = 0; axis < shape_.size(); ++axis) {
      const bool isRun = std::count(bits.run.begin(), bits.run.end(), static_cast<int>(axis)) > 0;
      if (!isRun) {
        outer = outer * shape_[axis] + index[axis];
      } else if (block_ == 0) {
        inner = inner * shape_[axis] + index[axis];
      } else {
        outer = outer * ((shape_[axis] + block_ - 1) / block_) + index[axis] / block_;
        inner = index[axis] % block_;
      }
    }
    positions.push_back(outer * run + inner);
    for (size_t axis = shape_.size(); axis-- > 0 && ++index[axis] == shape_[axis];)
      index[axis] = 0;
  }
  return positions;
}

} // namespace normforge::oracle
