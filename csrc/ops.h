// The ops: shapes and ids are checked here, then the kernels of the chosen instruction set run, shared among threads.
// All throw std::invalid_argument where something does not fit, before they touch memory.
#pragma once

#include <array>
#include <optional>

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

// G (B, P, d), a CSR pattern of P rows with values, W (F, d) -> out (B, nnz).
void contract(const View& G, const View& indptr, const View& indices, const View& values, const View& W,
              const View& out);

// values, indices (n, k), W (F, d), y (n, d) -> residual (n, d) = bias + sum_j values[n, j] W[indices[n, j]] - y, dots
// (n, k) = <residual[n], W[indices[n, j]]>, losses (n) float64 = ||residual[n]||^2. bias may be null.
void decode_residual(const View& values, const View& indices, const View& W, const View* bias, const View& y, bool relu,
                     const View& residual, const View& dots, const View& losses);

// indices int32 (nnz) -> starts int64 (F + 1), order int32 (nnz): entries by feature, then by position.
void feature_order(const View& indices, const View& starts, const View& order);

// y (n, d), center float64 (d) -> sums float64 (d) of the rows of y - center, and the returned sum of their squares.
double column_moments(const View& y, const View& center, const View& sums);

// starts, order, rows, dvalues, values, x, g: see SparseGradient in kernels.h.
using GradientViews = std::array<View, 7>;
// W_enc (F, d_in), b_enc (F), W_dec (F, d_out).
using DictionaryViews = std::array<View, 3>;
// w16 (F, d_in), norms (F), rests (F).
using ShadowViews = std::array<View, 3>;

// The squared norm of the gradient, whose rows of W_dec first lose their component along W_dec if asked.
double gradient_norm(const GradientViews& grad, const View& W_dec, bool remove_parallel);

// Not below the root of gradient_norm, from the norms of the rows of x and g alone: their triangle inequality.
double gradient_bound(const GradientViews& grad, int64_t F);

// One step of Adam, the step-th, in place. Nothing happens if grad_scale is not finite.
void adam(const GradientViews& grad, const DictionaryViews& weights, const DictionaryViews& exp_avg,
          const DictionaryViews& exp_avg_sq, double grad_scale, double lr, int64_t step, double beta1, double beta2,
          double eps, bool remove_parallel, bool unit_norm, bool lazy, const std::optional<ShadowViews>& shadow);

// int32 ids without gaps, all in 0..F-1.
void require_ids(const char* op, const View& indices, int64_t F);

// A CSR pattern of n rows whose ids lie in 0..F-1: its shapes, its pointers and its ids.
void require_pattern(const char* op, const View& indptr, const View& indices, int64_t n, int64_t F);

}  // namespace pullback
