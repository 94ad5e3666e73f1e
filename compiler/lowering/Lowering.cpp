#include "compiler/lowering/Lowering.h"

#include "compiler/lowering/StageBuilder.h"

#include "mlir/Dialect/Affine/IR/AffineOps.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

using namespace mlir;

namespace normforge {

namespace {

using Index = llvm::function_ref<Value(unsigned)>;
using Values = llvm::SmallVector<Value>;

bool isKept(const Loop &loop) { return loop.kept; }
bool isParameter(const Loop &loop) { return loop.parameter; }

/// Shorthand for the scalar arithmetic of a step's body, in the computation type.
struct Arithmetic {
  OpBuilder &b;
  Location loc;
  Type type;

  Value constant(double v) const {
    return arith::ConstantOp::create(b, loc, b.getFloatAttr(type, v));
  }
  Value add(Value x, Value y) const { return arith::AddFOp::create(b, loc, x, y); }
  Value sub(Value x, Value y) const { return arith::SubFOp::create(b, loc, x, y); }
  Value mul(Value x, Value y) const { return arith::MulFOp::create(b, loc, x, y); }
  Value div(Value x, Value y) const { return arith::DivFOp::create(b, loc, x, y); }
  Value fma(Value x, Value y, Value z) const { return math::FmaOp::create(b, loc, x, y, z); }
  Value sqrt(Value x) const { return math::SqrtOp::create(b, loc, x); }
  Value negate(Value x) const { return arith::NegFOp::create(b, loc, x); }
  /// What corrects an infinite mean is no number and no correction.
  Value zeroIfNan(Value x) const {
    Value isNan = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::UNO, x, x);
    return arith::SelectOp::create(b, loc, isNan, constant(0), x);
  }
  /// x < 0 ? 0 : x, which keeps NaN.
  Value clampAtZero(Value x) const {
    Value zero = constant(0);
    Value below = arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OLT, x, zero);
    return arith::SelectOp::create(b, loc, below, zero, x);
  }
};

/// What normalize needs of the statistics: y = (x - mean)*scale + shift. The mean is rounded; shift
/// carries what rounding lost, so that y is exact where |mean| is far above the deviation.
struct Normalization {
  Operand mean, scale, shift;
};

class KernelLowering {
public:
  KernelLowering(MLIRContext &context, const Operator &op, const Schedule &schedule,
                 llvm::StringRef symbol)
      : op_(op), schedule_(schedule), symbol_(symbol),
        module_(ModuleOp::create(UnknownLoc::get(&context))) {}

  LoweredKernel run() {
    switch (schedule_.form) {
    case Form::Elementwise:
      lowerElementwise();
      break;
    case Form::Fused:
      lowerFused();
      break;
    case Form::Split:
      lowerSplit();
      break;
    }
    return {std::move(module_), std::move(stages_), workspaceBytes_};
  }

private:
  StageBuilder stage(const char *name, const std::vector<Loop> &loops, const StageSchedule &how) {
    return StageBuilder(*module_, op_, symbol_ + "_" + name, loops, how, schedule_);
  }
  Arithmetic arithmetic(StageBuilder &s, OpBuilder &b, Location loc) const {
    return {b, loc, s.element()};
  }

  /// A new workspace array, 64-byte aligned.
  WorkspaceArray allocate(std::vector<SizeExpr> shape) {
    WorkspaceArray array{workspaceBytes_, std::move(shape)};
    SizeExpr bytes(static_cast<int64_t>(byteSize(computeDType(op_.spec.dtype))));
    for (const SizeExpr &size : array.shape)
      bytes = bytes * size;
    workspaceBytes_ = workspaceBytes_ +
                      ceilDivide(bytes, NF_WORKSPACE_ALIGNMENT) * SizeExpr(NF_WORKSPACE_ALIGNMENT);
    return array;
  }
  std::vector<SizeExpr> sizesOf(const std::vector<Loop> &loops,
                                llvm::ArrayRef<AffineExpr> index) const {
    std::vector<SizeExpr> sizes;
    for (AffineExpr expr : index)
      sizes.push_back(loops[cast<AffineDimExpr>(expr).getPosition()].size);
    return sizes;
  }

