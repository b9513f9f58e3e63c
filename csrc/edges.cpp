// Edges of attribution graphs: rows that list values of whole spans of sources, without their ids.

#include "edges.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <type_traits>

#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {
namespace {

struct Span {
  int64_t column, source, length;
};
static_assert(sizeof(Span) == 3 * sizeof(int64_t), "spans are read as they lie");

// Rows, checked; every span of them ends within n sources.
template <class T>
struct Rows {
  int64_t n_rows;
  T* values;
  const int64_t *offsets, *shapes, *span_ptr;
  const Span* spans;

  int64_t length(int64_t r) const {
    int64_t n = 0;
    for (int64_t s = span_ptr[shapes[r]]; s < span_ptr[shapes[r] + 1]; ++s) n += spans[s].length;
    return n;
  }

  // Calls f(span, its values) for the spans of row r in their order.
  template <class F>
  void each_span(int64_t r, const F& f) const {
    T* at = values + offsets[r];
    for (int64_t s = span_ptr[shapes[r]]; s < span_ptr[shapes[r] + 1]; ++s) {
      f(spans[s], at);
      at += spans[s].length;
    }
  }
};

// Where the edges of a shape lie: how many there are, and where the last of their columns and sources end.
struct Extent {
  int64_t length = -1, columns = 0, sources = 0;
  bool valid = true;
};

Extent extent_of(const Span* begin, const Span* end) {
  Extent extent{0};
  for (const Span* span = begin; span < end; ++span) {
    extent.valid &= span->length >= 0 && span->source >= 0 && span->column >= 0;
    extent.length += span->length;
    extent.columns = std::max(extent.columns, span->column + span->length);
    extent.sources = std::max(extent.sources, span->source + span->length);
  }
  return extent;
}

// Rows whose spans lie among the sources, and among the columns of a block (-1: there is none). Sentences are put
// together only where something is wrong: this runs for every row.
void require_fits(const char* op, const EdgeRowViews& rows, int64_t n_columns, int64_t n_sources) {
  const auto& [values, offsets, shapes, span_ptr, spans] = rows;
  require_dense(op, "shapes", shapes, {-1}, 8);
  require_dense(op, "offsets", offsets, {shapes.shape[0]}, 8);
  require_dense(op, "span_ptr", span_ptr, {-1}, 8);
  require_dense(op, "spans", spans, {-1, 3}, 8);
  const int64_t n_shapes = span_ptr.shape[0] - 1, n_spans = spans.shape[0], size = values.shape[0];
  const int64_t *ptr = span_ptr.as<int64_t>(), *shape = shapes.as<int64_t>(), *offset = offsets.as<int64_t>();
  std::vector<Extent> extents(std::max<int64_t>(n_shapes, 0));
  for (int64_t r = 0; r < shapes.shape[0]; ++r) {
    const int64_t i = shape[r];
    bool fits = 0 <= i && i < n_shapes && 0 <= ptr[i] && ptr[i] <= ptr[i + 1] && ptr[i + 1] <= n_spans;
    if (fits) {
      Extent& extent = extents[i];
      if (extent.length < 0) extent = extent_of(spans.as<Span>() + ptr[i], spans.as<Span>() + ptr[i + 1]);
      fits = extent.valid && 0 <= offset[r] && offset[r] + extent.length <= size && extent.sources <= n_sources &&
             (n_columns < 0 || extent.columns <= n_columns);
    }
    if (!fits)
      require(false, std::string(op) + ": row " + std::to_string(r) + " of shape " + std::to_string(i) +
                         " does not lie within its " + std::to_string(size) + " values, " + std::to_string(n_sources) +
                         " sources and " + std::to_string(n_columns) + " columns");
  }
}

template <class T>
Rows<T> as_rows(const EdgeRowViews& rows) {
  return {rows[2].shape[0],      rows[0].as<T>(),       rows[1].as<int64_t>(),
          rows[2].as<int64_t>(), rows[3].as<int64_t>(), rows[4].as<Span>()};
}

// Calls f with checked rows of float or double.
template <class F>
void with_rows(const char* op, const EdgeRowViews& rows, int64_t n_sources, const F& f) {
  require_dense(op, "values", rows[0], {-1}, rows[0].itemsize);
  require_fits(op, rows, -1, n_sources);
  with_float_type(op, rows[0].itemsize, [&](auto zero) { f(as_rows<decltype(zero)>(rows)); });
}

int64_t work_of(const EdgeRowViews& rows) { return rows[0].size(); }

// Where sources have ids one after the other: a span that lies in such a run is copied as a whole.
class Runs {
 public:
  explicit Runs(const View& ids) : ends_(ids.shape[0]) {
    const int32_t* id = ids.as<int32_t>();
    const int64_t n = ids.shape[0];
    for (int64_t i = n; i-- > 0;) ends_[i] = id[i] < 0 ? i : i + 1 < n && id[i + 1] == id[i] + 1 ? ends_[i + 1] : i + 1;
  }
  bool hold(const Span& span) const { return span.length > 0 && ends_[span.source] >= span.source + span.length; }

