// A compiled kernel: its manifest and its code.
//
// What the compiler hands to the runtime, and what caches and packs store. Plain values; nothing
// here knows how a kernel was made.
#pragma once

#include "normforge/abi.h"
#include "runtime/artifact/SizeExpr.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace normforge {

enum class DType : uint8_t { F32, F64, BF16, F16 };
constexpr unsigned dtypeCount = 4;
std::string_view toString(DType dtype);
std::optional<DType> parseDType(std::string_view text);
size_t byteSize(DType dtype);
/// What is computed in: f32 for the half-precision types, otherwise the type itself.
DType computeDType(DType dtype);

enum class Phase : uint8_t { Inference, Training };
std::string_view toString(Phase phase);
std::optional<Phase> parsePhase(std::string_view text);

/// An array argument. `moving_mean` and `moving_variance` of training are two arguments of one
/// name, the old one read and the new one written.
struct Argument {
  std::string name;
  bool written = false;
  DType dtype = DType::F32;
  std::vector<SizeExpr> shape; ///< in memory order, dense; a blocked layout's has one axis more
  /// Earlier, read arguments that may be the same buffer as this written one.
  std::vector<uint32_t> mayAlias;
};

struct Stage {
  std::string symbol;    ///< the function's name
  uint64_t entry = 0;    ///< its offset in the image
  SizeExpr tasks;        ///< number of tasks
  SizeExpr bytesPerTask; ///< bytes of memory one task moves, an estimate for the executor
};

/// Chooses a variant by the sizes: it is taken when `value` is at most `limit`.
struct Guard {
  SizeExpr value;
  int64_t limit = INT64_MAX; ///< this one always holds

  /// A value that overflows exceeds every other limit.
  bool holds(std::span<const int64_t> sizes) const {
    if (limit == INT64_MAX)
      return true;
    const std::optional<int64_t> found = value.evaluate(sizes);
    return found && *found <= limit;
  }
};

/// Position-independent code and read-only data, relocations applied, nothing undefined.
struct Image {
  static constexpr size_t alignment = 4096;
  std::vector<std::byte> bytes;
};

struct Variant {
  std::string schedule; ///< the schedule's text form
  Guard guard;
  SizeExpr workspaceBytes;
  std::vector<Stage> stages;
  Image image;
};

struct Artifact {
  uint32_t abiVersion = NF_ABI_VERSION;
  std::string name; ///< of the spec; documentation alone
  Phase phase = Phase::Inference;
  std::string triple;
  std::string cpu;
  std::vector<std::string> requiredFeatures; ///< of the CPU, in LLVM's names: "avx512f"
  std::vector<std::string> sizes;            ///< named sizes
  std::vector<std::string> scalars;          ///< run-time numbers: "epsilon", "momentum", "count"
  std::vector<Argument> arguments;
  std::vector<Variant> variants; ///< the first whose guard holds is taken; the last always holds
};

/// What is wrong with a value of a run-time number, or empty: an epsilon is above 0 (in f32 too,
/// where that is the arrays' dtype), a momentum from 0 to 1, a count of batches at least 1, all are
/// finite.
std::string scalarProblem(const Artifact &artifact, size_t scalar, double value);

/// Whether what a runtime relies on holds: expressions well formed over the named sizes, entries
/// within their image, aliases earlier, read and of the same dtype, names neither empty nor
/// repeated, a last variant without a guard. Otherwise `error` says what does not.
bool validate(const Artifact &artifact, std::string &error);

/// The artifact as bytes: magic, version, length, checksum, then the fields, little-endian.
std::vector<std::byte> serialize(const Artifact &artifact);

/// Reads what serialize wrote. Every length, offset and expression is checked, so that damaged or
/// hostile bytes give an error message in `error` and an empty result, never a crash.
std::optional<Artifact> deserialize(std::span<const std::byte> bytes, std::string &error);

} // namespace normforge
