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

/// An array in the workspace: dense, of the kernel's computation type.
struct WorkspaceArray {
  SizeExpr offset; ///< bytes
  std::vector<SizeExpr> shape;
};

/// A tensor with the stage's loops that index it, one an axis: an operand of a step.
struct Operand {
  mlir::Value tensor;
  std::vector<mlir::AffineExpr> index; ///< over the stage's loops
};

class StageBuilder {
public:
  /// Builds a step's body: receives the operands' elements (inputs, then the outputs' for a
  /// reduction) and returns the results. `loop(i)` gives the index of the step's loop i.
  using Body = std::function<llvm::SmallVector<mlir::Value>(
      mlir::OpBuilder &, mlir::Location, mlir::ValueRange,
      llvm::function_ref<mlir::Value(unsigned)> loop)>;

  StageBuilder(mlir::ModuleOp module, const Operator &op, std::string symbol,
               std::vector<Loop> loops, const StageSchedule &stage, const Schedule &schedule);

  mlir::AffineExpr loop(int i) const;
  /// The loops that are kept; with `chunks`, before them the chunks of the chunked reduced loops.
  std::vector<mlir::AffineExpr> statisticSpace(bool chunks) const;
  std::vector<mlir::AffineExpr> allLoops() const;

  /// The kernel's argument `name`, indexed by loops for which `uses` holds. The two loops of a
  /// blocked axis are made of the one in memory, padded with zeros.
  Operand argument(llvm::StringRef name, llvm::function_ref<bool(const Loop &)> uses);
  Operand workspace(const WorkspaceArray &array, std::vector<mlir::AffineExpr> index);
  /// A run-time number, converted to the computation type.
  mlir::Value scalar(llvm::StringRef name);
  mlir::Value constant(double value);
  /// A size as a value of type index, and converted to the computation type or to `type`.
  mlir::Value size(const SizeExpr &size);
  mlir::Value number(const SizeExpr &size, mlir::Type type = {});

  /// A step over the loops `space` without reduction: each result is indexed by `space`. Results
  /// are of the computation type, or of `type`.
  llvm::SmallVector<Operand> map(llvm::ArrayRef<Operand> inputs,
                                 llvm::ArrayRef<mlir::AffineExpr> space, unsigned results,
                                 const Body &body, mlir::Type type = {});
  /// Sums over the loops of the stage into results indexed by `space`.
  llvm::SmallVector<Operand> sum(llvm::ArrayRef<Operand> inputs,
                                 llvm::ArrayRef<mlir::AffineExpr> space, unsigned results,
                                 const Body &body, mlir::Type type = {});

  /// Results of the function.
  void writeArgument(const Operand &value, llvm::StringRef name);
  void writeWorkspace(const Operand &value, const WorkspaceArray &array);

  /// Ends the function.
  StageInfo finish(const SizeExpr &bytes);

  mlir::OpBuilder &builder() { return builder_; }
  mlir::Type element() const { return element_; }
  /// The type of x, y and addend. Steps see their elements in the computation type.
  mlir::Type stored() const { return stored_; }

private:
  mlir::Value addArgument(mlir::Type type,
                          llvm::ArrayRef<std::pair<const char *, mlir::Attribute>> attributes);
  mlir::AffineMap sizesMap(llvm::ArrayRef<SizeExpr> sizes) const;
  /// Of elements of the computation type, or of `element`.
  mlir::RankedTensorType tensorType(llvm::ArrayRef<SizeExpr> shape, mlir::Type element = {}) const;
  /// Sizes of the axes of a tensor indexed by these expressions.
  std::vector<SizeExpr> shapeOf(llvm::ArrayRef<mlir::AffineExpr> index) const;
  mlir::Value empty(llvm::ArrayRef<mlir::AffineExpr> index, mlir::Type type);
  llvm::SmallVector<Operand> generic(llvm::ArrayRef<Operand> inputs,
                                     llvm::ArrayRef<mlir::AffineExpr> domain,
                                     llvm::ArrayRef<mlir::AffineExpr> resultIndex, unsigned results,
                                     bool reduces, const Body &body, mlir::Type type);
  /// The stage's loop over the blocks or the lanes of the blocked axis, or -1.
  int blockedLoop(bool inner) const;
  std::vector<SizeExpr> memoryShape(llvm::function_ref<bool(const Loop &)> uses) const;
  void addResult(mlir::Value value,
                 llvm::ArrayRef<std::pair<const char *, mlir::Attribute>> attributes);

  const Operator &op_;
  const Schedule &schedule_;
  std::string symbol_;
  std::vector<Loop> loops_;
  StageSchedule stage_;
  mlir::MLIRContext *context_;
  mlir::OpBuilder builder_;
  mlir::Location loc_;
  mlir::func::FuncOp function_;
  mlir::Type element_, stored_; ///< of what is computed, and of x, y and addend in memory
  llvm::SmallVector<mlir::Attribute> argumentAttributes_, resultAttributes_;
  llvm::SmallVector<mlir::Value> results_, sizeArguments_;
};

} // namespace normforge
