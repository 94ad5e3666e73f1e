// The code that every part of the C API shares: errors as statuses, the wall that no exception
// passes, reference counts, and structs that grow.
#pragma once

#include "normforge/normforge.h"
#include "runtime/Failure.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <pthread.h>
#include <string>
#include <type_traits>

struct nf_status {
  nf_code code;
  std::string message;
};

namespace normforge::api {

/// The number that an enum of C has, which may be none of the enum's.
template <typename Enum> std::underlying_type_t<Enum> numberOf(const Enum &value) {
  std::underlying_type_t<Enum> number; // to C++ an unknown value is no Enum
  std::memcpy(&number, &value, sizeof number);
  return number;
}

struct Counted {
  std::atomic<size_t> references{1};
};

template <typename T> void retain(T *object) {
  if (object)
    object->references.fetch_add(1, std::memory_order_relaxed);
}

template <typename T> void release(T *object) {
  if (object && object->references.fetch_sub(1, std::memory_order_acq_rel) == 1)
    delete object;
}

/// The error for which there was no memory. Its address alone is used; nothing frees it.
inline constexpr char outOfMemoryTag = 0;
inline nf_status *outOfMemory() {
  return reinterpret_cast<nf_status *>(const_cast<char *>(&outOfMemoryTag));
}
inline bool isOutOfMemory(const nf_status *status) { return status == outOfMemory(); }

inline nf_status *toStatus(nf_code code, std::string message) noexcept {
  nf_status *status = new (std::nothrow) nf_status{code, std::move(message)};
  return status ? status : outOfMemory();
}

/// Runs `body(failure)`, which gives false with `failure` set when it fails.
template <typename Body> nf_status *guarded(Body body) noexcept {
  // A thread that is cancelled here would leave by an exception that nobody may catch.
  struct NotCancelled {
    int before;
    NotCancelled() { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before); }
    ~NotCancelled() { pthread_setcancelstate(before, nullptr); }
  } const notCancelled;
  try {
    try {
      Failure failure;
      if (body(failure))
        return nullptr;
      return toStatus(failure.code, std::move(failure.message));
    } catch (const std::bad_alloc &) {
      return outOfMemory();
    } catch (const std::exception &error) {
      return toStatus(NF_INTERNAL, std::string("internal error: ") + error.what());
    }
  } catch (...) {
    return outOfMemory(); // not even the message could be made
  }
}

inline bool failNull(const char *what, Failure &failure) {
  return failure.set(NF_INVALID_ARGUMENT, std::string(what) + " is null");
}

/// Clears the place for what is to be made, and checks that it and the `owner` it is made from are
/// there.
template <typename T, typename Owner>
bool begin(T **made, const char *what, const Owner *owner, const char *ownersName,
           Failure &failure) {
  if (!made)
    return failNull(what, failure);
  *made = nullptr;
  return owner || failNull(ownersName, failure);
}

/// That a struct has at least the fields of its first version.
inline bool checkSize(uint32_t given, const char *name, size_t first, Failure &failure) {
  return given >= first ||
         failure.set(NF_INVALID_ARGUMENT, std::string("struct_size of ") + name + " is " +
                                              std::to_string(given) + "; expected sizeof(" + name +
                                              "), at least " + std::to_string(first));
}

/// The caller's struct in this version's size: fields that the caller does not know are 0, those
/// that this version does not know are ignored.
template <typename T>
bool readOptions(const T *given, T &options, const char *name, size_t first, Failure &failure) {
  options = {};
  if (!given)
    return true;
  if (!checkSize(given->struct_size, name, first, failure))
    return false;
  std::memcpy(static_cast<void *>(&options), given,
              std::min<size_t>(given->struct_size, sizeof options));
  return true;
}

} // namespace normforge::api
