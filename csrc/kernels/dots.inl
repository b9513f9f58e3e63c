// The inner products behind the sampled dot and the contraction: B rows of g against E rows of w, in registers.
// What one pair comes to does not depend on the pairs beside it.

#include "vector.inl"

template <class T, int B, int E>
inline void dots(const T* const* g, const T* const* w, int64_t d, T (*out)[E]) {
  Vec<T> sum[B][E] = {};
  int64_t c = 0;
  for (; c + lanes<T> <= d; c += lanes<T>) {
    Vec<T> wc[E];
#pragma GCC unroll 8
    for (int e = 0; e < E; ++e) wc[e] = load(w[e] + c);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      const Vec<T> gc = load(g[b] + c);
#pragma GCC unroll 8
      for (int e = 0; e < E; ++e) sum[b][e] += gc * wc[e];
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) {
#pragma GCC unroll 8
    for (int e = 0; e < E; ++e) {
      T total = fold<Add, T>(sum[b][e]);
      for (int64_t t = c; t < d; ++t) total += g[b][t] * w[e][t];
      out[b][e] = total;
    }
  }
}

// Wide sets have 32 vector registers, the others 16.
constexpr int tile_entries = PULLBACK_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int tile_targets = 4;

// The rows of the next entries; past the end the last one again, whose results nobody reads.
template <class T, int E>
inline void entry_rows(const int32_t* indices, int64_t left, const T* W, int64_t W_stride, const T** w) {
#pragma GCC unroll 8
  for (int e = 0; e < E; ++e) w[e] = W + indices[e < left ? e : left - 1] * W_stride;
}

// out[j] = <row, W[indices[j]]>.
template <class T>
inline void row_dots(const T* row, const int32_t* indices, int64_t count, const T* W, int64_t W_stride, int64_t d,
                     T* out) {
  constexpr int E = 4;
  for (int64_t j = 0; j < count; j += E) {
    const int64_t left = count - j;
    const T* w[E];
    T result[1][E];
    entry_rows<T, E>(indices + j, left, W, W_stride, w);
    dots<T, 1, E>(&row, w, d, result);
    for (int i = 0; i < E && i < left; ++i) out[j + i] = result[0][i];
  }
}

template <class T>
void sampled_rows(const T* g, int64_t g_stride, const T* W, int64_t W_stride, int64_t d, const int64_t* indptr,
                  const int32_t* indices, int64_t begin, int64_t end, T* out) {
  for (int64_t n = begin; n < end; ++n)
    row_dots(g + n * g_stride, indices + indptr[n], indptr[n + 1] - indptr[n], W, W_stride, d, out + indptr[n]);
}

template <class T, int B>
inline void contract_targets(const T* G, int64_t G_stride, const int32_t* indices, const T* values, int64_t n_entries,
                             const T* W, int64_t W_stride, int64_t d, T* out, int64_t out_stride) {
  constexpr int E = tile_entries;
  const T* g[B];
  for (int b = 0; b < B; ++b) g[b] = G + b * G_stride;
  for (int64_t e = 0; e < n_entries; e += E) {
    const int64_t left = n_entries - e;
    const T* w[E];
    T result[B][E];
    entry_rows<T, E>(indices + e, left, W, W_stride, w);
    dots<T, B, E>(g, w, d, result);
    for (int b = 0; b < B; ++b)
      for (int i = 0; i < E && i < left; ++i) out[b * out_stride + e + i] = values[e + i] * result[b][i];
  }
}

template <class T>
void contract_tile(const T* G, int64_t G_stride, int64_t n_targets, const int32_t* indices, const T* values,
                   int64_t n_entries, const T* W, int64_t W_stride, int64_t d, T* out, int64_t out_stride) {
  int64_t b = 0;
  for (; b + tile_targets <= n_targets; b += tile_targets)
    contract_targets<T, tile_targets>(G + b * G_stride, G_stride, indices, values, n_entries, W, W_stride, d,
                                      out + b * out_stride, out_stride);
  for (; b < n_targets; ++b)
    contract_targets<T, 1>(G + b * G_stride, G_stride, indices, values, n_entries, W, W_stride, d, out + b * out_stride,
                           out_stride);
}