  Value epsilon(StageBuilder &s) const {
    return op_.spec.epsilon.isArgument ? s.scalar("epsilon") : s.constant(op_.spec.epsilon.value);
  }

  /// Whether element (index of `outer`, index of `inner`) of the blocked axis exists.
  Value exists(StageBuilder &s, OpBuilder &b, Location loc, Index loop, Value axisSize) const {
    Value block = arith::ConstantIndexOp::create(b, loc, op_.blocked->block);
    Value first = arith::MulIOp::create(b, loc, loop(op_.blocked->outer), block);
    Value index = arith::AddIOp::create(b, loc, first, loop(op_.blocked->inner));
    return arith::CmpIOp::create(b, loc, arith::CmpIPredicate::slt, index, axisSize);
  }
  bool padsReduced() const {
    return op_.blocked && op_.blocked->padded && !op_.loops[op_.blocked->inner].kept;
  }
  bool pads() const { return op_.blocked && op_.blocked->padded; }

  /// 1/sqrt(v+e) and its variants: the preset's epsilon_position.
  Value reciprocalDeviation(const Arithmetic &a, Value variance, Value epsilon) const {
    const EpsilonPosition position = op_.spec.epsilonPosition;
    Value deviation =
        a.sqrt(position == EpsilonPosition::Outside ? variance : a.add(variance, epsilon));
    if (position != EpsilonPosition::Inside)
      deviation = a.add(deviation, epsilon);
    return a.div(a.constant(1), deviation);
  }

  /// Sum of x, then the sum of squares of the residuals and their sum, over `space`. The second sum
  /// of residuals corrects what the rounded mean got wrong (Chan, Golub, LeVeque 1983, corrected
  /// two-pass). `countOf(b, loc, loop)` is n within steps over `space`. Divided by,
  /// not multiplied with its inverse: a sum of n equal numbers gives that number back.
  struct Moments {
    Operand mean, residual, m2;
  };
  template <typename CountOf>
  Moments moments(StageBuilder &s, const Operand &x, llvm::ArrayRef<AffineExpr> space,
                  CountOf countOf) {
    Value axisSize = padsReduced() ? s.size(op_.blocked->size) : Value();
    auto masked = [&](OpBuilder &b, Location loc, Index loop, Value value) -> Value {
      if (!axisSize)
        return value;
      Value zero = arithmetic(s, b, loc).constant(0);
      return arith::SelectOp::create(b, loc, exists(s, b, loc, loop, axisSize), value, zero);
    };
    Operand sum = s.sum({x}, space, 1, [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
      return Values{arithmetic(s, b, loc).add(masked(b, loc, loop, v[0]), v[1])};
    })[0];
    Operand mean =
        s.map({sum}, space, 1, [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
          return Values{arithmetic(s, b, loc).div(v[0], countOf(b, loc, loop))};
        })[0];
    auto second =
        s.sum({x, mean}, space, 2, [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
          Arithmetic a = arithmetic(s, b, loc);
          Value residual = masked(b, loc, loop, a.sub(v[0], v[1]));
          return Values{a.fma(residual, residual, v[2]), a.add(residual, v[3])};
        });
    return {mean, second[1], second[0]};
  }

