// What kernels share: element conversion, wide loads, block-wide sums and scans, gathered sums. Device code only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "launch.h"

namespace pullback::cuda {
namespace {

constexpr unsigned kFullWarp = ~0u;

__device__ inline float widen(float w) { return w; }
__device__ inline double widen(double w) { return w; }
__device__ inline float widen(__nv_bfloat16 w) { return __bfloat162float(w); }
__device__ inline float widen(__half w) { return __half2float(w); }

__device__ inline void narrow(float x, float& out) { out = x; }
__device__ inline void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }

__device__ inline void set_nan(float& x) { x = nanf(""); }
__device__ inline void set_nan(double& x) { x = nan(""); }

// V consecutive numbers that move in as few instructions of at most 16 bytes as possible.
template <typename T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Pack {
  T lane[V];
};

template <int V, typename T>
__device__ Pack<T, V> load(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <int V, typename T>
__device__ void store(T* to, const Pack<T, V>& pack) {
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Asks for memory without waiting for it or holding a register: it is in L2 when it is read.
__device__ inline void prefetch(const void* address) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
  (void)address;
#endif
}

// Copies 16 bytes into shared memory, without waiting for it and past the registers.
__device__ inline void copy_async(void* shared, const void* from) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
      "l"(from));
#else
  __builtin_memcpy(shared, from, 16);
#endif
}

// The thread's copies are there; for those of others the block has to meet besides.
__device__ inline void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// The block's dynamic shared memory.
template <typename T>
__device__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#else
  return reinterpret_cast<T*>(fibers::dynamic_shared);
#endif
}

// Every lane gets the sum over the warp, in one fixed order.
template <typename T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kFullWarp, x, lanes);
  return x;
}

// Every thread gets the sum over the block, in one fixed order.
template <typename T>
__device__ T block_sum(T x) {
  __shared__ T of_warp[32];
  x = warp_sum(x);
  __syncthreads();  // readers of an earlier sum are done
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += of_warp[warp];
  return sum;
}

struct Scan {
  int before, total;  // sum over lower threads, sum over the block
};

__device__ inline Scan block_scan(int x) {
  __shared__ int of_warp[32];
  const int lane = static_cast<int>(threadIdx.x % 32);
  int upto = x;
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const int lower = __shfl_up_sync(kFullWarp, upto, lanes);
    if (lane >= lanes) upto += lower;
  }
  __syncthreads();  // readers of an earlier scan are done
  if (lane == 31) of_warp[threadIdx.x / 32] = upto;
  __syncthreads();
  Scan scan{upto - x, 0};
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) {
    if (warp == threadIdx.x / 32) scan.before += scan.total;
    scan.total += of_warp[warp];
  }
  return scan;
}

// sum += the sum over entries e < count of weight[e] * source[row[e] * stride ...], in order of e. A thread requests
// kInFlight rows before it uses the first: one at a time, it would wait for each.
template <int kInFlight, int V, typename X>
__device__ void gather_add(float (&sum)[V], const X* source, int64_t stride, const int32_t* row, const float* weight,
                           int count) {
#pragma unroll 1
  for (int e = 0; e < count; e += kInFlight) {
    Pack<X, V> x[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (e + i < count) x[i] = load<V>(source + row[e + i] * stride);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (e + i < count) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += weight[e + i] * widen(x[i].lane[v]);
      }
    }
  }
}

}  // namespace
// f(an element of the type), for the types that weights and pre-activations come in.
template <typename F>
cudaError_t by_element(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(__nv_bfloat16{});
    case DType::f16:
      return f(__half{});
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace pullback::cuda
