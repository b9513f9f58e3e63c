#include <type_traits>

#include "device.h"
#include "sparse_decode.h"

namespace pullback::cuda {
namespace {

constexpr int kStage = 128;   // entries of a row staged in shared memory at a time
constexpr int kInFlight = 4;  // decoder rows a thread requests before it uses the first
constexpr int kMaxThreads = 256;
// Without a stated occupancy the compiler aims at 32 registers and waits for each gather before it requests the next.
constexpr int kMinBlocks = 4;

// One block makes up to blockDim.x * V columns of one row, each thread V of them. Every column adds its entries in
// ascending order, so neither tile nor vector width shows in the result.
template <typename W, typename Acc, int V>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    decode_csr_kernel(const int64_t* __restrict__ indptr, const int32_t* __restrict__ indices,
                      const Acc* __restrict__ values, const W* __restrict__ weights, const Acc* __restrict__ bias,
                      Acc* __restrict__ out, int64_t nnz, int64_t n_features, int64_t d, int64_t W_stride) {
  using Weights = Pack<W, V>;
  using Sums = Pack<Acc, V>;
  __shared__ int32_t feature[kStage];
  __shared__ Acc value[kStage];

  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  const bool active = column < d;

  // Damaged row pointers or feature ids must neither read foreign memory nor pass unnoticed: the row becomes NaN.
  int64_t begin = indptr[row], end = indptr[row + 1];
  const bool damaged = begin < 0 || end > nnz || begin > end;
  if (damaged) begin = end = 0;

  Sums sum;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sum.lane[v] = 0;
    if (damaged) set_nan(sum.lane[v]);
  }

  for (int64_t first = begin; first < end; first += kStage) {
    const int count = static_cast<int>(end - first < kStage ? end - first : kStage);
    __syncthreads();  // everyone is done with the previous stage
    for (int e = threadIdx.x; e < count; e += blockDim.x) {
      const int32_t id = indices[first + e];
      const bool known = id >= 0 && id < n_features;
      feature[e] = known ? id : 0;
      value[e] = values[first + e];
      if (!known) set_nan(value[e]);
    }
    __syncthreads();
    if (!active) continue;

    const W* source = weights + column;
    int e = 0;
#pragma unroll 1
    for (; e + kInFlight <= count; e += kInFlight) {
      Weights w[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        w[i] = *reinterpret_cast<const Weights*>(source + feature[e + i] * W_stride);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum.lane[v] += value[e + i] * widen(w[i].lane[v]);
      }
    }
#pragma unroll 1
    for (; e < count; ++e) {
      const Weights w = *reinterpret_cast<const Weights*>(source + feature[e] * W_stride);
#pragma unroll
      for (int v = 0; v < V; ++v) sum.lane[v] += value[e] * widen(w.lane[v]);
    }
  }

  if (!active) return;
  if (bias != nullptr) {
    const Sums b = *reinterpret_cast<const Sums*>(bias + column);
#pragma unroll
    for (int v = 0; v < V; ++v) sum.lane[v] += b.lane[v];
  }
  *reinterpret_cast<Sums*>(out + row * d + column) = sum;
}

template <typename W, int V>
cudaError_t launch_packs(const DecodeCsr& job, cudaStream_t stream) {
  using Acc = std::conditional_t<std::is_same_v<W, double>, double, float>;
  const int threads = even_threads(ceil_div(job.d, V), kMaxThreads);
  const int64_t tiles = ceil_div(job.d, static_cast<int64_t>(threads) * V);
  if (tiles > 65535 || job.n_rows > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch(decode_csr_kernel<W, Acc, V>, blocks(job.n_rows, tiles), threads, 0, stream, job.indptr, job.indices,
                static_cast<const Acc*>(job.values), static_cast<const W*>(job.W), static_cast<const Acc*>(job.bias),
                static_cast<Acc*>(job.out), job.nnz, job.n_features, job.d, job.W_stride);
}

template <typename W>
cudaError_t launch_widest(const DecodeCsr& job, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(W);
  const bool aligned =
      on_16_bytes(job.W) && on_16_bytes(job.bias) && on_16_bytes(job.out) && job.W_stride % V == 0 && job.d % V == 0;
  return aligned ? launch_packs<W, V>(job, stream) : launch_packs<W, 1>(job, stream);
}

}  // namespace

cudaError_t decode_csr(const DecodeCsr& job, cudaStream_t stream) {
  if (job.n_rows == 0 || job.d == 0) return cudaSuccess;
  if (job.W_dtype == DType::f64) return launch_widest<double>(job, stream);
  return by_element(job.W_dtype, [&](auto zero) { return launch_widest<decltype(zero)>(job, stream); });
}

}  // namespace pullback::cuda
