// Attention patterns as the kernels read them.
#pragma once

#include <string>

#include "kernels.h"
#include "view.h"

namespace pullback {

// Patterns (Q, H, T, T) and what a head's source is divided by (Q, T), of the first P <= T positions.
template <class T>
Mixing<T> mixing_of(const char* op, const View& mixing, const View& scale, int64_t Q, int64_t H, int64_t P) {
  require_rows(op, "mixing", mixing, {Q, H, -1, -1}, sizeof(T));
  require_rows(op, "scale", scale, {Q, -1}, sizeof(T));
  require(P <= mixing.shape[2] && P <= mixing.shape[3] && P <= scale.shape[1],
          std::string(op) + ": there are no patterns and scales of " + std::to_string(P) + " positions");
  return {mixing.as<T>(), mixing.strides[0], mixing.strides[1], mixing.strides[2], scale.as<T>(), scale.strides[0]};
}

// The patterns of one prompt.
template <class T>
Mixing<T> of_prompt(const Mixing<T>& mixing, int64_t q) {
  return {mixing.at + q * mixing.q, mixing.q, mixing.h, mixing.dst, mixing.scale + q * mixing.scale_q, mixing.scale_q};
}

}  // namespace pullback
