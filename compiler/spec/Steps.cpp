// Keys `prologue` and `fuse`: add, relu, {leaky_relu: 0.1}, {add: [n, c]}, {expr: "x * x"} ...
#include "compiler/spec/Parser.h"

#include "compiler/expr/Functions.h"
#include "compiler/spec/FormulaReader.h"
#include "compiler/spec/Values.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

namespace normforge::spec {
namespace {

constexpr Alias aliases[] = {
    {"sum", "add"},        {"plus", "add"},    {"residual", "add"},        {"addend", "add"},
    {"swish", "silu"},     {"ReLU6", "relu6"}, {"multiply", "mul"},        {"factor", "mul"},
    {"hardtanh", "clamp"}, {"clip", "clamp"},  {"LeakyReLU", "leaky_relu"}};
constexpr std::string_view operandKeys[] = {"axes", "name", "store"};
constexpr std::string_view expressionKeys[] = {"expr", "operands", "scalars"};
/// Arguments that specs have anyway.
constexpr std::string_view ownNames[] = {"x",
                                         "y",
                                         "dx",
                                         "dy",
                                         "gamma",
                                         "beta",
                                         "dgamma",
                                         "dbeta",
                                         "batch_mean",
                                         "batch_variance",
                                         "moving_mean",
                                         "moving_variance",
                                         "moving_stddev",
                                         "renorm_mean",
                                         "renorm_stddev",
                                         "renorm_r",
                                         "renorm_d",
                                         "adjust_scale",
                                         "adjust_bias",
                                         "mask",
                                         "relu_mask",
                                         "minimum",
                                         "maximum",
                                         "population_count",
                                         "population_mean",
                                         "population_m2",
                                         "partial_count",
                                         "partial_mean",
                                         "partial_residual",
                                         "partial_squares",
                                         "partial_gradient",
                                         "partial_product",
                                         "batch_residual",
                                         "batch_count",
                                         "gamma_momentum",
                                         "gamma_mean_gradient",
                                         "gamma_mean_square",
                                         "gamma_max_square",
                                         "beta_momentum",
                                         "beta_mean_gradient",
                                         "beta_mean_square",
                                         "beta_max_square",
                                         "penalty",
                                         "epsilon",
                                         "momentum",
                                         "count",
                                         "learning_rate",
                                         "step"};

/// Keywords of C and C++, and what functions of generated headers call what is theirs.
constexpr std::string_view wordsOfC[] = {"alignas",
                                         "alignof",
                                         "and",
                                         "and_eq",
                                         "asm",
                                         "auto",
                                         "bitand",
                                         "bitor",
                                         "bool",
                                         "break",
                                         "case",
                                         "catch",
                                         "char",
                                         "class",
                                         "compl",
                                         "concept",
                                         "const",
                                         "const_cast",
                                         "consteval",
                                         "constexpr",
                                         "constinit",
                                         "continue",
                                         "decltype",
                                         "default",
                                         "delete",
                                         "do",
                                         "double",
                                         "dynamic_cast",
                                         "else",
                                         "enum",
                                         "explicit",
                                         "export",
                                         "extern",
                                         "false",
                                         "float",
                                         "for",
                                         "friend",
                                         "goto",
                                         "if",
                                         "inline",
                                         "int",
                                         "long",
                                         "mutable",
                                         "namespace",
                                         "new",
                                         "noexcept",
                                         "not",
                                         "not_eq",
                                         "nullptr",
                                         "operator",
                                         "or",
                                         "or_eq",
                                         "private",
                                         "protected",
                                         "public",
                                         "register",
                                         "reinterpret_cast",
                                         "requires",
                                         "restrict",
                                         "return",
                                         "short",
                                         "signed",
                                         "sizeof",
                                         "static",
                                         "static_assert",
                                         "static_cast",
                                         "struct",
                                         "switch",
                                         "template",
                                         "this",
                                         "thread_local",
                                         "throw",
                                         "true",
                                         "try",
                                         "typedef",
                                         "typeid",
                                         "typename",
                                         "typeof",
                                         "union",
                                         "unsigned",
                                         "using",
                                         "virtual",
                                         "void",
                                         "volatile",
                                         "wchar_t",
                                         "while",
                                         "xor",
                                         "xor_eq",
                                         "args",
                                         "call",
                                         "scalars",
                                         "sizes",
                                         "stage",
                                         "workspace"};

/// The numbers after a function's name, or nothing where they are not as it takes them.
std::optional<std::vector<double>> readParameters(const Function &function, const Value *value) {
  std::vector<double> numbers;
  auto take = [&](const Value &one) {
    const std::optional<double> number = asNumber(one);
    // A number that f32 cannot hold would make another function.
    const bool isNumber = number && std::isfinite(static_cast<float>(*number));
    if (isNumber)
      numbers.push_back(*number);
    return isNumber;
  };
  if (function.parameters == 0)
    return value ? std::nullopt : std::optional(numbers);
  if (!value)
    return std::nullopt;
  if (function.parameters == 1)
    return take(*value) ? std::optional(numbers) : std::nullopt;
  if (!value->isList() || value->items.size() != function.parameters)
    return std::nullopt;
  for (const Value &item : value->items)
    if (!take(item))
      return std::nullopt;
  return numbers[0] <= numbers[1] ? std::optional(numbers) : std::nullopt;
}

} // namespace

/// Whether a formula has this operand or scalar in it.
static bool reads(const Formula &formula, Formula::Kind kind, size_t index) {
  return (formula.kind == kind && formula.index == index) ||
         std::ranges::any_of(formula.arguments,
                             [&](const Formula &of) { return reads(of, kind, index); });
}

/// Reads the two lists; the names of arguments are unique over both.
class StepReader {
public:
  StepReader(Parser &parser, bool isPrologue, std::set<std::string> &names)
      : parser_(parser), spec_(parser.spec_), diagnostics_(parser.diagnostics_),
        isPrologue_(isPrologue), names_(names) {}

