// Modules from their text.
#include "tests/device/Ptx.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>

namespace ptx {

namespace {

constexpr const char *kSharedMemory = "nf_shared";
/// Where shared memory begins among addresses, which are told from global ones by their
/// instruction.
constexpr uint64_t kSharedBase = 0;

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())))
    text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())))
    text.remove_suffix(1);
  return text;
}

std::vector<std::string> split(std::string_view text, char at) {
  std::vector<std::string> parts;
  int depth = 0;
  std::string part;
  for (char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == at && depth == 0) {
      parts.emplace_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty())
    parts.emplace_back(trimmed(part));
  return parts;
}

std::optional<Type> typeOf(std::string_view text) {
  if (text == "pred")
    return Type{Kind::Predicate, 1};
  if (text == "bf16" || text == "bf16x2")
    return Type{Kind::Bf16, 16};
  if (text == "f16x2")
    return Type{Kind::Float, 16};
  if (text.size() < 2 || !std::strchr("busf", text[0]))
    return std::nullopt;
  int bits = 0;
  const auto [end, error] = std::from_chars(text.data() + 1, text.data() + text.size(), bits);
  if (error != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return Type{text[0] == 'b'   ? Kind::Bits
              : text[0] == 'u' ? Kind::Unsigned
              : text[0] == 's' ? Kind::Signed
                               : Kind::Float,
              bits};
}

const std::map<std::string, Handler, std::less<>> kHandlers = {
    {"mov", kMove},        {"add", kAdd},         {"sub", kSubtract},     {"mul", kMultiply},
    {"mad", kMultiplyAdd}, {"fma", kMultiplyAdd}, {"div", kDivide},       {"rem", kRemainder},
    {"rcp", kReciprocal},  {"sqrt", kSquareRoot}, {"neg", kNegate},       {"abs", kAbsolute},
    {"min", kMinimum},     {"max", kMaximum},     {"and", kAnd},          {"or", kOr},
    {"xor", kXor},         {"not", kNot},         {"shl", kShiftLeft},    {"shr", kShiftRight},
    {"setp", kCompare},    {"selp", kSelect},     {"cvt", kConvert},      {"copysign", kCopySign},
    {"bfe", kExtract},     {"bra", kBranch},      {"ret", kReturn},       {"shfl", kExchange},
    {"bar", kBarrier},     {"barrier", kBarrier}, {"prefetch", kPrefetch}};

} // namespace

class Reader {
public:
  Reader(std::string_view text, std::string &error)
      : text_(text), error_(error), module_(std::make_unique<Module>()) {}
  std::unique_ptr<Module> read();

private:
  bool fail(std::string what) {
    if (error_.empty())
      error_ = std::move(what);
    return false;
  }
  bool directive(std::string_view line);
  bool array(std::string_view line);
  bool begin(std::string_view head);
  bool statement(std::string_view line);
  bool finish();
  int registerOf(std::string_view name);
  bool operand(std::string_view text, Operand &out);
  bool number(std::string_view text, uint64_t &value);

  std::string_view text_;
  std::string &error_;
  std::unique_ptr<Module> module_;
  Function *function_ = nullptr;
  std::map<std::string, int, std::less<>> registers_, labels_, parameters_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

int Reader::registerOf(std::string_view name) {
  const auto [place, isNew] = registers_.emplace(std::string(name), function_->registers);
  function_->registers += isNew;
  return place->second;
}

bool Reader::number(std::string_view text, uint64_t &value) {
  if (text.starts_with("0f") || text.starts_with("0d") || text.starts_with("0F")) {
    const auto [end, error] =
        std::from_chars(text.data() + 2, text.data() + text.size(), value, 16);
    return error == std::errc() && end == text.data() + text.size();
  }
  const bool isNegative = text.starts_with("-");
  if (isNegative)
    text.remove_prefix(1);
  const bool isHex = text.starts_with("0x");
  if (isHex)
    text.remove_prefix(2);
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, isHex ? 16 : 10);
  if (isNegative)
    value = ~value + 1;
  return error == std::errc() && end == text.data() + text.size();
}

