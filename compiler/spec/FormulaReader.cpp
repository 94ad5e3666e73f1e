#include "compiler/spec/FormulaReader.h"

#include "compiler/spec/Values.h"

#include <cmath>

namespace normforge::spec {
namespace {

/// Each with the number of its arguments.
struct Function {
  std::string_view name;
  unsigned arguments;
};
constexpr Function kFunctions[] = {{"where", 3}, {"abs", 1},     {"min", 2},      {"max", 2},
                                   {"sqrt", 1},  {"exp", 1},     {"log", 1},      {"erf", 1},
                                   {"tanh", 1},  {"sigmoid", 1}, {"softplus", 1}, {"relu", 1},
                                   {"floor", 1}, {"round", 1}};
/// Deeper than this no one writes; every level is one of the stack.
constexpr int kMostDepth = 64;
constexpr size_t kMostCharacters = 2000;

bool isLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool isDigit(char c) { return c >= '0' && c <= '9'; }

/// By recursive descent; a sum of products of factors.
class Reader {
public:
  Reader(std::string_view text, size_t offset, std::span<const std::string> operands,
         std::span<const std::string> scalars, Diagnostics &diagnostics)
      : text_(text), offset_(offset), operands_(operands), scalars_(scalars),
        diagnostics_(diagnostics) {}

  std::shared_ptr<const Formula> read() {
    auto formula = std::make_shared<Formula>();
    if (text_.size() > kMostCharacters) {
      fail(0, fmt::format("an expression of {} characters; expected at most {}", text_.size(),
                          kMostCharacters));
      return nullptr;
    }
    if (!readSum(*formula))
      return nullptr;
    if (peek() != '\0') {
      fail(at_, fmt::format("expected an operator or the end of the expression, found {}",
                            quoted(text_.substr(at_, 1))));
      return nullptr;
    }
    return formula;
  }

private:
  bool fail(size_t at, std::string message) {
    diagnostics_.error(offset_ + std::min(at, text_.size()), std::move(message));
    return false;
  }
  char peek() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n'))
      ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (peek() != c)
      return false;
    ++at_;
    return true;
  }
  std::string found() {
    return peek() == '\0' ? std::string("the end") : quoted(text_.substr(at_, 1));
  }
  static Formula callOf(std::string name, std::vector<Formula> arguments) {
    return {Formula::Kind::Call, 0, 0, std::move(name), std::move(arguments)};
  }

  bool readChain(Formula &formula, std::string_view operators, bool (Reader::*part)(Formula &)) {
    if (!(this->*part)(formula))
      return false;
    while (peek() != '\0' && operators.find(peek()) != std::string_view::npos) {
      const std::string op(1, text_[at_++]);
      Formula right;
      if (!(this->*part)(right))
        return false;
      formula = callOf(op, {std::move(formula), std::move(right)});
    }
    return true;
  }
  bool readSum(Formula &formula) { return readChain(formula, "+-", &Reader::readProduct); }
  bool readProduct(Formula &formula) { return readChain(formula, "*/", &Reader::readFactor); }

  bool readFactor(Formula &formula) {
    struct Level {
      int &depth;
      explicit Level(int &d) : depth(d) { ++depth; }
      ~Level() { --depth; }
    } level(depth_);
    const char next = peek();
    const size_t begin = at_;
    if (depth_ > kMostDepth)
      return fail(begin, fmt::format("more than {} levels of an expression", kMostDepth));
    if (take('-')) {
      Formula of;
      if (!readFactor(of))
        return false;
      formula = callOf("neg", {std::move(of)});
      return true;
    }
    if (take('(')) {
      if (!readSum(formula))
        return false;
      return take(')') || fail(at_, fmt::format("expected ')', found {}", found()));
    }
    if (isDigit(next) || next == '.')
      return readNumber(formula);
    if (isLetter(next))
      return readName(formula);
    return fail(begin, fmt::format("expected a number, a name or '(', found {}", found()));
  }

