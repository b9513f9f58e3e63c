// The candidates of a screen, computed as they are defined, and what is chosen of them.

#include "screen.inl"
#include "vector.inl"

inline Vec<double> load_doubled(const float* w) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm256_loadu_ps(w));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_loadu_ps(w));
#else
  typedef float Half __attribute__((vector_size(PULLBACK_VECTOR_BYTES / 2)));
  Half half;
  __builtin_memcpy(&half, w, sizeof half);
  return __builtin_convertvector(half, Vec<double>);
#endif
}

// <w, x> of float64 and float32, accumulated in float64: 32 sums in turn, halved until one is left, then the rest of
// the row. Products of two float32 are exact, so every instruction set comes to the same bits. The row after x is
// fetched on the way: it lies anywhere.
inline double exact_dot(const double* w, const float* x, const float* next, int64_t d) {
  constexpr int64_t step = lanes<double>, line = 64 / sizeof(float), at_once = 32, n_sums = at_once / step;
  Vec<double> sum[n_sums] = {};
  int64_t c = 0;
  for (; c + at_once <= d; c += at_once) {
    for (int64_t ahead = 0; ahead < at_once; ahead += line) __builtin_prefetch(next + c + ahead);
#pragma GCC unroll 16
    for (int64_t u = 0; u < n_sums; ++u) sum[u] += load(w + c + u * step) * load_doubled(x + c + u * step);
  }
#pragma GCC unroll 4
  for (int64_t half = n_sums / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int64_t u = 0; u < half; ++u) sum[u] += sum[u + half];
  }
  double total = fold<Add, double>(sum[0]);
  for (; c < d; ++c) total += w[c] * x[c];
  return total;
}

inline float pre_activation(const ScreenedEncoder& e, const double* w, int64_t f, const float* x, const float* next) {
  return static_cast<float>(exact_dot(w, x, next, e.d) + e.b[f]);
}

void evaluate_features(const ScreenedEncoder& e, const Candidates& candidates, const int64_t* starts,
                       const int64_t* slots, int64_t begin, int64_t end, void* scratch) {
  constexpr int64_t line = 64 / sizeof(float);
  double* w = static_cast<double*>(scratch);
  const auto row = [&](int64_t i) { return e.x + slots[i] / candidates.capacity * e.x_stride; };
  const auto next_wanted = [&](int64_t f) {
    while (f < end && starts[f] == starts[f + 1]) ++f;
    return f;
  };
  for (int64_t f = next_wanted(begin), next_f; f < end; f = next_f) {
    // The next row of W comes from memory while the dots of this one are computed.
    next_f = next_wanted(f + 1);
    const float *w_row = e.W + f * e.W_stride, *w_next = e.W + (next_f < end ? next_f : f) * e.W_stride;
    for (int64_t c = 0; c < e.d; c += line) __builtin_prefetch(w_next + c, 0, 2);
    for (int64_t c = 0; c < e.d; ++c) w[c] = w_row[c];
    for (int64_t i = starts[f]; i < starts[f + 1]; ++i) {
      const float* x = row(i);
      const float* next = i + 1 < starts[end] ? row(i + 1) : x;
      candidates.lows[slots[i]] = pre_activation(e, w, f, x, next);
    }
  }
}

void evaluate_rows(const ScreenedEncoder& e, int64_t n, int64_t F, int64_t begin, int64_t end, float* h,
                   void* scratch) {
  double* w = static_cast<double*>(scratch);
  for (int64_t f = begin; f < end; ++f) {
    for (int64_t c = 0; c < e.d; ++c) w[c] = e.W[f * e.W_stride + c];
    for (int64_t row = 0; row < n; ++row) {
      const float *x = e.x + row * e.x_stride, *next = row + 1 < n ? x + e.x_stride : x;
      h[row * F + f] = pre_activation(e, w, f, x, next);
    }
  }
}

void choose_topk(const Candidates& candidates, int64_t k, bool relu, int64_t begin, int64_t end, float* values,
                 int32_t* indices, void* scratch) {
  float* chosen = static_cast<float*>(scratch);
  const Above<float> nothing = {0, k, chosen, reinterpret_cast<int32_t*>(chosen + candidates.capacity + 1)};
  for (int64_t n = begin; n < end; ++n) {
    if (candidates.counts[n] < 0) continue;
    const Kept kept = of_row(candidates, n);
    float least, most;
    extremes(kept.lows, kept.count, least, most);
    Above<float> above = bisect(kept.lows, kept.count, k, least, most, nothing);
    above.take(kept.lows, 0, kept.count);
    for (int64_t slot = 0; slot < k; ++slot) {
      values[n * k + slot] = clamped(above.values[slot], relu);
      indices[n * k + slot] = kept.ids[above.ids[slot]];
    }
  }
}

void choose_above(const Candidates& candidates, const float* thresholds, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    if (candidates.counts[n] < 0) continue;
    Kept kept = of_row(candidates, n);
    int64_t left = 0;
    for (int64_t i = 0; i < kept.count; ++i) {
      kept.ids[left] = kept.ids[i];
      kept.lows[left] = kept.lows[i];
      left += kept.lows[i] > thresholds[kept.ids[i]] && kept.lows[i] != 0;
    }
    candidates.counts[n] = static_cast<int32_t>(left);
  }
}
