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

// A CSR pattern of n rows whose ids lie in 0..F-1: its shapes, its pointers and its ids.
void require_pattern(const char* op, const View& indptr, const View& indices, int64_t n, int64_t F);

}  // namespace pullback
