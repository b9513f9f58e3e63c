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

// total[source[e]] += into * weight[e], or times its size, in their order.
template <class T, bool sizes>
inline void add_row(const int32_t* source, const T* weight, int64_t n, double into, double* total) {
  const auto counted = [](auto v) { return sizes ? size_of(v) : v; };
  int64_t e = 0;
  while (e < n) {
    if (e + edge_block <= n && successive(source + e)) {
      double* to = total + source[e];
      for (int64_t i = 0; i < edge_block; i += lanes<double>)
        store(to + i, load(to + i) + into * counted(widened(weight + e + i)));
      e += edge_block;
    } else {
      for (const int64_t end = std::min(n, e + edge_block); e < end; ++e)
        total[source[e]] += into * counted(double(weight[e]));
    }
  }
}

template <class T>
void flow_row(const int32_t* source, const T* weight, int64_t n, double into, bool sizes, double* total) {
  return sizes ? add_row<T, true>(source, weight, n, into, total) : add_row<T, false>(source, weight, n, into, total);
}

// What some sources count.
inline Vec<double> counts_of(const int32_t* source, const double* counts) {
  Vec<double> each;
  for (int64_t i = 0; i < lanes<double>; ++i) each[i] = counts[source[i]];
  return each;
}

// The sum of the weights, that of their sizes, and for each of M masks that of the sizes times what their sources
// count.
template <class T, int M>
inline void sum_with(const int32_t* source, const T* weight, int64_t n, const double* masks, int64_t n_nodes,
                     double* sums) {
  Vec<double> each[2 + M] = {};
  int64_t e = 0;
  for (; e + edge_block <= n; e += edge_block) {
    const bool together = M > 0 && successive(source + e);
    for (int64_t i = e; i < e + edge_block; i += lanes<double>) {
      const Vec<double> w = widened(weight + i), size = size_of(w);
      each[0] += w;
      each[1] += size;
      for (int m = 0; m < M; ++m) {
        const double* counts = masks + m * n_nodes;
        each[2 + m] += (together ? load(counts + source[i]) : counts_of(source + i, counts)) * size;
      }
    }
  }
  for (int s = 0; s < 2 + M; ++s) sums[s] = fold<Add, double>(each[s]);
  for (; e < n; ++e) {
    const double size = size_of(double(weight[e]));
    sums[0] += weight[e];
    sums[1] += size;
    for (int m = 0; m < M; ++m) sums[2 + m] += masks[m * n_nodes + source[e]] * size;
  }
}

// The sums with m masks by calls of f(first mask, how many of them, their sums), two masks at a time: the first two
// sums come out the same every time.
template <class F>
inline void in_pairs(int64_t m, double* sums, const F& f) {
  if (m == 0) return f(0, std::integral_constant<int, 0>(), sums);
  double some[4];
  for (int64_t i = 0; i < m; i += 2) {
    m - i > 1 ? f(i, std::integral_constant<int, 2>(), some) : f(i, std::integral_constant<int, 1>(), some);
    sums[0] = some[0];
    sums[1] = some[1];
    for (int64_t j = i; j < std::min(m, i + 2); ++j) sums[2 + j] = some[2 + j - i];
  }
}

template <class T>
void sum_row(const int32_t* source, const T* weight, int64_t n, const double* masks, int64_t n_nodes, int64_t m,
             double* sums) {
  in_pairs(m, sums, [&](int64_t i, auto M, double* some) {
    sum_with<T, M()>(source, weight, n, masks + i * n_nodes, n_nodes, some);
  });
}

// total[first[r] + i] += into * weight[e], or times its size, for the edges e of run after run.
template <class T, bool sizes>
inline void add_runs(RunsOf runs, const T* weight, double into, double* total) {
  const auto counted = [](auto v) { return sizes ? size_of(v) : v; };
  for (int64_t r = 0; r < runs.count; ++r) {
    double* to = total + runs.first[r];
    const int64_t n = runs.length[r];
    int64_t i = 0;
    for (; i + lanes<double> <= n; i += lanes<double>)
      store(to + i, load(to + i) + into * counted(widened(weight + i)));
    for (; i < n; ++i) to[i] += into * counted(double(weight[i]));
    weight += n;
  }
}

template <class T>
void flow_runs(RunsOf runs, const T* weight, double into, bool sizes, double* total) {
  return sizes ? add_runs<T, true>(runs, weight, into, total) : add_runs<T, false>(runs, weight, into, total);
}

template <class T, int M>
inline void sum_runs_with(RunsOf runs, const T* weight, const double* masks, int64_t n_nodes, double* sums) {
  Vec<double> each[2 + M] = {};
  double rest[2 + M] = {};
  for (int64_t r = 0; r < runs.count; ++r) {
    const double* counts = masks + runs.first[r];
    const int64_t n = runs.length[r];
    int64_t i = 0;
    for (; i + lanes<double> <= n; i += lanes<double>) {
      const Vec<double> w = widened(weight + i), size = size_of(w);
      each[0] += w;
      each[1] += size;
      for (int m = 0; m < M; ++m) each[2 + m] += load(counts + m * n_nodes + i) * size;
    }
    for (; i < n; ++i) {
      const double size = size_of(double(weight[i]));
      rest[0] += weight[i];
      rest[1] += size;
      for (int m = 0; m < M; ++m) rest[2 + m] += counts[m * n_nodes + i] * size;
    }
    weight += n;
  }
  for (int s = 0; s < 2 + M; ++s) sums[s] = fold<Add, double>(each[s]) + rest[s];
}

template <class T>
void sum_runs(RunsOf runs, const T* weight, const double* masks, int64_t n_nodes, int64_t m, double* sums) {
  in_pairs(m, sums, [&](int64_t i, auto M, double* some) {
    sum_runs_with<T, M()>(runs, weight, masks + i * n_nodes, n_nodes, some);
  });
}

// How many of n ids follow the first one in succession, itself included.
inline int64_t run_length(const int32_t* ids, int64_t n) {
  int64_t e = 1;
  while (e + edge_block <= n && ids[e] == ids[e - 1] + 1 && successive(ids + e)) e += edge_block;
  while (e < n && ids[e] == ids[e - 1] + 1) ++e;
  return e;
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
