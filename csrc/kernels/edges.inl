// Rows of edges in CSR, summed in float64. Sources of whole graphs follow one another for long stretches: blocks of
// such are read and written as they lie, not one by one.

#pragma once

#include "vector.inl"

constexpr int64_t edge_block = 8;

inline bool successive(const int32_t* source) {
  typedef int32_t Block __attribute__((vector_size(edge_block * sizeof(int32_t))));
  constexpr Block counting = {0, 1, 2, 3, 4, 5, 6, 7};
  Block block;
  __builtin_memcpy(&block, source, sizeof block);
  const Block differ = block ^ (counting + source[0]);
  uint64_t bits[sizeof differ / sizeof(uint64_t)], any = 0;
  __builtin_memcpy(bits, &differ, sizeof differ);
  for (uint64_t b : bits) any |= b;
  return any == 0;
}

template <class T>
inline Vec<double> widened(const T* p) {
  if constexpr (std::is_same_v<T, double>) {
    return load(p);
  } else {
    typedef float Half __attribute__((vector_size(PULLBACK_VECTOR_BYTES / 2)));
    Half half;
    __builtin_memcpy(&half, p, sizeof half);
    return __builtin_convertvector(half, Vec<double>);
  }
}

inline Vec<double> size_of(Vec<double> v) { return v < 0 ? -v : v; }
inline double size_of(double v) { return std::fabs(v); }

// total[source[e]] += into * size[e], in their order.
template <class T>
void flow_row(const int32_t* source, const T* size, int64_t n, double into, double* total) {
  int64_t e = 0;
  while (e < n) {
    if (e + edge_block <= n && successive(source + e)) {
      double* to = total + source[e];
      for (int64_t i = 0; i < edge_block; i += lanes<double>)
        store(to + i, load(to + i) + into * widened(size + e + i));
      e += edge_block;
    } else {
      for (const int64_t end = std::min(n, e + edge_block); e < end; ++e) total[source[e]] += into * size[e];
    }
  }
}

// The sum of the weights, and of their sizes.
template <class T>
void sum_row(const T* weight, int64_t n, double* sum, double* size) {
  Vec<double> sums = {}, sizes = {};
  int64_t e = 0;
  for (; e + lanes<double> <= n; e += lanes<double>) {
    const Vec<double> w = widened(weight + e);
    sums += w;
    sizes += size_of(w);
  }
  *sum = fold<Add, double>(sums);
  *size = fold<Add, double>(sizes);
  for (; e < n; ++e) {
    *sum += weight[e];
    *size += size_of(double(weight[e]));
  }
}

// What some sources count.
inline Vec<double> counts_of(const int32_t* source, const double* counts) {
  Vec<double> each;
  for (int64_t i = 0; i < lanes<double>; ++i) each[i] = counts[source[i]];
  return each;
}

// The sum of the sizes times what each source counts.
template <class T>
double total_row(const int32_t* source, const T* weight, int64_t n, const double* counts) {
  Vec<double> sums = {};
  int64_t e = 0;
  for (; e + edge_block <= n; e += edge_block) {
    const bool together = successive(source + e);
    for (int64_t i = e; i < e + edge_block; i += lanes<double>)
      sums += (together ? load(counts + source[i]) : counts_of(source + i, counts)) * size_of(widened(weight + i));
  }
  double total = fold<Add, double>(sums);
  for (; e < n; ++e) total += counts[source[e]] * size_of(double(weight[e]));
  return total;
}

// Whether ids lie in 0..bound-1.
inline bool ids_below(const int32_t* ids, int64_t n, int64_t bound) {
  uint32_t largest = 0;  // an id below 0 is a large unsigned number
  for (int64_t e = 0; e < n; ++e) largest = std::max(largest, static_cast<uint32_t>(ids[e]));
  return n == 0 || largest < bound;
}

template <class T>
int64_t count_nonzero(const T* values, int64_t n) {
  Mask<T> zeros = {};  // each lane counts down, and n is far below what it holds
  int64_t j = 0;
  for (; j + lanes<T> <= n; j += lanes<T>) zeros += load(values + j) == Vec<T>{};
  int64_t nonzero = j;
  for (int64_t i = 0; i < lanes<T>; ++i) nonzero += zeros[i];
  for (; j < n; ++j) nonzero += values[j] != 0;
  return nonzero;
}
