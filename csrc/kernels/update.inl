// Adam, one feature at a time: the gradient row is summed in the first cache and every weight and moment moves once.

#include "vector.inl"

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

// One row of weights p with its moments m, v under gradient g. A plain loop: the compiler has vector roots for it.
template <class T>
inline void adam_row(T* __restrict p, T* __restrict m, T* __restrict v, const T* __restrict g, int64_t d,
                     const AdamFactors& adam) {
  const T scale = static_cast<T>(adam.scale), rate = static_cast<T>(adam.rate), eps = static_cast<T>(adam.eps);
  const T beta1 = static_cast<T>(adam.beta1), rest1 = static_cast<T>(1 - adam.beta1);
  const T beta2 = static_cast<T>(adam.beta2), rest2 = static_cast<T>(1 - adam.beta2);
  const T correction = static_cast<T>(adam.correction);
  for (int64_t c = 0; c < d; ++c) {
    const T gc = scale * g[c];
    const T mc = beta1 * m[c] + rest1 * gc;
    const T vc = beta2 * v[c] + rest2 * (gc * gc);
    m[c] = mc;
    v[c] = vc;
    p[c] -= rate * mc / (correction * root(vc) + eps);
  }
}

template <class T>
inline void to_unit_norm(T* row, int64_t d) {
  const double norm = __builtin_sqrt(squares(row, d));
  if (!(norm > 0)) return;
  const T factor = static_cast<T>(1 / norm);
  for (int64_t c = 0; c < d; ++c) row[c] *= factor;
}

template <class T>
void adam_features(const SparseGradient<T>& grad, const Dictionary<T>& weights, const Dictionary<T>& exp_avg,
                   const Dictionary<T>& exp_avg_sq, const AdamFactors& adam, const Shadow* shadow, int64_t begin,
                   int64_t end, T* scratch) {
  const int64_t d_in = grad.d_in, d_out = grad.d_out;
  T *enc = scratch, *dec = scratch + d_in;
  for (int64_t f = begin; f < end; ++f) {
    if (adam.lazy && grad.starts[f] == grad.starts[f + 1]) continue;
    T* w_enc = weights.W_enc + f * d_in;
    T* w_dec = weights.W_dec + f * d_out;
    const T bias = gradient_row(grad, f, enc, dec);
    if (adam.remove_parallel) remove_parallel(dec, w_dec, d_out);
    adam_row(w_enc, exp_avg.W_enc + f * d_in, exp_avg_sq.W_enc + f * d_in, enc, d_in, adam);
    adam_row(weights.b_enc + f, exp_avg.b_enc + f, exp_avg_sq.b_enc + f, &bias, 1, adam);
    adam_row(w_dec, exp_avg.W_dec + f * d_out, exp_avg_sq.W_dec + f * d_out, dec, d_out, adam);
    if (adam.unit_norm) to_unit_norm(w_dec, d_out);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (shadow) shadow_row(w_enc, d_in, shadow->w16 + f * d_in, shadow->norms + f, shadow->rests + f);
    }
  }
}
