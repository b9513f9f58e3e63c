// The bfloat16 shadow of a float32 row, with what a rigorous error bound has to know of it.

#pragma once

#include "bf16.inl"
#include "vector.inl"

typedef uint32_t Words __attribute__((vector_size(PULLBACK_VECTOR_BYTES)));
typedef uint16_t HalfWords __attribute__((vector_size(PULLBACK_VECTOR_BYTES / 2)));

// The nearest bfloat16 (ties to even) of the bits of a float, or of many, in the upper half. A subnormal result becomes
// 0: hardware flushes it in products, so here it belongs to the rest, where the bound sees it. NaN stays NaN.
template <class Bits>
inline Bits bf16_above(Bits bits) {
  const Bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Bits kept = (rounded & 0x7f800000u) == 0 ? bits & 0x80000000u : rounded;
  return ((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : kept) & 0xffff0000u;
}

inline uint16_t to_bf16(float w) {
  uint32_t bits;
  __builtin_memcpy(&bits, &w, sizeof bits);
  return static_cast<uint16_t>(bf16_above(bits) >> 16);
}

// A float not below the root of a sum of squares that was accumulated in float64 over fewer than 2^30 terms.
inline float root_above(double squares) {
  const double root = __builtin_sqrt(squares) * (1 + 0x1p-20);
  const float near = static_cast<float>(root);
  return near < root ? __builtin_nextafterf(near, __builtin_inff()) : near;
}

// Adds w^2 and (w - w16)^2 of the columns c ... d, whatever the size of the numbers.
inline void add_squares(const float* w, const uint16_t* w16, int64_t c, int64_t d, double* square, double* left_over) {
  for (; c < d; ++c) {
    const double whole = w[c], left = whole - widen(bf16{w16[c]});
    *square += whole * whole;
    *left_over += left * left;
  }
}

// w16 = bf16(w); *norm >= ||w||, *rest >= ||w - w16||. NaN and infinity make both NaN or infinite.
inline void shadow_row(const float* w, int64_t d, uint16_t* w16, float* norm, float* rest) {
  // Summed in float32 before float64 takes over: fewer than 2^5 roundings.
  constexpr int64_t run = 16 * lanes<float>;
  constexpr int64_t page = 4096 / sizeof(float);  // no hardware prefetcher goes on to the next one
  double square = 0, left_over = 0;
  int64_t c = 0;
  while (c + lanes<float> <= d) {
    const int64_t end = std::min(c + run, d);
    Vec<float> squares = {}, rests = {};
    for (; c + lanes<float> <= end; c += lanes<float>) {
      __builtin_prefetch(w + c + page);
      const Vec<float> whole = load(w + c);
      const Words kept = bf16_above(reinterpret_cast<Words>(whole));
      const HalfWords halves = __builtin_convertvector(kept >> 16, HalfWords);
      __builtin_memcpy(w16 + c, &halves, sizeof halves);
      const Vec<float> left = whole - reinterpret_cast<Vec<float>>(kept);  // exact
      squares += whole * whole;
      rests += left * left;
    }
    square += fold<Add, float>(squares);
    left_over += fold<Add, float>(rests);
  }
  for (int64_t i = c; i < d; ++i) w16[i] = to_bf16(w[i]);
  add_squares(w, w16, c, d, &square, &left_over);
  if (square > 0x1p-80 && square < 0x1p120) {
    // What rounding took from the sums, and what each square lost that was too small for float32.
    const double lost = static_cast<double>(d) * 0x1p-126;
    square += 0x1p-19 * square + lost;
    left_over += 0x1p-19 * left_over + lost;
  } else {
    square = left_over = 0;
    add_squares(w, w16, 0, d, &square, &left_over);
  }
  *norm = root_above(square);
  *rest = root_above(left_over);
}

void shadow_rows(const float* rows, int64_t stride, int64_t d, int64_t begin, int64_t end, uint16_t* w16, float* norms,
                 float* rests) {
  for (int64_t i = begin; i < end; ++i) shadow_row(rows + i * stride, d, w16 + i * d, norms + i, rests + i);
}