  /// From the moments of whole groups to what normalize needs, writing the statistics on the way.
  Normalization finalize(StageBuilder &s, const Moments &m, Value count) {
    const Spec &spec = op_.spec;
    const bool folds = op_.parametersAreKept();
    const bool updates = op_.updatesMovingStatistics(), training = op_.phase == Phase::Training;
    llvm::SmallVector<Operand> inputs{m.mean, m.residual, m.m2};
    auto input = [&](const char *name) {
      inputs.push_back(s.argument(name, isKept));
      return inputs.size() - 1;
    };
    const size_t gamma = folds && spec.scale ? input("gamma") : 0;
    const size_t beta = folds && spec.center ? input("beta") : 0;
    const size_t oldMean = updates ? input("moving_mean") : 0;
    const size_t oldVariance = updates ? input("moving_variance") : 0;
    Value eps = epsilon(s);
    const auto weights = updates ? momentumWeights(s) : MomentumWeights{};
    Value unbias = updates ? runningVarianceFactor(s) : Value();

    const unsigned results = 3 + (training ? 2 : 0) + (updates ? 2 : 0);
    const auto space = s.statisticSpace(false);
    auto out = s.map(inputs, space, results, [&](OpBuilder &b, Location loc, ValueRange v, Index) {
      Arithmetic a = arithmetic(s, b, loc);
      Value rest = a.zeroIfNan(a.div(v[1], count));
      Value m2 = a.fma(a.negate(v[1]), rest, v[2]);
      // The mean and what its rounding leaves out, so that x - mean is 0 for a group of equal x.
      Value mean = a.add(v[0], rest);
      rest = a.sub(rest, a.sub(mean, v[0]));
      Value variance = a.clampAtZero(a.div(m2, count));
      Value scale = reciprocalDeviation(a, variance, eps);
      if (gamma)
        scale = a.mul(scale, v[gamma]);
      // 0 for an infinite gamma, as if there were no rest.
      Value shift = a.zeroIfNan(a.mul(a.negate(rest), scale));
      if (beta)
        shift = a.add(v[beta], shift);
      Values values{mean, scale, shift};
      if (training)
        values.append({mean, variance});
      if (updates) {
        Value stored = unbias ? a.mul(variance, unbias) : variance;
        values.push_back(a.fma(weights.batchMean, mean, a.mul(weights.oldMean, v[oldMean])));
        values.push_back(
            a.fma(weights.batchVariance, stored, a.mul(weights.oldVariance, v[oldVariance])));
      }
      return values;
    });
    if (training) {
      s.writeArgument(out[3], "batch_mean");
      s.writeArgument(out[4], "batch_variance");
    }
    if (updates) {
      s.writeArgument(out[5], "moving_mean");
      s.writeArgument(out[6], "moving_variance");
    }
    return {out[0], out[1], out[2]};
  }

  struct MomentumWeights {
    Value oldMean, batchMean, oldVariance, batchVariance;
  };
  /// The weights of the old and of the batch's value. They are computed in f64 where they are known
  /// now: 1 - 0.99 is not the f32 nearest to 0.01 when taken in f32.
  MomentumWeights momentumWeights(StageBuilder &s) const {
    const Momentum &momentum = op_.spec.momentum;
    OpBuilder &b = s.builder();
    Arithmetic a = arithmetic(s, b, b.getUnknownLoc());
    if (momentum.cumulative) {
      Value batch = a.div(a.constant(1), s.scalar("count"));
      Value old = a.sub(a.constant(1), batch);
      return {old, batch, old, batch};
    }
    const bool weighsOld = momentum.weighs == MomentumWeighs::Old;
    Value scalar;
    auto pair = [&](const Number &number) -> std::pair<Value, Value> {
      Value weighed, other;
      if (number.isArgument) {
        if (!scalar)
          scalar = s.scalar("momentum");
        weighed = scalar;
        other = a.sub(a.constant(1), scalar);
      } else {
        weighed = a.constant(number.value);
        other = a.constant(1 - number.value);
      }
      return weighsOld ? std::pair(weighed, other) : std::pair(other, weighed);
    };
    auto [oldMean, batchMean] = pair(momentum.mean);
    auto [oldVariance, batchVariance] = pair(momentum.variance);
    return {oldMean, batchMean, oldVariance, batchVariance};
  }

