// The inner products behind the sampled dot and the contraction: B rows of g against E rows of w, in registers.
// What one pair comes to does not depend on the pairs beside it.

#pragma once

#include "bf16.inl"
#include "vector.inl"

// a and b hold blocks of 2 half lanes, one block a sum. Halves every block by adding its upper half to its lower one,
// and puts the blocks of b between those of a.
template <class V, int half, size_t... i>
inline V folded_pair(V a, V b, std::index_sequence<i...>) {
  constexpr int n = sizeof...(i);
  const V lower = __builtin_shufflevector(a, b, ((i / half % 2) * n + i / (2 * half) * (2 * half) + i % half)...);
  const V upper =
      __builtin_shufflevector(a, b, ((i / half % 2) * n + i / (2 * half) * (2 * half) + i % half + half)...);
  return lower + upper;
}

// The lane at which folded() leaves sum s of n: its bits in reverse order, in blocks of lanes / n.
template <class T, int n>
constexpr int lane_of(int s) {
  int lane = 0;
  for (int bit = 1; bit < n; bit *= 2) lane = 2 * lane + (s / bit & 1);
  return lane * static_cast<int>(lanes<T> / n);
}

// The sums over the lanes of n vectors (a power of two), together: about 3 instructions each instead of 8. The order
// of additions is that of fold().
template <class T, int n, int half = lanes<T> / 2>
inline Vec<T> folded(const Vec<T>* v) {
  if constexpr (half == 0) {
    return v[0];
  } else if constexpr (n == 1) {
    const Vec<T> sum = v[0] + rotate<Vec<T>, half>(v[0], std::make_index_sequence<lanes<T>>{});
    return folded<T, 1, half / 2>(&sum);
  } else {
    Vec<T> pairs[n / 2];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i)
      pairs[i] = folded_pair<Vec<T>, half>(v[2 * i], v[2 * i + 1], std::make_index_sequence<lanes<T>>{});
    return folded<T, n / 2, half / 2>(pairs);
  }
}

// out[s] = the sum over the lanes of v[s], for any number of vectors.
template <class T, int count>
inline void fold_each(const Vec<T>* v, T* out) {
  constexpr int whole = lanes<T>;
  if constexpr (count > whole) {
    fold_each<T, whole>(v, out);
    fold_each<T, count - whole>(v + whole, out + whole);
  } else if constexpr ((count & (count - 1)) != 0) {
    constexpr int part = count & -count;  // the lowest bit: what is left has fewer
    fold_each<T, count - part>(v, out);
    fold_each<T, part>(v + count - part, out + count - part);
  } else {
    const Vec<T> sums = folded<T, count>(v);
#pragma GCC unroll 16
    for (int s = 0; s < count; ++s) out[s] = sums[lane_of<T, count>(s)];
  }
}

// Rows that will be read soon, asked into the second cache on the way: they are elsewhere in memory, and no hardware
// prefetcher can guess them. None where `itemsize` is 0.
struct Ahead {
  const char* rows[4] = {};
  int64_t itemsize = 0;
};

template <class T, class TW, int B, int E>
inline void dots(const T* const* g, const TW* const* w, const Ahead& ahead, int64_t d, T (*out)[E]) {
  Vec<T> sum[B * E] = {};
  int64_t c = 0;
  for (; c + lanes<T> <= d; c += lanes<T>) {
    Vec<T> wc[E];
#pragma GCC unroll 8
    for (int e = 0; e < E; ++e) wc[e] = load(w[e] + c);
    if (ahead.itemsize) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) __builtin_prefetch(ahead.rows[i] + c * ahead.itemsize, 0, 2);
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      const Vec<T> gc = load(g[b] + c);
#pragma GCC unroll 8
      for (int e = 0; e < E; ++e) sum[b * E + e] += gc * wc[e];
    }
  }
  fold_each<T, B * E>(sum, out[0]);
  for (; c < d; ++c)
    for (int b = 0; b < B; ++b)
      for (int e = 0; e < E; ++e) out[b][e] += g[b][c] * widen(w[e][c]);
}

// The rows of the next entries; past the end the last one again, whose results nobody reads.
template <class T, int E>
inline void entry_rows(const int32_t* indices, int64_t left, const T* W, int64_t W_stride, const T** w) {
#pragma GCC unroll 8
  for (int e = 0; e < E; ++e) w[e] = W + indices[e < left ? e : left - 1] * W_stride;
}

template <class TW>
inline Ahead entries_ahead(const int32_t* indices, int64_t left, const TW* W, int64_t W_stride) {
  Ahead ahead;
  if (left <= 0) return ahead;
  for (int i = 0; i < 4; ++i)
    ahead.rows[i] = reinterpret_cast<const char*>(W + indices[i < left ? i : left - 1] * W_stride);
  ahead.itemsize = sizeof(TW);
  return ahead;
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
    dots<T, T, 1, E>(&row, w, entries_ahead(indices + j + E, left - E, W, W_stride), d, result);
    for (int i = 0; i < E && i < left; ++i) out[j + i] = result[0][i];
  }
}

template <class T>
void sampled_rows(const T* g, int64_t g_stride, const T* W, int64_t W_stride, int64_t d, const int64_t* indptr,
                  const int32_t* indices, int64_t begin, int64_t end, T* out) {
  for (int64_t n = begin; n < end; ++n)
    row_dots(g + n * g_stride, indices + indptr[n], indptr[n + 1] - indptr[n], W, W_stride, d, out + indptr[n]);
}
