#include "device.h"
#include "gradient.h"

namespace pullback::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kChunk = 256;          // consecutive entries, in order, that one block of `sum_chunks` adds up
constexpr int kDirect = 2 * kChunk;  // above what a feature has outside of whole chunks
constexpr int kTileThreads = 128;

constexpr int kInFlight = 4;         // rows a thread requests before it uses the first
constexpr int kInFlightOfChunk = 8;  // where nothing else needs registers

// Entries in shared memory, ready to be gathered.
struct Staged {
  int32_t x_row[kDirect], g_row[kDirect];
  float dvalue[kDirect], value[kDirect];
};

__device__ void stage(Staged& staged, int slot, const SparseGradient& grad, int64_t position) {
  const int32_t e = grad.order[position];
  const bool known = e >= 0 && e < grad.nnz;
  const int32_t row = known ? grad.rows[e] : -1;
  const bool sound = row >= 0 && row < grad.m;
  staged.g_row[slot] = sound ? row : 0;
  staged.x_row[slot] = sound ? row % static_cast<int32_t>(grad.n) : 0;
  staged.dvalue[slot] = sound ? grad.dvalues[e] : nanf("");
  staged.value[slot] = sound ? grad.values[e] : nanf("");
}

// A feature's entries, in sorted order: whole chunks, which are summed beforehand, and what lies around them. A feature
// with very many entries would else keep one block busy long after all others are done.
struct Span {
  int64_t begin, end;               // all entries
  int64_t first_chunk, last_chunk;  // whole chunks, none where equal
  int direct;                       // entries outside of them

  __device__ Span(const SparseGradient& grad, int64_t f) : begin(grad.starts[f]), end(grad.starts[f + 1]) {
    if (begin < 0 || end > grad.nnz || begin > end) begin = end = 0;
    first_chunk = (begin + kChunk - 1) / kChunk;
    last_chunk = end / kChunk;
    if (last_chunk < first_chunk) last_chunk = first_chunk;
    direct = static_cast<int>(end - begin - (last_chunk - first_chunk) * kChunk);
  }
  __device__ bool empty() const { return begin == end; }
  // Where direct entry i stands.
  __device__ int64_t position(int i) const {
    const int64_t p = begin + i;
    return last_chunk == first_chunk || p < first_chunk * kChunk ? p : p + (last_chunk - first_chunk) * kChunk;
  }
};

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

__device__ int64_t partial_width(const SparseGradient& grad) { return grad.d_in + grad.d_out + 1; }

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

// The gradient of one feature, a few columns at a time.
template <typename X, int V>
struct FeatureGradient {
  const SparseGradient& grad;
  const Staged& staged;
  const Span& span;

  __device__ void add_chunks(float (&sum)[V], int64_t partial_column) const {
    for (int64_t c = span.first_chunk; c < span.last_chunk; ++c) {
      const float* partial = grad.partials + c * partial_width(grad) + partial_column;
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += partial[v];
    }
  }
  __device__ void encoder(float (&sum)[V], int64_t column) const {
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = 0;
    gather_add<kInFlight>(sum, static_cast<const X*>(grad.x) + column, grad.x_stride, staged.x_row, staged.dvalue,
                          span.direct);
    add_chunks(sum, column);
  }
  __device__ void decoder(float (&sum)[V], int64_t column) const {
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = 0;
    gather_add<kInFlight>(sum, static_cast<const X*>(grad.g) + column, grad.g_stride, staged.g_row, staged.value,
                          span.direct);
    add_chunks(sum, grad.d_in + column);
  }
  // For one whole warp.
  __device__ float bias() const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    float sum = 0;
    for (int i = lane; i < span.direct; i += 32) sum += staged.dvalue[i];
    for (int64_t c = span.first_chunk + lane; c < span.last_chunk; c += 32) {
      sum += grad.partials[c * partial_width(grad) + grad.d_in + grad.d_out];
    }
    return warp_sum(sum);
  }
};

