// The bfloat16 shadow of a float32 row, with what a rigorous error bound has to know of it.

#pragma once

#include "bf16.inl"
#include "vector.inl"

// The nearest bfloat16 (ties to even) as its 16 bits. A subnormal result becomes 0: hardware flushes it in products, so
// here it belongs to the rest, where the bound sees it. NaN stays NaN.
inline uint16_t to_bf16(float w) {
  uint32_t bits;
  __builtin_memcpy(&bits, &w, sizeof bits);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t kept = magnitude > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
  return static_cast<uint16_t>((rounded & 0x7f80u) == 0 ? bits >> 31 << 15 : kept);
}

// A float not below the root of a sum of squares that was accumulated in float64 over fewer than 2^30 terms.
inline float root_above(double squares) {
  const double root = __builtin_sqrt(squares) * (1 + 0x1p-20);
  const float near = static_cast<float>(root);
  return near < root ? __builtin_nextafterf(near, __builtin_inff()) : near;
}

// w16 = bf16(w); *norm >= ||w||, *rest >= ||w - w16||. NaN and infinity make both NaN or infinite.
inline void shadow_row(const float* w, int64_t d, uint16_t* w16, float* norm, float* rest) {
  constexpr int64_t lanes_at_once = 16;
  double squares[lanes_at_once] = {}, rests[lanes_at_once] = {};
  int64_t c = 0;
  for (; c + lanes_at_once <= d; c += lanes_at_once) {
    for (int64_t i = 0; i < lanes_at_once; ++i) {
      const uint16_t b = to_bf16(w[c + i]);
      w16[c + i] = b;
      const double whole = w[c + i], left = whole - widen(bf16{b});
      squares[i] += whole * whole;
      rests[i] += left * left;
    }
  }
  double square = 0, left_over = 0;
  for (int64_t i = 0; i < lanes_at_once; ++i) square += squares[i], left_over += rests[i];
  for (; c < d; ++c) {
    w16[c] = to_bf16(w[c]);
    const double whole = w[c], left = whole - widen(bf16{w16[c]});
    square += whole * whole;
    left_over += left * left;
  }
  *norm = root_above(square);
  *rest = root_above(left_over);
}

void shadow_rows(const float* rows, int64_t stride, int64_t d, int64_t begin, int64_t end, uint16_t* w16, float* norms,
                 float* rests) {
  for (int64_t i = begin; i < end; ++i) shadow_row(rows + i * stride, d, w16 + i * d, norms + i, rests + i);
}
