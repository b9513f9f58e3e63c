// Exact row-wise top-k.
//
// The k-th largest of the block maxima is a lower bound of the k-th largest element (k blocks reach it, each with an
// element of its own), so only the blocks whose maximum reaches it are read again; what they hold at or above the bound
// is a superset of the answer, in order of id. The k-th largest candidate then splits it exactly, ties included.
//
// The certified form takes h as float32 products with a known error bound, and evaluates again in float64 what the
// bound leaves within reach of the k-th largest: the answer is that of float64 accumulation, for about k + 1 inner
// products.

#include "vector.inl"

// a comes before b: larger, and NaN before everything.
template <class T>
inline bool before(T a, T b) {
  return a > b || (a != a && b == b);
}
template <class T>
struct Before {
  bool operator()(T a, T b) const { return before(a, b); }
};

template <class T>
inline T kth_largest(T* values, int64_t n, int64_t k) {
  std::nth_element(values, values + (k - 1), values + n, Before<T>{});
  return values[k - 1];
}

// The maximum of each block of h; the last block may be short. Returns whether a NaN was met (maxima are void then).
template <class T>
inline bool block_maxima(const T* h, int64_t F, int64_t block, T* maxima) {
  Mask<T> unordered = {};
  int64_t i = 0;
  for (; i + block <= F; i += block) {
    Vec<T> top = load(h + i);
    unordered |= top != top;
    for (int64_t j = lanes<T>; j < block; j += lanes<T>) {
      const Vec<T> v = load(h + i + j);
      unordered |= v != v;
      top = Max::of(v, top);
    }
    *maxima++ = fold<Max, T>(top);
  }
  bool nan = fold<Or, T>(unordered) != 0;
  if (i < F) {
    T top = h[i];
    for (; i < F; ++i) {
      nan |= h[i] != h[i];
      top = h[i] > top ? h[i] : top;
    }
    *maxima = top;
  }
  return nan;
}

// Writes the k foremost of n candidates, given in order of id, in that order. ids is null where an id is the position.
template <class T>
inline void write_topk(const T* candidates, const int32_t* ids, int64_t n, int64_t k, bool relu, T* copy, T* values,
                       int32_t* indices) {
  std::copy(candidates, candidates + n, copy);
  const T kth = kth_largest(copy, n, k);
  int64_t ties = k;  // how many of those equal to the k-th belong to the k: the first ones
  for (int64_t i = 0; i < n; ++i) ties -= before(candidates[i], kth);
  for (int64_t i = 0, slot = 0; slot < k; ++i) {
    const T v = candidates[i];
    if (before(v, kth) || (!before(kth, v) && ties-- > 0)) {
      values[slot] = relu && v <= 0 ? T(0) : v;
      indices[slot] = ids ? ids[i] : static_cast<int32_t>(i);
      ++slot;
    }
  }
}

// The block that balances reading k blocks again against selecting among F / block maxima; 0 where blocks do not pay.
template <class T>
inline int64_t block_size(int64_t F, int64_t k) {
  int64_t block = 16;
  while (block < 1024 && 4 * block * block * k <= 8 * F) block *= 2;
  return F >= 2 * block * k ? block : 0;
}

// Elements of `row` at or above `bound`, in order of id, out of the blocks whose maximum reaches it; returns how many.
template <class T>
inline int64_t collect(const T* row, int64_t F, const T* maxima, int64_t block, T bound, T* candidates, int32_t* ids) {
  int64_t found = 0;
  for (int64_t begin = 0; begin < F; begin += block) {
    if (*maxima++ < bound) continue;
    const int64_t end = begin + block < F ? begin + block : F;
    for (int64_t i = begin; i < end; ++i) {
      // Written always, kept or overwritten: no branch to mispredict.
      candidates[found] = row[i];
      ids[found] = static_cast<int32_t>(i);
      found += row[i] >= bound;
    }
  }
  return found;
}

template <class T>
struct Scratch {
  T *candidates, *copy, *maxima;
  int32_t* ids;

  Scratch(void* memory, int64_t F)
      : candidates(static_cast<T*>(memory)),
        copy(candidates + F + 1),
        maxima(copy + F + 1),
        ids(reinterpret_cast<int32_t*>(maxima + F + 1)) {}
};

template <class T>
void topk_rows(const T* h, int64_t h_stride, int64_t F, int64_t k, bool relu, int64_t begin, int64_t end, T* values,
               int32_t* indices, void* memory) {
  const int64_t block = block_size<T>(F, k);
  const int64_t n_blocks = block ? (F + block - 1) / block : 0;
  const Scratch<T> s(memory, F);

  for (int64_t n = begin; n < end; ++n) {
    const T* row = h + n * h_stride;
    T* row_values = values + n * k;
    int32_t* row_indices = indices + n * k;
    if (!block || block_maxima(row, F, block, s.maxima)) {
      write_topk<T>(row, nullptr, F, k, relu, s.copy, row_values, row_indices);
      continue;
    }
    std::copy(s.maxima, s.maxima + n_blocks, s.copy);
    const T bound = kth_largest(s.copy, n_blocks, k);
    const int64_t found = collect(row, F, s.maxima, block, bound, s.candidates, s.ids);
    write_topk(s.candidates, s.ids, found, k, relu, s.copy, row_values, row_indices);
  }
}

