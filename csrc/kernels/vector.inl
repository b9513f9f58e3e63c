#pragma once

// Vectors of the width of this translation unit's instruction set (PULLBACK_VECTOR_BYTES), in the compiler's own vector
// extension: one source for every set. All of it lives in an anonymous namespace, so the linker can never merge
// a wide copy of a function into the code of a narrow set.

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(PULLBACK_VECTOR_BYTES)));
  typedef int32_t Mask __attribute__((vector_size(PULLBACK_VECTOR_BYTES)));
};
template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(PULLBACK_VECTOR_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(PULLBACK_VECTOR_BYTES)));
};

template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
using Mask = typename Simd<T>::Mask;
template <class T>
constexpr int64_t lanes = PULLBACK_VECTOR_BYTES / sizeof(T);

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// A store past the caches, where the instruction set has one; p is aligned to a vector. `streamed` must follow.
template <class T>
inline void stream(T* p, Vec<T> v) {
#if PULLBACK_VECTOR_BYTES == 64 && defined(PULLBACK_X86)
  __m512i bits;
  __builtin_memcpy(&bits, &v, sizeof v);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits);
#elif PULLBACK_VECTOR_BYTES == 32 && defined(PULLBACK_X86)
  __m256i bits;
  __builtin_memcpy(&bits, &v, sizeof v);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits);
#else
  store(p, v);
#endif
}
// What was streamed is there for other threads.
inline void streamed() {
#ifdef PULLBACK_X86
  _mm_sfence();
#endif
}

template <class V, int shift, size_t... i>
inline V rotate(V v, std::index_sequence<i...>) {
  return __builtin_shufflevector(v, v, ((i + shift) % sizeof...(i))...);
}

struct Add {
  template <class V>
  static V of(V a, V b) {
    return a + b;
  }
};
// The larger, and b where a is NaN.
struct Max {
  template <class V>
  static V of(V a, V b) {
    return a > b ? a : b;
  }
};
struct Or {
  template <class V>
  static V of(V a, V b) {
    return a | b;
  }
};

// All lanes into one, by halving: always in the same order.
template <class Op, class T, class V, int shift>
inline auto fold_by(V v) {
  v = Op::of(v, rotate<V, shift>(v, std::make_index_sequence<lanes<T>>{}));
  if constexpr (shift > 1) {
    return fold_by<Op, T, V, shift / 2>(v);
  } else {
    return v[0];
  }
}
template <class Op, class T, class V>
inline auto fold(V v) {
  return fold_by<Op, T, V, lanes<T> / 2>(v);
}
