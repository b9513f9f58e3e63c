// The ops: shapes and ids are checked here, then the kernels of the chosen instruction set run, shared among threads.
// All throw std::invalid_argument where something does not fit, before they touch memory.
#pragma once

#include <array>
#include <optional>

#include "view.h"

namespace pullback {

// h (n, F) -> values (n, k), indices (n, k) int32.
void topk_select(const View& h, const View& values, const View& indices, bool relu);

// Candidates: ids int32, lows and highs float32 (R, capacity); counts int32, bounds float32 and limits int32 (R). See
// kernels.h.
using CandidateViews = std::vector<View>;

// Adds what may matter of y (R, w) ~ x W^T, the columns of features first, first + 1, ..., to the candidates of its
// rows: for the k largest, or above thresholds (w). bias, norms and rests (w), x_norms and x_rests (R); no rests: 0.
void screen_block(const View& y, int64_t first, const View& bias, const View& norms, const View* rests,
                  const View& x_norms, const View* x_rests, double gamma, double rho, int64_t k, const View* thresholds,
                  const CandidateViews& candidates);

// Whether products can be made in tiles of AMX: the CPU has them, this process may use them, and so may the kernels.
bool has_tiles();

// x (n, d) bfloat16 -> panels (n / 32, d / 32, 2, 16, 16, 2), rounded up and filled with 0, as the tiles take it.
void pack_tiles(const View& x, const View& panels);

// screen_block for a product that is made on the way: panels of x and W (w, d) bfloat16.
void screen_product(const View& panels, const View& W, int64_t first, const View& bias, const View& norms,
                    const View& rests, const View& x_norms, const View& x_rests, double gamma, double rho, int64_t k,
                    const View* thresholds, const CandidateViews& candidates);

// The k largest of h = x W^T + b in float64, rounded once: x (R, d), W (F, d), b (F) -> values and indices (R, k).
// counts become the number of pre-activations evaluated, or stay -1 where values and indices are not written.
void settle_topk(const View& x, const View& W, const View& b, const CandidateViews& candidates, const View& values,
                 const View& indices, bool relu);

// Leaves in ids and lows what is above thresholds (F), counts of it.
void settle_threshold(const View& x, const View& W, const View& b, const View& thresholds,
                      const CandidateViews& candidates);

// h (n, F) float32: the canonical pre-activations of whole rows.
void evaluate_rows(const View& x, const View& W, const View& b, const View& h);

// norms (n) not below the Euclidean norms of the rows of a float32 matrix (n, d).
void norm_rows(const View& rows, const View& norms);

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

// What heads take of a table's vectors, taken (U, H, d); row and pos int64 (Q, n), factor (Q, n): factor times a row of
// the table at a position -> out (Q P, n, d) = at each source, that times mixing (Q, H, T, T) from pos, times scale
// (Q, T); and the vectors themselves, standing (U, d), at pos. standing may be null; it must be where the rest is added
// to what stands in out.
void spread_heads(const View& taken, const View& row, const View& factor, const View& mixing, const View& scale,
                  const View& pos, const View* standing, const View& out, bool add);

// at_z (Q, P, n, H, d_head) -> out (Q, P, n, K, d_head): out[src] = scale[src] sum_{dst >= src} mixing[dst, src]
// at_z[dst], summed over the H / K heads that share one of K.
void mix_back(const View& at_z, const View& mixing, const View& scale, const View& out);

// out (n, W): out[b, starts[j] + r] += <R[r, b], leaf_j[r]>, R (Q P, n, d), leaves (Q, P, d) each.
void contract_leaves(const View& R, const std::vector<View>& leaves, const std::vector<int64_t>& starts,
                     const View& out);

// out[b, q, s] += sum_{p >= first + s} <R[q, p, b], written[q, p, s]>, R (Q, P, n, d), written (Q, P, S, d), out (n, Q,
// S).
void contract_written(const View& R, const View& written, int64_t first, const View& out);

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

// Rows of edges that list values of all sources of some spans, without their ids: values (E), offsets (R) of each row's
// first, shapes (R); the spans of shape i are those from span_ptr[i] to span_ptr[i + 1] (shapes + 1), each with where
// it stands in a row of the block it was taken from, its first source and its length, spans (S, 3). All else int64.
using EdgeRowViews = std::array<View, 5>;

// values <- what the rows of block (any, W) that stand at `at` int64 (R) have at the spans.
void take_spans(const View& block, const View& at, const EdgeRowViews& rows, int64_t n_sources);

// out (R, n_sources) <- the edges, where there are any.
void span_dense(const EdgeRowViews& rows, const View& out);

// Edges that are neither 0 nor of a source without an id, int32 (n_sources) with -1 for none: counts int64 (R).
void span_counts(const EdgeRowViews& rows, const View& ids, const View& counts);

// Those edges of row r, by id, from place begins[r] of sources int32 and weights on, and the sum of the others, lost
// float64 (R).
void span_pack(const EdgeRowViews& rows, const View& ids, const View& begins, const View& counts, const View& sources,
               const View& weights, const View& lost);

// totals float64 (R) of the sizes of edges from sources that count, bool (n_sources).
void span_totals(const EdgeRowViews& rows, const View& counted, const View& totals);

// total float64 (n_nodes): for one row r after the other, total[source] += total[targets[r]] scale[r] |value|.
void span_flow(const EdgeRowViews& rows, const View& targets, const View& scale, const View& total);

// Of sources, the first of each run of successive ones and how long it is, int32 (R).
using RunViews = std::optional<std::array<View, 2>>;

// The same for rows of a CSR, sources int32 (E), weights (E), of which the sizes count or, with their signs, the
// weights themselves: row rows[i] leads into targets[i]. Where runs of all sources are given, as csr_runs writes them,
// the sources are not read.
void csr_flow(const View& rows, const View& targets, const View& indptr, const View& sources, const RunViews& runs,
              const View& scale, const View& weights, bool sizes, const View& total);

// Runs of successive numbers, int32 (E): the first of each and how long it is, int32 (R). Returns how many there are,
// or -1 where there is no room for them.
int64_t csr_runs(const View& sources, const View& first, const View& length);

// Of rows in CSR, in float64: sums of the weights and of their sizes (R); totals (m, R) of the sizes from sources,
// int32 (E), that count by each of m masks, bool (m, n_nodes). Runs as of csr_flow.
void csr_sums(const View& indptr, const View& sources, const RunViews& runs, const View& weights, const View& counted,
              const View& sums, const View& sizes, const View& totals);

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

// Asks the system for huge pages behind memory that nobody has touched yet. Its contents stay what they are.
void prefer_huge_pages(const View& memory);

// int32 ids without gaps, all in 0..F-1.
void require_ids(const char* op, const View& indices, int64_t F);

// A CSR pattern of n rows whose ids lie in 0..F-1: its shapes, its pointers and its ids.
void require_pattern(const char* op, const View& indptr, const View& indices, int64_t n, int64_t F);

}  // namespace pullback
