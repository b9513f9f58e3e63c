#include "gradient.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {
namespace {

// Rows of y whose moments are summed by one thread: a constant, so that the sums do not depend on the threads.
constexpr int64_t moment_rows = 64;

void require_below(const char* op, const char* name, const View& ids, int64_t bound) {
  const int32_t* id = ids.as<int32_t>();
  bool inside = true;  // an id below 0 is a large unsigned number
  for (int64_t e = 0; e < ids.shape[0]; ++e) inside &= static_cast<uint32_t>(id[e]) < static_cast<uint64_t>(bound);
  require(inside, std::string(op) + ": " + name + " must lie in 0.." + std::to_string(bound - 1));
}

}  // namespace

void require_gradient(const char* op, const GradientViews& grad, int64_t F) {
  const auto& [starts, order, rows, dvalues, values, x, g] = grad;
  require_rows(op, "x", x, {-1, -1}, x.itemsize);
  require_rows(op, "g", g, {-1, -1}, x.itemsize);
  const int64_t n = x.shape[0], m = g.shape[0];
  require(n == 0 ? m == 0 : m % n == 0, std::string(op) + ": the rows of g must be a multiple of those of x, got " +
                                            std::to_string(m) + " and " + std::to_string(n));
  require_dense(op, "order", order, {-1}, 4);
  const int64_t nnz = order.shape[0];
  require_dense(op, "rows", rows, {nnz}, 4);
  require_dense(op, "dvalues", dvalues, {nnz}, x.itemsize);
  require_dense(op, "values", values, {nnz}, x.itemsize);
  require_dense(op, "starts", starts, {F + 1}, 8);
  const int64_t* start = starts.as<int64_t>();
  bool grows = start[0] == 0 && start[F] == nnz;
  for (int64_t f = 0; f < F; ++f) grows &= start[f] <= start[f + 1];
  require(grows, std::string(op) + ": starts must grow from 0 to nnz=" + std::to_string(nnz));
  require_below(op, "order", order, nnz);
  require_below(op, "rows", rows, m);
}

std::vector<int64_t> balanced_pieces(const int64_t* starts, int64_t F) {
  // A row costs as much to update as this many entries to add.
  constexpr int64_t row = 4;
  const int64_t pieces = std::min<int64_t>(F, 8 * max_threads()), work = starts[F] + row * F;
  std::vector<int64_t> bounds(pieces + 1, 0);
  int64_t f = 0;
  for (int64_t piece = 1; piece < pieces; ++piece) {
    const int64_t target = work / pieces * piece;
    while (f < F && starts[f] + row * f < target) ++f;
    bounds[piece] = f;
  }
  bounds[pieces] = F;
  return bounds;
}

void feature_order(const View& indices, const View& starts, const View& order) {
  const char* op = "feature_order";
  require_dense(op, "indices", indices, {-1}, 4);
  const int64_t nnz = indices.shape[0];
  require(nnz <= INT32_MAX, std::string(op) + ": entries are counted in int32, got " + std::to_string(nnz));
  require_dense(op, "order", order, {nnz}, 4);
  require_dense(op, "starts", starts, {-1}, 8);
  const int64_t F = starts.shape[0] - 1;
  require(F >= 0, std::string(op) + ": starts must be [F + 1], got [0]");
  require_ids(op, indices, F);

  const int32_t* ids = indices.as<int32_t>();
  int64_t* next = starts.as<int64_t>() + 1;  // of feature f: first its count, then its next free place, at last its end
  std::fill(next - 1, next + F, 0);
  for (int64_t e = 0; e < nnz; ++e) ++next[ids[e]];
  int64_t before = 0;
  for (int64_t f = 0; f < F; ++f) {
    const int64_t count = next[f];
    next[f] = before;
    before += count;
  }
  int32_t* places = order.as<int32_t>();
  for (int64_t e = 0; e < nnz; ++e) places[next[ids[e]]++] = static_cast<int32_t>(e);
}

void decode_residual(const View& values, const View& indices, const View& W, const View* bias, const View& y, bool relu,
                     const View& residual, const View& dots, const View& losses) {
  const char* op = "decode_residual";
  require_rows(op, "W", W, {-1, -1}, W.itemsize);
  const int64_t F = W.shape[0], d = W.shape[1];
  require_rows(op, "y", y, {-1, d}, W.itemsize);
  const int64_t n = y.shape[0];
  require_dense(op, "values", values, {n, -1}, W.itemsize);
  const int64_t k = values.shape[1];
  require_dense(op, "indices", indices, {n, k}, 4);
  require_ids(op, indices, F);
  if (bias) require_dense(op, "bias", *bias, {d}, W.itemsize);
  require_dense(op, "residual", residual, {n, d}, W.itemsize);
  require_dense(op, "dots", dots, {n, k}, W.itemsize);
  require_dense(op, "losses", losses, {n}, 8);

  with_float_type(op, W.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = table<T>().residual_rows;
    parallel_for(n, n * (k + 1) * d, [&](int64_t begin, int64_t end, int) {
      kernel(values.as<T>(), indices.as<int32_t>(), k, W.as<T>(), W.strides[0], bias ? bias->as<T>() : nullptr,
             y.as<T>(), y.strides[0], d, relu, begin, end, residual.as<T>(), dots.as<T>(), losses.as<double>());
    });
  });
}

