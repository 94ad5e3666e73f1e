// Other programs that make files of files: a linker, a GPU's assembler.
#pragma once

#include "llvm/Support/Error.h"

#include <functional>
#include <string>
#include <vector>

namespace normforge {

/// A file that a program reads.
struct ToolInput {
  std::string name; ///< without a folder
  const std::string *bytes = nullptr;
};

/// Writes `inputs` into a temporary folder, runs `program` with the arguments that `arguments`
/// makes of the paths of the inputs and of the output, and returns the output's bytes. The folder
/// is gone then. Errors: a file that cannot be written or read, the program's status with what it
/// said.
llvm::Expected<std::string>
runTool(const std::string &program, const std::vector<ToolInput> &inputs,
        const std::function<std::vector<std::string>(const std::vector<std::string> &inputs,
                                                     const std::string &output)> &arguments);

/// The machine code of PTX for one of NVIDIA's GPUs ("sm_90"), an ELF file for it and those of the
/// same major capability after it, by ptxas: the program that NORMFORGE_PTXAS names, else one on
/// the path. Errors: there is none, what it says.
llvm::Expected<std::string> assembleForDevice(const std::string &text, const std::string &cpu);

} // namespace normforge
