#include <algorithm>
#include <utility>
#include <vector>

#include "candidates.h"
#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {
namespace {

ScreenedEncoder require_encoder(const char* op, const View& x, const View& W, const View& b) {
  require_rows(op, "x", x, {-1, -1}, 4);
  require_rows(op, "W", W, {-1, x.shape[1]}, 4);
  require_dense(op, "b", b, {W.shape[0]}, 4);
  return {x.as<float>(), x.strides[0], W.as<float>(), W.strides[0], b.as<float>(), x.shape[1]};
}

// Calls f(begin, end, scratch) on pieces of n rows, each thread with its own scratch.
template <class F>
void for_rows(int64_t n, int64_t work, int64_t bytes, const F& f) {
  const ThreadScratch scratch(bytes);
  parallel_for(n, work, [&](int64_t begin, int64_t end, int thread) { f(begin, end, scratch.of(thread)); });
}

}  // namespace

void screen_block(const View& y, int64_t first, const View& bias, const View& norms, const View* rests,
                  const View& x_norms, const View* x_rests, double gamma, double rho, int64_t k, const View* thresholds,
                  const CandidateViews& views) {
  const char* op = "screen_block";
  require(y.itemsize == 2 || y.itemsize == 4,
          std::string(op) + ": y must be bfloat16 or float32, got " + std::to_string(y.itemsize) + " bytes an element");
  require_rows(op, "y", y, {-1, -1}, y.itemsize);
  const int64_t n = y.shape[0], width = y.shape[1];
  require_features(op, first, width);
  require_dense(op, "bias", bias, {width}, 4);
  require_dense(op, "norms", norms, {width}, 4);
  if (rests) require_dense(op, "rests", *rests, {width}, 4);
  require_dense(op, "x_norms", x_norms, {n}, 4);
  if (x_rests) require_dense(op, "x_rests", *x_rests, {n}, 4);
  if (thresholds) require_dense(op, "thresholds", *thresholds, {width}, 4);
  require(thresholds || k >= 1, std::string(op) + ": k must be at least 1, got " + std::to_string(k));
  const Candidates candidates = require_candidates(op, views, n);
  if (n == 0 || width == 0) return;

  const float* b = bias.as<float>();
  const float r = static_cast<float>(rho);
  const std::vector<float> zeros(n, 0.0f);
  const TilesOf tiles(width, screen_tile, b, norms.as<float>(), rests ? rests->as<float>() : nullptr, r);
  std::vector<float> lowest;
  if (thresholds) {
    const float* theta = thresholds->as<float>();
    lowest = of_tiles(width, screen_tile, [&](int64_t i) { return -theta[i]; });
    for (float& t : lowest) t = -t;
  }
  const ScreenBlock block = {y.data,
                             y.strides[0],
                             first,
                             width,
                             k,
                             b,
                             tiles.norms.data(),
                             tiles.rests.data(),
                             tiles.biases.data(),
                             x_norms.as<float>(),
                             x_rests ? x_rests->as<float>() : zeros.data(),
                             static_cast<float>(gamma),
                             r,
                             thresholds ? thresholds->as<float>() : nullptr,
                             thresholds ? lowest.data() : nullptr};
  const auto kernel = y.itemsize == 2 ? kernels().screen_bf16 : kernels().screen_f32;
  const int64_t floats = 2 * width + 64;
  for_rows(n, n * width, floats * sizeof(float),
           [&](int64_t begin, int64_t end, void* scratch) { kernel(block, candidates, begin, end, scratch); });
}

namespace {

// The candidates of all rows by feature, in order of row: each row of W is then read once for all of them. Every thread
// counts and places those of a part of the rows.
struct CandidatesByFeature {
  std::vector<int64_t> starts, slots;

  CandidatesByFeature(const Candidates& c, int64_t n, int64_t F) : starts(F + 1, 0) {
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(n, max_threads()));
    std::vector<std::vector<int64_t>> next(parts, std::vector<int64_t>(F, 0));
    const auto each = [&](const auto& f) {
      parallel_for(parts, 8 * n * 64, [&](int64_t begin, int64_t end, int) {
        for (int64_t part = begin; part < end; ++part)
          for (int64_t row = n * part / parts; row < n * (part + 1) / parts; ++row)
            for (int64_t i = row * c.capacity; i < row * c.capacity + c.counts[row]; ++i) f(next[part][c.ids[i]], i);
      });
    };
    each([](int64_t& count, int64_t) { ++count; });
    for (int64_t f = 0, total = 0; f < F; ++f) {
      for (auto& part : next) total += std::exchange(part[f], total);
      starts[f + 1] = total;
    }
    slots.resize(starts[F]);
    each([&](int64_t& place, int64_t slot) { slots[place++] = slot; });
  }
};