double column_moments(const View& y, const View& center, const View& sums) {
  const char* op = "column_moments";
  require_rows(op, "y", y, {-1, -1}, y.itemsize);
  const int64_t n = y.shape[0], d = y.shape[1];
  require_dense(op, "center", center, {d}, 8);
  require_dense(op, "sums", sums, {d}, 8);
  const int64_t blocks = (n + moment_rows - 1) / moment_rows;
  std::vector<double> parts(blocks * d, 0), squares(blocks, 0);
  with_float_type(op, y.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = table<T>().moments_rows;
    parallel_for(blocks, n * d, [&](int64_t begin, int64_t end, int) {
      for (int64_t block = begin; block < end; ++block)
        kernel(y.as<T>(), y.strides[0], d, center.as<double>(), block * moment_rows,
               std::min(n, (block + 1) * moment_rows), parts.data() + block * d, &squares[block]);
    });
  });
  double* sum = sums.as<double>();
  std::fill(sum, sum + d, 0);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t c = 0; c < d; ++c) sum[c] += parts[block * d + c];
  return std::accumulate(squares.begin(), squares.end(), 0.0);
}

double gradient_norm(const GradientViews& grad, const View& W_dec, bool remove_parallel) {
  const char* op = "gradient_norm";
  const View& x = grad[5];
  require_dense(op, "W_dec", W_dec, {-1, -1}, x.itemsize);
  const int64_t F = W_dec.shape[0];
  require_gradient(op, grad, F);
  require(grad[6].shape[1] == W_dec.shape[1], std::string(op) + ": g must be as wide as W_dec, got " +
                                                  to_string(grad[6].shape) + " and " + to_string(W_dec.shape));
  std::vector<double> squared_norms(F);
  with_float_type(op, x.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const SortedGradient<T> sorted(grad);
    const SparseGradient<T> gradient = sorted.entries();
    for_features<T>(gradient, F, [&](int64_t begin, int64_t end, T* scratch) {
      table<T>().gradient_features(gradient, W_dec.as<T>(), remove_parallel, begin, end, scratch, squared_norms.data());
    });
  });
  return std::accumulate(squared_norms.begin(), squared_norms.end(), 0.0);
}

double gradient_bound(const GradientViews& grad, int64_t F) {
  const char* op = "gradient_bound";
  require_gradient(op, grad, F);
  double square = 0, margin = 0;
  with_float_type(op, grad[5].itemsize, [&](auto zero) {
    using T = decltype(zero);
    const auto norms = [](const View& rows) {
      std::vector<double> found(rows.shape[0]);
      const auto kernel = table<T>().norm_rows;
      parallel_for(rows.shape[0], rows.size(), [&](int64_t begin, int64_t end, int) {
        kernel(rows.as<T>(), rows.strides[0], rows.shape[1], begin, end, found.data());
      });
      return found;
    };
    const std::vector<double> x_norms = norms(grad[5]), g_norms = norms(grad[6]);
    const SortedGradient<T> sorted(grad);
    const SparseGradient<T> gradient = sorted.entries();
    int64_t most = 0;
    for (int64_t f = 0; f < F; ++f) {
      most = std::max(most, gradient.starts[f + 1] - gradient.starts[f]);
      double enc = 0, bias = 0, dec = 0;
      for (int64_t s = gradient.starts[f]; s < gradient.starts[f + 1]; ++s) {
        const double dvalue = std::abs(static_cast<double>(gradient.dvalues[s]));
        enc += dvalue * x_norms[gradient.x_rows[s]];
        bias += dvalue;
        dec += std::abs(static_cast<double>(gradient.values[s])) * g_norms[gradient.g_rows[s]];
      }
      square += enc * enc + bias * bias + dec * dec;
    }
    margin = 1.001 + static_cast<double>(most) * std::numeric_limits<T>::epsilon();
  });
  // gradient_norm adds rows up in their own precision, which may round it above the bound of exact sums.
  return margin * std::sqrt(square);
}

}  // namespace pullback
