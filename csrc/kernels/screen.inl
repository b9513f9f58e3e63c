// The features that can matter, out of a cheap product of known error.
//
// A block of columns of y ~ x W^T comes with an error bound that is proved in docs/CERTIFIED_SCREEN.md: with v = y + b,
//
//     |h - v| <= slack + rho |v|,    slack = (rx + gamma X) |w| + (1 + gamma) X rw + rho |b| + tiny,    X = |x| + rx,
//
// where h is the canonical pre-activation, rx and rw bound what x and w lost to rounding before the product, gamma what
// the accumulation lost, and rho what the result lost. The slack of a tile of features is that of its largest norms.
// What may still be among the k largest, or above its threshold, is kept as an interval [low, high]; nothing else can
// be.

#include "shadow.inl"
#include "topk.inl"
#include "vector.inl"

inline float widened(float y) { return y; }
inline float widened(uint16_t y) { return from_bf16(y); }
inline Vec<float> load_widened(const float* y) { return load(y); }
inline Vec<float> load_widened(const uint16_t* y) {
  typedef uint16_t Halves __attribute__((vector_size(PULLBACK_VECTOR_BYTES / 2)));
  typedef uint32_t Bits __attribute__((vector_size(PULLBACK_VECTOR_BYTES)));
  Halves halves;
  __builtin_memcpy(&halves, y, sizeof halves);
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(halves, Bits) << 16);
}

// v = y + bias for the features of a block, with the maximum of each tile. Returns whether all are finite.
template <class Y>
inline bool biased(const Y* y, const float* bias, int64_t width, float* v, float* maxima) {
  bool finite = true;
  Mask<float> odd = {};
  for (int64_t begin = 0; begin < width; begin += screen_tile) {
    const int64_t end = begin + screen_tile < width ? begin + screen_tile : width;
    if (end - begin == screen_tile) {
      Vec<float> top = load_widened(y + begin) + load(bias + begin);
      for (int64_t c = begin; c < end; c += lanes<float>) {
        const Vec<float> values = load_widened(y + c) + load(bias + c);
        store(v + c, values);
        odd |= values - values != 0;
        top = Max::of(values, top);
      }
      *maxima++ = fold<Max, float>(top);
    } else {
      float top = -__builtin_inff();
      for (int64_t c = begin; c < end; ++c) {
        v[c] = widened(y[c]) + bias[c];
        finite &= v[c] - v[c] == 0;
        top = v[c] > top ? v[c] : top;
      }
      *maxima++ = top;
    }
  }
  return finite && fold<Or, float>(odd) == 0;
}

inline float magnitude(float v) { return v < 0 ? -v : v; }

// Of one row: what its candidates are held against, and where they go.
struct Kept {
  int32_t* ids;
  float *lows, *highs;
  int64_t count;
};

inline Kept of_row(const Candidates& c, int64_t n) {
  return {c.ids + n * c.capacity, c.lows + n * c.capacity, c.highs + n * c.capacity, c.counts[n]};
}

// A bound that at least k of n numbers reach, a dozen halvings of their range from the k-th largest: none has to be
// moved for it, and a bound that is a little low only keeps a little more.
inline float reached_by(const float* numbers, int64_t n, int64_t k) {
  float low, high;
  extremes(numbers, n, low, high);
  for (int step = 0; step < 12; ++step) {
    const float middle = low + (high - low) / 2;
    if (!(low < middle && middle < high)) break;
    const int64_t count = count_reaching(numbers, n, middle);
    (count >= k ? low : high) = middle;
    if (count == k) break;
  }
  return low;
}

// Raises the bound towards the k-th largest low, and lets go of what cannot reach it.
inline void tighten(Kept& kept, int64_t k, float& bound) {
  if (kept.count < k) return;
  const float reached = reached_by(kept.lows, kept.count, k);
  if (reached > bound) bound = reached;
  int64_t left = 0;
  for (int64_t i = 0; i < kept.count; ++i) {
    kept.ids[left] = kept.ids[i];
    kept.lows[left] = kept.lows[i];
    kept.highs[left] = kept.highs[i];
    left += kept.highs[i] >= bound;
  }
  kept.count = left;
}

