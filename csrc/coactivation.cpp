// Sums over rows of products of two sets of features: A^T B of CSR matrices, row by row of the result (Gustavson).
// Row i takes the rows of B where A has feature i, in their order: the same bits for any number of threads.

#include <algorithm>

#include "by_feature.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {
namespace {

// A set of ids that is read in ascending order and emptied in time that follows what is in it: a bit for every id, and
// a bit for every word of those.
class IdSet {
 public:
  explicit IdSet(int64_t n) : words_(n / 64 + 1), summary_(n / 4096 + 1) {}

  void insert(int32_t id) {
    words_[id >> 6] |= uint64_t{1} << (id & 63);
    summary_[id >> 12] |= uint64_t{1} << (id >> 6 & 63);
  }

  // Calls f(id) in ascending order of id, and forgets them.
  template <class F>
  void drain(const F& f) {
    for (size_t s = 0; s < summary_.size(); ++s) {
      for (; summary_[s]; summary_[s] &= summary_[s] - 1) {
        const int64_t w = static_cast<int64_t>(s) * 64 + __builtin_ctzll(summary_[s]);
        for (; words_[w]; words_[w] &= words_[w] - 1) f(static_cast<int32_t>(w * 64 + __builtin_ctzll(words_[w])));
      }
    }
  }

 private:
  std::vector<uint64_t> words_, summary_;
};

struct Sums {
  double product = 0, gated = 0;
};

// A sparse row under construction; a thread has one.
struct Row {
  IdSet ids;
  std::vector<Sums> sums;

  explicit Row(int64_t F_b) : ids(F_b), sums(F_b) {}
};

int64_t rows_of(const char* op, const View& indptr) {
  require(indptr.shape.size() == 1 && indptr.shape[0] >= 1, std::string(op) + ": indptr must be [n + 1]");
  return indptr.shape[0] - 1;
}

// Two patterns over the same rows; returns how many pairs of entries meet, a measure of the work.
int64_t require_patterns(const char* op, const View& A_indptr, const View& A_indices, int64_t F_a, const View& B_indptr,
                         const View& B_indices, int64_t F_b) {
  require(0 <= F_b && F_b <= INT32_MAX, "coactivation: ids are int32, got F=" + std::to_string(F_b));
  const int64_t n = rows_of(op, A_indptr);
  require_pattern(op, A_indptr, A_indices, n, F_a);
  require_pattern(op, B_indptr, B_indices, n, F_b);
  const int64_t *a = A_indptr.as<int64_t>(), *b = B_indptr.as<int64_t>();
  int64_t pairs = 0;
  for (int64_t row = 0; row < n; ++row) pairs += (a[row + 1] - a[row]) * (b[row + 1] - b[row]);
  return pairs;
}

// Calls f(a, b, j) for every entry b of feature j of B that stands in a row with an entry a of feature i of A.
template <class T, class F>
void for_meetings(const ByFeature<T>& A, int64_t i, const int64_t* B_indptr, const int32_t* B_indices,
                  const T* B_values, const F& f) {
  for (int64_t s = A.starts[i]; s < A.starts[i + 1]; ++s) {
    const int64_t row = A.rows[s];
    for (int64_t e = B_indptr[row]; e < B_indptr[row + 1]; ++e) f(A.values[s], B_values[e], B_indices[e]);
  }
}

template <class T>
void add(double& product, double& gated, T a, T b) {
  product += static_cast<double>(a) * static_cast<double>(b);
  gated += b > 0 ? static_cast<double>(a) : 0.0;
}

// Where sums go: room for as many pairs as indptr counts.
void require_result(const View& indptr, const View& indices, const View& products, const View& gated) {
  const char* op = "coactivation";
  const int64_t F_a = rows_of(op, indptr), size = indices.size();
  require_dense(op, "indptr", indptr, {F_a + 1}, 8);
  require_dense(op, "indices", indices, {size}, 4);
  require_dense(op, "products", products, {size}, 8);
  require_dense(op, "gated", gated, {size}, 8);
  const int64_t* pointers = indptr.as<int64_t>();
  bool grows = pointers[0] == 0 && pointers[F_a] == size;
  for (int64_t i = 0; i < F_a; ++i) grows &= pointers[i] <= pointers[i + 1];
  require(grows, "coactivation: indptr of the result must grow from 0 to its number of pairs");
}

// Every row came to as many pairs as indptr had counted for it.
void require_counted(const std::vector<char>& fits) {
  for (size_t i = 0; i < fits.size(); ++i)
    require(fits[i], "coactivation: indptr of the result does not count the pairs of feature " + std::to_string(i));
}

// A pattern whose ids ascend within a row.
void require_sorted(const View& indptr, const View& indices, int64_t F_a, int64_t F_b) {
  require_pattern("coactivation", indptr, indices, F_a, F_b);
  const int64_t* pointers = indptr.as<int64_t>();
  const int32_t* ids = indices.as<int32_t>();
  bool sorted = true;
  for (int64_t i = 0; i < F_a; ++i)
    for (int64_t e = pointers[i] + 1; e < pointers[i + 1]; ++e) sorted &= ids[e - 1] < ids[e];
  require(sorted, "coactivation: ids must ascend within a row");
}

// Calls f(x, y) for every id in row i of X or Y, in ascending order: its entry in each, or -1.
template <class F>
void for_union(const View& X_indptr, const View& X_indices, const View& Y_indptr, const View& Y_indices, int64_t i,
               const F& f) {
  const int32_t *x_ids = X_indices.as<int32_t>(), *y_ids = Y_indices.as<int32_t>();
  int64_t x = X_indptr.as<int64_t>()[i], y = Y_indptr.as<int64_t>()[i];
  const int64_t x_end = X_indptr.as<int64_t>()[i + 1], y_end = Y_indptr.as<int64_t>()[i + 1];
  while (x < x_end || y < y_end) {
    const bool from_x = x < x_end && (y == y_end || x_ids[x] <= y_ids[y]);
    const bool from_y = y < y_end && (x == x_end || y_ids[y] <= x_ids[x]);
    f(from_x ? x : -1, from_y ? y : -1);
    x += from_x;
    y += from_y;
  }
}

}  // namespace

