#include "device.h"
#include "select.h"

namespace pullback::cuda {
namespace {

// The k-th largest of k or more group maxima bounds the k-th largest element from below, so that only groups which
// reach it need a second look: a row is read once, and again where the winners are. What is left fits in shared memory
// and is settled exactly there. Rows with more ties than that are settled digit by digit over the whole row.

// Small blocks: between its two readings a row goes through short phases that wait for each other, and other rows have
// to fill the gaps.
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kBinBits = 7;
constexpr int kBins = 1 << kBinBits;
static_assert(kBins == kThreads, "a bin a thread");
constexpr int kInFlight = 4;            // wide loads a thread requests before it uses the first
constexpr int kWidestGroupBits = 6;     // 64 columns, as given maxima have them
constexpr int kNarrowestGroupBits = 3;  // the most elements of one wide load

// Keys order as values do, with one key for both zeros and one, the largest, for NaN. No element has key 0. What a
// 16-bit float leaves at zero when widened is cut off, so that there are fewer digits to look at.
template <typename T>
constexpr int kUnused = 0;
template <>
constexpr int kUnused<__nv_bfloat16> = 16;
template <>
constexpr int kUnused<__half> = 13;
template <typename T>
constexpr uint32_t kLargestKey = 0xFFFFFFFF >> kUnused<T>;

template <typename T>
__device__ uint32_t key_of_wide(float x) {
  const uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
  const uint32_t key = x != x ? 0xFFFFFFFF : bits >> 31 ? ~bits : bits | 0x80000000;
  return key >> kUnused<T>;
}

template <typename T>
__device__ uint32_t key_of(T x) {
  return key_of_wide<T>(widen(x));
}

__device__ inline void set_zero(float& x) { x = 0; }
__device__ inline void set_zero(__nv_bfloat16& x) { x = __ushort_as_bfloat16(0); }
__device__ inline void set_zero(__half& x) { x = __ushort_as_half(0); }

// Where the k-th largest key is known to lie: between low and high, with `above` keys larger than high.
struct Range {
  uint32_t low, high;
  int64_t above;
};

// Narrows the range to one of 128 parts of it. for_each(visit) has every thread visit its share of the keys.
template <typename ForEach>
__device__ Range narrow_range(const Range range, int64_t k, const ForEach& for_each) {
  __shared__ int bins[kBins];
  __shared__ Range narrowed;
  const int thread = static_cast<int>(threadIdx.x);
  const int width = 32 - __clz(range.high - range.low);  // bits that differ
  const int shift = width > kBinBits ? width - kBinBits : 0;
  bins[thread] = 0;
  __syncthreads();
  for_each([&](uint32_t key) {
    if (key >= range.low && key <= range.high) atomicAdd(&bins[(key - range.low) >> shift], 1);
  });
  __syncthreads();
  const int bin = kBins - 1 - thread;  // from the top
  const int count = bins[bin];
  const int64_t above = range.above + block_scan(count).before;
  if (above < k && above + count >= k) {
    const uint32_t low = range.low + (static_cast<uint32_t>(bin) << shift);
    const uint32_t others = (1u << shift) - 1;  // of the same bin; low + others may not fit 32 bits
    narrowed = {low, range.high - low < others ? range.high : low + others, above};
  }
  __syncthreads();
  return narrowed;
}

template <typename ForEach>
__device__ Range find_kth(Range range, int64_t k, const ForEach& for_each) {
  while (range.low < range.high) range = narrow_range(range, k, for_each);
  return range;
}

// The row's candidates, in ascending order of id: the entries of the old best, then the columns of h.
template <typename Element>
struct Row {
  const Element* h;
  Element* values;
  int32_t* indices;
  int64_t columns, filled, first_id, k;
  bool relu;

  __device__ Row(const TopkSelect& job, int64_t n)
      : h(static_cast<const Element*>(job.h) + n * job.h_stride),
        values(static_cast<Element*>(job.values) + n * job.k),
        indices(job.indices + n * job.k),
        columns(job.columns),
        filled(job.filled),
        first_id(job.first_id),
        k(job.k),
        relu(job.relu) {}

  __device__ int64_t size() const { return filled + columns; }
  __device__ Element value(int64_t i) const { return i < filled ? values[i] : h[i - filled]; }
  __device__ uint32_t key(int64_t i) const { return key_of(value(i)); }

