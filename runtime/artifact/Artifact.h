// A compiled kernel: its manifest and its code.
//
// The compiler hands it to the runtime; caches and packs store it. Plain values; nothing here knows
// how a kernel was made.
#pragma once

#include "normforge/abi.h"
#include "runtime/artifact/SizeExpr.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace normforge {

enum class DType : uint8_t {
  F32,
  F64,
  BF16,
  F16,
  Bit, ///< 0 or 1; element i is bit i % 8, the lowest first, of byte i / 8. Its memory is in words
};
constexpr unsigned dtypeCount = 5;
std::string_view toString(DType dtype);
/// Parses a dtype that a spec may name: one of numbers, not Bit.
std::optional<DType> parseDType(std::string_view text);
/// Bytes of an element, or of a word of bits.
size_t byteSize(DType dtype);
/// The elements that byteSize() bytes are: 16 bits, of numbers one.
constexpr int64_t elementsPerWord(DType dtype) { return dtype == DType::Bit ? 16 : 1; }
/// Bytes of a dense array, bits in whole words.
SizeExpr arrayBytes(std::span<const SizeExpr> shape, DType dtype);
/// The dtype that is computed in: f32 for the half-precision types, otherwise the type itself.
DType computeDType(DType dtype);

/// The role of an argument for its host.
enum class Role : uint8_t {
  Data,      ///< of x's shape: x, y, addend
  Parameter, ///< learned: gamma, beta
  Statistic, ///< of a batch, which training writes: batch_mean, batch_variance
  State,     ///< kept from call to call: moving_mean, moving_variance
  Gradient,  ///< of a loss by one of the others: dy, dx, dgamma
  Mask,      ///< bits that training keeps for backward: relu_mask
  /// A rank's part of the whole batch's moments: count, mean, residual and squares about it.
  PartialMoments,
  PartialSum, ///< what a rank has of a sum over the whole batch
};
constexpr unsigned roleCount = 8;
std::string_view toString(Role role);

/// An array argument.
struct Argument {
  std::string name;
  Role role = Role::Data;
  bool written = false;
  DType dtype = DType::F32;
  /// In memory order, dense; a blocked layout's has one axis more. Of bits the last is a multiple
  /// of a word's.
  std::vector<SizeExpr> shape{};
  /// The read argument, earlier and of the same shape, whose next value a written state is; the two
  /// have one name. -1: none.
  int32_t old = -1;
  /// Earlier, read arguments that may be the same buffer as this written one.
  std::vector<uint32_t> mayAlias{};
};

/// A run-time number and what it may be, also after it has been rounded to `type`.
struct Scalar {
  std::string name;
  DType type = DType::F32;    ///< that the kernel computes with
  double least = 0, most = 0; ///< infinite: no limit; it is finite all the same
  bool open = false;          ///< `least` itself is not allowed
  bool whole = false;         ///< a whole number
};

/// A condition that a named size has to meet.
struct Constraint {
  uint32_t size = 0; ///< its index
  int64_t atLeast = 0, multipleOf = 1;
};

/// How a stage's function is called.
enum class EntryKind : uint8_t {
  Call,   ///< function(nf_call, first task, last task), on the host's threads
  Launch, ///< a kernel of a GPU; the image is its assembly's text, which ends with a zero byte
};
constexpr unsigned entryKindCount = 2;

/// What a GPU's kernel takes, by value.
struct Parameter {
  enum class Kind : uint8_t {
    Argument,  ///< the pointer of argument `index`
    Workspace, ///< a pointer `offset` bytes behind the workspace's beginning
    Size,      ///< named size `index`, 64 bits
    Scalar,    ///< run-time number `index`, in the type that the kernel computes with
    Tasks,     ///< the number of tasks, 64 bits
  };
  Kind kind = Kind::Tasks;
  uint32_t index = 0;
  SizeExpr offset{};
};
constexpr unsigned parameterKindCount = 5;
constexpr size_t maxParameters = 64; ///< of a kernel

/// How a GPU's kernel is launched: in ceil(tasks / groups) blocks.
struct Launch {
  uint32_t threads = 0;     ///< of a block
  uint32_t groups = 1;      ///< tasks of a block
  uint32_t sharedBytes = 0; ///< of a block's own memory
  std::vector<Parameter> parameters{};
};

struct Stage {
  std::string symbol;    ///< the function's name
  uint64_t entry = 0;    ///< its offset in the image; 0 of one that is launched
  SizeExpr tasks;        ///< number of tasks
  SizeExpr bytesPerTask; ///< bytes of memory one task moves, an estimate for the executor
  Launch launch{};       ///< of EntryKind::Launch
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

/// Position-independent code and read-only data, relocations applied, nothing undefined; or text.
struct Image {
  static constexpr size_t alignment = 4096;
  std::vector<std::byte> bytes;
};

struct Variant {
  std::string schedule; ///< the schedule's text form
  std::string reason;   ///< who chose it and why; documentation alone
  Guard guard;
  /// What the address of every array is a multiple of, in bytes; 0: its element alone. Chooses,
  /// as the guard does.
  uint32_t alignment = 0;
  SizeExpr workspaceBytes;
  std::vector<Stage> stages;
  Image image;
};

struct Artifact {
  uint32_t abiVersion = NF_ABI_VERSION;
  std::string name;  ///< of the spec; documentation alone
  std::string phase; ///< "inference", "backward+update", ...
  EntryKind entry = EntryKind::Call;
  std::string triple;
  std::string cpu;
  std::vector<std::string> requiredFeatures; ///< of the CPU, in LLVM's names: "avx512f"
  std::vector<std::string> sizes;            ///< named sizes, which are at least 0
  std::vector<Constraint> constraints;       ///< what more they have to be
  std::vector<Scalar> scalars;               ///< run-time numbers
  std::vector<Argument> arguments;
  /// The first whose guard holds, and whose alignment all arrays have, is taken; the last always
  /// is.
  std::vector<Variant> variants;
};

/// The error in a value of a run-time number, or empty.
std::string problemOf(const Scalar &scalar, double value);
/// The error in the named sizes, as many as the artifact has, or empty.
std::string problemOf(const Artifact &artifact, std::span<const int64_t> sizes);

/// Whether what a runtime relies on holds: expressions well formed over the named sizes, entries
/// within their image, aliases and old states earlier, read and of the same dtype, constraints of
/// sizes that there are, ranges of numbers that hold some, names neither empty nor repeated, a last
/// variant without a guard. Otherwise `error` says what does not.
bool validate(const Artifact &artifact, std::string &error);

/// The artifact as bytes: magic, version, length, checksum, then the fields, little-endian.
std::vector<std::byte> serialize(const Artifact &artifact);

/// Reads what serialize wrote. Every length, offset and expression is checked, so that damaged or
/// hostile bytes give an error message in `error` and an empty result, never a crash.
std::optional<Artifact> deserialize(std::span<const std::byte> bytes, std::string &error);

} // namespace normforge
