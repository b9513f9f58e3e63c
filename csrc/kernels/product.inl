// The features that can matter, out of a product that is never stored: x W^T in bfloat16, 32 features by 32 rows at a
// time in the tiles of AMX, screened in float32 as they leave them. The bound is that of screen.inl, with the rho of a
// float32 product. Features are the rows of a tile, as they lie in memory, and rows of x its columns: those are packed
// beforehand, and a vector holds the same feature of 16 of them.

#pragma once

#include "screen.inl"

#if defined(__AVX512F__) && defined(PULLBACK_TILES)

// The rows of x that share a vector: which of them are there, and what their slack is made of.
struct Abreast {
  int64_t first;
  __mmask16 there;
  Vec<float> of_norm, of_rest, flushed;

  Abreast(const ScreenedProduct& p, int64_t n) : first(n), there(p.n - n >= 16 ? 0xffff : (1u << (p.n - n)) - 1) {
    const Vec<float> rests = _mm512_maskz_loadu_ps(there, p.x_rests + n);
    const Vec<float> X = _mm512_maskz_loadu_ps(there, p.x_norms + n) + rests;
    of_norm = (rests + p.gamma * X + screen_tiny) * screen_inflation;
    of_rest = (X + p.gamma * X) * screen_inflation;
    flushed = screen_tiny * (1 + X);
  }
  Vec<float> slack(const ScreenedProduct& p, int64_t tile) const {
    return of_norm * p.tile_norms[tile] + of_rest * p.tile_rests[tile] + p.tile_biases[tile] + flushed;
  }
};

inline Vec<float> magnitude(Vec<float> v) { return _mm512_abs_ps(v); }

// A number below which no v can have a high that reaches the bound: 1 / (1 - rho) <= 1 + rho + 2 rho^2, and the
// roundings are within 2^-20 of what they round.
inline Vec<float> least_reaching(Vec<float> bounds, Vec<float> slack, float rho) {
  const Vec<float> left = bounds - slack;
  return left - (rho + 2 * rho * rho) * magnitude(left) - (magnitude(bounds) + slack) * 0x1p-20f;
}

// Which of 16 rows each feature f ... f + count may matter to, in `reach`; in lanes of the result whether a v of the
// row was not finite. Biased products take the place of the products.
inline unsigned reaching(const ScreenedProduct& p, Vec<float> slack, Vec<float> least, __mmask16 open, int64_t f,
                         int64_t count, float* products, __mmask16* reach) {
  Vec<float> odd = {};  // turns NaN at the first v that is not finite, and stays so
  const float* bias = p.bias + f;
  if (p.thresholds) {
    const float* thresholds = p.thresholds + f;
    for (int64_t i = 0; i < count; ++i) {
      const Vec<float> v = load(products + 16 * i) + bias[i];
      odd += v * 0;
      store(products + 16 * i, v);
      reach[i] =
          _mm512_mask_cmp_ps_mask(open, v + slack + p.rho * magnitude(v), _mm512_set1_ps(thresholds[i]), _CMP_GE_OQ);
    }
  } else {
#  pragma GCC unroll 4
    for (int64_t i = 0; i < count; ++i) {
      const Vec<float> v = load(products + 16 * i) + bias[i];
      odd += v * 0;
      store(products + 16 * i, v);
      reach[i] = _mm512_cmp_ps_mask(v, least, _CMP_GE_OQ);
    }
  }
  return _mm512_cmp_ps_mask(odd, odd, _CMP_UNORD_Q);
}

// Of row n, which holds as many candidates as it may for now: raises its bound, or gives it up. Seldom called, and kept
// out of the loop that calls it.
__attribute__((noinline)) void make_room(const ScreenedProduct& p, const Candidates& to, int64_t n) {
  Kept kept = of_row(to, n);
  if (!p.thresholds) to.bounds[n] = raised(kept, p.k, to.bounds[n], to, n);
  to.counts[n] = kept.count + screen_room > to.capacity ? -1 : static_cast<int32_t>(kept.count);
}