  /// N/(N-1) and the like; nothing for the biased variance. A group of one element keeps its
  /// biased variance, 0, where the formula divides by zero.
  Value runningVarianceFactor(StageBuilder &s) const {
    const RunningVariance kind = op_.spec.runningVariance;
    if (kind == RunningVariance::Biased)
      return Value();
    OpBuilder &b = s.builder();
    Location loc = b.getUnknownLoc();
    Arithmetic a = arithmetic(s, b, loc);
    Value n = s.number(op_.groupSize), minus = a.constant(1);
    if (kind == RunningVariance::Keras2)
      minus = a.add(minus, epsilon(s));
    Value denominator = a.sub(n, minus);
    Value positive =
        arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OGT, denominator, a.constant(0));
    return arith::SelectOp::create(b, loc, positive, a.div(n, denominator), a.constant(1));
  }

  /// y = epilogue(((x - mean)*scale + shift)*gamma + beta), gamma and beta where mode 1 has them.
  void normalize(StageBuilder &s, const Operand &x, const Normalization &n) {
    const Spec &spec = op_.spec;
    llvm::SmallVector<Operand> inputs{x, n.mean, n.scale, n.shift};
    const bool affine = !op_.parametersAreKept();
    auto input = [&](Operand operand) {
      inputs.push_back(std::move(operand));
      return inputs.size() - 1;
    };
    const size_t gamma = affine && spec.scale ? input(s.argument("gamma", isParameter)) : 0;
    const size_t beta = affine && spec.center ? input(s.argument("beta", isParameter)) : 0;
    const size_t addend = op_.fuses(Fused::Add) ? input(s.argument("addend", isParameter)) : 0;
    Value axisSize = pads() ? s.size(op_.blocked->size) : Value();
    Operand y = s.map(
        inputs, s.allLoops(), 1,
        [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
          Arithmetic a = arithmetic(s, b, loc);
          Value value = a.fma(a.sub(v[0], v[1]), v[2], v[3]);
          if (gamma && beta)
            value = a.fma(value, v[gamma], v[beta]);
          else if (gamma)
            value = a.mul(value, v[gamma]);
          else if (beta)
            value = a.add(value, v[beta]);
          for (Fused fused : spec.fuse)
            value = fused == Fused::Add ? a.add(value, v[addend]) : a.clampAtZero(value);
          if (axisSize)
            value = arith::SelectOp::create(b, loc, exists(s, b, loc, loop, axisSize), value,
                                            a.constant(0));
          return Values{value};
        },
        s.stored())[0];
    s.writeArgument(y, "y");
  }

  /// Moving statistics to what normalize needs.
  void lowerElementwise() {
    StageBuilder s = stage("normalize", op_.loops, schedule_.normalize);
    const Spec &spec = op_.spec;
    llvm::SmallVector<Operand> inputs{s.argument("moving_mean", isKept),
                                      s.argument("moving_variance", isKept)};
    size_t gamma = 0, beta = 0;
    if (spec.scale) {
      gamma = inputs.size();
      inputs.push_back(s.argument("gamma", isKept));
    }
    if (spec.center) {
      beta = inputs.size();
      inputs.push_back(s.argument("beta", isKept));
    }
    Value eps = epsilon(s);
    auto out = s.map(inputs, s.statisticSpace(false), 3,
                     [&](OpBuilder &b, Location loc, ValueRange v, Index) {
                       Arithmetic a = arithmetic(s, b, loc);
                       Value scale = reciprocalDeviation(a, v[1], eps);
                       if (gamma)
                         scale = a.mul(scale, v[gamma]);
                       return Values{v[0], scale, beta ? v[beta] : a.constant(0)};
                     });
    normalize(s, s.argument("x", isParameter), {out[0], out[1], out[2]});
    stages_.push_back(s.finish(op_.minimumBytes()));
  }

  void lowerFused() {
    StageBuilder s = stage("fused", op_.loops, schedule_.moments);
    Operand x = s.argument("x", isKept);
    Value count = s.number(op_.groupSize);
    Moments m =
        moments(s, x, s.statisticSpace(false), [&](OpBuilder &, Location, Index) { return count; });
    normalize(s, x, finalize(s, m, count));
    stages_.push_back(s.finish(op_.minimumBytes()));
  }

  /// Elements of the chunks at these indices: min(chunk, what is left) for each chunked loop.
  Value chunkCount(StageBuilder &s, OpBuilder &b, Location loc, llvm::ArrayRef<Value> loopSizes,
                   Value rest, llvm::ArrayRef<Value> chunkIndices, Type type) const {
    Value count = rest;
    size_t next = 0;
    for (int i = 0; i < op_.rank(); ++i) {
      const int64_t chunk = schedule_.moments.chunks[i];
      if (op_.loops[i].kept || chunk == 0)
        continue;
      Value size = arith::ConstantIndexOp::create(b, loc, chunk);
      Value first = arith::MulIOp::create(b, loc, chunkIndices[next], size);
      Value left = arith::SubIOp::create(b, loc, loopSizes[next], first);
      Value taken = arith::MinSIOp::create(b, loc, size, left);
      count = arith::MulIOp::create(b, loc, count, taken);
      ++next;
    }
    Value integer = arith::IndexCastOp::create(b, loc, b.getI64Type(), count);
    return arith::SIToFPOp::create(b, loc, type, integer);
  }
  /// Sizes of the chunked reduced loops, and the product of the other reduced ones, without
  /// padding.
  std::pair<Values, Value> chunkSizes(StageBuilder &s) const {
    Values sizes;
    SizeExpr rest(1);
    for (int i = 0; i < op_.rank(); ++i) {
      if (op_.loops[i].kept)
        continue;
      if (schedule_.moments.chunks[i] > 0)
        sizes.push_back(s.size(op_.loops[i].size));
      else if (padsReduced() && i == op_.blocked->outer)
        rest = rest * op_.blocked->size;
      else if (!(padsReduced() && i == op_.blocked->inner))
        rest = rest * op_.loops[i].size;
    }
    return {sizes, s.size(rest)};
  }

  void lowerSplit() {
    const std::vector<Loop> merged = mergeLoops(op_, schedule_.moments);
    const auto chunks =
        static_cast<size_t>(llvm::count_if(merged, [](const Loop &loop) { return !loop.kept; }));
    const SizeExpr dataBytes =
        op_.elements * SizeExpr(static_cast<int64_t>(byteSize(op_.spec.dtype)));

    // Moments of each chunk.
    WorkspaceArray partialMean, partialM2;
    {
      StageBuilder s = stage("moments", op_.loops, schedule_.moments);
      const auto space = s.statisticSpace(true);
      auto [sizes, rest] = chunkSizes(s);
      auto count = [&, sizes = sizes, rest = rest](OpBuilder &b, Location loc, Index loop) {
        Values indices;
        for (size_t i = 0; i < chunks; ++i)
          indices.push_back(loop(static_cast<unsigned>(i)));
        return chunkCount(s, b, loc, sizes, rest, indices, s.element());
      };
      Moments m = moments(s, s.argument("x", isKept), space, count);
      auto out =
          s.map({m.mean, m.residual, m.m2}, space, 2,
                [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
                  Arithmetic a = arithmetic(s, b, loc);
                  Value residual = a.zeroIfNan(a.div(v[1], count(b, loc, loop)));
                  return Values{a.add(v[0], residual), a.fma(a.negate(v[1]), residual, v[2])};
                });
      const std::vector<SizeExpr> shape = partialShape(merged, space);
      partialMean = allocate(shape);
      partialM2 = allocate(shape);
      s.writeWorkspace(out[0], partialMean);
      s.writeWorkspace(out[1], partialM2);
      stages_.push_back(s.finish(dataBytes));
    }

    // One merge, in a fixed order: mean = sum(n_i m_i)/n, then M2 = sum(M2_i + n_i (m_i - mean)^2)
    // and, as within a chunk, the residual sum(n_i (m_i - mean)) that the mean's rounding left.
    // Both are then taken about the mean as rounded to the dtype.
    WorkspaceArray mean, scale, shift;
    {
      StageBuilder s = stage("merge", merged, schedule_.merge);
      const auto space = s.statisticSpace(false);
      std::vector<AffineExpr> index;
      for (size_t i = 0; i < chunks; ++i)
        index.push_back(s.loop(static_cast<int>(i)));
      index.insert(index.end(), space.begin(), space.end());
      Operand partialMeans = s.workspace(partialMean, index),
              partialM2s = s.workspace(partialM2, index);
      auto [sizes, rest] = chunkSizes(s);
      auto countOf = [&, sizes = sizes, rest = rest](OpBuilder &b, Location loc, Index loop) {
        Values indices;
        for (size_t i = 0; i < chunks; ++i)
          indices.push_back(loop(static_cast<unsigned>(i)));
        return chunkCount(s, b, loc, sizes, rest, indices, b.getF64Type());
      };
      // In f64: there may be hundreds of thousands of partials, and they are few beside the data.
      const Type wide = s.builder().getF64Type();
      const bool widens = wide != s.element();
      auto widen = [&](OpBuilder &b, Location loc, Value value) -> Value {
        return widens ? Value(arith::ExtFOp::create(b, loc, wide, value)) : value;
      };
      auto narrow = [&](OpBuilder &b, Location loc, Value value) -> Value {
        return widens ? Value(arith::TruncFOp::create(b, loc, s.element(), value)) : value;
      };
      Operand sum = s.sum(
          {partialMeans}, space, 1,
          [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
            Arithmetic a{b, loc, wide};
            return Values{a.fma(countOf(b, loc, loop), widen(b, loc, v[0]), v[1])};
          },
          wide)[0];
      Value wideCount = s.number(op_.groupSize, wide);
      Operand exact = s.map(
          {sum}, space, 1,
          [&](OpBuilder &b, Location loc, ValueRange v, Index) {
            return Values{Arithmetic{b, loc, wide}.div(v[0], wideCount)};
          },
          wide)[0];
      auto second = s.sum(
          {partialMeans, partialM2s, exact}, space, 2,
          [&](OpBuilder &b, Location loc, ValueRange v, Index loop) {
            Arithmetic a{b, loc, wide};
            Value difference = a.sub(widen(b, loc, v[0]), v[2]);
            Value weighed = a.mul(countOf(b, loc, loop), difference);
            return Values{a.add(a.fma(weighed, difference, widen(b, loc, v[1])), v[3]),
                          a.add(weighed, v[4])};
          },
          wide);
      auto rounded = s.map({exact, second[0], second[1]}, space, 3,
                           [&](OpBuilder &b, Location loc, ValueRange v, Index) {
                             Arithmetic a{b, loc, wide};
                             Value mean = narrow(b, loc, v[0]);
                             Value rest = a.sub(v[0], widen(b, loc, mean));
                             Value residual = a.fma(rest, wideCount, v[2]);
                             Value m2 = a.fma(rest, a.add(residual, v[2]), v[1]);
                             return Values{mean, narrow(b, loc, residual), narrow(b, loc, m2)};
                           });
      Normalization n = finalize(s, {rounded[0], rounded[1], rounded[2]}, s.number(op_.groupSize));
      const std::vector<SizeExpr> shape = sizesOf(merged, space);
      mean = allocate(shape);
      scale = allocate(shape);
      shift = allocate(shape);
      s.writeWorkspace(n.mean, mean);
      s.writeWorkspace(n.scale, scale);
      s.writeWorkspace(n.shift, shift);
      SizeExpr partialBytes(2 * static_cast<int64_t>(byteSize(computeDType(op_.spec.dtype))));
      for (const Loop &loop : merged)
        partialBytes = partialBytes * loop.size;
      stages_.push_back(s.finish(partialBytes));
    }

    StageBuilder s = stage("normalize", op_.loops, schedule_.normalize);
    const auto space = s.statisticSpace(false);
    Normalization n{s.workspace(mean, space), s.workspace(scale, space), s.workspace(shift, space)};
    normalize(s, s.argument("x", isKept), n);
    stages_.push_back(s.finish(op_.minimumBytes()));
  }

  /// Sizes of the partials: a chunked loop's number of chunks, a kept loop's size.
  std::vector<SizeExpr> partialShape(const std::vector<Loop> &merged,
                                     llvm::ArrayRef<AffineExpr> space) const {
    std::vector<SizeExpr> shape;
    for (AffineExpr expr : space) {
      if (auto dim = dyn_cast<AffineDimExpr>(expr))
        shape.push_back(op_.loops[dim.getPosition()].size);
      else
        shape.push_back(merged[shape.size()].size);
    }
    return shape;
  }

  const Operator &op_;
  const Schedule &schedule_;
  std::string symbol_;
  OwningOpRef<ModuleOp> module_;
  std::vector<StageInfo> stages_;
  SizeExpr workspaceBytes_;
};

} // namespace

void registerLoweringDialects(DialectRegistry &registry) {
  registry.insert<affine::AffineDialect, arith::ArithDialect, func::FuncDialect,
                  linalg::LinalgDialect, math::MathDialect, tensor::TensorDialect>();
}

LoweredKernel lowerToLinalg(MLIRContext &context, const Operator &op, const Schedule &schedule,
                            llvm::StringRef symbol) {
  return KernelLowering(context, op, schedule, symbol).run();
}

} // namespace normforge
