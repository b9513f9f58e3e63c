// What the two ways to screen a product share: where candidates go, and what bounds the error of a tile of features.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels.h"
#include "ops.h"

namespace pullback {

inline Candidates require_candidates(const char* op, const CandidateViews& views, int64_t n) {
  require(views.size() == 6, std::string(op) + ": candidates are ids, lows, highs, counts, bounds and limits, got " +
                                 std::to_string(views.size()) + " tensors");
  require_dense(op, "ids", views[0], {n, -1}, 4);
  const int64_t capacity = views[0].shape[1];
  require(capacity >= screen_room, std::string(op) + ": candidates need a capacity of at least " +
                                       std::to_string(screen_room) + ", got " + std::to_string(capacity));
  require_dense(op, "lows", views[1], {n, capacity}, 4);
  require_dense(op, "highs", views[2], {n, capacity}, 4);
  require_dense(op, "counts", views[3], {n}, 4);
  require_dense(op, "bounds", views[4], {n}, 4);
  require_dense(op, "limits", views[5], {n}, 4);
  return {views[0].as<int32_t>(), views[1].as<float>(), views[2].as<float>(),  capacity,
          views[3].as<int32_t>(), views[4].as<float>(), views[5].as<int32_t>()};
}

// The largest of each tile of `width` numbers; NaN if one of them is.
template <class Of>
std::vector<float> of_tiles(int64_t width, int64_t tile, const Of& of) {
  std::vector<float> tiles;
  for (int64_t begin = 0; begin < width; begin += tile) {
    float top = of(begin);
    for (int64_t i = begin + 1; i < std::min(begin + tile, width); ++i)
      if (!(of(i) <= top) && top == top) top = of(i);
    tiles.push_back(top);
  }
  return tiles;
}

// Of each tile of features, what its slack is made of: see kernels/screen.inl. No rests: 0.
struct TilesOf {
  std::vector<float> norms, rests, biases;

  TilesOf(int64_t width, int64_t tile, const float* b, const float* w_norms, const float* w_rests, float rho)
      : norms(of_tiles(width, tile, [&](int64_t i) { return w_norms[i]; })),
        rests(of_tiles(width, tile, [&](int64_t i) { return w_rests ? w_rests[i] : 0.0f; })),
        biases(of_tiles(width, tile, [&](int64_t i) { return rho * std::abs(b[i]); })) {}
};

// Whether features first ... first + width - 1 have ids that fit.
inline void require_features(const char* op, int64_t first, int64_t width) {
  require(first >= 0 && first + width <= INT32_MAX, std::string(op) + ": ids are int32, got features " +
                                                        std::to_string(first) + ".." +
                                                        std::to_string(first + width - 1));
}

}  // namespace pullback
