// Shared by the problems that are set up for oneDNN: memory, threads, and the way that a spec is
// seen.
#pragma once

#include "compiler/oracle/OneDnnView.h"

#include <dnnl.hpp>
#include <omp.h>

#include <cstring>

namespace normforge::oracle {

/// OpenMP's threads for the calls of a scope. oneDNN asks when a primitive is
/// made and when it runs.
class ThreadLimit {
public:
  explicit ThreadLimit(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ThreadLimit() { omp_set_num_threads(before_); }
  ThreadLimit(const ThreadLimit &) = delete;
  ThreadLimit &operator=(const ThreadLimit &) = delete;

private:
  int before_;
};

/// The memory of a view.
inline dnnl::memory::desc describe(const OneDnnView &view) {
  using dnnl::memory;
  if (view.block == 0)
    return memory::desc(view.dims, memory::data_type::f32, view.strides);
  using tag = memory::format_tag;
  static constexpr tag tags[3][2] = {
      {tag::aBcd4b, tag::aBcde4b}, {tag::aBcd8b, tag::aBcde8b}, {tag::aBcd16b, tag::aBcde16b}};
  const int row = view.block == 4 ? 0 : view.block == 8 ? 1 : 2;
  return memory::desc(view.dims, memory::data_type::f32, tags[row][view.dims.size() - 4]);
}

inline dnnl::memory::desc dense(const dnnl::memory::dims &dims) {
  dnnl::memory::dims strides(dims.size(), 1);
  for (size_t i = dims.size(); i-- > 1;)
    strides[i - 1] = strides[i] * dims[i];
  return dnnl::memory::desc(dims, dnnl::memory::data_type::f32, strides);
}

/// A copy with the padding of a blocked layout zeroed, as oneDNN wants it.
inline dnnl::memory copyData(const HostArray &from, const Coordinates &at,
                             const dnnl::memory::desc &desc, const dnnl::engine &engine) {
  dnnl::memory copy(desc, engine);
  auto *values = static_cast<float *>(copy.get_data_handle());
  std::memset(values, 0, desc.get_size());
  at.forEach([&](Place p) { values[p.offset] = static_cast<float>(from.get(p.offset)); });
  return copy;
}

inline dnnl::memory copyVector(const HostArray &from, const dnnl::engine &engine) {
  dnnl::memory copy(dense({from.count()}), engine);
  auto *values = static_cast<float *>(copy.get_data_handle());
  for (int64_t i = 0, n = from.count(); i < n; ++i)
    values[i] = static_cast<float>(from.get(i));
  return copy;
}

/// Which of oneDNN's primitives computes a spec.
enum class Way { BatchNorm, LayerNorm, TransposedBatchNorm };

/// The backward pass (OneDnnBackward.cpp). Fused steps, which it does not have, are taken off dy
/// before. Throws dnnl::error.
std::unique_ptr<OneDnn> makeOneDnnBackward(const Spec &spec, const Sizes &sizes,
                                           const Arrays &inputs, const Numbers &scalars,
                                           float epsilon, int threads, Way way,
                                           const OneDnnView &view);

} // namespace normforge::oracle
