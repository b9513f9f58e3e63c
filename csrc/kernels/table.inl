// Included once by each kernels_<isa>.cpp, which sets PULLBACK_ISA_NAME, PULLBACK_KERNELS and PULLBACK_VECTOR_BYTES.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../kernels.h"

namespace pullback {
namespace {

#include "dots.inl"
#include "gather.inl"
#include "shadow.inl"
#include "topk.inl"

// They build on those above.
#include "gradient.inl"
#include "update.inl"

template <class T>
constexpr Table<T> table() {
  return {topk_rows<T>,     decode_rows<T>,  sampled_rows<T>, segment_features<T>,  contract_tile<T>,
          residual_rows<T>, moments_rows<T>, norm_rows<T>,    gradient_features<T>, adam_features<T>};
}

}  // namespace

const Kernels PULLBACK_KERNELS = {PULLBACK_ISA_NAME,   table<float>(), table<double>(),
                                  topk_certified_rows, row_norms,      shadow_rows};

}  // namespace pullback
