#include <algorithm>
#include <vector>

#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {
namespace {

// A unit of work: some targets against some entries of one position, whose decoder rows stay in the second cache.
struct Tile {
  int64_t position, target, n_targets, entry, n_entries;
};
constexpr int64_t tile_entries = 64;
constexpr int64_t tile_targets = 128;

std::vector<Tile> tiles(const int64_t* indptr, int64_t B, int64_t P) {
  std::vector<Tile> all;
  for (int64_t p = 0; p < P; ++p)
    for (int64_t b = 0; b < B; b += tile_targets)
      for (int64_t e = indptr[p]; e < indptr[p + 1]; e += tile_entries)
        all.push_back({p, b, std::min(tile_targets, B - b), e, std::min(tile_entries, indptr[p + 1] - e)});
  return all;
}

}  // namespace

void contract(const View& G, const View& indptr, const View& indices, const View& values, const View& W,
              const View& out) {
  const char* op = "contract";
  require_rows(op, "G", G, {-1, -1, -1}, G.itemsize);
  const int64_t B = G.shape[0], P = G.shape[1], d = G.shape[2];
  require_rows(op, "W", W, {-1, d}, G.itemsize);
  require_pattern(op, indptr, indices, P, W.shape[0]);
  const int64_t nnz = indices.shape[0];
  require_dense(op, "values", values, {nnz}, G.itemsize);
  require_dense(op, "out", out, {B, nnz}, G.itemsize);

  with_float_type(op, G.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const Table<T>& table = pullback::table<T>();
    const std::vector<Tile> work = tiles(indptr.as<int64_t>(), B, P);
    parallel_for(static_cast<int64_t>(work.size()), B * nnz * d, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const Tile& t = work[i];
        table.contract_tile(G.as<T>() + t.target * G.strides[0] + t.position * G.strides[1], G.strides[0], t.n_targets,
                            indices.as<int32_t>() + t.entry, values.as<T>() + t.entry, t.n_entries, W.as<T>(),
                            W.strides[0], d, out.as<T>() + t.target * nnz + t.entry, nnz);
      }
    });
  });
}

}  // namespace pullback
