// The contract between the instruction sets and the rest: one table of plain functions per set.
//
// A kernel is single-threaded, allocates nothing, and trusts its arguments: the callers (topk.cpp, sparse.cpp,
// contract.cpp) check shapes and ids, own the scratch and share the work among threads. Strides count elements.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace pullback {

// One position: out[b, e] = values[e] <G[b], W[indices[e]]> for n_targets rows of G and n_entries entries; added to
// what stands there, if told.
template <class T, class TG, class TW>
using ContractTile = void (*)(const TG* G, int64_t G_stride, int64_t n_targets, const int32_t* indices, const T* values,
                              int64_t n_entries, const TW* W, int64_t W_stride, int64_t d, T* out, int64_t out_stride,
                              bool add);

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

  ContractTile<T, T, T> contract_tile;
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

  // With bfloat16 targets, decoder rows, or both, summed in float32.
  ContractTile<float, bf16, float> contract_bf16_targets;
  ContractTile<float, float, bf16> contract_bf16_weights;
  ContractTile<float, bf16, bf16> contract_bf16;
};

extern const Kernels kernels_generic;
#ifdef PULLBACK_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace pullback
