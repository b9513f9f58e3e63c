// Weighted sums of rows, several of the same rows at a time, which stay in registers meanwhile.

#pragma once

#include "vector.inl"

// Sums held at a time: rows by vectors of columns.
constexpr int sums_high = PULLBACK_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int product_high = PULLBACK_VECTOR_BYTES == 64 ? 6 : 2;
constexpr int sums_wide = 4;
static_assert(sums_high <= most_mixed, "patterns need more room");

// out[i] (+)= sum_h weights[i H + h] * rows[h], N of them, for C vectors of columns.
template <class T, int N, int C>
inline void weighted_tile(const T* rows, int64_t stride, const T* weights, int64_t H, bool add, T* out, int64_t step) {
  Vec<T> sum[N * C] = {};
  if (add) {
    for (int i = 0; i < N * C; ++i) sum[i] = load(out + i / C * step + i % C * lanes<T>);
  }
  for (int64_t h = 0; h < H; ++h) {
    Vec<T> row[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) row[c] = load(rows + h * stride + c * lanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const T weight = weights[i * H + h];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[i * C + c] += weight * row[c];
    }
  }
  for (int i = 0; i < N * C; ++i) store(out + i / C * step + i % C * lanes<T>, sum[i]);
}

// ... for all columns there are from c on, C vectors at a time; returns the first that is left.
template <class T, int N, int C>
inline int64_t weighted_columns(int64_t c, const T* rows, int64_t stride, const T* weights, int64_t H, int64_t d,
                                bool add, T* out, int64_t step) {
  for (; c + C * lanes<T> <= d; c += C * lanes<T>)
    weighted_tile<T, N, C>(rows + c, stride, weights, H, add, out + c, step);
  return c;
}

// ... for `count` sums, at most N, of d columns: the same sum whatever is beside it.
template <class T, int N>
inline void weighted_sums(int64_t count, const T* rows, int64_t stride, const T* weights, int64_t H, int64_t d,
                          bool add, T* out, int64_t step) {
  if constexpr (N > 1) {
    if (count < N) return weighted_sums<T, N - 1>(count, rows, stride, weights, H, d, add, out, step);
  }
  int64_t c = weighted_columns<T, N, sums_wide>(0, rows, stride, weights, H, d, add, out, step);
  c = weighted_columns<T, N, sums_wide / 2>(c, rows, stride, weights, H, d, add, out, step);
  c = weighted_columns<T, N, 1>(c, rows, stride, weights, H, d, add, out, step);
  for (; c < d; ++c)
    for (int i = 0; i < N; ++i) {
      T sum = add ? out[i * step + c] : T(0);
      for (int64_t h = 0; h < H; ++h) sum += weights[i * H + h] * rows[h * stride + c];
      out[i * step + c] = sum;
    }
}

// out (m, columns) (+)= A (m, K) B (K, columns), which all have no gaps.
template <class T>
void product_rows(const T* A, int64_t m, int64_t K, const T* B, int64_t columns, T* out, bool add) {
  constexpr int64_t width = sums_wide * lanes<T>;  // columns of B that stay in the first cache
  for (int64_t c = 0; c < columns; c += width)
    for (int64_t i = 0; i < m; i += product_high)
      weighted_sums<T, product_high>(std::min<int64_t>(product_high, m - i), B + c, columns, A + i * K, K,
                                     std::min(width, columns - c), add, out + i * columns + c, columns);
}
