// The decode with its residual, and the gradient of a dictionary, one feature's row at a time: summed in a scratch row,
// used, forgotten.

#include "row_sum.inl"
#include "vector.inl"

// sum_c row[c]^2 in float64.
template <class T>
inline double squares(const T* row, int64_t d) {
  constexpr int64_t lanes_at_once = 16;
  double sums[lanes_at_once] = {};
  int64_t c = 0;
  for (; c + lanes_at_once <= d; c += lanes_at_once) {
    for (int64_t i = 0; i < lanes_at_once; ++i) {
      const double v = row[c + i];
      sums[i] += v * v;
    }
  }
  double total = 0;
  for (int64_t i = 0; i < lanes_at_once; ++i) total += sums[i];
  for (; c < d; ++c) total += static_cast<double>(row[c]) * row[c];
  return total;
}

template <class T>
void residual_rows(const T* values, const int32_t* indices, int64_t k, const T* W, int64_t W_stride, const T* bias,
                   const T* y, int64_t y_stride, int64_t d, bool relu, int64_t begin, int64_t end, T* residual, T* dots,
                   double* losses) {
  for (int64_t n = begin; n < end; ++n) {
    const T* __restrict target = y + n * y_stride;
    T* __restrict row = residual + n * d;
    for (int64_t c = 0; c < d; ++c) row[c] = (bias ? bias[c] : T(0)) - target[c];
    add_gathered(W, W_stride, indices + n * k, values + n * k, 0, k, d, row);
    losses[n] = squares(row, d);
    // The decoder rows are still in the cache.
    row_dots(row, indices + n * k, k, W, W_stride, d, dots + n * k);
    if (relu)
      for (int64_t j = n * k; j < (n + 1) * k; ++j) dots[j] = values[j] <= 0 ? T(0) : dots[j];
  }
}

template <class T>
void moments_rows(const T* y, int64_t y_stride, int64_t d, const double* center, int64_t begin, int64_t end,
                  double* sums, double* square) {
  constexpr int64_t lanes_at_once = 16;
  double parts[lanes_at_once] = {};
  for (int64_t n = begin; n < end; ++n) {
    const T* row = y + n * y_stride;
    int64_t c = 0;
    for (; c + lanes_at_once <= d; c += lanes_at_once) {
      for (int64_t i = 0; i < lanes_at_once; ++i) {
        const double off = row[c + i] - center[c + i];
        sums[c + i] += off;
        parts[i] += off * off;
      }
    }
    for (; c < d; ++c) {
      const double off = row[c] - center[c];
      sums[c] += off;
      parts[0] += off * off;
    }
  }
  for (int64_t i = 0; i < lanes_at_once; ++i) *square += parts[i];
}

template <class T>
void norm_rows(const T* rows, int64_t stride, int64_t d, int64_t begin, int64_t end, double* norms) {
  for (int64_t n = begin; n < end; ++n) norms[n] = __builtin_sqrt(squares(rows + n * stride, d));
}

template <class T>
struct FeatureGradient {
  RowSum<T> enc, dec;
  T bias;

  // scratch holds d_in + d_out values: what a feature has beyond the capacity of a sum is summed there beforehand.
  FeatureGradient(const SparseGradient<T>& grad, int64_t f, T* scratch) {
    enc.base = dec.base = nullptr;
    bias = 0;
    int64_t s = grad.starts[f];
    const int64_t end = grad.starts[f + 1];
    for (;;) {
      take(grad, s, end - s < RowSum<T>::capacity ? end - s : RowSum<T>::capacity);
      s += enc.count;
      if (s == end) return;
      enc.sum_into(scratch, grad.d_in);
      dec.sum_into(scratch + grad.d_in, grad.d_out);
      enc.base = scratch;
      dec.base = scratch + grad.d_in;
    }
  }

 private:
  void take(const SparseGradient<T>& grad, int64_t s, int64_t count) {
    enc.count = dec.count = count;
    for (int64_t i = 0; i < count; ++i) {
      enc.rows[i] = grad.x + grad.x_rows[s + i] * grad.x_stride;
      enc.weights[i] = grad.dvalues[s + i];
      dec.rows[i] = grad.g + grad.g_rows[s + i] * grad.g_stride;
      dec.weights[i] = grad.values[s + i];
      bias += grad.dvalues[s + i];
    }
  }
};

// row -= its component along w.
template <class T>
inline void remove_parallel(T* row, const T* w, int64_t d) {
  const T* pair[2] = {w, row};
  T products[1][2];
  dots<T, T, 1, 2>(pair, pair, Ahead(), d, products);
  if (!(products[0][0] > 0)) return;
  const T along = products[0][1] / products[0][0];
  for (int64_t c = 0; c < d; ++c) row[c] -= along * w[c];
}

template <class T>
void gradient_features(const SparseGradient<T>& grad, const T* W_dec, bool perpendicular, int64_t begin, int64_t end,
                       T* scratch, double* squared_norms) {
  T *enc = scratch, *dec = scratch + grad.d_in;
  for (int64_t f = begin; f < end; ++f) {
    squared_norms[f] = 0;
    if (grad.starts[f] == grad.starts[f + 1]) continue;
    const FeatureGradient<T> gradient(grad, f, scratch);
    gradient.enc.sum_into(enc, grad.d_in);
    gradient.dec.sum_into(dec, grad.d_out);
    if (perpendicular) remove_parallel(dec, W_dec + f * grad.d_out, grad.d_out);
    const double bias = gradient.bias;
    squared_norms[f] = squares(enc, grad.d_in) + bias * bias + squares(dec, grad.d_out);
  }
}
