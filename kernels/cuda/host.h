// What the bindings share: tensors as Python hands them over, their checks, CUDA errors, the current device.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.h"

namespace pullback::cuda {

inline DType parse_dtype(const std::string& name) {
  if (name == "float32") return DType::f32;
  if (name == "float64") return DType::f64;
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  if (name == "int32") return DType::i32;
  if (name == "int64") return DType::i64;
  throw std::invalid_argument("dtype must be float32, float64, bfloat16, float16, int32 or int64, got " + name);
}

// Borrowed memory: a tensor as (address, dtype, shape, strides in elements).
struct View {
  char* data = nullptr;
  DType dtype = DType::f32;
  std::vector<int64_t> shape, strides;
};

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// The checks of one op. Each throws std::invalid_argument, which Python sees as ValueError.
class Checks {
 public:
  explicit Checks(std::string op) : op_(std::move(op)) {}

  void require(bool holds, const std::string& message) const {
    if (!holds) throw std::invalid_argument(op_ + " (cuda): " + message);
  }
  // Contiguous memory of this dtype and shape.
  template <typename T>
  T* dense(const View& view, const char* name, DType dtype, const std::vector<int64_t>& shape) const {
    require(view.dtype == dtype, std::string(name) + " has another dtype than its kernel");
    require(view.shape == shape,
            std::string(name) + " must be " + shape_text(shape) + ", got " + shape_text(view.shape));
    int64_t expected = 1;
    for (size_t i = shape.size(); i-- > 0; expected *= shape[i]) {
      require(shape[i] <= 1 || view.strides[i] == expected, std::string(name) + " must be contiguous");
      if (shape[i] == 0) return reinterpret_cast<T*>(view.data);
    }
    require(view.data != nullptr, std::string(name) + " must not be null");
    return reinterpret_cast<T*>(view.data);
  }
  // Contiguous rows of this length at any distance from each other, which is returned in elements.
  int64_t row_stride(const View& view, const char* name, int64_t rows, int64_t columns) const {
    require(view.shape == std::vector<int64_t>({rows, columns}),
            std::string(name) + " must be " + shape_text({rows, columns}) + ", got " + shape_text(view.shape));
    require(columns <= 1 || view.strides[1] == 1, std::string(name) + " must have contiguous rows");
    require(rows * columns == 0 || view.data != nullptr, std::string(name) + " must not be null");
    require(rows <= 1 || view.strides[0] >= 0, std::string(name) + " must not have a negative stride");
    return rows <= 1 ? columns : view.strides[0];
  }
  void require_rank(const View& view, const char* name, size_t rank) const {
    require(view.shape.size() == rank,
            std::string(name) + " must have " + std::to_string(rank) + " dimensions, got " + shape_text(view.shape));
  }

 private:
  std::string op_;
};

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

// Makes a device current and puts the previous one back: torch keeps its own idea of the current device.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
    moved_ = device != previous_;
  }
  ~OnDevice() {
    if (moved_) cudaSetDevice(previous_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int previous_ = 0;
  bool moved_ = false;
};

template <typename T>
T pointer(uintptr_t address) {
  return reinterpret_cast<T>(address);
}

void bind_ops(pybind11::module_& m);

}  // namespace pullback::cuda

namespace pybind11::detail {

template <>
struct type_caster<pullback::cuda::View> {
  PYBIND11_TYPE_CASTER(pullback::cuda::View, const_name("tuple[int, str, tuple[int, ...], tuple[int, ...]]"));

  bool load(handle source, bool) {
    if (!isinstance<tuple>(source)) return false;
    const auto fields = reinterpret_borrow<tuple>(source);
    if (fields.size() != 4) return false;
    value.data = reinterpret_cast<char*>(fields[0].cast<uintptr_t>());
    value.dtype = pullback::cuda::parse_dtype(fields[1].cast<std::string>());
    value.shape = fields[2].cast<std::vector<int64_t>>();
    value.strides = fields[3].cast<std::vector<int64_t>>();
    return true;
  }
};

}  // namespace pybind11::detail
