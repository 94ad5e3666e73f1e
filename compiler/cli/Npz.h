// Arrays in one file, in NumPy's .npz format: a ZIP archive of .npy files, as np.savez and
// np.savez_compressed write it.
#pragma once

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <string>
#include <vector>

namespace normforge {

struct NpzMember {
  std::string name;  ///< of the array, without ".npy"
  std::string bytes; ///< of its .npy file
};

/// In the archive's order. At most 16 GiB in all. Errors: `x.npz: error: ...`.
llvm::Expected<std::vector<NpzMember>> readNpz(llvm::StringRef path);

/// An archive of them, not compressed, of the same bytes whenever it is made.
llvm::Expected<std::string> npzOf(const std::vector<NpzMember> &members);

} // namespace normforge