void coactivation_counts(const View& A_indptr, const View& A_indices, const View& B_indptr, const View& B_indices,
                         const View& counts, int64_t F_b) {
  const char* op = "coactivation";
  require_dense(op, "counts", counts, {-1}, 8);
  const int64_t F_a = counts.shape[0];
  const int64_t pairs = require_patterns(op, A_indptr, A_indices, F_a, B_indptr, B_indices, F_b);

  const int64_t nnz = A_indices.shape[0];
  const std::vector<char> ignored(std::max(nnz, B_indices.shape[0]));
  const ByFeature<char> A(A_indptr.as<int64_t>(), A_indices.as<int32_t>(), ignored.data(), rows_of(op, A_indptr), nnz,
                          F_a);
  std::vector<IdSet> scratch(max_threads(), IdSet(F_b));
  parallel_for(F_a, F_a + pairs, [&](int64_t begin, int64_t end, int thread) {
    IdSet& ids = scratch[thread];
    for (int64_t i = begin; i < end; ++i) {
      for_meetings(A, i, B_indptr.as<int64_t>(), B_indices.as<int32_t>(), ignored.data(),
                   [&](char, char, int32_t j) { ids.insert(j); });
      int64_t count = 0;
      if (A.starts[i] < A.starts[i + 1]) ids.drain([&](int32_t) { ++count; });
      counts.as<int64_t>()[i] = count;
    }
  });
}

void coactivation_sums(const View& A_indptr, const View& A_indices, const View& A_values, const View& B_indptr,
                       const View& B_indices, const View& B_values, const View& indptr, const View& indices,
                       const View& products, const View& gated, int64_t F_b) {
  const char* op = "coactivation";
  const int64_t F_a = rows_of(op, indptr);
  const int64_t pairs = require_patterns(op, A_indptr, A_indices, F_a, B_indptr, B_indices, F_b);
  require_dense(op, "A values", A_values, {A_indices.shape[0]}, A_values.itemsize);
  require_dense(op, "B values", B_values, {B_indices.shape[0]}, A_values.itemsize);
  require_result(indptr, indices, products, gated);
  const int64_t* pointers = indptr.as<int64_t>();

  std::vector<char> fits(F_a, 1);
  with_float_type(op, A_values.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const ByFeature<T> A(A_indptr.as<int64_t>(), A_indices.as<int32_t>(), A_values.as<T>(), rows_of(op, A_indptr),
                         A_indices.shape[0], F_a);
    std::vector<Row> scratch(max_threads(), Row(F_b));
    parallel_for(F_a, F_a + pairs, [&](int64_t begin, int64_t end, int thread) {
      Row& row = scratch[thread];
      for (int64_t i = begin; i < end; ++i) {
        for_meetings(A, i, B_indptr.as<int64_t>(), B_indices.as<int32_t>(), B_values.as<T>(), [&](T a, T b, int32_t j) {
          row.ids.insert(j);
          add(row.sums[j].product, row.sums[j].gated, a, b);
        });
        int64_t slot = pointers[i];
        if (A.starts[i] < A.starts[i + 1]) {
          row.ids.drain([&](int32_t j) {
            if (slot < pointers[i + 1]) {
              indices.as<int32_t>()[slot] = j;
              products.as<double>()[slot] = row.sums[j].product;
              gated.as<double>()[slot] = row.sums[j].gated;
            }
            row.sums[j] = Sums{};
            ++slot;
          });
        }
        fits[i] = slot == pointers[i + 1];
      }
    });
  });
  require_counted(fits);
}

