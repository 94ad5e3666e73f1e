#include "compiler/spec/Spec.h"

#include <algorithm>

namespace normforge {

std::optional<Spec> inLayout(const Spec &spec, const std::string &layout) {
  const std::string &own = spec.layout.text;
  const bool channelsFirst = own == "nchw" || own == "ncw" || own == "ncdhw";
  if (!channelsFirst)
    return own == layout || layout == "nchw" ? std::optional(spec) : std::nullopt;
  if (layout == "nchw")
    return spec;
  for (const std::vector<FuseStep> *steps : {&spec.prologue, &spec.fuse})
    for (const FuseStep &step : *steps)
      for (const StepOperand &operand : step.operands)
        if (!operand.whole) // its axes would be others
          return std::nullopt;
  Spec other = spec;
  const size_t rank = spec.shape.size();
  if (layout == "nhwc") {
    other.layout = Layout();
    other.layout.axes = other.layout.text = own.substr(0, 1) + own.substr(2) + "c";
    other.shape.erase(other.shape.begin() + 1);
    other.shape.push_back(spec.shape[1]);
    for (int &axis : other.axes)
      axis = axis == 1 ? static_cast<int>(rank) - 1 : axis > 1 ? axis - 1 : axis;
    std::sort(other.axes.begin(), other.axes.end());
    return other;
  }
  if (layout != "nChw16c" && layout != "nChw8c")
    return std::nullopt;
  other.layout = Layout();
  other.layout.block = layout == "nChw16c" ? 16 : 8;
  other.layout.blockedAxis = 1;
  other.layout.axes = own;
  other.layout.text = "nC" + own.substr(2) + std::to_string(other.layout.block) + "c";
  return other;
}

} // namespace normforge
