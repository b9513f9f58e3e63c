// Sharing work among the threads of torch's OpenMP runtime.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#  include <omp.h>
#endif

namespace pullback {

inline int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Below this many elementary operations a fork costs more than it saves.
constexpr int64_t fork_work = 1 << 15;

// Calls f(begin, end, thread) on pieces that cover [0, n). f must not throw, and what it computes for an item must not
// depend on the piece the item is in: then the result is the same for any number of threads.
template <class F>
void parallel_for(int64_t n, int64_t work, const F& f) {
  if (n <= 0) return;
#ifdef _OPENMP
  const int64_t threads = std::min<int64_t>(max_threads(), n);
  if (threads > 1 && work >= fork_work && !omp_in_parallel()) {
    const int64_t pieces = std::min(n, 8 * threads);
#  pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(threads))
    for (int64_t piece = 0; piece < pieces; ++piece)
      f(n / pieces * piece + std::min(piece, n % pieces), n / pieces * (piece + 1) + std::min(piece + 1, n % pieces),
        omp_get_thread_num());
    return;
  }
#endif
  (void)work;
  f(int64_t{0}, n, 0);
}

}  // namespace pullback
