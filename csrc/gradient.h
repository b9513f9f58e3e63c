// What the ops on a sparse gradient share: its checks, and its features as evenly sized work.
#pragma once

#include <vector>

#include "kernels.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {

// A gradient of F features: its shapes, its pointers and its ids.
void require_gradient(const char* op, const GradientViews& grad, int64_t F);

// The entries copied in order of their features: whoever walks along the features then finds them in a row.
template <class T>
class SortedGradient {
 public:
  explicit SortedGradient(const GradientViews& grad) : views_(grad) {
    const int64_t nnz = grad[1].shape[0], n = grad[5].shape[0];
    x_rows_.resize(nnz), g_rows_.resize(nnz), dvalues_.resize(nnz), values_.resize(nnz);
    const int32_t *order = grad[1].as<int32_t>(), *rows = grad[2].as<int32_t>();
    const T *dvalues = grad[3].as<T>(), *values = grad[4].as<T>();
    parallel_for(nnz, 8 * nnz, [&](int64_t begin, int64_t end, int) {
      for (int64_t s = begin; s < end; ++s) {
        const int32_t e = order[s];
        g_rows_[s] = rows[e];
        x_rows_[s] = static_cast<int32_t>(rows[e] % n);
        dvalues_[s] = dvalues[e];
        values_[s] = values[e];
      }
    });
  }

  SparseGradient<T> entries() const {
    const View &starts = views_[0], &x = views_[5], &g = views_[6];
    return {starts.as<int64_t>(), x_rows_.data(), g_rows_.data(), dvalues_.data(), values_.data(), x.as<T>(),
            x.strides[0],         x.shape[1],     g.as<T>(),      g.strides[0],    g.shape[1]};
  }

 private:
  const GradientViews& views_;
  std::vector<int32_t> x_rows_, g_rows_;
  std::vector<T> dvalues_, values_;
};

// Bounds of pieces of the features that take about the same time: a few features may hold most of the entries.
std::vector<int64_t> balanced_pieces(const int64_t* starts, int64_t F);

// Calls f(begin, end, scratch) on pieces of the features, with room for a gradient row of each side.
template <class T, class Body>
void for_features(const SparseGradient<T>& grad, int64_t F, const Body& f) {
  const int64_t d = grad.d_in + grad.d_out, size = d + 16;  // apart, so that threads share no cache line
  const std::vector<int64_t> bounds = balanced_pieces(grad.starts, F);
  std::vector<T> scratch(size * max_threads());
  parallel_for(
      static_cast<int64_t>(bounds.size()) - 1, (F + grad.starts[F]) * d,
      [&](int64_t begin, int64_t end, int thread) { f(bounds[begin], bounds[end], scratch.data() + thread * size); });
}

}  // namespace pullback