bool Reader::operand(std::string_view text, Operand &out) {
  text = trimmed(text);
  if (text.starts_with("[")) {
    out.is = Operand::Is::Address;
    text = trimmed(text.substr(1, text.size() - 2));
    std::string_view base = text.substr(0, text.find('+'));
    if (base.size() < text.size() && !number(trimmed(text.substr(base.size() + 1)), out.number))
      return fail("an address that is not read: " + std::string(text));
    base = trimmed(base);
    if (base.starts_with("%")) {
      out.index = registerOf(base);
      return true;
    }
    if (const auto found = parameters_.find(base); found != parameters_.end()) {
      out.index = found->second;
      return true;
    }
    Operand symbol;
    if (!operand(base, symbol))
      return false;
    out.number += symbol.number;
    return true;
  }
  if (text.starts_with("{")) {
    out.is = Operand::Is::Vector;
    for (const std::string &element : split(text.substr(1, text.size() - 2), ',')) {
      Operand &one = out.elements.emplace_back();
      one.is = Operand::Is::Register;
      const bool isName = element != "_" && !std::isdigit(static_cast<unsigned char>(element[0])) &&
                          element[0] != '-';
      if (isName)
        one.index = registerOf(element);
      else if (element != "_" && !operand(element, one = Operand()))
        return false;
    }
    return true;
  }
  if (text.starts_with("%tid") || text.starts_with("%ctaid") || text.starts_with("%ntid")) {
    out.is = Operand::Is::Special;
    out.name = text;
    return true;
  }
  if (text.starts_with("%")) {
    out.is = Operand::Is::Register;
    out.index = registerOf(text);
    return true;
  }
  if (text == kSharedMemory) {
    out.number = kSharedBase;
    return true;
  }
  if (const auto found = module_->constants_.find(std::string(text));
      found != module_->constants_.end()) {
    out.number = reinterpret_cast<uintptr_t>(found->second.data());
    return true;
  }
  return number(text, out.number) || fail("an operand that is not known: " + std::string(text));
}

/// ".global .align 16 .b8 name[64] = {1, 2, ...}"
bool Reader::array(std::string_view line) {
  const size_t bracket = line.find('[');
  if (bracket == std::string_view::npos)
    return fail("a variable that is not known: " + std::string(line));
  const std::string_view head = trimmed(line.substr(0, bracket));
  const size_t space = head.rfind(' '), dot = head.rfind('.');
  const std::string name(head.substr(space + 1));
  const std::optional<Type> type = typeOf(trimmed(head.substr(dot + 1, space - dot - 1)));
  uint64_t count = 0;
  const size_t close = line.find(']', bracket);
  if (!type || !number(line.substr(bracket + 1, close - bracket - 1), count))
    return fail("an array that is not known: " + std::string(line));
  std::vector<uint64_t> &words = module_->constants_[name];
  const uint64_t bytes = count * static_cast<uint64_t>(type->bits / 8);
  words.assign((bytes + 7) / 8, 0);
  const size_t open = line.find('{');
  if (open == std::string_view::npos)
    return true;
  uint64_t at = 0;
  for (const std::string &element : split(line.substr(open + 1, line.rfind('}') - open - 1), ',')) {
    uint64_t value = 0;
    if (!number(element, value) || at + static_cast<uint64_t>(type->bits / 8) > bytes)
      return fail("an element that is not read: " + element);
    std::memcpy(reinterpret_cast<char *>(words.data()) + at, &value,
                static_cast<size_t>(type->bits / 8));
    at += static_cast<uint64_t>(type->bits / 8);
  }
  return true;
}

