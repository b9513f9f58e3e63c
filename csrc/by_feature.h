#pragma once

#include <cstdint>
#include <vector>

namespace pullback {

// CSR entries sorted by feature, rows in order within a feature (a stable counting sort).
template <class T>
struct ByFeature {
  std::vector<int64_t> starts;  // (F + 1)
  std::vector<int64_t> rows;    // (nnz)
  std::vector<T> values;        // (nnz)

  ByFeature(const int64_t* indptr, const int32_t* indices, const T* entries, int64_t n, int64_t nnz, int64_t F)
      : starts(F + 1), rows(nnz), values(nnz) {
    for (int64_t e = 0; e < nnz; ++e) ++starts[indices[e] + 1];
    for (int64_t f = 0; f < F; ++f) starts[f + 1] += starts[f];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t e = indptr[row]; e < indptr[row + 1]; ++e) {
        const int64_t slot = next[indices[e]]++;
        rows[slot] = row;
        values[slot] = entries[e];
      }
    }
  }
};

}  // namespace pullback
