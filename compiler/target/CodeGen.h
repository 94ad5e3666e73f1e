// From LLVM IR to machine code.
#pragma once

#include "compiler/machine/Machine.h"
#include "runtime/artifact/Artifact.h"

#include "llvm/Support/Error.h"

#include <map>
#include <memory>
#include <string>

namespace llvm {
class Module;
class TargetMachine;
} // namespace llvm

namespace normforge {

/// A machine for kernels: position-independent, small code model. Not thread-safe.
std::unique_ptr<llvm::TargetMachine> createMachine(const TargetDescription &target);

/// Marks a module's functions as ways in for indirect branches (endbr64; bti c), and on aarch64
/// their return addresses as signed. Hosts that enforce this can call them, others pass over the
/// instructions.
void protectBranches(llvm::Module &module);

/// Has the module's object say, in a property note, that all of it is protected so: for linkers,
/// which say it of what they link where all of its objects do. For an emitter of its own: LLVM 22's
/// writer of aarch64's note keeps what belonged to the module before, and crashes.
void noteProtection(llvm::Module &module);

/// Makes relocatable ELF objects, one after the other, with one pipeline: setting it up takes some
/// 0.4 ms. Not thread-safe.
class ObjectEmitter {
public:
  /// `machine` outlives this.
  explicit ObjectEmitter(llvm::TargetMachine &machine);
  ~ObjectEmitter();
  /// The same bytes for the same module, whatever came before.
  llvm::SmallVector<char, 0> emit(llvm::Module &module);

private:
  struct State;
  std::unique_ptr<State> state_;
};
/// Assembly text.
std::string emitAssembly(llvm::Module &module, llvm::TargetMachine &machine);

/// A function that takes more stack than abi.h promises: a schedule that keeps more values at once
/// than there are registers for. How many LLVM spills is known afterwards alone, so such a schedule
/// is legal until it is compiled.
class StackError : public llvm::ErrorInfo<StackError> {
public:
  static char ID;
  /// `where`: of which bytes it is said, "" or " in ...".
  StackError(uint64_t bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {}
  void log(llvm::raw_ostream &os) const override;
  std::error_code convertToErrorCode() const override { return llvm::inconvertibleErrorCode(); }

private:
  uint64_t bytes_;
  std::string where_;
};

/// An image of text and read-only data with all relocations applied, and the offsets of its
/// functions, none of which is 0. Anything undefined, writable or of an unknown relocation is an
/// error, for a kernel calls nothing. StackError where a function takes too much stack.
struct LinkedImage {
  Image image;
  std::map<std::string, uint64_t> functions;
};
llvm::Expected<LinkedImage> linkImage(llvm::ArrayRef<char> object);

} // namespace normforge
