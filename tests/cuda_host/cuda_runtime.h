// Stands in for the CUDA header of this name when kernels are compiled for the CPU.
#pragma once

#include <cmath>
#include <map>
#include <utility>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other

#define __syncthreads() fibers::barrier(__LINE__)
#define __syncwarp() (void)fibers::collective("__syncwarp", __LINE__, ~0u, 0)
#define __shfl_sync(mask, value, source) fibers::shuffle("__shfl_sync", __LINE__, mask, value, source)
#define __shfl_xor_sync(mask, value, lanes) \
  fibers::shuffle("__shfl_xor_sync", __LINE__, mask, value, fibers::lane() ^ (lanes))
#define __shfl_up_sync(mask, value, lanes) \
  fibers::shuffle("__shfl_up_sync", __LINE__, mask, value, fibers::lane() - static_cast<int>(lanes))
#define __shfl_down_sync(mask, value, lanes) \
  fibers::shuffle("__shfl_down_sync", __LINE__, mask, value, fibers::lane() + static_cast<int>(lanes))
#define __ballot_sync(mask, predicate) fibers::ballot("__ballot_sync", __LINE__, mask, predicate)
#define __any_sync(mask, predicate) (fibers::ballot("__any_sync", __LINE__, mask, predicate) != 0)
#define __all_sync(mask, predicate) (fibers::ballot("__all_sync", __LINE__, mask, predicate) == (mask))
#define __match_any_sync(mask, value) fibers::match_any("__match_any_sync", __LINE__, mask, value)

using std::isfinite;
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __clz(unsigned x) { return x == 0 ? 32 : __builtin_clz(x); }
inline unsigned __float_as_uint(float x) { return fibers::unpack<unsigned>(fibers::pack(x)); }
inline float __uint_as_float(unsigned x) { return fibers::unpack<float>(x); }

// Integers only: a sum of floats would depend on who comes first.
template <typename T>
T atomicAdd(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  return std::exchange(*address, *address + value);
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorOnHost"; }
inline const char* cudaGetErrorString(cudaError_t) { return "refused by the host harness"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }

namespace fibers {
constexpr size_t kDefaultShared = 48 << 10, kMostShared = 227 << 10;  // of a block, on compute capability 9.0
inline std::map<const void*, size_t> raised;
}  // namespace fibers

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (static_cast<size_t>(bytes) > fibers::kMostShared) return cudaErrorInvalidValue;
  fibers::raised[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

// Stands in for kernel<<<grid, block, shared_bytes, stream>>>(arguments...).
template <typename... P, typename... A>
cudaError_t host_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A... arguments) {
  const auto found = fibers::raised.find(reinterpret_cast<const void*>(kernel));
  const size_t limit = found == fibers::raised.end() ? fibers::kDefaultShared : found->second;
  if (shared_bytes > std::max(limit, fibers::kDefaultShared)) return cudaErrorInvalidValue;
  if (grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  fibers::launch(grid, block, shared_bytes, [=] { kernel(arguments...); });
  return cudaSuccess;
}