  // Writes the k winners among `count` candidates: all keys above the k-th, and as many equal ones as there is room
  // for, from the lowest id on. The old best may be overwritten: a round reads before it writes, and never writes
  // ahead.
  template <typename KeyAt, typename SourceAt>
  __device__ void write(const Range kth, int64_t count, const KeyAt& key_at, const SourceAt& source_at) const {
    const int64_t room_for_equal = k - kth.above;
    int64_t larger_before = 0, equal_before = 0;
    for (int64_t first = 0; first < count; first += kThreads) {
      const int64_t i = first + threadIdx.x;
      const uint32_t key = i < count ? key_at(i) : 0;
      const bool larger = i < count && key > kth.high, equal = i < count && key == kth.high;
      Element value;
      set_zero(value);
      int32_t id = 0;
      if (larger || equal) {
        const int64_t source = source_at(i);
        value = this->value(source);
        id = source < filled ? indices[source] : static_cast<int32_t>(first_id + source - filled);
        if (relu && widen(value) <= 0) set_zero(value);
      }
      const Scan scan = block_scan((larger ? 1 : 0) + (equal ? 1 << 16 : 0));  // two counts in one scan
      const int64_t larger_at = larger_before + (scan.before & 0xFFFF), equal_at = equal_before + (scan.before >> 16);
      if (larger || (equal && equal_at < room_for_equal)) {
        const int64_t to = larger_at + (equal_at < room_for_equal ? equal_at : room_for_equal);
        values[to] = value;
        indices[to] = id;
      }
      larger_before += scan.total & 0xFFFF;
      equal_before += scan.total >> 16;
      if (larger_before + equal_before >= k && larger_before == kth.above) return;  // only smaller ones follow
    }
  }
};

// Key of the largest element of each 2^group_bits columns. A wide load of V elements stays within one group.
template <typename Element, int V, bool kAligned>
__device__ void find_maxima(const Row<Element>& row, int group_bits, uint32_t* maxima, int64_t groups) {
  const int lanes = (1 << group_bits) / V, lane_bits = __ffs(lanes) - 1;  // lanes that share a group
  const auto packs = static_cast<unsigned>(groups * lanes), columns = static_cast<unsigned>(row.columns);
  constexpr int kRounds = kAligned ? kInFlight : 1;
  // Whole warps, so that the lanes of a group meet in the shuffles.
  for (unsigned first = 0; first < packs; first += kRounds * kThreads) {
    Pack<Element, V> x[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const unsigned column = (first + i * kThreads + threadIdx.x) * V;
      if (kAligned && column + V <= columns) {
        x[i] = load<V>(row.h + column);
      } else {  // beyond the end the last element repeats: it is in the last group anyway
#pragma unroll
        for (int v = 0; v < V; ++v) {
          x[i].lane[v] = row.h[column + v < columns ? column + v : columns - 1];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const unsigned pack = first + i * kThreads + threadIdx.x;
      float largest = -INFINITY;
      bool any_nan = false;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float wide = widen(x[i].lane[v]);
        largest = fmaxf(largest, wide);  // passes over NaN
        any_nan |= wide != wide;
      }
      uint32_t key = any_nan ? kLargestKey<Element> : key_of_wide<Element>(largest);
      for (int across = lanes / 2; across > 0; across /= 2) {
        const uint32_t other = __shfl_xor_sync(kFullWarp, key, across);
        if (other > key) key = other;
      }
      if (pack < packs && (pack & (lanes - 1)) == 0) maxima[pack >> lane_bits] = key;
    }
  }
}

// Candidates in shared memory.
struct Candidates {
  uint32_t* keys;
  int32_t* sources;
  int capacity;
};

// Collects, in order, the columns whose key is at least `bound` from the listed groups, behind `taken` candidates that
// are there already. Returns how many candidates there are, or -1 if they do not fit.
template <typename Element>
__device__ int collect(const Row<Element>& row, int group_bits, const int32_t* listed, int n_listed, uint32_t bound,
                       int taken, const Candidates& candidates) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int share = (n_listed + kWarps - 1) / kWarps;
  const int64_t begin = static_cast<int64_t>(warp) * share << group_bits;
  const int64_t last = static_cast<int64_t>(n_listed < (warp + 1) * share ? n_listed : (warp + 1) * share)
                       << group_bits;
  // 32 elements of the listed groups a round, in the order of their columns.
  const auto column_of = [&](int64_t element) {
    return (static_cast<int64_t>(listed[element >> group_bits]) << group_bits) + (element & ((1 << group_bits) - 1));
  };
  const auto key_at = [&](int64_t element) -> uint32_t {
    if (element >= last) return 0;
    const int64_t column = column_of(element);
    return column < row.columns ? key_of(row.h[column]) : 0;
  };
  int found = 0;  // of this warp
#pragma unroll 4
  for (int64_t first = begin; first < last; first += 32) {
    const uint32_t key = key_at(first + lane);
    found += __popc(__ballot_sync(kFullWarp, key != 0 && key >= bound));
  }
  const Scan scan = block_scan(lane == 0 ? found : 0);
  if (taken + scan.total > candidates.capacity) return -1;
  int to = taken + __shfl_sync(kFullWarp, scan.before, 0);
  for (int64_t first = begin; first < last; first += 32) {  // from cache
    const uint32_t key = key_at(first + lane);
    const bool reaches = key != 0 && key >= bound;
    const unsigned reaching = __ballot_sync(kFullWarp, reaches);
    if (reaches) {
      const int slot = to + __popc(reaching & ((1u << lane) - 1));
      candidates.keys[slot] = key;
      candidates.sources[slot] = static_cast<int32_t>(row.filled + column_of(first + lane));
    }
    to += __popc(reaching);
  }
  __syncthreads();
  return taken + scan.total;
}

// Lists, in order, the groups whose maximum is at least `bound`. Returns how many, or -1 if they do not fit.
__device__ inline int list_groups(const uint32_t* maxima, int64_t groups, uint32_t bound, int32_t* listed,
                                  int capacity) {
  const int64_t share = (groups + kThreads - 1) / kThreads;
  const int64_t begin = threadIdx.x * share, end = begin + share < groups ? begin + share : groups;
  int reaching = 0;
  for (int64_t g = begin; g < end; ++g) reaching += maxima[g] >= bound;
  const Scan scan = block_scan(reaching);
  if (scan.total > capacity) return -1;
  int to = scan.before;
  for (int64_t g = begin; g < end; ++g) {
    if (maxima[g] >= bound) listed[to++] = static_cast<int32_t>(g);
  }
  __syncthreads();
  return scan.total;
}

// The smallest key that can still win, from the old best and the maxima.
template <typename Element>
__device__ Range bound_kth(const Row<Element>& row, const uint32_t* maxima, int64_t groups) {
  uint32_t low = 0xFFFFFFFF, high = 0;
  for (int64_t g = threadIdx.x; g < groups; g += kThreads) {
    low = maxima[g] < low ? maxima[g] : low;
    high = maxima[g] > high ? maxima[g] : high;
  }
  uint32_t old_low = 0xFFFFFFFF;
  for (int64_t i = threadIdx.x; i < row.filled; i += kThreads) {
    const uint32_t key = row.key(i);
    old_low = key < old_low ? key : old_low;
    high = key > high ? key : high;
  }
  __shared__ uint32_t lows[kWarps], old_lows[kWarps], highs[kWarps];
#pragma unroll
  for (int across = 16; across > 0; across /= 2) {
    const uint32_t a = __shfl_xor_sync(kFullWarp, low, across), b = __shfl_xor_sync(kFullWarp, old_low, across);
    const uint32_t c = __shfl_xor_sync(kFullWarp, high, across);
    low = a < low ? a : low;
    old_low = b < old_low ? b : old_low;
    high = c > high ? c : high;
  }
  if (threadIdx.x % 32 == 0) {
    lows[threadIdx.x / 32] = low;
    old_lows[threadIdx.x / 32] = old_low;
    highs[threadIdx.x / 32] = high;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    low = lows[warp] < low ? lows[warp] : low;
    old_low = old_lows[warp] < old_low ? old_lows[warp] : old_low;
    high = highs[warp] > high ? highs[warp] : high;
  }
  uint32_t bound = 0;
  if (groups >= row.k && low < high) {
    // Exactness is for later: one narrowing leaves a bound that few elements more than k reach.
    bound = narrow_range({low, high, 0}, row.k, [&](auto&& visit) {
              for (int64_t g = threadIdx.x; g < groups; g += kThreads) visit(maxima[g]);
            }).low;
  } else if (groups >= row.k) {
    bound = low;
  }
  // A new column only beats the smallest of a full old best by being larger: its id is higher.
  if (row.filled == row.k && old_low >= bound) bound = old_low == kLargestKey<Element> ? old_low : old_low + 1;
  return {bound, high, 0};
}

template <typename Element, int V, bool kAligned>
__global__ void __launch_bounds__(kThreads, 8)
    select_rows(const TopkSelect job, int group_bits, int64_t groups, int capacity) {
  uint32_t* maxima = dynamic_shared<uint32_t>();  // [groups]
  const Candidates candidates{maxima + groups,    // [capacity]
                              reinterpret_cast<int32_t*>(maxima + groups + capacity), capacity};
  int32_t* listed = reinterpret_cast<int32_t*>(maxima + groups + 2 * capacity);  // [capacity]
  const Row<Element> row(job, blockIdx.x);

  int count = -1;
  Range range{0, kLargestKey<Element>, 0};
  if (row.size() <= capacity) {
    count = static_cast<int>(row.size());
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      candidates.keys[i] = row.key(i);
      candidates.sources[i] = i;
    }
    __syncthreads();
  } else if (groups > 0) {
    if (job.maxima == nullptr) {
      find_maxima<Element, V, kAligned>(row, group_bits, maxima, groups);
    } else {
      const auto* given = static_cast<const Element*>(job.maxima) + blockIdx.x * job.maxima_stride;
      for (int64_t g = threadIdx.x; g < groups; g += kThreads) maxima[g] = key_of(given[g]);
    }
    __syncthreads();
    const Range bound = bound_kth(row, maxima, groups);
    const int n_listed = list_groups(maxima, groups, bound.low, listed, capacity);
    if (n_listed >= 0) {
      for (int64_t i = threadIdx.x; i < row.filled; i += kThreads) {
        candidates.keys[i] = row.key(i);
        candidates.sources[i] = static_cast<int32_t>(i);
      }
      count = collect(row, group_bits, listed, n_listed, bound.low, static_cast<int>(row.filled), candidates);
      // Maxima that are not those of h, as after another rounding, must cost time and not the answer.
      if (count < row.k) count = -1;
      range = {bound.low > 0 ? bound.low - 1 : 0, job.maxima == nullptr ? bound.high : kLargestKey<Element>, 0};
    }
  }

