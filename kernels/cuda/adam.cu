#include "gradient_rows.h"

namespace pullback::cuda {
namespace {

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

// Asks for what a block will change of a row, a line of 128 bytes a thread.
template <typename W>
__device__ void prefetch_row(const void* p, const void* m, const void* v, int64_t first, int64_t d) {
  for (int64_t i = threadIdx.x * 32; i < d; i += blockDim.x * 32) {
    if (sizeof(W) == 4 || i % 64 == 0) prefetch(static_cast<const W*>(p) + first + i);
    prefetch(static_cast<const float*>(m) + first + i);
    prefetch(static_cast<const float*>(v) + first + i);
  }
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
  // Weights and moments come from far; the entries, and the rows of x and g that they name, are found meanwhile.
  const DictionaryRows &params = job.params, &first = job.exp_avg, &second = job.exp_avg_sq;
  prefetch_row<W>(params.W_enc, first.W_enc, second.W_enc, f * grad.d_in, grad.d_in);
  prefetch_row<W>(params.W_dec, first.W_dec, second.W_dec, f * grad.d_out, grad.d_out);
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
  const double shrink = square > 0 ? 1 / sqrt(square) : 1;  // infinite in float32 where the norm is subnormal
  for (int64_t column = thread * V; column < grad.d_out; column += step) {
    float updated[V];
#pragma unroll
    for (int i = 0; i < V; ++i) updated[i] = static_cast<float>(row[column + i] * shrink);
    store_narrow<V>(p + column, updated);
  }
}

template <typename S>
cudaError_t launch_job(const AdamStep& job, cudaStream_t stream) {
  const SparseGradient& grad = job.gradient;
  if (grad.n_features == 0) return cudaSuccess;
  if (const auto error = sum_whole_chunks(grad, S::V > 1, stream)) return error;
  if (const auto error = launch(adam_constants, blocks(1), 32, 0, stream, job)) return error;
  return launch(adam_features<typename S::W, typename S::X, S::V>, blocks(grad.n_features), threads_for<S::V>(grad),
                shared_for(grad, job.remove_parallel || job.unit_norm), stream, job);
}

bool on_wide_rows(const DictionaryRows& rows) { return on_16_bytes(rows.W_enc) && on_16_bytes(rows.W_dec); }

bool on_wide_rows(const AdamStep& job) {
  return on_wide_rows(job.gradient) && on_wide_rows(job.params) && on_wide_rows(job.exp_avg) &&
         on_wide_rows(job.exp_avg_sq);
}

}  // namespace

cudaError_t adam(const AdamStep& job, cudaStream_t stream) {
  return with_shape(job.W_dtype, job.gradient.dtype, on_wide_rows(job),
                    [&](auto shape) { return launch_job<decltype(shape)>(job, stream); });
}

}  // namespace pullback::cuda
