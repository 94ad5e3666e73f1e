#include "compiler/cli/MatchShapes.h"

#include "llvm/ADT/ArrayRef.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge::cli {

namespace {

class Matcher {
public:
  Matcher(const std::vector<std::string> &names, const NamedSizes &given)
      : names_(names), values_(names.size()), sources_(names.size()) {
    for (size_t i = 0; i < names.size(); ++i)
      if (const auto found = given.find(names[i]); found != given.end()) {
        values_[i] = found->second;
        sources_[i] = "--size";
      }
  }

  /// Takes sizes from an array whose every axis is its argument's: numbers agree, and the rank.
  llvm::Expected<bool> matchExactly(const GivenShape &array) {
    const auto &expected = array.argument->shape;
    if (expected.size() != array.shape.size())
      return false;
    for (size_t i = 0; i < expected.size(); ++i)
      if (const auto value = expected[i].constant(); value && *value != array.shape[i])
        return false;
    for (size_t i = 0; i < expected.size(); ++i)
      if (const auto name = expected[i].name())
        if (llvm::Error error = bind(*name, array.shape[i], array))
          return error;
    return true;
  }

  /// Takes sizes from an array without its axes of size 1. Where they are one to one with the
  /// argument's axes that are not known to be 1, in order, those take them; where all axes of
  /// unknown size are too many, they are 1.
  llvm::Error matchLoosely(const GivenShape &array) {
    if (isFlatBits(array))
      return llvm::Error::success();
    std::vector<int64_t> found;
    for (int64_t size : array.shape)
      if (size != 1)
        found.push_back(size);
    std::vector<const SizeExpr *> expected;
    size_t unknown = 0;
    for (const SizeExpr &size : array.argument->shape) {
      const std::optional<int64_t> value = evaluate(size);
      if (value == 1)
        continue;
      expected.push_back(&size);
      unknown += !value && size.name();
    }
    const bool all = found.size() == expected.size();
    if (!all && found.size() + unknown != expected.size())
      return llvm::Error::success(); // what does not fit is an error of finish()
    // The axes of known size tell whether the array fits at all.
    std::vector<std::pair<size_t, int64_t>> taken;
    size_t next = 0;
    for (const SizeExpr *size : expected) {
      const auto name = size->name();
      const std::optional<int64_t> value = evaluate(*size);
      const bool isUnknown = name && !value;
      if (value && found[next] != *value)
        return llvm::Error::success();
      if (isUnknown)
        taken.emplace_back(*name, all ? found[next] : 1);
      next += all || !isUnknown;
    }
    for (auto [name, value] : taken)
      if (llvm::Error error = bind(name, value, array))
        return error;
    return llvm::Error::success();
  }

  /// All sizes, after a check of every array against its argument's shape.
  llvm::Expected<std::vector<int64_t>> finish(const std::vector<GivenShape> &arrays) {
    for (const GivenShape &array : arrays)
      if (llvm::Error error = check(array))
        return error;
    std::vector<int64_t> sizes;
    std::vector<std::string> missing;
    for (size_t i = 0; i < names_.size(); ++i) {
      if (!values_[i])
        missing.push_back(names_[i]);
      sizes.push_back(values_[i].value_or(0));
    }
    if (!missing.empty())
      return badInput(
          fmt::format("the arrays do not tell the size {}; give it with --size {}=VALUE",
                      fmt::join(missing, ", "), missing.front()));
    return sizes;
  }

private:
  /// Bits as one run of bytes, as Python's kernels write them.
  static bool isFlatBits(const GivenShape &array) {
    return array.argument->dtype == DType::Bit && array.shape.size() == 1 &&
           array.argument->shape.size() > 1;
  }

  std::optional<int64_t> evaluate(const SizeExpr &expression) const {
    std::vector<int64_t> values;
    for (const SizeExpr::Node &node : expression.nodes())
      if (node.op == SizeExpr::Op::Size && !values_[static_cast<size_t>(node.value)])
        return std::nullopt;
    for (const auto &value : values_)
      values.push_back(value.value_or(0));
    return expression.evaluate(values);
  }

  llvm::Error bind(size_t name, int64_t value, const GivenShape &array) {
    const std::string source =
        fmt::format("{} ({} of shape {})", array.argument->name, array.path, describe(array.shape));
    if (values_[name] && *values_[name] != value)
      return badInput(fmt::format("size {} is {} by {} and {} by {}", names_[name], *values_[name],
                                  sources_[name], value, source));
    if (!values_[name]) {
      values_[name] = value;
      sources_[name] = source;
    }
    return llvm::Error::success();
  }

  /// Whether an array without its axes of size 1 can have this shape: an axis of unknown size may
  /// have any.
  bool fits(llvm::ArrayRef<SizeExpr> expected, llvm::ArrayRef<int64_t> found) const {
    if (expected.empty())
      return found.empty();
    const std::optional<int64_t> value = evaluate(expected.front());
    const bool takes = !found.empty() && (!value || *value == found.front());
    const bool isOne = !value || *value == 1;
    return (takes && fits(expected.drop_front(), found.drop_front())) ||
           (isOne && fits(expected.drop_front(), found));
  }

  /// The array's shape is the argument's, axes of size 1 apart. finish() reports sizes that are
  /// unknown when nothing else is wrong.
  llvm::Error check(const GivenShape &array) const {
    std::vector<int64_t> expected, found;
    std::vector<std::string> texts;
    bool isKnown = true;
    for (const SizeExpr &size : array.argument->shape) {
      const std::optional<int64_t> value = evaluate(size);
      isKnown &= value.has_value();
      texts.push_back(value ? std::to_string(*value) : size.text(names_));
      if (value && *value != 1)
        expected.push_back(*value);
    }
    for (int64_t size : array.shape)
      if (size != 1)
        found.push_back(size);
    if (isFlatBits(array) && isKnown) {
      int64_t count = 1;
      for (int64_t size : expected)
        count *= size;
      expected = {count};
    }
    const bool wrong = isKnown ? expected != found : !fits(array.argument->shape, found);
    if (!wrong)
      return llvm::Error::success();
    const std::string general = describe(array.argument->shape, names_);
    const std::string known = fmt::format("({})", fmt::join(texts, ", "));
    return located(llvm::createStringError(fmt::format(
        "{}: error: argument {} takes shape {}{}, found {}", array.path, array.argument->name,
        known, known == general ? "" : fmt::format(", which is {}", general),
        describe(array.shape))));
  }

  const std::vector<std::string> &names_;
  std::vector<std::optional<int64_t>> values_;
  std::vector<std::string> sources_; ///< what a size was taken from
};

} // namespace

llvm::Expected<std::vector<int64_t>> matchShapes(const std::vector<std::string> &names,
                                                 const NamedSizes &given,
                                                 const std::vector<GivenShape> &arrays) {
  Matcher matcher(names, given);
  std::vector<const GivenShape *> others;
  for (const GivenShape &array : arrays) {
    auto matched = matcher.matchExactly(array);
    if (!matched)
      return matched.takeError();
    if (!*matched)
      others.push_back(&array);
  }
  for (const GivenShape *array : others)
    if (llvm::Error error = matcher.matchLoosely(*array))
      return error;
  return matcher.finish(arrays);
}

} // namespace normforge::cli
