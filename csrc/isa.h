// Which instruction set the kernels run in.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace pullback {

// The table in use: the widest set of this CPU, or the one PULLBACK_ISA names. Throws std::runtime_error if that one is
// unknown or unsupported.
const Kernels& kernels();

// Use the named set from now on. Throws std::runtime_error as kernels() does.
void set_isa(const std::string& name);

// Narrowest first.
std::vector<std::string> available_isas();

std::vector<std::pair<std::string, bool>> cpu_features();

template <class T>
const Table<T>& table();
template <>
inline const Table<float>& table<float>() {
  return kernels().f32;
}
template <>
inline const Table<double>& table<double>() {
  return kernels().f64;
}

}  // namespace pullback