  std::vector<FuseStep> read(const Value &list);

private:
  std::optional<FuseStep> readStep(const Value &item);
  std::optional<FuseStep> readOperandStep(std::string_view step, const Value *details);
  std::optional<FuseStep> readExpression(const Value &item);
  bool readAxes(const Value &value, StepOperand &operand);
  /// A name that no argument has yet.
  bool takeName(const Value &value, std::string &name);
  std::string usualName(std::string_view step);

  Parser &parser_;
  Spec &spec_;
  Diagnostics &diagnostics_;
  const bool isPrologue_;
  std::set<std::string> &names_;
};

bool StepReader::readAxes(const Value &value, StepOperand &operand) {
  if (!value.isList() || value.items.empty()) {
    diagnostics_.error(value.offset, fmt::format("axes must be a list such as [n, c]; found {}",
                                                 value.isList() ? "an empty one" : found(value)));
    return false;
  }
  operand.axes.clear();
  for (const Value &item : value.items) {
    const std::optional<int> axis = parser_.readOneAxis(item);
    if (!axis)
      return false;
    if (std::ranges::find(operand.axes, *axis) != operand.axes.end()) {
      diagnostics_.error(item.offset, fmt::format("axis {} is listed twice", found(item)));
      return false;
    }
    operand.axes.push_back(*axis);
  }
  std::sort(operand.axes.begin(), operand.axes.end());
  operand.whole = static_cast<int>(operand.axes.size()) == spec_.rank();
  return true;
}

bool StepReader::takeName(const Value &value, std::string &name) {
  const std::optional<std::string_view> word = asWord(value);
  if (!word || !isIdentifier(*word) || word->size() > maxName) {
    diagnostics_.error(value.offset,
                       fmt::format("an argument's name is a C identifier; found {}", found(value)));
    return false;
  }
  name = *word;
  for (const std::string &own : {name, "d" + name}) // its gradient is an argument, too
    if (std::ranges::find(wordsOfC, own) != std::end(wordsOfC)) {
      diagnostics_.error(value.offset,
                         fmt::format("{} cannot name an argument: C headers have {} as a word",
                                     quoted(name), quoted(own)));
      return false;
    }
  const bool isOwn = std::ranges::find(ownNames, name) != std::end(ownNames);
  if (isOwn || !names_.insert(name).second || !names_.insert("d" + name).second) {
    diagnostics_.error(value.offset, fmt::format("{} is an argument already", quoted(name)));
    return false;
  }
  return true;
}

std::string StepReader::usualName(std::string_view step) {
  const std::string first = step == "bias"  ? "bias"
                            : step == "mul" ? (isPrologue_ ? "prescale" : "factor")
                            : isPrologue_   ? "residual"
                                            : "addend";
  std::string name = first;
  for (int i = 2; names_.contains(name) || names_.contains("d" + name); ++i)
    name = fmt::format("{}_{}", first, i);
  names_.insert(name);
  names_.insert("d" + name);
  return name;
}

std::optional<FuseStep> StepReader::readOperandStep(std::string_view step, const Value *details) {
  FuseStep result{std::string(step)};
  StepOperand operand;
  for (int i = 0; i < spec_.rank(); ++i)
    operand.axes.push_back(i);
  if (step == "bias") {
    operand.axes = spec_.axes;
    operand.whole = false;
    if (details && !isNull(*details)) {
      diagnostics_.error(details->offset, "'bias' takes no parameter");
      return std::nullopt;
    }
  } else if (details && details->isList()) {
    if (!readAxes(*details, operand))
      return std::nullopt;
  } else if (details && details->isMapping()) {
    Keys keys(*details, step, operandKeys, diagnostics_);
    if (const Entry *axes = keys.find("axes"); axes && !readAxes(axes->value, operand))
      return std::nullopt;
    if (const Entry *own = keys.find("name"); own && !takeName(own->value, operand.name))
      return std::nullopt;
    if (const Entry *store = keys.find("store")) {
      if (!isPrologue_ || step != "add") {
        diagnostics_.error(store->offset, "'store' belongs to an add of the prologue");
        return std::nullopt;
      }
      if (!takeName(store->value, result.store))
        return std::nullopt;
    }
  } else if (details && !isNull(*details)) {
    diagnostics_.error(details->offset,
                       fmt::format("'{}' is written as '{}', '{}: [n, c]' or '{}: {{axes: [n, c], "
                                   "name: skip}}'; found {}",
                                   step, step, step, step, found(*details)));
    return std::nullopt;
  }
  if (operand.name.empty())
    operand.name = usualName(step);
  result.operands.push_back(std::move(operand));
  return result;
}

std::optional<FuseStep> StepReader::readExpression(const Value &item) {
  Keys keys(item, isPrologue_ ? "prologue" : "fuse", expressionKeys, diagnostics_);
  FuseStep step{"expr"};
  std::vector<std::string> operands{"x"};
  bool right = true;
  if (const Entry *entry = keys.find("operands")) {
    if (!entry->value.isMapping()) {
      diagnostics_.error(entry->value.offset,
                         fmt::format("operands must be a mapping such as {{s: [n, c], t: x}}; "
                                     "found {}",
                                     found(entry->value)));
      return std::nullopt;
    }
    for (const Entry &one : entry->value.entries) {
      StepOperand operand;
      Value name{Value::Kind::Scalar, one.offset, one.key, true, {}, {}};
      right &= takeName(name, operand.name);
      for (int i = 0; i < spec_.rank(); ++i)
        operand.axes.push_back(i);
      if (!(one.value.isScalar() && one.value.text == "x"))
        right &= readAxes(one.value, operand);
      operands.push_back(operand.name);
      step.operands.push_back(std::move(operand));
    }
  }
  if (const Entry *entry = keys.find("scalars")) {
    if (!entry->value.isList()) {
      diagnostics_.error(entry->value.offset, fmt::format("scalars must be a list of names; found "
                                                          "{}",
                                                          found(entry->value)));
      return std::nullopt;
    }
    for (const Value &one : entry->value.items) {
      std::string name;
      right &= takeName(one, name);
      step.scalars.push_back(name);
    }
  }
  const Value &text = keys.find("expr")->value;
  if (!text.isScalar()) {
    diagnostics_.error(text.offset, fmt::format("expr must be a text such as \"x * sigmoid(x)\"; "
                                                "found {}",
                                                found(text)));
    return std::nullopt;
  }
  if (!right)
    return std::nullopt;
  step.expression = text.text;
  // Where quotes begin, the text is a byte further.
  step.formula =
      readFormula(text.text, text.offset + !text.plain, operands, step.scalars, diagnostics_);
  if (!step.formula)
    return std::nullopt;
  for (size_t i = 1; i < operands.size(); ++i) // the first is x
    if (!reads(*step.formula, Formula::Kind::Operand, i))
      diagnostics_.error(text.offset, fmt::format("{} is in 'operands', and not in the expression",
                                                  quoted(operands[i])));
  for (size_t i = 0; i < step.scalars.size(); ++i)
    if (!reads(*step.formula, Formula::Kind::Scalar, i))
      diagnostics_.error(text.offset, fmt::format("{} is in 'scalars', and not in the expression",
                                                  quoted(step.scalars[i])));
  return step;
}

std::optional<FuseStep> StepReader::readStep(const Value &item) {
  const std::string what = isPrologue_ ? "step of prologue" : "step of fuse";
  if (item.isMapping())
    for (const Entry &entry : item.entries)
      if (entry.key == "expr")
        return readExpression(item);
  Value name = item; // a step with parameters is a mapping of one key
  const Value *parameters = nullptr;
  if (item.isMapping() && item.entries.size() == 1) {
    name = Value{Value::Kind::Scalar, item.entries[0].offset, item.entries[0].key, true, {}, {}};
    parameters = &item.entries[0].value;
  }
  std::vector<Choice> choices{{"add"}, {"mul"}};
  if (isPrologue_)
    choices.insert(choices.begin(), {"bias"});
  choices.push_back({"expr"});
  for (const Function &function : functions())
    choices.push_back({function.name});
  const std::optional<size_t> index = choose(name, what, choices, diagnostics_, aliases);
  if (!index)
    return std::nullopt;
  const std::string_view step = choices[*index].name;
  if (step == "expr") {
    diagnostics_.error(name.offset, "'expr' is written as 'expr: \"x * sigmoid(x)\"'");
    return std::nullopt;
  }
  const Function *function = findFunction(step);
  if (!function)
    return readOperandStep(step, parameters);
  auto numbers = readParameters(*function, parameters);
  if (!numbers) {
    diagnostics_.error(parameters && !isNull(*parameters) ? parameters->offset : name.offset,
                       function->parameters == 0
                           ? fmt::format("'{}' takes no parameter", step)
                           : fmt::format("'{}' is written as '{}'", step, function->example));
    return std::nullopt;
  }
  FuseStep result{std::string(step)};
  result.parameters = std::move(*numbers);
  return result;
}

std::vector<FuseStep> StepReader::read(const Value &list) {
  const char *what = isPrologue_ ? "prologue" : "fuse";
  std::vector<FuseStep> steps;
  if (!list.isList()) {
    diagnostics_.error(list.offset, fmt::format("{} must be a list such as [{}]; found {}", what,
                                                isPrologue_ ? "bias" : "add, relu", found(list)));
    return steps;
  }
  constexpr size_t maxSteps = 32; // each is code in every loop of a kernel
  if (list.items.size() > maxSteps) {
    diagnostics_.error(list.offset, fmt::format("{} has {} steps; expected at most {}", what,
                                                list.items.size(), maxSteps));
    return steps;
  }
  bool follows = false; // the last of `steps`: none was refused between them
  for (const Value &item : list.items) {
    std::optional<FuseStep> step = readStep(item);
    const bool isNext = std::exchange(follows, step.has_value());
    if (!step)
      continue;
    if (isNext && step->name == "relu" && steps.back().name == "relu") {
      diagnostics_.error(item.offset,
                         fmt::format("{} has 'relu' after 'relu', which leaves it as it is", what));
      continue;
    }
    steps.push_back(std::move(*step));
  }
  return steps;
}

void Parser::readSteps() {
  std::set<std::string> names;
  if (const Entry *entry = keys_.find("prologue"))
    spec_.prologue = StepReader(*this, /*isPrologue=*/true, names).read(entry->value);
  if (const Entry *entry = keys_.find("fuse"))
    spec_.fuse = StepReader(*this, /*isPrologue=*/false, names).read(entry->value);
}

} // namespace normforge::spec
