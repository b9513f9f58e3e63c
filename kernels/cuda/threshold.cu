#include "device.h"
#include "threshold.h"

namespace pullback::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;

template <typename T, int V>
struct Kept {
  Pack<T, V> h;
  unsigned keep;  // a bit an element

  __device__ Kept(const ThresholdRows& job, int64_t column) : keep(0) {
    if (column >= job.columns) return;
    h = load<V>(static_cast<const T*>(job.h) + blockIdx.x * job.h_stride + column);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float wide = widen(h.lane[v]);
      const float theta = job.theta == nullptr ? 0.0f : job.theta[column + v];
      if ((wide > theta || wide != wide) && wide != 0) keep |= 1u << v;
    }
  }
};

// One block a row: indptr[n + 1] = how many elements row n keeps.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 4) count_rows(const ThresholdRows job) {
  int count = 0;
#pragma unroll 4
  for (int64_t column = threadIdx.x * V; column < job.columns; column += kThreads * V) {
    count += __popc(Kept<T, V>(job, column).keep);
  }
  count = block_sum(count);
  if (threadIdx.x == 0) job.indptr[blockIdx.x + int64_t{1}] = count;
}

// One block: counts become row pointers.
__global__ void __launch_bounds__(kScanThreads) add_up(int64_t* indptr, int64_t n) {
  int64_t before = 0;
  for (int64_t first = 0; first < n; first += kScanThreads) {
    const int64_t row = first + threadIdx.x;
    // A thousand counts of up to 2^31 would overflow a scan: their low and high halves go separately.
    const int64_t count = row < n ? indptr[row + 1] : 0;
    const Scan low = block_scan(static_cast<int>(count & 0xFFFF)), high = block_scan(static_cast<int>(count >> 16));
    if (row < n) indptr[row + 1] = before + low.before + (static_cast<int64_t>(high.before) << 16) + count;
    before += low.total + (static_cast<int64_t>(high.total) << 16);
  }
  if (threadIdx.x == 0) indptr[0] = 0;
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 4) compact_rows(const ThresholdRows job) {
  int64_t to = job.indptr[blockIdx.x];
  T* values = static_cast<T*>(job.values);
  for (int64_t first = 0; first < job.columns; first += kThreads * V) {
    const int64_t column = first + threadIdx.x * V;
    const Kept<T, V> kept(job, column);
    const Scan scan = block_scan(__popc(kept.keep));
    int64_t place = to + scan.before;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!(kept.keep >> v & 1) || place >= job.capacity) continue;
      job.indices[place] = static_cast<int32_t>(column + v);
      values[place] = kept.h.lane[v];
      ++place;
    }
    to += scan.total;
  }
}

template <typename T>
bool on_wide_rows(const ThresholdRows& job) {
  constexpr int V = 16 / sizeof(T);
  return on_16_bytes(job.h) && job.h_stride % V == 0 && job.columns % V == 0;
}

template <typename T>
cudaError_t launch_count(const ThresholdRows& job, cudaStream_t stream) {
  const auto kernel = on_wide_rows<T>(job) ? count_rows<T, 16 / sizeof(T)> : count_rows<T, 1>;
  if (job.n > 0) {
    if (const auto error = launch(kernel, blocks(job.n), kThreads, 0, stream, job)) return error;
  }
  return launch(add_up, blocks(1), kScanThreads, 0, stream, job.indptr, job.n);
}

template <typename T>
cudaError_t launch_compact(const ThresholdRows& job, cudaStream_t stream) {
  const auto kernel = on_wide_rows<T>(job) ? compact_rows<T, 16 / sizeof(T)> : compact_rows<T, 1>;
  return job.n == 0 ? cudaSuccess : launch(kernel, blocks(job.n), kThreads, 0, stream, job);
}

}  // namespace

cudaError_t threshold_count(const ThresholdRows& job, cudaStream_t stream) {
  return by_element(job.dtype, [&](auto zero) { return launch_count<decltype(zero)>(job, stream); });
}

cudaError_t threshold_compact(const ThresholdRows& job, cudaStream_t stream) {
  return by_element(job.dtype, [&](auto zero) { return launch_compact<decltype(zero)>(job, stream); });
}

}  // namespace pullback::cuda
