// The contract between the instruction sets and the rest: one table of plain functions per set.
//
// A kernel is single-threaded, allocates nothing, and trusts its arguments: the callers (topk.cpp, sparse.cpp,
// contract.cpp, frozen.cpp, gradient.cpp, update.cpp, csr.cpp, edges.cpp) check shapes and ids, own the scratch and
// share the work among threads. Strides count elements.
#pragma once

#include <cstdint>

#include "bf16.h"

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

// One position: out[b, e] = values[e] <G[b], W[indices[e]]> for n_targets rows of G and n_entries entries; added to
// what stands there, if told.
template <class T, class TG, class TW>
using ContractTile = void (*)(const TG* G, int64_t G_stride, int64_t n_targets, const int32_t* indices, const T* values,
                              int64_t n_entries, const TW* W, int64_t W_stride, int64_t d, T* out, int64_t out_stride,
                              bool add);

// Patterns (Q, H, dst, src), and what a head reads at a source is divided by: strides, the last 1.
template <class T>
struct Mixing {
  const T* at;
  int64_t q, h, dst;
  const T* scale;
  int64_t scale_q;
};

// Targets at one position each: factor[q, b] times row row[q, b] of a table, at pos[q, b] of prompt q. What heads take
// of the table's vectors, (U, H, d) -> out (Q P, n, d), where it stands at each source, and the vectors themselves (U,
// d) besides at pos, or null; added to what out holds, if told.
template <class T>
struct Spread {
  const T* taken;
  int64_t taken_u, taken_h;
  const T* standing;
  int64_t standing_u;
  const int64_t* row;
  const T* factor;
  const int64_t* pos;
  Mixing<T> mixing;
  int64_t P, n, H, d;
  T* out;
  bool add;
};

// at_z (Q P, n, H, d_head), gradients behind the patterns -> out (Q P, n, K, d_head), before them, no gaps.
template <class T>
struct MixBack {
  const T* at_z;
  Mixing<T> mixing;
  int64_t P, n, H, K, d_head;
  T* out;
};

// Sources of a row's edges: first[r], first[r] + 1, ..., length[r] of them, run after run.
struct RunsOf {
  const int32_t *first, *length;
  int64_t count;
};

// Vectors of a row that are multiplied with its gradients together.
constexpr int leaves_at_once = 4;

// Sources that are mixed at a time, at most, and the numbers that the patterns of P positions take meanwhile.
constexpr int most_mixed = 4;
constexpr int64_t mix_back_scratch(int64_t P) { return most_mixed * P; }

// Room for a panel of n entries, whatever the width of vectors.
constexpr int64_t panel_size(int64_t n, int64_t d) { return (n + 15) / 16 * 16 * d; }

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
                           int64_t d, int64_t begin, int64_t end, bool past_caches, T* out);

  ContractTile<T, T, T> contract_tile;

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

  // Columns q n + b in [begin, end).
  // weights: room for P H numbers.
  void (*spread_columns)(const Spread<T>& spread, int64_t begin, int64_t end, T* weights);

  // Columns [begin, end) of prompt q. scratch holds mix_back_scratch(P) values.
  void (*mix_back_columns)(const MixBack<T>& mix, int64_t q, int64_t begin, int64_t end, T* scratch);

  // One row: out[j][b * out_stride] += <G[b], u[j]> for n rows of G and `count` vectors, at most leaves_at_once.
  void (*leaf_products)(const T* G, int64_t G_stride, int64_t n, const T* const* u, int64_t count, int64_t d,
                        T* const* out, int64_t out_stride);

  // n edges of a row. total[source[e]] += into * weight[e], or times its size; the sum of the weights, that of their
  // sizes, and for each of m masks, n_nodes numbers, that of the sizes times what their sources count: sums[2 + m].
  void (*flow_row)(const int32_t* source, const T* weight, int64_t n, double into, bool sizes, double* total);
  void (*sum_row)(const int32_t* source, const T* weight, int64_t n, const double* masks, int64_t n_nodes, int64_t m,
                  double* sums);

  // The same of edges whose sources are given by their runs.
  void (*flow_runs)(RunsOf runs, const T* weight, double into, bool sizes, double* total);
  void (*sum_runs)(RunsOf runs, const T* weight, const double* masks, int64_t n_nodes, int64_t m, double* sums);

  // How many of n values are not 0.
  int64_t (*count_nonzero)(const T* values, int64_t n);

  // out (m, columns) = A (m, K) B (K, columns), without gaps, or added to what stands there.
  void (*product_rows)(const T* A, int64_t m, int64_t K, const T* B, int64_t columns, T* out, bool add);

  // Decoder rows of n entries side by side, in panel_size(n, d) numbers, and what contract_tile does, by them: added
  // to out, for rows of G without gaps.
  void (*pack_panel)(const T* W, int64_t W_stride, const int32_t* indices, int64_t n, int64_t d, T* panel);
  void (*contract_panel)(const T* G, int64_t n_targets, const T* panel, const T* values, int64_t n, int64_t d, T* out,
                         int64_t out_stride);
};

// Features whose error bound is taken together.
constexpr int64_t screen_tile = 64;
// Slots that must be free before a tile is taken in: whole vectors are written where a part of them is kept.
constexpr int64_t screen_room = screen_tile + 16;
// Covers the float32 roundings in which a slack is computed, and the one of the canonical value to float32.
constexpr float screen_inflation = 1 + 0x1p-18f;

