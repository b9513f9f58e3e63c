// A weighted sum of rows, in registers until it is used.

#pragma once

#include "vector.inl"

// Columns that are summed in registers before they are used: enough to keep the memory of all rows busy at once.
constexpr int column_vectors = 4;
template <class T>
constexpr int64_t columns = column_vectors * lanes<T>;

// A row of a gradient that is yet to be summed: base (null: zero) + sum_j weights[j] rows[j].
template <class T>
struct RowSum {
  static constexpr int64_t capacity = 32;
  const T* base;
  int64_t count;
  const T* rows[capacity];
  T weights[capacity];

  // n rows of x, at most `capacity`.
  void take(const T* x, int64_t stride, const int64_t* ids, const T* factors, int64_t n) {
    count = n;
    for (int64_t i = 0; i < n; ++i) {
      rows[i] = x + ids[i] * stride;
      weights[i] = factors[i];
    }
  }
  // Columns c ... c + columns.
  void sum(int64_t c, Vec<T>* out) const {
#pragma GCC unroll 4
    for (int u = 0; u < column_vectors; ++u) out[u] = base ? load(base + c + u * lanes<T>) : Vec<T>{};
    for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 4
      for (int u = 0; u < column_vectors; ++u) out[u] += weights[j] * load(rows[j] + c + u * lanes<T>);
    }
  }
  T at(int64_t c) const {
    T total = base ? base[c] : T(0);
    for (int64_t j = 0; j < count; ++j) total += weights[j] * rows[j][c];
    return total;
  }
  // All d columns; out may be base.
  void sum_into(T* out, int64_t d) const {
    int64_t c = 0;
    for (; c + columns<T> <= d; c += columns<T>) {
      Vec<T> part[column_vectors];
      sum(c, part);
#pragma GCC unroll 4
      for (int u = 0; u < column_vectors; ++u) store(out + c + u * lanes<T>, part[u]);
    }
    for (; c < d; ++c) out[c] = at(c);
  }
  // The same past the caches: out is aligned, d columns are whole vectors.
  void stream_into(T* out, int64_t d) const {
    for (int64_t c = 0; c < d; c += lanes<T>) {
      Vec<T> total = base ? load(base + c) : Vec<T>{};
      for (int64_t j = 0; j < count; ++j) total += weights[j] * load(rows[j] + c);
      stream(out + c, total);
    }
  }
};
