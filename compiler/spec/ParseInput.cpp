// Keys `input` and `output`: shape, layout, dtype.
#include "compiler/spec/Parser.h"

#include "compiler/spec/Layout.h"
#include "compiler/spec/Unbuilt.h"
#include "compiler/spec/Values.h"

#include <algorithm>

namespace normforge::spec {

namespace {

constexpr Choice dtypeNames[] = {{"f32"}, {"f64"}, {"bf16"}, {"f16"}, {"s8", false}, {"u8", false}};
constexpr Alias dtypeAliases[] = {{"float32", "f32"}, {"float", "f32"},  {"single", "f32"},
                                  {"float64", "f64"}, {"double", "f64"}, {"bfloat16", "bf16"},
                                  {"float16", "f16"}, {"half", "f16"},   {"int8", "s8"},
                                  {"i8", "s8"},       {"uint8", "u8"}};

std::string counted(size_t count, std::string_view one, std::string_view many) {
  return fmt::format("{} {}", count, count == 1 ? one : many);
}

std::string_view exampleLayout(int rank) {
  constexpr std::string_view examples[] = {"c", "nc", "ncw", "nchw", "ncdhw", "ntcdhw"};
  return examples[std::clamp(rank, 1, maxRank) - 1];
}

} // namespace

void Parser::readInput() {
  const Entry *entry = keys_.find("input");
  if (!entry) {
    error(root_, "key 'input' is missing; expected 'input: {shape: ..., layout: ...}'");
    return;
  }
  if (!entry->value.isMapping()) {
    error(entry->value, fmt::format("input must be a mapping {{shape: ..., layout: ...}}; found {}",
                                    found(entry->value)));
    return;
  }
  Keys keys(entry->value, "input", inputKeys(), diagnostics_);
  if (const Entry *dtype = keys.find("dtype"))
    if (std::optional<DType> known = readDType(dtype->value, "input.dtype"))
      spec_.dtype = *known, spec_.parameterDType = spec_.accumulate = computeDType(*known);
  const Entry *shape = keys.find("shape");
  if (shape)
    readShape(shape->value);
  else
    diagnostics_.error(entry->value.offset, "key 'input.shape' is missing");
  const Entry *layoutEntry = keys.find("layout");
  if (const Entry *strides = keys.find("strides"))
    refuseStrides(*strides, "input", spec_.rank(), diagnostics_);
  std::optional<Layout> layout;
  if (layoutEntry) {
    layout = readLayout(layoutEntry->value, "input.layout", diagnostics_, labels_);
    if (!labels_.empty())
      std::reverse(spec_.shape.begin(), spec_.shape.end());
  } else if (shapeKnown_) {
    layout = defaultLayout(spec_.rank());
    if (!layout)
      error(shape->value, fmt::format("key 'input.layout' is missing; a shape of rank {} needs "
                                      "one, such as '{}'",
                                      spec_.rank(), exampleLayout(spec_.rank())));
  }
  if (!layout)
    return;
  spec_.layout = *layout;
  layoutKnown_ = shapeKnown_ && layout->axes.size() == spec_.shape.size();
  if (shapeKnown_ && !layoutKnown_) {
    error(layoutEntry->value,
          fmt::format("input.layout '{}' has {}, but the shape has {}", layout->text,
                      counted(layout->axes.size(), "axis", "axes"),
                      counted(spec_.shape.size(), "size", "sizes")));
    diagnostics_.note(shape->value.offset, "the shape is here");
  }
  if (layoutKnown_)
    checkBytes(shape->value);
}

std::optional<DType> Parser::readDType(const Value &value, std::string_view key) {
  std::optional<size_t> index = choose(value, key, dtypeNames, diagnostics_, dtypeAliases);
  if (!index)
    return std::nullopt;
  return parseDType(dtypeNames[*index].name);
}

void Parser::readShape(const Value &value) {
  if (!value.isList()) {
    error(value, fmt::format("input.shape must be a list such as [N, 64, 56, 56]; found {}",
                             found(value)));
    return;
  }
  if (value.items.empty() || value.items.size() > maxRank) {
    error(value,
          fmt::format("input.shape has rank {}; expected 1 to {}", value.items.size(), maxRank));
    return;
  }
  bool right = true;
  for (const Value &item : value.items) {
    Size size;
    std::optional<std::string_view> word = asWord(item);
    std::optional<Integer> integer = asInteger(item);
    std::string problem;
    // Frameworks write these for a size that varies. Under one name two such sizes would be equal.
    if ((word && (*word == "None" || *word == "?")) || isNull(item) ||
        (integer && !integer->tooLarge && integer->value == -1))
      problem = fmt::format("{} does not name a size; a size that varies has a name of its own, "
                            "such as N or H",
                            found(item));
    else if (word && isIdentifier(*word) && word->size() > maxName)
      problem = fmt::format("the name of a size has {} characters; expected at most {}",
                            word->size(), maxName);
    else if (word && isIdentifier(*word))
      size.name = *word;
    else if (!integer)
      problem =
          fmt::format("a size must be a number of at least 1 or a name; found {}", found(item));
    else if (integer->tooLarge)
      problem = fmt::format("size {} is too large; expected at most {}", found(item), INT64_MAX);
    else if (integer->value < 1)
      problem = fmt::format("size {} is too small; expected at least 1", integer->value);
    else
      size.value = integer->value;
    if (!problem.empty())
      error(item, problem);
    right &= problem.empty();
    spec_.shape.push_back(std::move(size));
  }
  shapeKnown_ = right;
}

void Parser::checkBytes(const Value &shape) {
  auto bytes = static_cast<int64_t>(byteSize(spec_.dtype));
  bool overflow = false;
  for (int i = 0; i < spec_.rank(); ++i) {
    int64_t size = std::max<int64_t>(spec_.shape[static_cast<size_t>(i)].value, 1);
    if (i == spec_.layout.blockedAxis) {
      int64_t blocks = (size - 1) / spec_.layout.block + 1;
      overflow |= __builtin_mul_overflow(blocks, spec_.layout.block, &size);
    }
    overflow |= __builtin_mul_overflow(bytes, size, &bytes);
  }
  if (overflow)
    error(shape, fmt::format("an array of this shape and layout {} has more than {} bytes",
                             spec_.layout.text, INT64_MAX));
}

void Parser::readOutput(const Value &value) {
  if (!value.isMapping()) {
    error(value, fmt::format("output must be a mapping {{layout: ..., dtype: ...}}; found {}",
                             found(value)));
    return;
  }
  Keys keys(value, "output", outputKeys(), diagnostics_);
  for (const Entry *entry : keys.entries()) {
    if (entry->key == "layout") {
      std::string labels;
      std::optional<Layout> layout =
          readLayout(entry->value, "output.layout", diagnostics_, labels);
      if (!layout || !layoutKnown_ || layout->text == spec_.layout.text)
        continue;
      std::string ours = spec_.layout.axes, theirs = layout->axes;
      std::sort(ours.begin(), ours.end());
      std::sort(theirs.begin(), theirs.end());
      if (ours != theirs)
        error(entry->value, fmt::format("output.layout '{}' has other axes than input.layout "
                                        "'{}'",
                                        layout->text, spec_.layout.text));
      else
        diagnostics_.unbuilt(entry->value.offset,
                             fmt::format("an output.layout that differs from the input's is not "
                                         "built yet; expected '{}'",
                                         spec_.layout.text));
    } else if (entry->key == "dtype") {
      std::optional<DType> dtype = readDType(entry->value, "output.dtype");
      if (dtype && *dtype != spec_.dtype)
        diagnostics_.unbuilt(entry->value.offset,
                             fmt::format("an output.dtype that differs from the input's is not "
                                         "built yet; expected {}",
                                         toString(spec_.dtype)));
    } else if (entry->key == "strides") {
      refuseStrides(*entry, "output", spec_.rank(), diagnostics_);
    } else if (!asNumber(entry->value)) {
      error(entry->value,
            fmt::format("output.{} must be a number; found {}", entry->key, found(entry->value)));
    } else {
      refuse(*entry, "output", diagnostics_);
    }
  }
}

} // namespace normforge::spec
