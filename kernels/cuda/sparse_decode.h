// Sparse decode on a CUDA device: out[n] = b_dec + sum over entries e of row n of values[e] * W_dec[indices[e]].
#pragma once

#include "launch.h"

namespace pullback::cuda {

// Device memory borrowed from the caller for as long as `stream` works on it. Sums, values, bias and out are float64 if
// W_dec is, else float32.
struct DecodeCsr {
  const int64_t* indptr;   // [n_rows + 1]
  const int32_t* indices;  // [nnz]
  const void* values;      // [nnz]
  const void* W;           // [n_features, d], rows W_stride elements apart, each row contiguous
  const void* bias;        // [d], or null
  void* out;               // [n_rows, d], contiguous
  int64_t n_rows, nnz, n_features, d, W_stride;
  DType W_dtype;
};

// Queue the decode on `stream` of the current device. A row whose pointers or feature ids are out of range becomes NaN.
cudaError_t decode_csr(const DecodeCsr& job, cudaStream_t stream);

}  // namespace pullback::cuda
