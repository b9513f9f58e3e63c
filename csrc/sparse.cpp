#include <algorithm>

#include "by_feature.h"
#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {

void require_ids(const char* op, const View& indices, int64_t F) {
  const int32_t* ids = indices.as<int32_t>();
  const int64_t nnz = indices.size();
  const uint32_t bound = static_cast<uint32_t>(F);
  bool inside = true;  // an id below 0 is a large unsigned number
  for (int64_t e = 0; e < nnz; ++e) inside &= static_cast<uint32_t>(ids[e]) < bound;
  for (int64_t e = 0; !inside && e < nnz; ++e) {
    require(static_cast<uint32_t>(ids[e]) < bound, std::string(op) + ": feature id " + std::to_string(ids[e]) +
                                                       " at entry " + std::to_string(e) +
                                                       " is not in 0..F-1=" + std::to_string(F - 1));
  }
}

void require_pattern(const char* op, const View& indptr, const View& indices, int64_t n, int64_t F) {
  require_dense(op, "indptr", indptr, {n + 1}, 8);
  require_dense(op, "indices", indices, {-1}, 4);
  const int64_t nnz = indices.shape[0];
  const int64_t* pointers = indptr.as<int64_t>();
  bool grows = pointers[0] == 0 && pointers[n] == nnz;
  for (int64_t row = 0; row < n; ++row) grows &= pointers[row] <= pointers[row + 1];
  require(grows, std::string(op) + ": indptr must grow from 0 to nnz=" + std::to_string(nnz));

  require_ids(op, indices, F);
}

void decode_csr(const View& indptr, const View& indices, const View& values, const View& W, const View* bias,
                const View& out) {
  const char* op = "decode_csr";
  require_rows(op, "W", W, {-1, -1}, W.itemsize);
  const int64_t F = W.shape[0], d = W.shape[1];
  require_dense(op, "out", out, {-1, d}, W.itemsize);
  const int64_t n = out.shape[0];
  require_pattern(op, indptr, indices, n, F);
  const int64_t nnz = indices.shape[0];
  require_dense(op, "values", values, {nnz}, W.itemsize);
  if (bias) require_dense(op, "bias", *bias, {d}, W.itemsize);

  with_float_type(op, W.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const Table<T>& table = pullback::table<T>();
    parallel_for(n, (n + nnz) * d, [&](int64_t begin, int64_t end, int) {
      table.decode_rows(indptr.as<int64_t>(), indices.as<int32_t>(), values.as<T>(), W.as<T>(), W.strides[0],
                        bias ? bias->as<T>() : nullptr, d, begin, end, out.as<T>());
    });
  });
}

void sampled_dot(const View& g, const View& W, const View& indptr, const View& indices, const View& out) {
  const char* op = "sampled_dot";
  require_rows(op, "g", g, {-1, -1}, g.itemsize);
  const int64_t n = g.shape[0], d = g.shape[1];
  require_rows(op, "W", W, {-1, d}, g.itemsize);
  require_pattern(op, indptr, indices, n, W.shape[0]);
  const int64_t nnz = indices.shape[0];
  require_dense(op, "out", out, {nnz}, g.itemsize);

  with_float_type(op, g.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const Table<T>& table = pullback::table<T>();
    parallel_for(n, nnz * d, [&](int64_t begin, int64_t end, int) {
      table.sampled_rows(g.as<T>(), g.strides[0], W.as<T>(), W.strides[0], d, indptr.as<int64_t>(),
                         indices.as<int32_t>(), begin, end, out.as<T>());
    });
  });
}

namespace {

// Whether a result is written past the caches. None holds one this large, and a store would read every line from memory
// before it writes it. Its rows must be whole vectors of the widest instruction set.
bool past_caches(const View& out) {
  constexpr int64_t large = int64_t{1} << 25, vector = 64;
  return out.size() * out.itemsize >= large && out.shape[1] * out.itemsize % vector == 0 &&
         reinterpret_cast<uintptr_t>(out.data) % vector == 0;
}

// out[id] += value * x[row], where a row is one number: nothing to sort for.
template <class T>
void scatter(const int64_t* indptr, const int32_t* ids, const T* values, const T* x, int64_t stride, int64_t n,
             int64_t F, T* out) {
  std::fill(out, out + F, T(0));
  for (int64_t row = 0; row < n; ++row)
    for (int64_t e = indptr[row]; e < indptr[row + 1]; ++e) out[ids[e]] += values[e] * x[row * stride];
}

}  // namespace

void segment_outer(const View& indptr, const View& indices, const View& values, const View& x, const View& out) {
  const char* op = "segment_outer";
  require_rows(op, "x", x, {-1, -1}, x.itemsize);
  const int64_t n = x.shape[0], d = x.shape[1];
  require_dense(op, "out", out, {-1, d}, x.itemsize);
  const int64_t F = out.shape[0];
  require_pattern(op, indptr, indices, n, F);
  const int64_t nnz = indices.shape[0];
  require_dense(op, "values", values, {nnz}, x.itemsize);

  with_float_type(op, x.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const int64_t* starts = indptr.as<int64_t>();
    const int32_t* ids = indices.as<int32_t>();
    if (d == 1) return scatter(starts, ids, values.as<T>(), x.as<T>(), x.strides[0], n, F, out.as<T>());
    const Table<T>& table = pullback::table<T>();
    const ByFeature<T> sorted(starts, ids, values.as<T>(), n, nnz, F);
    const bool past = past_caches(out);
    parallel_for(F, (F + nnz) * d, [&](int64_t begin, int64_t end, int) {
      table.segment_features(sorted.starts.data(), sorted.rows.data(), sorted.values.data(), x.as<T>(), x.strides[0], d,
                             begin, end, past, out.as<T>());
    });
  });
}

}  // namespace pullback
