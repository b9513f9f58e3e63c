// Included once by each kernels_<isa>.cpp, which sets PULLBACK_ISA_NAME, PULLBACK_KERNELS and PULLBACK_VECTOR_BYTES.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#ifdef __AVX2__
#  include <immintrin.h>
#endif

#include "../kernels.h"

namespace pullback {
namespace {

#include "contract.inl"
#include "dots.inl"
#include "edges.inl"
#include "gather.inl"
#include "screen.inl"
#include "shadow.inl"
#include "topk.inl"

// They build on those above.
#include "frozen.inl"
#include "gradient.inl"
#include "panel.inl"
#include "product.inl"
#include "settle.inl"
#include "update.inl"

template <class T>
constexpr Table<T> table() {
  return {topk_rows<T>,      decode_rows<T>,      sampled_rows<T>,  segment_features<T>,  contract_tile<T, T, T>,
          residual_rows<T>,  moments_rows<T>,     norm_rows<T>,     gradient_features<T>, adam_features<T>,
          spread_columns<T>, mix_back_columns<T>, leaf_products<T>, flow_row<T>,          sum_row<T>,
          flow_runs<T>,      sum_runs<T>,         count_nonzero<T>, product_rows<T>,      pack_panel<T>,
          contract_panel<T>};
}

}  // namespace

#ifndef PULLBACK_TILES
constexpr decltype(Kernels::screen_product) screen_product = nullptr;
#endif

const Kernels PULLBACK_KERNELS = {PULLBACK_ISA_NAME,
                                  table<float>(),
                                  table<double>(),
                                  screen_rows<float>,
                                  screen_rows<bf16>,
                                  screen_product,
                                  tighten_rows,
                                  evaluate_features,
                                  evaluate_rows,
                                  choose_topk,
                                  choose_above,
                                  shadow_rows,
                                  ids_below,
                                  run_length,
                                  contract_tile<float, bf16, float>,
                                  contract_tile<float, float, bf16>,
                                  contract_tile<float, bf16, bf16>};

}  // namespace pullback