// <x, w> of float32 vectors, accumulated in float64. The products are exact.
inline double exact_dot(const float* x, const float* w, int64_t d) {
  typedef float Half __attribute__((vector_size(PULLBACK_VECTOR_BYTES / 2)));
  constexpr int64_t step = lanes<double>;
  Vec<double> sum[4] = {};
  int64_t c = 0;
  for (; c + 4 * step <= d; c += 4 * step) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      Half a, b;
      __builtin_memcpy(&a, x + c + u * step, sizeof a);
      __builtin_memcpy(&b, w + c + u * step, sizeof b);
      sum[u] += __builtin_convertvector(a, Vec<double>) * __builtin_convertvector(b, Vec<double>);
    }
  }
  double total = fold<Add, double>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; c < d; ++c) total += static_cast<double>(x[c]) * w[c];
  return total;
}

void row_norms(const float* rows, int64_t stride, int64_t d, int64_t begin, int64_t end, double* norms) {
  for (int64_t i = begin; i < end; ++i) norms[i] = __builtin_sqrt(exact_dot(rows + i * stride, rows + i * stride, d));
}

// How far the float32 product of x and w, with norms x_norm and w_norm, plus bias may be from the truth, in any order
// of summation, fused or not: gamma of d + 2 roundings, a percent for the terms of second order, and underflow.
inline double error_bound(double x_norm, double w_norm, double bias, int64_t d) {
  if (x_norm * w_norm == 0) return 0;
  const double roundings = 1.01 * static_cast<double>(d + 2) * 0x1p-24;
  return roundings * (x_norm * w_norm + (bias < 0 ? -bias : bias)) + static_cast<double>(d) * 0x1p-125;
}

// h[n, f], evaluated again where rounding may have touched it.
inline float certified(const Encoder& e, int64_t n, int32_t f, float h) {
  if (error_bound(e.x_norms[n], e.W_norms[f], e.b[f], e.d) == 0) return h;
  return static_cast<float>(exact_dot(e.x + n * e.x_stride, e.W + f * e.W_stride, e.d) + e.b[f]);
}

void topk_certified_rows(const float* h, int64_t h_stride, int64_t F, int64_t k, bool relu, const Encoder& encoder,
                         int64_t begin, int64_t end, float* values, int32_t* indices, void* memory) {
  const int64_t paying = block_size<float>(F, k);
  const int64_t block = paying ? paying : 16;
  const int64_t n_blocks = (F + block - 1) / block;
  const Scratch<float> s(memory, F);

  for (int64_t n = begin; n < end; ++n) {
    const float* row = h + n * h_stride;
    // Two pre-activations of this row further apart than this are in the right order.
    const double reach = 2 * error_bound(encoder.x_norms[n], encoder.W_norm_max, encoder.b_max, encoder.d);
    const bool nan = block_maxima(row, F, block, s.maxima);
    float bound = 0;
    if (!nan) {
      const float* population = paying ? s.maxima : row;
      const int64_t size = paying ? n_blocks : F;
      std::copy(population, population + size, s.copy);
      bound = kth_largest(s.copy, size, k);
    }
    if (nan || !(reach < 1e30) || !(bound > -1e30f && bound < 1e30f)) {
      // NaN and overflow surface as they are.
      write_topk<float>(row, nullptr, F, k, relu, s.copy, values + n * k, indices + n * k);
      continue;
    }

    // From a bound of the k-th largest to the k-th largest itself, and from there to all that may yet reach it. The
    // relative term stands for the roundings to float32.
    const auto below = [reach](float v) { return static_cast<float>((v - reach) - 2.5e-7 * (v < 0 ? -v : v)); };
    const int64_t found = collect(row, F, s.maxima, block, below(bound), s.candidates, s.ids);
    std::copy(s.candidates, s.candidates + found, s.copy);
    const float lowest = below(kth_largest(s.copy, found, k));
    int64_t kept = 0;
    for (int64_t i = 0; i < found; ++i) {
      if (s.candidates[i] < lowest) continue;
      s.candidates[kept] = certified(encoder, n, s.ids[i], s.candidates[i]);
      s.ids[kept++] = s.ids[i];
    }
    write_topk(s.candidates, s.ids, kept, k, relu, s.copy, values + n * k, indices + n * k);
  }
}
