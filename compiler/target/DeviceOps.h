// The operations of a GPU's threads, as intrinsics of its vendor, or as calls of what emulates it.
#pragma once

#include "mlir/Conversion/LLVMCommon/TypeConverter.h"
#include "mlir/Transforms/DialectConversion.h"

namespace normforge {

/// For NVIDIA: the indices of a block and of a thread in it (gpu.block_id, gpu.thread_id); the
/// exchange of a value with thread (own number) xor a constant, within groups of a constant width,
/// a power of two up to 32 (gpu.shuffle xor, of numbers of 16, 32 and 64 bits); the barrier of the
/// threads of a group (gpu.barrier), and the block's memory (gpu.dynamic_shared_memory), whose
/// size is said at the launch.
void populateDeviceOpPatterns(mlir::LLVMTypeConverter &types, mlir::RewritePatternSet &patterns);

/// gpu.shuffle xor, gpu.barrier and gpu.dynamic_shared_memory as calls of the emulator's, in code
/// of this process; loads and stores of shared memory are told to it.
void populateEmulatedOpPatterns(mlir::LLVMTypeConverter &types, mlir::RewritePatternSet &patterns);

} // namespace normforge
