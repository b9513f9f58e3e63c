// Weighted sums of rows: the sparse decode, and the weight gradient over entries sorted by feature.

#pragma once

#include "row_sum.inl"
#include "vector.inl"

// out += sum_j weights[j] * rows[j], four rows at a time, always in order of j.
template <class T>
inline void add_rows(const T* const* rows, const T* weights, int count, int64_t d, T* out) {
  int64_t c = 0;
  if (count == 4) {
    for (; c + lanes<T> <= d; c += lanes<T>) {
      Vec<T> sum = load(out + c);
      sum += weights[0] * load(rows[0] + c);
      sum += weights[1] * load(rows[1] + c);
      sum += weights[2] * load(rows[2] + c);
      sum += weights[3] * load(rows[3] + c);
      store(out + c, sum);
    }
  } else {
    for (; c + lanes<T> <= d; c += lanes<T>) {
      Vec<T> sum = load(out + c);
      for (int j = 0; j < count; ++j) sum += weights[j] * load(rows[j] + c);
      store(out + c, sum);
    }
  }
  for (; c < d; ++c)
    for (int j = 0; j < count; ++j) out[c] += weights[j] * rows[j][c];
}

// out += sum over [begin, end) of weights[j] * base[ids[j]].
template <class T, class Id>
inline void add_gathered(const T* base, int64_t stride, const Id* ids, const T* weights, int64_t begin, int64_t end,
                         int64_t d, T* out) {
  for (int64_t j = begin; j < end; j += 4) {
    const int count = end - j < 4 ? static_cast<int>(end - j) : 4;
    const T* rows[4];
    for (int i = 0; i < count; ++i) rows[i] = base + static_cast<int64_t>(ids[j + i]) * stride;
    // The rows after these are elsewhere in memory: no hardware prefetcher can guess them.
    for (int64_t i = j + 4; i < j + 8 && i < end; ++i) __builtin_prefetch(base + static_cast<int64_t>(ids[i]) * stride);
    add_rows(rows, weights + j, count, d, out);
  }
}

template <class T>
void decode_rows(const int64_t* indptr, const int32_t* indices, const T* values, const T* W, int64_t W_stride,
                 const T* bias, int64_t d, int64_t begin, int64_t end, T* out) {
  for (int64_t n = begin; n < end; ++n) {
    T* row = out + n * d;
    for (int64_t c = 0; c < d; ++c) row[c] = bias ? bias[c] : T(0);
    add_gathered(W, W_stride, indices, values, indptr[n], indptr[n + 1], d, row);
  }
}

template <class T>
void segment_features(const int64_t* starts, const int64_t* rows, const T* values, const T* x, int64_t x_stride,
                      int64_t d, int64_t begin, int64_t end, bool past_caches, T* out) {
  for (int64_t f = begin; f < end; ++f) {
    T* row = out + f * d;
    RowSum<T> sum;
    sum.base = nullptr;
    int64_t s = starts[f];
    while (s + sum.capacity < starts[f + 1]) {
      sum.take(x, x_stride, rows + s, values + s, sum.capacity);
      sum.sum_into(row, d);
      sum.base = row;
      s += sum.capacity;
    }
    sum.take(x, x_stride, rows + s, values + s, starts[f + 1] - s);
    if (past_caches) {
      sum.stream_into(row, d);
    } else {
      sum.sum_into(row, d);
    }
  }
  if (past_caches) streamed();
}
