// Blocks of threads, instruction by instruction.
#include "tests/device/Ptx.h"

#include "compiler/emulator/WatchedMemory.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace ptx {

bool Module::isConstant(uint64_t address, uint64_t bytes) const {
  return std::any_of(constants_.begin(), constants_.end(), [&](const auto &constant) {
    const uint64_t begin = reinterpret_cast<uintptr_t>(constant.second.data());
    return address >= begin && address - begin + bytes <= constant.second.size() * sizeof(uint64_t);
  });
}

const Function *Module::find(const std::string &name) const {
  const auto found = functions_.find(name);
  return found == functions_.end() ? nullptr : &found->second;
}

namespace {

constexpr uint32_t kSubgroup = 32;

uint64_t mask(int bits) { return bits >= 64 ? ~uint64_t(0) : (uint64_t(1) << bits) - 1; }
int64_t extended(uint64_t value, int bits) {
  const int shift = 64 - bits;
  return static_cast<int64_t>(value << shift) >> shift;
}

/// A number's bits as a double: exact for f16, bf16, f32 and f64.
double toDouble(uint64_t bits, Type type) {
  if (type.kind == Kind::Bf16)
    return std::bit_cast<float>(static_cast<uint32_t>(bits & 0xffff) << 16);
  switch (type.bits) {
  case 16:
    return static_cast<double>(std::bit_cast<_Float16>(static_cast<uint16_t>(bits)));
  case 32:
    return std::bit_cast<float>(static_cast<uint32_t>(bits));
  default:
    return std::bit_cast<double>(bits);
  }
}
/// Rounds to the nearest, once.
uint64_t fromDouble(double value, Type type) {
  if (type.kind == Kind::Bf16) {
    if (std::isnan(value))
      return 0x7fff;
    // f32 has more digits than twice bf16's and one: only values that are exact in it come here.
    const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  switch (type.bits) {
  case 16:
    return std::bit_cast<uint16_t>(static_cast<_Float16>(value));
  case 32:
    return std::bit_cast<uint32_t>(static_cast<float>(value));
  default:
    return std::bit_cast<uint64_t>(value);
  }
}
template <typename Compute> uint64_t withFloat(Type type, uint64_t a, Compute compute) {
  return type.bits == 64
             ? std::bit_cast<uint64_t>(compute(std::bit_cast<double>(a)))
             : std::bit_cast<uint32_t>(compute(std::bit_cast<float>(static_cast<uint32_t>(a))));
}
template <typename Compute>
uint64_t withFloats(Type type, uint64_t a, uint64_t b, Compute compute) {
  return type.bits == 64
             ? std::bit_cast<uint64_t>(compute(std::bit_cast<double>(a), std::bit_cast<double>(b)))
             : std::bit_cast<uint32_t>(compute(std::bit_cast<float>(static_cast<uint32_t>(a)),
                                               std::bit_cast<float>(static_cast<uint32_t>(b))));
}

struct Thread {
  std::vector<uint64_t> registers{};
  int at = 0;
  enum class Is : uint8_t { Ready, Exchanges, AwaitsSubgroup, AwaitsBlock, Ended } is = Is::Ready;
  uint32_t members = 0;            ///< of the subgroup that it waits for
  uint64_t barrier = 0, count = 0; ///< that it waits at, and for how many
  uint64_t epoch = 1;
};

class Block {
public:
  Block(const Function &function, const Launch &launch, const MayAccess &mayAccess, uint32_t number)
      : function_(function), launch_(launch), mayAccess_(mayAccess), number_(number),
        threads_(launch.threads) {
    for (Thread &thread : threads_)
      thread.registers.assign(static_cast<size_t>(function.registers), 0x7ff4dead7fb4dead);
    shared_.reset(launch.sharedBytes);
  }

  std::optional<std::string> run();

private:
  std::string failed(const std::string &what) const {
    return function_.name + ": block " + std::to_string(number_) + ", thread " +
           std::to_string(current_) + ", " +
           function_.code[static_cast<size_t>(threads_[current_].at)].name + ": " + what;
  }
  /// Lets a thread go on, to where it waits for others or ends.
  void advance(uint32_t thread);
  /// Carries one instruction out; false where the thread waits.
  bool step(Thread &thread, const Instruction &instruction);
  void access(Thread &thread, const Instruction &instruction);
  uint64_t convert(const Thread &thread, const Instruction &instruction) const;
  uint64_t arithmetic(const Thread &thread, const Instruction &instruction) const;
  /// The same of bf16 or f16, `shift` bits up in its register.
  uint64_t ofHalves(const Thread &thread, const Instruction &instruction, int shift) const;
  static bool propagates(const Instruction &instruction);
  /// `shift`: of the number that counts, in a packed one.
  bool compare(const Thread &thread, const Instruction &instruction, int shift) const;
  uint64_t value(const Thread &thread, const Operand &operand) const;
  /// Lets those go on whose members have all come to their exchange.
  bool meetInSubgroups();
  bool meetAtBarriers();

  const Function &function_;
  const Launch &launch_;
  const MayAccess &mayAccess_;
  const uint32_t number_;
  std::vector<Thread> threads_;
  normforge::emulator::WatchedMemory shared_;
  uint32_t current_ = 0;
  std::string error_;
};

uint64_t Block::value(const Thread &thread, const Operand &operand) const {
  switch (operand.is) {
  case Operand::Is::Register:
    return thread.registers[static_cast<size_t>(operand.index)];
  case Operand::Is::Special:
    return operand.name == "%tid.x"     ? current_
           : operand.name == "%ctaid.x" ? number_
           : operand.name == "%ntid.x"  ? launch_.threads
                                        : 0;
  default:
    return operand.number;
  }
}

void Block::access(Thread &thread, const Instruction &instruction) {
  const bool isStore = instruction.handler == kStoreGlobal || instruction.handler == kStoreShared;
  const bool isShared = instruction.handler == kLoadShared || instruction.handler == kStoreShared;
  const Operand &address = instruction.operands[isStore ? 0 : 1];
  const Operand &data = instruction.operands[isStore ? 1 : 0];
  const uint64_t at =
      address.number +
      (address.index < 0 ? 0 : thread.registers[static_cast<size_t>(address.index)]);
  const auto bytes = static_cast<uint64_t>(instruction.type.bits / 8);
  const uint64_t count = data.is == Operand::Is::Vector ? data.elements.size() : 1;
  if (at % (bytes * count) != 0) {
    error_ =
        failed("an address that is not aligned to " + std::to_string(bytes * count) + " bytes");
    return;
  }
  char *memory = isShared ? shared_.data() + at : reinterpret_cast<char *>(at);
  if (isShared) {
    if (const char *what = shared_.access(at, bytes * count, isStore, current_, thread.epoch)) {
      error_ = failed(what);
      return;
    }
  } else if (!(function_.module->isConstant(at, bytes * count) && !isStore) &&
             !mayAccess_(at, bytes * count, isStore)) {
    error_ = failed(std::string("no memory for ") + (isStore ? "a store" : "a load") + " of " +
                    std::to_string(bytes * count) + " bytes");
    return;
  }
  for (uint64_t i = 0; i < count; ++i) {
    const Operand &element = data.is == Operand::Is::Vector ? data.elements[i] : data;
    if (isStore) {
      const uint64_t stored = value(thread, element);
      std::memcpy(memory + i * bytes, &stored, bytes);
    } else if (element.index >= 0) {
      uint64_t loaded = 0;
      std::memcpy(&loaded, memory + i * bytes, bytes);
      if (instruction.type.kind == Kind::Signed)
        loaded = static_cast<uint64_t>(extended(loaded, instruction.type.bits));
      thread.registers[static_cast<size_t>(element.index)] = loaded;
    }
  }
}

uint64_t Block::convert(const Thread &thread, const Instruction &instruction) const {
  const Type to = instruction.type, from = instruction.from;
  auto isFloat = [](Type type) { return type.kind == Kind::Float || type.kind == Kind::Bf16; };
  auto has = [&](std::string_view part) {
    return std::find(instruction.parts.begin(), instruction.parts.end(), part) !=
           instruction.parts.end();
  };
  const uint64_t given = value(thread, instruction.operands[1]);
  if (instruction.isPacked) // the first one above the other
    return fromDouble(toDouble(given, from), to) << 16 |
           fromDouble(toDouble(value(thread, instruction.operands[2]), from), to);
  auto whole = [&](double number) {
    return has("rni")   ? std::nearbyint(number)
           : has("rmi") ? std::floor(number)
           : has("rpi") ? std::ceil(number)
           : has("rzi") ? std::trunc(number)
                        : number;
  };
  if (isFloat(from) && isFloat(to))
    return fromDouble(whole(toDouble(given, from)), to);
  if (isFloat(from)) {
    const double number = whole(toDouble(given, from));
    if (std::isnan(number))
      return 0;
    const double least = to.kind == Kind::Signed ? -std::ldexp(1.0, to.bits - 1) : 0;
    const double most = std::ldexp(1.0, to.kind == Kind::Signed ? to.bits - 1 : to.bits);
    if (number >= most)
      return mask(to.kind == Kind::Signed ? to.bits - 1 : to.bits);
    if (number <= least)
      return static_cast<uint64_t>(static_cast<int64_t>(least)) & mask(to.bits);
    return (number < 0 ? static_cast<uint64_t>(static_cast<int64_t>(number))
                       : static_cast<uint64_t>(number)) &
           mask(to.bits);
  }
  const int64_t integer = from.kind == Kind::Signed ? extended(given, from.bits)
                                                    : static_cast<int64_t>(given & mask(from.bits));
  if (!isFloat(to))
    return static_cast<uint64_t>(integer) & mask(to.bits);
  const bool isUnsigned = from.kind != Kind::Signed;
  if (to.bits == 32) // once, from the integer
    return std::bit_cast<uint32_t>(isUnsigned ? static_cast<float>(static_cast<uint64_t>(integer))
                                              : static_cast<float>(integer));
  return fromDouble(isUnsigned ? static_cast<double>(static_cast<uint64_t>(integer))
                               : static_cast<double>(integer),
                    to);
}

bool Block::compare(const Thread &thread, const Instruction &instruction, int shift) const {
  const Type type = instruction.type;
  uint64_t a = value(thread, instruction.operands[1]) >> shift,
           b = value(thread, instruction.operands[2]) >> shift;
  std::string_view how = instruction.parts[1];
  auto by = [&](auto x, auto y) {
    return how == "eq" || how == "equ"                  ? x == y
           : how == "ne" || how == "neu"                ? x != y
           : how == "lt" || how == "lo" || how == "ltu" ? x < y
           : how == "le" || how == "ls" || how == "leu" ? x <= y
           : how == "gt" || how == "hi" || how == "gtu" ? x > y
                                                        : x >= y;
  };
  if (type.kind == Kind::Float || type.kind == Kind::Bf16) {
    const double x = toDouble(a, type), y = toDouble(b, type);
    const bool isUnordered = std::isnan(x) || std::isnan(y);
    if (how == "nan" || how == "num")
      return isUnordered == (how == "nan");
    if (isUnordered)
      return how.size() == 3; // equ, ltu, ...
    return by(x, y);
  }
  a &= mask(type.bits);
  b &= mask(type.bits);
  return type.kind == Kind::Signed ? by(extended(a, type.bits), extended(b, type.bits)) : by(a, b);
}

/// The lesser or the larger of two numbers that may be NaN.
template <typename Number> Number chosen(Number x, Number y, bool isMost, bool propagates) {
  if (std::isnan(x) || std::isnan(y)) {
    const bool givesNan = propagates || (std::isnan(x) && std::isnan(y));
    return givesNan ? std::numeric_limits<Number>::quiet_NaN() : std::isnan(x) ? y : x;
  }
  if (x == y) // of zeros the sign counts
    return std::signbit(x) == isMost ? y : x;
  return (x < y) == isMost ? y : x;
}

bool Block::propagates(const Instruction &instruction) {
  return std::find(instruction.parts.begin(), instruction.parts.end(), "NaN") !=
         instruction.parts.end();
}

/// Sums and products of two are rounded once: f64 has more than twice the digits and two.
uint64_t Block::ofHalves(const Thread &thread, const Instruction &instruction, int shift) const {
  const Type type = instruction.type;
  auto in = [&](size_t i) {
    return toDouble(value(thread, instruction.operands[i]) >> shift & 0xffff, type);
  };
  auto result = [&]() -> double {
    switch (instruction.handler) {
    case kAdd:
      return in(1) + in(2);
    case kSubtract:
      return in(1) - in(2);
    case kMultiply:
      return in(1) * in(2);
    case kMultiplyAdd:
      return std::fma(in(1), in(2), in(3));
    case kNegate:
      return -in(1);
    case kAbsolute:
      return std::fabs(in(1));
    default:
      return chosen(in(1), in(2), instruction.handler == kMaximum, propagates(instruction));
    }
  };
  return fromDouble(result(), type) << shift;
}

uint64_t Block::arithmetic(const Thread &thread, const Instruction &instruction) const {
  const Type type = instruction.type;
  if (type.kind == Kind::Bf16 || type == Type{Kind::Float, 16})
    return ofHalves(thread, instruction, 0) |
           (instruction.isPacked ? ofHalves(thread, instruction, 16) : 0);
  auto in = [&](size_t i) { return value(thread, instruction.operands[i]); };
  const uint64_t a = in(1), b = instruction.operands.size() > 2 ? in(2) : 0;
  const bool isFloat = type.kind == Kind::Float, isSigned = type.kind == Kind::Signed;
  auto choose = [&](bool isMost) {
    if (isFloat)
      return withFloats(type, a, b, [&](auto x, auto y) {
        return chosen(x, y, isMost, propagates(instruction));
      });
    const bool isLess = isSigned ? extended(a, type.bits) < extended(b, type.bits)
                                 : (a & mask(type.bits)) < (b & mask(type.bits));
    return isLess == isMost ? b : a;
  };
  auto product = [&] { // the low bits, all of them where it is wide
    return isSigned ? static_cast<uint64_t>(extended(a, type.bits)) *
                          static_cast<uint64_t>(extended(b, type.bits))
                    : (a & mask(type.bits)) * (b & mask(type.bits));
  };
  const uint64_t shift = std::min<uint64_t>(b & 0xffffffff, 64);
  switch (instruction.handler) {
  case kAdd:
    return isFloat ? withFloats(type, a, b, [](auto x, auto y) { return x + y; }) : a + b;
  case kSubtract:
    return isFloat ? withFloats(type, a, b, [](auto x, auto y) { return x - y; }) : a - b;
  case kMultiply:
    return isFloat ? withFloats(type, a, b, [](auto x, auto y) { return x * y; }) : product();
  case kMultiplyHigh: {
    const auto all =
        isSigned ? static_cast<unsigned __int128>(static_cast<__int128>(extended(a, type.bits)) *
                                                  extended(b, type.bits))
                 : static_cast<unsigned __int128>(a & mask(type.bits)) * (b & mask(type.bits));
    return static_cast<uint64_t>(all >> type.bits);
  }
  case kMultiplyAdd:
    if (!isFloat)
      return product() + in(3);
    if (type.bits == 64)
      return std::bit_cast<uint64_t>(std::fma(std::bit_cast<double>(a), std::bit_cast<double>(b),
                                              std::bit_cast<double>(in(3))));
    return std::bit_cast<uint32_t>(std::fma(std::bit_cast<float>(static_cast<uint32_t>(a)),
                                            std::bit_cast<float>(static_cast<uint32_t>(b)),
                                            std::bit_cast<float>(static_cast<uint32_t>(in(3)))));
  case kDivide:
  case kRemainder: {
    if (isFloat)
      return withFloats(type, a, b, [](auto x, auto y) { return x / y; });
    const uint64_t x = a & mask(type.bits), y = b & mask(type.bits);
    if (y == 0)
      return ~uint64_t(0);
    if (isSigned) {
      const int64_t n = extended(x, type.bits), d = extended(y, type.bits);
      return static_cast<uint64_t>(instruction.handler == kDivide ? n / d : n % d);
    }
    return instruction.handler == kDivide ? x / y : x % y;
  }
  case kReciprocal:
    return withFloat(type, a, [](auto x) { return 1 / x; });
  case kSquareRoot:
    return withFloat(type, a, [](auto x) { return std::sqrt(x); });
  case kNegate:
    return isFloat ? a ^ (uint64_t(1) << (type.bits - 1)) : ~a + 1;
  case kAbsolute:
    return isFloat ? a & mask(type.bits - 1) : extended(a, type.bits) < 0 ? ~a + 1 : a;
  case kCopySign: // of the first, with the second's magnitude
    return (a & (uint64_t(1) << (type.bits - 1))) | (b & mask(type.bits - 1));
  case kExtract: {
    const uint64_t begin = b & 0xff, count = in(3) & 0xff;
    const uint64_t bits =
        begin >= 64 ? 0 : ((a & mask(type.bits)) >> begin) & mask(static_cast<int>(count));
    return isSigned && count > 0 ? static_cast<uint64_t>(extended(bits, static_cast<int>(count)))
                                 : bits;
  }
  case kMinimum:
    return choose(false);
  case kMaximum:
    return choose(true);
  case kAnd:
    return a & b;
  case kOr:
    return a | b;
  case kXor:
    return a ^ b;
  case kNot:
    return type.kind == Kind::Predicate ? !a : ~a;
  case kShiftLeft:
    return shift >= static_cast<uint64_t>(type.bits) ? 0 : a << shift;
  default: // a shift to the right
    if (isSigned)
      return static_cast<uint64_t>(extended(a, type.bits) >>
                                   std::min<uint64_t>(shift, static_cast<uint64_t>(type.bits) - 1));
    return shift >= static_cast<uint64_t>(type.bits) ? 0 : (a & mask(type.bits)) >> shift;
  }
}

bool Block::step(Thread &thread, const Instruction &instruction) {
  auto in = [&](size_t i) { return value(thread, instruction.operands[i]); };
  auto set = [&](uint64_t result, int bits) {
    thread.registers[static_cast<size_t>(instruction.operands[0].index)] = result & mask(bits);
  };
  switch (instruction.handler) {
  case kMove: {
    const Operand &to = instruction.operands[0], &from = instruction.operands[1];
    const bool packs = from.is == Operand::Is::Vector, unpacks = to.is == Operand::Is::Vector;
    const auto count = static_cast<int>(packs     ? from.elements.size()
                                        : unpacks ? to.elements.size()
                                                  : 1);
    const int bits = instruction.type.bits / count;
    uint64_t whole = packs ? 0 : value(thread, from);
    for (int i = 0; packs && i < count; ++i)
      whole |= (value(thread, from.elements[static_cast<size_t>(i)]) & mask(bits)) << (i * bits);
    if (!unpacks) {
      set(whole, instruction.type.bits);
      return true;
    }
    for (int i = 0; i < count; ++i)
      if (const int element = to.elements[static_cast<size_t>(i)].index; element >= 0)
        thread.registers[static_cast<size_t>(element)] = whole >> (i * bits) & mask(bits);
    return true;
  }
  case kLoadParameter: {
    const Operand &from = instruction.operands[1];
    set(launch_.parameters[static_cast<size_t>(from.index)], instruction.type.bits);
    return true;
  }
  case kLoadGlobal:
  case kStoreGlobal:
  case kLoadShared:
  case kStoreShared:
    access(thread, instruction);
    return true;
  case kCompare:
    set(compare(thread, instruction, 0), 1);
    if (instruction.isPacked)
      thread.registers[static_cast<size_t>(instruction.operands[0].elements.at(0).index)] =
          compare(thread, instruction, instruction.type.bits);
    return true;
  case kSelect:
    set(in(3) ? in(1) : in(2), instruction.type.bits);
    return true;
  case kConvert:
    set(convert(thread, instruction), instruction.isPacked ? 32 : instruction.type.bits);
    return true;
  case kPrefetch:
    return true;
  case kExchange:
    thread.members = static_cast<uint32_t>(in(4));
    thread.is = Thread::Is::Exchanges;
    return false;
  case kWarpBarrier:
    thread.members = static_cast<uint32_t>(in(0));
    thread.is = Thread::Is::AwaitsSubgroup;
    return false;
  case kBarrier:
    thread.barrier = in(0);
    thread.count = instruction.operands.size() > 1 ? in(1) : launch_.threads;
    thread.is = Thread::Is::AwaitsBlock;
    return false;
  default:
    set(arithmetic(thread, instruction), instruction.isWide || instruction.isPacked
                                             ? 2 * instruction.type.bits
                                             : instruction.type.bits);
    return true;
  }
}

void Block::advance(uint32_t number) {
  current_ = number;
  Thread &thread = threads_[number];
  while (error_.empty()) {
    const Instruction &instruction = function_.code[static_cast<size_t>(thread.at)];
    const bool isTaken =
        instruction.predicate < 0 ||
        (thread.registers[static_cast<size_t>(instruction.predicate)] & 1) != instruction.negated;
    if (isTaken && instruction.handler == kReturn) {
      thread.is = Thread::Is::Ended;
      return;
    }
    if (isTaken && instruction.handler == kBranch) {
      thread.at = instruction.target;
      continue;
    }
    if (isTaken && !step(thread, instruction))
      return;
    if (error_.empty())
      ++thread.at;
  }
}

bool Block::meetInSubgroups() {
  bool isMet = false;
  for (uint32_t first = 0; first < threads_.size(); first += kSubgroup)
    for (uint32_t i = first; i < first + kSubgroup && i < threads_.size(); ++i) {
      Thread &thread = threads_[i];
      if (thread.is != Thread::Is::Exchanges && thread.is != Thread::Is::AwaitsSubgroup)
        continue;
      bool isThere = (thread.members >> (i - first) & 1) != 0;
      for (uint32_t lane = 0; lane < kSubgroup; ++lane)
        if (thread.members >> lane & 1)
          isThere &= first + lane < threads_.size() && threads_[first + lane].is == thread.is &&
                     threads_[first + lane].at == thread.at &&
                     threads_[first + lane].members == thread.members;
      if (!isThere)
        continue;
      const Instruction &instruction = function_.code[static_cast<size_t>(thread.at)];
      std::vector<std::pair<uint32_t, uint64_t>> given;
      const uint32_t members = thread.members;
      for (uint32_t lane = 0; lane < kSubgroup; ++lane)
        if (members >> lane & 1) {
          current_ = first + lane;
          Thread &member = threads_[current_];
          if (instruction.handler == kExchange) {
            const uint32_t from =
                lane ^ static_cast<uint32_t>(value(member, instruction.operands[2]));
            if (!(members >> from & 1)) {
              error_ = failed("a value of a thread that does not take part");
              return false;
            }
            given.emplace_back(first + lane,
                               value(threads_[first + from], instruction.operands[1]));
          }
          member.is = Thread::Is::Ready;
          ++member.at;
          // A barrier of the subgroup alone orders what its threads do.
          member.epoch += instruction.handler == kWarpBarrier && threads_.size() <= kSubgroup;
        }
      for (const auto &[to, number] : given)
        threads_[to].registers[static_cast<size_t>(instruction.operands[0].index)] =
            number & mask(32);
      isMet = true;
    }
  return isMet;
}

bool Block::meetAtBarriers() {
  std::map<uint64_t, std::vector<uint32_t>> waiting;
  for (uint32_t i = 0; i < threads_.size(); ++i)
    if (threads_[i].is == Thread::Is::AwaitsBlock)
      waiting[threads_[i].barrier].push_back(i);
  bool isMet = false;
  for (const auto &[barrier, threads] : waiting) {
    if (threads.size() != threads_[threads.front()].count)
      continue;
    for (uint32_t i : threads) {
      threads_[i].is = Thread::Is::Ready;
      ++threads_[i].at;
      ++threads_[i].epoch;
    }
    isMet = true;
  }
  return isMet;
}

std::optional<std::string> Block::run() {
  while (error_.empty()) {
    uint32_t ended = 0;
    for (uint32_t i = 0; i < threads_.size() && error_.empty(); ++i) {
      const auto count = static_cast<uint32_t>(threads_.size());
      const uint32_t number = number_ % 2 ? count - 1 - i : i;
      if (threads_[number].is == Thread::Is::Ready)
        advance(number);
      ended += threads_[number].is == Thread::Is::Ended;
    }
    if (!error_.empty() || ended == threads_.size())
      break;
    if (!meetInSubgroups() && error_.empty() && !meetAtBarriers()) {
      for (current_ = 0; threads_[current_].is == Thread::Is::Ended;)
        ++current_;
      error_ = failed("it waits for threads that do not come");
    }
  }
  return error_.empty() ? std::nullopt : std::optional(error_);
}

} // namespace

std::optional<std::string> run(const Function &function, const Launch &launch,
                               const MayAccess &mayAccess) {
  for (uint32_t block = 0; block < launch.blocks; ++block)
    if (auto error = Block(function, launch, mayAccess, block).run())
      return error;
  return std::nullopt;
}

} // namespace ptx
