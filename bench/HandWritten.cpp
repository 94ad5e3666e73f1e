#include "bench/HandWritten.h"

#include "normforge/openmp.h"
#include "runtime/cpu_info/CpuInfo.h"

#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>

#define NF_AVX512 __attribute__((target("avx512f")))
#define NF_AVX2 __attribute__((target("avx2,fma")))

namespace normforge::bench {

namespace {

/// Runs body(first, last) over ranges of `tasks`.
template <typename Body> void parallel(int threads, int64_t tasks, const Body &body) {
  const nf_executor executor = nf_openmp_executor(threads);
  executor.parallel_for(
      executor.user, static_cast<uint64_t>(tasks),
      [](void *data, uint64_t first, uint64_t last) {
        (*static_cast<const Body *>(data))(static_cast<int64_t>(first), static_cast<int64_t>(last));
      },
      const_cast<Body *>(&body));
}

/// Below this a kernel runs on the caller, as ours do.
constexpr int64_t kSmallBytes = 64 << 10;
int threadsFor(const HandWrittenProblem &p) {
  return 8 * p.n * p.channels * p.pixels < kSmallBytes ? 1 : p.threads;
}

struct Affine {
  float scale, shift;
};
Affine affineOf(const HandWrittenProblem &p, int64_t c, float mean, float variance) {
  const float scale = (p.gamma ? p.gamma[c] : 1) / std::sqrt(variance + p.epsilon);
  return {scale, (p.beta ? p.beta[c] : 0) - mean * scale};
}

NF_AVX512 __mmask16 maskOf(int64_t left) {
  return static_cast<__mmask16>((1U << std::min<int64_t>(left, 16)) - 1);
}

/// y = scale*x + shift along one row, then relu.
template <bool Relu>
NF_AVX512 void row(const float *x, float *y, int64_t count, Affine a, bool streams) {
  const __m512 scale = _mm512_set1_ps(a.scale), shift = _mm512_set1_ps(a.shift);
  auto element = [&](__m512 v) NF_AVX512 {
    v = _mm512_fmadd_ps(v, scale, shift);
    return Relu ? _mm512_max_ps(v, _mm512_setzero_ps()) : v;
  };
  int64_t i = 0;
  if (streams) {
    const int64_t head = std::min<int64_t>(count, (-(reinterpret_cast<intptr_t>(y) / 4)) & 15);
    const __mmask16 mask = maskOf(head);
    _mm512_mask_storeu_ps(y, mask, element(_mm512_maskz_loadu_ps(mask, x)));
    for (i = head; i + 16 <= count; i += 16)
      _mm512_stream_ps(y + i, element(_mm512_loadu_ps(x + i)));
  }
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_ps(y + i, element(_mm512_loadu_ps(x + i)));
  if (i < count) {
    const __mmask16 mask = maskOf(count - i);
    _mm512_mask_storeu_ps(y + i, mask, element(_mm512_maskz_loadu_ps(mask, x + i)));
  }
}
NF_AVX512 void row(const HandWrittenProblem &p, int64_t offset, int64_t count, Affine a) {
  if (p.relu)
    row<true>(p.x + offset, p.y + offset, count, a, p.streams);
  else
    row<false>(p.x + offset, p.y + offset, count, a, p.streams);
}

/// Adds f(x) along one row to four sums.
template <typename F>
NF_AVX512 inline void addRow(const float *x, int64_t count, __m512 sums[4], F f) {
  int64_t i = 0;
  for (; i + 64 <= count; i += 64)
    for (int k = 0; k < 4; ++k)
      sums[k] = f(_mm512_loadu_ps(x + i + 16 * k), sums[k], __mmask16(0xFFFF));
  for (; i < count; i += 16) {
    const __mmask16 mask = maskOf(count - i);
    sums[0] = f(_mm512_maskz_loadu_ps(mask, x + i), sums[0], mask);
  }
}
NF_AVX512 float total(const __m512 sums[4]) {
  return _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

} // namespace

bool canRunHandWritten() { return hostHasFeature("avx512f"); }

NF_AVX512 void inferenceNchw(const HandWrittenProblem &p) {
  parallel(threadsFor(p), p.n * p.channels, [&](int64_t first, int64_t last) NF_AVX512 {
    for (int64_t i = first; i < last; ++i) {
      const int64_t c = i % p.channels;
      row(p, i * p.pixels, p.pixels, affineOf(p, c, p.mean[c], p.variance[c]));
    }
    _mm_sfence();
  });
}

NF_AVX512 void trainingNchw(const HandWrittenProblem &p) {
  parallel(threadsFor(p), p.channels, [&](int64_t first, int64_t last) NF_AVX512 {
    const auto count = static_cast<float>(p.n * p.pixels);
    for (int64_t c = first; c < last; ++c) {
      __m512 sums[4] = {}, squares[4] = {};
      for (int64_t n = 0; n < p.n; ++n)
        addRow(p.x + (n * p.channels + c) * p.pixels, p.pixels, sums,
               [&](__m512 x, __m512 sum, __mmask16) NF_AVX512 { return _mm512_add_ps(sum, x); });
      const float mean = total(sums) / count;
      const __m512 means = _mm512_set1_ps(mean);
      for (int64_t n = 0; n < p.n; ++n)
        addRow(p.x + (n * p.channels + c) * p.pixels, p.pixels, squares,
               [&](__m512 x, __m512 sum, __mmask16 mask) NF_AVX512 {
                 const __m512 rest = _mm512_maskz_sub_ps(mask, x, means);
                 return _mm512_fmadd_ps(rest, rest, sum);
               });
      const Affine a = affineOf(p, c, mean, total(squares) / count);
      for (int64_t n = 0; n < p.n; ++n)
        row(p, (n * p.channels + c) * p.pixels, p.pixels, a);
    }
    _mm_sfence();
  });
}

namespace {

/// Rows of channels: y = scale*x + shift with a scale and a shift a column.
template <bool Relu>
NF_AVX512 void columns(const HandWrittenProblem &p, const float *scale, const float *shift,
                       int64_t first, int64_t last) {
  // Rows are all aligned or none is.
  const bool streams =
      p.streams && p.channels % 16 == 0 && reinterpret_cast<uintptr_t>(p.y) % 64 == 0;
  for (int64_t r = first; r < last; ++r) {
    const float *x = p.x + r * p.channels;
    float *y = p.y + r * p.channels;
    for (int64_t c = 0; c < p.channels; c += 16) {
      const __mmask16 mask = maskOf(p.channels - c);
      __m512 v = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, x + c),
                                 _mm512_maskz_loadu_ps(mask, scale + c),
                                 _mm512_maskz_loadu_ps(mask, shift + c));
      if (Relu)
        v = _mm512_max_ps(v, _mm512_setzero_ps());
      if (streams)
        _mm512_stream_ps(y + c, v);
      else
        _mm512_mask_storeu_ps(y + c, mask, v);
    }
  }
  _mm_sfence();
}
NF_AVX512 void columns(const HandWrittenProblem &p, const float *scale, const float *shift) {
  parallel(threadsFor(p), p.n * p.pixels, [&](int64_t first, int64_t last) NF_AVX512 {
    if (p.relu)
      columns<true>(p, scale, shift, first, last);
    else
      columns<false>(p, scale, shift, first, last);
  });
}

} // namespace

