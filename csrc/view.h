// Borrowed memory: an address with a shape. Nothing here owns or frees.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace pullback {

struct View {
  char* data = nullptr;
  int64_t itemsize = 0;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  int64_t size() const {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    return n;
  }
};

inline std::string to_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Throws std::invalid_argument, a ValueError in Python.
inline void require(bool fits, const std::string& sentence) {
  if (!fits) throw std::invalid_argument(sentence);
}

// The sentences of what follows are put together only where something is wrong: the checks run at every call.

// v must have this shape (-1: any) and element size.
inline void require_shape(const char* op, const char* name, const View& v, const std::vector<int64_t>& shape,
                          int64_t itemsize) {
  bool fits = v.shape.size() == shape.size() && v.strides.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 ? v.shape[i] >= 0 : v.shape[i] == shape[i];
  if (fits && v.itemsize == itemsize && (v.data != nullptr || v.size() == 0)) return;
  const std::string what = std::string(op) + ": " + name;
  require(fits, what + " must be " + to_string(shape) + ", got " + to_string(v.shape));
  require(v.itemsize == itemsize, what + " must have " + std::to_string(itemsize) + " bytes an element, got " +
                                      std::to_string(v.itemsize));
  require(false, what + " has no memory");
}

// ... and contiguous rows: neighbours in the last dimension are neighbours in memory.
inline void require_rows(const char* op, const char* name, const View& v, const std::vector<int64_t>& shape,
                         int64_t itemsize) {
  require_shape(op, name, v, shape, itemsize);
  if (v.shape.back() > 1 && v.strides.back() != 1 && v.size() != 0)
    require(false, std::string(op) + ": the last dimension of " + name + " must be contiguous, got strides " +
                       to_string(v.strides));
}

// ... and no gaps at all.
inline void require_dense(const char* op, const char* name, const View& v, const std::vector<int64_t>& shape,
                          int64_t itemsize) {
  require_shape(op, name, v, shape, itemsize);
  int64_t expected = 1;
  for (size_t i = v.shape.size(); i-- > 0; expected *= v.shape[i])
    if (v.shape[i] > 1 && v.strides[i] != expected && v.size() != 0)
      require(false, std::string(op) + ": " + name + " must be contiguous, got strides " + to_string(v.strides));
}

// Calls f with a float or a double, after the size of an element.
template <class F>
void with_float_type(const char* op, int64_t itemsize, const F& f) {
  if (itemsize == 4) return f(float{});
  if (itemsize == 8) return f(double{});
  throw std::invalid_argument(std::string(op) + ": tensors must be float32 or float64, got " +
                              std::to_string(itemsize) + " bytes an element");
}

}  // namespace pullback
