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

// The entries of a position, with the columns of their decoder rows that are being done, and where the edges go.
template <class T, class TW>
struct Entries {
  const int32_t* indices;
  const T* values;
  int64_t n;
  const TW* W;
  int64_t W_stride, width;
  T* out;
  int64_t out_stride;
  bool add;
};

// Some targets, those that come next, and whether they are the first to meet the decoder rows.
template <class TG>
struct Targets {
  const TG* G;
  int64_t G_stride;
  const TG* next;
  int64_t n_next;
  bool first;
};

// What to ask for while a tile of targets goes through its entries, from entry e on: the first tile, the decoder rows
// of the entries to come; the others, four rows at a time, the targets of the next tile.
template <class T, class TG, class TW>
inline Ahead ahead_of(const Targets<TG>& targets, const Entries<T, TW>& entries, int64_t e) {
  const int64_t following = e + tile_entries;
  if (targets.first && following < entries.n)
    return entries_ahead(entries.indices + following, entries.n - following, entries.W, entries.W_stride);
  const int64_t b = targets.first ? 0 : e / tile_entries * 4;
  Ahead ahead;
  if (b >= targets.n_next) return ahead;
  for (int64_t i = 0; i < 4; ++i)
    ahead.rows[i] =
        reinterpret_cast<const char*>(targets.next + std::min(b + i, targets.n_next - 1) * targets.G_stride);
  ahead.itemsize = sizeof(TG);
  return ahead;
}

// B targets against E entries, from entry e on.
template <class T, class TW, int B, int E>
inline void contract_entries(const T* const* g, const Entries<T, TW>& entries, int64_t e, const Ahead& ahead) {
  const TW* w[E];
  T result[B][E];
  entry_rows<TW, E>(entries.indices + e, E, entries.W, entries.W_stride, w);
  dots<T, TW, B, E>(g, w, ahead, entries.width, result);
  for (int b = 0; b < B; ++b) {
    T* row = entries.out + b * entries.out_stride + e;
    for (int i = 0; i < E; ++i) row[i] = (entries.add ? row[i] : T(0)) + entries.values[e + i] * result[b][i];
  }
}

// B targets against entries e .. n, at most E of them.
template <class T, class TW, int B, int E>
inline void contract_rest(const T* const* g, const Entries<T, TW>& entries, int64_t e, const Ahead& ahead) {
  if constexpr (E > 0) {
    if (entries.n - e == E) return contract_entries<T, TW, B, E>(g, entries, e, ahead);
    contract_rest<T, TW, B, E - 1>(g, entries, e, ahead);
  }
}

// n targets, at most B of them, against all entries.
template <class T, class TG, class TW, int B>
inline void contract_targets(int64_t n, const Targets<TG>& targets, const Entries<T, TW>& entries) {
  if constexpr (B > 1) {
    if (n < B) return contract_targets<T, TG, TW, B - 1>(n, targets, entries);
  }
  alignas(64) T panel[std::is_same_v<T, TG> ? 1 : B][tile_columns<T>];
  const T* g[B];
  target_rows<T, B>(targets.G, targets.G_stride, entries.width, panel, g);
  int64_t e = 0;
  for (; e + tile_entries <= entries.n; e += tile_entries)
    contract_entries<T, TW, B, tile_entries>(g, entries, e, ahead_of(targets, entries, e));
  contract_rest<T, TW, B, tile_entries - 1>(g, entries, e, ahead_of(targets, entries, e));
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
      contract_targets<T, TG, TW, tile_targets>(
          end - b, Targets<TG>{G + b * G_stride + c, G_stride, G + end * G_stride + c, n_next, i == 0},
          Entries<T, TW>{indices, values, n_entries, W + c, W_stride, width, out + b * out_stride, out_stride,
                         add || c > 0});
    }
    c += width;
  } while (c < d);
}
