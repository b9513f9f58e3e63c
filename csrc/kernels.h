// The contract between the instruction sets and the rest: one table of plain functions per set.
//
// A kernel is single-threaded, allocates nothing, and trusts its arguments: the callers (topk.cpp, sparse.cpp,
// contract.cpp, gradient.cpp, update.cpp) check shapes and ids, own the scratch and share the work among threads.
// Strides count elements.
#pragma once

#include <cstdint>

namespace pullback {

// A gradient by its entries s, starts[f] <= s < starts[f + 1] those of feature f: dW_enc[f] = sum_s dvalues[s]
// x[x_rows[s]], db_enc[f] = sum_s dvalues[s], dW_dec[f] = sum_s values[s] g[g_rows[s]].
template <class T>
struct SparseGradient {
  const int64_t* starts;
  const int32_t *x_rows, *g_rows;
  const T *dvalues, *values;
  const T* x;
  int64_t x_stride, d_in;
  const T* g;
  int64_t g_stride, d_out;
};

// The rows of a dictionary's F features, or a moment of each: W_enc (F, d_in), b_enc (F), W_dec (F, d_out), no gaps.
template <class T>
struct Dictionary {
  T* W_enc;
  T* b_enc;
  T* W_dec;
};

// p -= rate m / (correction sqrt(v) + eps), with the gradient times scale in m and v.
struct AdamFactors {
  double scale, rate, correction, beta1, beta2, eps;
  bool remove_parallel, unit_norm, lazy;
};

// The bfloat16 shadow of W_enc with its bounds, as shadow_rows writes it.
struct Shadow {
  uint16_t* w16;
  float* norms;
  float* rests;
};

template <class T>
struct Table {
  // Rows [begin, end) of h (n, F): the k largest of each, ties to the lower id, into values and indices (n, k).
  // scratch holds 4 (F + 1) values: candidates, a copy to select in, block maxima, and the ids.
  void (*topk_rows)(const T* h, int64_t h_stride, int64_t F, int64_t k, bool relu, int64_t begin, int64_t end,
                    T* values, int32_t* indices, void* scratch);

  // Rows [begin, end): out[n] = bias + sum_e values[e] W[indices[e]]. bias may be null.
  void (*decode_rows)(const int64_t* indptr, const int32_t* indices, const T* values, const T* W, int64_t W_stride,
                      const T* bias, int64_t d, int64_t begin, int64_t end, T* out);

  // Rows [begin, end): out[e] = <g[n], W[indices[e]]>.
  void (*sampled_rows)(const T* g, int64_t g_stride, const T* W, int64_t W_stride, int64_t d, const int64_t* indptr,
                       const int32_t* indices, int64_t begin, int64_t end, T* out);

  // Features [begin, end), entries sorted by feature: out[f] = sum_{starts[f] <= s < starts[f+1]} values[s] x[rows[s]].
  void (*segment_features)(const int64_t* starts, const int64_t* rows, const T* values, const T* x, int64_t x_stride,
                           int64_t d, int64_t begin, int64_t end, T* out);

  // One position: out[b, e] = values[e] <G[b], W[indices[e]]> for n_targets rows of G and n_entries entries.
  void (*contract_tile)(const T* G, int64_t G_stride, int64_t n_targets, const int32_t* indices, const T* values,
                        int64_t n_entries, const T* W, int64_t W_stride, int64_t d, T* out, int64_t out_stride);

  // Rows [begin, end) of k slots: residual[n] = bias + sum_j values[n, j] W[indices[n, j]] - y[n], its inner products
  // dots (n, k) with those rows of W (0 in an empty slot), its square in losses. bias may be null.
  void (*residual_rows)(const T* values, const int32_t* indices, int64_t k, const T* W, int64_t W_stride, const T* bias,
                        const T* y, int64_t y_stride, int64_t d, bool relu, int64_t begin, int64_t end, T* residual,
                        T* dots, double* losses);

  // Adds to sums (d) the rows [begin, end) of y - center, and to *square their squares.
  void (*moments_rows)(const T* y, int64_t y_stride, int64_t d, const double* center, int64_t begin, int64_t end,
                       double* sums, double* square);

  // The norms of rows [begin, end), accumulated in float64.
  void (*norm_rows)(const T* rows, int64_t stride, int64_t d, int64_t begin, int64_t end, double* norms);

  // Features [begin, end): the squared norm of each one's gradient. scratch holds d_in + d_out values.
  void (*gradient_features)(const SparseGradient<T>& grad, const T* W_dec, bool remove_parallel, int64_t begin,
                            int64_t end, T* scratch, double* squared_norms);

  // Features [begin, end): one step of Adam. shadow may be null. scratch holds d_in + d_out values.
  void (*adam_features)(const SparseGradient<T>& grad, const Dictionary<T>& weights, const Dictionary<T>& exp_avg,
                        const Dictionary<T>& exp_avg_sq, const AdamFactors& adam, const Shadow* shadow, int64_t begin,
                        int64_t end, T* scratch);
};

// What h = x W^T + b came from, in float32, with the norms of the rows of x and W.
struct Encoder {
  const float* x;
  int64_t x_stride;
  const float* W;
  int64_t W_stride;
  const float* b;
  int64_t d;
  const double* x_norms;
  const double* W_norms;
  double W_norm_max, b_max;
};

struct Kernels {
  const char* name;
  Table<float> f32;
  Table<double> f64;

  // topk_rows of the pre-activations accumulated in float64 and rounded once, given their float32 approximation h.
  void (*topk_certified_rows)(const float* h, int64_t h_stride, int64_t F, int64_t k, bool relu, const Encoder& encoder,
                              int64_t begin, int64_t end, float* values, int32_t* indices, void* scratch);

  // The Euclidean norms of rows [begin, end).
  void (*row_norms)(const float* rows, int64_t stride, int64_t d, int64_t begin, int64_t end, double* norms);

  // Rows [begin, end) in bfloat16, with upper bounds of ||w|| and of ||w - w16|| for each.
  void (*shadow_rows)(const float* rows, int64_t stride, int64_t d, int64_t begin, int64_t end, uint16_t* w16,
                      float* norms, float* rests);
};

extern const Kernels kernels_generic;
#ifdef PULLBACK_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace pullback
