// The contraction of one position by a panel: decoder rows side by side, a vector of entries for each column, so that
// sums need not be folded. It pays where many targets read the same entries.

#pragma once

#include "sums.inl"
#include "vector.inl"

// Vectors of entries, each (d, lanes), behind one another; 0 behind the last entry.
template <class T>
void pack_panel(const T* W, int64_t W_stride, const int32_t* indices, int64_t n, int64_t d, T* panel) {
  for (int64_t first = 0; first < n; first += lanes<T>, panel += d * lanes<T>) {
    for (int64_t e = 0; e < lanes<T>; ++e) {
      const T* row = first + e < n ? W + indices[first + e] * W_stride : nullptr;
      for (int64_t c = 0; c < d; ++c) panel[c * lanes<T> + e] = row ? row[c] : T(0);
    }
  }
}

// out[b * out_stride + e] += values[e] <G[b], row e> for n_targets rows of G (no gaps) and n entries.
template <class T>
void contract_panel(const T* G, int64_t n_targets, const T* panel, const T* values, int64_t n, int64_t d, T* out,
                    int64_t out_stride) {
  constexpr int high = 8;
  T sums[high * lanes<T>];
  for (int64_t first = 0; first < n; first += lanes<T>, panel += d * lanes<T>) {
    const int64_t wide = std::min<int64_t>(lanes<T>, n - first);
    for (int64_t b = 0; b < n_targets; b += high) {
      const int64_t count = std::min<int64_t>(high, n_targets - b);
      weighted_sums<T, high>(count, panel, lanes<T>, G + b * d, d, lanes<T>, false, sums, lanes<T>);
      for (int64_t i = 0; i < count; ++i) {
        T* to = out + (b + i) * out_stride + first;
        const T* from = sums + i * lanes<T>;
        if (wide == lanes<T>) {
          store(to, load(to) + load(values + first) * load(from));
        } else {
          for (int64_t e = 0; e < wide; ++e) to[e] += values[first + e] * from[e];
        }
      }
    }
  }
}
