// Builds the function of one stage: arguments, results and linalg.generic steps.
#pragma once

#include "compiler/lowering/Lowering.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/AffineMap.h"
#include "mlir/IR/Builders.h"

#include <functional>

namespace normforge {

/// A size as an affine expression whose symbol i is named size i.
mlir::AffineExpr toAffine(const SizeExpr &size, mlir::MLIRContext *context);

/// An array in the workspace.
struct WorkspaceArray {
  SizeExpr offset; ///< bytes
  mlir::Type element;
  /// By loop of the operator, in elements; empty: it is dense, as its user indexes it.
  std::vector<SizeExpr> strides{};
};

/// A tensor with the stage's loops that index it, one an axis.
struct Tensor {
  mlir::Value value;
  std::vector<mlir::AffineExpr> index; ///< over the stage's loops
};

class StageBuilder {
public:
  /// Builds a step's body: receives the inputs' elements (then the accumulators of a reduction), in
  /// the type that the step computes in, and returns the results. `loop(i)` gives the index of the
  /// step's loop i.
  using Body = std::function<llvm::SmallVector<mlir::Value>(
      mlir::OpBuilder &, mlir::Location, mlir::ValueRange,
      llvm::function_ref<mlir::Value(unsigned)> loop)>;

  StageBuilder(mlir::ModuleOp module, const Operator &op, const Schedule &schedule, size_t stage,
               llvm::StringRef symbol);

  const std::vector<StageLoop> &loops() const { return loops_; }
  mlir::AffineExpr loop(int i) const;
  /// The stage's loop that is the operator's loop `loop`, or -1.
  int stageLoop(int loop) const;
  std::vector<mlir::AffineExpr> allLoops() const;
  /// These loops of the operator as the stage has them (Operator::seenFrom), the lanes of a block
  /// after the blocks; with `chunks`, before them the chunks of the other loops that are chunked.
  std::vector<mlir::AffineExpr> space(llvm::ArrayRef<int> loops, bool chunks) const;
  /// Sizes of the axes of a tensor indexed by these expressions.
  std::vector<SizeExpr> shapeOf(llvm::ArrayRef<mlir::AffineExpr> index) const;

  /// An operand of the operator, indexed by those of its loops that the stage has.
  Tensor operand(uint32_t index);
  /// One of the operator's known arrays, likewise.
  Tensor known(uint32_t index);
  Tensor workspace(const WorkspaceArray &array, std::vector<mlir::AffineExpr> index);
  /// A run-time number, converted to `type`.
  mlir::Value scalar(uint32_t index, mlir::Type type);
  mlir::Value constant(double value, mlir::Type type);
  /// A size as a value of type index, and converted to `type`.
  mlir::Value size(const SizeExpr &size);
  mlir::Value number(const SizeExpr &size, mlir::Type type);

  /// A step over the loops `space` without reduction: result i, of type types[i], is indexed by
  /// `space`. `compute` is the type that the body works in.
  llvm::SmallVector<Tensor> map(llvm::ArrayRef<Tensor> inputs,
                                llvm::ArrayRef<mlir::AffineExpr> space,
                                llvm::ArrayRef<mlir::Type> types, mlir::Type compute,
                                const Body &body);
  /// Sums over all loops of the stage into results of type `compute`, indexed by `space`. Those
  /// that are `carried` a task's tiles add to what the task has in memory. A body that makes other
  /// results of its accumulators starts `from` another number than a sum.
  llvm::SmallVector<Tensor> sum(llvm::ArrayRef<Tensor> inputs,
                                llvm::ArrayRef<mlir::AffineExpr> space, unsigned results,
                                mlir::Type compute, const Body &body, bool carried = false,
                                double from = 0);

  /// Results of the function.
  void writeOperand(const Tensor &value, uint32_t index);
  void writeWorkspace(const Tensor &value, const WorkspaceArray &array);

  /// Ends the function, which moves about so many bytes.
  StageInfo finish(const SizeExpr &bytes);

  mlir::OpBuilder &builder() { return builder_; }
  mlir::Location location() const { return loc_; }
  mlir::Type typeOf(DType dtype) const;

private:
  using Attributes = llvm::ArrayRef<std::pair<const char *, mlir::Attribute>>;
  mlir::Value addArgument(mlir::Type type, Attributes attributes);
  void addResult(mlir::Value value, Attributes attributes);
  mlir::AffineMap sizesMap(llvm::ArrayRef<SizeExpr> sizes) const;
  mlir::RankedTensorType tensorType(llvm::ArrayRef<SizeExpr> shape, mlir::Type element) const;
  mlir::Value empty(llvm::ArrayRef<mlir::AffineExpr> index, mlir::Type type);
  llvm::SmallVector<Tensor>
  generic(llvm::ArrayRef<Tensor> inputs, llvm::ArrayRef<mlir::AffineExpr> domain,
          llvm::ArrayRef<mlir::AffineExpr> resultIndex, llvm::ArrayRef<mlir::Type> types,
          std::optional<double> reducesFrom, mlir::Type compute, const Body &body);
  /// How an operand lies in memory: its index, shape, strides, and the limit of a blocked axis that
  /// has no padding there.
  std::vector<mlir::AffineExpr> indexOf(const Operand &operand) const;
  llvm::SmallVector<std::pair<const char *, mlir::Attribute>>
  accessOf(const Operand &array, std::pair<const char *, mlir::Attribute> place,
           llvm::ArrayRef<mlir::AffineExpr> axes) const;
  Tensor arrayAt(const Operand &array, std::pair<const char *, mlir::Attribute> place);
  std::pair<const char *, mlir::Attribute> argument(uint32_t index) const;
  llvm::SmallVector<std::pair<const char *, mlir::Attribute>>
  accessOf(const WorkspaceArray &array, llvm::ArrayRef<mlir::AffineExpr> axes) const;
  /// The operator's loops that the stage has.
  std::vector<int> ownLoops() const;
  const Operator &op_;
  const StagePlan &stage_;
  std::string symbol_;
  std::vector<StageLoop> loops_;
  mlir::MLIRContext *context_;
  mlir::OpBuilder builder_;
  mlir::Location loc_;
  mlir::func::FuncOp function_;
  llvm::SmallVector<mlir::Attribute> argumentAttributes_, resultAttributes_;
  llvm::SmallVector<mlir::Value> results_, sizeArguments_;
};

} // namespace normforge
