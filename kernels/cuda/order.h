// Stable counting sort of entries by feature.
#pragma once

#include "launch.h"

namespace pullback::cuda {

// starts[f] .. starts[f + 1] of `order` are the positions of feature f's entries, ascending. Entries with an id outside
// 0..n_features-1 come last, behind starts[n_features].
struct FeatureOrder {
  const int32_t* indices;  // [nnz]
  int64_t* starts;         // [n_features + 1]
  int32_t* order;          // [nnz]
  int32_t* scratch;        // [feature_order_scratch(nnz)]
  int64_t nnz, n_features;
};

int64_t feature_order_scratch(int64_t nnz);

// Queue the sort on `stream` of the current device. The result is the same whatever runs first.
cudaError_t feature_order(const FeatureOrder& job, cudaStream_t stream);

}  // namespace pullback::cuda
