// Decode, subtract the target, and project the residual back onto the decoder rows used: forward and half of backward.
#pragma once

#include "launch.h"

namespace pullback::cuda {

struct DecodeResidual {
  const float* values;     // [n, k]
  const int32_t* indices;  // [n, k]
  const void* W;           // [n_features, d], rows W_stride elements apart: float, bfloat16 or float16
  const float* bias;       // [d], or null
  const float* y;          // [n, d], rows y_stride elements apart
  float* residual;         // [n, d]
  float* dots;             // [n, k]
  double* losses;          // [n]
  int64_t n, k, n_features, d, W_stride, y_stride;
  DType W_dtype;
  bool relu;
};

// The widest row a block can hold in its shared memory.
constexpr int64_t kWidestResidual = 50000;

// Queue on `stream` of the current device. A row with an id out of range becomes NaN.
cudaError_t decode_residual(const DecodeResidual& job, cudaStream_t stream);

}  // namespace pullback::cuda
