// Exact top-k of rows.
#pragma once

#include "launch.h"

namespace pullback::cuda {

// The k largest of each row of h, in ascending order of id; ties go to the lower id, and NaN is larger than everything.
// With `filled` > 0, values and indices already hold the best of columns 0 .. first_id - 1 in this form, and h holds
// the columns from first_id on: the old best and the new columns compete, in place.
struct TopkSelect {
  const void* h;       // [n, columns], rows h_stride elements apart
  const void* maxima;  // [n, ceil(columns / 64)]: the largest of each 64 columns (NaN if one is), or null
  void* values;        // [n, k]
  int32_t* indices;    // [n, k]
  int64_t n, columns, k, h_stride, maxima_stride, filled, first_id;
  DType dtype;  // of h, maxima and values: float, bfloat16 or float16
  bool relu;    // negative values come out as 0
};

// Queue on `stream` of the current device.
cudaError_t topk_select(const TopkSelect& job, cudaStream_t stream);

}  // namespace pullback::cuda
