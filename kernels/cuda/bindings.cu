// Python signatures of the selecting and training kernels: shapes are checked here, before any memory is touched.

#include <array>
#include <optional>

#include "gradient.h"
#include "host.h"
#include "order.h"
#include "residual.h"
#include "select.h"
#include "threshold.h"

namespace py = pybind11;

namespace pullback::cuda {
namespace {

constexpr int64_t kMostIds = INT32_MAX;  // ids, entry positions and grid rows are 32 bits wide

bool is_narrow(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

// Queues a job on a stream of a device, without the interpreter lock.
template <typename Job>
void queue(cudaError_t (*run)(const Job&, cudaStream_t), const Job& job, const char* op, int device, uintptr_t stream) {
  const py::gil_scoped_release unlocked;
  const OnDevice guard(device);
  check(run(job, pointer<cudaStream_t>(stream)), op);
}

void topk_select_from_python(const View& h, const std::optional<View>& maxima, const View& values, const View& indices,
                             int64_t filled, int64_t first_id, bool relu, int device, uintptr_t stream) {
  const Checks checks("topk_select");
  checks.require_rank(h, "h", 2);
  checks.require_rank(values, "values", 2);
  const int64_t n = h.shape[0], columns = h.shape[1], k = values.shape[1];
  checks.require(is_narrow(h.dtype), "h must be float32, bfloat16 or float16");
  checks.require(n <= kMostIds && first_id >= 0 && first_id + columns <= kMostIds,
                 "more rows or columns than 2^31 - 1");
  checks.require(filled >= 0 && filled <= k && filled <= first_id && k >= 1 && k <= filled + columns,
                 "k=" + std::to_string(k) + " is out of 1..filled+columns");
  TopkSelect job{};
  job.h = h.data;
  job.h_stride = checks.row_stride(h, "h", n, columns);
  if (maxima) {
    checks.require(maxima->dtype == h.dtype, "maxima must have the dtype of h");
    job.maxima_stride = checks.row_stride(*maxima, "maxima", n, ceil_div(columns, 64));
    job.maxima = maxima->data;
  }
  job.values = checks.dense<void>(values, "values", h.dtype, {n, k});
  job.indices = checks.dense<int32_t>(indices, "indices", DType::i32, {n, k});
  job.n = n;
  job.columns = columns;
  job.k = k;
  job.filled = filled;
  job.first_id = first_id;
  job.dtype = h.dtype;
  job.relu = relu;
  queue(topk_select, job, "topk_select (cuda)", device, stream);
}

ThresholdRows threshold_rows(const View& h, const std::optional<View>& theta, const View& indptr) {
  const Checks checks("threshold_select");
  checks.require_rank(h, "h", 2);
  const int64_t n = h.shape[0], columns = h.shape[1];
  checks.require(is_narrow(h.dtype), "h must be float32, bfloat16 or float16");
  checks.require(n <= kMostIds && columns <= kMostIds, "more rows or columns than 2^31 - 1");
  ThresholdRows job{};
  job.h = h.data;
  job.h_stride = checks.row_stride(h, "h", n, columns);
  if (theta) job.theta = checks.dense<const float>(*theta, "theta", DType::f32, {columns});
  job.indptr = checks.dense<int64_t>(indptr, "indptr", DType::i64, {n + 1});
  job.n = n;
  job.columns = columns;
  job.dtype = h.dtype;
  return job;
}

void threshold_count_from_python(const View& h, const std::optional<View>& theta, const View& indptr, int device,
                                 uintptr_t stream) {
  queue(threshold_count, threshold_rows(h, theta, indptr), "threshold_select (cuda)", device, stream);
}

void threshold_compact_from_python(const View& h, const std::optional<View>& theta, const View& indptr,
                                   const View& indices, const View& values, int device, uintptr_t stream) {
  const Checks checks("threshold_select");
  ThresholdRows job = threshold_rows(h, theta, indptr);
  checks.require_rank(indices, "indices", 1);
  job.capacity = indices.shape[0];
  job.indices = checks.dense<int32_t>(indices, "indices", DType::i32, {job.capacity});
  job.values = checks.dense<void>(values, "values", h.dtype, {job.capacity});
  queue(threshold_compact, job, "threshold_select (cuda)", device, stream);
}

void feature_order_from_python(const View& indices, const View& starts, const View& order, const View& scratch,
                               int device, uintptr_t stream) {
  const Checks checks("feature_order");
  checks.require_rank(indices, "indices", 1);
  checks.require_rank(starts, "starts", 1);
  const int64_t nnz = indices.shape[0], n_features = starts.shape[0] - 1;
  checks.require(nnz <= kMostIds, "more entries than 2^31 - 1: " + std::to_string(nnz));
  checks.require(n_features >= 0 && n_features < kMostIds, "starts must be [F + 1]");
  const FeatureOrder job{checks.dense<const int32_t>(indices, "indices", DType::i32, {nnz}),
                         checks.dense<int64_t>(starts, "starts", DType::i64, {n_features + 1}),
                         checks.dense<int32_t>(order, "order", DType::i32, {nnz}),
                         checks.dense<int32_t>(scratch, "scratch", DType::i32, {feature_order_scratch(nnz)}),
                         nnz,
                         n_features};
  queue(feature_order, job, "feature_order (cuda)", device, stream);
}

void decode_residual_from_python(const View& values, const View& indices, const View& W_dec,
                                 const std::optional<View>& b_dec, const View& y, const View& residual,
                                 const View& dots, const View& losses, bool relu, int device, uintptr_t stream) {
  const Checks checks("decode_residual");
  checks.require_rank(values, "values", 2);
  checks.require_rank(W_dec, "W_dec", 2);
  const int64_t n = values.shape[0], k = values.shape[1], n_features = W_dec.shape[0], d = W_dec.shape[1];
  checks.require(is_narrow(W_dec.dtype), "W_dec must be float32, bfloat16 or float16");
  checks.require(n <= kMostIds && n_features <= kMostIds, "more rows or features than 2^31 - 1");
  checks.require(n * k == 0 || n_features > 0, "entries need a W_dec with rows");
  checks.require(d <= kWidestResidual, "rows wider than " + std::to_string(kWidestResidual) + " do not fit a block");
  checks.require(y.dtype == DType::f32, "y must be float32");
  DecodeResidual job{};
  job.values = checks.dense<const float>(values, "values", DType::f32, {n, k});
  job.indices = checks.dense<const int32_t>(indices, "indices", DType::i32, {n, k});
  job.W = W_dec.data;
  job.W_stride = checks.row_stride(W_dec, "W_dec", n_features, d);
  job.bias = b_dec ? checks.dense<const float>(*b_dec, "b_dec", DType::f32, {d}) : nullptr;
  job.y = pointer<const float*>(reinterpret_cast<uintptr_t>(y.data));
  job.y_stride = checks.row_stride(y, "y", n, d);
  job.residual = checks.dense<float>(residual, "residual", DType::f32, {n, d});
  job.dots = checks.dense<float>(dots, "dots", DType::f32, {n, k});
  job.losses = checks.dense<double>(losses, "losses", DType::f64, {n});
  job.n = n;
  job.k = k;
  job.n_features = n_features;
  job.d = d;
  job.W_dtype = W_dec.dtype;
  job.relu = relu;
  queue(decode_residual, job, "decode_residual (cuda)", device, stream);
}

// starts, order, rows, dvalues, values, x, g, and the scratch: owners, partials.
using GradientViews = std::array<View, 9>;

SparseGradient sparse_gradient(const Checks& checks, const GradientViews& views) {
  const auto& [starts, order, rows, dvalues, values, x, g, owners, partials] = views;
  checks.require_rank(starts, "starts", 1);
  checks.require_rank(order, "order", 1);
  checks.require_rank(x, "x", 2);
  checks.require_rank(g, "g", 2);
  SparseGradient grad{};
  grad.n_features = starts.shape[0] - 1;
  grad.nnz = order.shape[0];
  grad.n = x.shape[0];
  grad.m = g.shape[0];
  grad.d_in = x.shape[1];
  grad.d_out = g.shape[1];
  checks.require(grad.n_features >= 0 && grad.n_features < kMostIds, "starts must be [F + 1]");
  checks.require(grad.nnz <= kMostIds && grad.m <= kMostIds, "more entries or rows than 2^31 - 1");
  checks.require(grad.n == 0 ? grad.m == 0 : grad.m % grad.n == 0, "rows of g must be a multiple of the rows of x");
  checks.require(x.dtype == g.dtype && (x.dtype == DType::f32 || x.dtype == DType::bf16),
                 "x and g must both be float32 or both bfloat16");
  checks.require(grad.d_out <= kWidestGradient,
                 "rows wider than " + std::to_string(kWidestGradient) + " do not fit a block");
  const int64_t chunks = gradient_chunks(grad.nnz);
  grad.starts = checks.dense<const int64_t>(starts, "starts", DType::i64, {grad.n_features + 1});
  grad.order = checks.dense<const int32_t>(order, "order", DType::i32, {grad.nnz});
  grad.rows = checks.dense<const int32_t>(rows, "rows", DType::i32, {grad.nnz});
  grad.dvalues = checks.dense<const float>(dvalues, "dvalues", DType::f32, {grad.nnz});
  grad.values = checks.dense<const float>(values, "values", DType::f32, {grad.nnz});
  grad.x = x.data;
  grad.g = g.data;
  grad.x_stride = checks.row_stride(x, "x", grad.n, grad.d_in);
  grad.g_stride = checks.row_stride(g, "g", grad.m, grad.d_out);
  grad.owners = checks.dense<int32_t>(owners, "owners", DType::i32, {chunks});
  grad.partials = checks.dense<float>(partials, "partials", DType::f32, {chunks, grad.d_in + grad.d_out + 1});
  grad.dtype = x.dtype;
  return grad;
}

void require_weights(const Checks& checks, DType dtype) {
  checks.require(dtype == DType::f32 || dtype == DType::bf16, "weights must be float32 or bfloat16");
}

void gradient_norm_from_python(const GradientViews& views, const std::optional<View>& W_dec,
                               const std::optional<View>& enough, const View& row_norms, const View& squares,
                               const View& norm, int device, uintptr_t stream) {
  const Checks checks("gradient_norm");
  GradientNorm job{};
  job.gradient = sparse_gradient(checks, views);
  const int64_t n_features = job.gradient.n_features;
  if (W_dec) {
    require_weights(checks, W_dec->dtype);
    job.W_dec = checks.dense<const void>(*W_dec, "W_dec", W_dec->dtype, {n_features, job.gradient.d_out});
    job.W_dtype = W_dec->dtype;
  }
  if (enough) {
    job.enough = checks.dense<const double>(*enough, "enough", DType::f64, {});
    job.row_norms = checks.dense<float>(row_norms, "row_norms", DType::f32, {job.gradient.n + job.gradient.m});
  }
  job.squares = checks.dense<double>(squares, "squares", DType::f64, {n_features});
  job.norm = checks.dense<double>(norm, "norm", DType::f64, {});
  queue(gradient_norm, job, "gradient_norm (cuda)", device, stream);
}

using RowViews = std::array<View, 3>;  // W_enc, b_enc, W_dec

DictionaryRows dictionary_rows(const Checks& checks, const RowViews& views, DType dtype, const SparseGradient& grad) {
  return {checks.dense<void>(views[0], "W_enc", dtype, {grad.n_features, grad.d_in}),
          checks.dense<void>(views[1], "b_enc", dtype, {grad.n_features}),
          checks.dense<void>(views[2], "W_dec", dtype, {grad.n_features, grad.d_out})};
}

void adam_from_python(const GradientViews& views, const RowViews& params, const RowViews& exp_avg,
                      const RowViews& exp_avg_sq, const View& grad_scale, const View& lr, const View& step,
                      const View& constants, double beta1, double beta2, double eps, bool remove_parallel,
                      bool unit_norm, bool lazy, int device, uintptr_t stream) {
  const Checks checks("adam_");
  AdamStep job{};
  job.gradient = sparse_gradient(checks, views);
  job.W_dtype = params[0].dtype;
  require_weights(checks, job.W_dtype);
  job.params = dictionary_rows(checks, params, job.W_dtype, job.gradient);
  job.exp_avg = dictionary_rows(checks, exp_avg, DType::f32, job.gradient);
  job.exp_avg_sq = dictionary_rows(checks, exp_avg_sq, DType::f32, job.gradient);
  job.grad_scale = checks.dense<const double>(grad_scale, "grad_scale", DType::f64, {});
  job.lr = checks.dense<const double>(lr, "lr", DType::f64, {});
  job.step = checks.dense<const double>(step, "step", DType::f64, {});
  job.constants = checks.dense<float>(constants, "constants", DType::f32, {4});
  job.beta1 = beta1;
  job.beta2 = beta2;
  job.eps = eps;
  job.remove_parallel = remove_parallel;
  job.unit_norm = unit_norm;
  job.lazy = lazy;
  queue(adam, job, "adam_ (cuda)", device, stream);
}

}  // namespace

void bind_ops(py::module_& m) {
  m.def("topk_select", &topk_select_from_python);
  m.def("threshold_count", &threshold_count_from_python);
  m.def("threshold_compact", &threshold_compact_from_python);
  m.def("feature_order_scratch", &feature_order_scratch);
  m.def("feature_order", &feature_order_from_python);
  m.def("decode_residual", &decode_residual_from_python);
  m.def("gradient_chunks", &gradient_chunks);
  m.def("gradient_norm", &gradient_norm_from_python);
  m.def("adam", &adam_from_python);
}

}  // namespace pullback::cuda
