// What the ops on a sparse gradient share: its checks, and its features as evenly sized work.
#pragma once

#include <vector>

#include "kernels.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {

// A gradient of F features: its shapes, its pointers and its ids.
void require_gradient(const char* op, const GradientViews& grad, int64_t F);

template <class T>
SparseGradient<T> borrowed(const GradientViews& grad) {
  const auto& [starts, order, rows, dvalues, values, x, g] = grad;
  return {starts.as<int64_t>(), order.as<int32_t>(), rows.as<int32_t>(), dvalues.as<T>(), values.as<T>(), x.as<T>(),
          x.strides[0],         x.shape[0],          x.shape[1],         g.as<T>(),       g.strides[0],   g.shape[1]};
}

// Bounds of pieces of the features that take about the same time: a few features may hold most of the entries.
std::vector<int64_t> balanced_pieces(const int64_t* starts, int64_t F);

// Calls f(begin, end, scratch) on pieces of the features, with room for a gradient row of each side.
template <class T, class Body>
void for_features(const SparseGradient<T>& grad, int64_t F, const Body& f) {
  const int64_t d = grad.d_in + grad.d_out, size = d + 16;  // apart, so that threads share no cache line
  const std::vector<int64_t> bounds = balanced_pieces(grad.starts, F);
  std::vector<T> scratch(size * max_threads());
  parallel_for(static_cast<int64_t>(bounds.size()) - 1, (F + grad.starts[F]) * d,
               [&](int64_t begin, int64_t end, int thread) {
                 f(bounds[begin], bounds[end], scratch.data() + thread * size);
               });
}

}  // namespace pullback
