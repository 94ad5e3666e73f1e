#include "runtime/kernel/Exchange.h"

#include <cmath>
#include <cstring>

namespace normforge {

namespace {

/// Element `element` of each rank's arrays.
template <typename Real> class Partials {
public:
  Partials(const Exchange &exchange, const void *partials, void *merged)
      : exchange_(exchange), partials_(static_cast<const std::byte *>(partials)),
        merged_(static_cast<std::byte *>(merged)) {}

  double get(size_t rank, size_t array, uint64_t element) const {
    Real value; // arrays are aligned to nothing
    std::memcpy(&value, partials_ + at(rank, array, element), sizeof value);
    return value;
  }
  void set(size_t array, uint64_t element, double of) {
    const auto value = static_cast<Real>(of);
    std::memcpy(merged_ + at(0, array, element), &value, sizeof value);
  }
  double rounded(double of) const { return static_cast<Real>(of); }

private:
  size_t at(size_t rank, size_t array, uint64_t element) const {
    return ((rank * exchange_.arrays + array) * exchange_.elements + element) * sizeof(Real);
  }

  const Exchange &exchange_;
  const std::byte *partials_;
  std::byte *merged_;
};

/// Near the mean of all, m = sum(n_i m_i)/n, with d = m_i - m a rank's elements leave
/// w = n_i d + r_i in all, and squares q_i + d (w + r_i); at last both are about m as rounded. As
/// the lowering merges partials of one rank, but that ranks without elements, or whose mask is 0,
/// are left out.
template <typename Real> void mergeMoments(Partials<Real> &of, size_t ranks, uint64_t element) {
  enum : size_t { Count, Mean, Residual, Squares };
  auto get = [&](size_t rank, size_t array) { return of.get(rank, array, element); };
  double count = 0, sum = 0;
  for (size_t rank = 0; rank < ranks; ++rank) {
    count += get(rank, Count);
    // A rank without elements has no mean: 0 times infinity is not 0.
    sum += get(rank, Count) == 0 ? 0 : get(rank, Count) * get(rank, Mean);
  }
  const double near = count == 0 ? 0 : sum / count;
  double left = 0, squares = 0;
  for (size_t rank = 0; rank < ranks; ++rank) {
    if (get(rank, Count) == 0)
      continue;
    const double rest = std::isnan(get(rank, Residual)) ? 0 : get(rank, Residual);
    const double distance = get(rank, Mean) - near;
    const double together = get(rank, Count) * distance + rest;
    left += together;
    squares += get(rank, Squares) + distance * (together + rest);
  }
  const double mean = of.rounded(near), off = near - mean;
  const double residual = off * count + left;
  of.set(Count, element, count);
  of.set(Mean, element, mean);
  of.set(Residual, element, residual);
  of.set(Squares, element, squares + off * (residual + left));
}

} // namespace

bool overlapsInPart(const Exchange &exchange, const void *partials, size_t ranks,
                    const void *merged) {
  const uint64_t ofRank = exchange.arrays * exchange.bytes();
  const auto first = reinterpret_cast<uintptr_t>(partials),
             at = reinterpret_cast<uintptr_t>(merged);
  if (at + ofRank <= first || at >= first + ranks * ofRank)
    return false;
  return at < first || (at - first) % ofRank != 0;
}

namespace {

template <typename Real>
void merge(const Exchange &exchange, const void *partials, size_t ranks, void *merged) {
  Partials<Real> of(exchange, partials, merged);
  for (uint64_t element = 0; element < exchange.elements; ++element) {
    if (exchange.role == Role::PartialMoments) {
      mergeMoments(of, ranks, element);
      continue;
    }
    for (size_t array = 0; array < exchange.arrays; ++array) {
      double sum = 0;
      for (size_t rank = 0; rank < ranks; ++rank)
        sum += of.get(rank, array, element);
      of.set(array, element, sum);
    }
  }
}

} // namespace

Exchange exchangeOf(const Plan &plan) {
  Exchange exchange;
  const std::vector<Argument> &arguments = plan.kernel().artifact().arguments;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].role != Role::PartialMoments && arguments[i].role != Role::PartialSum)
      continue;
    if (exchange.arrays++ > 0)
      continue;
    exchange.argument = i;
    exchange.role = arguments[i].role;
    exchange.dtype = arguments[i].dtype;
    exchange.elements = plan.arrays()[i].bytes / byteSize(exchange.dtype);
  }
  return exchange;
}

void mergePartials(const Exchange &exchange, const void *partials, size_t ranks, void *merged) {
  if (exchange.dtype == DType::F64)
    merge<double>(exchange, partials, ranks, merged);
  else
    merge<float>(exchange, partials, ranks, merged);
}

} // namespace normforge
