#include <algorithm>
#include <cstring>
#include <string>

#include "candidates.h"
#include "isa.h"
#include "parallel.h"

#if defined(PULLBACK_X86) && defined(__linux__)
#  include <sys/syscall.h>
#  include <unistd.h>
#endif

namespace pullback {
namespace {

// The tiles' data is state that a process has to ask for, once.
bool may_use_tiles() {
#if defined(PULLBACK_X86) && defined(__linux__)
  constexpr int ask = 0x1023, tile_data = 18;
  for (const auto& [name, present] : cpu_features())
    if (name == "amx-bf16" && present) return syscall(SYS_arch_prctl, ask, tile_data) == 0;
#endif
  return false;
}

// So many features are done with, for all rows, before the next: they stay in the second cache.
constexpr int64_t step_bytes = 1 << 20;
// Panels of x for which rows of W are fetched once, where there are enough for all threads.
constexpr int64_t most_panels = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

bool has_tiles() {
  static const bool allowed = may_use_tiles();
  return allowed && kernels().screen_product != nullptr;
}

void pack_tiles(const View& x, const View& panels) {
  const char* op = "pack_tiles";
  constexpr int64_t side = product_side, half = side / 2;
  require_rows(op, "x", x, {-1, -1}, 2);
  const int64_t n = x.shape[0], d = x.shape[1], steps = ceil_div(d, side);
  require_dense(op, "panels", panels, {ceil_div(n, side), steps, 2, half, half, 2}, 2);
  parallel_for(panels.shape[0], n * d, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t row = 0; row < side; ++row) {
        const int64_t at = panel * side + row, there = at < n ? d : 0;
        const char* from = x.data + 2 * at * x.strides[0];
        char* to = panels.data + 2 * (panel * steps * side * side + row / half * side * half + row % half * 2);
        for (int64_t pair = 0; pair < steps * half; ++pair) {
          uint32_t two = 0;
          if (2 * pair + 1 < there)
            std::memcpy(&two, from + 4 * pair, 4);
          else if (2 * pair < there)
            std::memcpy(&two, from + 4 * pair, 2);
          std::memcpy(to + 2 * (pair / half * side * side + pair % half * side), &two, 4);
        }
      }
  });
}

void screen_product(const View& panels, const View& W, int64_t first, const View& bias, const View& norms,
                    const View& rests, const View& x_norms, const View& x_rests, double gamma, double rho, int64_t k,
                    const View* thresholds, const CandidateViews& views) {
  const char* op = "screen_product";
  constexpr int64_t side = product_side;
  require(has_tiles(), std::string(op) + ": this CPU has no AMX, or the chosen instruction set does not use it");
  require_rows(op, "W", W, {-1, -1}, 2);
  const int64_t width = W.shape[0], d = W.shape[1], steps = ceil_div(d, side);
  require_dense(op, "x_norms", x_norms, {-1}, 4);
  const int64_t n = x_norms.shape[0];
  require_dense(op, "x_rests", x_rests, {n}, 4);
  require_dense(op, "panels", panels, {ceil_div(n, side), steps, 2, side / 2, side / 2, 2}, 2);
  require_features(op, first, width);
  require_dense(op, "bias", bias, {width}, 4);
  require_dense(op, "norms", norms, {width}, 4);
  require_dense(op, "rests", rests, {width}, 4);
  if (thresholds) require_dense(op, "thresholds", *thresholds, {width}, 4);
  require(thresholds || k >= 1, std::string(op) + ": k must be at least 1, got " + std::to_string(k));
  const Candidates candidates = require_candidates(op, views, n);
  if (n == 0 || width == 0) return;

  const float r = static_cast<float>(rho);
  const TilesOf tiles(width, side, bias.as<float>(), norms.as<float>(), rests.as<float>(), r);
  const ScreenedProduct product = {W.as<uint16_t>(),
                                   W.strides[0],
                                   panels.as<uint16_t>(),
                                   d,
                                   n,
                                   first,
                                   k,
                                   bias.as<float>(),
                                   tiles.norms.data(),
                                   tiles.rests.data(),
                                   tiles.biases.data(),
                                   x_norms.as<float>(),
                                   x_rests.as<float>(),
                                   static_cast<float>(gamma),
                                   r,
                                   thresholds ? thresholds->as<float>() : nullptr};
  const int64_t rows = side * std::clamp<int64_t>(n / side / (4 * max_threads()), 1, most_panels);
  const int64_t features = std::max(side, step_bytes / (2 * std::max<int64_t>(d, 1)) / side * side);
  const ThreadScratch scratch(product_scratch(k, d, rows));
  const auto kernel = kernels().screen_product;
  parallel_steps(ceil_div(width, features), ceil_div(n, rows), [&](int64_t step, int64_t group, int thread) {
    kernel(product, candidates, step * features, std::min((step + 1) * features, width), group * rows,
           std::min((group + 1) * rows, n), scratch.of(thread));
  });
}

}  // namespace pullback