// Screens the features f ... f + count of 16 rows: products holds a vector for each.
inline void sift(const ScreenedProduct& p, Candidates to, const Abreast& rows, int64_t f, int64_t count,
                 float* products) {
  const Vec<float> slack = rows.slack(p, f / product_side), never = __builtin_inff() + Vec<float>{};
  const __m512i counts = _mm512_maskz_loadu_epi32(rows.there, to.counts + rows.first);
  const __mmask16 open = _mm512_mask_cmp_epi32_mask(rows.there, counts, _mm512_setzero_si512(), _MM_CMPINT_NLT);
  Vec<float> least = never;
  if (!p.thresholds) {
    const Vec<float> bounds = _mm512_maskz_loadu_ps(rows.there, to.bounds + rows.first);
    least = _mm512_mask_blend_ps(open, never, least_reaching(bounds, slack, p.rho));
  }
  alignas(64) __mmask16 reach[product_side] = {};
  unsigned lost = reaching(p, slack, least, open, f, count, products, reach);
  lost |= ~_mm512_cmp_ps_mask(slack, _mm512_set1_ps(1e37f), _CMP_LT_OQ);

  float slacks[16];
  store(slacks, slack);
  const float rho = p.rho, *thresholds = p.thresholds;
  const int32_t id = static_cast<int32_t>(p.first + f), full = static_cast<int32_t>(to.capacity - screen_room + 1);
  for (int64_t four = 0; four < product_side; four += 4) {
    uint64_t hits;
    __builtin_memcpy(&hits, reach + four, sizeof hits);
    for (; hits; hits &= hits - 1) {
      const int64_t bit = __builtin_ctzll(hits) + 16 * four, i = bit / 16, lane = bit % 16, n = rows.first + lane;
      if (to.counts[n] < 0) continue;
      Kept kept = of_row(to, n);
      keep(products[bit], id + static_cast<int32_t>(i), thresholds ? thresholds[f + i] : to.bounds[n], slacks[lane],
           rho, kept);
      to.counts[n] = static_cast<int32_t>(kept.count);
      if (kept.count >= (thresholds ? full : std::min(to.limits[n], full))) make_room(p, to, n);
    }
  }
  for (lost &= rows.there; lost; lost &= lost - 1) to.counts[rows.first + __builtin_ctz(lost)] = -1;
}

// First lower bounds of the k-th largest pre-activations of 16 rows, as first_bound finds one: from the largest of each
// few features, whose lows `lows` has room for. at(i) is where the vector of feature f + i stands.
template <class At>
inline void first_bounds(const ScreenedProduct& p, const Candidates& candidates, const Abreast& rows, int64_t f,
                         int64_t count, float* lows, const At& at) {
  const int64_t group = count >= 32 * p.k ? 8 : 2, groups = count / group;
  if (groups < p.k) return;
  Vec<float> least = __builtin_inff() + Vec<float>{}, most = -least;
  for (int64_t g = 0; g < groups; ++g) {
    Vec<float> top = load(at(g * group)) + p.bias[f + g * group];
    for (int64_t i = g * group + 1; i < (g + 1) * group; ++i) top = Max::of(load(at(i)) + p.bias[f + i], top);
    const Vec<float> low = top - rows.slack(p, (f + g * group) / product_side) - p.rho * magnitude(top);
    store(lows + 16 * g, low);
    most = Max::of(low, most);
    least = low < least ? low : least;
  }
  for (int step = 0; step < 12; ++step) {
    const Vec<float> middle = least + (most - least) / 2;
    Mask<float> reaching = {};
    for (int64_t g = 0; g < groups; ++g) reaching -= load(lows + 16 * g) >= middle;
    const Mask<float> enough = reaching >= static_cast<int32_t>(p.k);
    least = enough ? middle : least;
    most = enough ? most : middle;
  }
  float* bounds = candidates.bounds + rows.first;
  _mm512_mask_storeu_ps(bounds, rows.there, Max::of(least, Vec<float>(_mm512_maskz_loadu_ps(rows.there, bounds))));
}

// Rows of W as a tile takes them: where they lie, or in `copy` where features or columns are missing.
struct TileRows {
  const char* rows;
  int64_t stride;

  TileRows(const ScreenedProduct& p, int64_t f, int64_t count, int64_t steps, uint16_t* copy) {
    const uint16_t* first = p.W + f * p.W_stride;
    const int64_t columns = steps * product_side;
    const bool whole = count == product_side && columns == p.d;
    rows = reinterpret_cast<const char*>(whole ? first : copy);
    stride = 2 * (whole ? p.W_stride : columns);
    if (whole) return;
    __builtin_memset(copy, 0, product_side * stride);
    for (int64_t i = 0; i < count; ++i) __builtin_memcpy(copy + i * columns, first + i * p.W_stride, 2 * p.d);
  }
};

struct TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// What a thread writes to memory stands there before tiles are loaded from it, and the other way round: the compiler
// does not know what they read.
inline void settle_memory() { __asm__ volatile("" ::: "memory"); }

