#include "runtime/measure/Copy.h"

#include "runtime/cpu_info/CpuInfo.h"

#include <algorithm>
#include <new>
#include <numeric>

#ifdef __x86_64__
#include <immintrin.h>
#define NF_AVX512 __attribute__((target("avx512f")))
#define NF_AVX2 __attribute__((target("avx2,fma")))
#endif

namespace normforge {

namespace {

constexpr std::align_val_t kPage{4096};
/// Below this all runs on the caller, as kernels do.
constexpr int64_t kSmallBytes = 64 << 10;
/// Floats of a task.
constexpr int64_t kChunk = 4 << 10;
/// As many times as many bytes read as written are but read.
constexpr uint64_t kOnlyReads = 8;

struct Arrays {
  const float *x, *z; ///< z null: a constant
  float *y;
};
using CopyFunction = void(Arrays, int64_t from, int64_t to, bool streams);
using SumFunction = float(const float *x, int64_t from, int64_t to);

struct Functions {
  CopyFunction *copy;
  SumFunction *sum;
};

void plainCopy(Arrays a, int64_t from, int64_t to, bool) {
  for (int64_t i = from; i < to; ++i)
    a.y[i] = 1.5F * a.x[i] + (a.z ? a.z[i] : 0.25F);
}

/// In sums enough for vectors and for several of them in flight.
float plainSum(const float *x, int64_t from, int64_t to) {
  constexpr int64_t lanes = 32;
  float sums[lanes] = {};
  int64_t i = from;
  for (; i + lanes <= to; i += lanes)
    for (int64_t k = 0; k < lanes; ++k)
      sums[k] += x[i + k];
  for (; i < to; ++i)
    sums[0] += x[i];
  return std::accumulate(sums, sums + lanes, 0.F);
}

#ifdef __x86_64__
// GCC 12's own AVX-512 headers look uninitialized to it (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
NF_AVX512 void copy512(Arrays a, int64_t from, int64_t to, bool streams) {
  const __m512 scale = _mm512_set1_ps(1.5F), shift = _mm512_set1_ps(0.25F);
  int64_t i = from;
  for (; i + 64 <= to; i += 64)
    for (int k = 0; k < 64; k += 16) {
      const __m512 v = _mm512_fmadd_ps(_mm512_loadu_ps(a.x + i + k), scale,
                                       a.z ? _mm512_loadu_ps(a.z + i + k) : shift);
      if (streams)
        _mm512_stream_ps(a.y + i + k, v);
      else
        _mm512_storeu_ps(a.y + i + k, v);
    }
  plainCopy(a, i, to, streams);
  _mm_sfence();
}

NF_AVX512 float sum512(const float *x, int64_t from, int64_t to) {
  __m512 sums[4] = {};
  int64_t i = from;
  for (; i + 64 <= to; i += 64)
    for (int k = 0; k < 4; ++k)
      sums[k] = _mm512_add_ps(sums[k], _mm512_loadu_ps(x + i + 16 * k));
  return _mm512_reduce_add_ps(
             _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]))) +
         plainSum(x, i, to);
}

NF_AVX2 void copy256(Arrays a, int64_t from, int64_t to, bool streams) {
  const __m256 scale = _mm256_set1_ps(1.5F), shift = _mm256_set1_ps(0.25F);
  int64_t i = from;
  for (; i + 32 <= to; i += 32)
    for (int k = 0; k < 32; k += 8) {
      const __m256 v = _mm256_fmadd_ps(_mm256_loadu_ps(a.x + i + k), scale,
                                       a.z ? _mm256_loadu_ps(a.z + i + k) : shift);
      if (streams)
        _mm256_stream_ps(a.y + i + k, v);
      else
        _mm256_storeu_ps(a.y + i + k, v);
    }
  plainCopy(a, i, to, streams);
  _mm_sfence();
}

NF_AVX2 float sum256(const float *x, int64_t from, int64_t to) {
  __m256 sums[8] = {};
  int64_t i = from;
  for (; i + 64 <= to; i += 64)
    for (int k = 0; k < 8; ++k)
      sums[k] = _mm256_add_ps(sums[k], _mm256_loadu_ps(x + i + 8 * k));
  for (int k = 1; k < 8; ++k)
    sums[0] = _mm256_add_ps(sums[0], sums[k]);
  float lanes[8];
  _mm256_storeu_ps(lanes, sums[0]);
  return std::accumulate(lanes, lanes + 8, plainSum(x, i, to));
}
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

Functions chooseFunctions() {
#ifdef __x86_64__
  if (hostHasFeature("avx512f"))
    return {copy512, sum512};
  if (hostHasFeature("avx2") && hostHasFeature("fma"))
    return {copy256, sum256};
#endif
  return {plainCopy, plainSum};
}

int64_t tasksOf(int64_t count) { return (count + kChunk - 1) / kChunk; }

} // namespace

void MemoryCopy::Free::operator()(float *memory) const { ::operator delete(memory, kPage); }

MemoryCopy::Buffer MemoryCopy::make(int64_t count) {
  Buffer buffer(static_cast<float *>(
      ::operator new(static_cast<size_t>(std::max<int64_t>(1, count)) * sizeof(float), kPage)));
  std::fill_n(buffer.get(), count, 1.F);
  return buffer;
}

MemoryCopy::MemoryCopy(uint64_t read, uint64_t written)
    : onlyReads_(read / kOnlyReads > written),
      count_(static_cast<int64_t>(std::max<uint64_t>(onlyReads_ ? read : written, sizeof(float)) /
                                  sizeof(float))),
      x_(make(count_)), y_(make(onlyReads_ ? tasksOf(count_) : count_)) {
  const bool readsTwo =
      !onlyReads_ && static_cast<double>(read) >= 1.5 * static_cast<double>(written);
  if (readsTwo)
    z_ = make(count_);
  scale_ = static_cast<double>(std::max<uint64_t>(1, read + written)) /
           static_cast<double>(count_ * 4 *
                               (onlyReads_ ? 1
                                : readsTwo ? 3
                                           : 2));
}

void MemoryCopy::run(bool streams, const nf_executor &executor) {
  static const Functions functions = chooseFunctions();
  struct Job {
    Arrays arrays;
    int64_t count;
    bool streams, onlyReads;
  } job{{x_.get(), z_.get(), y_.get()}, count_, streams, onlyReads_};
  auto body = [](void *data, uint64_t first, uint64_t last) {
    const Job &job = *static_cast<const Job *>(data);
    const int64_t from = static_cast<int64_t>(first) * kChunk,
                  to = std::min(job.count, static_cast<int64_t>(last) * kChunk);
    if (job.onlyReads)
      job.arrays.y[first] = functions.sum(job.arrays.x, from, to);
    else
      functions.copy(job.arrays, from, to, job.streams);
  };
  const auto tasks = static_cast<uint64_t>(tasksOf(count_));
  if (8 * count_ < kSmallBytes || !executor.parallel_for)
    body(&job, 0, tasks);
  else
    executor.parallel_for(executor.user, tasks, body, &job);
}

} // namespace normforge
