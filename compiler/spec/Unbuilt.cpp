#include "compiler/spec/Unbuilt.h"

#include "compiler/spec/Values.h"

#include <string>

namespace normforge::spec {

void refuse(const Entry &entry, std::string_view path, Diagnostics &diagnostics) {
  diagnostics.unbuilt(entry.offset, fmt::format("'{}{}{}' is not built yet", path,
                                                path.empty() ? "" : ".", entry.key));
}

void refuseStrides(const Entry &entry, std::string_view path, int rank, Diagnostics &diagnostics) {
  const Value &value = entry.value;
  if (!value.isList()) {
    diagnostics.error(
        value.offset,
        fmt::format("{}.strides must be a list of numbers or names; found {}", path, found(value)));
    return;
  }
  if (rank > 0 && value.items.size() != static_cast<size_t>(rank)) {
    diagnostics.error(value.offset, fmt::format("{}.strides has rank {}, but the shape has rank {}",
                                                path, value.items.size(), rank));
    return;
  }
  for (const Value &item : value.items) {
    std::optional<std::string_view> word = asWord(item);
    std::optional<Integer> integer = asInteger(item);
    if (!(word && isIdentifier(*word)) && !(integer && !integer->tooLarge && integer->value >= 0)) {
      diagnostics.error(item.offset, fmt::format("a stride must be a number of at least 0 or a "
                                                 "name; found {}",
                                                 found(item)));
      return;
    }
  }
  refuse(entry, path, diagnostics);
}

} // namespace normforge::spec
