#include "device.h"
#include "residual.h"

namespace pullback::cuda {
namespace {

constexpr int kStage = 128;   // entries of a row staged in shared memory at a time
constexpr int kInFlight = 4;  // decoder packs a thread requests before it uses the first
constexpr int kMaxThreads = 256;
constexpr int kTileBytes = 48 << 10;  // of decoder rows in shared memory: four blocks a processor
constexpr int kNarrowestTile = 256;   // bytes of a row

// One block a row, a tile of columns at a time. The residual of a column and its part of the inner products ask for the
// same elements of the decoder rows: they are copied into shared memory, and come from far away but once.
template <typename W, int V>
__global__ void __launch_bounds__(kMaxThreads, 4) decode_residual_tiles(const DecodeResidual job, int width) {
  W* tile = dynamic_shared<W>();                                     // [k, width]
  float* row = reinterpret_cast<float*>(tile + job.k * width);       // [width]
  float *value = row + width, *dots = value + job.k;                 // [k] each
  int32_t* feature = reinterpret_cast<int32_t*>(value + 2 * job.k);  // [k]
  const int64_t n = blockIdx.x;
  const int k = static_cast<int>(job.k), thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int warp = thread / 32, lane = thread % 32, warps = threads / 32;
  for (int j = thread; j < k; j += threads) {
    const int32_t id = job.indices[n * k + j];
    const bool known = id >= 0 && id < job.n_features;
    feature[j] = known ? id : 0;
    value[j] = job.values[n * k + j];
    if (!known) set_nan(value[j]);
    dots[j] = 0;
  }
  __syncthreads();

  double squares = 0;
  for (int64_t first = 0; first < job.d; first += width) {
    const int columns = static_cast<int>(job.d - first < width ? job.d - first : width);
    for (int j = warp; j < k; j += warps) {
      const W* source = static_cast<const W*>(job.W) + feature[j] * job.W_stride + first;
      for (int column = lane * V; column < columns; column += 32 * V) {
        copy_async(tile + j * width + column, source + column);
      }
    }
    wait_for_copies();
    __syncthreads();
    for (int column = thread * V; column < columns; column += threads * V) {
      float sum[V];
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = job.bias == nullptr ? 0.0f : job.bias[first + column + v];
#pragma unroll 4
      for (int j = 0; j < k; ++j) {
        const Pack<W, V> w = load<V>(tile + j * width + column);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += value[j] * widen(w.lane[v]);
      }
      const Pack<float, V> y = load<V>(job.y + n * job.y_stride + first + column);
      Pack<float, V> residual;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        residual.lane[v] = sum[v] - y.lane[v];
        squares += static_cast<double>(residual.lane[v]) * residual.lane[v];
      }
      store<V>(row + column, residual);
      store<V>(job.residual + n * job.d + first + column, residual);
    }
    __syncthreads();
    for (int j = warp; j < k; j += warps) {
      float dot = 0;
      for (int column = lane * V; column < columns; column += 32 * V) {
        const Pack<W, V> w = load<V>(tile + j * width + column);
        const Pack<float, V> r = load<V>(row + column);
#pragma unroll
        for (int v = 0; v < V; ++v) dot += r.lane[v] * widen(w.lane[v]);
      }
      dot = warp_sum(dot);
      if (lane == 0) dots[j] += dot;
    }
    __syncthreads();  // the tile may be overwritten, and in the end the products are whole
  }
  squares = block_sum(squares);
  if (thread == 0) job.losses[n] = squares;
  for (int j = thread; j < k; j += threads) job.dots[n * k + j] = job.relu && value[j] <= 0 ? 0.0f : dots[j];
}

// One block a row, where its decoder rows are too many or too oddly placed for that. The residual stays in shared
// memory for the inner products with the decoder rows, which by then lie in cache: memory is read once.
template <typename W, int V>
__global__ void __launch_bounds__(kMaxThreads, 4) decode_residual_kernel(const DecodeResidual job) {
  __shared__ int32_t feature[kStage];
  __shared__ float value[kStage];
  float* row = dynamic_shared<float>();  // [d]

  const int64_t n = blockIdx.x;
  const int32_t* indices = job.indices + n * job.k;
  const float* values = job.values + n * job.k;
  const W* weights = static_cast<const W*>(job.W);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);

