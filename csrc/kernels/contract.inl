// The contraction of one position: every target against every entry, in tiles that stay in registers and the first
// cache.

#pragma once

#include "bf16.inl"
#include "dots.inl"
#include "vector.inl"

// Sums held at a time: wide sets have 32 vector registers, the others 16.
constexpr int tile_targets = PULLBACK_VECTOR_BYTES == 64 ? 6 : 4;
constexpr int tile_entries = PULLBACK_VECTOR_BYTES == 64 ? 4 : PULLBACK_VECTOR_BYTES == 32 ? 3 : 2;

// Columns done at a time: those of a tile's targets and entries fit the first cache together.
constexpr int64_t tile_bytes = 3072;
template <class T>
constexpr int64_t tile_columns = tile_bytes / sizeof(T);

// Rows of targets as T: where they lie, or widened into `panel`.
template <class T, int B>
inline void target_rows(const T* G, int64_t G_stride, int64_t, T (*)[tile_columns<T>], const T** g) {
  for (int b = 0; b < B; ++b) g[b] = G + b * G_stride;
}
template <class T, int B>
inline void target_rows(const bf16* G, int64_t G_stride, int64_t d, T (*panel)[tile_columns<T>], const T** g) {
  for (int b = 0; b < B; ++b) {
    const bf16* row = G + b * G_stride;
    int64_t c = 0;
    for (; c + lanes<T> <= d; c += lanes<T>) store(panel[b] + c, load(row + c));
    for (; c < d; ++c) panel[b][c] = widen(row[c]);
    g[b] = panel[b];
  }
}

// What to ask for while one tile of targets goes through its entries, from entry e on: the first tile, the decoder rows
// of the entries to come; the others, four rows at a time, the targets of the next tile.
template <class TG, class TW>
inline Ahead ahead_of(bool first, int64_t e, const TG* next, int64_t n_next, int64_t G_stride, const int32_t* indices,
                      int64_t n_entries, const TW* W, int64_t W_stride) {
  if (first && e + tile_entries < n_entries)
    return entries_ahead(indices + e + tile_entries, n_entries - e - tile_entries, W, W_stride);
  const int64_t b = first ? 0 : e / tile_entries * 4;
  Ahead ahead;
  if (b >= n_next) return ahead;
  for (int64_t i = 0; i < 4; ++i)
    ahead.rows[i] = reinterpret_cast<const char*>(next + std::min(b + i, n_next - 1) * G_stride);
  ahead.itemsize = sizeof(TG);
  return ahead;
}

// B targets, at most tile_columns columns.
template <class T, class TG, class TW, int B>
inline void contract_targets(const TG* G, int64_t G_stride, int64_t n_next, bool first, const int32_t* indices,
                             const T* values, int64_t n_entries, const TW* W, int64_t W_stride, int64_t d, T* out,
                             int64_t out_stride, bool add) {
  constexpr int E = tile_entries;
  T panel[std::is_same_v<T, TG> ? 1 : B][tile_columns<T>];
  const T* g[B];
  target_rows<T, B>(G, G_stride, d, panel, g);
  for (int64_t e = 0; e < n_entries; e += E) {
    const int64_t left = n_entries - e;
    const TW* w[E];
    T result[B][E];
    entry_rows<TW, E>(indices + e, left, W, W_stride, w);
    dots<T, TW, B, E>(g, w, ahead_of(first, e, G + B * G_stride, n_next, G_stride, indices, n_entries, W, W_stride), d,
                      result);
    for (int b = 0; b < B; ++b) {
      T* row = out + b * out_stride + e;
      for (int i = 0; i < E && i < left; ++i) row[i] = (add ? row[i] : T(0)) + values[e + i] * result[b][i];
    }
  }
}

// The same for n targets, n = 1 .. B.
template <class T, class TG, class TW, int B, class... Rest>
inline void contract_up_to(int64_t n, Rest... rest) {
  if constexpr (B > 1) {
    if (n < B) return contract_up_to<T, TG, TW, B - 1>(n, rest...);
  }
  contract_targets<T, TG, TW, B>(rest...);
}

template <class T, class TG, class TW>
void contract_tile(const TG* G, int64_t G_stride, int64_t n_targets, const int32_t* indices, const T* values,
                   int64_t n_entries, const TW* W, int64_t W_stride, int64_t d, T* out, int64_t out_stride, bool add) {
  // As many tiles as it takes, all about as tall: no tile of one target at the end.
  const int64_t n_tiles = (n_targets + tile_targets - 1) / tile_targets;
  const auto tile_start = [=](int64_t i) { return i * n_targets / n_tiles; };
  int64_t c = 0;
  do {  // d may be 0: out is written all the same
    const int64_t width = std::min<int64_t>(tile_columns<T>, d - c);
    for (int64_t i = 0; i < n_tiles; ++i) {
      const int64_t b = tile_start(i), end = tile_start(i + 1);
      const int64_t n_next = i + 1 < n_tiles ? tile_start(i + 2) - end : 0;
      contract_up_to<T, TG, TW, tile_targets>(end - b, G + b * G_stride + c, G_stride, n_next, i == 0, indices, values,
                                              n_entries, W + c, W_stride, width, out + b * out_stride, out_stride,
                                              add || c > 0);
    }
    c += width;
  } while (c < d);
}
