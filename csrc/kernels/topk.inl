// Exact row-wise top-k.
//
// The k-th largest of the block maxima is a lower bound of the k-th largest element (k blocks reach it, each with an
// element of its own), so only the blocks whose maximum reaches it are read again; what they hold above the bound, with
// the first k of those equal to it, holds the answer, in order of id. The k-th largest candidate then splits it
// exactly.

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

template <class T>
inline T clamped(T v, bool relu) {
  return relu && v <= 0 ? T(0) : v;
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
      values[slot] = clamped(v, relu);
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
  return F >= 64 * k ? block : 0;
}

// The elements of a row above `bound`, and the first `equals` of those equal to it, in order of id.
template <class T>
struct Above {
  T bound;
  int64_t equals;
  T* values;
  int32_t* ids;
  int64_t found = 0;

  void take(const T* row, int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + lanes<T> <= end; i += lanes<T>) {
      const Vec<T> v = load(row + i);
      const Mask<T> reach = equals > 0 ? v >= bound : v > bound;
      if (fold<Or, T>(reach) != 0) take_each(row, i, i + lanes<T>);
    }
    take_each(row, i, end);
  }
  void take_each(const T* row, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // Written always, kept or overwritten: no branch to mispredict.
      const bool equal = row[i] == bound && equals > 0;
      values[found] = row[i];
      ids[found] = static_cast<int32_t>(i);
      found += row[i] > bound || equal;
      equals -= equal;
    }
  }
};

// Integers in the order of the floats, and back.
template <class T>
using Key = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <class T>
inline Key<T> ordered(Key<T> bits) {
  return bits < 0 ? bits ^ std::numeric_limits<Key<T>>::max() : bits;
}
template <class T>
inline Key<T> key_of(T v) {
  Key<T> bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  return ordered<T>(bits);
}
template <class T>
inline T of_key(Key<T> key) {
  const Key<T> bits = ordered<T>(key);
  T v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}

template <class T>
inline int64_t count_reaching(const T* row, int64_t F, T bound) {
  Mask<T> counts = {};
  int64_t i = 0;
  for (; i + lanes<T> <= F; i += lanes<T>) counts -= load(row + i) >= bound;
  int64_t count = fold<Add, T>(counts);
  for (; i < F; ++i) count += row[i] >= bound;
  return count;
}

// The k-th largest of a row without NaN, found by bisection, as a bound with its share of ties: for rows so short, or k
// so large, that blocks do not pay. Each step is one pass over a row that lies in the cache.
template <class T>
inline Above<T> bisect(const T* row, int64_t F, int64_t k, T least, T most, const Above<T>& into) {
  Above<T> above = into;
  Key<T> low = key_of(least), high = key_of(most) + 1;  // at least k reach low, `reaching` < k reach high
  int64_t reaching = 0;
  for (int step = 0; high - 1 > low; ++step) {
    // Halves of the value first, which settle ordinary rows; halves of the key end after as many steps as it has bits.
    const Key<T> inner = key_of(of_key<T>(low) / 2 + of_key<T>(high) / 2);
    const Key<T> middle =
        step < 12 && low < inner && inner < high ? inner : (low >> 1) + (high >> 1) + (low & high & 1);
    const int64_t count = count_reaching(row, F, of_key<T>(middle));
    (count >= k ? low : high) = middle;
    if (count < k) reaching = count;
    if (count == k) {
      reaching = 0;
      break;
    }
  }
  above.bound = of_key<T>(low);
  above.equals = k - reaching;
  return above;
}

// The least and the largest of a row; returns whether a NaN was met.
template <class T>
inline bool extremes(const T* row, int64_t F, T& least, T& most) {
  bool nan = false;
  int64_t i = 0;
  least = most = row[0];
  if (F >= lanes<T>) {
    Mask<T> unordered = {};
    Vec<T> bottom = load(row), top = bottom;
    for (; i + lanes<T> <= F; i += lanes<T>) {
      const Vec<T> v = load(row + i);
      unordered |= v != v;
      bottom = v < bottom ? v : bottom;
      top = v > top ? v : top;
    }
    nan = fold<Or, T>(unordered) != 0;
    least = -fold<Max, T>(-bottom);
    most = fold<Max, T>(top);
  }
  for (; i < F; ++i) {
    nan |= row[i] != row[i];
    least = row[i] < least ? row[i] : least;
    most = row[i] > most ? row[i] : most;
  }
  return nan;
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
    T least = 0, most = 0;
    if (block ? block_maxima(row, F, block, s.maxima) : extremes(row, F, least, most)) {
      write_topk<T>(row, nullptr, F, k, relu, s.copy, values + n * k, indices + n * k);
      continue;
    }
    Above<T> above = {0, k, s.candidates, s.ids};
    if (block) {
      std::copy(s.maxima, s.maxima + n_blocks, s.copy);
      above.bound = kth_largest(s.copy, n_blocks, k);
      for (int64_t b = 0; b < n_blocks; ++b)
        if (s.maxima[b] > above.bound || (s.maxima[b] == above.bound && above.equals > 0))
          above.take(row, b * block, b * block + block < F ? b * block + block : F);
    } else {
      above = bisect(row, F, k, least, most, above);
      above.take(row, 0, F);
    }
    if (above.found > k) {
      write_topk(s.candidates, s.ids, above.found, k, relu, s.copy, values + n * k, indices + n * k);
      continue;
    }
    for (int64_t slot = 0; slot < k; ++slot) values[n * k + slot] = clamped(s.candidates[slot], relu);
    std::copy(s.ids, s.ids + k, indices + n * k);
  }
}
