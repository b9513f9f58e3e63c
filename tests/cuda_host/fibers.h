// Runs the threads of a CUDA block as fibers on one CPU thread, so that kernels can be tested where there is no GPU.
// Barriers and warp collectives really rendezvous: a thread waits in them until all others have come to the same line.
// Threads that can never meet are an error, and blocks and threads run in a shuffled order, to show what should not
// depend on it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace fibers {

constexpr size_t kStackBytes = 128 << 10;
constexpr int kWarp = 32;

enum class State { ready, at_barrier, at_collective, done };

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t context;
  jmp_buf resume_point;
  bool started;
  State state;
  const char* name;  // what it waits in: operation and line
  int line;
  unsigned mask;
  uint64_t posted;
  uint64_t seen[kWarp];
};

inline std::vector<std::unique_ptr<Fiber>> pool;  // one a thread of the block
inline Fiber* current = nullptr;
inline ucontext_t scheduler_context;
inline jmp_buf scheduler_point;
inline std::function<void()> body;
inline std::mt19937 shuffler{1};
inline unsigned char* dynamic_shared = nullptr;

// swapcontext asks the kernel for the signal mask each time, which longjmp does not; a sanitizer knows only the former.
#ifdef __SANITIZE_ADDRESS__
inline void enter(Fiber& fiber) { swapcontext(&scheduler_context, &fiber.context); }
inline void leave() { swapcontext(&current->context, &scheduler_context); }
#else
[[gnu::noinline]] inline void enter(Fiber& fiber) {
  if (_setjmp(scheduler_point) != 0) return;
  if (fiber.started) _longjmp(fiber.resume_point, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}
[[gnu::noinline]] inline void leave() {
  if (_setjmp(current->resume_point) == 0) _longjmp(scheduler_point, 1);
}
#endif

inline void run_body() {
  body();
  current->state = State::done;
  leave();
}

inline void wait(State state, const char* name, int line, unsigned mask, uint64_t value) {
  current->state = state;
  current->name = name;
  current->line = line;
  current->mask = mask;
  current->posted = value;
  leave();
}

inline std::string describe(size_t thread) {
  const Fiber& fiber = *pool[thread];
  if (fiber.state == State::done) return "thread " + std::to_string(thread) + " has ended";
  char mask[16];
  std::snprintf(mask, sizeof mask, "%08x", fiber.mask);
  return "thread " + std::to_string(thread) + " waits in " + fiber.name + " at line " + std::to_string(fiber.line) +
         (fiber.state == State::at_collective ? std::string(" with mask ") + mask : "");
}

// Lets the lanes go on that wait in one collective if all of its mask are there; says whether it did.
inline bool release_warp(size_t first, size_t lanes) {
  bool released = false;
  for (size_t lane = 0; lane < lanes; ++lane) {
    const Fiber& asker = *pool[first + lane];
    if (asker.state != State::at_collective) continue;
    if (lanes < kWarp && asker.mask >> lanes) continue;  // the mask names lanes that do not exist
    if (!(asker.mask >> lane & 1)) throw std::runtime_error("lane outside of its own mask: " + describe(first + lane));
    const auto met = [&](size_t other) {
      const Fiber& fiber = *pool[first + other];
      return fiber.state == State::at_collective && fiber.line == asker.line && fiber.name == asker.name &&
             fiber.mask == asker.mask;
    };
    const unsigned mask = asker.mask;
    bool all = true;
    for (size_t other = 0; other < lanes; ++other) all = all && (!(mask >> other & 1) || met(other));
    if (!all) continue;
    for (size_t to = 0; to < lanes; ++to) {
      if (!(mask >> to & 1)) continue;
      for (size_t from = 0; from < lanes; ++from) pool[first + to]->seen[from] = pool[first + from]->posted;
      pool[first + to]->state = State::ready;
    }
    released = true;
  }
  return released;
}

inline bool release_block(size_t threads) {
  const Fiber& asker = *pool[0];
  for (size_t t = 0; t < threads; ++t) {
    const Fiber& fiber = *pool[t];
    if (fiber.state != State::at_barrier || fiber.line != asker.line) return false;
  }
  for (size_t t = 0; t < threads; ++t) pool[t]->state = State::ready;
  return true;
}

[[gnu::noinline]] inline void prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_body, 0);
  fiber.started = false;
  fiber.state = State::ready;
}

