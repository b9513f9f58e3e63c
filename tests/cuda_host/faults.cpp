// Kernels that are wrong in one way each, and two that are right: faults <name> says how the harness takes it.
#include <cstdio>
#include <map>
#include <string>

#include "cuda_runtime.h"

namespace {

int result[64];

__global__ void barrier_in_a_branch() {
  if (threadIdx.x < 7) __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lane_missing() {
  if (threadIdx.x != 3) result[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
}

__global__ void outside_of_the_mask() { result[threadIdx.x] = __any_sync(0xFFFF, true); }

__global__ void two_collectives() {
  result[threadIdx.x] = threadIdx.x % 2 ? __shfl_sync(~0u, 1, 0) : static_cast<int>(__ballot_sync(~0u, 1));
}

__global__ void beyond_shared_memory() { fibers::dynamic_shared[256 + threadIdx.x / 63] = 1; }

__global__ void half_warps() {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0xFFFF : 0xFFFF0000;
  if (mask == 0xFFFF)
    result[threadIdx.x] = __shfl_sync(mask, static_cast<int>(threadIdx.x), 2);
  else
    result[threadIdx.x] = __shfl_up_sync(mask, static_cast<int>(threadIdx.x), 1);
}

__global__ void neighbours() {
  __shared__ int all[64];
  all[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  result[threadIdx.x] = all[63 - threadIdx.x];
}

}  // namespace

int main(int, char** arguments) {
  const std::map<std::string, void (*)()> kernels{{"barrier_in_a_branch", barrier_in_a_branch},
                                                  {"two_barriers", two_barriers},
                                                  {"lane_missing", lane_missing},
                                                  {"outside_of_the_mask", outside_of_the_mask},
                                                  {"two_collectives", two_collectives},
                                                  {"beyond_shared_memory", beyond_shared_memory},
                                                  {"half_warps", half_warps},
                                                  {"neighbours", neighbours}};
  const std::string name = arguments[1];
  try {
    const size_t shared = name == "beyond_shared_memory" ? 256 : 0;
    const auto error = host_launch(name == "too_much_shared_memory" ? neighbours : kernels.at(name), dim3(3), dim3(64),
                                   name == "too_much_shared_memory" ? fibers::kDefaultShared + 1 : shared);
    if (error != cudaSuccess) std::printf("error %d\n", error);
  } catch (const std::runtime_error& fault) {
    std::printf("%s\n", fault.what());
    return 0;
  }
  for (const int x : result) std::printf("%d ", x);
  return 0;
}