void coactivation_block(const View& A_indptr, const View& A_indices, const View& A_values, const View& B_indptr,
                        const View& B_indices, const View& B_values, const View& products, const View& gated) {
  const char* op = "coactivation";
  require_dense(op, "products", products, {-1, -1}, 8);
  const int64_t F_a = products.shape[0], F_b = products.shape[1];
  require_dense(op, "gated", gated, {F_a, F_b}, 8);
  const int64_t pairs = require_patterns(op, A_indptr, A_indices, F_a, B_indptr, B_indices, F_b);
  require_dense(op, "A values", A_values, {A_indices.shape[0]}, A_values.itemsize);
  require_dense(op, "B values", B_values, {B_indices.shape[0]}, A_values.itemsize);

  with_float_type(op, A_values.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const ByFeature<T> A(A_indptr.as<int64_t>(), A_indices.as<int32_t>(), A_values.as<T>(), rows_of(op, A_indptr),
                         A_indices.shape[0], F_a);
    parallel_for(F_a, F_a + pairs, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        double* product = products.as<double>() + i * F_b;
        double* gate = gated.as<double>() + i * F_b;
        for_meetings(A, i, B_indptr.as<int64_t>(), B_indices.as<int32_t>(), B_values.as<T>(),
                     [&](T a, T b, int32_t j) { add(product[j], gate[j], a, b); });
      }
    });
  });
}

void union_counts(const View& X_indptr, const View& X_indices, const View& Y_indptr, const View& Y_indices,
                  const View& counts, int64_t F_b) {
  require_dense("coactivation", "counts", counts, {-1}, 8);
  const int64_t F_a = counts.shape[0];
  require_sorted(X_indptr, X_indices, F_a, F_b);
  require_sorted(Y_indptr, Y_indices, F_a, F_b);
  parallel_for(F_a, X_indices.size() + Y_indices.size(), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t count = 0;
      for_union(X_indptr, X_indices, Y_indptr, Y_indices, i, [&](int64_t, int64_t) { ++count; });
      counts.as<int64_t>()[i] = count;
    }
  });
}

void union_sums(const View& X_indptr, const View& X_indices, const View& X_products, const View& X_gated,
                const View& Y_indptr, const View& Y_indices, const View& Y_products, const View& Y_gated,
                const View& indptr, const View& indices, const View& products, const View& gated, int64_t F_b) {
  const char* op = "coactivation";
  require_result(indptr, indices, products, gated);
  const int64_t F_a = indptr.shape[0] - 1;
  require_sorted(X_indptr, X_indices, F_a, F_b);
  require_sorted(Y_indptr, Y_indices, F_a, F_b);
  require_dense(op, "X products", X_products, {X_indices.size()}, 8);
  require_dense(op, "X gated", X_gated, {X_indices.size()}, 8);
  require_dense(op, "Y products", Y_products, {Y_indices.size()}, 8);
  require_dense(op, "Y gated", Y_gated, {Y_indices.size()}, 8);
  const int64_t* pointers = indptr.as<int64_t>();

  std::vector<char> fits(F_a, 1);
  parallel_for(F_a, indices.size(), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t slot = pointers[i];
      for_union(X_indptr, X_indices, Y_indptr, Y_indices, i, [&](int64_t x, int64_t y) {
        if (slot < pointers[i + 1]) {
          const auto sum = [=](const View& X, const View& Y) {
            return (x < 0 ? 0.0 : X.as<double>()[x]) + (y < 0 ? 0.0 : Y.as<double>()[y]);
          };
          indices.as<int32_t>()[slot] = x < 0 ? Y_indices.as<int32_t>()[y] : X_indices.as<int32_t>()[x];
          products.as<double>()[slot] = sum(X_products, Y_products);
          gated.as<double>()[slot] = sum(X_gated, Y_gated);
        }
        ++slot;
      });
      fits[i] = slot == pointers[i + 1];
    }
  });
  require_counted(fits);
}

}  // namespace pullback
