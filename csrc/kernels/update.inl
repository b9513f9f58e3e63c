// Adam, one feature at a time: every weight and moment moves once, and the gradient exists in registers only.

#include "vector.inl"

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

// One by one, which the compiler turns into the root of a vector.
template <class T>
inline Vec<T> roots(Vec<T> v) {
  for (int64_t i = 0; i < lanes<T>; ++i) v[i] = root(v[i]);
  return v;
}

template <class T>
struct Adam {
  T scale, rate, correction, beta1, rest1, beta2, rest2, eps;

  explicit Adam(const AdamFactors& f)
      : scale(f.scale),
        rate(f.rate),
        correction(f.correction),
        beta1(f.beta1),
        rest1(1 - f.beta1),
        beta2(f.beta2),
        rest2(1 - f.beta2),
        eps(f.eps) {}

  // One step of weights p with moments m, v under gradient g: of one weight, or of a vector of them.
  void weight(T* p, T* m, T* v, T g) const {
    g *= scale;
    *m = beta1 * *m + rest1 * g;
    *v = beta2 * *v + rest2 * (g * g);
    *p -= rate * *m / (correction * root(*v) + eps);
  }
  void vector(T* p, T* m, T* v, Vec<T> g) const {
    g *= scale;
    const Vec<T> mean = beta1 * load(m) + rest1 * g;
    const Vec<T> square = beta2 * load(v) + rest2 * (g * g);
    store(m, mean);
    store(v, square);
    store(p, load(p) - rate * mean / (correction * roots<T>(square) + eps));
  }

  // Of the columns c ... c + columns of a row of d, or of what is left of them.
  void columns_at(int64_t c, int64_t d, T* p, T* m, T* v, const RowSum<T>& gradient) const {
    if (c + columns<T> <= d) {
      Vec<T> g[column_vectors];
      gradient.sum(c, g);
#pragma GCC unroll 4
      for (int u = 0; u < column_vectors; ++u)
        vector(p + c + u * lanes<T>, m + c + u * lanes<T>, v + c + u * lanes<T>, g[u]);
    } else {
      for (; c < d; ++c) weight(p + c, m + c, v + c, gradient.at(c));
    }
  }
};

template <class T>
inline void to_unit_norm(T* row, int64_t d) {
  const double norm = __builtin_sqrt(squares(row, d));
  if (!(norm > 0)) return;
  const double factor = 1 / norm;  // infinite in float32 where the norm is subnormal
  for (int64_t c = 0; c < d; ++c) row[c] = static_cast<T>(row[c] * factor);
}

template <class T>
void adam_features(const SparseGradient<T>& grad, const Dictionary<T>& weights, const Dictionary<T>& exp_avg,
                   const Dictionary<T>& exp_avg_sq, const AdamFactors& factors, const Shadow* shadow, int64_t begin,
                   int64_t end, T* scratch) {
  const int64_t d_in = grad.d_in, d_out = grad.d_out;
  const Adam<T> update(factors);
  for (int64_t f = begin; f < end; ++f) {
    if (factors.lazy && grad.starts[f] == grad.starts[f + 1]) continue;
    const int64_t in = f * d_in, out = f * d_out;
    T *w_enc = weights.W_enc + in, *w_dec = weights.W_dec + out;
    FeatureGradient<T> gradient(grad, f, scratch);
    if (factors.remove_parallel && gradient.dec.count > 0) {
      T* dec = scratch + d_in;
      gradient.dec.sum_into(dec, d_out);
      remove_parallel(dec, w_dec, d_out);
      gradient.dec.base = dec;
      gradient.dec.count = 0;
    }
    // Both rows abreast: the more streams from memory, the more of its speed one core gets.
    for (int64_t c = 0; c < d_in || c < d_out; c += columns<T>) {
      update.columns_at(c, d_in, w_enc, exp_avg.W_enc + in, exp_avg_sq.W_enc + in, gradient.enc);
      update.columns_at(c, d_out, w_dec, exp_avg.W_dec + out, exp_avg_sq.W_dec + out, gradient.dec);
    }
    update.weight(weights.b_enc + f, exp_avg.b_enc + f, exp_avg_sq.b_enc + f, gradient.bias);
    if (factors.unit_norm) to_unit_norm(w_dec, d_out);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (shadow) shadow_row(w_enc, d_in, shadow->w16 + in, shadow->norms + f, shadow->rests + f);
    }
  }
}