// A first lower bound of the k-th largest pre-activation: k groups have a maximum whose low reaches it.
inline float first_bound(const float* v, const float* maxima, const float* slacks, int64_t width, int64_t k, float rho,
                         float* lows) {
  constexpr int64_t fine = 16;
  const bool coarse = width >= 2 * k * screen_tile;
  const int64_t group = coarse ? screen_tile : fine, groups = width / group;
  if (groups < k) return -__builtin_inff();
  for (int64_t g = 0; g < groups; ++g) {
    float top = maxima[g];
    if (!coarse) {
      top = v[g * fine];
      for (int64_t i = 1; i < fine; ++i) top = v[g * fine + i] > top ? v[g * fine + i] : top;
    }
    lows[g] = top - slacks[g * group / screen_tile] - rho * magnitude(top);
  }
  return reached_by(lows, groups, k);
}

// Appends v[i] as an interval, if its high reaches the bound.
inline void keep(float v, int32_t id, float bound, float slack, float rho, Kept& kept) {
  const float room = slack + rho * magnitude(v), high = v + room;
  kept.ids[kept.count] = id;
  kept.lows[kept.count] = v - room;
  kept.highs[kept.count] = high;
  kept.count += high >= bound;
}

#ifdef __AVX512F__
// The same for a vector. Compressed in registers: a masked store to memory is slow on some processors.
inline void keep(Vec<float> v, int32_t first, Vec<float> bounds, float slack, float rho, Kept& kept) {
  const __m512 room = _mm512_fmadd_ps(_mm512_abs_ps(v), _mm512_set1_ps(rho), _mm512_set1_ps(slack));
  const __m512 high = _mm512_add_ps(v, room);
  const __mmask16 reach = _mm512_cmp_ps_mask(high, bounds, _CMP_GE_OQ);
  if (reach == 0) return;
  const __m512i lanes_of = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i ids = _mm512_add_epi32(_mm512_set1_epi32(first), lanes_of);
  _mm512_storeu_si512(kept.ids + kept.count, _mm512_maskz_compress_epi32(reach, ids));
  _mm512_storeu_ps(kept.lows + kept.count, _mm512_maskz_compress_ps(reach, _mm512_sub_ps(v, room)));
  _mm512_storeu_ps(kept.highs + kept.count, _mm512_maskz_compress_ps(reach, high));
  kept.count += __builtin_popcount(reach);
}
#else
inline void keep(Vec<float> v, int32_t first, Vec<float> bounds, float slack, float rho, Kept& kept) {
  const Vec<float> high = v + slack + rho * (v < 0 ? -v : v);
  if (fold<Or, float>(high >= bounds) == 0) return;
  for (int i = 0; i < lanes<float>; ++i) keep(v[i], first + i, bounds[i], slack, rho, kept);
}
#endif

// Keeps the features of one tile whose high reaches their bound: one for all, or one for each.
inline void keep_tile(const float* v, const float* bounds, float bound, int64_t width, int32_t first, float slack,
                      float rho, Kept& kept) {
  const Vec<float> same = bound + Vec<float>{};
  int64_t i = 0;
  for (; i + lanes<float> <= width; i += lanes<float>)
    keep(load(v + i), first + static_cast<int32_t>(i), bounds ? load(bounds + i) : same, slack, rho, kept);
  for (; i < width; ++i) keep(v[i], first + static_cast<int32_t>(i), bounds ? bounds[i] : bound, slack, rho, kept);
}

