#include <algorithm>
#include <cmath>
#include <memory>

#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {
namespace {

struct Shape {
  int64_t n, F, k;
};

Shape require_topk(const char* op, const View& h, const View& values, const View& indices) {
  require_rows(op, "h", h, {-1, -1}, h.itemsize);
  const int64_t n = h.shape[0], F = h.shape[1];
  require_dense(op, "values", values, {n, -1}, h.itemsize);
  const int64_t k = values.shape[1];
  require(1 <= k && k <= F,
          std::string(op) + ": k must be in 1..F=" + std::to_string(F) + ", got " + std::to_string(k));
  require(F <= INT32_MAX, std::string(op) + ": ids are int32, got F=" + std::to_string(F));
  require_dense(op, "indices", indices, {n, k}, 4);
  return {n, F, k};
}

// Calls f(begin, end, scratch) on pieces of the rows.
template <class T, class F>
void for_rows(const Shape& shape, const F& f) {
  const int64_t size = 4 * (shape.F + 16);  // the kernels' four arrays of at most F + 1
  const std::unique_ptr<T[]> scratch(new T[size * max_threads()]);
  parallel_for(shape.n, shape.n * shape.F,
               [&](int64_t begin, int64_t end, int thread) { f(begin, end, scratch.get() + thread * size); });
}

}  // namespace

void topk_select(const View& h, const View& values, const View& indices, bool relu) {
  const char* op = "topk_select";
  const Shape shape = require_topk(op, h, values, indices);
  with_float_type(op, h.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const Table<T>& table = pullback::table<T>();
    for_rows<T>(shape, [&](int64_t begin, int64_t end, T* scratch) {
      table.topk_rows(h.as<T>(), h.strides[0], shape.F, shape.k, relu, begin, end, values.as<T>(),
                      indices.as<int32_t>(), scratch);
    });
  });
}

void topk_certified(const View& h, const View& x, const View& W, const View& b, const View& x_norms,
                    const View& W_norms, const View& values, const View& indices, bool relu) {
  const char* op = "topk_certified";
  const int64_t f32 = sizeof(float);
  const Shape shape = require_topk(op, h, values, indices);
  require_rows(op, "h", h, {shape.n, shape.F}, f32);
  require_rows(op, "x", x, {shape.n, -1}, f32);
  const int64_t d = x.shape[1];
  require_rows(op, "W", W, {shape.F, d}, f32);
  require_dense(op, "b", b, {shape.F}, f32);
  require_dense(op, "x_norms", x_norms, {shape.n}, 8);
  require_dense(op, "W_norms", W_norms, {shape.F}, 8);

  Encoder encoder = {x.as<float>(),
                     x.strides[0],
                     W.as<float>(),
                     W.strides[0],
                     b.as<float>(),
                     d,
                     x_norms.as<double>(),
                     W_norms.as<double>(),
                     0,
                     0};
  for (int64_t f = 0; f < shape.F; ++f) {
    encoder.W_norm_max = std::max(encoder.W_norm_max, encoder.W_norms[f]);
    encoder.b_max = std::max<double>(encoder.b_max, std::abs(encoder.b[f]));
  }
  const auto kernel = kernels().topk_certified_rows;
  for_rows<float>(shape, [&](int64_t begin, int64_t end, float* scratch) {
    kernel(h.as<float>(), h.strides[0], shape.F, shape.k, relu, encoder, begin, end, values.as<float>(),
           indices.as<int32_t>(), scratch);
  });
}

void row_norms(const View& rows, const View& norms) {
  require_rows("row_norms", "rows", rows, {-1, -1}, 4);
  const int64_t n = rows.shape[0], d = rows.shape[1];
  require_dense("row_norms", "norms", norms, {n}, 8);
  const auto kernel = kernels().row_norms;
  parallel_for(n, n * d, [&](int64_t begin, int64_t end, int) {
    kernel(rows.as<float>(), rows.strides[0], d, begin, end, norms.as<double>());
  });
}

}  // namespace pullback
