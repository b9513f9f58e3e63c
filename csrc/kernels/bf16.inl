// bfloat16 by its bits: the upper half of a float32, so widening is exact and keeps NaN, infinities and subnormals.

#pragma once

#include "vector.inl"

inline float widen(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof wide);
  return wide;
}
template <class T>
inline T widen(T v) {
  return v;
}

// As many as Vec<float> holds, widened. (The compiler's own conversion goes by halves.)
inline Vec<float> load(const bf16* p) {
#if defined(__AVX512F__)
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
#elif defined(__AVX2__)
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
#else
  typedef uint16_t Narrow __attribute__((vector_size(PULLBACK_VECTOR_BYTES / 2)));
  typedef uint32_t Wide __attribute__((vector_size(PULLBACK_VECTOR_BYTES)));
  Narrow narrow;
  __builtin_memcpy(&narrow, p, sizeof narrow);
  const Wide wide = __builtin_convertvector(narrow, Wide) << 16;
  Vec<float> v;
  __builtin_memcpy(&v, &wide, sizeof v);
  return v;
#endif
}
