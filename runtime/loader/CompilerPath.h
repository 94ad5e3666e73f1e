// Where the compiler library may lie.
#pragma once

#include <string>
#include <vector>

namespace normforge {

inline constexpr const char *compilerLibraryName = "libnormforge-compiler.so";
/// The program that compiles in a process of its own; it lies beside the library.
inline constexpr const char *compilerProgramName = "normforge-compile";

/// The paths to try, in order. `given` is the engine's option, absolute or a bare name for the
/// loader to find; empty: beside this code's own file, in ../lib of that folder, then the bare
/// name. Never relative: such a path means another file after chdir.
std::vector<std::string> compilerCandidates(const std::string &given);

/// A path as it means a file now, absolute; a bare name, which the loader looks for, as it is.
/// Empty where the working directory cannot be told.
std::string absolutePath(const std::string &path);

/// The file at `path`, absolute and without links; empty where there is none. Throws std::bad_alloc
/// where there is no memory to tell.
std::string realPath(const std::string &path);

} // namespace normforge
