// An error inside the runtime, before it becomes an nf_status.
#pragma once

#include "normforge/normforge.h"

#include <cerrno>
#include <string>
#include <utility>

namespace normforge {

/// The code of what the operating system refused with this errno.
inline nf_code codeOfErrno(int error) {
  return error == ENOMEM ? NF_OUT_OF_MEMORY : NF_SYSTEM_ERROR;
}

struct Failure {
  nf_code code = NF_OK;
  std::string message;

  /// Sets the error and gives false, for `return failure.set(...)`.
  bool set(nf_code newCode, std::string newMessage) {
    code = newCode;
    message = std::move(newMessage);
    return false;
  }
};

} // namespace normforge
