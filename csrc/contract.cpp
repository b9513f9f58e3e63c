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

template <class T, class TG, class TW>
void run(ContractTile<T, TG, TW> kernel, const View& G, const View& indptr, const View& indices, const View& values,
         const View& W, const View& out, bool add) {
  const int64_t n_layers = G.shape[0], B = G.shape[1], P = G.shape[2], d = G.shape[3];
  const std::vector<Tile> work = tiles(indptr.as<int64_t>(), B, P);
  parallel_for(static_cast<int64_t>(work.size()), n_layers * B * indices.size() * d,
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t i = begin; i < end; ++i) {
                   const Tile& t = work[i];
                   for (int64_t l = 0; l < n_layers; ++l)
                     kernel(G.as<TG>() + l * G.strides[0] + t.target * G.strides[1] + t.position * G.strides[2],
                            G.strides[1], t.n_targets, indices.as<int32_t>() + t.entry, values.as<T>() + t.entry,
                            t.n_entries, W.as<TW>() + l * W.strides[1], W.strides[0], d,
                            out.as<T>() + t.target * out.strides[0] + t.entry, out.strides[0], add || l > 0);
                 }
               });
}

}  // namespace

void contract(const View& G, const View& indptr, const View& indices, const View& values, const View& W,
              const View& out, bool add) {
  const char* op = "contract";
  require_rows(op, "G", G, {-1, -1, -1, -1}, G.itemsize);
  const int64_t n_layers = G.shape[0], B = G.shape[1], P = G.shape[2], d = G.shape[3];
  require(n_layers > 0, "contract: G must have a layer, got none");
  require_rows(op, "W", W, {-1, n_layers, d}, W.itemsize);
  require_pattern(op, indptr, indices, P, W.shape[0]);
  const int64_t nnz = indices.shape[0];
  const bool narrow = (G.itemsize == 2 || G.itemsize == 4) && (W.itemsize == 2 || W.itemsize == 4);
  const bool fits = values.itemsize == 8 ? G.itemsize == 8 && W.itemsize == 8 : values.itemsize == 4 && narrow;
  require(fits, "contract: G and W must be float32 or bfloat16 with float32 values, or all float64; got " +
                    to_string({G.itemsize, W.itemsize, values.itemsize}) + " bytes an element of G, W and values");
  require_dense(op, "values", values, {nnz}, values.itemsize);
  require_rows(op, "out", out, {B, nnz}, values.itemsize);

  const Kernels& k = kernels();
  const auto with = [&](auto kernel) { run(kernel, G, indptr, indices, values, W, out, add); };
  if (values.itemsize == 8) return with(k.f64.contract_tile);
  if (G.itemsize == 4 && W.itemsize == 4) return with(k.f32.contract_tile);
  if (G.itemsize == 4) return with(k.contract_bf16_weights);
  if (W.itemsize == 4) return with(k.contract_bf16_targets);
  with(k.contract_bf16);
}

}  // namespace pullback
