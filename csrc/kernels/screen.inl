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

#pragma once

#include "bf16.inl"
#include "topk.inl"
#include "vector.inl"

// v = y + bias for the vector of features that starts at c.
template <class Y>
inline Vec<float> biased(const Y* y, const float* bias, int64_t c) {
  return load(y + c) + load(bias + c);
}

// The maximum of each tile of v = y + bias, and of whole tiles the maxima by lane in `tops`. Returns whether all v are
// finite.
template <class Y>
inline bool tile_maxima(const Y* y, const float* bias, int64_t width, float* maxima, float* tops) {
  Vec<float> odd = {};  // turns NaN at the first v that is not finite, and stays so
  const Vec<float> zero = {};
  int64_t begin = 0;
  for (; begin + screen_tile <= width; begin += screen_tile) {
    Vec<float> top = biased(y, bias, begin);
    odd += top * zero;
    for (int64_t c = begin + lanes<float>; c < begin + screen_tile; c += lanes<float>) {
      const Vec<float> v = biased(y, bias, c);
      odd += v * zero;
      top = Max::of(v, top);
    }
    store(tops, top);
    tops += lanes<float>;
    *maxima++ = fold<Max, float>(top);
  }
  float last = -__builtin_inff(), left_odd = 0;
  for (int64_t c = begin; c < width; ++c) {
    const float v = widen(y[c]) + bias[c];
    left_odd += v * 0;
    last = v > last ? v : last;
  }
  if (begin < width) *maxima = last;
  return fold<Add, float>(odd) + left_odd == 0;
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

// Appends the features of v, of ids first, first + 1, ..., whose interval reaches its bound. Written always, kept or
// overwritten: no branch to mispredict.
inline void keep(float v, int32_t id, float bound, float slack, float rho, Kept& kept) {
  const float room = slack + rho * magnitude(v), high = v + room;
  kept.ids[kept.count] = id;
  kept.lows[kept.count] = v - room;
  kept.highs[kept.count] = high;
  kept.count += high >= bound;
}

#ifdef __AVX512F__
// Compressed in registers: a masked store to memory is slow on some processors.
inline void append(Kept& to, __mmask16 which, __m512i ids, __m512 lows, __m512 highs) {
  _mm512_storeu_si512(to.ids + to.count, _mm512_maskz_compress_epi32(which, ids));
  _mm512_storeu_ps(to.lows + to.count, _mm512_maskz_compress_ps(which, lows));
  _mm512_storeu_ps(to.highs + to.count, _mm512_maskz_compress_ps(which, highs));
  to.count += __builtin_popcount(which);
}

inline void keep(Vec<float> v, int32_t first, Vec<float> bounds, float slack, float rho, Kept& kept) {
  const __m512 room = _mm512_fmadd_ps(_mm512_abs_ps(v), _mm512_set1_ps(rho), _mm512_set1_ps(slack));
  const __m512 high = _mm512_add_ps(v, room);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  append(kept, _mm512_cmp_ps_mask(high, bounds, _CMP_GE_OQ), _mm512_add_epi32(_mm512_set1_epi32(first), lane),
         _mm512_sub_ps(v, room), high);
}

// Lets go of what cannot reach the bound.
inline void drop_below(Kept& kept, float bound) {
  Kept left = {kept.ids, kept.lows, kept.highs, 0};
  for (int64_t i = 0; i < kept.count; i += 16) {
    const __mmask16 there = kept.count - i < 16 ? (1u << (kept.count - i)) - 1 : 0xffff;
    const __m512 highs = _mm512_maskz_loadu_ps(there, kept.highs + i);
    append(left, _mm512_mask_cmp_ps_mask(there, highs, _mm512_set1_ps(bound), _CMP_GE_OQ),
           _mm512_maskz_loadu_epi32(there, kept.ids + i), _mm512_maskz_loadu_ps(there, kept.lows + i), highs);
  }
  kept.count = left.count;
}
#else
inline void keep(Vec<float> v, int32_t first, Vec<float> bounds, float slack, float rho, Kept& kept) {
  const Vec<float> high = v + slack + rho * (v < 0 ? -v : v);
  if (fold<Or, float>(high >= bounds) == 0) return;
  for (int i = 0; i < lanes<float>; ++i) keep(v[i], first + i, bounds[i], slack, rho, kept);
}

inline void drop_below(Kept& kept, float bound) {
  int64_t left = 0;
  for (int64_t i = 0; i < kept.count; ++i) {
    kept.ids[left] = kept.ids[i];
    kept.lows[left] = kept.lows[i];
    kept.highs[left] = kept.highs[i];
    left += kept.highs[i] >= bound;
  }
  kept.count = left;
}
#endif

// Raises the bound towards the k-th largest low, and lets go of what cannot reach it.
inline void tighten(Kept& kept, int64_t k, float& bound) {
  if (kept.count < k) return;
  const float reached = reached_by(kept.lows, kept.count, k);
  if (reached > bound) bound = reached;
  drop_below(kept, bound);
}

// The bound of row n, raised if as many are held as were to be held before that; then more may be.
inline float raised(Kept& kept, int64_t k, float bound, const Candidates& candidates, int64_t n) {
  int32_t& limit = candidates.limits[n];
  if (kept.count < limit) return bound;
  tighten(kept, k, bound);
  const int64_t more = std::max<int64_t>(2 * kept.count, limit);
  limit = static_cast<int32_t>(std::min(more, candidates.capacity - screen_room));
  return bound;
}

// A first lower bound of the k-th largest pre-activation: the maxima of k tiles, or of k groups of a few features each,
// have a low that reaches it. Overwrites the tops.
inline float first_bound(const float* maxima, const float* slacks, int64_t tiles, float* tops, int64_t whole_tiles,
                         int64_t k, float rho) {
  const bool coarse = tiles >= 4 * k;
  const int64_t group = coarse ? 1 : lanes<float>, groups = coarse ? tiles : whole_tiles * group;
  if (groups < k) return -__builtin_inff();
  for (int64_t g = 0; g < groups; ++g) {
    const float top = coarse ? maxima[g] : tops[g];
    tops[g] = top - slacks[g / group] - rho * magnitude(top);
  }
  return reached_by(tops, groups, k);
}

// Keeps the features of one tile whose high reaches their bound: one for all, or one for each.
template <class Y>
inline void keep_tile(const Y* y, const float* bias, const float* bounds, float bound, int64_t width, int32_t first,
                      float slack, float rho, Kept& kept) {
  const Vec<float> same = bound + Vec<float>{};
  int64_t i = 0;
  for (; i + lanes<float> <= width; i += lanes<float>)
    keep(biased(y, bias, i), first + static_cast<int32_t>(i), bounds ? load(bounds + i) : same, slack, rho, kept);
  for (; i < width; ++i)
    keep(widen(y[i]) + bias[i], first + static_cast<int32_t>(i), bounds ? bounds[i] : bound, slack, rho, kept);
}

template <class Y>
void screen_rows(const ScreenBlock& block, const Candidates& candidates, int64_t begin, int64_t end, void* memory) {
  const int64_t tiles = (block.width + screen_tile - 1) / screen_tile, capacity = candidates.capacity, k = block.k;
  float* tops = static_cast<float*>(memory);
  float* maxima = tops + block.width;
  float* slacks = maxima + tiles;
  float* highs = slacks + tiles;
  int32_t* reaching = reinterpret_cast<int32_t*>(highs + tiles);
  const bool each = block.thresholds != nullptr;

  for (int64_t n = begin; n < end; ++n) {
    int32_t& count = candidates.counts[n];
    if (count < 0) continue;
    const Y* y = static_cast<const Y*>(block.y) + n * block.y_stride;
    bool settled = tile_maxima(y, block.bias, block.width, maxima, tops);
    const float X = block.x_norms[n] + block.x_rests[n];
    const float of_norm = (block.x_rests[n] + block.gamma * X + screen_tiny) * screen_inflation;
    const float of_rest = (X + block.gamma * X) * screen_inflation, flushed = screen_tiny * (1 + X);
    for (int64_t t = 0; t < tiles; ++t) {
      slacks[t] = of_norm * block.tile_norms[t] + of_rest * block.tile_rests[t] + block.tile_biases[t] + flushed;
      highs[t] = maxima[t] + slacks[t] + block.rho * magnitude(maxima[t]);
      settled &= slacks[t] < 1e37f;
    }
    Kept kept = of_row(candidates, n);
    float bound = each ? 0 : candidates.bounds[n];
    if (settled && !each && bound == -__builtin_inff())
      bound = first_bound(maxima, slacks, tiles, tops, block.width / screen_tile, k, block.rho);

    // The tiles that reach their bound, found without a branch to mispredict.

    int64_t n_reaching = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      reaching[n_reaching] = static_cast<int32_t>(t);
      n_reaching += settled && !(highs[t] < (each ? block.tile_thresholds[t] : bound));
    }
    for (int64_t i = 0; i < n_reaching; ++i) {
      if (!each) bound = raised(kept, k, bound, candidates, n);
      if (kept.count + screen_room > capacity) {
        settled = false;
        break;
      }
      const int64_t t = reaching[i], first = t * screen_tile, rest = block.width - first;
      const int64_t width = rest < screen_tile ? rest : screen_tile;
      keep_tile(y + first, block.bias + first, each ? block.thresholds + first : nullptr, bound, width,
                static_cast<int32_t>(block.first + first), slacks[t], block.rho, kept);
    }
    count = settled ? static_cast<int32_t>(kept.count) : -1;
    if (!each) candidates.bounds[n] = bound;
  }
}

void tighten_rows(const Candidates& candidates, int64_t k, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    if (candidates.counts[n] < 0) continue;
    Kept kept = of_row(candidates, n);
    tighten(kept, k, candidates.bounds[n]);
    candidates.counts[n] = static_cast<int32_t>(kept.count);
  }
}
