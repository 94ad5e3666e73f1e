// Runs the assembly of NVIDIA's GPUs on the CPU: what kernels are made of, and no more.
//
// Enters: a module's text. Leaves: functions, launched with values as parameters. All threads of a
// block are there at once; a subgroup's run one after the other, to where they wait for others.
// Instructions are those that LLVM makes of our kernels; any other is an error when a module is
// read. PtxReader.cpp reads modules, Ptx.cpp runs them. Source of what they mean: NVIDIA, "Parallel
// Thread Execution ISA".
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

enum class Kind : uint8_t { Bits, Unsigned, Signed, Float, Bf16, Predicate };
struct Type {
  Kind kind = Kind::Bits;
  int bits = 32;
  bool operator==(const Type &) const = default;
};

struct Operand {
  enum class Is : uint8_t { Register, Number, Address, Vector, Special } is = Is::Number;
  int index = -1;                  ///< a register; of an address, -1: none
  uint64_t number = 0;             ///< of an address, what is added
  std::string name{};              ///< a special register's
  std::vector<Operand> elements{}; ///< of a vector: registers (-1: none) and numbers
};

/// What an instruction does, whatever its types.
enum Handler : int {
  kMove,
  kLoadParameter,
  kLoadGlobal,
  kStoreGlobal,
  kLoadShared,
  kStoreShared,
  kAdd,
  kSubtract,
  kMultiply,
  kMultiplyHigh,
  kMultiplyAdd,
  kDivide,
  kRemainder,
  kReciprocal,
  kSquareRoot,
  kNegate,
  kAbsolute,
  kMinimum,
  kMaximum,
  kAnd,
  kOr,
  kXor,
  kNot,
  kShiftLeft,
  kShiftRight,
  kCompare,
  kSelect,
  kConvert,
  kCopySign,
  kExtract,
  kBranch,
  kReturn,
  kExchange,
  kWarpBarrier,
  kBarrier,
  kPrefetch,
};

struct Instruction {
  std::string name;               ///< "ld.global.v4.b32"
  std::vector<std::string> parts; ///< of the name
  int predicate = -1;             ///< a register
  bool negated = false;
  Type type{}, from{};   ///< of a conversion
  bool isWide = false;   ///< the result has twice the bits
  bool isPacked = false; ///< two halves become one number
  std::vector<Operand> operands{};
  int target = -1; ///< of a branch, an instruction
  int handler = -1;
};

class Module;

struct Function {
  std::string name;
  const Module *module = nullptr; ///< that it is of
  std::vector<int> parameterBytes{};
  std::vector<Instruction> code{};
  int registers = 0;
  int mostThreads = 0; ///< of a block, as it says
};

/// Whether so many bytes of global memory are there, to be loaded or stored.
using MayAccess = std::function<bool(uint64_t address, uint64_t bytes, bool stores)>;

class Module {
public:
  /// Empty with `error` set where the text is none that this knows.
  static std::unique_ptr<Module> read(std::string_view text, std::string &error);

  const Function *find(const std::string &name) const;
  /// Whether the bytes are of an array of the module's own.
  bool isConstant(uint64_t address, uint64_t bytes) const;
  int target() const { return target_; }   ///< "sm_90": 90
  int version() const { return version_; } ///< of the text: 78

private:
  friend class Reader;
  std::map<std::string, Function> functions_;
  std::map<std::string, std::vector<uint64_t>> constants_; ///< arrays, in words of 8 bytes
  int target_ = 0, version_ = 0;
};

struct Launch {
  uint32_t blocks = 1, threads = 1, sharedBytes = 0;
  std::vector<uint64_t> parameters{};
};

/// Runs a launch to its end. The error otherwise: an access that may not be, a race, threads that
/// wait for others for ever.
std::optional<std::string> run(const Function &function, const Launch &launch,
                               const MayAccess &mayAccess);

} // namespace ptx
