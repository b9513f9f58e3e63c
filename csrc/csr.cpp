// Edges of attribution graphs in CSR: what flows along them, sums of rows, and runs of successive sources.

#include <algorithm>
#include <atomic>
#include <limits>

#include "edges.h"
#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {
namespace {

void require_csr(const char* op, const View& indptr, const View& weights) {
  require_dense(op, "indptr", indptr, {-1}, 8);
  require_dense(op, "weights", weights, {-1}, weights.itemsize);
  const int64_t n = indptr.shape[0] - 1;
  require(n >= 0, std::string(op) + ": indptr must be [n + 1], got [0]");
  const int64_t* ptr = indptr.as<int64_t>();
  bool ascends = ptr[0] == 0 && ptr[n] == weights.shape[0];
  for (int64_t r = 0; r < n; ++r) ascends &= ptr[r] <= ptr[r + 1];
  require(ascends, std::string(op) + ": indptr must ascend from 0 to " + std::to_string(weights.shape[0]));
}

// Runs of sources, cut where a row ends.
class RunsByRow {
 public:
  RunsByRow(const char* op, const RunViews& runs, const View& indptr, int64_t n_edges, int64_t n_nodes) {
    if (!runs) return;
    const auto& [firsts, lengths] = *runs;
    require_dense(op, "the first of runs", firsts, {-1}, 4);
    const int64_t n_runs = firsts.shape[0], n_rows = indptr.shape[0] - 1;
    require_dense(op, "the length of runs", lengths, {n_runs}, 4);
    const int32_t *first = firsts.as<int32_t>(), *length = lengths.as<int32_t>();
    const int64_t* ptr = indptr.as<int64_t>();
    int64_t total = 0;
    bool inside = true;
    for (int64_t r = 0; r < n_runs; ++r) {
      inside &= first[r] >= 0 && length[r] >= 1 && int64_t{first[r]} + length[r] <= n_nodes;
      total += length[r];
    }
    require(inside && total == n_edges, std::string(op) + ": the runs are not those of " + std::to_string(n_edges) +
                                            " edges from " + std::to_string(n_nodes) + " nodes");
    rows_.reserve(n_rows + 1);
    rows_.push_back(0);
    int64_t run = 0, used = 0;
    for (int64_t row = 0; row < n_rows; ++row) {
      for (int64_t left = ptr[row + 1] - ptr[row]; left > 0;) {
        const int64_t taken = std::min<int64_t>(left, length[run] - used);
        first_.push_back(static_cast<int32_t>(first[run] + used));
        length_.push_back(static_cast<int32_t>(taken));
        left -= taken;
        used += taken;
        if (used == length[run]) ++run, used = 0;
      }
      rows_.push_back(static_cast<int64_t>(first_.size()));
    }
  }

  bool given() const { return !rows_.empty(); }
  RunsOf of(int64_t row) const {
    return {first_.data() + rows_[row], length_.data() + rows_[row], rows_[row + 1] - rows_[row]};
  }

 private:
  std::vector<int32_t> first_, length_;
  std::vector<int64_t> rows_;
};

}  // namespace

void csr_flow(const View& rows, const View& targets, const View& indptr, const View& sources, const RunViews& runs,
              const View& scale, const View& weights, bool sizes, const View& total) {
  const char* op = "csr_flow";
  const int64_t n = rows.shape.empty() ? 0 : rows.shape[0];
  require_csr(op, indptr, weights);
  require_dense(op, "rows", rows, {-1}, 8);
  require_dense(op, "targets", targets, {n}, 8);
  require_dense(op, "scale", scale, {n}, 8);
  require_dense(op, "sources", sources, {weights.shape[0]}, 4);
  require_dense(op, "total", total, {-1}, 8);
  require_below(op, "row", rows, indptr.shape[0] - 1);
  require_below(op, "node", targets, total.shape[0]);
  const RunsByRow by_row(op, runs, indptr, weights.shape[0], total.shape[0]);
  with_float_type(op, weights.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const Table<T>& kernels = table<T>();
    const auto ids_below = pullback::kernels().ids_below;
    double* sum = total.as<double>();
    const int32_t* source = sources.as<int32_t>();
    const T* weight = weights.as<T>();
    for (int64_t r = 0; r < n; ++r) {
      const double into = sum[targets.as<int64_t>()[r]] * scale.as<double>()[r];
      const int64_t row = rows.as<int64_t>()[r];
      const int64_t* ptr = indptr.as<int64_t>() + row;
      if (by_row.given()) {
        kernels.flow_runs(by_row.of(row), weight + ptr[0], into, sizes, sum);
        continue;
      }
      if (!ids_below(source + ptr[0], ptr[1] - ptr[0], total.shape[0])) require_ids(op, sources, total.shape[0]);
      kernels.flow_row(source + ptr[0], weight + ptr[0], ptr[1] - ptr[0], into, sizes, sum);
    }
  });
}