 private:
  std::vector<int64_t> ends_;
};

}  // namespace

void take_spans(const View& block, const View& at, const EdgeRowViews& rows, int64_t n_sources) {
  const char* op = "take_spans";
  const int64_t n = rows[2].shape.at(0);
  require_rows(op, "block", block, {-1, -1}, block.itemsize);
  require_dense(op, "at", at, {n}, 8);
  require_below(op, "row of the block", at, block.shape[0]);
  require_dense(op, "values", rows[0], {-1}, block.itemsize);
  require_fits(op, rows, block.shape[1], n_sources);
  with_float_type(op, block.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const auto to = as_rows<T>(rows);
    const int64_t stride = block.strides[0];
    parallel_for(n, work_of(rows), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        const T* from = block.as<T>() + at.as<int64_t>()[r] * stride;
        to.each_span(
            r, [&](const Span& span, T* out) { std::copy(from + span.column, from + span.column + span.length, out); });
      }
    });
  });
}

void span_dense(const EdgeRowViews& rows, const View& out) {
  const char* op = "span_dense";
  require_dense(op, "out", out, {rows[2].shape.at(0), -1}, rows[0].itemsize);
  with_rows(op, rows, out.shape[1], [&](const auto& of) {
    using T = std::remove_pointer_t<decltype(of.values)>;
    parallel_for(of.n_rows, work_of(rows), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        T* to = out.as<T>() + r * out.shape[1];
        of.each_span(r, [&](const Span& span, const T* at) { std::copy(at, at + span.length, to + span.source); });
      }
    });
  });
}

void span_counts(const EdgeRowViews& rows, const View& ids, const View& counts) {
  const char* op = "span_counts";
  require_dense(op, "ids", ids, {-1}, 4);
  require_dense(op, "counts", counts, {rows[2].shape.at(0)}, 8);
  with_rows(op, rows, ids.shape[0], [&](const auto& of) {
    using T = std::remove_pointer_t<decltype(of.values)>;
    const Table<T>& kernels = table<T>();
    const int32_t* id = ids.as<int32_t>();
    const Runs runs(ids);
    parallel_for(of.n_rows, work_of(rows), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        int64_t n = 0;
        of.each_span(r, [&](const Span& span, const auto* at) {
          const int32_t* to = id + span.source;
          if (runs.hold(span)) {
            n += kernels.count_nonzero(at, span.length);
          } else {
            for (int64_t j = 0; j < span.length; ++j) n += (at[j] != 0) & (to[j] >= 0);
          }
        });
        counts.as<int64_t>()[r] = n;
      }
    });
  });
}

