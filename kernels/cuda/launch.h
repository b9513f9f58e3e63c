// What every kernel's host side needs: element types, and one way to launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace pullback::cuda {

enum class DType { f32, f64, bf16, f16, i32, i64 };

// Dynamic shared memory that a block has without asking: 48 KiB, less what kernels declare statically.
constexpr size_t kSharedByDefault = 32 << 10;

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), which the tests replace to run kernels on a CPU.
template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream,
                   A... arguments) {
  if (shared_bytes > kSharedByDefault) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // reported here, not by the next launch
      return error;
    }
  }
#ifdef __CUDACC__
  kernel<<<grid, static_cast<unsigned>(threads), shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
#else
  (void)stream;
  return host_launch(kernel, grid, dim3(static_cast<unsigned>(threads)), shared_bytes, arguments...);
#endif
}

inline dim3 blocks(int64_t x, int64_t y = 1) { return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)); }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads for `items` so that the fewest rounds are all about equally full: 576 items give 192 threads, not 256.
inline int even_threads(int64_t items, int most) {
  const int64_t rounds = std::max<int64_t>(1, ceil_div(items, most));
  return static_cast<int>(std::max<int64_t>(1, ceil_div(ceil_div(items, rounds), 32)) * 32);
}

inline bool on_16_bytes(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

}  // namespace pullback::cuda