int64_t csr_runs(const View& sources, const View& first, const View& length) {
  const char* op = "csr_runs";
  require_dense(op, "sources", sources, {-1}, 4);
  require_dense(op, "first", first, {-1}, 4);
  require_dense(op, "length", length, {first.shape[0]}, 4);
  const int32_t* source = sources.as<int32_t>();
  const int64_t n = sources.shape[0], room = first.shape[0];
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  int64_t runs = 0;
  for (int64_t e = 0; e < n;) {
    const int64_t end = e + kernels().run_length(source + e, std::min<int64_t>(n - e, most));
    if (runs == room) return -1;
    first.as<int32_t>()[runs] = source[e];
    length.as<int32_t>()[runs++] = static_cast<int32_t>(end - e);
    e = end;
  }
  return runs;
}

void csr_sums(const View& indptr, const View& sources, const RunViews& runs, const View& weights, const View& counted,
              const View& sums, const View& sizes, const View& totals) {
  const char* op = "csr_sums";
  require_csr(op, indptr, weights);
  const int64_t n = indptr.shape[0] - 1;
  require_dense(op, "sources", sources, {weights.shape[0]}, 4);
  require_dense(op, "counted", counted, {-1, -1}, 1);
  const int64_t n_masks = counted.shape[0], n_nodes = counted.shape[1];
  require_dense(op, "sums", sums, {n}, 8);
  require_dense(op, "sizes", sizes, {n}, 8);
  require_dense(op, "totals", totals, {n_masks, n}, 8);
  const RunsByRow by_row(op, runs, indptr, weights.shape[0], n_nodes);
  // Multiplied, not branched to: what counts alternates.
  const std::vector<double> factors(counted.as<bool>(), counted.as<bool>() + n_masks * n_nodes);
  std::atomic<bool> inside{true};
  with_float_type(op, weights.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const Table<T>& kernels = table<T>();
    const auto ids_below = pullback::kernels().ids_below;
    const int64_t* ptr = indptr.as<int64_t>();
    // Row by row, so that edges are read from memory once.
    parallel_for(n, weights.shape[0], [&](int64_t begin, int64_t end, int) {
      std::vector<double> found(2 + n_masks);
      for (int64_t r = begin; r < end; ++r) {
        const int32_t* source = sources.as<int32_t>() + ptr[r];
        const T* weight = weights.as<T>() + ptr[r];
        const int64_t count = ptr[r + 1] - ptr[r];
        if (by_row.given()) {
          kernels.sum_runs(by_row.of(r), weight, factors.data(), n_nodes, n_masks, found.data());
        } else if (ids_below(source, count, n_nodes)) {
          kernels.sum_row(source, weight, count, factors.data(), n_nodes, n_masks, found.data());
        } else {
          inside = false;
          return;
        }
        sums.as<double>()[r] = found[0];
        sizes.as<double>()[r] = found[1];
        for (int64_t m = 0; m < n_masks; ++m) totals.as<double>()[m * n + r] = found[2 + m];
      }
    });
  });
  if (!inside) require_ids(op, sources, n_nodes);
}

}  // namespace pullback