// The tiles 0 ... 3 = 32 features by 32 rows of x. `ahead` is fetched on the way, so many lines a step.
__attribute__((target("amx-tile,amx-bf16"))) inline void multiply(const TileRows& w, const uint16_t* panel,
                                                                  int64_t steps, const char* ahead, int64_t lines) {
  const char* w_first = w.rows;
  const char* w_last = w.rows + 16 * w.stride;
  settle_memory();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s, w_first += 64, w_last += 64, panel += 2 * 512) {
    _tile_loadd(4, w_first, w.stride);
    _tile_loadd(6, panel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, w_last, w.stride);
    _tile_dpbf16ps(1, 5, 6);
    _tile_loadd(7, panel + 512, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
    for (int64_t c = 0; c < 2 * 512; c += 32) __builtin_prefetch(panel + 2 * 2 * 512 + c);
    for (int64_t line = 0; line < lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
  }
}

// Their sums, as vectors of 16 rows: those of all features for the first 16 rows, then for the others.
__attribute__((target("amx-tile,amx-bf16"))) inline void store_tiles(float* products) {
  settle_memory();
  _tile_stored(0, products, 64);
  _tile_stored(1, products + 256, 64);
  _tile_stored(2, products + 512, 64);
  _tile_stored(3, products + 768, 64);
  settle_memory();
}

__attribute__((target("amx-tile,amx-bf16"))) void screen_product(const ScreenedProduct& p, const Candidates& candidates,
                                                                 int64_t f_begin, int64_t f_end, int64_t n_begin,
                                                                 int64_t n_end, void* scratch) {
  constexpr int64_t side = product_side, size = side * side;
  const int64_t steps = (p.d + side - 1) / side, panels = (n_end - n_begin + side - 1) / side;
  const int64_t first = std::min(f_end - f_begin, product_first(p.k));
  float* products = static_cast<float*>(scratch);
  float* lows = products + product_first(p.k) * panels * side;
  uint16_t* copy = reinterpret_cast<uint16_t*>(lows + 8 * product_first(p.k));
  const int64_t lines = (side * p.W_stride * 2 + 63) / 64, at_once = (lines + panels * steps - 1) / (panels * steps);
  const TileShapes shapes;
  settle_memory();
  _tile_loadconfig(&shapes);

  // Multiplies the features from f on with one panel after the other; done(q) takes the sums out of the tiles.
  const auto multiply_by = [&](int64_t f, const auto& done) {
    const TileRows w(p, f, std::min(side, f_end - f), steps, copy);
    const bool more = f + 2 * side <= f_end;
    const char* ahead = reinterpret_cast<const char*>(p.W + (f + side) * p.W_stride);
    for (int64_t q = 0; q < panels; ++q) {
      multiply(w, p.panels + (n_begin / side + q) * steps * size, steps, ahead + 64 * at_once * steps * q,
               more ? at_once : 0);
      done(q);
    }
  };
  const auto sift_panel = [&](int64_t f, int64_t q, float* of_panel) {
    for (int64_t half = 0; half < 2; ++half)
      if (const int64_t n = n_begin + q * side + 16 * half; n < n_end)
        sift(p, candidates, Abreast(p, n), f, std::min(side, f_end - f), of_panel + size / 2 * half);
  };

  int64_t f = f_begin;
  if (!p.thresholds && candidates.bounds[n_begin] == -__builtin_inff()) {
    const auto at = [&](int64_t i, int64_t q) { return products + (i / side * panels + q) * size; };
    for (int64_t i = 0; i < first; i += side) multiply_by(f + i, [&](int64_t q) { store_tiles(at(i, q)); });
    for (int64_t n = n_begin; n < n_end; n += 16)
      first_bounds(p, candidates, Abreast(p, n), f, first, lows, [&](int64_t i) {
        return at(i, (n - n_begin) / side) + (n - n_begin) % side * side + 16 * (i % side);
      });
    for (int64_t i = 0; i < first; i += side)
      for (int64_t q = 0; q < panels; ++q) sift_panel(f + i, q, at(i, q));
    f += first;
  }
  // What came out of the tiles is screened while the next sums are made in them.
  int64_t held_f = f_end, held_q = 0;
  const auto sift_held = [&] {
    if (held_f < f_end) sift_panel(held_f, held_q, products);
  };
  for (; f < f_end; f += side)
    multiply_by(f, [&](int64_t q) {
      sift_held();
      store_tiles(products);
      held_f = f, held_q = q;
    });
  sift_held();
  _tile_release();
}

#endif
