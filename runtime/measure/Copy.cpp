#include "runtime/measure/Copy.h"

#include "runtime/cpu_info/CpuInfo.h"

#include <algorithm>
#include <new>

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

struct Arrays {
  const float *x, *z; ///< z null: a constant
  float *y;
};
using CopyFunction = void(Arrays, int64_t from, int64_t to, bool streams);

void plainCopy(Arrays a, int64_t from, int64_t to, bool) {
  for (int64_t i = from; i < to; ++i)
    a.y[i] = 1.5F * a.x[i] + (a.z ? a.z[i] : 0.25F);
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
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

CopyFunction *chooseCopy() {
#ifdef __x86_64__
  if (hostHasFeature("avx512f"))
    return copy512;
  if (hostHasFeature("avx2") && hostHasFeature("fma"))
    return copy256;
#endif
  return plainCopy;
}

} // namespace

void MemoryCopy::Free::operator()(float *memory) const { ::operator delete(memory, kPage); }

MemoryCopy::Buffer MemoryCopy::make(int64_t count) {
  Buffer buffer(static_cast<float *>(
      ::operator new(static_cast<size_t>(std::max<int64_t>(1, count)) * sizeof(float), kPage)));
  std::fill_n(buffer.get(), count, 1.F);
  return buffer;
}

MemoryCopy::MemoryCopy(uint64_t read, uint64_t written)
    : count_(static_cast<int64_t>(std::max<uint64_t>(written, 4) / sizeof(float))),
      x_(make(count_)), y_(make(count_)) {
  const bool readsTwo = static_cast<double>(read) >= 1.5 * static_cast<double>(written);
  if (readsTwo)
    z_ = make(count_);
  scale_ = static_cast<double>(std::max<uint64_t>(1, read + written)) /
           static_cast<double>(count_ * 4 * (readsTwo ? 3 : 2));
}

void MemoryCopy::run(bool streams, const nf_executor &executor) {
  static CopyFunction *const function = chooseCopy();
  struct Job {
    Arrays arrays;
    int64_t count;
    bool streams;
  } job{{x_.get(), z_.get(), y_.get()}, count_, streams};
  auto body = [](void *data, uint64_t first, uint64_t last) {
    const Job &job = *static_cast<const Job *>(data);
    function(job.arrays, static_cast<int64_t>(first) * kChunk,
             std::min(job.count, static_cast<int64_t>(last) * kChunk), job.streams);
  };
  const auto tasks = static_cast<uint64_t>((count_ + kChunk - 1) / kChunk);
  if (8 * count_ < kSmallBytes || !executor.parallel_for)
    body(&job, 0, tasks);
  else
    executor.parallel_for(executor.user, tasks, body, &job);
}

} // namespace normforge