  for (int64_t first = 0; first < job.k; first += kStage) {
    const int count = static_cast<int>(job.k - first < kStage ? job.k - first : kStage);
    __syncthreads();  // everyone is done with the previous stage
    for (int e = thread; e < count; e += threads) {
      const int32_t id = indices[first + e];
      const bool known = id >= 0 && id < job.n_features;
      feature[e] = known ? id : 0;
      value[e] = values[first + e];
      if (!known) set_nan(value[e]);
    }
    __syncthreads();
    for (int64_t column = thread * V; column < job.d; column += threads * V) {
      float sum[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sum[v] = first > 0 ? row[column + v] : job.bias == nullptr ? 0.0f : job.bias[column + v];
      }
      gather_add<kInFlight>(sum, weights + column, job.W_stride, feature, value, count);
#pragma unroll
      for (int v = 0; v < V; ++v) row[column + v] = sum[v];
    }
  }

  double squares = 0;
  for (int64_t column = thread * V; column < job.d; column += threads * V) {
    const Pack<float, V> y = load<V>(job.y + n * job.y_stride + column);
    Pack<float, V> residual;
#pragma unroll
    for (int v = 0; v < V; ++v) {  // the columns this thread wrote
      const float decoded = job.k > 0 ? row[column + v] : job.bias == nullptr ? 0.0f : job.bias[column + v];
      const float r = decoded - y.lane[v];
      row[column + v] = residual.lane[v] = r;
      squares += static_cast<double>(r) * r;
    }
    store<V>(job.residual + n * job.d + column, residual);
  }
  squares = block_sum(squares);  // and the row is whole
  if (thread == 0) job.losses[n] = squares;

  const int lane = thread % 32;
  for (int64_t j = thread / 32; j < job.k; j += threads / 32) {
    const int32_t id = indices[j];
    const bool known = id >= 0 && id < job.n_features;
    const bool empty = job.relu && values[j] <= 0;
    const W* source = weights + (known ? id : 0) * job.W_stride;
    float dot = 0;
    if (!empty) {
#pragma unroll 4
      for (int64_t column = lane * V; column < job.d; column += 32 * V) {
        const Pack<W, V> w = load<V>(source + column);
#pragma unroll
        for (int v = 0; v < V; ++v) dot += row[column + v] * widen(w.lane[v]);
      }
    }
    dot = warp_sum(dot);
    if (!known) set_nan(dot);
    if (lane == 0) job.dots[n * job.k + j] = dot;
  }
}

template <typename W>
cudaError_t launch_widest(const DecodeResidual& job, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(W);
  const bool aligned = on_16_bytes(job.W) && on_16_bytes(job.y) && on_16_bytes(job.residual) && job.W_stride % V == 0 &&
                       job.y_stride % 4 == 0 && job.d % V == 0;
  const int64_t widest = job.k == 0 ? 0 : kTileBytes / (job.k * static_cast<int64_t>(sizeof(W))) / V * V;
  if (aligned && job.d > 0 && widest * static_cast<int64_t>(sizeof(W)) >= kNarrowestTile) {
    const int64_t width = ceil_div(ceil_div(job.d, ceil_div(job.d, widest)), V) * V;  // tiles alike
    const size_t bytes = job.k * width * sizeof(W) + (width + 3 * job.k) * sizeof(float);
    return launch(decode_residual_tiles<W, V>, blocks(job.n), kMaxThreads, bytes, stream, job, static_cast<int>(width));
  }
  const int threads = even_threads(ceil_div(job.d, aligned ? V : 1), kMaxThreads);
  const size_t shared = static_cast<size_t>(job.d) * sizeof(float);
  return launch(aligned ? decode_residual_kernel<W, V> : decode_residual_kernel<W, 1>, blocks(job.n), threads, shared,
                stream, job);
}

}  // namespace

cudaError_t decode_residual(const DecodeResidual& job, cudaStream_t stream) {
  if (job.n == 0) return cudaSuccess;
  return by_element(job.W_dtype, [&](auto zero) { return launch_widest<decltype(zero)>(job, stream); });
}

}  // namespace pullback::cuda