void evaluate(const ScreenedEncoder& encoder, const Candidates& candidates, int64_t n, int64_t F) {
  const CandidatesByFeature order(candidates, n, F);
  const auto kernel = kernels().evaluate_features;
  for_rows(F, order.starts[F] * encoder.d, encoder.d * sizeof(double), [&](int64_t begin, int64_t end, void* scratch) {
    kernel(encoder, candidates, order.starts.data(), order.slots.data(), begin, end, scratch);
  });
}

}  // namespace

void settle_topk(const View& x, const View& W, const View& b, const CandidateViews& views, const View& values,
                 const View& indices, bool relu) {
  const char* op = "settle_topk";
  const ScreenedEncoder encoder = require_encoder(op, x, W, b);
  const int64_t n = x.shape[0], F = W.shape[0];
  require_dense(op, "values", values, {n, -1}, 4);
  const int64_t k = values.shape[1];
  require(1 <= k && k <= F,
          std::string(op) + ": k must be in 1..F=" + std::to_string(F) + ", got " + std::to_string(k));
  require_dense(op, "indices", indices, {n, k}, 4);
  const Candidates candidates = require_candidates(op, views, n);
  const int64_t bytes = 2 * (candidates.capacity + 1) * sizeof(float), work = n * candidates.capacity;
  const Kernels& kernel = kernels();
  parallel_for(n, work, [&](int64_t begin, int64_t end, int) { kernel.tighten_rows(candidates, k, begin, end); });
  evaluate(encoder, candidates, n, F);
  for_rows(n, work, bytes, [&](int64_t begin, int64_t end, void* scratch) {
    kernel.choose_topk(candidates, k, relu, begin, end, values.as<float>(), indices.as<int32_t>(), scratch);
  });
}

void settle_threshold(const View& x, const View& W, const View& b, const View& thresholds,
                      const CandidateViews& views) {
  const char* op = "settle_threshold";
  const ScreenedEncoder encoder = require_encoder(op, x, W, b);
  const int64_t n = x.shape[0], F = W.shape[0];
  require_dense(op, "thresholds", thresholds, {F}, 4);
  const Candidates candidates = require_candidates(op, views, n);
  evaluate(encoder, candidates, n, F);
  const auto kernel = kernels().choose_above;
  parallel_for(n, n * candidates.capacity,
               [&](int64_t begin, int64_t end, int) { kernel(candidates, thresholds.as<float>(), begin, end); });
}

void evaluate_rows(const View& x, const View& W, const View& b, const View& h) {
  const char* op = "evaluate_rows";
  const ScreenedEncoder encoder = require_encoder(op, x, W, b);
  const int64_t n = x.shape[0], F = W.shape[0];
  require_dense(op, "h", h, {n, F}, 4);
  const auto kernel = kernels().evaluate_rows;
  for_rows(F, n * F * encoder.d, encoder.d * sizeof(double), [&](int64_t begin, int64_t end, void* scratch) {
    kernel(encoder, n, F, begin, end, h.as<float>(), scratch);
  });
}

void norm_rows(const View& rows, const View& norms) {
  require_rows("norm_rows", "rows", rows, {-1, -1}, 4);
  const int64_t n = rows.shape[0], d = rows.shape[1];
  require_dense("norm_rows", "norms", norms, {n}, 4);
  const auto kernel = table<float>().norm_rows;
  std::vector<double> near(n);
  parallel_for(n, n * d, [&](int64_t begin, int64_t end, int) {
    kernel(rows.as<float>(), rows.strides[0], d, begin, end, near.data());
  });
  // More than the roundings of the sum; the conversion may round down again, where it is subnormal by a lot.
  for (int64_t i = 0; i < n; ++i) {
    const double above = near[i] * (1 + 0x1p-20);
    const float norm = static_cast<float>(above);
    norms.as<float>()[i] = norm < above ? std::nextafter(norm, HUGE_VALF) : norm;
  }
}

void shadow_rows(const View& rows, const View& w16, const View& norms, const View& rests) {
  const char* op = "shadow_rows";
  require_rows(op, "rows", rows, {-1, -1}, 4);
  const int64_t n = rows.shape[0], d = rows.shape[1];
  require_dense(op, "w16", w16, {n, d}, 2);
  require_dense(op, "norms", norms, {n}, 4);
  require_dense(op, "rests", rests, {n}, 4);
  const auto kernel = kernels().shadow_rows;
  parallel_for(n, n * d, [&](int64_t begin, int64_t end, int) {
    kernel(rows.as<float>(), rows.strides[0], d, begin, end, w16.as<uint16_t>(), norms.as<float>(), rests.as<float>());
  });
}

}  // namespace pullback
