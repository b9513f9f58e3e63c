// Python module `_cuda`: kernels on borrowed device memory, torch-free. Pointers and the stream arrive as integers,
// tensors are checked and allocated by the caller; sizes are checked here again, before any memory is touched.

#include "host.h"
#include "sparse_decode.h"

namespace py = pybind11;

namespace pullback::cuda {
namespace {

// 0 where there is no driver or no GPU: asking must not fail on such a machine.
int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // the failure is answered, a later launch must not report it
  return 0;
}

DType parse_weights(const std::string& name) {
  if (name == "float32" || name == "float64" || name == "bfloat16" || name == "float16") return parse_dtype(name);
  throw std::invalid_argument("decode_csr (cuda): W_dtype must be float32, float64, bfloat16 or float16, got " + name);
}

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("decode_csr (cuda): " + message);
}

std::string sizes(const DecodeCsr& job) {
  return "n_rows=" + std::to_string(job.n_rows) + ", nnz=" + std::to_string(job.nnz) +
         ", F=" + std::to_string(job.n_features) + ", d=" + std::to_string(job.d) +
         ", W_stride=" + std::to_string(job.W_stride);
}

void check_job(const DecodeCsr& job) {
  require(job.n_rows >= 0 && job.nnz >= 0 && job.n_features >= 0 && job.d >= 0 && job.W_stride >= 0,
          "sizes must not be negative, got " + sizes(job));
  require(job.nnz == 0 || job.n_features > 0, "entries need a W_dec with rows, got " + sizes(job));
  if (job.n_rows == 0 || job.d == 0) return;
  require(job.indptr != nullptr && job.out != nullptr, "indptr and out must not be null, got " + sizes(job));
  require(job.nnz == 0 || (job.indices != nullptr && job.values != nullptr && job.W != nullptr),
          "indices, values and W_dec must not be null, got " + sizes(job));
}

void decode_csr_from_python(uintptr_t indptr, uintptr_t indices, uintptr_t values, uintptr_t W_dec, uintptr_t b_dec,
                            uintptr_t out, int64_t n_rows, int64_t nnz, int64_t n_features, int64_t d, int64_t W_stride,
                            const std::string& W_dtype, int device, uintptr_t stream) {
  const DecodeCsr job{pointer<const int64_t*>(indptr),
                      pointer<const int32_t*>(indices),
                      pointer<const void*>(values),
                      pointer<const void*>(W_dec),
                      pointer<const void*>(b_dec),
                      pointer<void*>(out),
                      n_rows,
                      nnz,
                      n_features,
                      d,
                      W_stride,
                      parse_weights(W_dtype)};
  check_job(job);
  if (n_rows == 0 || d == 0) return;
  py::gil_scoped_release unlocked;
  const OnDevice guard(device);
  check(decode_csr(job, pointer<cudaStream_t>(stream)), "decode_csr (cuda)");
}

}  // namespace
}  // namespace pullback::cuda

PYBIND11_MODULE(_cuda, m) {
  using namespace py::literals;
#ifdef __CUDACC__
  m.attr("device_type") = "cuda";
#else
  m.attr("device_type") = "cpu";  // the tests run kernels there
#endif
  m.doc() = "CUDA kernels on borrowed device memory; imports without a GPU.";
  m.def("device_count", &pullback::cuda::device_count, "Number of usable CUDA devices, 0 without a driver.");
  m.def("decode_csr", &pullback::cuda::decode_csr_from_python, py::kw_only(), "indptr"_a, "indices"_a, "values"_a,
        "W_dec"_a, "b_dec"_a, "out"_a, "n_rows"_a, "nnz"_a, "n_features"_a, "d"_a, "W_stride"_a, "W_dtype"_a,
        "device"_a, "stream"_a,
        "Queue out[n] = b_dec + sum_e values[e] * W_dec[indices[e]] on a stream. Addresses are integers, b_dec 0 for\n"
        "none; values, b_dec and out are float64 for a float64 W_dec, else float32. ValueError: impossible sizes;\n"
        "RuntimeError: what CUDA reports.");
  pullback::cuda::bind_ops(m);
}