void span_pack(const EdgeRowViews& rows, const View& ids, const View& begins, const View& counts, const View& sources,
               const View& weights, const View& lost) {
  const char* op = "span_pack";
  const int64_t n = rows[2].shape.at(0);
  require_dense(op, "ids", ids, {-1}, 4);
  require_dense(op, "begins", begins, {n}, 8);
  require_dense(op, "counts", counts, {n}, 8);
  require_dense(op, "lost", lost, {n}, 8);
  require_dense(op, "weights", weights, {-1}, rows[0].itemsize);
  require_dense(op, "sources", sources, {weights.shape[0]}, 4);
  const int64_t *begin = begins.as<int64_t>(), *count = counts.as<int64_t>();
  for (int64_t r = 0; r < n; ++r)
    if (begin[r] < 0 || count[r] < 0 || begin[r] + count[r] > weights.shape[0])
      require(false, std::string(op) + ": there is no room for row " + std::to_string(r));
  with_rows(op, rows, ids.shape[0], [&](const auto& of) {
    using T = std::remove_pointer_t<decltype(of.values)>;
    const Table<T>& kernels = table<T>();
    const int32_t* id = ids.as<int32_t>();
    const Runs runs(ids);
    std::atomic<bool> fits{true};
    parallel_for(n, work_of(rows), [&](int64_t first, int64_t last, int) {
      for (int64_t r = first; r < last; ++r) {
        int32_t* source = sources.as<int32_t>() + begin[r];
        T* weight = weights.as<T>() + begin[r];
        const T* end = weight + count[r];
        double gone = 0;
        const bool whole = count[r] == of.length(r);  // then no edge of it is 0
        of.each_span(r, [&](const Span& span, const T* at) {
          const int32_t* to = id + span.source;
          if (runs.hold(span) && end - weight >= span.length &&
              (whole || kernels.count_nonzero(at, span.length) == span.length)) {
            weight = std::copy(at, at + span.length, weight);
            std::iota(source, source + span.length, to[0]);
            source += span.length;
            return;
          }
          for (int64_t j = 0; j < span.length; ++j) {
            if (at[j] == 0) continue;
            if (to[j] < 0) {
              gone += at[j];
            } else if (weight != end) {
              *source++ = to[j];
              *weight++ = at[j];
            } else {
              fits = false;
            }
          }
        });
        lost.as<double>()[r] = gone;
      }
    });
    require(fits, std::string(op) + ": a row has more edges than its count says");
  });
}

void span_totals(const EdgeRowViews& rows, const View& counted, const View& totals) {
  const char* op = "span_totals";
  require_dense(op, "counted", counted, {-1}, 1);
  require_dense(op, "totals", totals, {rows[2].shape.at(0)}, 8);
  with_rows(op, rows, counted.shape[0], [&](const auto& of) {
    parallel_for(of.n_rows, work_of(rows), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        double total = 0;
        of.each_span(r, [&](const Span& span, const auto* at) {
          const bool* counts = counted.as<bool>() + span.source;
          for (int64_t j = 0; j < span.length; ++j)
            if (counts[j]) total += std::abs(static_cast<double>(at[j]));
        });
        totals.as<double>()[r] = total;
      }
    });
  });
}

void span_flow(const EdgeRowViews& rows, const View& targets, const View& scale, const View& total) {
  const char* op = "span_flow";
  const int64_t n = rows[2].shape.at(0);
  require_dense(op, "targets", targets, {n}, 8);
  require_dense(op, "scale", scale, {n}, 8);
  require_dense(op, "total", total, {-1}, 8);
  require_below(op, "node", targets, total.shape[0]);
  with_rows(op, rows, total.shape[0], [&](const auto& of) {
    double* sum = total.as<double>();
    for (int64_t r = 0; r < n; ++r) {
      const double into = sum[targets.as<int64_t>()[r]] * scale.as<double>()[r];
      of.each_span(r, [&](const Span& span, const auto* at) {
        double* to = sum + span.source;
        for (int64_t j = 0; j < span.length; ++j) to[j] += into * std::abs(static_cast<double>(at[j]));
      });
    }
  });
}

}  // namespace pullback