NF_AVX512 void inferenceNhwc(const HandWrittenProblem &p) {
  thread_local std::vector<float> parameters;
  parameters.resize(static_cast<size_t>(2 * p.channels));
  float *scale = parameters.data(), *shift = scale + p.channels;
  for (int64_t c = 0; c < p.channels; ++c) {
    const Affine a = affineOf(p, c, p.mean[c], p.variance[c]);
    scale[c] = a.scale;
    shift[c] = a.shift;
  }
  columns(p, scale, shift);
}

NF_AVX512 void trainingNhwc(const HandWrittenProblem &p, float *workspace) {
  const int64_t channels = p.channels, rows = p.n * p.pixels;
  const int threads = threadsFor(p);
  float *mean = workspace, *scale = mean + channels, *shift = scale + channels,
        *partial = shift + channels;
  // A partial sum of each column for each range of rows.
  auto sumColumns = [&](const float *about) NF_AVX512 {
    parallel(threads, threads, [&](int64_t first, int64_t last) NF_AVX512 {
      for (int64_t t = first; t < last; ++t) {
        float *sums = partial + t * channels;
        std::fill(sums, sums + channels, 0.F);
        for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; ++r)
          for (int64_t c = 0; c < channels; c += 16) {
            const __mmask16 mask = maskOf(channels - c);
            __m512 v = _mm512_maskz_loadu_ps(mask, p.x + r * channels + c);
            __m512 sum = _mm512_maskz_loadu_ps(mask, sums + c);
            if (about) {
              v = _mm512_sub_ps(v, _mm512_maskz_loadu_ps(mask, about + c));
              sum = _mm512_fmadd_ps(v, v, sum);
            } else {
              sum = _mm512_add_ps(v, sum);
            }
            _mm512_mask_storeu_ps(sums + c, mask, sum);
          }
      }
    });
  };
  auto total = [&](int64_t c) {
    float sum = 0;
    for (int t = 0; t < threads; ++t)
      sum += partial[t * channels + c];
    return sum / static_cast<float>(rows);
  };
  sumColumns(nullptr);
  for (int64_t c = 0; c < channels; ++c)
    mean[c] = total(c);
  sumColumns(mean);
  for (int64_t c = 0; c < channels; ++c) {
    const Affine a = affineOf(p, c, mean[c], total(c));
    scale[c] = a.scale;
    shift[c] = a.shift;
  }
  columns(p, scale, shift);
}

namespace {} // namespace

} // namespace normforge::bench

#else // no kernels by hand for other machines

namespace normforge::bench {

bool canRunHandWritten() { return false; }
void inferenceNchw(const HandWrittenProblem &) {}
void trainingNchw(const HandWrittenProblem &) {}
void inferenceNhwc(const HandWrittenProblem &) {}
void trainingNhwc(const HandWrittenProblem &, float *) {}

} // namespace normforge::bench

#endif
