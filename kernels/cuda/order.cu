#include "device.h"
#include "order.h"

namespace pullback::cuda {
namespace {

// A radix sort from the lowest digit: each pass counts the digits of every tile, turns the counts into places, and
// moves the entries there in order. Places come from scans and never from who is first, so the sort is stable and
// repeatable.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRounds = 8;                 // entries of a thread
constexpr int kTile = kThreads * kRounds;  // entries of a block
constexpr int kWarpSpan = 32 * kRounds;    // consecutive entries of a warp
constexpr int kDigitBits = 8;              // at most: a digit a thread
constexpr int kDigits = 1 << kDigitBits;

struct Pass {
  const int32_t* ids;       // keys of the first pass, checked as they are read; null later
  const int32_t* keys_in;   // [nnz], keys of later passes
  const int32_t* order_in;  // [nnz], null in the first pass: entries stand in their own order
  int32_t* keys_out;        // [nnz]
  int32_t* order_out;       // [nnz]
  int32_t* places;          // [kDigits, tiles]: counts, then places within the digit
  int32_t* digit_totals;    // [kDigits]
  int64_t nnz;
  int32_t n_features;
  int shift, bits;
  int32_t tiles;

  // An id that is no feature sorts behind all features.
  __device__ int32_t key(int64_t e) const {
    if (ids == nullptr) return keys_in[e];
    const int32_t id = ids[e];
    return id >= 0 && id < n_features ? id : n_features;
  }
  __device__ int digit(int32_t key) const { return (key >> shift) & ((1 << bits) - 1); }
};

__global__ void __launch_bounds__(kThreads) count_digits(const Pass pass) {
  __shared__ int32_t count[kDigits];
  const int thread = static_cast<int>(threadIdx.x);
  count[thread] = 0;
  __syncthreads();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int64_t e = first + round * kThreads + thread;
    if (e < pass.nnz) atomicAdd(&count[pass.digit(pass.key(e))], 1);
  }
  __syncthreads();
  pass.places[static_cast<int64_t>(thread) * pass.tiles + blockIdx.x] = count[thread];
}

// One block a digit: counts of the tiles become places within the digit.
__global__ void __launch_bounds__(kThreads) place_tiles(const Pass pass) {
  int32_t* places = pass.places + static_cast<int64_t>(blockIdx.x) * pass.tiles;
  int32_t placed = 0;
  for (int64_t first = 0; first < pass.tiles; first += kThreads) {
    const int64_t tile = first + threadIdx.x;
    const Scan scan = block_scan(tile < pass.tiles ? places[tile] : 0);
    if (tile < pass.tiles) places[tile] = placed + scan.before;
    placed += scan.total;
  }
  if (threadIdx.x == 0) pass.digit_totals[blockIdx.x] = placed;
}

__global__ void __launch_bounds__(kThreads) move_entries(const Pass pass) {
  __shared__ int32_t place[kWarps][kDigits];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  for (int i = thread; i < kWarps * kDigits; i += kThreads) place[i / kDigits][i % kDigits] = 0;
  __syncthreads();

  // Each warp ranks its own stretch of the tile, 32 consecutive entries a round.
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile + warp * kWarpSpan + lane;
  int32_t key[kRounds], rank[kRounds];
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int64_t e = first + round * 32;
    key[round] = e < pass.nnz ? pass.key(e) : 0;
  }
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const bool real = first + round * 32 < pass.nnz;
    const int digit = real ? pass.digit(key[round]) : kDigits;  // no entry shares it
    const unsigned equal = __match_any_sync(kFullWarp, digit);
    const int before = __popc(equal & ((1u << lane) - 1));
    rank[round] = before + (real ? place[warp][digit] : 0);
    __syncwarp();
    if (real && before == 0) place[warp][digit] += __popc(equal);
    __syncwarp();
  }
  __syncthreads();

  // Thread = digit: counts of the warps become places in the whole array.
  const int64_t total = thread < 1 << pass.bits ? pass.digit_totals[thread] : 0;
  const Scan digits = block_scan(static_cast<int>(total));
  if (thread < 1 << pass.bits) {
    int32_t next = digits.before + pass.places[static_cast<int64_t>(thread) * pass.tiles + blockIdx.x];
    for (int w = 0; w < kWarps; ++w) {
      const int32_t count = place[w][thread];
      place[w][thread] = next;
      next += count;
    }
  }
  __syncthreads();

#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int64_t e = first + round * 32;
    if (e >= pass.nnz) continue;
    const int64_t to = static_cast<int64_t>(place[warp][pass.digit(key[round])]) + rank[round];
    pass.keys_out[to] = key[round];
    pass.order_out[to] = pass.order_in == nullptr ? static_cast<int32_t>(e) : pass.order_in[e];
  }
}

// starts[f] = the number of keys below f. A search a feature keeps long runs of empty features from one thread.
__global__ void __launch_bounds__(kThreads)
    find_starts(const int32_t* __restrict__ sorted, int64_t nnz, int64_t* __restrict__ starts, int64_t n_features) {
  const int64_t f = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (f > n_features) return;
  int64_t low = 0, high = nnz;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < f) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[f] = low;
}

}  // namespace

// Two buffers of keys, one of positions, and the places.
int64_t feature_order_scratch(int64_t nnz) { return 3 * nnz + kDigits * (ceil_div(nnz, kTile) + 1); }

cudaError_t feature_order(const FeatureOrder& job, cudaStream_t stream) {
  const int64_t nnz = job.nnz;
  const auto tiles = static_cast<int32_t>(ceil_div(nnz, kTile));
  int32_t* keys[2] = {job.scratch, job.scratch + nnz};
  int32_t* other_order = job.scratch + 2 * nnz;
  int32_t* places = job.scratch + 3 * nnz;

  int key_bits = 1;
  while (job.n_features >> key_bits) ++key_bits;
  const int passes = static_cast<int>(ceil_div(key_bits, kDigitBits));
  const int bits = static_cast<int>(ceil_div(key_bits, passes));
  const int32_t* sorted = nullptr;
  for (int p = 0; p < passes && nnz > 0; ++p) {
    const bool into_result = (passes - 1 - p) % 2 == 0;
    const Pass pass{p == 0 ? job.indices : nullptr,
                    sorted,
                    p == 0        ? nullptr
                    : into_result ? other_order
                                  : job.order,
                    keys[p % 2],
                    into_result ? job.order : other_order,
                    places,
                    places + static_cast<int64_t>(kDigits) * tiles,
                    nnz,
                    static_cast<int32_t>(job.n_features),
                    p * bits,
                    bits,
                    tiles};
    if (const auto error = launch(count_digits, blocks(tiles), kThreads, 0, stream, pass)) return error;
    if (const auto error = launch(place_tiles, blocks(1 << bits), kThreads, 0, stream, pass)) return error;
    if (const auto error = launch(move_entries, blocks(tiles), kThreads, 0, stream, pass)) return error;
    sorted = pass.keys_out;
  }
  return launch(find_starts, blocks(ceil_div(job.n_features + 1, kThreads)), kThreads, 0, stream, sorted, nnz,
                job.starts, job.n_features);
}

}  // namespace pullback::cuda
