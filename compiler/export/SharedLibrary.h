// Shared libraries of kernels.
//
// Enters: objects of the same kernels for several CPUs. Leaves: an ELF shared object in which a
// function tells which of the CPUs was chosen when it was loaded.
#pragma once

#include "compiler/machine/Machine.h"

#include <string>
#include <vector>

namespace normforge {

/// LLVM IR of a function `name`, `uint32_t name(void)`, that returns the index of the CPU whose
/// kernels this machine runs: of those of which it has all features, the one that asks for most of
/// them, the first of equals. UINT32_MAX where it runs none. The choice is made by the dynamic
/// loader, when it first resolves the function for a module (an indirect function, as glibc has
/// them), and needs no other symbol. All targets are of one machine. Errors: a feature that no
/// instruction tells of.
llvm::Expected<std::string> selectorIr(const std::string &name,
                                       const std::vector<TargetDescription> &targets);

/// The object of such a function.
llvm::Expected<std::string> selectorObject(const std::string &name,
                                           const std::vector<TargetDescription> &targets);

/// Links relocatable objects into a shared object named `soname`, by LLVM's linker ld.lld, in files
/// of a temporary folder. Errors: no linker is found, what it says.
llvm::Expected<std::string> linkSharedLibrary(const std::vector<std::string> &objects,
                                              const std::string &soname);

} // namespace normforge
