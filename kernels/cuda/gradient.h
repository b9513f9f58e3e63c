// Gradients of both weight matrices from the active entries alone, summed a feature at a time: their norm, and Adam.
#pragma once

#include "launch.h"

namespace pullback::cuda {

// dW_enc[f] = sum_e dvalues[e] x[rows[e] % n], db_enc[f] = sum_e dvalues[e], dW_dec[f] = sum_e values[e] g[rows[e]]
// over the entries e = order[starts[f]] .. order[starts[f + 1] - 1] of feature f.
struct SparseGradient {
  const int64_t* starts;  // [n_features + 1]
  const int32_t* order;   // [nnz]
  const int32_t* rows;    // [nnz]
  const float* dvalues;   // [nnz]
  const float* values;    // [nnz]
  const void* x;          // [n, d_in], rows x_stride elements apart
  const void* g;          // [m, d_out], rows g_stride elements apart; m is a multiple of n
  int32_t* owners;        // [gradient_chunks(nnz)] scratch
  float* partials;        // [gradient_chunks(nnz), d_in + d_out + 1] scratch
  int64_t n, m, d_in, d_out, nnz, n_features, x_stride, g_stride;
  DType dtype;  // of x and g: float or bfloat16
  // Where *bound <= *enough, nobody wants the sums; they always are wanted where these are null.
  const double *bound, *enough;
};

int64_t gradient_chunks(int64_t nnz);

struct GradientNorm {
  SparseGradient gradient;
  const void* W_dec;  // [n_features, d_out], contiguous; null unless parallel components are removed
  DType W_dtype;      // float or bfloat16
  double* squares;    // [n_features] scratch
  double* norm;       // [1]: the squared norm of all three gradients
  // With `enough`: an upper bound of the result that is at most this is as good.
  const double* enough;  // [1], or null
  float* row_norms;      // [n + m] scratch
};

struct DictionaryRows {
  void *W_enc, *b_enc, *W_dec;  // [n_features, d_in], [n_features], [n_features, d_out], contiguous
};

struct AdamStep {
  SparseGradient gradient;
  DictionaryRows params;               // all float or all bfloat16
  DictionaryRows exp_avg, exp_avg_sq;  // float
  DType W_dtype;
  const double *grad_scale, *lr, *step;  // on the device
  float* constants;                      // [4] scratch
  double beta1, beta2, eps;
  bool remove_parallel, unit_norm, lazy;
};

// The widest decoder row a block can hold in its shared memory.
constexpr int64_t kWidestGradient = 50000;

// Both queue on `stream` of the current device and are bitwise repeatable. Damaged entries (a row or position out of
// range) make their feature NaN; a scale that is not finite leaves everything unchanged.
cudaError_t gradient_norm(const GradientNorm& job, cudaStream_t stream);
cudaError_t adam(const AdamStep& job, cudaStream_t stream);

}  // namespace pullback::cuda
