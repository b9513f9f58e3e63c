#include "gradient_rows.h"

namespace pullback::cuda {
namespace {

constexpr int kTileThreads = 128;
constexpr int kInFlightOfChunk = 8;  // where nothing else needs registers

// owners[c] = the feature that all entries of chunk c belong to, -1 if they are of several.
__global__ void __launch_bounds__(kMaxThreads) find_owners(const SparseGradient grad, int64_t chunks) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kMaxThreads + threadIdx.x;
  if (c >= chunks) return;
  int64_t low = 0, high = grad.n_features;  // the last feature that starts at or before the chunk
  while (low + 1 < high) {
    const int64_t middle = (low + high) / 2;
    if (grad.starts[middle] <= c * kChunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const bool whole = grad.starts[low] <= c * kChunk && grad.starts[low + 1] >= (c + 1) * kChunk;
  grad.owners[c] = whole ? static_cast<int32_t>(low) : -1;
}

// One block a chunk and tile of columns: those of x, then those of g, and the sum of dvalues at the very end.
template <typename X, int V>
__global__ void __launch_bounds__(kTileThreads, 8) sum_chunks(const SparseGradient grad, int x_tiles) {
  __shared__ Staged staged;
  const int64_t chunk = blockIdx.x;
  if (grad.owners[chunk] < 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < kChunk; i += kTileThreads) stage(staged, i, grad, chunk * kChunk + i);
  __syncthreads();

  float* partial = grad.partials + chunk * partial_width(grad);
  const int tile = static_cast<int>(blockIdx.y);
  const bool of_x = tile < x_tiles;
  const int64_t column = (static_cast<int64_t>(of_x ? tile : tile - x_tiles) * kTileThreads + threadIdx.x) * V;
  if (column < (of_x ? grad.d_in : grad.d_out)) {
    float sum[V] = {};
    const X* source = static_cast<const X*>(of_x ? grad.x : grad.g) + column;
    gather_add<kInFlightOfChunk>(sum, source, of_x ? grad.x_stride : grad.g_stride, of_x ? staged.x_row : staged.g_row,
                                 of_x ? staged.dvalue : staged.value, kChunk);
    float* to = partial + (of_x ? 0 : grad.d_in) + column;
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = sum[v];
  }
  if (tile == 0 && threadIdx.x < 32) {
    float sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < kChunk; i += 32) sum += staged.dvalue[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) partial[grad.d_in + grad.d_out] = sum;
  }
}

template <typename W, typename X, int V>
__global__ void __launch_bounds__(kMaxThreads, 4) feature_squares(const GradientNorm job) {
  __shared__ Staged staged;
  float* row = dynamic_shared<float>();  // [d_out] where parallel components are removed
  const SparseGradient& grad = job.gradient;
  const int64_t f = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x) * V;
  const Span span(grad, f);
  if (span.empty()) {
    if (thread == 0) job.squares[f] = 0;
    return;
  }
  for (int i = thread; i < span.direct; i += static_cast<int>(blockDim.x)) stage(staged, i, grad, span.position(i));
  __syncthreads();

  const FeatureGradient<X, V> gradient{grad, staged, span};
  double squares = 0;
  for (int64_t column = thread * V; column < grad.d_in; column += step) {
    float sum[V];
    gradient.encoder(sum, column);
#pragma unroll
    for (int v = 0; v < V; ++v) squares += static_cast<double>(sum[v]) * sum[v];
  }
  if (thread < 32) {
    const float bias = gradient.bias();
    if (thread == 0) squares += static_cast<double>(bias) * bias;
  }

  const W* w = static_cast<const W*>(job.W_dec);
  double dot = 0, square = 0;
  for (int64_t column = thread * V; column < grad.d_out; column += step) {
    float sum[V];
    gradient.decoder(sum, column);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (w == nullptr) {
        squares += static_cast<double>(sum[v]) * sum[v];
      } else {
        const float weight = widen(w[f * grad.d_out + column + v]);
        dot += static_cast<double>(sum[v]) * weight;
        square += static_cast<double>(weight) * weight;
        row[column + v] = sum[v];
      }
    }
  }
  if (w != nullptr) {
    const float share = share_of_row(dot, square);
    for (int64_t column = thread * V; column < grad.d_out; column += step) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float across = row[column + v] - share * widen(w[f * grad.d_out + column + v]);
        squares += static_cast<double>(across) * across;
      }
    }
  }
  squares = block_sum(squares);
  if (thread == 0) job.squares[f] = squares;
}

__global__ void __launch_bounds__(1024)
    sum_squares(const double* __restrict__ squares, int64_t count, double* __restrict__ norm) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += squares[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *norm = sum;
}

template <typename X, int V>
cudaError_t launch_chunks(const SparseGradient& grad, cudaStream_t stream) {
  const int64_t chunks = grad.nnz / kChunk;
  if (chunks == 0 || grad.n_features == 0) return cudaSuccess;
  const auto error = launch(find_owners, blocks(ceil_div(chunks, kMaxThreads)), kMaxThreads, 0, stream, grad, chunks);
  if (error != cudaSuccess) return error;
  const int64_t x_tiles = std::max<int64_t>(1, ceil_div(grad.d_in, kTileThreads * V));  // tile 0 sums dvalues too
  const int64_t g_tiles = ceil_div(grad.d_out, kTileThreads * V);
  return launch(sum_chunks<X, V>, blocks(chunks, x_tiles + g_tiles), kTileThreads, 0, stream, grad,
                static_cast<int>(x_tiles));
}

template <typename S>
cudaError_t launch_job(const GradientNorm& job, cudaStream_t stream) {
  const SparseGradient& grad = job.gradient;
  if (const auto error = sum_whole_chunks(grad, S::V > 1, stream)) return error;
  if (grad.n_features > 0) {
    const auto error = launch(feature_squares<typename S::W, typename S::X, S::V>, blocks(grad.n_features),
                              threads_for<S::V>(grad), shared_for(grad, job.W_dec != nullptr), stream, job);
    if (error != cudaSuccess) return error;
  }
  return launch(sum_squares, blocks(1), 1024, 0, stream, job.squares, grad.n_features, job.norm);
}

}  // namespace

int64_t gradient_chunks(int64_t nnz) { return nnz / kChunk; }

cudaError_t sum_whole_chunks(const SparseGradient& grad, bool wide, cudaStream_t stream) {
  if (grad.dtype == DType::bf16) {
    return wide ? launch_chunks<__nv_bfloat16, kWide>(grad, stream) : launch_chunks<__nv_bfloat16, 1>(grad, stream);
  }
  return wide ? launch_chunks<float, kWide>(grad, stream) : launch_chunks<float, 1>(grad, stream);
}

cudaError_t gradient_norm(const GradientNorm& job, cudaStream_t stream) {
  return with_shape(job.W_dtype, job.gradient.dtype, on_wide_rows(job.gradient),
                    [&](auto shape) { return launch_job<decltype(shape)>(job, stream); });
}

}  // namespace pullback::cuda