inline void run_block(size_t threads) {
  for (size_t t = 0; t < threads; ++t) prepare(*pool[t]);
  std::vector<size_t> order(threads);
  std::iota(order.begin(), order.end(), 0);
  for (size_t done = 0; done < threads;) {
    std::shuffle(order.begin(), order.end(), shuffler);
    for (const size_t t : order) {
      if (pool[t]->state != State::ready) continue;
      current = pool[t].get();
      threadIdx = dim3(static_cast<unsigned>(t), 0, 0);
      enter(*current);
      done += current->state == State::done;
    }
    bool released = false;
    for (size_t first = 0; first < threads; first += kWarp) {
      released |= release_warp(first, std::min<size_t>(kWarp, threads - first));
    }
    if (released || done == threads || release_block(threads)) continue;
    const auto stuck = std::find_if(order.begin(), order.end(), [](size_t t) { return pool[t]->state != State::done; });
    const auto other = std::find_if(order.begin(), order.end(), [&](size_t t) {
      return pool[t]->state == State::done || pool[t]->line != pool[*stuck]->line;
    });
    throw std::runtime_error("threads of a block never meet: " + describe(*stuck) +
                             (other == order.end() ? "" : ", but " + describe(*other)));
  }
}

// What <<<grid, block, shared_bytes>>> does.
inline void launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel) {
  if (block.y != 1 || block.z != 1) throw std::runtime_error("the host harness runs one-dimensional blocks");
  const size_t threads = block.x, blocks = size_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || blocks == 0) throw std::runtime_error("impossible launch configuration");
  while (pool.size() < threads) pool.push_back(std::make_unique<Fiber>());
  body = std::move(kernel);
  blockDim = block;
  gridDim = grid;
  std::vector<size_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), shuffler);
  for (const size_t b : order) {
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    // Fresh and exact, so that a sanitizer sees every step beyond it; filled, because a GPU promises no zeros.
    const auto shared = std::make_unique<unsigned char[]>(shared_bytes);
    std::memset(shared.get(), 0xCD, shared_bytes);
    dynamic_shared = shared.get();
    run_block(threads);
  }
}

// ---- what a kernel calls ----

inline void barrier(int line) { wait(State::at_barrier, "__syncthreads", line, 0, 0); }

template <typename T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <typename T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }

inline const uint64_t* collective(const char* name, int line, unsigned mask, uint64_t value) {
  wait(State::at_collective, name, line, mask, value);
  return current->seen;
}

template <typename T>
T shuffle(const char* name, int line, unsigned mask, T value, int source) {
  const uint64_t* seen = collective(name, line, mask, pack(value));
  return source < 0 || source >= kWarp || !(mask >> source & 1) ? value : unpack<T>(seen[source]);
}

inline unsigned ballot(const char* name, int line, unsigned mask, bool predicate) {
  const uint64_t* seen = collective(name, line, mask, predicate);
  unsigned votes = 0;
  for (int i = 0; i < kWarp; ++i) votes |= (mask >> i & 1) && seen[i] ? 1u << i : 0u;
  return votes;
}

template <typename T>
unsigned match_any(const char* name, int line, unsigned mask, T value) {
  const uint64_t* seen = collective(name, line, mask, pack(value));
  unsigned equal = 0;
  for (int i = 0; i < kWarp; ++i) equal |= (mask >> i & 1) && seen[i] == pack(value) ? 1u << i : 0u;
  return equal;
}

}  // namespace fibers
