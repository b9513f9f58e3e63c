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
  if (unwanted(grad) || grad.owners[chunk] < 0) return;
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

// ||x[n]||, then ||g[m]||, a warp each.
template <typename X>
__global__ void __launch_bounds__(kMaxThreads) row_norms(const GradientNorm job) {
  const SparseGradient& grad = job.gradient;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kMaxThreads + threadIdx.x) / 32;
  if (row >= grad.n + grad.m) return;
  const bool of_x = row < grad.n;
  const X* source = of_x ? static_cast<const X*>(grad.x) + row * grad.x_stride
                         : static_cast<const X*>(grad.g) + (row - grad.n) * grad.g_stride;
  const int64_t d = of_x ? grad.d_in : grad.d_out;
  float square = 0;
#pragma unroll 8
  for (int64_t column = threadIdx.x % 32; column < d; column += 32) {
    const float value = widen(source[column]);
    square += value * value;
  }
  square = warp_sum(square);
  if (threadIdx.x % 32 == 0) job.row_norms[row] = sqrtf(square);
}

// The triangle inequality: squares[f] is at least the squared norm of the feature's gradients. A warp a feature.
__global__ void __launch_bounds__(kMaxThreads) feature_bounds(const GradientNorm job) {
  const SparseGradient& grad = job.gradient;
  const int64_t f = (static_cast<int64_t>(blockIdx.x) * kMaxThreads + threadIdx.x) / 32;
  if (f >= grad.n_features) return;
  const Span span(grad, f);
  float of_x = 0, of_bias = 0, of_g = 0;
#pragma unroll 4
  for (int64_t p = span.begin + threadIdx.x % 32; p < span.end; p += 32) {
    const int32_t e = grad.order[p];
    const bool known = e >= 0 && e < grad.nnz;
    const int32_t row = known ? grad.rows[e] : -1;
    const bool sound = row >= 0 && row < grad.m;
    const float dvalue = sound ? fabsf(grad.dvalues[e]) : nanf(""), value = sound ? fabsf(grad.values[e]) : 0;
    of_bias += dvalue;
    if (sound) {
      of_x += dvalue * job.row_norms[row % static_cast<int32_t>(grad.n)];
      of_g += value * job.row_norms[grad.n + row];
    }
  }
  of_x = warp_sum(of_x);
  of_bias = warp_sum(of_bias);
  of_g = warp_sum(of_g);
  if (threadIdx.x % 32 == 0) {
    const double a = of_x, b = of_bias, c = of_g;
    job.squares[f] = a * a + b * b + c * c;
  }
}

template <typename W, typename X, int V>
__global__ void __launch_bounds__(kMaxThreads, 4) feature_squares(const GradientNorm job) {
  __shared__ Staged staged;
  float* row = dynamic_shared<float>();  // [d_out] where parallel components are removed
  const SparseGradient& grad = job.gradient;
  if (unwanted(grad)) return;
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

// norm = factor times the sum over features, unless the bound that is there already will do.
__global__ void __launch_bounds__(1024) sum_squares(const GradientNorm job, double factor) {
  if (unwanted(job.gradient)) return;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < job.gradient.n_features; i += blockDim.x) sum += job.squares[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *job.norm = factor * sum;
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

constexpr double kBoundRounding = 1.002;  // of float32 sums over a row or a feature

template <typename X>
cudaError_t launch_bound(const GradientNorm& job, cudaStream_t stream) {
  const SparseGradient& grad = job.gradient;
  constexpr int kWarps = kMaxThreads / 32;
  if (grad.m > 0) {
    const auto error = launch(row_norms<X>, blocks(ceil_div(grad.n + grad.m, kWarps)), kMaxThreads, 0, stream, job);
    if (error != cudaSuccess) return error;
  }
  if (grad.n_features > 0) {
    const auto error = launch(feature_bounds, blocks(ceil_div(grad.n_features, kWarps)), kMaxThreads, 0, stream, job);
    if (error != cudaSuccess) return error;
  }
  return launch(sum_squares, blocks(1), 1024, 0, stream, job, kBoundRounding);
}

template <typename S>
cudaError_t launch_job(GradientNorm job, cudaStream_t stream) {
  SparseGradient& grad = job.gradient;
  if (job.enough != nullptr) {
    if (const auto error = launch_bound<typename S::X>(job, stream)) return error;
    grad.bound = job.norm;
    grad.enough = job.enough;
  }
  if (const auto error = sum_whole_chunks(grad, S::V > 1, stream)) return error;
  if (grad.n_features > 0) {
    const auto error = launch(feature_squares<typename S::W, typename S::X, S::V>, blocks(grad.n_features),
                              threads_for<S::V>(grad), shared_for(grad, job.W_dec != nullptr), stream, job);
    if (error != cudaSuccess) return error;
  }
  return launch(sum_squares, blocks(1), 1024, 0, stream, job, 1.0);
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
