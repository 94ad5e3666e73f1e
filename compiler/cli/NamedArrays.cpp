#include "compiler/cli/NamedArrays.h"

#include "compiler/cli/MatchShapes.h"
#include "compiler/spec/Initialize.h"
#include "compiler/spec/Npy.h"
#include "runtime/kernel/ForeignNames.h"

#include "llvm/ADT/STLExtras.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge::cli {

namespace {

/// How NumPy makes the one dtype of the other.
std::string conversion(DType wanted, DType found) {
  if (wanted == DType::F32 && found == DType::F64)
    return "; save it with .astype(\"float32\"), or write 'dtype: f64' in the spec";
  if (wanted == DType::F64)
    return "; save it with .astype(\"float64\")";
  if (wanted == DType::F32)
    return "; save it with .astype(\"float32\")";
  return "";
}

} // namespace

llvm::Expected<HostArray> readArray(const Operand &argument, const std::string &path) {
  auto array = readNpy(path);
  if (!array)
    return located(array.takeError());
  if (array->dtype != argument.dtype)
    return located(llvm::createStringError(
        fmt::format("{}: error: argument {} takes {}, found {}{}", path, argument.name,
                    toString(argument.dtype), toString(array->dtype),
                    conversion(argument.dtype, array->dtype))));
  return array;
}

std::string NamedArrays::subject() const {
  return fmt::format("phase {} of {}", toString(op_.phase), path_);
}

std::string NamedArrays::reads() const {
  std::vector<std::string> arrays;
  for (const Operand &argument : op_.operands)
    if (!argument.written)
      arrays.push_back(argument.name);
  std::string text = fmt::format("it reads the arrays {}", fmt::join(arrays, ", "));
  if (!op_.scalars.empty())
    text += fmt::format(" and the numbers {}", fmt::join(op_.scalarNames(), ", "));
  return text;
}

std::string NamedArrays::writes() const {
  std::vector<std::string> arrays;
  for (const Operand &argument : op_.operands)
    if (argument.written)
      arrays.push_back(argument.name);
  return fmt::format("it writes {}", fmt::join(arrays, ", "));
}

/// Why a name is none of the arguments, where that can be said: ", here 'gamma'" of what a
/// framework calls otherwise.
std::string NamedArrays::ours(const std::string &theirs) const {
  if (op_.phase == Phase::Inference && llvm::is_contained(foldedNames(spec_), theirs))
    return fmt::format(", whose values ({}) are in the kernel", initialOf(spec_, theirs)->key);
  const std::string_view own = ownName(theirs, [&](std::string_view name) {
    return isScalar(std::string(name)) || op_.operand(name, false) >= 0;
  });
  return own.empty() ? "" : fmt::format(", here '{}'", own);
}

bool NamedArrays::isScalar(const std::string &name) const {
  return llvm::is_contained(op_.scalarNames(), name);
}

llvm::Error NamedArrays::take(const std::vector<std::string> &words,
                              std::map<std::string, std::string> *results) {
  for (const std::string &word : words) {
    auto pair = parseNamedText(word, "FILE.npy or NAME=NUMBER");
    if (!pair)
      return pair.takeError();
    auto &[name, text] = *pair;
    const bool isNew = llvm::StringRef(name).starts_with("new.");
    const std::string own = isNew ? name.substr(4) : name;
    const bool isInput = !isNew && (isScalar(name) || op_.operand(name, false) >= 0);
    const bool isResult = results && !isInput && op_.operand(own, true) >= 0 &&
                          (isNew == (op_.operand(own, false) >= 0));
    if (!isInput && !isResult)
      return badInput(fmt::format("{} takes no '{}'{}; {}{}", subject(), name, ours(name), reads(),
                                  results ? ", and " + writes() : ""));
    if (!(isInput ? inputs_ : *results).emplace(own, text).second)
      return badInput(fmt::format("argument {} is given twice", name));
  }
  std::vector<std::string> missing;
  for (const Operand &argument : op_.operands)
    if (!argument.written && !inputs_.contains(argument.name))
      missing.push_back(argument.name);
  for (const std::string &scalar : op_.scalarNames())
    if (!inputs_.contains(scalar))
      missing.push_back(scalar);
  if (!missing.empty())
    return badInput(fmt::format("{} needs {}, which {} not given; {}", subject(),
                                fmt::join(missing, ", "), missing.size() == 1 ? "is" : "are",
                                reads()));
  return llvm::Error::success();
}

llvm::Error NamedArrays::read() {
  for (const std::string &name : op_.scalarNames()) {
    const std::string &text = inputs_.at(name);
    double value;
    if (llvm::StringRef(text).getAsDouble(value))
      return badInput(fmt::format("{}: expected a number, found '{}'", name, text));
    scalars_.push_back(value);
  }
  for (const Operand &argument : op_.operands) {
    if (argument.written)
      continue;
    auto array = readArray(argument, inputs_.at(argument.name));
    if (!array)
      return array.takeError();
    arrays_.emplace(argument.name, std::move(*array));
  }
  return llvm::Error::success();
}

llvm::Expected<std::vector<int64_t>> NamedArrays::sizes(const NamedSizes &given) const {
  std::vector<GivenShape> shapes;
  for (const Operand &argument : op_.operands)
    if (!argument.written)
      shapes.push_back({&argument, inputs_.at(argument.name), arrays_.at(argument.name).shape});
  return matchShapes(op_.sizes, given, shapes);
}

} // namespace normforge::cli
