#include "compiler/operator/Operator.h"

#include "llvm/ADT/STLExtras.h"

namespace normforge {

namespace {

/// The size of an axis as an expression over the named sizes.
SizeExpr sizeOf(const Size &size, const std::vector<std::string> &names) {
  if (!size.isNamed())
    return SizeExpr(size.value);
  auto it = llvm::find(names, size.name);
  return SizeExpr::size(static_cast<uint32_t>(it - names.begin()));
}

SizeExpr productOf(const std::vector<SizeExpr> &sizes) {
  SizeExpr product(1);
  for (const SizeExpr &size : sizes)
    product = product * size;
  return product;
}

/// Loops in memory order before merging; `merges` is false for the two loops of a blocked axis.
struct RawLoop {
  Loop loop;
  bool merges;
};

std::vector<RawLoop> rawLoops(const Spec &spec, const std::vector<SizeExpr> &axisSizes) {
  std::vector<RawLoop> raw;
  const bool sample = spec.mode == Mode::Sample;
  auto add = [&](std::string axes, SizeExpr size, int axis, bool merges) {
    const bool named = spec.isAxis(axis);
    raw.push_back({Loop{std::move(axes), size, named != sample, named}, merges});
  };
  const Layout &layout = spec.layout;
  for (int i = 0; i < spec.rank(); ++i) {
    const char letter = layout.axes[i];
    if (i == layout.blockedAxis)
      add(std::string(1, static_cast<char>(letter - 'a' + 'A')),
          ceilDivide(axisSizes[i], layout.block), i, false);
    else
      add(std::string(1, letter), axisSizes[i], i, true);
  }
  if (layout.isBlocked())
    add(std::string(1, layout.axes[layout.blockedAxis]), layout.block, layout.blockedAxis, false);
  return raw;
}

/// Drops axes of size 1, but for the last of its kind, then merges neighbours of one kind.
std::vector<Loop> mergeLoops(std::vector<RawLoop> raw) {
  auto hasOther = [&](const RawLoop &one) {
    return llvm::any_of(
        raw, [&](const RawLoop &r) { return &r != &one && r.loop.kept == one.loop.kept; });
  };
  for (size_t i = 0; i < raw.size();)
    if (raw[i].merges && raw[i].loop.size.constant() == 1 && hasOther(raw[i]))
      raw.erase(raw.begin() + static_cast<std::ptrdiff_t>(i));
    else
      ++i;

  std::vector<Loop> loops;
  bool previousMerges = false;
  for (RawLoop &r : raw) {
    if (!loops.empty() && previousMerges && r.merges && loops.back().kept == r.loop.kept &&
        loops.back().parameter == r.loop.parameter) {
      loops.back().axes += r.loop.axes;
      loops.back().size = loops.back().size * r.loop.size;
    } else {
      loops.push_back(std::move(r.loop));
    }
    previousMerges = r.merges;
  }
  return loops;
}

} // namespace

bool Operator::fuses(Fused fused) const { return llvm::is_contained(spec.fuse, fused); }

int Operator::argument(std::string_view name, bool written) const {
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].name == name && arguments[i].written == written)
      return static_cast<int>(i);
  return -1;
}

SizeExpr Operator::statistics() const {
  SizeExpr product(1);
  for (const Loop &loop : loops)
    if (loop.kept)
      product = product * loop.size;
  return product;
}

SizeExpr Operator::slabBytes() const {
  SizeExpr product(static_cast<int64_t>(byteSize(spec.dtype)));
  for (const Loop &loop : loops)
    if (!loop.kept)
      product = product * loop.size;
  return product;
}

SizeExpr Operator::minimumBytes() const {
  const int64_t passes = 2 + (fuses(Fused::Add) ? 1 : 0);
  return elements * SizeExpr(passes * static_cast<int64_t>(byteSize(spec.dtype)));
}

SizeExpr Operator::flops() const {
  // Normalize: subtract and FMA; statistics: add, then subtract, FMA and add.
  int64_t perElement = 3;
  if (takesBatchStatistics())
    perElement += 5;
  if (!parametersAreKept())
    perElement += 2;
  perElement += static_cast<int64_t>(spec.fuse.size());
  return elements * SizeExpr(perElement);
}

Operator makeOperator(const Spec &spec, Phase phase) {
  Operator op;
  op.spec = spec;
  op.phase = phase;
  op.sizes = spec.sizeNames();
  op.scalars = spec.scalarNames(phase);

  std::vector<SizeExpr> axisSizes;
  for (const Size &size : spec.shape)
    axisSizes.push_back(sizeOf(size, op.sizes));
  op.loops = mergeLoops(rawLoops(spec, axisSizes));

  const Layout &layout = spec.layout;
  std::vector<SizeExpr> dataShape = axisSizes;
  if (layout.isBlocked()) {
    dataShape[layout.blockedAxis] = ceilDivide(axisSizes[layout.blockedAxis], layout.block);
    dataShape.push_back(SizeExpr(layout.block));
    BlockedAxis blocked;
    const char letter = layout.axes[layout.blockedAxis];
    for (int i = 0; i < op.rank(); ++i)
      if (op.loops[i].axes[0] == static_cast<char>(letter - 'a' + 'A'))
        blocked.outer = i;
    blocked.inner = op.rank() - 1;
    blocked.block = layout.block;
    blocked.size = axisSizes[layout.blockedAxis];
    auto constant = blocked.size.constant();
    blocked.padded = !constant || *constant % layout.block != 0;
    op.blocked = blocked;
  }
  op.elements = productOf(dataShape);

  std::vector<SizeExpr> parameterShape, statisticShape;
  op.groupSize = SizeExpr(1);
  for (int i = 0; i < spec.rank(); ++i) {
    const bool kept = spec.isAxis(i) != (spec.mode == Mode::Sample);
    if (spec.isAxis(i))
      parameterShape.push_back(axisSizes[i]);
    if (kept)
      statisticShape.push_back(axisSizes[i]);
    else
      op.groupSize = op.groupSize * axisSizes[i];
  }

  auto read = [&](const char *name, DType dtype, const std::vector<SizeExpr> &shape) {
    op.arguments.push_back({name, false, dtype, shape, {}});
  };
  auto write = [&](const char *name, DType dtype, const std::vector<SizeExpr> &shape,
                   std::initializer_list<const char *> aliases) {
    Argument argument{name, true, dtype, shape, {}};
    for (const char *alias : aliases)
      if (int index = op.argument(alias, false); index >= 0)
        argument.mayAlias.push_back(static_cast<uint32_t>(index));
    op.arguments.push_back(std::move(argument));
  };
  const bool training = phase == Phase::Training;
  read("x", spec.dtype, dataShape);
  if (spec.scale)
    read("gamma", spec.parameterDType, parameterShape);
  if (spec.center)
    read("beta", spec.parameterDType, parameterShape);
  if (spec.hasMovingStatistics()) {
    read("moving_mean", spec.parameterDType, statisticShape);
    read("moving_variance", spec.parameterDType, statisticShape);
  }
  if (op.fuses(Fused::Add))
    read("addend", spec.dtype, dataShape);
  write("y", spec.dtype, dataShape, {"x", "addend"});
  if (op.updatesMovingStatistics()) {
    write("moving_mean", spec.parameterDType, statisticShape, {"moving_mean"});
    write("moving_variance", spec.parameterDType, statisticShape, {"moving_variance"});
  }
  if (training) {
    write("batch_mean", spec.parameterDType, statisticShape, {});
    write("batch_variance", spec.parameterDType, statisticShape, {});
  }
  return op;
}

} // namespace normforge
