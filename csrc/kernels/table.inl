// Included once by each kernels_<isa>.cpp, which sets PULLBACK_ISA_NAME, PULLBACK_KERNELS and PULLBACK_VECTOR_BYTES.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../kernels.h"

namespace pullback {
namespace {

#include "contract.inl"
#include "dots.inl"
#include "gather.inl"
#include "shadow.inl"
#include "topk.inl"

template <class T>
constexpr Table<T> table() {
  return {topk_rows<T>, decode_rows<T>, sampled_rows<T>, segment_features<T>, contract_tile<T, T, T>};
}

}  // namespace

const Kernels PULLBACK_KERNELS = {PULLBACK_ISA_NAME,
                                  table<float>(),
                                  table<double>(),
                                  topk_certified_rows,
                                  row_norms,
                                  shadow_rows,
                                  contract_tile<float, bf16, float>,
                                  contract_tile<float, float, bf16>,
                                  contract_tile<float, bf16, bf16>};

}  // namespace pullback
