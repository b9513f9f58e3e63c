// What the linear engine does at short range: frozen attention without copies in another order, and gradients against
// what stands at their own position.

#include <vector>

#include "isa.h"
#include "leaves.h"
#include "mixing.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {
namespace {

constexpr int64_t second_cache = 1 << 19;  // half of what most have

}  // namespace

void spread_heads(const View& taken, const View& row, const View& factor, const View& mixing, const View& scale,
                  const View& pos, const View* standing, const View& out, bool add) {
  const char* op = "spread_heads";
  require_rows(op, "taken", taken, {-1, -1, -1}, taken.itemsize);
  const int64_t U = taken.shape[0], H = taken.shape[1], d = taken.shape[2];
  require_dense(op, "row", row, {-1, -1}, 8);
  const int64_t Q = row.shape[0], n = row.shape[1];
  require_dense(op, "factor", factor, {Q, n}, taken.itemsize);
  require_dense(op, "pos", pos, {Q, n}, 8);
  require_dense(op, "out", out, {-1, n, d}, taken.itemsize);
  const int64_t P = Q ? out.shape[0] / Q : 0;
  require(Q * P == out.shape[0], std::string(op) + ": out must have as many rows of each prompt");
  require(!add || !standing, "spread_heads: what stands itself is there already where it is added to");
  if (standing) require_rows(op, "standing", *standing, {U, d}, taken.itemsize);
  for (int64_t i = 0; i < Q * n; ++i) {
    require(0 <= pos.as<int64_t>()[i] && pos.as<int64_t>()[i] < P,
            "spread_heads: a position is not among those of out");
    require(0 <= row.as<int64_t>()[i] && row.as<int64_t>()[i] < U, "spread_heads: the table has no such row");
  }
  with_float_type(op, taken.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const Spread<T> spread{taken.as<T>(),
                           taken.strides[0],
                           taken.strides[1],
                           standing ? standing->as<T>() : nullptr,
                           standing ? standing->strides[0] : 0,
                           row.as<int64_t>(),
                           factor.as<T>(),
                           pos.as<int64_t>(),
                           mixing_of<T>(op, mixing, scale, Q, H, P),
                           P,
                           n,
                           H,
                           d,
                           out.as<T>(),
                           add};
    const Table<T>& kernels = table<T>();
    parallel_for(Q * n, Q * n * P * H * d, [&](int64_t begin, int64_t end, int) {
      std::vector<T> weights(P * H);
      kernels.spread_columns(spread, begin, end, weights.data());
    });
  });
}

void mix_back(const View& at_z, const View& mixing, const View& scale, const View& out) {
  const char* op = "mix_back";
  require_dense(op, "at_z", at_z, {-1, -1, -1, -1, -1}, at_z.itemsize);
  const int64_t Q = at_z.shape[0], P = at_z.shape[1], n = at_z.shape[2], H = at_z.shape[3], d_head = at_z.shape[4];
  require_dense(op, "out", out, {Q, P, n, -1, d_head}, at_z.itemsize);
  const int64_t K = out.shape[3];
  require(K > 0 && H % K == 0, std::string(op) + ": " + std::to_string(H) + " heads cannot share " + std::to_string(K));
  with_float_type(op, at_z.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const MixBack<T> mix{at_z.as<T>(), mixing_of<T>(op, mixing, scale, Q, H, P), P, n, H, K, d_head, out.as<T>()};
    const Table<T>& kernels = table<T>();
    // As many columns at a time as stay in the second cache while every source reads them.
    const int64_t bytes = P * H * d_head * at_z.itemsize;
    const int64_t width = std::max<int64_t>(1, second_cache / std::max<int64_t>(1, bytes));
    const int64_t blocks = (n + width - 1) / width;
    parallel_for(Q * blocks, Q * P * (P / 2 + 1) * n * H * d_head, [&](int64_t begin, int64_t end, int) {
      std::vector<T> weights(mix_back_scratch(P));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % blocks * width;
        kernels.mix_back_columns(mix, i / blocks, first, std::min(n, first + width), weights.data());
      }
    });
  });
}

void contract_leaves(const View& R, const std::vector<View>& leaves, const std::vector<int64_t>& starts,
                     const View& out) {
  const char* op = "contract_leaves";
  require_rows(op, "R", R, {-1, -1, -1}, R.itemsize);
  const int64_t rows = R.shape[0], n = R.shape[1], d = R.shape[2], count = static_cast<int64_t>(leaves.size());
  require(0 < count, "contract_leaves: there are no leaves");
  const int64_t Q = leaves[0].shape.at(0), P = leaves[0].shape.at(1);
  require(Q * P == rows, "contract_leaves: leaves must be [Q, P, d] with a vector for each of the Q P rows of R");
  for (const View& u : leaves) require_rows(op, "a leaf", u, {Q, P, d}, R.itemsize);
  require_rows(op, "out", out, {n, -1}, R.itemsize);
  require(static_cast<int64_t>(starts.size()) == count, "contract_leaves: there must be a start for each leaf");
  for (const int64_t start : starts) {
    require(start >= 0 && start + rows <= out.shape[1], "contract_leaves: out has no such columns");
  }
  with_float_type(op, R.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const Table<T>& kernels = table<T>();
    parallel_for(rows, rows * n * d * count, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        each_few_leaves<T>(
            count,
            [&](int64_t j) { return leaves[j].as<T>() + r / P * leaves[j].strides[0] + r % P * leaves[j].strides[1]; },
            [&](int64_t j) { return out.as<T>() + starts[j] + r; },
            [&](const T* const* u, T* const* to, int64_t few) {
              kernels.leaf_products(R.as<T>() + r * R.strides[0], R.strides[1], n, u, few, d, to, out.strides[0]);
            });
      }
    });
  });
}

void contract_written(const View& R, const View& written, int64_t first, const View& out) {
  const char* op = "contract_written";
  require_rows(op, "R", R, {-1, -1, -1, -1}, R.itemsize);
  const int64_t Q = R.shape[0], P = R.shape[1], n = R.shape[2], d = R.shape[3];
  require_rows(op, "written", written, {Q, P, -1, d}, R.itemsize);
  const int64_t S = written.shape[2];
  require_rows(op, "out", out, {n, Q, S}, R.itemsize);
  require(first >= 0, "contract_written: sources begin at 0 or later");
  std::vector<int32_t> every(S);
  for (int64_t s = 0; s < S; ++s) every[s] = static_cast<int32_t>(s);
  with_float_type(op, R.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const Table<T>& kernels = table<T>();
    const std::vector<T> ones(S, T(1));
    parallel_for(Q, Q * P * n * S * d, [&](int64_t begin, int64_t end, int) {
      for (int64_t q = begin; q < end; ++q)
        for (int64_t p = first; p < P; ++p)
          kernels.contract_tile(R.as<T>() + q * R.strides[0] + p * R.strides[1], R.strides[2], n, every.data(),
                                ones.data(), std::min(S, p - first + 1),
                                written.as<T>() + q * written.strides[0] + p * written.strides[1], written.strides[2],
                                d, out.as<T>() + q * out.strides[1], out.strides[0], true);
    });
  });
}

}  // namespace pullback
