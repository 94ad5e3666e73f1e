// Keys `axis` and `groups`.
#include "compiler/spec/Parser.h"

#include "compiler/spec/Values.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

namespace normforge::spec {

void Parser::readAxis() {
  const Entry *entry = keys_.find("axis");
  int rank = spec_.rank();
  if (!entry) {
    if (layoutKnown_)
      useAxisDefault();
    return;
  }
  const Value &value = entry->value;
  if (value.isList() && value.items.empty()) {
    error(value, "axis is an empty list; expected at least one axis");
    return;
  }
  std::span<const Value> items(&value, 1);
  if (value.isList())
    items = value.items;
  std::vector<std::pair<int, const Value *>> axes;
  bool right = true;
  for (const Value &item : items) {
    std::optional<int> axis = readOneAxis(item);
    right &= axis.has_value();
    if (!axis)
      continue;
    auto same = std::find_if(axes.begin(), axes.end(), [&](auto &a) { return a.first == *axis; });
    if (same == axes.end()) {
      axes.emplace_back(*axis, &item);
      continue;
    }
    error(item, item.text == same->second->text
                    ? fmt::format("axis {} is listed twice", shortened(item.text))
                    : fmt::format("axis {} is listed twice: {} is the same axis",
                                  shortened(item.text), shortened(same->second->text)));
    right = false;
  }
  if (!right || !layoutKnown_)
    return;
  for (auto &[axis, item] : axes)
    spec_.axes.push_back(axis);
  std::sort(spec_.axes.begin(), spec_.axes.end());
  axesKnown_ = true;
  if (!modeKnown_ || !semanticsKnown_)
    return;
  if (spec_.mode == Mode::Sample) {
    if (preset_->sampleTakesLastAxis && spec_.axes != std::vector<int>{rank - 1})
      error(value, fmt::format("under semantics {} mode 1 takes the last axis, {} or {}, whatever "
                               "axis says",
                               toString(spec_.semantics), rank - 1, spec_.layout.axes.back()));
  } else {
    checkReducedAxes(value.offset);
  }
}

void Parser::useAxisDefault() {
  int rank = spec_.rank();
  const bool takesLast =
      (spec_.mode == Mode::Sample || spec_.mode == Mode::Rms) && preset_->axis != kChannels;
  int axis = takesLast ? -1 : preset_->axis;
  if (axis == kChannels) {
    const size_t channels = spec_.layout.axes.find('c');
    if (channels == std::string::npos) {
      error(root_,
            fmt::format("key 'axis' is missing; semantics {} takes the channels, axis c, and "
                        "layout '{}' has none",
                        toString(spec_.semantics), spec_.layout.text));
      return;
    }
    axis = static_cast<int>(channels);
  }
  spec_.axes = {axis < 0 ? axis + rank : std::min(axis, rank - 1)};
  axesKnown_ = true;
  const char last = spec_.layout.axes.back();
  if (axis < 0 && modeKnown_ && last != 'c' && spec_.layout.axes.find('c') != std::string::npos)
    spec_.notes.push_back(fmt::format(
        "no axis is given, and {} takes the last, {}; for channels write axis: c",
        takesLast ? fmt::format("mode {}", toString(spec_.mode)) : toString(spec_.semantics),
        last));
  const Entry *input = keys_.find("input");
  if (modeKnown_ && input)
    checkReducedAxes(input->value.offset);
}

void Parser::checkReducedAxes(size_t offset) {
  if (spec_.mode == Mode::Sample || spec_.mode == Mode::Rms)
    return;
  const std::string mode =
      spec_.mode > Mode::Batch
          ? fmt::format("mode {}", toString(spec_.mode))
          : fmt::format("mode {} ({})", static_cast<int>(spec_.mode), toString(spec_.mode));
  const bool ofSamples = spec_.mode == Mode::Instance || spec_.mode == Mode::Group;
  if (ofSamples && spec_.isAxis(spec_.samplesAxis())) {
    diagnostics_.error(offset,
                       fmt::format("axis has '{}', the samples axis of layout '{}'; {} keeps "
                                   "statistics for each sample anyway",
                                   spec_.layout.axes[static_cast<size_t>(spec_.samplesAxis())],
                                   spec_.layout.text, mode));
    return;
  }
  if (spec_.mode == Mode::Group) {
    if (spec_.axes.size() > 1)
      diagnostics_.error(offset, fmt::format("axis has {} axes; mode group takes one, which it "
                                             "cuts into groups",
                                             spec_.axes.size()));
    return;
  }
  for (int axis = 0; axis < spec_.rank(); ++axis)
    if (!spec_.indexesStatistics(axis))
      return;
  diagnostics_.error(
      offset, fmt::format("axis{} all axes of layout '{}'; {} needs one or "
                          "more left to take statistics over",
                          spec_.mode == Mode::Instance ? " and the samples axis take" : " takes",
                          spec_.layout.text, mode));
  if (preset_->axis >= spec_.rank()) { // ONNX takes such an input as one channel's
    const Size &size = spec_.shape[0];
    diagnostics_.note(offset, fmt::format("under semantics {} these are values of one channel: "
                                          "write shape: [{}, 1], layout: nc",
                                          toString(spec_.semantics),
                                          size.isNamed() ? size.name : std::to_string(size.value)));
  }
}

std::optional<int> Parser::readOneAxis(const Value &item) {
  int rank = spec_.rank();
  if (std::optional<Integer> integer = asInteger(item)) {
    if (!shapeKnown_)
      return std::nullopt;
    if (integer->tooLarge || integer->value < -rank || integer->value >= rank) {
      error(item, fmt::format("axis {} is out of range for rank {}; expected {} to {}", found(item),
                              rank, -rank, rank - 1));
      return std::nullopt;
    }
    const auto index =
        static_cast<int>(integer->value < 0 ? integer->value + rank : integer->value);
    return labels_.empty() ? index : rank - 1 - index;
  }
  std::optional<std::string_view> word = asWord(item);
  if (!word) {
    error(item, fmt::format("axis must be an index, a letter of the layout or a list of them; "
                            "found {}",
                            found(item)));
    return std::nullopt;
  }
  if (spec_.layout.axes.empty())
    return std::nullopt;
  size_t index = word->size() == 1 ? spec_.layout.axes.find(*word) : std::string::npos;
  if (index != std::string::npos)
    return static_cast<int>(index);
  if (word->size() == 1 && std::count(labels_.begin(), labels_.end(), word->front()) == 1)
    return rank - 1 - static_cast<int>(labels_.find(*word));
  std::string_view letters = spec_.layout.axes;
  bool several = word->size() > 1 && word->size() <= maxRank &&
                 word->find_first_not_of(letters) == std::string_view::npos;
  error(item, fmt::format("axis {} is not in layout '{}'; {}", quoted(*word), spec_.layout.text,
                          several ? fmt::format("did you mean [{}]?",
                                                fmt::join(word->begin(), word->end(), ", "))
                                  : fmt::format("expected {}, a letter of it or a list of them",
                                                fmt::format("{} to {}", -rank, rank - 1))));
  return std::nullopt;
}

void Parser::checkGroups() {
  const Entry *entry = keys_.find("groups");
  if (!entry) {
    if (modeName_ == "group")
      diagnostics_.error(keys_.find("mode")->value.offset,
                         "mode 'group' needs the key 'groups', a number that divides the axis");
    return;
  }
  std::optional<Integer> groups = asInteger(entry->value);
  if (!groups || groups->tooLarge || groups->value < 1) {
    error(entry->value, fmt::format("groups must be a whole number of at least 1; found {}",
                                    found(entry->value)));
    return;
  }
  if (!modeKnown_)
    return;
  if (modeName_ != "group") {
    diagnostics_.error(entry->offset, fmt::format("'groups' belongs to mode 'group'; found mode "
                                                  "{}",
                                                  quoted(modeName_)));
    return;
  }
  spec_.groups = groups->value;
  if (!axesKnown_ || !shapeKnown_)
    return;
  const auto axis = static_cast<size_t>(spec_.axes.front());
  const Size &size = spec_.shape[axis]; // a named one is checked at the call
  if (!size.isNamed() && size.value % groups->value != 0)
    error(entry->value, fmt::format("groups {} does not divide {}, the size of axis {}",
                                    groups->value, size.value, spec_.layout.axes[axis]));
}

} // namespace normforge::spec