// <gradient, w> / <w, w> of a decoder row: how much of w the gradient holds. 0 for a row of zeros.
__device__ float share_of_row(double dot, double square) {
  dot = block_sum(dot);
  square = block_sum(square);
  return square > 0 ? static_cast<float>(dot / square) : 0.0f;
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

// What all features share, worked out once: [scale, lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps].
__global__ void __launch_bounds__(32) adam_constants(const AdamStep job) {
  if (threadIdx.x != 0) return;
  const double t = *job.step;
  job.constants[0] = static_cast<float>(*job.grad_scale);
  job.constants[1] = static_cast<float>(*job.lr / (1 - pow(job.beta1, t)));
  job.constants[2] = static_cast<float>(1 / sqrt(1 - pow(job.beta2, t)));
  job.constants[3] = static_cast<float>(job.eps);
}

struct Adam {
  float scale, step_size, root_scale, eps, beta1, beta2, rest1, rest2;

  __device__ explicit Adam(const AdamStep& job)
      : scale(job.constants[0]),
        step_size(job.constants[1]),
        root_scale(job.constants[2]),
        eps(job.constants[3]),
        beta1(static_cast<float>(job.beta1)),
        beta2(static_cast<float>(job.beta2)),
        rest1(static_cast<float>(1 - job.beta1)),
        rest2(static_cast<float>(1 - job.beta2)) {}

  // The parameter after the step.
  __device__ float operator()(float p, float gradient, float& m, float& v) const {
    const float g = gradient * scale;
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * g * g;
    return p - step_size * m / (sqrtf(v) * root_scale + eps);
  }
};

// One pack of a parameter row: read, step, write back all but the parameters.
template <int V, typename W>
__device__ void adam_pack(const Adam& adam, const float (&gradient)[V], const W* p, float* m, float* v,
                          float (&updated)[V]) {
  const Pack<W, V> old = load<V>(p);
  Pack<float, V> first = load<V>(m), second = load<V>(v);
#pragma unroll
  for (int i = 0; i < V; ++i) updated[i] = adam(widen(old.lane[i]), gradient[i], first.lane[i], second.lane[i]);
  store<V>(m, first);
  store<V>(v, second);
}

template <int V, typename W>
__device__ void store_narrow(W* to, const float (&x)[V]) {
  Pack<W, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) narrow(x[i], pack.lane[i]);
  store<V>(to, pack);
}

// One block a feature. Its gradient lives in registers, or where the whole decoder row has to be known first, in shared
// memory: it is never written to memory.
template <typename W, typename X, int V>
__global__ void __launch_bounds__(kMaxThreads, 3) adam_features(const AdamStep job) {
  __shared__ Staged staged;
  float* row = dynamic_shared<float>();  // [d_out], where something depends on the whole row
  const SparseGradient& grad = job.gradient;
  const int64_t f = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x) * V;
  const Adam adam(job);
  const Span span(grad, f);
  if (!isfinite(adam.scale) || (job.lazy && span.empty())) return;
  for (int i = thread; i < span.direct; i += static_cast<int>(blockDim.x)) stage(staged, i, grad, span.position(i));
  __syncthreads();

  const FeatureGradient<X, V> gradient{grad, staged, span};
  W* p = static_cast<W*>(job.params.W_enc) + f * grad.d_in;
  float* m = static_cast<float*>(job.exp_avg.W_enc) + f * grad.d_in;
  float* v = static_cast<float*>(job.exp_avg_sq.W_enc) + f * grad.d_in;
  for (int64_t column = thread * V; column < grad.d_in; column += step) {
    float sum[V], updated[V];
    gradient.encoder(sum, column);
    adam_pack<V>(adam, sum, p + column, m + column, v + column, updated);
    store_narrow<V>(p + column, updated);
  }
  if (thread < 32) {
    const float sum[1] = {gradient.bias()};
    W* b = static_cast<W*>(job.params.b_enc) + f;
    float updated[1];
    if (thread == 0) {
      adam_pack<1>(adam, sum, b, static_cast<float*>(job.exp_avg.b_enc) + f,
                   static_cast<float*>(job.exp_avg_sq.b_enc) + f, updated);
      store_narrow<1>(b, updated);
    }
  }

  p = static_cast<W*>(job.params.W_dec) + f * grad.d_out;
  m = static_cast<float*>(job.exp_avg.W_dec) + f * grad.d_out;
  v = static_cast<float*>(job.exp_avg_sq.W_dec) + f * grad.d_out;
  float share = 0;
  const bool remove_parallel = job.remove_parallel && !span.empty();
  if (remove_parallel) {
    double dot = 0, square = 0;
    for (int64_t column = thread * V; column < grad.d_out; column += step) {
      float sum[V];
      gradient.decoder(sum, column);
      const Pack<W, V> w = load<V>(p + column);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float weight = widen(w.lane[i]);
        dot += static_cast<double>(sum[i]) * weight;
        square += static_cast<double>(weight) * weight;
        row[column + i] = sum[i];
      }
    }
    share = share_of_row(dot, square);
  }
  double square = 0;
  for (int64_t column = thread * V; column < grad.d_out; column += step) {
    float sum[V], updated[V];
    if (remove_parallel) {
      const Pack<W, V> w = load<V>(p + column);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] = row[column + i] - share * widen(w.lane[i]);
    } else {
      gradient.decoder(sum, column);
    }
    adam_pack<V>(adam, sum, p + column, m + column, v + column, updated);
    if (job.unit_norm) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        row[column + i] = updated[i];
        square += static_cast<double>(updated[i]) * updated[i];
      }
    } else {
      store_narrow<V>(p + column, updated);
    }
  }
  if (!job.unit_norm) return;
  square = block_sum(square);
  const float shrink = square > 0 ? static_cast<float>(1 / sqrt(square)) : 1.0f;
  for (int64_t column = thread * V; column < grad.d_out; column += step) {
    float updated[V];
#pragma unroll
    for (int i = 0; i < V; ++i) updated[i] = row[column + i] * shrink;
    store_narrow<V>(p + column, updated);
  }
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

