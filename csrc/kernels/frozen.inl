// Frozen attention, as gradients pass it on their way down, and the inner products of gradients with one vector a row.

#include "dots.inl"
#include "gather.inl"
#include "vector.inl"

// out = first (0 where there is none) + sum_i weight(i) * row(i), four rows at a time, in their order.
template <class T, class Weight, class Row>
inline void weighted_sum(const T* first, int64_t n, const Weight& weight, const Row& row, int64_t d, T* out) {
  for (int64_t c = 0; c < d; ++c) out[c] = first ? first[c] : T(0);
  for (int64_t i = 0; i < n; i += 4) {
    const int count = n - i < 4 ? static_cast<int>(n - i) : 4;
    const T* rows[4];
    T weights[4];
    for (int j = 0; j < count; ++j) {
      rows[j] = row(i + j);
      weights[j] = weight(i + j);
    }
    add_rows(rows, weights, count, d, out);
  }
}

// Sums held at a time while rows are spread: positions by vectors of columns.
constexpr int spread_positions = PULLBACK_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int spread_vectors = 4;

// out[i] (+)= sum_h weights[i H + h] * rows[h], at N positions, for C vectors of columns.
template <class T, int N, int C>
inline void spread_tile(const T* rows, int64_t stride, const T* weights, int64_t H, bool add, T* out, int64_t step) {
  Vec<T> sum[N * C] = {};
  if (add) {
    for (int i = 0; i < N * C; ++i) sum[i] = load(out + i / C * step + i % C * lanes<T>);
  }
  for (int64_t h = 0; h < H; ++h) {
    Vec<T> row[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) row[c] = load(rows + h * stride + c * lanes<T>);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const T weight = weights[i * H + h];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[i * C + c] += weight * row[c];
    }
  }
  for (int i = 0; i < N * C; ++i) store(out + i / C * step + i % C * lanes<T>, sum[i]);
}

// The same for `count` positions, at most N, and all columns.
template <class T, int N>
inline void spread_rows(int64_t count, const T* rows, int64_t stride, const T* weights, int64_t H, int64_t d, bool add,
                        T* out, int64_t step) {
  if constexpr (N > 1) {
    if (count < N) return spread_rows<T, N - 1>(count, rows, stride, weights, H, d, add, out, step);
  }
  int64_t c = 0;
  for (; c + spread_vectors * lanes<T> <= d; c += spread_vectors * lanes<T>)
    spread_tile<T, N, spread_vectors>(rows + c, stride, weights, H, add, out + c, step);
  for (; c + lanes<T> <= d; c += lanes<T>) spread_tile<T, N, 1>(rows + c, stride, weights, H, add, out + c, step);
  for (; c < d; ++c)
    for (int i = 0; i < N; ++i) {
      T sum = add ? out[i * step + c] : T(0);
      for (int64_t h = 0; h < H; ++h) sum += weights[i * H + h] * rows[h * stride + c];
      out[i * step + c] = sum;
    }
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
    for (int64_t p = 0; p <= pos; p += spread_positions)
      spread_rows<T, spread_positions>(std::min<int64_t>(spread_positions, pos + 1 - p), taken, s.taken_h,
                                       weights + p * s.H, s.H, s.d, s.add, out + p * step, step);
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
  const int64_t row = m.n * m.H * m.d_head;
  for (int64_t src = 0; src < m.P; ++src) {
    const int64_t count = m.P - src;
    const T scale = m.mixing.scale[q * m.mixing.scale_q + src];
    for (int64_t h = 0; h < m.H; ++h)
      for (int64_t t = 0; t < count; ++t)
        scratch[h * m.P + t] = scale * m.mixing.at[q * m.mixing.q + h * m.mixing.h + (src + t) * m.mixing.dst + src];
    for (int64_t b = begin; b < end; ++b) {
      const T* at_z = m.at_z + (q * m.P + src) * row + b * m.H * m.d_head;
      T* out = m.out + ((q * m.P + src) * m.n + b) * m.K * m.d_head;
      for (int64_t h = 0; h < m.H; ++h) {
        T* to = out + h / group * m.d_head;
        weighted_sum(
            h % group ? to : nullptr, count, [&](int64_t t) { return scratch[h * m.P + t]; },
            [&](int64_t t) { return at_z + t * row + h * m.d_head; }, m.d_head, to);
      }
    }
  }
}

// out[j][b * out_stride] += <G[b], u[j]> for n rows of G and `count` vectors, at most leaves_at_once.
template <class T>
void leaf_products(const T* G, int64_t G_stride, int64_t n, const T* const* u, int64_t count, int64_t d, T* const* out,
                   int64_t out_stride) {
  constexpr int B = 4, E = leaves_at_once;
  const T* vectors[E];
  for (int j = 0; j < E; ++j) vectors[j] = u[j < count ? j : 0];
  for (int64_t b = 0; b < n; b += B) {
    const int64_t left = std::min<int64_t>(B, n - b);
    const T* g[B];
    for (int i = 0; i < B; ++i) g[i] = G + (b + std::min<int64_t>(i, left - 1)) * G_stride;
    T result[B][E];
    dots<T, T, B, E>(g, vectors, Ahead{}, d, result);
    for (int64_t i = 0; i < left; ++i)
      for (int64_t j = 0; j < count; ++j) out[j][(b + i) * out_stride] += result[i][j];
  }
}