template <class Y>
void screen_rows(const ScreenBlock& block, const Candidates& candidates, int64_t begin, int64_t end, void* memory) {
  const int64_t tiles = (block.width + screen_tile - 1) / screen_tile, capacity = candidates.capacity, k = block.k;
  float* v = static_cast<float*>(memory);
  float* maxima = v + block.width;
  float* slacks = maxima + tiles;
  float* lows = slacks + tiles;
  const bool each = block.thresholds != nullptr;

  for (int64_t n = begin; n < end; ++n) {
    int32_t& count = candidates.counts[n];
    if (count < 0) continue;
    bool settled = biased(static_cast<const Y*>(block.y) + n * block.y_stride, block.bias, block.width, v, maxima);
    const float X = block.x_norms[n] + block.x_rests[n];
    const float of_norm = (block.x_rests[n] + block.gamma * X + screen_tiny) * screen_inflation;
    const float of_rest = (X + block.gamma * X) * screen_inflation, flushed = screen_tiny * (1 + X);
    for (int64_t t = 0; t < tiles; ++t) {
      slacks[t] = of_norm * block.tile_norms[t] + of_rest * block.tile_rests[t] + block.tile_biases[t] + flushed;
      settled &= slacks[t] < 1e37f;
    }
    Kept kept = of_row(candidates, n);
    float bound = each ? 0 : candidates.bounds[n];
    if (settled && !each && bound == -__builtin_inff())
      bound = first_bound(v, maxima, slacks, block.width, k, block.rho, lows);

    for (int64_t t = 0; settled && t < tiles; ++t) {
      const int64_t first = t * screen_tile, rest = block.width - first;
      const float lowest = each ? block.tile_thresholds[t] : bound;
      if (maxima[t] + slacks[t] + block.rho * magnitude(maxima[t]) < lowest) continue;
      if (!each && kept.count >= candidates.limits[n]) {
        tighten(kept, k, bound);
        const int64_t limit = 2 * kept.count > candidates.limits[n] ? 2 * kept.count : candidates.limits[n];
        const int64_t most = capacity - screen_room;
        candidates.limits[n] = static_cast<int32_t>(limit < most ? limit : most);
      }
      if (kept.count + screen_room > capacity) {
        settled = false;
        break;
      }
      const int64_t width = rest < screen_tile ? rest : screen_tile;
      const int32_t id = static_cast<int32_t>(block.first + first);
      keep_tile(v + first, each ? block.thresholds + first : nullptr, bound, width, id, slacks[t], block.rho, kept);
    }
    count = settled ? static_cast<int32_t>(kept.count) : -1;
    if (!each) candidates.bounds[n] = bound;
  }
}

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

// <w, x> of float64 and float32, accumulated in float64. The row after x is fetched on the way: it lies anywhere.
inline double exact_dot(const double* w, const float* x, const float* next, int64_t d) {
  constexpr int64_t step = lanes<double>, line = 64 / sizeof(float);
  Vec<double> sum[4] = {};
  int64_t c = 0;
  for (; c + 4 * step <= d; c += 4 * step) {
    for (int64_t ahead = 0; ahead < 4 * step; ahead += line) __builtin_prefetch(next + c + ahead);
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sum[u] += load(w + c + u * step) * load_doubled(x + c + u * step);
  }
  double total = fold<Add, double>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; c < d; ++c) total += w[c] * x[c];
  return total;
}

void tighten_rows(const Candidates& candidates, int64_t k, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    if (candidates.counts[n] < 0) continue;
    Kept kept = of_row(candidates, n);
    tighten(kept, k, candidates.bounds[n]);
    candidates.counts[n] = static_cast<int32_t>(kept.count);
  }
}

void evaluate_features(const ScreenedEncoder& e, const Candidates& candidates, const int64_t* starts,
                       const int64_t* slots, int64_t begin, int64_t end, void* scratch) {
  double* w = static_cast<double*>(scratch);
  const auto row = [&](int64_t i) { return e.x + slots[i] / candidates.capacity * e.x_stride; };
  for (int64_t f = begin; f < end; ++f) {
    if (starts[f] == starts[f + 1]) continue;
    for (int64_t c = 0; c < e.d; ++c) w[c] = e.W[f * e.W_stride + c];
    for (int64_t i = starts[f]; i < starts[f + 1]; ++i) {
      const float* x = row(i);
      const float* next = i + 1 < starts[end] ? row(i + 1) : x;
      candidates.lows[slots[i]] = static_cast<float>(exact_dot(w, x, next, e.d) + e.b[f]);
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
      left += kept.lows[i] > thresholds[kept.ids[i]];
    }
    candidates.counts[n] = static_cast<int32_t>(left);
  }
}
