// The ops: shapes and ids are checked here, then the kernels of the chosen instruction set run, shared among threads.
// All throw std::invalid_argument where something does not fit, before they touch memory.
#pragma once

#include "view.h"

namespace pullback {

// h (n, F) -> values (n, k), indices (n, k) int32.
void topk_select(const View& h, const View& values, const View& indices, bool relu);

// The same for h = x W^T + b (n, F) in float32, as float64 accumulation would have it. x (n, d), W (F, d), b (F), and
// the Euclidean norms of the rows of x (n) and W (F).
void topk_certified(const View& h, const View& x, const View& W, const View& b, const View& x_norms,
                    const View& W_norms, const View& values, const View& indices, bool relu);

// The Euclidean norms of the rows of a float32 matrix (n, d), in float64 (n).
void row_norms(const View& rows, const View& norms);

// The bfloat16 shadow w16 (n, d) of a float32 matrix (n, d), with norms (n) >= ||w|| and rests (n) >= ||w - w16||.
void shadow_rows(const View& rows, const View& w16, const View& norms, const View& rests);

// A CSR pattern is indptr int64 (n + 1) and indices int32 (nnz). bias may be null.
void decode_csr(const View& indptr, const View& indices, const View& values, const View& W, const View* bias,
                const View& out);
void sampled_dot(const View& g, const View& W, const View& indptr, const View& indices, const View& out);
void segment_outer(const View& indptr, const View& indices, const View& values, const View& x, const View& out);

// G (L, B, P, d), a CSR pattern of P rows with values, W (F, L, d) -> out (B, nnz), summed over the L layers; added to
// what stands there, if told. Values and out are float32 with G and W float32 or bfloat16 (2 bytes), or all is float64.
void contract(const View& G, const View& indptr, const View& indices, const View& values, const View& W,
              const View& out, bool add);

// How many pairs (i, j) of features of A and B, CSR patterns of n rows each, meet in a row: counts int64 (F_a), by i.
void coactivation_counts(const View& A_indptr, const View& A_indices, const View& B_indptr, const View& B_indices,
                         const View& counts, int64_t F_b);

// The sums over those rows, in float64, as CSR with the ids j ascending: products of a b, and gated of a where b > 0.
// indptr (F_a + 1) comes from the counts. The values of A and B are both float32 or both float64.
void coactivation_sums(const View& A_indptr, const View& A_indices, const View& A_values, const View& B_indptr,
                       const View& B_indices, const View& B_values, const View& indptr, const View& indices,
                       const View& products, const View& gated, int64_t F_b);

// The same sums added to dense blocks (F_a, F_b).
void coactivation_block(const View& A_indptr, const View& A_indices, const View& A_values, const View& B_indptr,
                        const View& B_indices, const View& B_values, const View& products, const View& gated);

// The same in two steps for the sum of two such results X and Y.
void union_counts(const View& X_indptr, const View& X_indices, const View& Y_indptr, const View& Y_indices,
                  const View& counts, int64_t F_b);
void union_sums(const View& X_indptr, const View& X_indices, const View& X_products, const View& X_gated,
                const View& Y_indptr, const View& Y_indices, const View& Y_products, const View& Y_gated,
                const View& indptr, const View& indices, const View& products, const View& gated, int64_t F_b);

// A CSR pattern of n rows whose ids lie in 0..F-1: its shapes, its pointers and its ids.
void require_pattern(const char* op, const View& indptr, const View& indices, int64_t n, int64_t F);

}  // namespace pullback
