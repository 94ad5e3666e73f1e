// A directory that nobody but root and this user can have chosen or filled.
#pragma once

#include "runtime/FileDescriptor.h"

#include <string>

namespace normforge {

/// Opens the directory at `path`, for what is read from it is run. The rule:
/// - the path is absolute: a relative one is chosen by whoever chose the working directory;
/// - the directory belongs to this user, and no group and nobody else may write to it;
/// - every directory above it belongs to root or to this user, and no group and nobody else may
///   write to it, but for sticky ones such as /tmp, in which nobody renames what is another's;
/// - the last component is no symbolic link; links above it belong to root or to this user, and
///   where they lead the same rule holds.
/// With `create`, what is missing is made, for this user alone. Empty with `problem` set where the
/// rule is broken or the system refuses; without where there is no such directory.
FileDescriptor openTrustedDirectory(const std::string &path, bool create, std::string &problem);

} // namespace normforge