  bool readNumber(Formula &formula) {
    const size_t begin = at_;
    while (at_ < text_.size() &&
           (isDigit(text_[at_]) || isLetter(text_[at_]) || text_[at_] == '.' ||
            ((text_[at_] == '+' || text_[at_] == '-') &&
             (text_[at_ - 1] == 'e' || text_[at_ - 1] == 'E'))))
      ++at_;
    const std::string_view word = text_.substr(begin, at_ - begin);
    Value value;
    value.kind = Value::Kind::Scalar;
    value.text = word;
    value.plain = true;
    const std::optional<double> number = asNumber(value);
    // A number that f32 cannot hold would be another one.
    if (!number || !std::isfinite(static_cast<float>(*number)))
      return fail(begin, fmt::format("expected a number, found {}", quoted(word)));
    formula.kind = Formula::Kind::Number;
    formula.number = *number;
    return true;
  }

  bool readName(Formula &formula) {
    const size_t begin = at_;
    while (at_ < text_.size() && (isLetter(text_[at_]) || isDigit(text_[at_])))
      ++at_;
    const std::string name(text_.substr(begin, at_ - begin));
    if (peek() == '(')
      return readCall(formula, name, begin);
    std::vector<std::string_view> known;
    for (size_t i = 0; i < operands_.size(); ++i) {
      known.push_back(operands_[i]);
      if (operands_[i] == name) {
        formula.kind = Formula::Kind::Operand;
        formula.index = i;
        return true;
      }
    }
    for (size_t i = 0; i < scalars_.size(); ++i) {
      known.push_back(scalars_[i]);
      if (scalars_[i] == name) {
        formula.kind = Formula::Kind::Scalar;
        formula.index = i;
        return true;
      }
    }
    return fail(begin, fmt::format("unknown name {}; expected {}", quoted(name), listed(known)));
  }

  bool readCall(Formula &formula, const std::string &name, size_t begin) {
    const Function *function = nullptr;
    std::vector<std::string_view> names;
    for (const Function &one : kFunctions) {
      names.push_back(one.name);
      if (one.name == name)
        function = &one;
    }
    if (!function) {
      const auto near = nearest(name, names);
      return fail(begin, fmt::format("unknown function {}; {}", quoted(name),
                                     near ? fmt::format("did you mean '{}'?", *near)
                                          : "expected " + listed(names)));
    }
    take('(');
    formula = callOf(name, {});
    do {
      Formula argument;
      if (!readSum(argument) || !readComparison(argument, name, formula.arguments.size()))
        return false;
      formula.arguments.push_back(std::move(argument));
    } while (take(','));
    if (!take(')'))
      return fail(at_, fmt::format("expected ',' or ')', found {}", found()));
    if (formula.arguments.size() != function->arguments)
      return fail(begin, fmt::format("{} has {} arguments; expected {}", name,
                                     formula.arguments.size(), function->arguments));
    return true;
  }

  /// Reads the rest of `where` behind its first argument.
  bool readComparison(Formula &left, const std::string &function, size_t argument) {
    const char next = peek();
    const bool compares = next == '<' || next == '>';
    const bool isCondition = function == "where" && argument == 0;
    if (!compares)
      return !isCondition ||
             fail(at_, fmt::format("expected a comparison (<, <=, >, >=), found {}", found()));
    if (!isCondition)
      return fail(at_, "a comparison belongs into where(comparison, value, value)");
    std::string op(1, text_[at_++]);
    if (at_ < text_.size() && text_[at_] == '=')
      op += text_[at_++];
    Formula right;
    if (!readSum(right))
      return false;
    left = callOf(op, {std::move(left), std::move(right)});
    return true;
  }

  std::string_view text_;
  size_t offset_;
  std::span<const std::string> operands_, scalars_;
  Diagnostics &diagnostics_;
  size_t at_ = 0;
  int depth_ = 0;
};

} // namespace

std::shared_ptr<const Formula> readFormula(std::string_view text, size_t offset,
                                           std::span<const std::string> operands,
                                           std::span<const std::string> scalars,
                                           Diagnostics &diagnostics) {
  return Reader(text, offset, operands, scalars, diagnostics).read();
}

} // namespace normforge::spec
