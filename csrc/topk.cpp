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

}  // namespace pullback
