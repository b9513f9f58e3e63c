// Sparse rows from dense ones: what lies above a threshold.
#pragma once

#include "launch.h"

namespace pullback::cuda {

// Keeps h > theta[f], or h > 0 without theta; zeros are dropped and NaN is kept.
struct ThresholdRows {
  const void* h;       // [n, columns], rows h_stride elements apart: float, bfloat16 or float16
  const float* theta;  // [columns], or null
  int64_t* indptr;     // [n + 1]: written by threshold_count, read by threshold_compact
  int32_t* indices;    // [capacity]
  void* values;        // [capacity], of the type of h
  int64_t n, columns, h_stride, capacity;
  DType dtype;
};

// Both queue on `stream` of the current device. Entries beyond the capacity are not written.
cudaError_t threshold_count(const ThresholdRows& job, cudaStream_t stream);
cudaError_t threshold_compact(const ThresholdRows& job, cudaStream_t stream);

}  // namespace pullback::cuda
