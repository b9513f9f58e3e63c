// A row of the gradient, summed from a feature's entries: what its norm and Adam share. Device code only.
#pragma once

#include "device.h"
#include "gradient.h"

namespace pullback::cuda {

// Queue the sums over whole chunks, which the rows below start from. wide: see `on_wide_rows`.
cudaError_t sum_whole_chunks(const SparseGradient& grad, bool wide, cudaStream_t stream);

namespace {

constexpr int kMaxThreads = 256;
constexpr int kChunk = 256;          // consecutive entries, in order, that one block of `sum_chunks` adds up
constexpr int kDirect = 2 * kChunk;  // above what a feature has outside of whole chunks

constexpr int kInFlight = 4;  // rows a thread requests before it uses the first

// Entries in shared memory, ready to be gathered.
struct Staged {
  int32_t x_row[kDirect], g_row[kDirect];
  float dvalue[kDirect], value[kDirect];
};

__device__ inline void stage(Staged& staged, int slot, const SparseGradient& grad, int64_t position) {
  const int32_t e = grad.order[position];
  const bool known = e >= 0 && e < grad.nnz;
  const int32_t row = known ? grad.rows[e] : -1;
  const bool sound = row >= 0 && row < grad.m;
  staged.g_row[slot] = sound ? row : 0;
  staged.x_row[slot] = sound ? row % static_cast<int32_t>(grad.n) : 0;
  staged.dvalue[slot] = sound ? grad.dvalues[e] : nanf("");
  staged.value[slot] = sound ? grad.values[e] : nanf("");
}

__device__ inline bool unwanted(const SparseGradient& grad) {
  return grad.bound != nullptr && *grad.bound <= *grad.enough;
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

__device__ inline int64_t partial_width(const SparseGradient& grad) { return grad.d_in + grad.d_out + 1; }

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
__device__ inline float share_of_row(double dot, double square) {
  dot = block_sum(dot);
  square = block_sum(square);
  return square > 0 ? static_cast<float>(dot / square) : 0.0f;
}

template <int V>
int threads_for(const SparseGradient& grad) {
  return even_threads(ceil_div(std::max(grad.d_in, grad.d_out), V), kMaxThreads);
}

inline size_t shared_for(const SparseGradient& grad, bool whole_row) {
  return whole_row ? static_cast<size_t>(grad.d_out) * sizeof(float) : 0;
}

constexpr int kWide = 4;

inline bool on_wide_rows(const SparseGradient& grad) {
  return on_16_bytes(grad.x) && on_16_bytes(grad.g) && grad.d_in % kWide == 0 && grad.d_out % kWide == 0 &&
         grad.x_stride % kWide == 0 && grad.g_stride % kWide == 0;
}

// The types of weights and activations that a kernel is compiled for, and the columns a thread takes at a time.
template <typename Weight, typename Activation, int kColumns>
struct Shape {
  using W = Weight;
  using X = Activation;
  static constexpr int V = kColumns;
};

// run(shape) with the shape that fits.
template <typename Run>
cudaError_t with_shape(DType weights, DType activations, bool wide, const Run& run) {
  using Half = __nv_bfloat16;
  const bool narrow_w = weights == DType::bf16, narrow_x = activations == DType::bf16;
  if (!narrow_w && !narrow_x) return wide ? run(Shape<float, float, kWide>{}) : run(Shape<float, float, 1>{});
  if (!narrow_w) return wide ? run(Shape<float, Half, kWide>{}) : run(Shape<float, Half, 1>{});
  if (!narrow_x) return wide ? run(Shape<Half, float, kWide>{}) : run(Shape<Half, float, 1>{});
  return wide ? run(Shape<Half, Half, kWide>{}) : run(Shape<Half, Half, 1>{});
}

}  // namespace
}  // namespace pullback::cuda
