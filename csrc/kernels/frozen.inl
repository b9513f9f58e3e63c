// Frozen attention, as gradients pass it on their way down, and the inner products of gradients with one vector a row.

#include "dots.inl"
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

template <class T>
void spread_columns(const Spread<T>& s, int64_t begin, int64_t end, T* weights) {
  const int64_t step = s.n * s.d;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t q = item / s.n, b = item % s.n, pos = s.pos[item];
    const T factor = s.factor[item];
    const T* taken = s.taken + s.row[item] * s.taken_u;
    const T* mixing = s.mixing.at + q * s.mixing.q + pos * s.mixing.dst;
    const T* scale = s.mixing.scale + q * s.mixing.scale_q;
    T* out = s.out + (q * s.P * s.n + b) * s.d;
    for (int64_t p = 0; p <= pos; ++p)
      for (int64_t h = 0; h < s.H; ++h) weights[p * s.H + h] = mixing[h * s.mixing.h + p] * scale[p] * factor;
    for (int64_t p = 0; p <= pos; p += sums_high)
      weighted_sums<T, sums_high>(std::min<int64_t>(sums_high, pos + 1 - p), taken, s.taken_h, weights + p * s.H, s.H,
                                  s.d, s.add, out + p * step, step);
    if (s.standing) {
      const T* vector = s.standing + s.row[item] * s.standing_u;
      for (int64_t c = 0; c < s.d; ++c) out[pos * step + c] += factor * vector[c];
    }
    if (s.add) continue;
    for (int64_t p = pos + 1; p < s.P; ++p)
      for (int64_t c = 0; c < s.d; ++c) out[p * step + c] = T(0);
  }
}

template <class T>
void mix_back_columns(const MixBack<T>& m, int64_t q, int64_t begin, int64_t end, T* scratch) {
  const int64_t group = m.H / m.K;  // query heads that share a key/value head
  const int64_t from = m.n * m.H * m.d_head, to = m.n * m.K * m.d_head;
  const T* scale = m.mixing.scale + q * m.mixing.scale_q;
  for (int64_t src = 0; src < m.P; src += sums_high) {
    const int64_t count = std::min<int64_t>(sums_high, m.P - src), reach = m.P - src;
    for (int64_t h = 0; h < m.H; ++h) {
      const T* mixing = m.mixing.at + q * m.mixing.q + h * m.mixing.h + src * m.mixing.dst + src;
      for (int64_t i = 0; i < count; ++i)
        for (int64_t t = 0; t < reach; ++t)
          scratch[i * reach + t] = t < i ? T(0) : scale[src + i] * mixing[t * m.mixing.dst + i];
      for (int64_t b = begin; b < end; ++b)
        weighted_sums<T, sums_high>(count, m.at_z + (q * m.P + src) * from + (b * m.H + h) * m.d_head, from, scratch,
                                    reach, m.d_head, h % group != 0,
                                    m.out + (q * m.P + src) * to + (b * m.K + h / group) * m.d_head, to);
    }
  }
}

// out[j][b * out_stride] += <G[b], u[j]> for n rows of G and E vectors.
template <class T, int E>
inline void vector_products(const T* G, int64_t G_stride, int64_t n, const T* const* u, int64_t d, T* const* out,
                            int64_t out_stride) {
  constexpr int B = 4;
  for (int64_t b = 0; b < n; b += B) {
    const int64_t left = std::min<int64_t>(B, n - b);
    const T* g[B];
    for (int i = 0; i < B; ++i) g[i] = G + (b + std::min<int64_t>(i, left - 1)) * G_stride;
    T result[B][E];
    dots<T, T, B, E>(g, u, Ahead{}, d, result);
    for (int64_t i = 0; i < left; ++i)
      for (int j = 0; j < E; ++j) out[j][(b + i) * out_stride] += result[i][j];
  }
}

// The same for `count` vectors, at most E.
template <class T, int E = leaves_at_once>
void leaf_products(const T* G, int64_t G_stride, int64_t n, const T* const* u, int64_t count, int64_t d, T* const* out,
                   int64_t out_stride) {
  if constexpr (E > 1) {
    if (count < E) return leaf_products<T, E - 1>(G, G_stride, n, u, count, d, out, out_stride);
  }
  vector_products<T, E>(G, G_stride, n, u, d, out, out_stride);
}
