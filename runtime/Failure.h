// An error inside the runtime, before it becomes an nf_status.
#pragma once

#include "normforge/normforge.h"

#include <string>
#include <utility>

namespace normforge {

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
