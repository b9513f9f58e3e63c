// Sharing work among the threads of torch's OpenMP runtime.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

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

// Memory of its own for each thread, aligned to a cache line.
class ThreadScratch {
 public:
  explicit ThreadScratch(int64_t bytes)
      : size_((bytes + line - 1) / line * line), memory_(new char[size_ * max_threads() + line]) {}

  void* of(int thread) const {
    const auto begin = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (line - begin % line) + thread * size_;
  }

 private:
  static constexpr int64_t line = 64;
  int64_t size_;
  std::unique_ptr<char[]> memory_;
};

// Calls f(step, column, thread) for every step of every column, those of a column in order. Threads take the columns of
// a step as they come, and go on to the next step while others are still at it.
template <class F>
void parallel_steps(int64_t steps, int64_t columns, const F& f) {
  const std::unique_ptr<std::atomic<int64_t>[]> done(new std::atomic<int64_t>[columns]());
  std::atomic<int64_t> next{0};
  const auto work = [&](int thread) {
    for (int64_t i; (i = next.fetch_add(1)) < steps * columns;) {
      const int64_t step = i / columns, column = i % columns;
      while (done[column].load(std::memory_order_acquire) < step) std::this_thread::yield();
      f(step, column, thread);
      done[column].store(step + 1, std::memory_order_release);
    }
  };
#ifdef _OPENMP
  const int64_t threads = std::min<int64_t>(max_threads(), columns);
  if (threads > 1 && !omp_in_parallel()) {
#  pragma omp parallel num_threads(static_cast<int>(threads))
    work(omp_get_thread_num());
    return;
  }
#endif
  work(0);
}

}  // namespace pullback
