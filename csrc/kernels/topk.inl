// Exact row-wise top-k.
//
// The k-th largest of the block maxima is a lower bound of the k-th largest element (k blocks reach it, each with an
// element of its own), so only the blocks whose maximum reaches it are read again; what they hold at or above the bound
// is a superset of the answer, in order of id. The k-th largest candidate then splits it exactly, ties included.

#pragma once

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