bool Reader::directive(std::string_view line) {
  if (line.starts_with(".version")) {
    const auto parts = split(trimmed(line.substr(8)), '.');
    module_->version_ = std::stoi(parts[0]) * 10 + std::stoi(parts[1]);
    return true;
  }
  if (line.starts_with(".target")) {
    const std::string_view name = trimmed(line.substr(7));
    module_->target_ = std::stoi(std::string(name.substr(3)));
    return true;
  }
  if (line.starts_with(".address_size") || line.starts_with(".reg"))
    return true;
  if (line.find(kSharedMemory) != std::string_view::npos)
    return line.starts_with(".extern .shared") || fail("shared memory of a size of its own");
  if (line.starts_with(".maxntid")) {
    function_->mostThreads = std::stoi(std::string(trimmed(line.substr(8))));
    return true;
  }
  if (line.starts_with(".minnctapersm")) // bounds registers
    return std::stoi(std::string(trimmed(line.substr(13)))) > 0 || fail("no block at once");
  for (const char *kind : {".global", ".const", ".visible .global", ".visible .const"})
    if (line.starts_with(kind))
      return array(line);
  return fail("a directive that is not known: " + std::string(line));
}

bool Reader::begin(std::string_view head) {
  const size_t open = head.find('('), close = head.rfind(')');
  const std::string_view before = trimmed(head.substr(0, open));
  const std::string name(before.substr(before.rfind(' ') + 1));
  function_ = &module_->functions_[name];
  *function_ = Function{.name = name, .module = module_.get()};
  registers_.clear();
  labels_.clear();
  parameters_.clear();
  branches_.clear();
  for (const std::string &parameter : split(head.substr(open + 1, close - open - 1), ',')) {
    // ".param .u64 .ptr .global .align 1 name_param_0"
    const std::string words = parameter.substr(parameter.find('.', 1));
    const std::optional<Type> type = typeOf(words.substr(1, words.find(' ') - 1));
    if (!type)
      return fail("a parameter that is not known: " + parameter);
    parameters_.emplace(parameter.substr(parameter.rfind(' ') + 1),
                        static_cast<int>(function_->parameterBytes.size()));
    function_->parameterBytes.push_back(type->bits / 8);
  }
  return true;
}

bool Reader::statement(std::string_view line) {
  Instruction instruction;
  if (line.starts_with("@")) {
    const size_t space = line.find_first_of(" \t");
    std::string_view predicate = line.substr(1, space - 1);
    instruction.negated = predicate.starts_with("!");
    instruction.predicate = registerOf(predicate.substr(instruction.negated));
    line = trimmed(line.substr(space));
  }
  const size_t space = std::min(line.size(), line.find_first_of(" \t"));
  instruction.name = line.substr(0, space);
  instruction.parts = split(instruction.name, '.');
  const auto handler = kHandlers.find(instruction.parts[0]);
  auto has = [&](std::string_view part) {
    return std::find(instruction.parts.begin(), instruction.parts.end(), part) !=
           instruction.parts.end();
  };
  const bool isLoad = instruction.parts[0] == "ld", isStore = instruction.parts[0] == "st";
  if (isLoad || isStore)
    instruction.handler = has("param")                    ? kLoadParameter
                          : has("shared")                 ? (isLoad ? kLoadShared : kStoreShared)
                          : has("global") || has("const") ? (isLoad ? kLoadGlobal : kStoreGlobal)
                                                          : -1;
  else if (handler != kHandlers.end())
    instruction.handler = handler->second;
  instruction.isWide = has("wide");
  instruction.isPacked = has("bf16x2") || has("f16x2");
  if (instruction.handler == kMultiply && has("hi"))
    instruction.handler = kMultiplyHigh;
  if (instruction.handler == kBarrier && has("warp"))
    instruction.handler = kWarpBarrier;
  bool isKnown = instruction.handler >= 0;
  for (const char *part : {"approx", "ftz", "sat", "full", "local"})
    isKnown &= !has(part);
  if (!isKnown)
    return fail("an instruction that is not known: " + instruction.name);
  std::vector<Type> types;
  for (const std::string &part : instruction.parts)
    if (const std::optional<Type> type = typeOf(part))
      types.push_back(*type);
  if (!types.empty()) {
    instruction.type = types.front();
    instruction.from = types.back();
  }
  const std::vector<std::string> operands = split(line.substr(space), ',');
  for (const std::string &text : operands) {
    if (instruction.handler == kBranch) {
      branches_.emplace_back(function_->code.size(), text);
      continue;
    }
    // "%p1|%p2": the second is of a packed number's upper half, or is not used here.
    const size_t bar = text.find('|');
    if (!operand(text.substr(0, bar), instruction.operands.emplace_back()))
      return false;
    if (bar != std::string::npos &&
        !operand(text.substr(bar + 1), instruction.operands.back().elements.emplace_back()))
      return false;
  }
  function_->code.push_back(std::move(instruction));
  return true;
}

