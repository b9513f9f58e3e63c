#include <cmath>

#include "gradient.h"
#include "isa.h"
#include "ops.h"

namespace pullback {
namespace {

void require_dictionary(const char* op, const std::string& prefix, const DictionaryViews& views, int64_t F,
                        int64_t d_in, int64_t d_out, int64_t itemsize) {
  require_dense(op, (prefix + "W_enc").c_str(), views[0], {F, d_in}, itemsize);
  require_dense(op, (prefix + "b_enc").c_str(), views[1], {F}, itemsize);
  require_dense(op, (prefix + "W_dec").c_str(), views[2], {F, d_out}, itemsize);
}

template <class T>
Dictionary<T> borrowed(const DictionaryViews& views) {
  return {views[0].as<T>(), views[1].as<T>(), views[2].as<T>()};
}

}  // namespace

void adam(const GradientViews& grad, const DictionaryViews& weights, const DictionaryViews& exp_avg,
          const DictionaryViews& exp_avg_sq, double grad_scale, double lr, int64_t step, double beta1, double beta2,
          double eps, bool remove_parallel, bool unit_norm, bool lazy, const std::optional<ShadowViews>& shadow) {
  const char* op = "adam_";
  const View &x = grad[5], &g = grad[6];
  require_dense(op, "b_enc", weights[1], {-1}, x.itemsize);
  const int64_t F = weights[1].shape[0];
  require_gradient(op, grad, F);
  const int64_t d_in = x.shape[1], d_out = g.shape[1];
  require_dictionary(op, "", weights, F, d_in, d_out, x.itemsize);
  require_dictionary(op, "exp_avg.", exp_avg, F, d_in, d_out, x.itemsize);
  require_dictionary(op, "exp_avg_sq.", exp_avg_sq, F, d_in, d_out, x.itemsize);
  require(step >= 1, std::string(op) + ": step must be at least 1, got " + std::to_string(step));
  Shadow followed{};
  if (shadow) {
    require(x.itemsize == 4, std::string(op) + ": a screen shadows float32 weights only");
    require_dense(op, "screen.W16", (*shadow)[0], {F, d_in}, 2);
    require_dense(op, "screen.norms", (*shadow)[1], {F}, 4);
    require_dense(op, "screen.rests", (*shadow)[2], {F}, 4);
    followed = {(*shadow)[0].as<uint16_t>(), (*shadow)[1].as<float>(), (*shadow)[2].as<float>()};
  }
  if (!std::isfinite(grad_scale)) return;

  const double t = static_cast<double>(step);
  const AdamFactors factors = {grad_scale,
                               lr / (1 - std::pow(beta1, t)),
                               1 / std::sqrt(1 - std::pow(beta2, t)),
                               beta1,
                               beta2,
                               eps,
                               remove_parallel,
                               unit_norm,
                               lazy};
  with_float_type(op, x.itemsize, [&](auto zero) {
    using T = decltype(zero);
    const SparseGradient<T> gradient = borrowed<T>(grad);
    for_features<T>(gradient, F, [&](int64_t begin, int64_t end, T* scratch) {
      table<T>().adam_features(gradient, borrowed<T>(weights), borrowed<T>(exp_avg), borrowed<T>(exp_avg_sq), factors,
                               shadow ? &followed : nullptr, begin, end, scratch);
    });
  });
}

}  // namespace pullback
