// From LLVM IR to machine code.
#pragma once

#include "compiler/target/Target.h"
#include "runtime/artifact/Artifact.h"

#include <map>
#include <memory>

namespace llvm {
class Module;
class TargetMachine;
} // namespace llvm

namespace normforge {

/// A machine for kernels: position-independent, small code model. Not thread-safe.
std::unique_ptr<llvm::TargetMachine> createMachine(const TargetDescription &target);

/// A relocatable ELF object.
llvm::SmallVector<char, 0> emitObject(llvm::Module &module, llvm::TargetMachine &machine);
/// Assembly text.
std::string emitAssembly(llvm::Module &module, llvm::TargetMachine &machine);

/// An image of text and read-only data with all relocations applied, and the offsets of its
/// functions. Anything undefined, writable or of an unknown relocation is an error, for a kernel
/// calls nothing; so is a function that takes more stack than abi.h promises.
struct LinkedImage {
  Image image;
  std::map<std::string, uint64_t> functions;
};
llvm::Expected<LinkedImage> linkImage(llvm::ArrayRef<char> object);

} // namespace normforge
