// Arrays in files, in NumPy's .npy format.
//
// Read: versions 1.0, 2.0 and 3.0, little-endian f32, f64, f16 and bf16, C order. Written: version
// 1.0. Errors are one sentence each, `x.npy: error: ...`, with what was
// expected and what was found.
#pragma once

#include "compiler/spec/HostArray.h"

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <string>

namespace normforge {

llvm::Expected<HostArray> readNpy(llvm::StringRef path);
/// The file that a path in the file `of` names: relative to its folder, or absolute.
std::string beside(llvm::StringRef of, const std::string &path);
/// The same of a file's bytes; `place` is what errors begin with.
llvm::Expected<HostArray> parseNpy(llvm::StringRef bytes, llvm::StringRef place);

/// The header of a file, before the array's bytes.
llvm::Expected<std::string> npyHead(const HostArray &array);
llvm::StringRef bytesOf(const HostArray &array);

} // namespace normforge
