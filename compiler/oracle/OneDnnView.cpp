#include "compiler/oracle/OneDnnView.h"

#include <algorithm>

namespace normforge::oracle {

namespace {

/// Adjacent axes that are all kept or all reduced, as one.
struct Run {
  bool kept;
  int64_t size;
};

/// The axes, and which index the statistics; a grouped one is two: its groups, and what they have.
struct Axes {
  std::vector<int64_t> shape;
  std::vector<bool> kept;
};

Axes axesOf(const Spec &spec, const Coordinates &at) {
  Axes axes;
  for (int axis = 0; axis < spec.rank(); ++axis) {
    int64_t size = at.shape()[static_cast<size_t>(axis)];
    if (spec.isGrouped(axis)) {
      axes.shape.push_back(spec.groups);
      axes.kept.push_back(true);
      size /= spec.groups;
    }
    axes.shape.push_back(size);
    axes.kept.push_back(spec.indexesStatistics(axis));
  }
  return axes;
}

std::vector<Run> merge(const Axes &axes) {
  const auto &[shape, kept] = axes;
  std::vector<Run> runs;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (!runs.empty() && runs.back().kept == kept[axis])
      runs.back().size *= shape[axis];
    else
      runs.push_back({kept[axis], shape[axis]});
  }
  return runs;
}

std::vector<int64_t> denseStrides(const std::vector<int64_t> &dims) {
  std::vector<int64_t> strides(dims.size(), 1);
  for (size_t i = dims.size(); i-- > 1;)
    strides[i - 1] = strides[i] * dims[i];
  return strides;
}

/// "RKR" for nchw with c kept.
std::string pattern(const std::vector<Run> &runs) {
  std::string text;
  for (const Run &run : runs)
    text += run.kept ? 'K' : 'R';
  return text;
}

} // namespace

std::optional<OneDnnView> viewAsBatchNorm(const Spec &spec, const Coordinates &at,
                                          std::string &whyNot) {
  const Axes axes = axesOf(spec, at);
  const auto &[shape, kept] = axes;
  const auto keptCount = std::count(kept.begin(), kept.end(), true);
  const int channel = static_cast<int>(std::find(kept.begin(), kept.end(), true) - kept.begin());
  const int rank = static_cast<int>(shape.size());

  OneDnnView view;
  if (spec.layout.isBlocked()) {
    const int64_t block = spec.layout.block;
    if (spec.mode == Mode::Group) {
      whyNot = "groups of channels in blocks are no channels of another layout";
      return std::nullopt;
    }
    if (keptCount != 1 || channel != 1 || spec.layout.blockedAxis != 1 || rank > 5 ||
        (block != 4 && block != 8 && block != 16)) {
      whyNot = "oneDNN knows blocks of 4, 8 or 16 of the one kept axis, at "
               "place 1, up to rank 5";
      return std::nullopt;
    }
    view.dims = shape;
    view.dims.insert(view.dims.begin() + 2, rank < 4 ? 4 - rank : 0, 1);
    view.block = block;
    return view;
  }

  // The layouts that oneDNN has names for: nchw, ncdhw, nhwc, ndhwc, as they are.
  if (keptCount == 1 && (rank == 4 || rank == 5) && (channel == 1 || channel == rank - 1)) {
    const std::vector<int64_t> strides = denseStrides(shape);
    view.dims = {shape[0], shape[channel]};
    view.strides = {strides[0], strides[channel]};
    for (int axis = 1; axis < rank; ++axis)
      if (axis != channel) {
        view.dims.push_back(shape[axis]);
        view.strides.push_back(strides[axis]);
      }
    return view;
  }

  // Everything else as [N, C, S] where its axes merge to that, with an axis of size 1 before S:
  // for rank 2 and 3, oneDNN 2.6 has plain loops alone. Where C is innermost, as nhwc.
  const std::vector<Run> runs = merge(axes);
  const std::string form = pattern(runs);
  if (form == "RK") {
    const int64_t n = runs[0].size, c = runs[1].size;
    view.dims = {n, c, 1, 1};
    view.strides = {c, 1, c, c};
    return view;
  }
  if (form == "RKR")
    view.dims = {runs[0].size, runs[1].size, 1, runs[2].size};
  else if (form == "KR")
    view.dims = {1, runs[0].size, 1, runs[1].size};
  else if (form == "R")
    view.dims = {1, 1, 1, runs[0].size};
  if (view.dims.empty()) {
    whyNot =
        "oneDNN's batch normalization has one channel axis, and the axes of the statistics are "
        "not adjacent in memory";
    return std::nullopt;
  }
  view.strides = denseStrides(view.dims);
  return view;
}

std::optional<OneDnnView> viewAsLayerNorm(const Spec &spec, const Coordinates &at,
                                          std::string &whyNot) {
  if (spec.layout.isBlocked()) {
    whyNot = "oneDNN's layer normalization has no blocked layouts";
    return std::nullopt;
  }
  const std::vector<Run> runs = merge(axesOf(spec, at));
  const std::string form = pattern(runs);
  OneDnnView view;
  if (form == "KR") {
    view.dims = {runs[0].size, runs[1].size};
    view.strides = denseStrides(view.dims);
  } else if (form == "R") {
    view.dims = {1, runs[0].size};
    view.strides = denseStrides(view.dims);
  } else if (form == "RK") {
    view.dims = {runs[1].size, runs[0].size};
    view.strides = {1, runs[1].size};
  } else if (form == "KRK") {
    view.dims = {runs[0].size, runs[2].size, runs[1].size};
    view.strides = {runs[1].size * runs[2].size, 1, runs[2].size};
  } else {
    whyNot = "oneDNN's layer normalization has one normalized axis, and the "
             "axes of the spec are not "
             "adjacent in memory";
    return std::nullopt;
  }
  return view;
}

} // namespace normforge::oracle