  if (count >= 0) {
    const auto key_at = [&](int64_t i) { return candidates.keys[i]; };
    const Range kth = find_kth(range, row.k, [&](auto&& visit) {
      for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) visit(key_at(i));
    });
    row.write(kth, count, key_at, [&](int64_t i) -> int64_t { return candidates.sources[i]; });
  } else {
    const Range kth = find_kth({0, kLargestKey<Element>, 0}, row.k, [&](auto&& visit) {
      for (int64_t i = threadIdx.x; i < row.size(); i += kThreads) visit(row.key(i));
    });
    row.write(kth, row.size(), [&](int64_t i) { return row.key(i); }, [](int64_t i) { return i; });
  }
}

constexpr size_t kMostGroupBytes = 128 << 10;

template <typename Element>
cudaError_t launch_widest(const TopkSelect& job, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(Element);
  // Room for what usually reaches the bound, without keeping other blocks off the processor.
  const int capacity = static_cast<int>(std::clamp<int64_t>(job.filled + 3 * job.k, 1024, 4096));
  // Maxima of at least 2k groups, so that their k-th largest is a tight bound.
  int group_bits = kWidestGroupBits;
  if (job.maxima == nullptr) {
    while (group_bits > kNarrowestGroupBits && ceil_div(job.columns, 1 << group_bits) < 2 * job.k) --group_bits;
  }
  int64_t groups = ceil_div(job.columns, 1 << group_bits);
  const bool useful = groups >= job.k || job.filled == job.k;
  if (job.k > capacity || !useful || groups * sizeof(uint32_t) > kMostGroupBytes) groups = 0;
  const size_t shared = (groups + 3 * static_cast<int64_t>(capacity)) * sizeof(uint32_t);
  const bool aligned = on_16_bytes(job.h) && job.h_stride % V == 0;
  return launch(aligned ? select_rows<Element, V, true> : select_rows<Element, V, false>, blocks(job.n), kThreads,
                shared, stream, job, group_bits, groups, capacity);
}

}  // namespace

cudaError_t topk_select(const TopkSelect& job, cudaStream_t stream) {
  if (job.n == 0) return cudaSuccess;
  return by_element(job.dtype, [&](auto zero) { return launch_widest<decltype(zero)>(job, stream); });
}

}  // namespace pullback::cuda
