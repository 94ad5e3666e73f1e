#include "runtime/kernel/MatchShapes.h"

namespace normforge {
namespace {

/// "(3, 4)", as Python writes it: "(3,)" of one.
template <typename Item, typename Text> std::string tuple(std::span<const Item> items, Text text) {
  std::string all;
  for (const Item &item : items)
    all += (all.empty() ? "" : ", ") + text(item);
  return "(" + all + (items.size() == 1 ? ",)" : ")");
}

} // namespace

std::string shapeText(const Argument &argument, const std::vector<std::string> &sizeNames) {
  return tuple(std::span<const SizeExpr>(argument.shape),
               [&](const SizeExpr &size) { return size.text(sizeNames); });
}

std::optional<std::vector<int64_t>>
matchShapes(const Artifact &artifact,
            std::span<const std::optional<std::span<const int64_t>>> shapes, Failure &failure) {
  auto wrong = [&](size_t i) {
    failure.set(NF_INVALID_ARGUMENT,
                "'" + artifact.arguments[i].name + "' has shape " +
                    tuple(*shapes[i], [](int64_t size) { return std::to_string(size); }) +
                    "; expected " + shapeText(artifact.arguments[i], artifact.sizes));
    return std::nullopt;
  };
  std::vector<std::optional<int64_t>> found(artifact.sizes.size());
  std::vector<size_t> tellers(artifact.sizes.size()); // arguments
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (!shapes[i])
      continue;
    const std::vector<SizeExpr> &expected = artifact.arguments[i].shape;
    if (expected.size() != shapes[i]->size())
      return wrong(i);
    for (size_t axis = 0; axis < expected.size(); ++axis) {
      const std::optional<size_t> name = expected[axis].name();
      if (!name)
        continue;
      const int64_t size = (*shapes[i])[axis];
      if (!found[*name]) {
        found[*name] = size;
        tellers[*name] = i;
      } else if (*found[*name] != size) {
        failure.set(NF_INVALID_ARGUMENT,
                    "size " + artifact.sizes[*name] + " is " + std::to_string(*found[*name]) +
                        " by '" + artifact.arguments[tellers[*name]].name + "' and " +
                        std::to_string(size) + " by '" + artifact.arguments[i].name + "'");
        return std::nullopt;
      }
    }
  }
  std::vector<int64_t> sizes;
  for (size_t name = 0; name < found.size(); ++name) {
    if (!found[name]) {
      failure.set(NF_INVALID_ARGUMENT, "no array's shape tells size " + artifact.sizes[name] +
                                           " of kernel '" + artifact.name + "'");
      return std::nullopt;
    }
    sizes.push_back(*found[name]);
  }
  for (size_t i = 0; i < shapes.size(); ++i)
    for (size_t axis = 0; shapes[i] && axis < shapes[i]->size(); ++axis)
      if (artifact.arguments[i].shape[axis].evaluate(sizes) != (*shapes[i])[axis])
        return wrong(i);
  return sizes;
}

} // namespace normforge
