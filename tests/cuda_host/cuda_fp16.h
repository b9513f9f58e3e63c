// Stands in for the CUDA header of this name.
#pragma once

#include "cuda_runtime.h"

struct __half {
  unsigned short bits;
};

inline float __half2float(__half x) { return static_cast<float>(fibers::unpack<_Float16>(x.bits)); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
