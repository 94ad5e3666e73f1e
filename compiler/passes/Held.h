// What a thread of a GPU's group keeps in registers of the data that several steps go through.
//
// The first iterations that a thread has of a step's loops are emitted one after the other
// (StepEmitter, StagePlan::held), so that what they load and store are values that steps after it
// find by where they stand: in which slice of which array, and at which of the thread's iterations.
#pragma once

#include "mlir/IR/Builders.h"

#include <map>
#include <vector>

namespace normforge::tile {

/// A vector's place in memory: the slice's array and offsets, and by axis the number of the
/// thread's iteration of its loop. Values and attributes are as their addresses: those of one tile
/// are the same in all of its steps.
using HeldPlace = std::vector<uintptr_t>;

/// The same words (i32), of which nobody knows: what is made of them is made anew.
llvm::SmallVector<mlir::Value> opaque(mlir::OpBuilder &b, mlir::Location loc,
                                      llvm::ArrayRef<mlir::Value> words);

/// The vectors of a tile by their places, as they lie in memory.
using HeldVectors = std::map<HeldPlace, mlir::Value>;

} // namespace normforge::tile
