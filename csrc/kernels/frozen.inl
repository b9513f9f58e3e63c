// Frozen attention, as gradients pass it on their way down, and the inner products of gradients with one vector a row.

#include "dots.inl"
#include "sums.inl"
#include "vector.inl"

template <class T>
void spread_columns(const Spread<T>& s, int64_t begin, int64_t end, T* weights) {
  const int64_t step = s.n * s.d;
  int64_t weighed = -1;  // of which item the weights are
  for (int64_t item = begin; item < end; ++item) {
    const int64_t q = item / s.n, b = item % s.n, pos = s.pos[item];
    const T factor = s.factor[item];
    const T* taken = s.taken + s.row[item] * s.taken_u;
    const T* mixing = s.mixing.at + q * s.mixing.q + pos * s.mixing.dst;
    const T* scale = s.mixing.scale + q * s.mixing.scale_q;
    T* out = s.out + (q * s.P * s.n + b) * s.d;
    if (weighed < 0 || q != weighed / s.n || pos != s.pos[weighed] || factor != s.factor[weighed]) {
      for (int64_t p = 0; p <= pos; ++p)
        for (int64_t h = 0; h < s.H; ++h) weights[p * s.H + h] = mixing[h * s.mixing.h + p] * scale[p] * factor;
      weighed = item;
    }
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