bool Reader::finish() {
  for (const auto &[at, label] : branches_) {
    const auto found = labels_.find(label);
    if (found == labels_.end())
      return fail("a label that is not there: " + label);
    function_->code[at].target = found->second;
  }
  if (function_->code.empty() || function_->code.back().handler != kReturn)
    return fail("a function that does not end");
  function_ = nullptr;
  return true;
}

std::unique_ptr<Module> Reader::read() {
  std::string text; // without comments
  for (size_t i = 0; i < text_.size(); ++i) {
    if (text_.substr(i, 2) == "//")
      while (i < text_.size() && text_[i] != '\n')
        ++i;
    if (i < text_.size())
      text += text_[i];
  }
  size_t at = 0;
  auto until = [&](std::string_view ends) {
    const size_t end = text.find_first_of(ends, at);
    const std::string_view part =
        std::string_view(text).substr(at, end == std::string::npos ? std::string::npos : end - at);
    at = end == std::string::npos ? text.size() : end;
    return trimmed(part);
  };
  bool inBody = false;
  int scopes = 0;
  while (error_.empty()) {
    while (at < text.size() && std::isspace(static_cast<unsigned char>(text[at])))
      ++at;
    if (at >= text.size())
      break;
    if (!inBody) {
      const std::string_view rest = std::string_view(text).substr(at);
      const std::string_view line = rest.substr(0, rest.find('\n'));
      if (line.find(".entry") != std::string_view::npos) {
        const std::string_view head = until(")");
        ++at;
        begin(std::string(head) + ")");
      } else if (line.starts_with("{")) {
        ++at;
        inBody = true;
      } else if (line.find(';') != std::string_view::npos ||
                 (line.starts_with(".") && line.find('[') != std::string_view::npos)) {
        const std::string_view variable = until(";");
        ++at;
        directive(variable);
      } else {
        directive(until("\n"));
      }
      continue;
    }
    if (text[at] == '{' || (text[at] == '}' && scopes > 0)) { // of names
      scopes += text[at++] == '{' ? 1 : -1;
      continue;
    }
    if (text[at] == '}') {
      ++at;
      inBody = false;
      finish();
      continue;
    }
    const size_t end = text.find_first_of(";:", at);
    if (end != std::string::npos && text[end] == ':' &&
        (end + 1 >= text.size() || text[end + 1] != ':')) {
      labels_.emplace(std::string(trimmed(std::string_view(text).substr(at, end - at))),
                      static_cast<int>(function_->code.size()));
      at = end + 1;
      continue;
    }
    const std::string_view line = until(";");
    ++at;
    if (line.starts_with("."))
      directive(line);
    else
      statement(line);
  }
  if (inBody)
    fail("a function that does not end");
  return error_.empty() ? std::move(module_) : nullptr;
}

std::unique_ptr<Module> Module::read(std::string_view text, std::string &error) {
  return Reader(text, error).read();
}

} // namespace ptx