// Covers sums and products that a processor flushes to zero instead of denormals: 2^-126 each, for d < 2^20.
constexpr float screen_tiny = 0x1p-104f;

// Columns [first, first + width) of y (n, F) ~ x W^T, and what bounds their error (kernels/screen.inl). y is float32 or
// bfloat16; bias and thresholds start at the block's first feature; tile_* hold a number per tile of the block.
struct ScreenBlock {
  const void* y;
  int64_t y_stride, first, width, k;
  const float* bias;
  const float *tile_norms, *tile_rests, *tile_biases;  // the last already times rho
  const float *x_norms, *x_rests;
  float gamma, rho;
  const float *thresholds, *tile_thresholds;  // null where the k largest are looked for
};

// A product in tiles of AMX takes in so many features, rows of x and columns at a time.
constexpr int64_t product_side = 32;
// Features from which the first bounds of the k-th largest are found.
constexpr int64_t product_first(int64_t k) { return k < 16 ? 512 : k > 128 ? 4096 : 32 * k; }
constexpr int64_t product_scratch(int64_t k, int64_t d, int64_t rows) {
  const int64_t whole_rows = (rows + product_side - 1) / product_side * product_side;
  return 4 * product_first(k) * (whole_rows + 8) + 2 * product_side * (d + product_side);
}

// Features first, first + 1, ... of W in bfloat16 and n rows of x (n, d) in panels of 32: of 32 columns after the
// other, pairs of neighbours, 16 rows side by side and then the other 16. bias and thresholds start at the first
// feature; tile_* hold the largest of product_side features each.
struct ScreenedProduct {
  const uint16_t* W;
  int64_t W_stride;
  const uint16_t* panels;
  int64_t d, n, first, k;
  const float* bias;
  const float *tile_norms, *tile_rests, *tile_biases;  // the last already times rho
  const float *x_norms, *x_rests;
  float gamma, rho;
  const float* thresholds;  // null where the k largest are looked for
};

// Of each row: ids in ascending order with low <= h <= high, how many (-1: the bound cannot settle this row), a lower
// bound of the k-th largest h, and how many are held before the bound is raised.
struct Candidates {
  int32_t* ids;
  float *lows, *highs;
  int64_t capacity;
  int32_t* counts;
  float* bounds;
  int32_t* limits;
};

// What the canonical pre-activation is computed from, all in float32.
struct ScreenedEncoder {
  const float* x;
  int64_t x_stride;
  const float* W;
  int64_t W_stride;
  const float* b;
  int64_t d;
};

struct Kernels {
  const char* name;
  Table<float> f32;
  Table<double> f64;

  // Rows [begin, end): adds what of a block may matter to the candidates. scratch holds 2 width + 64 floats.
  void (*screen_f32)(const ScreenBlock& block, const Candidates& candidates, int64_t begin, int64_t end, void* scratch);
  void (*screen_bf16)(const ScreenBlock& block, const Candidates& candidates, int64_t begin, int64_t end,
                      void* scratch);

  // Features [f_begin, f_end) and rows [n_begin, n_end), n_begin a multiple of product_side: the same of their product.
  // scratch holds product_scratch bytes. Null where there are no tiles.
  void (*screen_product)(const ScreenedProduct& product, const Candidates& candidates, int64_t f_begin, int64_t f_end,
                         int64_t n_begin, int64_t n_end, void* scratch);

  // Rows [begin, end): lets go of candidates that cannot be among the k largest.
  void (*tighten_rows)(const Candidates& candidates, int64_t k, int64_t begin, int64_t end);

  // Features [begin, end): canonical pre-activations in place of the lows at slots[starts[f]..starts[f + 1]), which
  // count from the first row's first candidate. By feature, each row of W is read once. scratch holds d doubles.
  void (*evaluate_features)(const ScreenedEncoder& encoder, const Candidates& candidates, const int64_t* starts,
                            const int64_t* slots, int64_t begin, int64_t end, void* scratch);

  // Features [begin, end) of n whole rows: canonical pre-activations h (n, F). scratch holds d doubles.
  void (*evaluate_rows)(const ScreenedEncoder& encoder, int64_t n, int64_t F, int64_t begin, int64_t end, float* h,
                        void* scratch);

  // Rows [begin, end), evaluated: the k largest. scratch holds 2 (capacity + 1) floats.
  void (*choose_topk)(const Candidates& candidates, int64_t k, bool relu, int64_t begin, int64_t end, float* values,
                      int32_t* indices, void* scratch);

  // Rows [begin, end), evaluated: leaves what is above its threshold and not zero.
  void (*choose_above)(const Candidates& candidates, const float* thresholds, int64_t begin, int64_t end);

  // Rows [begin, end) in bfloat16, with upper bounds of ||w|| and of ||w - w16|| for each.
  void (*shadow_rows)(const float* rows, int64_t stride, int64_t d, int64_t begin, int64_t end, uint16_t* w16,
                      float* norms, float* rests);

  // Whether n ids lie in 0..bound-1.
  bool (*ids_below)(const int32_t* ids, int64_t n, int64_t bound);

  // How many of n ids follow the first one in succession, itself included.
  int64_t (*run_length)(const int32_t* ids, int64_t n);

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