template <int V>
int threads_for(const SparseGradient& grad) {
  return even_threads(ceil_div(std::max(grad.d_in, grad.d_out), V), kMaxThreads);
}

size_t shared_for(const SparseGradient& grad, bool whole_row) {
  return whole_row ? static_cast<size_t>(grad.d_out) * sizeof(float) : 0;
}

template <typename W, typename X, int V>
cudaError_t launch_job(const GradientNorm& job, cudaStream_t stream) {
  const SparseGradient& grad = job.gradient;
  if (const auto error = launch_chunks<X, V>(grad, stream)) return error;
  if (grad.n_features > 0) {
    const auto error = launch(feature_squares<W, X, V>, blocks(grad.n_features), threads_for<V>(grad),
                              shared_for(grad, job.W_dec != nullptr), stream, job);
    if (error != cudaSuccess) return error;
  }
  return launch(sum_squares, blocks(1), 1024, 0, stream, job.squares, grad.n_features, job.norm);
}

template <typename W, typename X, int V>
cudaError_t launch_job(const AdamStep& job, cudaStream_t stream) {
  const SparseGradient& grad = job.gradient;
  if (grad.n_features == 0) return cudaSuccess;
  if (const auto error = launch_chunks<X, V>(grad, stream)) return error;
  if (const auto error = launch(adam_constants, blocks(1), 32, 0, stream, job)) return error;
  return launch(adam_features<W, X, V>, blocks(grad.n_features), threads_for<V>(grad),
                shared_for(grad, job.remove_parallel || job.unit_norm), stream, job);
}

constexpr int kWide = 4;

bool on_wide_rows(const SparseGradient& grad) {
  return on_16_bytes(grad.x) && on_16_bytes(grad.g) && grad.d_in % kWide == 0 && grad.d_out % kWide == 0 &&
         grad.x_stride % kWide == 0 && grad.g_stride % kWide == 0;
}

bool on_wide_rows(const DictionaryRows& rows) { return on_16_bytes(rows.W_enc) && on_16_bytes(rows.W_dec); }

bool on_wide_rows(const GradientNorm& job) { return on_wide_rows(job.gradient); }

bool on_wide_rows(const AdamStep& job) {
  return on_wide_rows(job.gradient) && on_wide_rows(job.params) && on_wide_rows(job.exp_avg) &&
         on_wide_rows(job.exp_avg_sq);
}

template <typename W, typename X, typename Job>
cudaError_t launch_widest(const Job& job, cudaStream_t stream) {
  return on_wide_rows(job) ? launch_job<W, X, kWide>(job, stream) : launch_job<W, X, 1>(job, stream);
}

template <typename Job>
cudaError_t launch_typed(const Job& job, cudaStream_t stream) {
  const bool narrow_x = job.gradient.dtype == DType::bf16, narrow_w = job.W_dtype == DType::bf16;
  if (!narrow_w && !narrow_x) return launch_widest<float, float>(job, stream);
  if (!narrow_w) return launch_widest<float, __nv_bfloat16>(job, stream);
  if (!narrow_x) return launch_widest<__nv_bfloat16, float>(job, stream);
  return launch_widest<__nv_bfloat16, __nv_bfloat16>(job, stream);
}

}  // namespace

int64_t gradient_chunks(int64_t nnz) { return nnz / kChunk; }

cudaError_t gradient_norm(const GradientNorm& job, cudaStream_t stream) { return launch_typed(job, stream); }

cudaError_t adam(const AdamStep& job, cudaStream_t stream) { return launch_typed(job, stream); }

}  // namespace pullback::cuda
